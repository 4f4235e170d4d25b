"""The contract of a prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Shaped
from torch import Tensor, nn


class Prior(nn.Module, ABC):
    """p(z) over events of ``event_shape``, normalised: ``log_prob`` holds every constant, in nats.

    Attributes:
        event_shape: ``(D,)`` for a vector of latent features.
    """

    event_shape: tuple[int, ...]

    @abstractmethod
    def log_prob(self, z: Shaped[Tensor, "..."], context: Tensor | None = None) -> Tensor:
        """log p(z) for z ``[..., *event_shape]`` → ``[...]``, nats."""

    @abstractmethod
    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draws ``[*shape, *event_shape]`` with the dtype and device of the prior."""
