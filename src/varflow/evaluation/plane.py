"""KL both ways by quadrature on a line or in the plane: the independent route to the Monte-Carlo values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import NonFiniteError, ShapeError, positive

#: Nodes of a panel.
_NODES = 16
_CHUNK = 1 << 16


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
