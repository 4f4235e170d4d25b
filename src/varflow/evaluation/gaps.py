"""The inference gap taken apart: what the family of posteriors costs, and what the encoder costs.

    log p(x) − ELBO  =  [log p(x) − ELBO*]  +  [ELBO* − ELBO]
    inference gap    =  approximation gap   +  amortization gap

ELBO* is that of the best q of the family for this x alone (Cremer, Li and Duvenaud 2018, section 3), found by
refining the per-example tensors of q(z|x), with everything that examples share standing still.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from varflow import refusals
from varflow.evaluation.annealed import Annealing
from varflow.evaluation.annealing import anneal
from varflow.evaluation.chunks import Chunks, digest
from varflow.evaluation.evaluation import Evaluation
from varflow.evaluation.means import Source, points_of
from varflow.evaluation.refinement import Refined, Refinement, measure, refine
from varflow.evaluation.sandwich import describe
from varflow.flows.flow import Flow
from varflow.model import Model
from varflow.posteriors.ancestral import AncestralConditional

if TYPE_CHECKING:
    from varflow.data import Dataset

Told = Callable[[int, int], object]


def refined_bounds(
    model: Model,
    x: Shaped[Tensor, "points *event"],
    settings: Refinement | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: Told | None = None,
) -> Refined:
    """ELBOs of each example before and after its q is refined; see :class:`Refined`.

    Args:
        folder: keeps ``refined-*.npz``, a file for each finished chunk, which the same call finds again.

    Raises:
        SpecError: q has no per-example tensors.
        NonFiniteError: an ELBO is NaN.
    """
    settings = settings or Refinement()
    chunks = Chunks(folder, "refined")
    training = model.training
    model.eval()
    parts = []
    try:
        for number, start in enumerate(range(0, len(x), settings.chunk)):
            part = x[start : start + settings.chunk]
            key = digest(model, {"x": part}, refinement=asdict(settings), seed=seed, number=number)
            found = chunks.find(key)
            if found is None or set(found) != set(Refined._fields):
                local = refine(model, part, settings, seed, number)
                found = measure(model, part, local, settings, seed, number)._asdict()
                found = {name: value.double().cpu() for name, value in found.items()}
                chunks.keep(key, found)
            parts.append(Refined(**found))
            if progress is not None:
                progress(min(start + settings.chunk, len(x)), len(x))
    finally:
        model.train(training)
    return Refined(*(torch.cat(column) for column in zip(*parts, strict=True)))


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
    progress: Told | None = None,
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
    refusals.check(model, dataset.support, levels=dataset.levels)
    x, about, data = points_of(dataset, model, split, points, seed)

    def told(stage: int) -> Told | None:
        if progress is None:
            return None
        return lambda done, total: progress(stage * total + done, 2 * total)

    refined = refined_bounds(model, x, settings, seed, folder, told(0))
    annealed = anneal(model, x, annealing, memory, seed, None, folder, told(1))
    # Of the stored values, in the units of the data; the gaps are differences and stay as they are.
    ladj = torch.from_numpy(about["data_ladj"])
    moved = {name: getattr(refined, name) + ladj for name in ("elbo", "refined", "log_px")}
    refined = refined._replace(**moved)
    annealed = replace(annealed, log_weights=annealed.log_weights + ladj)
    source = Source(settings.evaluation, f"{dataset.name} {split}, {dataset.protocol}", seed)
    by_chains = bool(annealed.log_px.mean() >= refined.log_px.mean())
    best = annealed if by_chains else refined
    log_px, variance = best.log_px, best.log_px_variance
    chosen = "annealing" if by_chains else "importance sampling from the refined q"
    other = "importance sampling" if by_chains else "annealing"
    values = {
        "elbo": (refined.elbo, refined.elbo_variance, "mean of log w under q(z|x)"),
        "elbo_refined": (
            refined.refined,
            refined.refined_variance,
            f"the same after {settings.steps} steps of Adam on each example's own tensors",
        ),
        "log_px": (
            log_px,
            variance,
            f"{chosen}, the larger mean of the two; {other} is the smaller",
        ),
        "log_px_annealed": (annealed.log_px, annealed.log_px_variance, describe(annealing)),
        "log_px_importance": (
            refined.log_px,
            refined.log_px_variance,
            f"{settings.evaluation} importance samples of the refined q",
        ),
        "inference_gap": (
            log_px - refined.elbo,
            variance + refined.elbo_variance,
            "log p̂(x) − ELBO",
        ),
        "approximation_gap": (
            log_px - refined.refined,
            variance + refined.refined_variance,
            "log p̂(x) − ELBO of the refined q: what the family costs",
        ),
        "amortization_gap": (
            refined.refined - refined.elbo,
            refined.gain_variance,
            "ELBO of the refined q − ELBO: what the encoder costs",
        ),
    }
    chains = {"log_px_annealed"} | ({"log_px"} if by_chains else set())
    estimates = {
        name: source.mean(
            name, *value, samples=annealing.chains if name in chains else settings.evaluation
        )
        for name, value in values.items()
    }
    arrays = {name: value.numpy() for name, (value, *_) in values.items()}
    arrays |= {f"{name}_variance": v.numpy() for name, (_, v, _) in values.items()}
    arrays |= {**about, "acceptance": annealed.acceptance.numpy()}
    notes = _notes(model, x[:1])
    return Evaluation({**data, "split": f"{split}-gaps"}, estimates, arrays, notes=notes)


def _notes(model: Model, x: Tensor) -> list[str]:
    """What is the same for all examples, and so stands still while q of each is refined."""
    # From the outside in: leapfrog steps, layers, the Gaussian with its flow.
    parts: list[Any] = [model.infer(x)]
    while (below := getattr(parts[-1], "base", getattr(parts[-1], "bottom", None))) is not None:
        parts.append(below)
    flow, local = getattr(parts[-1], "flow", None), getattr(parts[-1], "flow_local", ())
    notes = []
    if flow is not None and _shares(flow, local, x):
        name = type(flow).__name__
        notes.append(
            f"the networks of the {name} flow are the same for all examples; they stand still, and only what they "
            "read of x is refined"
            if flow.context_features
            else f"the {name} flow has parameters of its own, the same for all examples; they stand still, so what "
            "they cost belongs to the approximation gap"
        )
    if any(isinstance(part, AncestralConditional) for part in parts):
        notes.append(
            "q of the upper layer given the one below is the same network for all examples; it stands still, so "
            "what it costs belongs to the approximation gap"
        )
    if getattr(model.posterior, "uses_gradient", False):
        extended = getattr(model.posterior, "flow", None) is not None
        what = "step sizes, tempering and the flow of positions and momenta"
        what = what if extended else "step sizes and tempering"
        notes.append(
            f"{what} are the same for all examples; they stand still, so what they cost belongs to the "
            "approximation gap"
        )
    return notes


@torch.enable_grad()
def _shares(flow: Flow, local: tuple[Tensor, ...], x: Tensor) -> bool:
    """Whether parameters of the flow act beside the per-example tensors that were computed from them."""
    learned = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    z = x.new_zeros(len(x), flow.features, dtype=local[0].dtype if local else None)
    moved, ladj = flow.push(z, tuple(tensor.detach() for tensor in local))
    total = moved.sum() + ladj.sum()
    if not learned or not total.requires_grad:
        return False
    return any(g is not None for g in torch.autograd.grad(total, learned, allow_unused=True))
