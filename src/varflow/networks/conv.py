"""The residual convolutional pair: pictures to features, latents to pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from varflow.core.errors import SpecError
from varflow.core.settings import Settings, Size, settings
from varflow.networks.linear import Linear
from varflow.networks.mlp import Shape, as_shape
from varflow.networks.pictures import (
    Normalization,
    PictureNetwork,
    as_picture,
    normalized,
    pictures,
)


@settings("ConvEncoder")
class ConvSettings(Settings):
    """The residual convolutional pair."""

    base: Annotated[int, "Channels of the first convolution.", Size()] = 32
    scales: Annotated[
        int | None,
        "Halvings of the picture; without it three, or as many as the picture allows.",
        Size(),
    ] = None
    blocks: Annotated[int, "Residual blocks at each scale.", Size()] = 1
    bottleneck: Annotated[bool, "Residual blocks 1-3-1 instead of 3-3."] = False
    weight_norm: Annotated[bool, "Weight-normalised convolutions."] = False
    normalization: Annotated[
        Normalization,
        "Normalisation of the convolutional networks; batch couples the examples of a batch.",
    ] = "group"

    def encoder(self, event_shape: Shape, latent: int) -> nn.Module:
        return ConvEncoder(pictures("conv", event_shape), **self._options())

    def decoder(self, latent: int, out_shape: Shape) -> nn.Module:
        return ConvDecoder(latent, pictures("conv", out_shape), **self._options())

    def _options(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("base", "scales", "blocks", "bottleneck", "weight_norm")}
        return {n: v for n, v in own.items() if v is not None} | {"normalization": self.normalization}


class _Options:
    """How the convolutions of one network are built."""

    def __init__(self, bottleneck: bool, weight_norm: bool, normalization: str) -> None:
        self.bottleneck: bool = bottleneck
        self.weight_norm: bool = weight_norm
        self.normalization = normalization

    def conv(self, before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Module:
        conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2)
        return _normalized(conv, 0) if self.weight_norm else conv

    def up(self, before: int, after: int, coarse: Shape, fine: Shape) -> nn.Module:
        """Stride 2 from ``coarse`` to exactly ``fine``, odd or even."""
        padding = (fine[0] - (2 * coarse[0] - 1), fine[1] - (2 * coarse[1] - 1))
        conv = nn.ConvTranspose2d(before, after, 3, 2, padding=1, output_padding=padding)
        # A transposed convolution keeps its output channels in dimension 1.
        return _normalized(conv, 1) if self.weight_norm else conv

    def norm(self, channels: int) -> nn.Module:
        return normalized(self.normalization, channels)


class WeightNorm(nn.Module):
    """W = g V / ‖V‖, one gain g for each output channel (Salimans and Kingma 2016, eq. 2).

    As torch's parametrization of this name, which has no batching rule for ``torch.func.vmap``.
    """

    def __init__(self, channel_dim: int) -> None:
        super().__init__()
        self.over: tuple[int, ...] = tuple(dim for dim in range(4) if dim != channel_dim)

    def forward(self, gain: Tensor, direction: Tensor) -> Tensor:
        return direction * (gain / torch.linalg.vector_norm(direction, dim=self.over, keepdim=True))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.vector_norm(weight, dim=self.over, keepdim=True), weight


def _normalized(conv: nn.Module, channel_dim: int) -> nn.Module:
    return register_parametrization(conv, "weight", WeightNorm(channel_dim))


class ResidualBlock(nn.Module):
    """h + conv(a(conv(a(h)))) with a = ReLU∘norm: He et al. 2016b, figure 1b.

    3-3 convolutions, or with ``bottleneck`` 1-3-1 at half the channels. The last convolution starts
    at zero, so a new block is the identity and depth costs nothing at the start.
    """

    def __init__(self, channels: int, options: _Options) -> None:
        super().__init__()
        width = max(1, channels // 2) if options.bottleneck else channels
        kernels = (1, 3, 1) if options.bottleneck else (3, 3)
        widths = (channels, *[width] * (len(kernels) - 1), channels)
        self.norms: nn.ModuleList = nn.ModuleList(options.norm(before) for before in widths[:-1])
        self.convs: nn.ModuleList = nn.ModuleList(
            options.conv(before, after, kernel)
            for before, after, kernel in zip(widths[:-1], widths[1:], kernels, strict=True)
        )
        # Under weight normalization the gain is zeroed: a zero direction would divide 0 by 0.
        last: nn.Module = self.convs[-1]
        gain = last.parametrizations.weight.original0 if options.weight_norm else last.weight  # type: ignore[union-attr]
        nn.init.zeros_(gain)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, h: Float[Tensor, "batch channels height width"]) -> Tensor:
        step = h
        for norm, conv in zip(self.norms, self.convs, strict=True):
            step = conv(F.relu(norm(step)))
        return h + step


class ConvEncoder(PictureNetwork):
    """Pictures → features.

        conv 3×3 C→base;  per scale [blocks × ResidualBlock(c), conv 3×3 stride 2 c→2c];
        norm, ReLU, flatten

    Each halving takes H to ⌈H/2⌉. Any leading dimensions are batch, also when one is 0. Twice
    differentiable almost everywhere. The layout is that of the convolutional network of
    fmu2/flow-VAE; there the first activation of a block is left out, batch statistics couple the
    examples, and MNIST is halved twice, because its decoder cannot come back to odd sizes.

    Of the normalizations, after 1,000 steps on thresholded MNIST (base 8, two halvings, batch 64,
    Adam 1e-3, one seed) group had a validation −ELBO of 92.2 nats, layer 93.5, none 94.2, batch
    91.5; at 3e-3 they had 91.0, 92.4, 91.8 and 93.2.

    Args:
        in_shape: (C, H, W), any H, W ≥ 1.
        base: channels of the first convolution; they double at each scale.
        scales: number of halvings; None takes three, or as many as leave both sides at 2 or more.
        blocks: residual blocks at each scale.
        bottleneck: residual blocks 1-3-1 instead of 3-3.
        weight_norm: weight-normalized convolutions (Salimans and Kingma 2016).
        normalization: ``"group"`` (up to eight groups), ``"layer"`` (one group), ``"none"``, or
            ``"batch"``, which couples the examples of a batch in training.

    Attributes:
        features: size of what comes out, base·2^scales·h·w.
        couples_examples: whether in training the output for one example depends on the others.

    Raises:
        SpecError: a size that is not positive, more scales than the picture allows, an unknown
            normalization.
        ShapeError: an input that does not end in ``in_shape``, or of another dtype than the
            parameters.

    Example:
        >>> import torch
        >>> encoder = ConvEncoder((1, 28, 28), base=8)
        >>> encoder.features, encoder(torch.zeros(2, 3, 1, 28, 28)).shape
        (1024, torch.Size([2, 3, 1024]))
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        base: int = 32,
        scales: int | None = None,
        blocks: int = 1,
        bottleneck: bool = False,
        weight_norm: bool = False,
        normalization: str = "group",
    ) -> None:
        super().__init__()
        self.in_shape: tuple[int, ...] = as_picture("in_shape", in_shape)
        as_shape("base", base), as_shape("blocks", blocks)
        options = _Options(bottleneck, weight_norm, normalization)
        sizes = pyramid(self.in_shape, scales)
        channels = base
        layers: list[nn.Module] = [options.conv(self.in_shape[0], base)]
        for _ in sizes[1:]:
            layers += [ResidualBlock(channels, options) for _ in range(blocks)]
            layers.append(options.conv(channels, 2 * channels, stride=2))
            channels *= 2
        self.layers: nn.Sequential = nn.Sequential(*layers, options.norm(channels), nn.ReLU())
        self.features: int = channels * math.prod(sizes[-1])
        self.out_shape: tuple[int, ...] = (self.features,)
        self.couples_examples: bool = normalization == "batch"


