"""Take log p(x) − ELBO apart: what the family of q costs, and what the encoder costs."""

from __future__ import annotations

from dataclasses import dataclass

from varflow.cli.common import AnnealingOptions
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Gaps(AnnealingOptions):
    """log p(x) − ELBO taken apart: approximation gap (the family's) and amortization gap (the encoder's).

    q(z|x) is refined for each example; log p(x) is annealed as by `varflow anneal`, whose chains are used again.
    """

    steps: int = 500
    """Steps of Adam on each example's own tensors."""
    samples: int = 16
    """Latents for each example and step."""
    lr: float = 0.03
    """Step size of Adam at the start."""
    elbo_samples: int = 1000
    """Samples of the ELBOs before and after."""


def main(arguments: list[str]) -> int:
    options = parse(Gaps, arguments)
    run = options.open_latents()
    from varflow import evaluation

    refinement = evaluation.Refinement(
        options.steps, options.samples, options.lr, options.elbo_samples
    )
    with options.progress() as progress:
        found = evaluation.inference_gaps(
            run.model,
            run.dataset,
            options.split,
            options.points,
            refinement,
            options.annealing(),
            progress=progress,
            folder=run.folder / "evaluation",
            **options.common,
        )
    options.finish(run, found)
    return 0
