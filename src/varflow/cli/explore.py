"""Open a page on which a fitted model answers at once: latents, flows, your own rows and pictures."""

from __future__ import annotations

from dataclasses import dataclass

from varflow.core.errors import SpecError
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Explore:
    """varflow explore RUN [RUN ...]: a page with the tabs that the model has what it needs for. With several runs of
    the same kind of data two of them stand side by side. A run is a folder, or hf://owner/name on the hub.

    It is served to this machine alone until Ctrl-C, and asks nothing of any other. Needs pip install
    'varflow[explore]'.
    """

    host: str = "127.0.0.1"
    """What the page is served to: 127.0.0.1 is this machine alone, 0.0.0.0 whoever reaches it."""
    port: int | None = None
    """Port; without it the first free one from 7860 on."""
    browser: bool = True
    """Open the page in the browser."""
    threads: int | None = None
    """CPU threads; without it torch's choice."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""


def main(arguments: list[str]) -> int:
    words = 0
    while words < len(arguments) and not arguments[words].startswith("-"):
        words += 1
    runs, options = arguments[:words], parse(Explore, arguments[words:])
    if not runs:
        raise SpecError("run: missing; give the folder of a run, e.g. varflow explore runs/planar")
    if options.port is not None and not 1 <= options.port <= 65535:
        raise SpecError(f"port: was {options.port}; use 1 to 65535")
    from varflow.explore.app import launch
    from varflow.training.engine import Engine
    from varflow.training.settings import TrainingSettings

    Engine.start(TrainingSettings(threads=options.threads))
    launch(runs, options.host, options.port, options.browser, data_dir=options.data_dir)
    return 0
