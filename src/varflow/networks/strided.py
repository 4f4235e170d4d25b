"""The plain strided convolutional pair: no residual branches, dense layers at the narrow end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varflow.core.errors import SpecError, unknown
from varflow.core.settings import Odd, Settings, Size, Widths, settings, widths
from varflow.networks.linear import Linear
from varflow.networks.mlp import ACTIVATIONS, ActivationName, Shape, as_shape
from varflow.networks.pictures import (
    Normalization,
    PictureNetwork,
    as_picture,
    normalized,
    pictures,
)

UPSAMPLINGS = ("transposed", "nearest")


@settings("StridedEncoder")
class StridedSettings(Settings):
    """The plain strided convolutional pair."""

    channels: Annotated[str, "Channels after each halving of the picture.", Widths()] = "16-32-32"
    up_channels: Annotated[
        str | None,
        "Channels of the decoder before each doubling; without it those of channels, backwards.",
        Widths(),
    ] = None
    stem: Annotated[
        int, "Channels of an encoder convolution before the first halving; 0 for none.", Size(0)
    ] = 0
    head: Annotated[
        int,
        "Channels of the decoder after the last doubling, before its last convolution; 0 for none.",
        Size(0),
    ] = 0
    kernel: Annotated[int, "Side of the convolutions' kernels, odd.", Odd()] = 5
    up: Annotated[
        Literal["transposed", "nearest"],
        "Doublings by transposed convolutions, or by a convolution and copied pixels.",
    ] = "transposed"
    up_kernel: Annotated[
        int | None,
        "Side of the transposed convolutions' kernels; without it that of kernel.",
        Size(),
    ] = None
    dense: Annotated[
        int,
        "Width of the fully connected layer between convolutions and latents; 0 for none.",
        Size(0),
    ] = 450
    activation: Annotated[ActivationName, "Activation of every layer."] = "relu"
    normalization: Annotated[
        Normalization,
        "Normalisation after each activation; batch couples the examples of a batch.",
    ] = "group"

    def encoder(self, event_shape: Shape, latent: int) -> nn.Module:
        shape = pictures("strided", event_shape)
        return StridedEncoder(shape, widths(self.channels), self.stem, **self._options())

    def decoder(self, latent: int, out_shape: Shape) -> nn.Module:
        channels = widths(self.up_channels) if self.up_channels else widths(self.channels)[::-1]
        return StridedDecoder(
            latent, pictures("strided", out_shape), channels, self.head, up=self.up, up_kernel=self.up_kernel,
            **self._options(),
        )  # fmt: skip

    def _options(self) -> dict[str, Any]:
        dense = (self.dense,) if self.dense else ()
        names = ("kernel", "activation", "normalization")
        return {"dense": dense, **{name: getattr(self, name) for name in names}}


class StridedEncoder(PictureNetwork):
    """Pictures → features.

        [conv k×k C→stem, a];  per entry c of ``channels`` [conv k×k stride 2 →c, a];  flatten;
        per entry of ``dense`` [linear, a];           a: the activation, then the normalization

    Each halving takes H to ⌈H/2⌉. Any leading dimensions are batch, also when one is 0. Twice differentiable as
    far as the activation is. Covers the encoders of three programs: anthonycaterini/hvae-nips (the defaults; its
    padding is asymmetric), Daniil-Selikhanovych/h-vae (``normalization="group"``; batch statistics there), and
    henrhoi/vae-pytorch (``stem=32, channels=(64, 128, 256), kernel=3, dense=(), activation="relu"``).

    Args:
        in_shape: (C, H, W).
        channels: channels after each halving.
        stem: channels of a convolution before the first halving; 0 for none.
        kernel: side of the kernels, odd.
        dense: widths of fully connected layers at the end; () for none.
        activation: relu, tanh, softplus, elu, gelu or silu.
        normalization: after each activation ``"none"``, ``"group"`` (up to eight groups), ``"layer"``, or
            ``"batch"``, which couples the examples of a batch in training.

    Attributes:
        features: size of what comes out.
        couples_examples: whether in training the output for one example depends on the others.

    Raises:
        SpecError: a size that is not positive, an even kernel, a picture too small for so many halvings, an
            unknown activation or normalization.
        ShapeError: an input that does not end in ``in_shape``, or of another dtype than the parameters.

    Example:
        >>> import torch
        >>> encoder = StridedEncoder((1, 28, 28))
        >>> encoder.features, encoder(torch.zeros(2, 3, 1, 28, 28)).shape
        (450, torch.Size([2, 3, 450]))
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: Sequence[int] = (16, 32, 32),
        stem: int = 0,
        kernel: int = 5,
        dense: Sequence[int] = (450,),
        activation: str = "softplus",
        normalization: str = "none",
    ) -> None:
        super().__init__()
        self.in_shape: tuple[int, ...] = as_picture("in_shape", in_shape)
        channels, dense = as_shape("channels", channels), as_shape("dense", dense)
        stage = _Stage(activation, normalization)
        sizes = halvings(self.in_shape, len(channels))
        padding = _odd("kernel", kernel) // 2
        layers: list[nn.Module] = []
        before = self.in_shape[0]
        if stem:
            as_shape("stem", stem)
            layers += [nn.Conv2d(before, stem, kernel, padding=padding), *stage(stem)]
            before = stem
        for after in channels:
            layers += [nn.Conv2d(before, after, kernel, 2, padding), *stage(after)]
            before = after
        layers.append(nn.Flatten())
        before *= math.prod(sizes[-1])
        for after in dense:
            layers += [Linear(before, after), *stage(after, flat=True)]
            before = after
        self.layers: nn.Sequential = _channels_last(nn.Sequential(*layers))
        self.features = before
        self.out_shape: tuple[int, ...] = (before,)
        self.couples_examples: bool = normalization == "batch"


