"""The inference gap taken apart: what the family of posteriors costs, and what the encoder costs.

    log p(x) − ELBO  =  [log p(x) − ELBO*]  +  [ELBO* − ELBO]
    inference gap    =  approximation gap   +  amortization gap

ELBO* is that of the best q of the family for this x alone (Cremer, Li and Duvenaud 2018, section 3), found by
refining the per-example tensors of q(z|x), with everything that examples share standing still.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from varflow.evaluation.annealing import Annealing, anneal
from varflow.evaluation.estimate import Estimates
from varflow.evaluation.evaluation import Evaluation
from varflow.evaluation.points import OnProgress, points_of, protocol_of, stage
from varflow.evaluation.refinement import Refinement, refined_bounds
from varflow.model import Model

if TYPE_CHECKING:
    from varflow.data import Dataset


def inference_gaps(
    model: Model,
    dataset: Dataset,
    split: str = "test",
    points: int = 200,
    settings: Refinement | None = None,
    annealing: Annealing | None = None,
    memory: int = 2**30,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: OnProgress | None = None,
) -> Evaluation:
    """Inference, approximation and amortization gap of the first points of a split, nats.

    log p(x) is the larger, in the mean over the points, of two estimates that are lower bounds in expectation:
    annealed importance sampling, and importance sampling from the refined q. Where log p̂ falls short, so do the
    inference and the approximation gap; the amortization gap does not depend on it.

    Args:
        dataset: see :class:`varflow.data.Dataset`.
        points: of the split.
        settings: of the refinement.
        annealing: of the chains; settings, memory, seed and folder as in :func:`~varflow.evaluation.anneal`,
            whose finished chunks are found again.
        progress: called with (points done, points); each point is counted twice, once annealed and once refined.

    Returns:
        ``elbo``, ``elbo_refined``, ``log_px``, ``log_px_annealed``, ``log_px_importance``, and the gaps
        ``inference_gap`` = ``approximation_gap`` + ``amortization_gap``, point by point. Kept as ``{split}-gaps``.

    Raises:
        SpecError: an unknown split, more points than it has, or a model that cannot be refined or annealed.
        NonFiniteError: a weight is NaN.

    Cost: that of :func:`~varflow.evaluation.anneal`, and steps × samples draws with a backward pass.
    """
    settings, annealing = settings or Refinement(), annealing or Annealing()
    x, about, data = points_of(dataset, model, split, points, seed)

    refined = refined_bounds(model, x, settings, seed, folder, stage(progress, 0))
    annealed = anneal(model, x, annealing, memory, seed, None, folder, stage(progress, 1))
    # Of the stored values, in the units of the data; the gaps are differences and stay as they are.
    ladj = torch.from_numpy(about["data_ladj"])
    moved = {name: getattr(refined, name) + ladj for name in ("elbo", "refined", "log_px")}
    refined = refined._replace(**moved)
    annealed = replace(annealed, log_weights=annealed.log_weights + ladj)
    by_chains = bool(annealed.log_px.mean() >= refined.log_px.mean())
    best = annealed if by_chains else refined
    log_px, variance = best.log_px, best.log_px_variance
    chosen = "annealing" if by_chains else "importance sampling from the refined q"
    other = "importance sampling" if by_chains else "annealing"
    chains = annealing.chains
    estimates = Estimates(settings.evaluation, points, protocol_of(dataset, split), seed)
    arrays = {**about, "acceptance": annealed.acceptance.numpy()}

    def put(
        name: str, values: Tensor, variances: Tensor, how: str, samples: int = settings.evaluation
    ) -> None:
        estimates.mean(name, values, variances, how, samples=samples)
        arrays[name], arrays[f"{name}_variance"] = values.numpy(), variances.numpy()

    scored = dataset.scored
    how = f"mean of log w under q(z|x); {scored}"
    put("elbo", refined.elbo, refined.elbo_variance, how)
    how = f"the same after {settings.steps} steps of Adam on each example's own tensors"
    put("elbo_refined", refined.refined, refined.refined_variance, how)
    how = f"{chosen}, the larger mean of the two; {other} is the smaller; {scored}"
    put("log_px", log_px, variance, how, chains if by_chains else settings.evaluation)
    put("log_px_annealed", annealed.log_px, annealed.log_px_variance, annealing.describe(), chains)
    how = f"{settings.evaluation} importance samples of the refined q"
    put("log_px_importance", refined.log_px, refined.log_px_variance, how)
    gap, spread = log_px - refined.elbo, variance + refined.elbo_variance
    put("inference_gap", gap, spread, "log p̂(x) − ELBO")
    gap, spread = log_px - refined.refined, variance + refined.refined_variance
    how = "log p̂(x) − ELBO of the refined q: what the family costs"
    put("approximation_gap", gap, spread, how)
    how = "ELBO of the refined q − ELBO: what the encoder costs"
    put("amortization_gap", refined.refined - refined.elbo, refined.gain_variance, how)
    notes = model.infer(x[:1]).shared()
    return Evaluation({**data, "split": f"{split}-gaps"}, estimates.found, arrays, notes=notes)
