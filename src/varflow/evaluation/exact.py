"""Exact answers to hold estimates against."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

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
        self.weight, self.bias, self.scale = weight, bias, scale

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


@torch.no_grad()
def quadrature(
    model: Model,
    x: Shaped[Tensor, points * event],
    halfwidth: float = 9.0,
    nodes: int | None = None,
    tolerance: float = 1e-3,
) -> Float[Tensor, " points"]:
    """log p(x) = log ∫ p(x|z) p(z) dz of a model with one or two latents, by the trapezoidal rule.

    For smooth integrands that vanish at the border the rule converges faster than any power of the
    spacing. The same sum over every second node tells the error.

    Args:
        model: any; its posterior is not used.
        x: ``[N, *event]``.
        halfwidth: the integral runs over [−halfwidth, halfwidth]^D; it has to hold the prior's mass.
        nodes: along each axis, an odd number; 2,001 for one latent, 401 for two without it.
        tolerance: largest difference in nats between the rule and its coarse half.

    Returns:
        log p(x) ``[N]`` in nats, float64.

    Raises:
        SpecError: more than two latents, or the grid is too coarse for this model.

    Cost: nodes^D decoder passes for each example.
    """
    features = math.prod(model.prior.event_shape)
    if features not in (1, 2):
        raise SpecError(
            f"model: has {features} latents; quadrature works for 1 or 2, sample for more"
        )
    nodes = nodes or {1: 2001, 2: 401}[features]
    if nodes < 3 or nodes % 2 == 0:
        raise SpecError(f"nodes: was {nodes}; use an odd number of at least 3")
    axis = torch.linspace(-halfwidth, halfwidth, nodes, dtype=x.dtype, device=x.device)
    grid = torch.cartesian_prod(*[axis] * features).reshape(-1, features)
    log_prior = model.prior.log_prob(grid).double()
    fine, coarse = [], []
    for point in x:
        values = log_prior + torch.cat(
            [
                model.likelihood.log_prob(point[None], part[:, None])[:, 0].double()
                for part in grid.split(4096)
            ]
        )
        values = values.reshape([nodes] * features)
        fine.append(values.flatten().logsumexp(0))
        coarse.append(values[(slice(None, None, 2),) * features].flatten().logsumexp(0))
    spacing = 2 * halfwidth / (nodes - 1)
    log_px = torch.stack(fine) + features * math.log(spacing)
    gap = (log_px - torch.stack(coarse) - features * math.log(2 * spacing)).abs().max().item()
    if not gap <= tolerance:
        raise SpecError(
            f"nodes: {nodes} are too few, halving them moves log p(x) by {gap:.2g} nats; use more nodes, "
            "or a smaller halfwidth"
        )
    return log_px
