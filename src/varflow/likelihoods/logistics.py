"""The discretized mixture of logistics: probabilities of ordered levels from a few decoder outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from varflow.core.errors import positive
from varflow.core.form import Form
from varflow.core.settings import Size, settings
from varflow.likelihoods.levels import OnLevels, OnLevelsSettings, positive_levels

#: Largest |log s| around its start; see :class:`Logistics`.
BOUND = 20.0


@settings("Logistics")
class LogisticsSettings(OnLevelsSettings):
    likelihood_components: Annotated[
        int, "Components of the mixture of logistics of each element.", Size()
    ] = 5

    def options(self, form: Form) -> dict[str, Any]:
        return {**OnLevelsSettings.options(self, form), "components": self.likelihood_components}


class Logistics(OnLevels):
    """p(v|z) = Σₖ πₖ [σ((v + ½ − mₖ)/sₖ) − σ((v − ½ − mₖ)/sₖ)] for each element, v = 0, 1, … L − 1.

    The edges of the first and the last bin are open to ∓∞, so the L bins sum to one. With three decoder
    outputs for each element and component (wₖ, aₖ, bₖ):

        π = softmax(w),   mₖ = (L − 1) ((k + ½)/K + aₖ/2),   log sₖ = log((L − 1)/4K) + 20 tanh(bₖ/20)

    so that a decoder that puts out zeros spreads its components evenly over the levels.

    Args:
        decoder: a network ``[*lead, D] -> [*lead, 3K·E, …]`` for events ``[E, …]``; 2·E with one component.
        event_shape: shape of one x, for pictures with any number of channels.
        levels: L.
        components: K.

    Raises:
        SpecError: fewer than two levels, no component, or a decoder of another ``out_shape``.

    Numerics: with edges p = (v + ½ − m)/s and q = (v − ½ − m)/s an inner bin is

        log(σ(p) − σ(q)) = log σ(p) + log σ(−q) + log(1 − exp(−1/s)),

    since p − q = 1/s: no difference of close numbers, at any width, and no branch for narrow bins. Edges are
    computed from whole levels, so that neighbours share theirs to the last bit. The bound keeps 1/s within
    float32 whatever the decoder says.

    Source: Salimans, Karpathy, Chen and Kingma 2017, "PixelCNN++", equations 1 and 2. Different from the
    paper: each channel has weights of its own and does not see the channels before it (there the component is
    shared by the channels of a pixel, and means of green and blue move with red); nothing is clamped, where
    the paper's program bounds log s from below at −7 and puts the density at the bin's middle for narrow bins.

    Cost: some twenty elementwise passes over K events. ``mean`` is exact and goes through all levels.

    Example:
        >>> import torch
        >>> from varflow.networks import MLP
        >>> shape = Logistics.decoder_shape((3, 8, 8), components=2)
        >>> likelihood = Logistics(MLP(4, shape), (3, 8, 8), components=2)
        >>> shape, likelihood.log_prob(torch.zeros(5, 3, 8, 8), torch.zeros(5, 4)).shape
        ((18, 8, 8), torch.Size([5]))
    """

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: int | Sequence[int],
        levels: int = 256,
        components: int = 5,
    ) -> None:
        positive_levels(levels)
        super().__init__(decoder, event_shape, levels, self._outputs_for(components=components))
        self.components = components

    @classmethod
    def _outputs_for(cls, components: int = 5, **options: Any) -> int:
        positive(components=components)
        return 3 * components if components > 1 else 2

    def parameters_at(
        self, z: Float[Tensor, "*lead features"]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
        """(log π, m, log s), each ``[*lead, K, *event]``; m and s in levels."""
        raw, count = self._split(z), self.components
        parts = raw.split(count, self._dim)
        offset, width = parts[-2], parts[-1]
        log_weight = parts[0].log_softmax(self._dim) if count > 1 else torch.zeros_like(offset)
        start = (torch.arange(count, dtype=raw.dtype, device=raw.device) + 0.5) / count
        start = start.view(count, *[1] * len(self.event_shape))
        log_scale = math.log(self.top / (4 * count)) + BOUND * torch.tanh(width / BOUND)
        return log_weight, self.top * (start + 0.5 * offset), log_scale

    def log_prob(
        self, x: Shaped[Tensor, "*x_batch_event"], z: Float[Tensor, "*lead features"]
    ) -> Float[Tensor, "*lead"]:
        self.check_shape(x)
        level = self._level(x).unsqueeze(self._dim)
        return self._log_mass(level, *self.parameters_at(z), self._dim).sum(self._event_dims)

    def _log_mass(
        self, level: Tensor, log_weight: Tensor, mean: Tensor, log_scale: Tensor, dim: int
    ) -> Tensor:
        """log p of ``level``; the components lie along ``dim`` and are summed over."""
        rate = torch.exp(-log_scale)
        upper = F.logsigmoid((level + 0.5 - mean) * rate)
        lower = F.logsigmoid((mean - (level - 0.5)) * rate)
        width = torch.log(-torch.expm1(-rate))
        first, last = level == 0, level == self.top
        found = torch.where(last, 0.0, upper) + torch.where(first, 0.0, lower)
        found = found + torch.where(first | last, 0.0, width)
        return (
            torch.logsumexp(log_weight + found, dim) if self.components > 1 else found.squeeze(dim)
        )

    def log_masses(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event_levels"]:
        log_weight, mean, log_scale = (part.unsqueeze(-1) for part in self.parameters_at(z))
        level = torch.arange(self.levels, dtype=mean.dtype, device=mean.device)
        return self._log_mass(level, log_weight, mean, log_scale, self._dim - 1)

    def mean(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        """E[x|z] = Σᵥ P(V ≥ v) / (L − 1) over v = 1 … L − 1, exactly."""
        log_weight, mean, log_scale = self.parameters_at(z)
        rate = torch.exp(-log_scale)
        total = torch.zeros_like(mean)
        for level in range(1, self.levels):
            total = total + torch.sigmoid((mean - (level - 0.5)) * rate)
        return (log_weight.exp() * total).sum(self._dim) / self.top

    def sample(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        log_weight, mean, log_scale = self.parameters_at(z)
        below = log_weight.exp().cumsum(self._dim).narrow(self._dim, 0, self.components - 1)
        like = mean.select(self._dim, 0)
        chosen = (self._uniform(like, z).unsqueeze(self._dim) > below).sum(self._dim, keepdim=True)
        mean, log_scale = (
            p.gather(self._dim, chosen).squeeze(self._dim) for p in (mean, log_scale)
        )
        drawn = mean + log_scale.exp() * torch.logit(self._uniform(like, z))
        # What falls beyond the ends belongs to the bins that are open there.
        return drawn.round().clamp(0, self.top) / self.top

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, components={self.components}"
