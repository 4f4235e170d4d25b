"""A comparison as files: Markdown, CSV, and one HTML page with the figures of all runs side by side."""

from __future__ import annotations

import io
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from varflow.core import random
from varflow.core.files import make_folder, read_json, read_metrics, write_text
from varflow.evaluation.evaluation import Evaluation
from varflow.figures.base import canvas, style
from varflow.figures.comparison import bound_by_samples, overlaid_curves
from varflow.figures.pictures import image_grid
from varflow.report import html
from varflow.runs.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Panels in a row, and pictures in a panel.
_ACROSS, _PICTURES = 3, 36

_ERRORS = (
    "± is one standard error over the test points, in brackets stands the Monte-Carlo error, which more "
    "posterior samples would remove. A difference is the mean over the points of a run's value less that of the "
    "first run: points that are hard for both drop out, so its error is smaller than those of the two values."
)


def write(
    comparison: Comparison,
    out: Path,
    figures: bool = True,
    seed: int = 0,
    data_dir: str | None = None,
) -> list[Path]:
    """Write ``comparison.md``, ``comparison.csv`` and ``comparison.html``; return their paths.

    Each appears whole or not at all. The page needs nothing else: pictures are inside.

    Args:
        figures: draw samples, reconstructions and curves; without them no model is opened.
        seed: of the samples: the same latents' noise for each run, the same examples to reconstruct.
        data_dir: where the named data sets are, if they moved.

    Raises:
        RunError: a run cannot be opened, or a file cannot be written.
    """
    make_folder(out)
    body = [
        html.heading(f"{len(comparison.names)} runs compared", level=1),
        html.paragraph(f"Protocol of the data: {comparison.protocol}.", soft=True),
        html.heading("Results"),
        _table(comparison.rows()),
        html.heading(f"Differences from {comparison.names[0]}, in pairs"),
        _table(comparison.difference_rows()),
        html.paragraph(_ERRORS, soft=True),
        *(html.paragraph(f"Note: {note}", soft=True) for note in comparison.notes),
        *(_figures(comparison, seed, data_dir) if figures else []),
        html.heading("Settings that differ"),
        *_settings(comparison),
        html.heading("How to reproduce"),
        html.code(shlex.join(["varflow", "compare", *map(str, comparison.folders)])),
    ]
    texts = {
        "comparison.md": comparison.markdown(),
        "comparison.csv": comparison.csv(),
        "comparison.html": html.page("Runs compared", body),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def _table(rows: list[list[str]]) -> str:
    return html.table(rows[0], rows[1:], whole=range(1, len(rows[0])))


def _figures(comparison: Comparison, seed: int, data_dir: str | None) -> list[str]:
    names = comparison.names
    parts = [html.heading("Figures")]
    with style():
        metrics = {
            n: read_metrics(folder) for n, folder in zip(names, comparison.folders, strict=True)
        }
        if any("elbo" in row for rows in metrics.values() for row in rows):
            figure, axes = canvas(width=7.2, height=4.2)
            overlaid_curves(metrics, axes[0, 0])
            caption = "The ELBO on the validation split against the step, of the training steps where there is none."
            parts += _picture(figure, "Learning curves", caption)
        if comparison.curves:
            figure, axes = canvas(width=7.2, height=4.2)
            bound_by_samples(dict(zip(names, map(_curve, comparison.curves), strict=True)), axes[0, 0])  # fmt: skip
            caption = "Bars: Monte-Carlo errors. At k = 1 the ELBO; the limit is log p(x), whatever q(z|x) is."
            parts += _picture(figure, "The bound against the number of samples", caption)
        parts += _pictures(comparison, seed, data_dir)
    return parts


@torch.no_grad()
def _pictures(comparison: Comparison, seed: int, data_dir: str | None) -> list[str]:
    from varflow.runs.run import load

    samples, again, originals, split = [], [], None, "test"
    for folder in comparison.folders:
        run = load(folder)
        model: Any = run.model
        if data_dir is not None:
            run.spec = run.spec.replace(data_dir=data_dir)
        if not run.dataset.picture:
            return []
        with random.stream(seed):
            samples.append(run.dataset.pictures(model.sample(_PICTURES, mean=True)))
        count = min(_PICTURES, run.dataset.sizes[split])
        with random.stream(seed):
            x = run.dataset.batch(split, torch.arange(count)).x
            again.append(run.dataset.pictures(model.reconstruct(x)))
        originals = run.dataset.pictures(x)
    caption = (
        f"{_PICTURES} draws of each run's prior, decoded: the likelihood's mean, with the same random numbers "
        "for all runs."
    )
    out = _picture(_panels(dict(zip(comparison.names, samples, strict=True))), "Samples", caption)
    panels = {f"{split} examples": originals, **dict(zip(comparison.names, again, strict=True))}
    caption = (
        f"The first {len(again[0])} {split} examples, then each run's reconstructions in the same places: the "
        "likelihood's mean at one draw of q(z|x)."
    )
    return out + _picture(_panels(panels), "Reconstructions", caption)


def _panels(pictures: dict[str, Any]) -> Figure:
    columns = min(_ACROSS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure, axes = canvas(rows, columns, 3.2 * columns, 3.5 * rows)
    panels = axes.flatten()
    for panel, (name, images) in zip(panels, pictures.items(), strict=False):
        image_grid(images, panel).set_title(name, fontsize=9)
    for panel in panels[len(pictures) :]:
        panel.axis("off")
    return figure


def _curve(found: Evaluation) -> tuple[list[float], list[float], list[float]]:
    estimates = [
        (float(name.partition("_")[2]), e.value, e.monte_carlo_error)
        for name, e in found.estimates.items()
    ]
    counts, values, errors = zip(*estimates, strict=True)
    return list(counts), list(values), [math.nan if e is None else e for e in errors]


def _picture(figure: Figure, title: str, caption: str) -> list[str]:
    buffer = io.BytesIO()
    figure.draw_without_rendering()
    figure.savefig(buffer, dpi=150, format="png")
    return [html.heading(title, level=3), html.picture(buffer.getvalue(), title, caption)]


def _settings(comparison: Comparison) -> list[str]:
    specs = [_flat(read_json(folder / "spec.json")) for folder in comparison.folders]
    about = [read_json(folder / "run.json") for folder in comparison.folders]
    names = list(dict.fromkeys(name for spec in specs for name in spec))
    rows = [[name, *(html.plain(spec.get(name)) for spec in specs)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    outcomes = [one.get("outcome") or {} for one in about]
    rows += [
        [f"outcome: {key}", *(html.plain(outcome.get(key)) for outcome in outcomes)]
        for key in ("step", "seconds", "reason")
        if any(key in outcome for outcome in outcomes)
    ]
    return [html.table(["setting", *comparison.names], rows, kind="settings")]


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{group}: {name}": value
        for group, settings in spec.items()
        if isinstance(settings, dict)
        for name, value in settings.items()
    }
