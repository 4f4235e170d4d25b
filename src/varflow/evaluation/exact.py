"""Exact answers to hold estimates against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError
from varflow.model import Model


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(Wz + b, σ²I): everything about it is known.

        p(x) = N(b, WWᵀ + σ²I),   p(z|x) = N(Λ⁻¹Wᵀ(x − b)/σ², Λ⁻¹),   Λ = I + WᵀW/σ²

    Args:
        weight: W ``[E, D]``.
        bias: b ``[E]``.
        scale: σ.

    Source: Tipping and Bishop 1999, "Probabilistic principal component analysis", section 3.
    """

    def __init__(
        self, weight: Float[Tensor, "..."], bias: Float[Tensor, "..."], scale: float
    ) -> None:
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ShapeError(
                f"weight: shape {tuple(weight.shape)} with a bias {tuple(bias.shape)}; use [E, D] and [E]"
            )
        if not scale > 0:
            raise SpecError(f"scale: was {scale}; use a positive standard deviation")
        self.weight: Tensor = weight
        self.bias: Tensor = bias
        self.scale: float = scale

    def log_prob(self, x: Float[Tensor, "*batch event"]) -> Float[Tensor, "*batch"]:
        """log p(x) in nats."""
        events = len(self.bias)
        eye = torch.eye(events, dtype=self.weight.dtype, device=self.weight.device)
        root = torch.linalg.cholesky(self.weight @ self.weight.T + self.scale**2 * eye)
        white = torch.linalg.solve_triangular(root, (x - self.bias)[..., None], upper=False)[..., 0]
        constant = 0.5 * events * math.log(2 * math.pi) + root.diagonal().log().sum()
        return -0.5 * white.square().sum(-1) - constant

    def posterior(
        self, x: Float[Tensor, "*batch event"]
    ) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "latent latent"]]:
        """Mean and covariance of p(z|x); the covariance is the same for all x."""
        eye = torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)
        covariance = torch.linalg.inv(eye + self.weight.T @ self.weight / self.scale**2)
        return (x - self.bias) @ self.weight @ covariance / self.scale**2, covariance


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
