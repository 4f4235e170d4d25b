"""Evaluate a model on a split of a data set: every number with its errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow import data
from varflow.core import random
from varflow.core.errors import positive
from varflow.core.observed import Examples
from varflow.data.dataset import SPLITS, Batch, Dataset
from varflow.evaluation import health, psis
from varflow.evaluation.chunks import Chunks
from varflow.evaluation.estimate import Estimates
from varflow.evaluation.evaluation import Evaluation
from varflow.evaluation.importance import POINTS, Importance, importance_sample
from varflow.evaluation.points import OnProgress, check_points, protocol_of, subset_note
from varflow.model import Model

#: The kind of the chunks that an interrupted evaluation goes on from.
IMPORTANCE = "importance"


def evaluate(
    model: Model,
    dataset: Dataset | Tensor | np.ndarray,
    split: str = "test",
    samples: int = 1000,
    memory: int = 2**30,
    seed: int = 0,
    limit: int | None = None,
    progress: OnProgress | None = None,
    folder: Path | str | None = None,
) -> Evaluation:
    """ELBO, log-likelihood, bits per dimension and the health of the latents.

    Args:
        model: on the device and in the dtype of the data set.
        dataset: see :class:`varflow.data.Dataset`; or x itself as the model sees it, ``[N, *event]``: real numbers,
            or 0 and 1. For raw rows under what a run learned of its data: ``vf.load(folder, data=x).evaluate()``.
        split: of the data set. Validation and test have one fixed binarization or dequantization.
        samples: S latents for each point.
        memory: bytes that decoding may take.
        seed: of all latents; the same seed gives the same numbers on one kind of device.
        limit: evaluate only the first so many points; without it all, of streamed data 10,000.
        progress: called with (points done, points).
        folder: finished blocks of 128 points are kept there; interrupted, the same call goes on.

    Returns:
        Every log p is of the stored values, in the units of the data; each estimate says of what.
        ``nll_standardized`` stands beside ``nll`` where a preprocessing was learned.

    Raises:
        SpecError: an unknown split, samples < 1, a limit beyond the split, or parts that do not fit the data.
        NonFiniteError: a term of the model is NaN.

    Cost: points × samples draws and decoder passes.
    """
    if not isinstance(dataset, Dataset):
        dataset = _only(dataset, next(model.parameters()))
    positive(samples=samples)
    points = check_points(dataset, model, split, limit)

    def batches() -> Iterator[Batch]:
        for start in range(0, points, POINTS):
            index = torch.arange(start, min(start + POINTS, points))
            with random.stream(seed, start // POINTS):
                batch = dataset.batch(split, index)
            yield batch

    chunks, names = Chunks(folder, IMPORTANCE), Importance.__dataclass_fields__
    parts, ladjs, means, contexts = [], [], [], []

    def block(x: Examples, first: int) -> dict[str, Tensor]:
        return vars(importance_sample(model, x, samples, memory, seed, first))

    for first, batch in zip(range(0, points, POINTS), batches(), strict=True):
        asked = {"samples": samples, "seed": seed, "first": first}
        kept = chunks.get(model, {"x": batch.seen}, names, partial(block, batch.seen, first), **asked)
        parts.append(Importance(**kept))
        ladjs.append(batch.ladj.double().cpu())
        if batch.context is not None and model.read_by_prior(batch.context):
            contexts.append(model.completed(batch.seen).context)
        means.append(batch.x.double().flatten(1).mean(1).cpu())
        if progress is not None:
            progress(min(first + POINTS, points), points)
    ladj = torch.cat(ladjs)
    # From here on every log p is of the stored values, in the units of the data.
    found = Importance.concatenate(parts).shifted(ladj)
    bits = dataset.bits_per_dim(found.log_px, torch.zeros_like(ladj))
    estimates = Estimates(samples, points, protocol_of(dataset, split), seed)
    observed = model.posterior.observed
    notes: list[str] = []
    if observed:
        _density(estimates, found, bits, dataset)
    else:
        notes = _likelihood(estimates, found, bits, dataset)
    notes += subset_note(dataset, split, points)
    _truth(estimates, found, dataset, split)
    if dataset.preprocessing.learned():
        # In the model's own units the scales of the columns do not count.
        how = "nll of the standardized x, which the model sees: nll + ladj of the preprocessing"
        estimates.mean("nll_standardized", ladj - found.log_px, found.log_px_variance, how)
    per_latent: dict[str, np.ndarray] = {}
    if points > 1:
        seen = (batch.seen for batch in batches())
        context = torch.cat(contexts) if contexts else None
        if observed:
            draws = torch.cat([batch.x.flatten(1) for batch in batches()])
            per_latent = _distance(estimates, draws, model, context, "the data as the model sees them", "p(x)")
        else:
            found_latents = health.latents(model, seen, seed=seed, memory=memory)
            per_latent = _latents(estimates, found_latents, model, context)
    per_example = {name: getattr(found, name).numpy() for name in names}
    per_example["index"] = np.arange(points, dtype=np.float64)
    per_example["x_mean"] = torch.cat(means).numpy()
    per_example["data_ladj"] = ladj.numpy()
    if bits is not None:
        per_example["bits_per_dim"] = bits.numpy()
    about = {**dataset.describe(), "split": split}
    return Evaluation(about, estimates.found, per_example, per_latent, notes)


def _only(x: Any, like: Tensor) -> Dataset:
    """x itself as a data set, whose splits are all the same, on the device and in the dtype of ``like``."""
    return data.from_tensor(dict.fromkeys(SPLITS, x), name="x").to(like.device, like.dtype)


def _likelihood(
    estimates: Estimates, found: Importance, bits: Tensor | None, dataset: Dataset
) -> list[str]:
    """The bounds and their terms; returns what a reader has to know of them."""
    samples, points = estimates.shared["samples"], len(found.log_px)
    share = (found.khat > psis.UNRELIABLE).double().mean().item()
    enough = samples >= psis.FEWEST
    weights: dict[str, Any] = {"khat": share if enough else None, "ess": found.ess.mean().item()}
    averaged = "mean over the samples of"
    estimates.mean("elbo", found.elbo, found.elbo_variance, f"{averaged} log w; {dataset.scored}")
    how = f"{averaged} log p(x|z)"
    estimates.mean("log_likelihood", found.log_likelihood, found.log_likelihood_variance, how)
    estimates.mean("kl", found.kl, found.kl_variance, f"{averaged} log q(z|x) − log p(z)")
    estimates.mean("ladj", found.ladj, found.ladj_variance, f"{averaged} the flow's log|det|")
    how = f"−log of the mean of {samples} importance weights, an upper bound in expectation; {dataset.scored}"
    estimates.mean("nll", -found.log_px, found.log_px_variance, how, **weights)
    if bits is not None:
        variances = found.log_px_variance / (math.prod(dataset.event_shape) * math.log(2)) ** 2
        how = f"nll per dimension, {dataset.levels} levels"
        estimates.mean("bits_per_dim", bits, variances, how, "bits/dim", **weights)
    notes = []
    if not enough:
        notes.append(f"samples: {samples} are too few for Pareto k̂; use {psis.FEWEST} or more")
    elif share > 0:
        notes.append(
            f"nll: k̂ > {psis.UNRELIABLE} at {100 * share:.1f} % of the points; there log p(x) is underestimated "
            "and its Monte-Carlo error too: use more samples"
        )
    if points == 1:
        notes.append("points: 1; there is no standard error and no health of the latents")
    return notes


def _density(
    estimates: Estimates, found: Importance, bits: Tensor | None, dataset: Dataset
) -> None:
    """A model whose latents are the data: log p(x) is the prior's, and nothing is random."""
    none = torch.zeros_like(found.log_px)
    estimates.mean("nll", -found.log_px, none, f"−log p(x), exact; {dataset.scored}", samples=1)
    if bits is not None:
        how = f"nll per dimension, {dataset.levels} levels"
        estimates.mean("bits_per_dim", bits, none, how, "bits/dim", samples=1)


