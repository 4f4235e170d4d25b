"""What the convolutional networks share: shapes of pictures, leading dimensions, normalizations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from varflow.core.errors import SpecError, unknown
from varflow.networks.mlp import Shape, as_shape, check_input

Normalization = Literal["none", "group", "layer", "batch"]
NORMALIZATIONS = get_args(Normalization)


class PictureNetwork(nn.Module):
    """``[*batch, *in_shape]`` → ``[*batch, *out_shape]`` by ``layers``. Any leading dimensions are batch, also when
    one is 0.
    """

    in_shape: Shape
    out_shape: Shape
    layers: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """``[*batch, *in_shape]`` → ``[*batch, *out_shape]``."""
        check_input(self, x, self.in_shape)
        batch = x.shape[: -len(self.in_shape)]
        return self.rows(x.reshape(math.prod(batch), *self.in_shape)).reshape(*batch, *self.out_shape)

    def rows(self, x: Tensor) -> Tensor:
        """The same for one batch dimension, whatever way what comes out is folded."""
        out: Tensor = self.layers(x)
        return out


class GroupNorm(nn.GroupNorm):
    """torch's, which inside ``torch.func.vmap`` takes no input whose channels are innermost in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if torch._C._are_functorch_transforms_active() else x)


def normalized(kind: str, channels: int, flat: bool = False) -> nn.Module:
    """The normalization ``kind`` of ``channels``, of pictures or (``flat``) of vectors.

    Raises:
        SpecError: there is none of this name.
    """
    if kind not in NORMALIZATIONS:
        raise unknown("normalization", kind, NORMALIZATIONS)
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm1d(channels) if flat else nn.BatchNorm2d(channels)
    # Groups of at least four channels, eight groups at most.
    groups = 1 if kind == "layer" else math.gcd(channels, 8)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return GroupNorm(groups, channels)


def pictures(network: str, shape: Shape, instead: str = "use network=mlp") -> Shape:
    """``shape``, where it is one of pictures.

    Raises:
        SpecError: it is not.
    """
    if len(shape) != 3:
        raise SpecError(f"network: {network} needs pictures [C, H, W], the data have shape {shape}; {instead}")
    return shape


def as_picture(argument: str, shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = as_shape(argument, shape)
    if len(sizes) != 3:
        raise SpecError(
            f"{argument}: was {sizes}; a convolutional network needs (C, height, width)"
        )
    return sizes[0], sizes[1], sizes[2]
