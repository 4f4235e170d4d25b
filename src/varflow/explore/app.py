"""The explorer's page, made with Gradio: ``varflow explore RUN`` opens it, and the same lines run as a Space.

No analytics, no link to share, nothing that the page loads from elsewhere: fonts are those of the system.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varflow.core.errors import DataError, SpecError
from varflow.explore import drawing
from varflow.explore.opened import Opened
from varflow.runs.loading import load
from varflow.runs.run import Run

if TYPE_CHECKING:
    import gradio

#: Nothing is reported to anybody, and nobody is asked whether there is a newer Gradio.
_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_SHARE": "False"}
_FONTS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
#: Fits of one run that get a tab.
_FITS = 8
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def page(runs: Sequence[Run | str | Path], names: Sequence[str] = (), data_dir: str | None = None) -> gradio.Blocks:
    """The page of one or several runs, not yet served.

    Args:
        runs: runs, run folders, or addresses on the hub (``hf://owner/name``).
        names: what to call each; the names of their folders unless given.
        data_dir: folder of the named data sets, where it moved since the fit.

    Raises:
        DataError: Gradio is not installed.
        SpecError: no run.
        RunError: a folder without a run.
    """
    gr = _gradio()
    from varflow.explore import tabs

    if not runs:
        raise SpecError("runs: there are none; give the folder of a run, e.g. varflow explore runs/planar")
    opened = [each for run, name in _named(runs, names) for each in opened_fits(run, name, data_dir)]
    title = "varflow · " + ", ".join(run.name for run in opened)
    with gr.Blocks(title=title, analytics_enabled=False) as made:
        gr.HTML(_head(opened), elem_id="vf-head")
        if len(opened) == 1:
            _one(gr, tabs, opened[0], 0)
        else:
            together = tabs.alike(opened)
            with gr.Tabs():
                if len(together) > 1:
                    with gr.Tab("Side by side"):
                        tabs.side_tab(together)
                for number, run in enumerate(opened):
                    with gr.Tab(f"{number + 1}. {run.name}"):
                        _one(gr, tabs, run, number)
    return made


def launch(
    runs: Sequence[Run | str | Path],
    host: str | None = None,
    port: int | None = None,
    browser: bool = False,
    block: bool = True,
    names: Sequence[str] = (),
    data_dir: str | None = None,
) -> str:
    """Serve :func:`page`, until the process is interrupted; returns its address.

    Args:
        runs, names, data_dir: as for :func:`page`.
        host: what it is bound to; without it GRADIO_SERVER_NAME, which a Space sets, else 127.0.0.1: this machine
            alone.
        port: without it GRADIO_SERVER_PORT, else the first free one from 7860 on.
        browser: open it in the browser.
        block: wait until interrupted; without it return once it is served.

    Raises:
        DataError, SpecError, RunError: as :func:`page`; SpecError too for a port that is taken.
    """
    made = page(runs, names, data_dir)
    gr = _gradio()
    try:
        _, local, _ = made.launch(
            server_name=host, server_port=port, inbrowser=browser, share=False, quiet=True, prevent_thread_lock=True,
            show_error=False, footer_links=[], ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False,
            theme=_theme(gr), css=CSS, head=_META, max_file_size="20mb",
        )  # fmt: skip
    except OSError as error:
        where = f"{host or '127.0.0.1'}:{port}"
        raise SpecError(f"port: {where} cannot be listened on ({error}); choose another --port") from error
    if block:
        print(f"{local} shows {', '.join(str(run) for run in runs)}; Ctrl-C ends it", flush=True)
        made.block_thread()
    return str(local)


def _gradio() -> Any:
    os.environ.update(_ENVIRONMENT)
    try:
        import gradio
    except ImportError as error:
        raise DataError("gradio: is not installed; run: pip install 'varflow[explore]'") from error
    return gradio


def _theme(gr: Any) -> Any:
    """Gradio's plain theme in the fonts of the system."""
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONO, radius_size="sm", spacing_size="md"
    )


def _named(runs: Sequence[Run | str | Path], names: Sequence[str]) -> list[tuple[Run | str | Path, str]]:
    if names and len(names) != len(runs):
        raise SpecError(f"names: {len(names)} for {len(runs)} runs; give one each")
    return list(zip(runs, names or [""] * len(runs), strict=True))


def opened_fits(run: Run | str | Path, name: str = "", data_dir: str | None = None) -> list[Opened]:
    """The run, or each of the first few fits that were trained together in it."""
    found = run if isinstance(run, Run) else load(run)
    if data_dir is not None:
        found.spec = found.spec.replace(data_dir=data_dir)
    fits = len(found.members())
    if fits == 1:
        return [Opened(found, name)]
    called = name or Opened(found).name
    return [Opened(found, f"{called}, fit {fit + 1} of {fits}", fit) for fit in range(min(fits, _FITS))]


def _head(runs: Sequence[Opened]) -> str:
    """What is shown, and what is left out because the folder does not hold it."""
    parts = []
    for run in runs:
        name, about = drawing.html.escape(run.name), drawing.html.escape(run.about())
        parts.append(f"<h1>{name}</h1><p>{about}</p>")
        parts += [drawing.said(told) for told in run.missing()]
    return f'<header class="vf-head">{"".join(parts)}</header>'


