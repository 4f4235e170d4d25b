"""One probability for each level, with nothing said of their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from varflow.core.settings import settings
from varflow.likelihoods.levels import OnLevels, OnLevelsSettings, positive_levels


@settings("Categorical")
class CategoricalSettings(OnLevelsSettings):
    """Nothing to be told."""


class Categorical(OnLevels):
    """p(xᵢ = v/(L − 1) | z) = softmax(l)ᵥ, with L logits l for each element from the decoder.

    Args:
        decoder: a network ``[*lead, D] -> [*lead, L·E, …]`` for events ``[E, …]``.
        event_shape: shape of one x.
        levels: L.

    Raises:
        SpecError: fewer than two levels, or a decoder of another ``out_shape``.

    Equal logits score log₂ L bits for each element. Cost: L decoder outputs an element; for pictures of 256
    levels :class:`Logistics` says nearly as much with fifteen.

    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.4, whose softmax it is.

    Example:
        >>> import torch
        >>> from varflow.networks import MLP
        >>> likelihood = Categorical(MLP(2, Categorical.decoder_shape((6,), levels=17)), 6, levels=17)
        >>> likelihood.log_prob(torch.zeros(5, 6), torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5])
    """

    def __init__(
        self, decoder: nn.Module, event_shape: int | Sequence[int], levels: int = 256
    ) -> None:
        super().__init__(decoder, event_shape, levels, self._outputs_for(levels))

    @classmethod
    def _outputs_for(cls, levels: int = 256, **options: Any) -> int:
        return positive_levels(levels)

    def log_prob(
        self, x: Shaped[Tensor, "*x_batch_event"], z: Float[Tensor, "*lead features"]
    ) -> Float[Tensor, "*lead"]:
        self.check_shape(x)
        logits = self._split(z)
        level = self._level(x).long().unsqueeze(self._dim)
        lead = torch.broadcast_shapes(level.shape[: self._dim], logits.shape[: self._dim])
        level = level.expand(*lead, 1, *self.event_shape)
        logits = logits.expand(*lead, self.levels, *self.event_shape)
        found = logits.gather(self._dim, level).squeeze(self._dim) - logits.logsumexp(self._dim)
        return found.sum(self._event_dims)

    def log_masses(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event_levels"]:
        return self._split(z).log_softmax(self._dim).movedim(self._dim, -1)

    def mean(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        masses = self.log_masses(z).exp()
        level = torch.arange(self.levels, dtype=masses.dtype, device=masses.device)
        return masses @ level / self.top

    def sample(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        below = self.log_masses(z).exp().cumsum(-1)[..., :-1]
        u = self._uniform(below[..., 0], z)
        return (u[..., None] > below).sum(-1).to(below.dtype) / self.top
