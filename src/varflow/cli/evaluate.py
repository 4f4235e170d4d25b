"""Estimate the ELBO, log p(x), bits/dim and the health of a run, with their errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from varflow.cli.common import EstimateOptions, at_least_one, kept
from varflow.core.errors import SpecError
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Evaluate(EstimateOptions):
    """Estimates on a split, with their errors; per-example results are kept in the run.

    A fit to a target is set beside its exact answers instead.
    """

    split: Literal["auto", "test", "validation", "train"] = "auto"  # type: ignore[assignment]
    """The split; auto is test. A target has none."""
    samples: int | None = None
    """Importance samples: 1000 for each example, 100,000 for each fit to a target, unless given."""
    grid: int | None = None
    """Targets in one or two dimensions: KL by quadrature too, on so many panels along each."""
    limit: int | None = None
    """The first examples of the split alone."""
    removed: float | None = None
    """Of a table with likelihood=columns: remove such a share of the cells too, predict them from the rest of their
    rows, and set simpler methods beside the model, those of scikit-learn where it is installed."""


def main(arguments: list[str]) -> int:
    options = parse(Evaluate, arguments)
    run = options.open()
    more = {}
    if options.grid is not None:
        if not run.infers_target:
            raise SpecError(f"grid: was {options.grid}; it is for targets, leave it out")
        more["grid"] = options.grid
    if options.samples is not None:
        at_least_one("samples", options.samples)
    split = None if options.split == "auto" else options.split
    with options.progress() as progress:
        result = run.evaluate(
            split, options.samples, limit=options.limit, progress=progress, **options.common, **more
        )
    options.say(result.table())
    cells = None
    if options.removed is not None:
        with options.progress() as progress:
            cells = run.removed_cells(
                options.removed,
                split or "test",
                1000 if options.samples is None else options.samples,
                limit=options.limit,
                progress=progress,
                **options.common,
            )
        options.say("\n" + cells.table())
    page = run.report()
    options.say(f"report: {page}")
    options.answer(
        lambda: {**kept(run, result), "removed": cells and kept(run, cells), "run": run.folder, "report": page}
    )
    return 0
