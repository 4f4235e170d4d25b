"""The convolutional pair of a vector-quantized model: pictures to grids of vectors, and back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import SpecError
from varflow.core.settings import Settings, Size, settings
from varflow.networks.conv import _Options
from varflow.networks.mlp import Shape, as_shape
from varflow.networks.pictures import Normalization, PictureNetwork, as_picture, pictures


@settings("VQEncoder")
class GridSettings(Settings):
    """Pictures to grids of vectors and back, for a quantizer."""

    scales: Annotated[int | None, "Halvings of the picture; without it two.", Size()] = None
    blocks: Annotated[int, "Residual blocks.", Size()] = 1
    normalization: Annotated[
        Normalization, "Normalisation of the networks; batch couples the examples of a batch."
    ] = "group"

    def check(self, spec: Any) -> None:
        if spec.get("posterior") != "quantizer":
            raise SpecError(
                "network: grid makes grids of vectors for a quantizer; use posterior=quantizer, or "
                "network=conv"
            )

    def encoder(self, event_shape: Shape, latent: int) -> nn.Module:
        return VQEncoder(pictures("grid", event_shape, _CODES), latent, *self._options())

    def decoder(self, latent: int, out_shape: Shape) -> nn.Module:
        return VQDecoder(pictures("grid", out_shape, _CODES), latent, *self._options())

    def _options(self) -> tuple[int, int, Normalization]:
        return self.scales or 2, self.blocks, self.normalization


_CODES = "a quantizer codes pictures"


class GridBlock(nn.Module):
    """h + conv 1×1(a(conv 3×3(a(h)))), a = ReLU∘norm; the last convolution starts at zero."""

    def __init__(self, channels: int, options: _Options) -> None:
        super().__init__()
        self.norms: nn.ModuleList = nn.ModuleList(options.norm(channels) for _ in range(2))
        self.wide: nn.Conv2d = nn.Conv2d(channels, channels, 3, padding=1)
        self.last: nn.Conv2d = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def forward(self, h: Float[Tensor, "batch channels height width"]) -> Tensor:
        first, second = self.norms
        # In place, but for h itself, which is still needed where there is no norm.
        inner = F.relu(first(h), inplace=not isinstance(first, nn.Identity))
        step: Tensor = self.last(F.relu(second(self.wide(inner)), inplace=True))
        return step.add_(h)


class _Up(nn.ConvTranspose2d):
    """A transposed convolution that adds its bias afterwards.

    On the CPU the gradient of a bias inside took a quarter of the whole backward pass; the sum alone takes 2 % of it.
    """

    def forward(self, h: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding, extra = self.padding, self.output_padding
        out = F.conv_transpose2d(h, self.weight, None, self.stride, padding, extra)  # type: ignore[arg-type]
        assert self.bias is not None
        return out.add_(self.bias.to(out.dtype).unsqueeze(-1).unsqueeze(-1))


class _Grid(PictureNetwork):
    def rows(self, x: Tensor) -> Tensor:
        # Channels last: convolutions are faster so, and the vectors of a grid lie side by side.
        h = x.contiguous(memory_format=torch.channels_last)
        if torch.is_autocast_enabled(h.device.type):
            # Else a residual block adds to a float32 grid what its convolutions leave in bfloat16.
            h = h.to(torch.get_autocast_dtype(h.device.type))
        return super().rows(h)


class VQEncoder(_Grid):
    """Pictures → a grid of vectors, one for each square of 2^scales pixels.

        conv 4×4 stride 2 C→D;  (scales − 1) × [norm, ReLU, conv 4×4 stride 2 D→D];  blocks × residual block

    Each halving takes H to ⌊H/2⌋. The layout is that of ``vq_vae.py`` of henrhoi/vae-pytorch; there batch
    statistics couple the examples, which is ``normalization="batch"`` here.

    Args:
        in_shape: (C, H, W), both sides at least 2^scales.
        features: D, channels of every layer and size of a vector.
        scales: halvings.
        blocks: residual blocks.
        normalization: ``"group"``, ``"layer"``, ``"none"`` or ``"batch"``.

    Attributes:
        out_shape: (D, ⌊H/2^scales⌋, ⌊W/2^scales⌋).
        features: how many numbers come out.
        couples_examples: whether in training the output for one example depends on the others.

    Raises:
        SpecError: a size that is not positive, a picture too small, an unknown normalization.
        ShapeError: an input that does not end in ``in_shape``, or of another dtype than the parameters.

    Example:
        >>> import torch
        >>> encoder = VQEncoder((3, 32, 32), features=16)
        >>> encoder(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        features: int = 256,
        scales: int = 2,
        blocks: int = 2,
        normalization: str = "group",
    ) -> None:
        super().__init__()
        self.in_shape: tuple[int, ...] = as_picture("in_shape", in_shape)
        sizes = grids(self.in_shape, scales)
        as_shape("features", features), as_shape("blocks", blocks)
        options = _Options(False, False, normalization)
        layers: list[nn.Module] = [nn.Conv2d(self.in_shape[0], features, 4, 2, padding=1)]
        for _ in sizes[2:]:
            layers += [options.norm(features), nn.ReLU(inplace=True)]
            layers.append(nn.Conv2d(features, features, 4, 2, padding=1))
        self.layers: nn.Sequential = nn.Sequential(*layers, *(GridBlock(features, options) for _ in range(blocks)))
        self.out_shape: tuple[int, ...] = (features, *sizes[-1])
        self.features: int = prod(self.out_shape)
        self.couples_examples: bool = normalization == "batch"