def _one(gr: Any, tabs: Any, opened: Opened, number: int) -> None:
    """The tabs that apply to a run."""
    shared = tabs.Shared(opened, number)
    shared.mine.render() if not shared.mine.is_rendered else None
    chosen = applying(opened)
    tabs.condition_controls(shared)
    if not chosen:
        gr.HTML(
            drawing.said(
                "There is nothing to move in this model: no latents that decode, no flow, no trajectories, no x to "
                "score."
            )
        )
        return
    with gr.Tabs():
        for name in chosen:
            with gr.Tab(name):
                getattr(tabs, TABS[name])(shared)


#: Tab → what makes it.
TABS = {
    "Latents": "latent_tab",
    "A to B": "between_tab",
    "Flow": "flow_tab",
    "Trajectories": "trajectory_tab",
    "Your own": "own_tab",
    "Draws": "draws_tab",
}


def applying(opened: Opened) -> list[str]:
    """The tabs that a run has what they need for."""
    needs = {
        "Latents": opened.decodes,
        "A to B": opened.decodes and opened.features > 1,
        "Flow": bool(opened.flows),
        "Trajectories": opened.moves,
        "Your own": opened.answers,
        "Draws": opened.answers,
    }
    return [name for name in TABS if needs[name]]


_META = '<meta name="referrer" content="no-referrer">'

CSS = """
.gradio-container { width: 100%; }
.gradio-container > .main { width: 100%; max-width: 1080px; margin: 0 auto; }
.gradio-container main { width: 100%; }
.vf-style .html-container, .vf-holder .html-container { padding-bottom: 0; }
@media (max-width: 480px) {
  #vf-head { padding-top: 0; }
  .vf-view > .vf-picture, .vf-view .html-container > div > .vf-picture { max-width: 200px; }
  .gradio-container > .main { padding-left: 12px; padding-right: 12px; }
  .tab-container button { padding: 0 8px; }
}
.vf-head h1 { font-size: 1.25rem; margin: 0.2rem 0 0; font-weight: 650; }
.vf-head p { margin: 0.1rem 0 0.35rem; }
.vf-said, .vf-head p { color: color-mix(in srgb, var(--body-text-color) 78%, transparent); }
.vf-said { margin: 0.35rem 0; line-height: 1.45; }
.vf-trouble { margin: 0.4rem 0; padding: 0.5rem 0.7rem; border-left: 4px solid #D55E00;
  background: color-mix(in srgb, #D55E00 12%, transparent); color: var(--body-text-color); }
.vf-view h3 { margin: 0 0 0.2rem; font-size: 1.02rem; font-weight: 650; }
.vf-picture { margin: 0; max-width: 340px; flex: 1 1 150px; }
.vf-picture img { width: 100%; }
.vf-pixels { image-rendering: pixelated; display: block; border: 1px solid var(--border-color-primary); }
.vf-pair { display: flex; gap: 0.8rem; flex-wrap: wrap; }
.vf-pair .vf-picture { max-width: 220px; }
figcaption { font-size: 0.85rem; color: var(--body-text-color); padding-top: 0.15rem; }
.vf-strip { display: flex; flex-wrap: wrap; gap: 0.4rem; }
.vf-tile { margin: 0; width: 74px; }
.vf-tile img { width: 100%; }
.vf-tile figcaption { font-size: 0.74rem; overflow-wrap: anywhere; line-height: 1.2; }
.vf-scroll { overflow-x: auto; max-width: 100%; }
.vf-table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
.vf-scroll .vf-table th, .vf-scroll .vf-table td { border: 0; padding: 0.2rem 0.65rem; text-align: right;
  white-space: nowrap;
  border-bottom: 1px solid var(--border-color-primary); color: var(--body-text-color); }
.vf-scroll .vf-table th { font-weight: 600; background: none; }
.vf-scroll .vf-table tbody th { text-align: left; }
.vf-plot { width: 100%; max-width: 560px; height: auto; display: block; color: var(--body-text-color); }
.vf-plot text { font-size: 13px; font-family: inherit; }
.vf-plane { width: 100%; max-width: 420px; aspect-ratio: 1; touch-action: none; cursor: crosshair; user-select: none;
  background-size: 100% 100%; image-rendering: auto; border: 1px solid var(--border-color-primary);
  background-color: #fff; }
.vf-plane svg { width: 100%; height: 100%; display: block; overflow: visible; }
.vf-hand, .vf-end { fill: rgba(255, 255, 255, 0.35); stroke: #D55E00; stroke-width: 1.1; }
.vf-end { fill: #D55E00; stroke: #fff; stroke-width: 0.6; }
.vf-name { font-size: 4.4px; font-weight: 700; text-anchor: middle; fill: #fff; font-family: sans-serif; }
.vf-between { stroke: #D55E00; stroke-width: 0.9; stroke-dasharray: 2 1.4; fill: none; }
.vf-legend { display: flex; flex-wrap: wrap; gap: 0.15rem 0.7rem; font-size: 0.85rem; margin: 0.3rem 0;
  color: var(--body-text-color); }
.vf-legend i { display: inline-block; width: 0.75em; height: 0.75em; border-radius: 50%; margin-right: 0.3em; }
"""