class StridedDecoder(PictureNetwork):
    """Latents → pictures of exactly (C, H, W), whatever their size.

        per entry of ``dense`` [linear, a];  linear → channels[0]·h·w, a;
        per further entry c of ``channels``, then ``head`` or C:  double to c channels[, a];
        [conv k×k head→C]

    A doubling is a transposed convolution of stride 2, or with ``up="nearest"`` a convolution and then copied
    pixels; it knows the size it must reach. What comes out has no activation: a likelihood reads it as logits or
    means. Covers the decoders of the same three programs as :class:`StridedEncoder`: hvae-nips (the defaults);
    h-vae (``up="nearest", head=16, normalization="group"``); vae-pytorch (``channels=(128, 128, 64), head=32,
    kernel=3, up_kernel=4, dense=(), activation="relu"``).

    Args:
        in_features: D.
        out_shape: (C, H, W).
        channels: channels before each doubling, the coarsest first.
        head: channels after the last doubling, which a convolution takes to C; with 0 the last doubling ends in C.
        kernel: side of the kernels of convolutions, odd.
        up: ``"transposed"`` or ``"nearest"``.
        up_kernel: side of the kernels of transposed convolutions, 2 or more; None for ``kernel``.
        dense: widths of fully connected layers at the start; () for none.
        activation, normalization: as :class:`StridedEncoder`; the normalization stands before every layer but
            the first and the last.

    Raises:
        SpecError, ShapeError: as :class:`StridedEncoder`.

    Example:
        >>> import torch
        >>> StridedDecoder(2, (3, 9, 14))(torch.zeros(5, 6, 2)).shape
        torch.Size([5, 6, 3, 9, 14])
    """

    def __init__(
        self,
        in_features: int,
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 32, 16),
        head: int = 0,
        kernel: int = 5,
        up: str = "transposed",
        up_kernel: int | None = None,
        dense: Sequence[int] = (450,),
        activation: str = "softplus",
        normalization: str = "none",
    ) -> None:
        super().__init__()
        if up not in UPSAMPLINGS:
            raise unknown("up", up, UPSAMPLINGS)
        self.in_shape: Shape = as_shape("in_features", in_features)
        self.out_shape: tuple[int, ...] = as_picture("out_shape", out_shape)
        channels, dense = as_shape("channels", channels), as_shape("dense", dense)
        if not channels:
            raise SpecError(
                "channels: was empty; give the channels before each doubling, e.g. (32, 32, 16)"
            )
        stage = _Stage(activation, normalization)
        sizes = halvings(self.out_shape, len(channels))
        padding = _odd("kernel", kernel) // 2
        before = in_features
        layers: list[nn.Module] = []
        for after in dense:
            layers += [Linear(before, after), *stage(after, flat=True)]
            before = after
        start = (channels[0], *sizes[-1])
        layers += [Linear(before, math.prod(start)), nn.Unflatten(1, start), *stage(channels[0])]
        if head:
            as_shape("head", head)
        widths = (*channels, head or self.out_shape[0])
        for number, (coarse, fine) in enumerate(
            zip(sizes[:0:-1], sizes[-2::-1], strict=True), start=1
        ):
            before, after = widths[number - 1], widths[number]
            last = number == len(channels)
            following = [] if last and not head else stage(after, normalize=not last)
            if up == "nearest":
                # Activations are computed before the pixels are copied, a quarter of the work for the same result.
                activate, normalize = following[:1], following[1:]
                layers += [
                    nn.Conv2d(before, after, kernel, padding=padding),
                    *activate,
                    Nearest(fine),
                    *normalize,
                ]
            else:
                layers += [_doubling(before, after, up_kernel or kernel, coarse, fine), *following]
        if head:
            layers.append(nn.Conv2d(head, self.out_shape[0], kernel, padding=padding))
        self.layers: nn.Sequential = _channels_last(nn.Sequential(*layers))
        self.features: int = math.prod(self.out_shape)
        self.couples_examples: bool = normalization == "batch"