class ConvDecoder(PictureNetwork):
    """Latents → pictures of exactly (C, H, W): the mirror image of :class:`ConvEncoder`.

        linear D→c·h·w;  per scale [blocks × ResidualBlock(c), transposed conv 3×3 stride 2 c→c/2];
        norm, ReLU, conv 3×3 base→C

    Odd sizes come back exactly: each doubling knows the size it must reach. What comes out has no
    activation; a likelihood reads it as logits or means. Arguments, attributes and errors as
    :class:`ConvEncoder`, with:

    Args:
        in_features: D.
        out_shape: (C, H, W), any H, W ≥ 1.

    Example:
        >>> import torch
        >>> ConvDecoder(2, (3, 7, 10), base=4)(torch.zeros(5, 6, 2)).shape
        torch.Size([5, 6, 3, 7, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_shape: Sequence[int],
        base: int = 32,
        scales: int | None = None,
        blocks: int = 1,
        bottleneck: bool = False,
        weight_norm: bool = False,
        normalization: str = "group",
    ) -> None:
        super().__init__()
        self.in_shape: Shape = as_shape("in_features", in_features)
        self.out_shape: tuple[int, ...] = as_picture("out_shape", out_shape)
        as_shape("base", base), as_shape("blocks", blocks)
        options = _Options(bottleneck, weight_norm, normalization)
        sizes = pyramid(self.out_shape, scales)
        channels = base * 2 ** (len(sizes) - 1)
        self.start: tuple[Any, int, int] = (channels, *sizes[-1])
        self.first: Linear = Linear(in_features, math.prod(self.start))
        layers: list[nn.Module] = []
        for coarse, fine in zip(sizes[:0:-1], sizes[-2::-1], strict=True):
            layers += [ResidualBlock(channels, options) for _ in range(blocks)]
            layers.append(options.up(channels, channels // 2, coarse, fine))
            channels //= 2
        layers += [options.norm(base), nn.ReLU(), options.conv(base, self.out_shape[0])]
        self.layers: nn.Sequential = nn.Sequential(*layers)
        self.features: int = math.prod(self.out_shape)
        self.couples_examples: bool = normalization == "batch"

    def rows(self, x: Tensor) -> Tensor:
        return super().rows(self.first(x).reshape(-1, *self.start))


def pyramid(shape: Sequence[int], scales: int | None = None) -> list[tuple[int, int]]:
    """(H, W), (⌈H/2⌉, ⌈W/2⌉), …: the sizes at each scale of a picture (C, H, W).

    Raises:
        SpecError: more ``scales`` than leave both sides at 2 or more.
    """
    sizes = [(shape[-2], shape[-1])]
    while min(coarser := tuple((side + 1) // 2 for side in sizes[-1])) >= 2:
        sizes.append((coarser[0], coarser[1]))
    largest = len(sizes) - 1
    if scales is None:
        scales = min(3, largest)
    if not isinstance(scales, int) or isinstance(scales, bool) or not 0 <= scales <= largest:
        raise SpecError(
            f"scales: was {scales!r}; pictures of {shape[-2]}×{shape[-1]} can be halved {largest} "
            f"times at most before a side falls below 2: use 0 to {largest}, or leave it out"
        )
    return sizes[: scales + 1]
