"""One stochastic layer given another, and a decoder that reads the first of several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import ShapeError, positive
from varflow.flows.flow import full_precision
from varflow.networks.mlp import MLP


class GaussianLayer(nn.Module):
    """p(h|g) = N(h; μ(g), diag σ(g)²), with (μ, log σ) one fully connected network.

    Args:
        given: G, the number of features of g.
        features: D, the number of features of h.
        hidden: widths of the hidden layers; empty for a linear map.
        activation: of the hidden layers.

    Raises:
        SpecError: a size that is not positive or an unknown activation.

    Source: Burda, Grosse and Salakhutdinov 2016, "Importance weighted autoencoders" (arXiv:1509.00519),
    section 5: tanh, hidden=(100, 100) between 100 and 50 latents. The scale here is exp of the output.

    Example:
        >>> import torch
        >>> layer = GaussianLayer(given=3, features=2, hidden=(8,))
        >>> layer.log_prob(torch.zeros(5, 2), torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        given: int,
        features: int,
        hidden: int | Sequence[int] = (100, 100),
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        positive(given=given, features=features)
        self.given: int = given
        self.features: int = features
        self.network: MLP = MLP(given, 2 * features, hidden, activation)

    def moments(self, g: Float[Tensor, "... given"]) -> tuple[Tensor, Tensor]:
        """(μ, log σ), each ``[..., D]``."""
        mean, log_scale = full_precision(self.network(g)).chunk(2, -1)
        return mean, log_scale

    def log_prob(
        self, h: Float[Tensor, "*lead features"], g: Float[Tensor, "*lead given"]
    ) -> Float[Tensor, "*lead"]:
        """log p(h|g) in nats."""
        mean, log_scale = self.moments(g)
        scaled = (h - mean) * (-log_scale).exp()
        constant = 0.5 * self.features * math.log(2 * math.pi)
        return -0.5 * scaled.square().sum(-1) - log_scale.sum(-1) - constant

    def forward(self, h: Tensor, g: Tensor) -> Tensor:
        return self.log_prob(h, g)

    def draw(
        self, g: Float[Tensor, "*lead given"], purpose: str, batch_dim: int | None = None
    ) -> tuple[Float[Tensor, "*lead features"], Float[Tensor, "*lead"]]:
        """h ~ p(h|g), reparameterised, with its log p(h|g) in nats."""
        mean, log_scale = self.moments(g)
        noise = random.normal(
            mean.shape, purpose, dtype=mean.dtype, device=mean.device, batch_dim=batch_dim
        )
        constant = 0.5 * self.features * math.log(2 * math.pi)
        log_prob = -0.5 * noise.square().sum(-1) - log_scale.sum(-1) - constant
        return mean + log_scale.exp() * noise, log_prob


class Reads(nn.Module):
    """A decoder that reads the first ``features`` of a vector of latents: h₁ of several stochastic layers.

    Args:
        decoder: a network ``[*lead, features] -> [*lead, *out_shape]``.
        features: how many latents it reads.
        context_features: C, of a context that comes after the latents and is read too.

    Example:
        >>> import torch
        >>> from varflow.networks import MLP
        >>> Reads(MLP(3, (6,), hidden=(8,)), 3)(torch.zeros(4, 5)).shape
        torch.Size([4, 6])
    """

    def __init__(self, decoder: nn.Module, features: int, context_features: int = 0) -> None:
        super().__init__()
        positive(features=features)
        self.context_features: int = context_features
        self.decoder: nn.Module = decoder
        self.features: int = features
        out_shape = getattr(decoder, "out_shape", None)
        if out_shape is not None:
            self.out_shape = tuple(out_shape)

    def forward(self, z: Float[Tensor, "*lead latents"]) -> Tensor:
        if z.shape[-1] < self.features:
            raise ShapeError(
                f"z: shape {tuple(z.shape)}; the decoder reads {self.features} latents"
            )
        read = z[..., : self.features]
        if self.context_features:
            read = torch.cat([read, z[..., z.shape[-1] - self.context_features :]], -1)
        out: Tensor = self.decoder(read)
        return out


def detached(module: nn.Module, *arguments: Tensor) -> Tensor:
    """``module(*arguments)`` with the module's parameters as constants."""
    constants = {name: p.detach() for name, p in module.named_parameters()}
    out: Tensor = torch.func.functional_call(module, constants, arguments)
    return out
