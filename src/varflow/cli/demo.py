"""Show what flows do: four energies, a digit plane under three posteriors, and the numbers, in a minute or so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from varflow.cli.common import printer
from varflow.settings.flags import parse


@dataclass(frozen=True)
class Demo:
    """Flows fitted to energies and posteriors compared on digits, as a page to look at.

    Needs no download and no data. Ends by printing where the page is, and how long everything took.
    """

    out: str = "demo"
    """Folder for the runs and the page."""
    epochs: float = 80.0
    """Budget of each fit to the digits."""
    seed: int = 0
    """Seed of every fit."""
    quiet: bool = False
    """Print nothing but errors."""


def main(arguments: list[str]) -> int:
    options = parse(Demo, arguments)
    import time

    from varflow.core import ranks

    began = time.perf_counter()
    ranks.stay_alone()
    from varflow.runs.demo import demo

    say = printer(options.quiet)
    page = demo(Path(options.out), options.epochs, options.seed, say, options.quiet)
    say(f"took {time.perf_counter() - began:.0f} s")
    say(f"pictures, numbers and reports: {page.resolve()}")
    return 0
