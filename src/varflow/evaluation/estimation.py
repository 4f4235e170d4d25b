"""Evaluate a model on a split of a data set: every number with its errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from varflow.core import random
from varflow.core.errors import positive
from varflow.evaluation import health, psis
from varflow.evaluation.chunks import Chunks, digest
from varflow.evaluation.estimate import Estimate
from varflow.evaluation.evaluation import Evaluation
from varflow.evaluation.importance import POINTS, importance_sample
from varflow.evaluation.means import check_points
from varflow.evaluation.sums import Importance
from varflow.model import Model

if TYPE_CHECKING:
    from varflow.data import Dataset

#: The kind of the chunks that an interrupted evaluation goes on from.
IMPORTANCE = "importance"
#: Above this k̂ an importance estimate is unreliable (Vehtari et al. 2024).
KHAT = 0.7


def evaluate(
    model: Model,
    dataset: Dataset,
    split: str = "test",
    samples: int = 1000,
    memory: int = 2**30,
    seed: int = 0,
    limit: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    folder: Path | str | None = None,
) -> Evaluation:
    """ELBO, log-likelihood, bits per dimension and the health of the latents.

    Args:
        model: on the device and in the dtype of the data set.
        dataset: see :class:`varflow.data.Dataset`.
        split: of the data set. Validation and test have one fixed binarization or dequantization.
        samples: S latents for each point.
        memory: bytes that decoding may take.
        seed: of all latents; the same seed gives the same numbers on one kind of device.
        limit: evaluate only the first so many points.
        progress: called with (points done, points).
        folder: finished blocks of 128 points are kept there; interrupted, the same call goes on.

    Raises:
        SpecError: an unknown split, samples < 1, a limit beyond the split, or parts that do not fit the data.
        NonFiniteError: a term of the model is NaN.

    Cost: points × samples draws and decoder passes.
    """
    positive(samples=samples)
    points = check_points(dataset, model, split, limit)

    def batches() -> Iterator[Any]:
        for start in range(0, points, POINTS):
            index = torch.arange(start, min(start + POINTS, points))
            with random.stream(seed, start // POINTS):
                batch = dataset.batch(split, index)
            yield batch

    chunks = Chunks(folder, IMPORTANCE)
    parts, ladjs, means = [], [], []
    for number, batch in enumerate(batches()):
        asked = {"samples": samples, "seed": seed, "first": number * POINTS}
        key = digest(model, {"x": batch.x}, **asked) if folder is not None else ""
        kept = chunks.find(key)
        if kept is None or set(kept) != set(Importance.__dataclass_fields__):
            part = importance_sample(model, batch.x, samples, memory, seed, number * POINTS)
            chunks.keep(key, vars(part))
        else:
            part = Importance(**kept)
        parts.append(part)
        ladjs.append(batch.ladj.double().cpu())
        means.append(batch.x.double().flatten(1).mean(1).cpu())
        if progress is not None:
            progress(min((number + 1) * POINTS, points), points)
    ladj = torch.cat(ladjs)
    # From here on every log p is of the stored values, in the units of the data.
    found = Importance.concatenate(parts).shifted(ladj)
    report = _Report(samples, points, f"{dataset.name} {split}, {dataset.protocol}", seed)
    bits = dataset.bits_per_dim(found.log_px, torch.zeros_like(ladj))
    observed = model.posterior.observed
    if observed:
        report.density(found, bits, dataset)
    else:
        report.likelihood(found, bits, dataset)
    truth = dataset.true_log_prob(split, torch.arange(points))
    if truth is not None:
        report.truth(truth, found.log_px, found.log_px_variance, dataset)
    if dataset.preprocessing.learned():
        report.standardized(found, ladj)
    per_latent = report.latents(model, (batch.x for batch in batches()), observed, memory)
    per_example = {name: getattr(found, name).numpy() for name in Importance.__dataclass_fields__}
    per_example["index"] = np.arange(points, dtype=np.float64)
    per_example["x_mean"] = torch.cat(means).numpy()
    per_example["data_ladj"] = ladj.numpy()
    if bits is not None:
        per_example["bits_per_dim"] = bits.numpy()
    data = {**dataset.describe(), "split": split}
    return Evaluation(data, report.estimates, per_example, per_latent, report.notes)


class _Report:
    """Collects estimates that share samples, points, protocol and seed."""

    def __init__(self, samples: int, points: int, protocol: str, seed: int) -> None:
        self.samples, self.points, self.protocol, self.seed = samples, points, protocol, seed
        self.estimates: dict[str, Estimate] = {}
        self.notes: list[str] = []

    def add(
        self,
        name: str,
        value: float,
        error: float | None,
        mc: float | None,
        unit: str,
        how: str,
        **more: Any,
    ) -> None:
        error, mc = (None if e is None or math.isnan(e) else e for e in (error, mc))
        settings = {"samples": self.samples, "points": self.points, **more}
        self.estimates[name] = Estimate(
            name,
            value,
            error,
            mc,
            unit=unit,
            estimator=how,
            protocol=self.protocol,
            seed=self.seed,
            **settings,
        )

    def mean(
        self, name: str, values: Tensor, variances: Tensor, unit: str, how: str, **more: Any
    ) -> None:
        """The mean of ``values`` [N], each with the Monte-Carlo variance ``variances`` [N]."""
        error = values.std().item() / math.sqrt(self.points) if self.points > 1 else None
        mc = variances.sum().sqrt().item() / self.points
        self.add(name, values.mean().item(), error, mc, unit, how, **more)

    def likelihood(self, found: Importance, bits: Tensor | None, dataset: Dataset) -> None:
        share = (found.khat > KHAT).double().mean().item()
        enough = self.samples >= psis.FEWEST
        weights = {"khat": share if enough else None, "ess": found.ess.mean().item()}
        averaged = "mean over the samples"
        self.mean("elbo", found.elbo, found.elbo_variance, "nats", f"{averaged} of log w")
        self.mean(
            "log_likelihood",
            found.log_likelihood,
            found.log_likelihood_variance,
            "nats",
            f"{averaged} of log p(x|z)",
        )
        self.mean("kl", found.kl, found.kl_variance, "nats", f"{averaged} of log q(z|x) − log p(z)")
        self.mean(
            "ladj", found.ladj, found.ladj_variance, "nats", f"{averaged} of the flow's log|det|"
        )
        how = (
            f"−log of the mean of {self.samples} importance weights, an upper bound in expectation; "
            f"{dataset.scored}"
        )
        self.mean("nll", -found.log_px, found.log_px_variance, "nats", how, **weights)
        if bits is not None:
            dims = math.prod(dataset.event_shape) * math.log(2)
            variances = found.log_px_variance / dims**2
            self.mean(
                "bits_per_dim",
                bits,
                variances,
                "bits/dim",
                f"nll per dimension, {dataset.levels} levels",
                **weights,
            )
        if not enough:
            self.notes.append(
                f"samples: {self.samples} are too few for Pareto k̂; use {psis.FEWEST} or more"
            )
        elif share > 0:
            self.notes.append(
                f"nll: k̂ > {KHAT} at {100 * share:.1f} % of the points; there log p(x) is underestimated "
                "and its Monte-Carlo error too: use more samples"
            )
        if self.points == 1:
            self.notes.append("points: 1; there is no standard error and no health of the latents")

    def density(self, found: Importance, bits: Tensor | None, dataset: Dataset) -> None:
        """A model whose latents are the data: log p(x) is the prior's, and nothing is random."""
        none = torch.zeros_like(found.log_px)
        self.mean("nll", -found.log_px, none, "nats", f"−log p(x), exact; {dataset.scored}", samples=1)
        if bits is not None:
            how = f"nll per dimension, {dataset.levels} levels"
            self.mean("bits_per_dim", bits, none, "bits/dim", how, samples=1)

    def standardized(self, found: Importance, ladj: Tensor) -> None:
        """The same −log p in the model's own units, where the scales of the columns do not count."""
        how = "nll of the standardized x, which the model sees: nll + ladj of the preprocessing"
        self.mean("nll_standardized", ladj - found.log_px, found.log_px_variance, "nats", how)

    def truth(
        self, exact: Tensor, log_px: Tensor, variance: Tensor, dataset: Dataset
    ) -> None:
        """The density that the data were drawn from, beside the model's on the same points."""
        none = torch.zeros_like(exact)
        name = "the density that the data were drawn from"
        if dataset.truth.entropy is not None:
            how = f"entropy of {name}, closed form: what −log p(x) comes to under it, on average over all data"
            self.add("nll_expected", dataset.truth.entropy, 0.0, 0.0, "nats", how, samples=0)
        how = f"−log of {name}, at the evaluated points"
        self.mean("nll_true", -exact, none, "nats", how, samples=0)
        how = f"mean of log p*(x) − log p(x) over the points, p* {name}"
        self.mean("kl_true", exact - log_px, variance, "nats", how)

    def latents(
        self, model: Model, batches: Iterator[Tensor], observed: bool, memory: int
    ) -> dict[str, np.ndarray]:
        if self.points < 2:
            return {}
        if observed:
            return self._distance(torch.cat([x.flatten(1) for x in batches]), model, "the data")
        found = health.latents(model, batches, seed=self.seed, memory=memory)
        units = health.active_units(found)
        how = f"latents with variance over data of E_q[z] > {health.ACTIVE}, "
        how += (
            f"means of {found.samples} draws, corrected for their noise"
            if found.samples
            else "exact means"
        )
        self.add(
            "active_units",
            float(units.count),
            units.uncertain,
            units.uncertain_monte_carlo,
            f"of {len(units.activity)} latents",
            how,
            samples=found.samples,
        )
        arrays = {"activity": units.activity.cpu().numpy()}
        arrays |= self._distance(found.draw, model, "q(z)")
        if found.kl is not None:
            arrays["kl"] = found.kl.mean(0).cpu().numpy()
        return arrays

    def _distance(self, draws: Tensor, model: Model, what: str) -> dict[str, np.ndarray]:
        aggregate = health.aggregated_distance(draws, model.prior, self.seed)
        p = "p(x)" if what == "the data" else "p(z)"
        shared = {"samples": 1, "points": aggregate.points}
        self.add(
            "aggregated_distance",
            aggregate.distance,
            aggregate.standard_error,
            aggregate.monte_carlo_error,
            "",
            f"energy distance of {what} from {p}, {aggregate.points} draws of each; two samples of "
            f"{p} score {aggregate.noise_mean:.2g} ± {aggregate.noise:.2g} (sd)",
            **shared,
        )
        arrays = {
            "mean": aggregate.mean,
            "scale": aggregate.scale,
            "prior_mean": aggregate.prior_mean,
            "prior_scale": aggregate.prior_scale,
        }
        return {name: values.cpu().numpy() for name, values in arrays.items()}
