"""Evaluate a model whose latents are codes: a bound without noise, and how the codebook is used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, Real
from torch import Tensor

from varflow.core import random
from varflow.core.errors import SpecError
from varflow.evaluation.estimate import Estimates
from varflow.evaluation.evaluation import Evaluation
from varflow.evaluation.points import (
    OnProgress,
    check_points,
    evaluating,
    protocol_of,
    refuse,
    subset_note,
)
from varflow.model import Model
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
    progress: OnProgress | None = None,
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
    with evaluating(model):
        for number, start in enumerate(range(0, points, _CHUNK)):
            index = torch.arange(start, min(start + _CHUNK, points))
            with random.stream(seed, number):
                batch = dataset.batch(split, index)
                terms = model.terms(batch.seen, 1)
            for name, values in (("log p(x|z)", terms.log_likelihood), ("log p(codes)", terms.log_prior)):
                refuse(name, values, ~values.isfinite(), start)
            found["likelihood"].append(terms.log_likelihood[0].double().cpu())
            found["prior"].append(terms.log_prior[0].double().cpu())
            found["ladj"].append(batch.ladj.double().cpu())
            found["mean"].append(batch.x.double().flatten(1).mean(1).cpu())
            assert terms.codes is not None
            counts.append(_histograms(terms.codes, codes_in_all))
            if progress is not None:
                progress(start + len(index), points)
    likelihood, prior, ladj, means = (torch.cat(parts) for parts in found.values())
    # Of the stored pictures, in the units of the data.
    likelihood = likelihood + ladj
    bound, none = likelihood + prior, torch.zeros_like(ladj)
    estimates = Estimates(1, points, protocol_of(dataset, split), seed)
    how = f"log p(x|z) + log p(codes); one code for each x, nothing is sampled; {dataset.scored}"
    estimates.mean("elbo", bound, none, how)
    estimates.mean("log_likelihood", likelihood, none, "log p(x|z) at the codes of x")
    estimates.mean("kl", -prior, none, "−log p(codes of x)")
    how = f"−ELBO, an upper bound of −log p(x); {dataset.scored}"
    estimates.mean("nll", -bound, none, how)
    per_example = {
        "log_px": bound, "elbo": bound, "log_likelihood": likelihood, "log_prior": prior, "kl": -prior,
        "log_px_variance": none, "elbo_variance": none, "log_likelihood_variance": none, "kl_variance": none,
        "index": torch.arange(points), "x_mean": means, "data_ladj": ladj,
    }  # fmt: skip
    bits = dataset.bits_per_dim(bound, none)
    if bits is not None:
        how = f"nll per dimension, {dataset.levels} levels"
        estimates.mean("bits_per_dim", bits, none, how, "bits/dim")
        per_example["bits_per_dim"] = bits
    positions = math.prod(model.prior.event_shape)
    of_prior = -prior / (positions * math.log(2))
    uniform = math.log2(codes_in_all)
    how = f"−log₂ p(codes) per position of {positions}; {uniform:.4g} under the uniform prior"
    estimates.mean("code_bits", of_prior, none, how, "bits/code")
    histograms = torch.cat(counts)
    how = "exp of the entropy of all codes"
    estimates.add("perplexity", *used_alike(histograms), 0.0, how, f"of {codes_in_all} codes")
    how = f"share of the {codes_in_all} codes that occur"
    estimates.add("usage", *used_at_all(histograms), 0.0, how, "")
    notes = [
        "elbo: a bound through one code for each x; the codes that are left out could only raise log p(x)"
    ]
    return Evaluation(
        {**dataset.describe(), "split": split},
        estimates.found,
        {name: np.asarray(values.double()) for name, values in per_example.items()},
        {"code_counts": histograms.double().sum(0).numpy()},
        [*(notes if model.posterior.reads_x and bits is not None else []), *subset_note(dataset, split, points)],
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
