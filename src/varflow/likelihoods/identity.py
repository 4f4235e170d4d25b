"""x = z: the likelihood of a model that is its prior, for density estimation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.errors import SpecError
from varflow.networks.mlp import as_shape


class Identity(nn.Module):
    """x = z, the likelihood that goes with :class:`Observed`."""

    support = ("real", "unit")

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_shape("event_shape", event_shape)

    def log_prob(self, x: Float[Tensor, "..."], z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.zeros_like(z[..., 0])

    def mean(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return z.unflatten(-1, self.event_shape)

    sample = mean

    def check_support(self, support: str) -> None:
        if support not in self.support:
            raise SpecError(
                f"data: are {support}, and a density of discrete values has no upper bound; use protocol=uniform "
                "or logit"
            )