class VQDecoder(_Grid):
    """A grid of vectors → pictures of exactly (C, H, W): the mirror image of :class:`VQEncoder`.

        blocks × residual block;  (scales − 1) × [norm, ReLU, transposed conv 4×4 stride 2 D→D];
        norm, ReLU, transposed conv 4×4 stride 2 D→C

    What comes out has no activation; a likelihood reads it as logits or means. Arguments, attributes and errors as
    :class:`VQEncoder`, with:

    Args:
        out_shape: (C, H, W) of the pictures; odd sides come back exactly.

    Attributes:
        in_shape: (D, ⌊H/2^scales⌋, ⌊W/2^scales⌋).

    Example:
        >>> import torch
        >>> VQDecoder((1, 7, 10), features=8, scales=1)(torch.zeros(2, 8, 3, 5)).shape
        torch.Size([2, 1, 7, 10])
    """

    def __init__(
        self,
        out_shape: Sequence[int],
        features: int = 256,
        scales: int = 2,
        blocks: int = 2,
        normalization: str = "group",
    ) -> None:
        super().__init__()
        self.out_shape: tuple[int, ...] = as_picture("out_shape", out_shape)
        sizes = grids(self.out_shape, scales)
        as_shape("features", features), as_shape("blocks", blocks)
        options = _Options(False, False, normalization)
        self.in_shape: tuple[int, ...] = (features, *sizes[-1])
        layers: list[nn.Module] = [GridBlock(features, options) for _ in range(blocks)]
        for coarse, fine in zip(sizes[:0:-1], sizes[-2::-1], strict=True):
            channels = self.out_shape[0] if fine == sizes[0] else features
            padding = (fine[0] - 2 * coarse[0], fine[1] - 2 * coarse[1])
            up = _Up(features, channels, 4, 2, padding=1, output_padding=padding)
            layers += [options.norm(features), nn.ReLU(inplace=True), up]
        self.layers: nn.Sequential = nn.Sequential(*layers)
        self.features: int = prod(self.out_shape)
        self.couples_examples: bool = normalization == "batch"


def grids(shape: Sequence[int], scales: int) -> list[tuple[int, int]]:
    """(H, W), (⌊H/2⌋, ⌊W/2⌋), …: the sizes at each halving.

    Raises:
        SpecError: ``scales`` is no positive integer, or more than leave both sides at 1.
    """
    as_shape("scales", scales)
    sizes = [(shape[-2] >> level, shape[-1] >> level) for level in range(scales + 1)]
    if min(sizes[-1]) < 1:
        largest = min(shape[-2:]).bit_length() - 1
        mend = f"use 1 to {largest}" if largest else "it has no pixels to halve"
        raise SpecError(
            f"scales: was {scales}; pictures of {shape[-2]}×{shape[-1]} can be halved {largest} times: {mend}"
        )
    return sizes