class Nearest(nn.Module):
    """Each pixel of a finer picture is a copy of the one it lies in."""

    def __init__(self, size: Shape) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=list(self.size), mode="nearest")

    def extra_repr(self) -> str:
        return f"size={self.size}"


class Activation(nn.Module):
    """A function of :data:`varflow.networks.mlp.ACTIVATIONS` as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in ACTIVATIONS:
            raise unknown("activation", name, ACTIVATIONS)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.name](x)

    def extra_repr(self) -> str:
        return self.name


class _Stage:
    """What follows a linear layer or a convolution: the activation, then the normalization."""

    def __init__(self, activation: str, normalization: str) -> None:
        self.activation, self.normalization = activation, normalization
        normalized(normalization, 1)  # refuses an unknown one also where no layer asks for it

    def __call__(
        self, channels: int, flat: bool = False, normalize: bool = True
    ) -> list[nn.Module]:
        made: list[nn.Module] = [Activation(self.activation)]
        if normalize and self.normalization != "none":
            made.append(normalized(self.normalization, channels, flat))
        return made


def halvings(shape: Sequence[int], count: int) -> list[Shape]:
    """(H, W), (⌈H/2⌉, ⌈W/2⌉), …: the sizes of a picture (C, H, W) after 0, …, ``count`` halvings.

    Raises:
        SpecError: a side is 1 before the last halving, so that it would halve nothing.
    """
    sizes: list[Shape] = [(shape[-2], shape[-1])]
    for done in range(count):
        height, width = sizes[-1]
        if min(height, width) < 2:
            raise SpecError(
                f"channels: has {count} entries, one for each halving; pictures of {shape[-2]}×{shape[-1]} can be "
                f"halved {done} times: give {done or 'no'} {'entry' if done == 1 else 'entries'} at most"
            )
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _doubling(before: int, after: int, kernel: int, coarse: Shape, fine: Shape) -> nn.Module:
    """A transposed convolution of stride 2 from ``coarse`` to exactly ``fine``."""
    if kernel < 2:
        raise SpecError(
            f"up_kernel: was {kernel}; a stride of 2 needs 2 or more, or pixels are left out"
        )
    # The size is 2·(coarse − 1) − 2·padding + kernel + extra, with extra 0 or 1.
    spare = [2 * (c - 1) + kernel - f for c, f in zip(coarse, fine, strict=True)]
    padding = [(s + 1) // 2 for s in spare]
    extra = [2 * p - s for p, s in zip(padding, spare, strict=True)]
    return nn.ConvTranspose2d(
        before,
        after,
        kernel,
        2,
        padding=(padding[0], padding[1]),
        output_padding=(extra[0], extra[1]),
    )


def _channels_last(layers: nn.Sequential) -> nn.Sequential:
    """Kernels with their channels innermost in memory, which their results inherit.

    With so few channels a gradient step of 1,024 pictures then takes 0.24 s in place of 0.50 s on one core.
    """
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _odd(name: str, kernel: int) -> int:
    as_shape(name, kernel)
    if kernel % 2 == 0:
        raise SpecError(f"{name}: was {kernel}; use an odd number, e.g. 3 or 5")
    return kernel
