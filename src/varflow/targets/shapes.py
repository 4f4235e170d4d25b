"""Shapes with answers in closed form: a ring, a banana, a funnel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import SpecError
from varflow.targets.target import Target, Window, exactly_two, positive_number

_LOG_2PI = math.log(2 * math.pi)


def radius(z: Float[Tensor, "... features"]) -> Float[Tensor, "..."]:
    """‖z‖; its derivatives at 0 are taken as 0, to any order."""
    square = z.square().sum(-1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def propose_radius(
    normal: Tensor, uniform: Tensor, center: float, width: float
) -> tuple[Tensor, Tensor]:
    """Proposals for the density ∝ r exp(−½ ((r − center)/width)²), r > 0, and which of them to keep.

    log r lies below its tangent at the centre, which makes the envelope a normal with its mean at
    center + width²/center.
    """
    r = center + width * width / center + width * normal
    inside = r > 0
    log_ratio = torch.where(inside, r / center, 1.0).log() - (r / center - 1)
    return r, inside & (uniform < log_ratio.exp())


class Ring(Target):
    """log_prob(z) = −½ ((‖z‖ − R) / s)² in the plane: one mode that is a circle.

    With a = R/s, φ and Φ of the standard normal: Z = 2π s (s φ(a) + R Φ(a)) √(2π). Entropy and
    covariance ½ E‖z‖² I follow from the moments of a truncated normal. Exact samples by rejection;
    the share accepted is near 1 − ½ (s/R)².

    Args:
        features: 2.
        radius: R.
        width: s; s < R.

    Raises:
        SpecError: features other than 2, R or s not positive, or s ≥ R.

    >>> ring = Ring(radius=2.0, width=0.1)
    >>> round(ring.log_normalizer, 4)  # 2π R s √(2π)
    1.1474
    """

    def __init__(self, features: int = 2, radius: float = 3.0, width: float = 0.3) -> None:
        super().__init__(exactly_two("Ring", features))
        positive_number(radius=radius, width=width)
        if width >= radius:
            raise SpecError(f"width: was {width}; a ring of radius {radius} needs a smaller one")
        self.radius: float = float(radius)
        self.width: float = float(width)
        edge = self.radius + 5 * self.width
        self.window: Window = (-edge, edge, -edge, edge)

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        self.check(z)
        return -0.5 * ((radius(z) - self.radius) / self.width).square()

    @property
    def log_normalizer(self) -> float | None:
        return math.log(2 * math.pi * self.width * math.sqrt(2 * math.pi) * self._raw(0))

    @property
    def entropy(self) -> float | None:
        log_z = self.log_normalizer
        assert log_z is not None
        return log_z + 0.5 * self._raw(0, squares=True) / self._raw(0)

    @property
    def mean(self) -> Tensor | None:
        return self._like([0.0, 0.0])

    @property
    def covariance(self) -> Tensor | None:
        variance = 0.5 * self._raw(2) / self._raw(0)
        return self._like([[variance, 0.0], [0.0, variance]])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius}, width={self.width}"

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        def propose(count: int) -> tuple[Tensor, Tensor]:
            normal, uniform = self._normal(count), self._uniform(count)
            r, keep = propose_radius(normal, uniform, self.radius, self.width)
            angle = 2 * math.pi * self._uniform(count)
            return torch.stack([r * angle.cos(), r * angle.sin()], -1), keep

        return self._reject(shape, 1 - 0.5 * (self.width / self.radius) ** 2, propose)

    def _raw(self, power: int, squares: bool = False) -> float:
        """∫ r^{1 + power} t² φ(t) dt over r = R + s t > 0; without ``squares`` without the t²."""
        a = self.radius / self.width
        phi = math.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
        # ∫_{−a}^∞ tᵏ φ: m₀ = Φ(a), m₁ = φ(a), m_k = (−a)^{k−1} φ(a) + (k − 1) m_{k−2}.
        moments = [0.5 * math.erfc(-a / math.sqrt(2)), phi]
        for k in range(2, 6):
            moments.append((-a) ** (k - 1) * phi + (k - 1) * moments[k - 2])
        n, shift = 1 + power, 2 if squares else 0
        return sum(
            math.comb(n, k) * self.radius ** (n - k) * self.width**k * moments[k + shift]
            for k in range(n + 1)
        )


class Banana(Target):
    """A Gaussian bent along a parabola: z₁ = s y₁, z₂ = y₂ + b (z₁² − s²), zᵢ = yᵢ, y ~ N(0, I).

    The bend has unit Jacobian, so log Z = 0 and the entropy is that of the Gaussian. The mean is 0,
    the covariance diag(s², 1 + 2 b² s⁴, 1, …).

    Args:
        features: D ≥ 2.
        scale: s.
        bend: b; 0 is the Gaussian itself.

    Raises:
        SpecError: D < 2, or s not positive.

    Source: Haario, Saksman and Tamminen, "Adaptive proposal distribution for random walk Metropolis
    algorithm" (1999), section 4; they use s = 10, b = 0.03 and 0.1, here the defaults fit a picture.
    """

    def __init__(self, features: int = 2, scale: float = 2.0, bend: float = 0.5) -> None:
        super().__init__(_at_least_two("Banana", features))
        positive_number(scale=scale)
        if not math.isfinite(bend):
            raise SpecError(f"bend: was {bend!r}; use a finite number")
        self.scale: float = float(scale)
        self.bend: float = float(bend)
        side, top = 3 * self.scale, self.bend * 8 * self.scale**2
        rest = self.bend * self.scale**2
        self.window: Window = (-side, side, min(-rest, top) - 3, max(-rest, top) + 3)

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        self.check(z)
        z1 = z[..., 0]
        y2 = z[..., 1] - self.bend * (z1.square() - self.scale**2)
        squares = (z1 / self.scale).square() + y2.square() + z[..., 2:].square().sum(-1)
        return -0.5 * (squares + self.features * _LOG_2PI) - math.log(self.scale)

    @property
    def log_normalizer(self) -> float | None:
        return 0.0

    @property
    def entropy(self) -> float | None:
        return 0.5 * self.features * (1 + _LOG_2PI) + math.log(self.scale)

    @property
    def mean(self) -> Tensor | None:
        return self._like([0.0] * self.features)

    @property
    def covariance(self) -> Tensor | None:
        bent = 1 + 2 * self.bend**2 * self.scale**4
        return torch.diag(self._like([self.scale**2, bent] + [1.0] * (self.features - 2)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}, bend={self.bend}"

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        y = self._normal(*shape, self.features)
        z1 = self.scale * y[..., 0]
        z2 = y[..., 1] + self.bend * (z1.square() - self.scale**2)
        return torch.cat([z1[..., None], z2[..., None], y[..., 2:]], -1)


class Funnel(Target):
    """Neal's funnel: z₁ ~ N(0, s²), and every other zᵢ ~ N(0, exp(z₁)).

    log Z = 0, entropy D/2 (1 + log 2π) + log s, mean 0, covariance diag(s², e^{s²/2}, …). The moments
    are of little use as a test of samples: at s = 3 the mean of zᵢ² is carried by rare z₁.

    Args:
        features: D ≥ 2.
        scale: s.

    Raises:
        SpecError: D < 2, or s not positive.

    Source: Neal, "Slice sampling" (2003), section 8, where D = 10 and s = 3.
    """

    def __init__(self, features: int = 2, scale: float = 3.0) -> None:
        super().__init__(_at_least_two("Funnel", features))
        positive_number(scale=scale)
        self.scale: float = float(scale)
        self.window: Window = (-3 * self.scale, 2 * self.scale, -10.0, 10.0)

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        self.check(z)
        z1, others = z[..., 0], z[..., 1:]
        # e^{−z₁/2} goes in before the square: their product is moderate where each may overflow.
        squares = (others * torch.exp(-0.5 * z1)[..., None]).square().sum(-1)
        squares = squares + (z1 / self.scale).square() + (self.features - 1) * z1
        return -0.5 * (squares + self.features * _LOG_2PI) - math.log(self.scale)

    @property
    def log_normalizer(self) -> float | None:
        return 0.0

    @property
    def entropy(self) -> float | None:
        return 0.5 * self.features * (1 + _LOG_2PI) + math.log(self.scale)

    @property
    def mean(self) -> Tensor | None:
        return self._like([0.0] * self.features)

    @property
    def covariance(self) -> Tensor | None:
        wide = math.exp(0.5 * self.scale**2)
        return torch.diag(self._like([self.scale**2] + [wide] * (self.features - 1)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}"

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        y = self._normal(*shape, self.features)
        z1 = self.scale * y[..., :1]
        return torch.cat([z1, torch.exp(0.5 * z1) * y[..., 1:]], -1)


def _at_least_two(name: str, features: int) -> int:
    if isinstance(features, int) and features == 1:
        raise SpecError(f"features: was 1; a {name} needs 2 or more")
    return features
