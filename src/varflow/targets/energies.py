"""The four energies of Rezende and Mohamed (2015), Table 1: log_prob(z) = −U(z) in the plane.

U2, U3 and U4 are flat in z₁, so their exp(−U) has no normaliser; as everywhere in varflow the wall
W(z) = 5 Σᵢ max(|zᵢ| − 4, 0)² is added to them (not in the paper, which shows a window instead).
Sums of exponentials stay in log-space, so the energies are right, and have gradients, far away too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.targets.quadrature import Integrated, expectation
from varflow.targets.shapes import propose_radius, radius
from varflow.targets.target import Window, exactly_two

_WALL, _EDGE = 5.0, 4.0


def wall(z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """5 max(|z| − 4, 0)², element by element."""
    return _WALL * torch.relu(z.abs() - _EDGE).square()


def log_add(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log(eᵃ + eᵇ) with derivatives of every order; those of torch.logaddexp are NaN from the second on where a and
    b are far apart.
    """
    first = a > b
    gap = torch.where(first, b - a, a - b)
    return torch.where(first, a, b) + nn.functional.softplus(gap)


class U1(Integrated):
    """U(z) = ½ ((‖z‖ − 2) / 0.4)² − log(e^{−½((z₁ − 2)/0.6)²} + e^{−½((z₁ + 2)/0.6)²}).

    Two crescents, at (2, 0) and (−2, 0). log Z = 1.8775. At z = 0, a cusp, the gradient is taken as 0.

    Exact samples: radius and angle of a ring, accepted by the second factor; about 1 of 2 proposals.

    Args:
        features: 2.

    Source: Rezende and Mohamed 2015, Table 1.

    >>> round(U1().log_normalizer, 4)
    1.8775
    """

    window: Window | None = (-4.0, 4.0, -4.0, 4.0)
    x_breaks: Sequence[float] = (-7.0, 0.0, 7.0)
    y_breaks: Sequence[float] = x_breaks

    def __init__(self, features: int = 2) -> None:
        super().__init__(exactly_two("U1", features))

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        self.check(z)
        # The nearer lobe's exponent, and the other's share: they differ by 4|z₁| / 0.6².
        side = z[..., 0].abs()
        other = nn.functional.softplus((-4 / 0.6**2) * side)
        near, ring = (side - 2) / 0.6, (radius(z) - 2) / 0.4
        return other - 0.5 * (near * near + ring * ring)

    def compiled(self) -> str:
        """Its name in compiled code."""
        return "u1"

    @property
    def modes(self) -> Tensor | None:
        """(−2, 0) and (2, 0), right to 1e-9."""
        return self._like([[-2.0, 0.0], [2.0, 0.0]])

    @property
    def mode_weights(self) -> Tensor | None:
        return self._like([0.5, 0.5])

    def mode_probabilities(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "... modes"]:
        """The share of each of the two exponentials at z; the left one first."""
        self.check(z)
        return torch.softmax(torch.stack(_lobes(z[..., 0]), -1), -1)

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        def propose(count: int) -> tuple[Tensor, Tensor]:
            r, keep = propose_radius(self._normal(count), self._uniform(count), 2.0, 0.4)
            angle = 2 * math.pi * self._uniform(count)
            z = torch.stack([r * angle.cos(), r * angle.sin()], -1)
            # On the side of one lobe the other adds at most e^{−½(2/0.6)²}.
            bound = math.log1p(math.exp(-0.5 * (2 / 0.6) ** 2))
            ratio = (log_add(*_lobes(z[:, 0])) - bound).exp()
            return z, keep & (self._uniform(count) < ratio)

        return self._reject(shape, 0.5, propose)


class _Branches(Integrated):
    """U(z) = −log Σ_m e^{−½((z₂ − c_m(z₁))/s_m)²} + W(z): curves z₂ = c_m(z₁) of width s_m.

    Exact samples: z₁ from its wall alone, a branch in proportion to s_m, z₂ from N(c_m(z₁), s_m²),
    accepted by the wall of z₂.
    """

    window: Window | None = (-5.0, 5.0, -5.0, 5.0)
    x_breaks: Sequence[float] = (-7.0, -4.0, 4.0, 7.0)
    y_breaks: Sequence[float] = x_breaks
    widths: tuple[float, ...]

    def __init__(self, features: int = 2) -> None:
        super().__init__(exactly_two(type(self).__name__, features))

    def centers(self, z1: Float[Tensor, "..."]) -> tuple[Tensor, ...]:
        """c_m(z₁) of each branch, ``[...]``."""
        raise NotImplementedError

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        self.check(z)
        first, *others = self._terms(z)
        for term in others:
            first = log_add(first, term)
        return first - wall(z).sum(-1)

    def _terms(self, z: Tensor) -> list[Tensor]:
        centers = self.centers(z[..., 0])
        return [
            -0.5 * ((z[..., 1] - center) / width).square()
            for center, width in zip(centers, self.widths, strict=True)
        ]

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        # ∫ of the wall's factor: 8 between the edges, √(π/5) beyond them, a normal cut in two.
        flat = 2 * _EDGE / (2 * _EDGE + math.sqrt(math.pi / _WALL))

        def propose(count: int) -> tuple[Tensor, Tensor]:
            tail = self._normal(count) / math.sqrt(2 * _WALL)
            beyond = torch.where(tail < 0, tail - _EDGE, tail + _EDGE)
            between = _EDGE * (2 * self._uniform(count) - 1)
            z1 = torch.where(self._uniform(count) < flat, between, beyond)
            u = self._uniform(count) * sum(self.widths)
            z2, noise, passed = torch.zeros_like(z1), self._normal(count), 0.0
            for center, width in zip(self.centers(z1), self.widths, strict=True):
                z2 = torch.where(u >= passed, center + width * noise, z2)
                passed += width
            return torch.stack([z1, z2], -1), self._uniform(count) < (-wall(z2)).exp()

        return self._reject(shape, 0.95, propose)


