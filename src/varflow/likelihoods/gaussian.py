"""The Gaussian likelihood of real events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import SpecError, unknown
from varflow.core.form import Form
from varflow.core.settings import Above, settings
from varflow.likelihoods.likelihood import Likelihood, LikelihoodSettings, batch_dim

_NAMED = ("learned", "per-dimension", "decoder")


@settings("Gaussian")
class GaussianSettings(LikelihoodSettings):
    scale: Annotated[
        float | Literal["learned", "per-dimension", "decoder"],
        "Scale of the gaussian: a number, or learned, per-dimension, decoder.",
        Above(0),
    ] = "learned"
    initial_scale: Annotated[
        float, "Where a learned or per-dimension scale of the gaussian starts.", Above(0)
    ] = 1.0

    def options(self, form: Form) -> dict[str, Any]:
        return {"scale": self.scale, "initial": self.initial_scale}


class Gaussian(Likelihood):
    """log p(x|z) = Σᵢ −½ ((xᵢ − mᵢ) / σᵢ)² − log σᵢ − ½ log 2π, with the mean m from the decoder.

    Args:
        decoder: a network ``[*lead, D] -> [*lead, *out_shape]``; its output is the mean, and with
            ``scale="decoder"`` mean and log σ, stacked along the first event dimension.
        event_shape: shape of one x.
        scale: σ. A positive number; ``"learned"``: one for all elements; ``"per-dimension"``: one
            for each; ``"decoder"``: one for each element and each z. The learned ones start at
            ``initial``, and their parameter is log σ.
        initial: where ``"learned"`` and ``"per-dimension"`` start. Adam moves log σ by about its learning rate a
            step, so a start far off costs steps.

    Raises:
        SpecError: a scale that is none of these, an initial one that is not positive, or a decoder of another
            ``out_shape``.

    A density of discrete values has no upper bound where σ is learned: binary data are refused, and
    grey values should be dequantized first. Cost: one elementwise pass forward and backward for one
    shared σ, two to four otherwise.

    Example:
        >>> import torch
        >>> from varflow.networks import MLP
        >>> shape = Gaussian.decoder_shape((2,), scale="decoder")
        >>> likelihood = Gaussian(MLP(3, shape, hidden=(8,)), (2,), scale="decoder")
        >>> likelihood.log_prob(torch.zeros(5, 2), torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    support: tuple[str, ...] = ("real", "unit")
    _refusal = "a density at points has no upper bound; use protocol=logit or uniform"
    _ways_out: ClassVar[dict[str, str]] = {
        "binary": "use a Bernoulli: a density at values that are only 0 and 1 is no probability of them",
        "levels": "use likelihood=logistics, or protocol=logit: a density at levels has no upper bound",
    }

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: int | Sequence[int],
        scale: float | int | str = "learned",
        initial: float = 1.0,
    ) -> None:
        super().__init__(decoder, event_shape, self._outputs_for(scale=scale))
        self.scale: float | str = _parse(scale)
        if not (math.isfinite(initial) and initial > 0):
            raise SpecError(f"initial: was {initial}; use a positive number")
        if self.scale in ("learned", "per-dimension"):
            shape = () if self.scale == "learned" else self.event_shape
            self.log_scale: nn.Parameter = nn.Parameter(torch.full(shape, math.log(initial)))

    @classmethod
    def _outputs_for(cls, scale: float | int | str = "learned", **options: Any) -> int:
        return 2 if _parse(scale) == "decoder" else 1

    def parameters_at(self, z: Float[Tensor, "*lead features"]) -> tuple[Tensor, Tensor | float]:
        """(m ``[*lead, *event]``, log σ, which broadcasts against it)."""
        out = self.decode(z)
        if self.scale == "decoder":
            mean, log_scale = out.chunk(2, dim=-len(self.event_shape))
            return mean, log_scale
        return out, math.log(self.scale) if isinstance(self.scale, float) else self.log_scale

    def log_prob(
        self, x: Shaped[Tensor, "*x_batch_event"], z: Float[Tensor, "*lead_latent"]
    ) -> Float[Tensor, "*lead"]:
        self.check_shape(x)
        mean, log_scale = self.parameters_at(z)
        count = math.prod(self.event_shape)
        constant = 0.5 * count * math.log(2 * math.pi)
        if isinstance(log_scale, float):
            squares = (x - mean).square().sum(self._event_dims)
            return -0.5 * math.exp(-2 * log_scale) * squares - (count * log_scale + constant)
        if log_scale.ndim == 0:
            squares = (x - mean).square().sum(self._event_dims)
            return -0.5 * torch.exp(-2 * log_scale) * squares - count * log_scale - constant
        squares = ((x - mean) * torch.exp(-log_scale)).square().sum(self._event_dims)
        return -0.5 * squares - log_scale.sum(self._event_dims) - constant

    def mean(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        return self.parameters_at(z)[0]

    def sample(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        mean, log_scale = self.parameters_at(z)
        scale = math.exp(log_scale) if isinstance(log_scale, float) else log_scale.exp()
        noise = random.normal(
            mean.shape, "likelihood", dtype=mean.dtype, device=mean.device, batch_dim=batch_dim(z)
        )
        return mean + scale * noise

    def distribution(self, z: Float[Tensor, "*lead features"]) -> torch.distributions.Distribution:
        mean, log_scale = self.parameters_at(z)
        scale = math.exp(log_scale) if isinstance(log_scale, float) else log_scale.exp()
        each = torch.distributions.Normal(mean, scale)
        return torch.distributions.Independent(each, len(self.event_shape))

    def extra_repr(self) -> str:
        return f"event_shape={self.event_shape}, scale={self.scale}"


def _parse(scale: float | int | str) -> float | str:
    """One of the named scales, or a positive number (a number in a string counts, as in a spec)."""
    if scale in _NAMED:
        return scale
    try:
        number = float(scale)
    except (TypeError, ValueError):
        raise unknown("scale", str(scale), [*_NAMED, "a positive number"]) from None
    if isinstance(scale, bool) or not (math.isfinite(number) and number > 0):
        raise SpecError(f"scale: was {scale}; use a positive number, or one of {', '.join(_NAMED)}")
    return number
