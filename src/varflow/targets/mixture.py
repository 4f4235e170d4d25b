"""A mixture of Gaussians with modes far apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import ShapeError, SpecError, positive
from varflow.targets.quadrature import Grid, grid
from varflow.targets.target import Target, Window, positive_number


class GaussianMixture(Target):
    """π(z) = Σ_m w_m N(z; μ_m, s² I), normalised: log Z = 0.

    By default the modes stand evenly on a circle in the first two features, 9 s apart. Mean and
    covariance are in closed form. The entropy has none: it is a quadrature in the plane that the modes
    span, plus what the remaining features add, and None where they span more than a plane.

    Args:
        features: D.
        modes: M, on the circle (on a line from −radius to radius if D = 1).
        radius: of that circle.
        scale: s.
        weights: w ``[M]``, positive; divided by their sum. None: all equal.
        locations: μ ``[M, D]``, instead of ``modes`` and ``radius``.

    μ and w are buffers in torch's default dtype, so that mixtures can be stacked; every answer is that
    of μ and w as they were rounded to it.

    Raises:
        SpecError: sizes, scale or weights that are not positive.
        ShapeError: locations or weights of another shape.

    Cost: O(M D) per point.

    >>> mixture = GaussianMixture(modes=4, radius=10.0, scale=1.0)
    >>> far = math.log(4) + 1 + math.log(2 * math.pi)  # of modes that do not overlap
    >>> abs(mixture.entropy - far) < 1e-10
    True
    """

    def __init__(
        self,
        features: int = 2,
        modes: int = 8,
        radius: float = 6.0,
        scale: float = 0.5,
        weights: Sequence[float] | Tensor | None = None,
        locations: Sequence[Sequence[float]] | Tensor | None = None,
    ) -> None:
        super().__init__(features)
        positive(modes=modes)
        positive_number(radius=radius, scale=scale)
        self.scale: float = float(scale)
        centers = _circle(features, modes, radius) if locations is None else _double(locations)
        if centers.ndim != 2 or centers.shape[1] != features or not len(centers):
            raise ShapeError(
                f"locations: shape {tuple(centers.shape)}; {features} features need [M, {features}]"
            )
        shares = torch.ones(len(centers)).double() if weights is None else _double(weights)
        if shares.shape != (len(centers),):
            raise ShapeError(
                f"weights: shape {tuple(shares.shape)}; {len(centers)} modes need [{len(centers)}]"
            )
        if not (shares.isfinite() & (shares > 0)).all():
            raise SpecError(f"weights: were {shares.tolist()}; use positive numbers")
        if not centers.isfinite().all():
            raise SpecError("locations: have a NaN or infinity; use finite numbers")
        self.register_buffer("locations", centers.to(torch.get_default_dtype()))
        log_weights = shares.log() - shares.sum().log()
        self.register_buffer("log_weights", log_weights.to(torch.get_default_dtype()))
        if features == 2:
            low, high = centers.amin(0) - 5 * self.scale, centers.amax(0) + 5 * self.scale
            (x0, y0), (x1, y1) = low.tolist(), high.tolist()
            self.window: Window | None = (x0, x1, y0, y1)

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        self.check(z)
        constant = self.features * (0.5 * math.log(2 * math.pi) + math.log(self.scale))
        return torch.logsumexp(self._terms(z), -1) - constant

    def _terms(self, z: Tensor) -> Tensor:
        """log w_m − ½ ‖z − μ_m‖² / s², ``[..., M]``."""
        offset = (z.unsqueeze(-2) - self.get_buffer("locations")) / self.scale
        return self._log_weights() - 0.5 * offset.square().sum(-1)

    def _log_weights(self) -> Tensor:
        """log w of sum one in the dtype that it has by now."""
        return torch.log_softmax(self.get_buffer("log_weights"), 0)

    @property
    def log_normalizer(self) -> float | None:
        return 0.0

    @property
    def entropy(self) -> float | None:
        """−Σ_m w_m E log π under mode m, each on a grid around it that follows its own width."""
        mu = self.get_buffer("locations").double()
        log_w = torch.log_softmax(self.get_buffer("log_weights").double(), 0)
        offset = (mu - mu.mean(0)) / self.scale
        _, spread, axes = torch.linalg.svd(offset, full_matrices=False)
        if (spread[2:] > 1e-12 * spread[:1]).any():
            return None
        flat = torch.zeros(len(mu), 2, dtype=mu.dtype, device=mu.device)
        flat[:, : len(spread[:2])] = offset @ axes[:2].T
        rule = Grid(*(t.to(mu.device) for t in grid((-9.0, 9.0), (-9.0, 9.0), panel=1.0, nodes=10)))
        normal = -0.5 * rule.points.square().sum(-1) - math.log(2 * math.pi)
        mass = (rule.log_weights + normal).exp()
        total = 0.0
        for center, share in zip(flat, log_w.exp(), strict=True):
            offset = (rule.points + center).unsqueeze(-2) - flat
            log_density = torch.logsumexp(log_w - 0.5 * offset.square().sum(-1), -1)
            total -= (share * (mass @ log_density)).item()
        others = 0.5 * (self.features - 2)
        return total + math.log(2 * math.pi) + self._volume() + others * (1 + math.log(2 * math.pi))

    def _volume(self) -> float:
        return self.features * math.log(self.scale)

    @property
    def mean(self) -> Tensor | None:
        return self._log_weights().exp() @ self.get_buffer("locations")

    @property
    def covariance(self) -> Tensor | None:
        weights, mu = self._log_weights().exp(), self.get_buffer("locations")
        offset = mu - weights @ mu
        within = self.scale**2 * torch.eye(self.features, dtype=mu.dtype, device=mu.device)
        return within + offset.T @ (weights[:, None] * offset)

    @property
    def modes(self) -> Tensor | None:
        """μ; modes that overlap have their maxima a little closer to each other."""
        return self.get_buffer("locations")

    @property
    def mode_weights(self) -> Tensor | None:
        return self._log_weights().exp()

    def mode_probabilities(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "... modes"]:
        self.check(z)
        return torch.softmax(self._terms(z), -1)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, modes={len(self.get_buffer('locations'))}, scale={self.scale}"
        )

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        cumulative = self._log_weights().double().exp().cumsum(0)
        # Without its last entry, which rounding may leave below a uniform number.
        index = torch.bucketize(self._uniform(*shape).double(), cumulative[:-1], right=True)
        return self.get_buffer("locations")[index] + self.scale * self._normal(
            *shape, self.features
        )


def _circle(features: int, modes: int, radius: float) -> Tensor:
    centers = torch.zeros(modes, features, dtype=torch.float64)
    if features == 1:
        centers[:, 0] = torch.linspace(-radius, radius, modes, dtype=torch.float64)
        return centers
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    centers[:, 0], centers[:, 1] = radius * angle.cos(), radius * angle.sin()
    return centers


def _double(values: Sequence[float] | Sequence[Sequence[float]] | Tensor) -> Tensor:
    return torch.as_tensor(values).detach().double()
