"""Integrals over the plane, by Gauss and Legendre's rule on panels, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import NonFiniteError, SpecError, positive
from varflow.targets.target import Target


class Grid(NamedTuple):
    """Nodes of a rule in the plane: ∫ f ≈ Σ exp(log_weights) f(points).

    Attributes:
        points: ``[P, 2]``, float64.
        log_weights: ``[P]``, float64.
    """

    points: Tensor
    log_weights: Tensor


class Moments(NamedTuple):
    """What quadrature knows of a density in the plane; nats.

    Attributes:
        log_normalizer: log ∫ exp(log_prob).
        entropy: of the normalised density.
        mean: ``[2]``, float64.
        covariance: ``[2, 2]``, float64.
    """

    log_normalizer: float
    entropy: float
    mean: Tensor
    covariance: Tensor


def grid(
    x_breaks: Sequence[float], y_breaks: Sequence[float], panel: float = 0.5, nodes: int = 16
) -> Grid:
    """The product rule between the first and the last break of each axis.

    Between neighbouring breaks lie panels no longer than ``panel``, of ``nodes`` Gauss-Legendre nodes
    each. A density that is smooth between the breaks is integrated to about 1e-12 when ``panel`` is no
    longer than its narrowest feature; P = (16 · length / panel)² points.

    Raises:
        SpecError: breaks that do not increase, or a panel that is not positive.
    """
    positive(nodes=nodes)
    if not panel > 0:
        raise SpecError(f"panel: was {panel}; use a positive length")
    (x, log_x), (y, log_y) = (_axis(breaks, panel, nodes) for breaks in (x_breaks, y_breaks))
    points = torch.cartesian_prod(x, y)
    return Grid(points, (log_x[:, None] + log_y).flatten())


def integrate(log_prob: Callable[[Tensor], Tensor], rule: Grid) -> Moments:
    """Normaliser, entropy, mean and covariance of exp(log_prob) on the area that ``rule`` covers.

    Raises:
        NonFiniteError: log_prob is NaN or +∞ at a node.
    """
    with torch.no_grad():
        values = _evaluate(log_prob, rule)
        log_mass = rule.log_weights + values
        log_normalizer = torch.logsumexp(log_mass, 0)
        mass = (log_mass - log_normalizer).exp()
        # Where a density is 0 its logarithm is −∞ and adds nothing.
        entropy = log_normalizer - (mass * torch.where(mass > 0, values, 0.0)).sum()
        mean = mass @ rule.points
        offset = rule.points - mean
        return Moments(
            log_normalizer.item(), entropy.item(), mean, offset.T @ (mass[:, None] * offset)
        )


def expectation(
    log_prob: Callable[[Tensor], Tensor], value: Callable[[Tensor], Tensor], rule: Grid
) -> Float[Tensor, "..."]:
    """E value(z) under the density that is proportional to exp(log_prob): ``value`` [P, ...] → ``[...]``."""
    with torch.no_grad():
        mass = torch.softmax(rule.log_weights + _evaluate(log_prob, rule), 0)
        return torch.einsum("p,p...->...", mass, value(rule.points))


class Integrated(Target):
    """A target in the plane whose answers come from :func:`integrate`, at first use, once per instance.

    Attributes:
        x_breaks, y_breaks, panel: the arguments of :func:`grid`.
    """

    x_breaks: Sequence[float]
    y_breaks: Sequence[float]
    panel: float = 0.5

    def rule(self) -> Grid:
        """The nodes that the answers are computed with, on the device of the target."""
        device = self.get_buffer("_home").device
        return Grid(*(t.to(device) for t in grid(self.x_breaks, self.y_breaks, self.panel)))

    @cached_property
    def moments(self) -> Moments:
        """All answers, in float64."""
        return integrate(self.log_prob, self.rule())

    @property
    def log_normalizer(self) -> float | None:
        return self.moments.log_normalizer

    @property
    def entropy(self) -> float | None:
        return self.moments.entropy

    @property
    def mean(self) -> Tensor | None:
        return self._like(self.moments.mean)

    @property
    def covariance(self) -> Tensor | None:
        return self._like(self.moments.covariance)


def _evaluate(log_prob: Callable[[Tensor], Tensor], rule: Grid) -> Tensor:
    values = torch.cat([log_prob(points) for points in rule.points.split(1 << 16)])
    bad = values.isnan() | (values == math.inf)
    if bad.any():
        point = rule.points[bad][0].tolist()
        raise NonFiniteError(
            f"log_prob: is {values[bad][0].item()} at z = {point}; a log-density is finite or −∞"
        )
    return values


def _axis(breaks: Sequence[float], panel: float, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights on a line."""
    if len(breaks) < 2 or any(a >= b for a, b in pairwise(breaks)):
        raise SpecError(f"breaks: were {tuple(breaks)}; use two or more increasing numbers")
    edges = [float(breaks[0])]
    for a, b in pairwise(breaks):
        count = math.ceil((b - a) / panel)
        edges += [a + (b - a) * (i + 1) / count for i in range(count)]
    edge = torch.tensor(edges, dtype=torch.float64)
    unit, weight = _legendre(nodes)
    half = edge.diff()[:, None] / 2
    points = edge[:-1, None] + half * (1 + unit)
    return points.flatten(), (half * weight).flatten().log()


@cache
def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [−1, 1], by Golub and Welsch's eigenvalues of the Jacobi matrix."""
    k = torch.arange(1, nodes, dtype=torch.float64)
    off = k / (4 * k * k - 1).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return points, 2 * vectors[0].square()
