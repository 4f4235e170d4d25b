"""The Bernoulli likelihood of binary events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from varflow.core import random
from varflow.core.form import Form
from varflow.core.settings import settings
from varflow.likelihoods.likelihood import Likelihood, LikelihoodSettings, batch_dim
from varflow.native import bernoulli as compiled


@settings("Bernoulli")
class BernoulliSettings(LikelihoodSettings):
    grey: Annotated[
        bool,
        "Allow grey values under a Bernoulli: a pseudo-likelihood, not comparable with anything.",
    ] = False

    def options(self, form: Form) -> dict[str, Any]:
        return {"grey": self.grey}


class Bernoulli(Likelihood):
    """log p(x|z) = Σᵢ xᵢ lᵢ − log(1 + exp lᵢ), with the logits l = decoder(z).

    Args:
        decoder: a network ``[*lead, D] -> [*lead, *event_shape]``, whose output is read as logits.
        event_shape: shape of one x.
        grey: accept values between 0 and 1 too. The result is then no log-density: it has no
            normalizer and compares with nothing.

    Raises:
        SpecError: a decoder of another ``out_shape``, or an event shape that is not one.

    The gradient in the logits is x − σ(l). No logit overflows: log(1 + exp l) is l where exp l
    would not fit. Cost: one elementwise pass forward, one backward.

    Example:
        >>> import torch
        >>> from varflow.networks import MLP
        >>> likelihood = Bernoulli(MLP(2, 6, hidden=(8,)), 6)
        >>> likelihood.log_prob(torch.ones(5, 6), torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5])
    """

    _refusal = (
        "binarize them (protocol dynamic, static or threshold), or use a Gaussian; grey=True "
        "allows values in [0, 1] as a pseudo-likelihood"
    )

    def __init__(
        self, decoder: nn.Module, event_shape: int | Sequence[int], grey: bool = False
    ) -> None:
        super().__init__(decoder, event_shape)
        self.grey = grey
        self.support: tuple[str, ...] = ("binary", "unit", "grey") if grey else ("binary",)

    def log_prob(
        self, x: Shaped[Tensor, "*x_batch_event"], z: Float[Tensor, "*lead_latent"]
    ) -> Float[Tensor, "*lead"]:
        self.check_shape(x)
        return bernoulli_log_prob(x, self.decode(z), self._event_dims)

    def value_and_gradient(
        self, x: Shaped[Tensor, "*x_batch_event"], z: Float[Tensor, "*lead features"]
    ) -> tuple[Tensor, Tensor] | None:
        """(log p(x|z), ∇_z log p(x|z)) through ``decoder.linearize``, or None where there is no such thing."""
        linearize = getattr(self.decoder, "linearize", None)
        found = None if linearize is None else linearize(z)
        if found is None:
            return None
        self.check_shape(x)
        logits, pull = found
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        value = bernoulli_log_prob(x, logits, self._event_dims)
        return value, pull(x - torch.sigmoid(logits)).to(z.dtype)

    def mean(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        return torch.sigmoid(self.decode(z))

    def sample(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        p = self.mean(z)
        u = random.uniform(
            p.shape, "likelihood", dtype=p.dtype, device=p.device, batch_dim=batch_dim(z)
        )
        return (u < p).to(p.dtype)

    def distribution(self, z: Float[Tensor, "*lead features"]) -> torch.distributions.Distribution:
        each = torch.distributions.Bernoulli(logits=self.decode(z), validate_args=not self.grey)
        return torch.distributions.Independent(
            each, len(self.event_shape), validate_args=not self.grey
        )


def bernoulli_log_prob(x: Tensor, logits: Tensor, event_dims: tuple[int, ...]) -> Tensor:
    """Σ x l − softplus(l) over ``event_dims``, the last dimensions.

    On the CPU one call of compiled code, where a C++ compiler is at hand (:mod:`varflow.native`): one pass
    over memory for the sum and, where the logits want a gradient, x − σ(l). Else torch.
    """
    if compiled.usable(x, logits):
        return compiled.log_prob(x, logits, len(event_dims))
    return _in_torch(x, logits, event_dims)


def _in_torch(x: Tensor, logits: Tensor, event_dims: tuple[int, ...]) -> Tensor:
    """Plain autograd: functions with a gradient of their own, and ``binary_cross_entropy_with_logits``, took
    the same time within 15 %.

    Above the threshold of 40, softplus(l) = l to the last bit of float64, and exp(40) fits float32;
    torch's own threshold of 20 is off by 2e-9.
    """
    return (x * logits - F.softplus(logits, threshold=40.0)).sum(event_dims)
