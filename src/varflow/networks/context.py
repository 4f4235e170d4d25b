"""Encoders of x that read a context c beside it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import ShapeError, SpecError, positive
from varflow.core.observed import Examples, parts_of


class ContextEncoder(nn.Module):
    """Features of x and c: what q(z|x, c) is made of.

    A vector x and c are read side by side; of pictures each number of c is a channel more, the same at every pixel.

    Args:
        network: over vectors of D + C numbers, or pictures of K + C channels.
        event_shape: shape of one x.
        context_features: C.

    Raises:
        ShapeError: a context of another size.

    Example:
        >>> import torch, varflow as vf
        >>> encoder = ContextEncoder(vf.networks.MLP(6 + 2, hidden=(8,)), (6,), 2)
        >>> encoder(torch.zeros(5, 6), torch.zeros(5, 2)).shape
        torch.Size([5, 8])
    """

    def __init__(self, network: nn.Module, event_shape: tuple[int, ...], context_features: int) -> None:
        super().__init__()
        positive(context_features=context_features)
        self.network: nn.Module = network
        self.event_shape: tuple[int, ...] = tuple(event_shape)
        self.context_features: int = context_features
        self.couples_examples: bool = bool(getattr(network, "couples_examples", False))
        for name in ("features", "out_shape"):
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))

    @staticmethod
    def in_shape(event_shape: tuple[int, ...], context_features: int, pictures: bool) -> tuple[int, ...]:
        """What the network reads: a picture with a channel for each number of c, or one vector."""
        if pictures:
            channels, *rest = event_shape
            return (channels + context_features, *rest)
        return (int(torch.Size(event_shape).numel()) + context_features,)

    def forward(self, x: Float[Tensor, "*batch_event"], context: Tensor | None = None) -> Tensor:
        """x ``[B, *event]`` and c ``[B, C]`` → features ``[B, F]``."""
        c = needed(context, self.context_features).to(x.dtype)
        shape: tuple[int, ...] = getattr(self.network, "in_shape", ())
        if len(shape) == len(self.event_shape) > 1:
            plane = c[..., None, None].expand(*c.shape, *x.shape[-2:])
            out: Tensor = self.network(torch.cat([x, plane], -3))
            return out
        flat = x.flatten(-len(self.event_shape))
        out = self.network(torch.cat([flat, c], -1))
        return out


def needed(context: Tensor | None, features: int) -> Tensor:
    """A context that an encoder reads.

    Raises:
        SpecError: it is missing; ShapeError: it has another size.
    """
    if context is None:
        raise SpecError(f"context: missing; this encoder reads {features} context features beside x")
    if context.shape[-1] != features:
        raise ShapeError(f"context: shape {list(context.shape)}; this encoder reads {features} context features")
    return context


def encode(encoder: nn.Module, examples: Examples | None) -> Any:
    """What an encoder makes of x, and of the context and the mask where it reads them."""
    x, context, mask = parts_of(examples)
    more: dict[str, Tensor] = {}
    if context is not None and getattr(encoder, "context_features", False):
        more["context"] = context
    if mask is not None and getattr(encoder, "reads_mask", False):
        more["mask"] = mask
    return encoder(x, **more)


def conditions_of(network: nn.Module | None) -> tuple[str, ...]:
    """What a network reads beside its first input, among "context" and "mask"."""
    found = ("context",) if getattr(network, "context_features", 0) else ()
    return (*found, "mask") if getattr(network, "reads_mask", False) else found
