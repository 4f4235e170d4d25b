"""Estimate log p(x) by annealed importance sampling, with bounds from both sides on simulated data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from varflow.cli.common import AnnealingOptions, kept
from varflow.core.errors import SpecError
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Anneal(AnnealingOptions):
    """log p(x) of test examples by annealed importance sampling, which does not need a good q(z|x).

    Beside it the same chains on data simulated from the model, where log p(x) is bounded from both sides: how
    far the estimate can be off. Interrupted, the same command goes on and ends in the same numbers.
    """

    simulated: int = 200
    """Examples simulated from the model for the bounds from both sides; 0 for none."""
    schedule: Literal["sigmoidal", "geometric", "linear"] = "sigmoidal"
    """How the temperatures are spaced."""
    acceptance: float = 0.65
    """Acceptance rate that step sizes are adapted to in the warm-up."""


def main(arguments: list[str]) -> int:
    options = parse(Anneal, arguments)
    run = options.open_latents()
    from varflow import evaluation

    settings = options.annealing(acceptance=options.acceptance, schedule=options.schedule)
    if options.simulated < 0:
        raise SpecError(f"simulated: was {options.simulated}; use 0 or more")
    common = {**options.common, "folder": run.folder / "evaluation"}
    with options.progress() as progress:
        found = evaluation.annealed_likelihood(
            run.model, run.dataset, options.split, options.points, settings, progress=progress, **common
        )  # fmt: skip
    found.save(run.folder)
    options.say(found.table())
    beside = None
    if options.simulated:
        context = None
        if run.dataset.conditions is not None:
            import torch

            rows = torch.arange(options.simulated) % run.dataset.sizes[options.split]
            context = run.dataset.batch(options.split, rows).context
        with options.progress() as progress:
            beside = evaluation.sandwich_bounds(
                run.model, options.simulated, settings, progress=progress, data=run.dataset.describe(),
                context=context, **common,
            )  # fmt: skip
        beside.save(run.folder)
        options.say(
            f"\non data simulated from the model, log p(x) from both sides:\n{beside.table()}"
        )
    page = run.report()
    options.say(f"report: {page}")
    options.answer(
        lambda: {**kept(run, found), "simulated": beside and kept(run, beside), "run": run.folder, "report": page}
    )
    return 0
