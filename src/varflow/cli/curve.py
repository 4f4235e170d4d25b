"""Estimate the importance-weighted bound for growing numbers of samples."""

from __future__ import annotations

from dataclasses import dataclass

from varflow.cli.common import EstimateOptions
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Curve(EstimateOptions):
    """The importance-weighted bound for 1, 10, 100, ... samples, from one set of weights."""

    samples: int = 1000
    """Weights of each example."""
    limit: int | None = None
    """The first examples of the split alone."""


def main(arguments: list[str]) -> int:
    options = parse(Curve, arguments)
    run = options.open_latents()
    from varflow import evaluation
    from varflow.evaluation.chunks import Chunks
    from varflow.evaluation.curve import CURVE

    with options.progress() as progress:
        found = evaluation.bound_curve(
            run.model,
            run.dataset,
            options.split,
            options.samples,
            options.limit,
            progress=progress,
            folder=run.folder / "evaluation",
            **options.common,
        )
    options.finish(run, found)
    Chunks(run.folder / "evaluation", CURVE).clear()
    return 0
