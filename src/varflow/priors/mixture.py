"""A mixture of diagonal Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError, positive
from varflow.core.form import Form
from varflow.core.settings import Size, settings
from varflow.priors._components import by_rows, pick
from varflow.priors.prior import Prior, PriorSettings


@settings("Mixture")
class MixtureSettings(PriorSettings):
    components: Annotated[int, "Components of the mixture.", Size()] = 100

    def build(self, part: Any, features: int, form: Form) -> Prior:
        return Mixture(features, self.components)


class Mixture(Prior):
    """p(z) = Σₖ πₖ N(z; mₖ, diag σₖ²), with π, m and σ learned.

    It starts with equal weights, random means of variance ``spread`` and σ² = 1 − ``spread``, so that its mean
    and variance are about those of N(0, I), and no two components are alike.

    Args:
        features: D.
        components: K.
        spread: the share of the unit variance that lies between the components at the start, in [0, 1).

    Attributes:
        logits: log π up to a constant, ``[K]``.
        means: m ``[K, D]``.
        log_scales: log σ ``[K, D]``.

    Raises:
        SpecError: a size that is not positive, or a spread outside [0, 1).

    Cost: K·D operations a point for a density; D and one comparison with K sums for a sample, which is
    exact. The squares are of differences z − m, never expanded: far and narrow components lose no digits.

    Example:
        >>> import torch
        >>> prior = Mixture(2, components=5)
        >>> prior.log_prob(prior.sample((3, 4))).shape
        torch.Size([3, 4])
    """

    def __init__(self, features: int, components: int = 10, spread: float = 0.5) -> None:
        super().__init__()
        positive(features=features, components=components)
        if not 0 <= spread < 1:
            raise SpecError(f"spread: was {spread!r}; use a share of the variance, 0 <= spread < 1")
        self.event_shape: tuple[int, ...] = (features,)
        self.components: int = components
        self.logits: nn.Parameter = nn.Parameter(torch.zeros(components))
        self.means: nn.Parameter = nn.Parameter(math.sqrt(spread) * torch.randn(components, features))
        start = torch.full((components, features), 0.5 * math.log1p(-spread))
        self.log_scales: nn.Parameter = nn.Parameter(start)

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        """log p(z) in nats, ``[..., D]`` → ``[...]``.

        Raises:
            ShapeError: the last dimension of z is not D.
        """
        self.refuse_context(context)
        self._check(z)
        return by_rows(lambda rows: self._joint(rows).logsumexp(-1), z, self.components)

    def responsibilities(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "... components"]:
        """p(k|z) ``[..., K]``, sums to 1. Raises as :meth:`log_prob`."""
        self._check(z)
        return self._joint(z).softmax(-1)

    def sample(self, shape: Sequence[int] = (), context: Tensor | None = None) -> Float[Tensor, "..."]:
        self.refuse_context(context)
        dtype, device = self.means.dtype, self.means.device
        u = random.uniform(shape, "prior", dtype=dtype, device=device)
        which = pick(self.logits.softmax(-1), u)
        noise = random.normal((*shape, *self.event_shape), "prior", dtype=dtype, device=device)
        return self.means[which] + self.log_scales[which].exp() * noise

    def extra_repr(self) -> str:
        return f"features={self.event_shape[0]}, components={self.components}"

    def _check(self, z: Tensor) -> None:
        features = self.event_shape[0]
        if z.ndim == 0 or z.shape[-1] != features:
            raise ShapeError(f"z: shape {tuple(z.shape)}; this prior needs [..., {features}]")

    def _joint(self, z: Tensor) -> Tensor:
        """log πₖ N(z; mₖ, diag σₖ²), ``[..., D]`` → ``[..., K]``."""
        scaled = (z.unsqueeze(-2) - self.means) * (-self.log_scales).exp()
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        each = self.logits.log_softmax(-1) - self.log_scales.sum(-1) - constant
        return each - 0.5 * scaled.square().sum(-1)