def _truth(estimates: Estimates, found: Importance, dataset: Dataset, split: str) -> None:
    """The density that the data were drawn from, beside the model's on the same points, where it is known."""
    exact = dataset.true_log_prob(split, torch.arange(len(found.log_px)))
    if exact is None:
        return
    name = "the density that the data were drawn from"
    if dataset.truth.entropy is not None:
        how = f"entropy of {name}, closed form: what −log p(x) comes to under it, on average over all data"
        estimates.add("nll_expected", dataset.truth.entropy, 0.0, 0.0, how, samples=0)
    how = f"−log of {name}, at the evaluated points"
    estimates.mean("nll_true", -exact, torch.zeros_like(exact), how, samples=0)
    how = f"mean of log p*(x) − log p(x) over the points, p* {name}"
    estimates.mean("kl_true", exact - found.log_px, found.log_px_variance, how)


def _latents(
    estimates: Estimates, found: health.Latents, model: Model, context: Tensor | None
) -> dict[str, np.ndarray]:
    """Which latents are active, and how far q(z) is from the prior; returns what belongs to each latent."""
    units = health.active_units(found)
    means = f"means of {found.samples} draws, corrected for their noise" if found.samples else "exact means"
    estimates.add(
        "active_units",
        float(units.count),
        units.uncertain,
        units.uncertain_monte_carlo,
        f"latents with variance over data of E_q[z] > {health.ACTIVE}, {means}",
        f"of {len(units.activity)} latents",
        samples=found.samples,
    )
    arrays = {"activity": units.activity.cpu().numpy()}
    arrays |= _distance(estimates, found.draw, model, context, "q(z)", "p(z)")
    if found.kl is not None:
        arrays["kl"] = found.kl.mean(0).cpu().numpy()
    return arrays


def _distance(
    estimates: Estimates, draws: Tensor, model: Model, context: Tensor | None, what: str, prior: str
) -> dict[str, np.ndarray]:
    """How far ``draws`` are from the model's prior, in the units of the model."""
    found = health.aggregated_distance(draws, model.prior, estimates.shared["seed"], context=context)
    estimates.add(
        "aggregated_distance",
        found.distance,
        found.standard_error,
        found.monte_carlo_error,
        f"energy distance of {what} from {prior}, {found.points} draws of each; two samples of {prior} score "
        f"{found.noise_mean:.2g} ± {found.noise:.2g} (sd)",
        "",
        samples=1,
        points=found.points,
    )
    names = ("mean", "scale", "prior_mean", "prior_scale")
    return {name: getattr(found, name).cpu().numpy() for name in names}
