"""Integrals on a line or in the plane, to hold Monte-Carlo estimates against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from varflow.core.errors import NonFiniteError, ShapeError, SpecError, positive
from varflow.core.observed import Observed, parts_of
from varflow.model import Model

#: Nodes of a panel.
_NODES = 16
_CHUNK = 1 << 16


@torch.no_grad()
def quadrature(
    model: Model,
    x: Shaped[Tensor, points * event] | Observed,
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
    fine, coarse = [], []
    log_prior: Tensor | None = None
    for number in range(len(x)):
        point = x[number : number + 1]
        if log_prior is None or model.conditioned:
            log_prior = model.prior.log_prob(grid, *model.read_by_prior(parts_of(point)[1])).double()
        values = log_prior + torch.cat(
            [
                model.log_likelihood(part[:, None], point)[:, 0].double()
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


class Divergences(NamedTuple):
    """What a rule finds on its area; nats.

    Attributes:
        kl_q_p: ∫ q (log q − log p).
        kl_p_q: ∫ p (log p − log q).
        log_normalizer: log ∫ exp(log_p).
        mass: ∫ q, 1 where the area holds all of q.
    """

    kl_q_p: float
    kl_p_q: float
    log_normalizer: float
    mass: float


@torch.no_grad()
def divergences(
    log_q: Callable[[Tensor], Tensor],
    log_p: Callable[[Tensor], Tensor],
    bounds: Sequence[tuple[float, float]],
    panels: int = 32,
    log_normalizer: float | None = None,
) -> Divergences:
    """KL(q‖p) and KL(p‖q) by Gauss and Legendre's rule, 16 nodes a panel, float64.

    Args:
        log_q: z ``[N, D]`` → log q(z), normalised.
        log_p: z ``[N, D]`` → log p(z), which need not be normalised.
        bounds: (low, high) of each of the D ≤ 2 dimensions; what lies outside is not counted.
        panels: along each dimension.
        log_normalizer: log Z of p, where it is known; else that of the area.

    Raises:
        ShapeError: D > 2.
        NonFiniteError: log q or log p is NaN or +∞ at a node.

    Cost: (16 · panels)^D evaluations of both.

    Example:
        >>> from torch.distributions import Normal
        >>> q, p = Normal(0.0, 1.0), Normal(1.0, 1.0)
        >>> found = divergences(
        ...     lambda z: q.log_prob(z[:, 0]), lambda z: p.log_prob(z[:, 0]), [(-9.0, 10.0)]
        ... )
        >>> round(found.kl_q_p, 6), round(found.mass, 6)
        (0.5, 1.0)
    """
    positive(panels=panels)
    if not 1 <= len(bounds) <= 2:
        raise ShapeError(f"bounds: of {len(bounds)} dimensions; quadrature is for 1 or 2")
    points, log_weight = _rule(bounds, panels)
    lq, lp = (_at(name, f, points) for name, f in (("log_q", log_q), ("log_p", log_p)))
    area = torch.logsumexp(log_weight + lp, 0).item()
    lp = lp - (area if log_normalizer is None else log_normalizer)
    q, p = (log_weight + lq).exp(), (log_weight + lp).exp()
    # Where a density is 0 it adds nothing, whatever the other is.
    kl_q_p = torch.where(q > 0, q * (lq - lp), 0.0).sum().item()
    kl_p_q = torch.where(p > 0, p * (lp - lq), 0.0).sum().item()
    return Divergences(kl_q_p, kl_p_q, area, q.sum().item())


def _rule(bounds: Sequence[tuple[float, float]], panels: int) -> tuple[Tensor, Tensor]:
    """Points ``[P, D]`` and log-weights ``[P]``."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(_NODES))
    axes, logs = [], []
    for low, high in bounds:
        half = (high - low) / panels / 2
        centres = low + half * (2 * torch.arange(panels, dtype=torch.float64) + 1)
        axes.append((centres[:, None] + half * nodes).flatten())
        logs.append((half * weights).log().repeat(panels))
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    return points, torch.stack(torch.meshgrid(*logs, indexing="ij")).sum(0).flatten()


def _at(name: str, log_density: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    values: Float[Tensor, " points"] = torch.cat(
        [log_density(part).double() for part in points.split(_CHUNK)]
    )
    wrong = values.isnan() | (values == math.inf)
    if bool(wrong.any()):
        at = points[wrong][0].tolist()
        raise NonFiniteError(
            f"{name}: was {values[wrong][0].item()} at z = {at}; a log-density is finite or −∞"
        )
    return values
