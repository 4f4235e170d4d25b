"""The standard normal prior."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core import random
from varflow.core.errors import ShapeError, positive
from varflow.priors.prior import Prior


class StandardNormal(Prior):
    """p(z) = N(z; 0, I): log p(z) = −½ zᵀz − (D/2) log 2π.

    Args:
        features: D.

    Example:
        >>> import torch
        >>> prior = StandardNormal(2)
        >>> round(prior.log_prob(torch.zeros(2)).item(), 4)
        -1.8379
    """

    standard = True

    def __init__(self, features: int) -> None:
        super().__init__()
        positive(features=features)
        self.event_shape: tuple[int, ...] = (features,)
        self.register_buffer("_home", torch.zeros(()), persistent=False)

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        """log N(z; 0, I) in nats, ``[..., D]`` → ``[...]``.

        Raises:
            ShapeError: the last dimension of z is not D.
        """
        self.refuse_context(context)
        features = self.event_shape[0]
        if z.shape[-1] != features:
            raise ShapeError(f"z: shape {tuple(z.shape)}; this prior needs [..., {features}]")
        return -0.5 * (z.square().sum(-1) + features * math.log(2 * math.pi))

    def sample(self, shape: Sequence[int] = (), context: Tensor | None = None) -> Float[Tensor, "..."]:
        self.refuse_context(context)
        home = self.get_buffer("_home")
        return random.normal(
            (*shape, *self.event_shape), "prior", dtype=home.dtype, device=home.device
        )
