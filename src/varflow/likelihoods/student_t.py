"""The Student-t likelihood of real events with heavy tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import SpecError, unknown
from varflow.core.form import Form
from varflow.core.settings import Above, settings
from varflow.likelihoods.asymptotic import by_series
from varflow.likelihoods.likelihood import Likelihood, LikelihoodSettings, batch_dim


@settings("StudentT")
class StudentTSettings(LikelihoodSettings):
    freedom: Annotated[
        float | Literal["learned"],
        "Degrees of freedom ν of the Student-t: a number, or learned from 5 on; the smaller, the heavier the tails.",
        Above(0),
    ] = "learned"

    def options(self, form: Form) -> dict[str, Any]:
        return {"freedom": self.freedom}


class StudentT(Likelihood):
    """log p(x|z) = Σᵢ log Γ((ν + 1)/2) − log Γ(ν/2) − ½ log(νπ) − log σ − (ν + 1)/2 · log(1 + tᵢ²/ν).

    Here tᵢ = (xᵢ − mᵢ)/σ. The location m comes from the decoder; the scale σ is learned, one for all elements.

    Args:
        decoder: a network ``[*lead, D] -> [*lead, *event_shape]``, whose output is m.
        event_shape: shape of one x.
        freedom: ν, a positive number for all elements, or ``"learned"``: its parameter is log ν, from log 5 on.

    Raises:
        SpecError: a ν that is neither, or a decoder of another ``out_shape``.

    The gradient in m is bounded by (ν + 1)/(2 σ √ν): a far-off value pulls at the fit with less and less force. The
    mean exists for ν > 1 alone; :meth:`mean` is m, the centre of symmetry, for every ν. As ν grows the Gaussian
    with a learned scale is the limit. Cost: one logarithm for each element more than the Gaussian.

    Source: Lange, Little and Taylor 1989, "Robust statistical modeling using the t distribution", section 2.

    Example:
        >>> import torch
        >>> from varflow.networks import MLP
        >>> likelihood = StudentT(MLP(3, 2, hidden=(8,)), 2, freedom=3.0)
        >>> likelihood.log_prob(torch.zeros(5, 2), torch.zeros(4, 5, 3)).shape
        torch.Size([4, 5])
    """

    support: tuple[str, ...] = ("real", "unit")
    _refusal = "a density at points has no upper bound; use protocol=logit or uniform"

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: int | Sequence[int],
        freedom: float | Literal["learned"] = "learned",
    ) -> None:
        super().__init__(decoder, event_shape)
        if isinstance(freedom, str) and freedom != "learned":
            raise unknown("freedom", freedom, ["learned", "a positive number"])
        if freedom != "learned" and not (math.isfinite(freedom) and freedom > 0):
            raise SpecError(f"freedom: was {freedom}; use a positive number, or learned")
        start = torch.tensor(math.log(5.0 if freedom == "learned" else freedom))
        if freedom == "learned":
            self.log_freedom: nn.Parameter = nn.Parameter(start)
        else:
            self.register_buffer("log_freedom", start, persistent=False)
        self.log_scale: nn.Parameter = nn.Parameter(torch.zeros(()))

    def log_prob(
        self, x: Shaped[Tensor, "*x_batch_event"], z: Float[Tensor, "*lead_latent"]
    ) -> Float[Tensor, "*lead"]:
        self.check_shape(x)
        nu = self.log_freedom.exp()
        scaled = (x - self.decode(z)) * torch.exp(-self.log_scale)
        constant = log_normalizer(self.log_freedom) - self.log_scale
        tails = torch.log1p(scaled.square() / nu).sum(self._event_dims)
        return math.prod(self.event_shape) * constant - (nu + 1) / 2 * tails

    def mean(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        """m, the centre of symmetry and the median: E[x|z] where ν > 1."""
        return self.decode(z)

    def sample(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        """m + σ √ν · sin(2π u₁) √(u₂^(−2/ν) − 1): Bailey's polar method, two uniform numbers for each element."""
        centre, nu = self.decode(z), self.log_freedom.exp()
        first, second = (
            random.uniform(
                centre.shape, "likelihood", dtype=centre.dtype, device=centre.device, batch_dim=batch_dim(z)
            )
            for _ in range(2)
        )
        # 1 − u lies in (0, 1], where u^(−2/ν) − 1 = expm1(−2/ν · log u) has no infinity.
        radius = torch.sqrt(nu * torch.expm1(-2 / nu * torch.log1p(-second)))
        return centre + self.log_scale.exp() * radius * torch.sin(2 * math.pi * first)

    def distribution(self, z: Float[Tensor, "*lead features"]) -> torch.distributions.Distribution:
        centre = self.decode(z)
        each = torch.distributions.StudentT(self.log_freedom.exp(), centre, self.log_scale.exp())
        return torch.distributions.Independent(each, len(self.event_shape))


#: log Γ(h + ½) − log Γ(h) = ½ log h + Σⱼ cⱼ h^(1 − 2j); from h = 20 on the next term is below 1e-16.
_RATIO = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336, -31 / 18432)
_LARGE = math.log(20.0)


def log_normalizer(log_freedom: Tensor) -> Tensor:
    """log Γ((ν + 1)/2) − log Γ(ν/2) − ½ log(νπ), elementwise; −½ log 2π as ν → ∞.

    For large ν by the asymptotic series of the ratio: the difference of the two has no digits left in float32.
    """

    def direct(log_small: Tensor) -> Tensor:
        half = log_small.exp()
        return torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * log_small

    return by_series(log_freedom - math.log(2.0), _LARGE, _RATIO, direct) - 0.5 * math.log(2 * math.pi)