class _TwoBranches(_Branches):
    """Two branches are two modes, though where they run together z cannot tell which it came from."""

    def mode_probabilities(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "... modes"]:
        """The share of each of the two exponentials at z; the upper branch first."""
        self.check(z)
        return torch.softmax(torch.stack(self._terms(z), -1), -1)

    @property
    def mode_weights(self) -> Tensor | None:
        return self._like(self._mode_weights)

    @cached_property
    def _mode_weights(self) -> Tensor:
        return expectation(self.log_prob, self.mode_probabilities, self.rule())

    def _at(self, z1: float) -> Tensor:
        where = torch.tensor(z1, dtype=torch.float64)
        return self._like([[z1, center.item()] for center in self.centers(where)])


class U2(_Branches):
    """U(z) = ½ ((z₂ − w₁) / 0.4)² + W(z), w₁ = sin(2πz₁/4): one wave. log Z = 2.1766.

    Exact samples: more than 0.999999 of the proposals are accepted.

    Args:
        features: 2.

    Source: Rezende and Mohamed 2015, Table 1; the wall W is not theirs.
    """

    widths: tuple[float, ...] = (0.4,)

    def compiled(self) -> str:
        """Its name in compiled code."""
        return "u2"

    def centers(self, z1: Float[Tensor, "..."]) -> tuple[Tensor, ...]:
        return (_wave(z1),)


class U3(_TwoBranches):
    """U(z) = −log(e^{−½((z₂ − w₁)/0.35)²} + e^{−½((z₂ − w₁ + w₂)/0.35)²}) + W(z): a wave that splits.

    w₁ = sin(2πz₁/4) and w₂ = 3 exp(−½((z₁ − 1)/0.6)²); the second branch dips to −2 at z₁ = 1 and
    joins the first again. log Z = 2.7362.

    Exact samples: more than 0.999 of the proposals are accepted.

    Args:
        features: 2.

    Source: Rezende and Mohamed 2015, Table 1; the wall W is not theirs.
    """

    widths: tuple[float, ...] = (0.35, 0.35)

    def compiled(self) -> str:
        """Its name in compiled code."""
        return "u3"

    def centers(self, z1: Float[Tensor, "..."]) -> tuple[Tensor, ...]:
        w1 = _wave(z1)
        return w1, w1 - 3 * (-0.5 * ((z1 - 1) / 0.6).square()).exp()

    @property
    def modes(self) -> Tensor | None:
        """The two branches at z₁ = 1, where they are furthest apart."""
        return self._at(1.0)


class U4(_TwoBranches):
    """U(z) = −log(e^{−½((z₂ − w₁)/0.4)²} + e^{−½((z₂ − w₁ + w₃)/0.35)²}) + W(z): a wave that forks.

    w₁ = sin(2πz₁/4) and w₃ = 3 σ((z₁ − 1)/0.3). log Z = 2.7987.

    Exact samples: about 0.99 of the proposals are accepted (the lower branch touches the wall).

    Args:
        features: 2.

    Source: Rezende and Mohamed 2015, Table 1; the wall W is not theirs.
    """

    widths: tuple[float, ...] = (0.4, 0.35)

    def compiled(self) -> str:
        """Its name in compiled code."""
        return "u4"

    def centers(self, z1: Float[Tensor, "..."]) -> tuple[Tensor, ...]:
        w1 = _wave(z1)
        return w1, w1 - 3 * torch.sigmoid((z1 - 1) / 0.3)

    @property
    def modes(self) -> Tensor | None:
        """The two branches at z₁ = 2, on the fork."""
        return self._at(2.0)


def _wave(z1: Tensor) -> Tensor:
    return torch.sin(2 * math.pi / 4 * z1)


def _lobes(z1: Tensor) -> tuple[Tensor, Tensor]:
    return -0.5 * ((z1 + 2) / 0.6).square(), -0.5 * ((z1 - 2) / 0.6).square()
