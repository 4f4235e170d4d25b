"""Evaluate a model whose latents are codes: a bound without noise, and how the codebook is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, Real
from torch import Tensor

from varflow.core import random
from varflow.core.errors import NonFiniteError, SpecError
from varflow.evaluation.estimate import Estimate
from varflow.evaluation.evaluation import Evaluation
from varflow.evaluation.means import check_points
from varflow.model import Model, Terms
from varflow.posteriors.codebook import perplexity, usage

if TYPE_CHECKING:
    from varflow.data import Dataset

#: Examples encoded and decoded at once.
_CHUNK = 250


@torch.no_grad()
def evaluate_codes(
    model: Model,
    dataset: Dataset,
    split: str = "test",
    seed: int = 0,
    limit: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """The two-stage bound, its two parts, bits per dimension, perplexity and usage of the codebook.

        −log p(x) ≤ −log p(x|z_q(x)) − log p(codes(x))

    One code stands for each x, so log w is the same for every sample: one is drawn, nothing is random, and the
    Monte-Carlo error is 0. The bound drops every other code that could explain x. Of a prior fitted to grids of codes
    themselves it is exact: −log p(codes).

    Perplexity exp(−Σ p log p) and the share of codes in use are of all codes of the split together; their errors are
    over examples, by the delta method and by the jackknife.

    Args:
        model: with codes, on the device and in the dtype of the data set.
        dataset: validation and test have one fixed binarization or dequantization.
        split: of the data set.
        seed: of the noise of training pictures; nothing else is random.
        limit: evaluate only the first so many points.
        progress: called with (points done, points).

    Raises:
        SpecError: an unknown split, a limit beyond it, a model without codes, or parts that do not fit the data.
        NonFiniteError: a term of the bound is NaN or infinite.

    Cost: one encoder and one decoder pass and one pass of the prior for each example, C passes for a prior over C
    classes.

    Source: van den Oord, Vinyals and Kavukcuoglu 2017, section 3.2.
    """
    if not model.posterior.discrete:
        raise SpecError("model: its latents are no codes; use varflow.evaluation.evaluate")
    points = check_points(dataset, model, split, limit)
    prior_over_codes: Any = model.prior
    codes_in_all: int = prior_over_codes.codes
    found: dict[str, list[Tensor]] = {"likelihood": [], "prior": [], "ladj": [], "mean": []}
    counts: list[Tensor] = []
    training = model.training
    model.eval()
    try:
        for number, start in enumerate(range(0, points, _CHUNK)):
            index = torch.arange(start, min(start + _CHUNK, points))
            with random.stream(seed, number):
                batch = dataset.batch(split, index)
                terms = model.terms(batch.x, 1)
            _refuse(terms, start)
            found["likelihood"].append(terms.log_likelihood[0].double().cpu())
            found["prior"].append(terms.log_prior[0].double().cpu())
            found["ladj"].append(batch.ladj.double().cpu())
            found["mean"].append(batch.x.double().flatten(1).mean(1).cpu())
            assert terms.codes is not None
            counts.append(_histograms(terms.codes, codes_in_all))
            if progress is not None:
                progress(start + len(index), points)
    finally:
        model.train(training)
    likelihood, prior, ladj, means = (torch.cat(parts) for parts in found.values())
    # Of the stored pictures, in the units of the data.
    likelihood = likelihood + ladj
    report = _Report(points, f"{dataset.name} {split}, {dataset.protocol}", seed)
    bound = likelihood + prior
    report.mean(
        "elbo", bound, "nats", "log p(x|z) + log p(codes); one code for each x, nothing is sampled"
    )
    report.mean("log_likelihood", likelihood, "nats", "log p(x|z) at the codes of x")
    report.mean("kl", -prior, "nats", "−log p(codes of x)")
    report.mean("nll", -bound, "nats", f"−ELBO, an upper bound of −log p(x); {dataset.scored}")
    per_example = {
        "log_px": bound, "elbo": bound, "log_likelihood": likelihood, "log_prior": prior, "kl": -prior,
        "log_px_variance": torch.zeros(points), "elbo_variance": torch.zeros(points),
        "log_likelihood_variance": torch.zeros(points), "kl_variance": torch.zeros(points),
        "index": torch.arange(points), "x_mean": means, "data_ladj": ladj,
    }  # fmt: skip
    bits = dataset.bits_per_dim(bound, torch.zeros_like(ladj))
    if bits is not None:
        report.mean("bits_per_dim", bits, "bits/dim", f"nll per dimension, {dataset.levels} levels")
        per_example["bits_per_dim"] = bits
    positions = math.prod(model.prior.event_shape)
    of_prior = -prior / (positions * math.log(2))
    uniform = math.log2(codes_in_all)
    how = f"−log₂ p(codes) per position of {positions}; {uniform:.4g} under the uniform prior"
    report.mean("code_bits", of_prior, "bits/code", how)
    histograms = torch.cat(counts)
    value, error = used_alike(histograms)
    report.add(
        "perplexity", value, error, f"of {codes_in_all} codes", "exp of the entropy of all codes"
    )
    value, error = used_at_all(histograms)
    report.add("usage", value, error, "", f"share of the {codes_in_all} codes that occur")
    notes = [
        "elbo: a bound through one code for each x; the codes that are left out could only raise log p(x)"
    ]
    return Evaluation(
        {**dataset.describe(), "split": split},
        report.estimates,
        {name: np.asarray(values.double()) for name, values in per_example.items()},
        {"code_counts": histograms.double().sum(0).numpy()},
        notes if model.posterior.reads_x and bits is not None else [],
    )


def used_alike(counts: Real[Tensor, "points codes"]) -> tuple[float, float | None]:
    """Perplexity of all codes together, and its standard error over examples, by the delta method.

    With p the shares of all codes and n_i those of an example, H moves by −Σ_k n_ik log p_k − H for it.
    """
    counts = counts.double()
    total = counts.sum(0)
    value = float(perplexity(total))
    if len(counts) < 2:
        return value, None
    shares = total / total.sum()
    each = -(counts / counts.sum(1, keepdim=True)) @ torch.where(shares > 0, shares, 1.0).log()
    return value, value * each.std().item() / math.sqrt(len(counts))


def used_at_all(counts: Real[Tensor, "points codes"]) -> tuple[float, float | None]:
    """The share of codes that occur, and its standard error over examples, by the jackknife."""
    counts = counts.double()
    value, points = float(usage(counts.sum(0))), len(counts)
    if points < 2:
        return value, None
    occurs = counts > 0
    # Without an example the codes are gone that it alone had.
    alone = (occurs & (occurs.sum(0) == 1)).double().sum(1) / counts.shape[1]
    gap = alone - alone.mean()
    return value, math.sqrt((points - 1) / points * gap.square().sum().item())


def _histograms(codes: Int[Tensor, "batch *grid"], size: int) -> Tensor:
    """How often each code occurs in each example ``[B, K]``, on the CPU."""
    flat = codes.flatten(1)
    zeros = torch.zeros(len(flat), size, dtype=torch.int32, device=flat.device)
    return zeros.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.int32)).cpu()


def _refuse(terms: Terms, start: int) -> None:
    for name, values in (("log p(x|z)", terms.log_likelihood), ("log p(codes)", terms.log_prior)):
        wrong = ~values[0].isfinite()
        if bool(wrong.any()):
            point = start + int(wrong.nonzero()[0])
            raise NonFiniteError(
                f"{name}: was {values[0, point - start].item()} at point {point}; look for a part of the model "
                "that diverged, or load the last weights that were finite"
            )


class _Report:
    """Collects estimates that share points, protocol and seed; nothing here has a Monte-Carlo error."""

    def __init__(self, points: int, protocol: str, seed: int) -> None:
        self.points, self.protocol, self.seed = points, protocol, seed
        self.estimates: dict[str, Estimate] = {}

    def add(self, name: str, value: float, error: float | None, unit: str, how: str) -> None:
        shared: dict[str, Any] = {"protocol": self.protocol, "seed": self.seed}
        self.estimates[name] = Estimate(
            name,
            value,
            error,
            0.0,
            unit=unit,
            estimator=how,
            samples=1,
            points=self.points,
            **shared,
        )

    def mean(self, name: str, values: Tensor, unit: str, how: str) -> None:
        error = values.std().item() / math.sqrt(self.points) if self.points > 1 else None
        # Of equal values the mean and the spread are known; what is left are rounding errors.
        if error is not None and bool((values == values[0]).all()):
            error = 0.0
        self.add(name, values.mean().item(), error, unit, how)
