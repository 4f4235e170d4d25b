"""What q(z) should have been: the exact answers about one fit's target, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from varflow.core import random
from varflow.core.errors import SpecError
from varflow.model import Model


@dataclass(frozen=True)
class Reference:
    """p(z) = exp(log_joint(z)) / Z; every field is None where it is not known.

    Attributes:
        log_normalizer: log Z, nats. For a Gaussian model log p(D) at its present parameters.
        mean: ``[D]``.
        covariance: ``[D, D]``.
        sample: n → exact draws ``[n, D]``.
        mode_probabilities: z ``[n, D]`` → ``[n, M]``, which mode each point belongs to.
        mode_weights: ``[M]``, the mass of each mode under p.
    """

    log_normalizer: float | None = None
    mean: Tensor | None = None
    covariance: Tensor | None = None
    sample: Callable[[int], Tensor] | None = None
    mode_probabilities: Callable[[Tensor], Tensor] | None = None
    mode_weights: Tensor | None = None


def reference(model: Model, x: Tensor | None = None) -> Reference:
    """The exact answers about the posterior of ``model``: those of its target or of its Gaussian model.

    Args:
        model: a prior without likelihood, or a likelihood that answers ``exact(x)`` with
            ``log_evidence``, ``mean`` and ``variance`` or ``covariance`` of p(z | D).
        x: which block of data, for a likelihood that has several.
    """
    if model.likelihood is not None:
        return _gaussian(model.likelihood, x)
    target: Any = model.prior
    found = {name: getattr(target, name, None) for name in ("mean", "covariance", "mode_weights")}
    tell = None if found["mode_weights"] is None else target.mode_probabilities
    log_normalizer = getattr(target, "log_normalizer", None)
    return Reference(
        None if log_normalizer is None else float(log_normalizer),
        found["mean"],
        found["covariance"],
        _sampler(target),
        tell,
        found["mode_weights"],
    )


def _sampler(target: Any) -> Callable[[int], Tensor] | None:
    """Exact draws, if one can be had."""
    try:
        with random.stream(0):
            target.sample((1,))
    except SpecError:
        return None

    def sample(count: int) -> Tensor:
        z: Tensor = target.sample((count,))
        return z

    return sample


def _gaussian(likelihood: Any, x: Tensor | None) -> Reference:
    if not hasattr(likelihood, "exact"):
        return Reference()
    with torch.no_grad():
        exact = likelihood.exact() if x is None else likelihood.exact(x)
        mean = exact.mean
        covariance = getattr(exact, "covariance", None)
        if covariance is None:
            covariance = torch.diag(exact.variance)
            root = exact.variance.sqrt()
        else:
            root = torch.linalg.cholesky(covariance)

    def sample(count: int) -> Tensor:
        noise = random.normal((count, *mean.shape), "target", dtype=mean.dtype, device=mean.device)
        return mean + (noise * root if root.ndim == 1 else noise @ root.T)

    return Reference(float(exact.log_evidence), mean, covariance, sample)
