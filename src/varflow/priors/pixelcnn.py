"""PixelCNN: a stack of masked convolutions over a grid of codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varflow.core.errors import positive, unknown
from varflow.core.settings import Odd, Size, settings
from varflow.networks.linear import Linear
from varflow.networks.masked import MaskedConv
from varflow.priors.by_class import ByClass
from varflow.priors.code_grid import AutoregressiveGrid, CodeGridSettings, Walk
from varflow.priors.prior import Prior

NORMALIZATIONS = ("layer", "none")
#: A masked convolution, of a whole grid or of one position.
Convolve = Callable[[Tensor], Tensor]


@settings("PixelCNN")
class PixelCNNSettings(CodeGridSettings):
    """A network over a grid of codes; it is fitted as a code prior, with a budget and an optimizer of its own."""

    prior_length: Annotated[int, "Residual blocks, or gated layers.", Size()] = 5
    prior_channels: Annotated[int, "Channels.", Size()] = 64
    prior_kernel: Annotated[int, "Side of the kernels, odd.", Odd(3)] = 7
    prior_embedding: Annotated[int, "Features of an embedded code.", Size()] = 64
    prior_hidden: Annotated[
        int | None,
        "Channels of the layer before the logits; without it the family's default.",
        Size(),
    ] = None
    classes: Annotated[
        int, "Condition on labels 0 … classes − 1; 0 for no labels.", Size(0)
    ] = 0

    roles: ClassVar[tuple[str, ...]] = ("code_prior", "prior_optimizer")

    def build(self, part: Any, grid: Any, codes: Any) -> Prior:
        options = {"hidden": self.prior_hidden} if self.prior_hidden else {}
        made = part(
            grid,
            codes,
            channels=self.prior_channels,
            layers=self.prior_length,
            kernel=self.prior_kernel,
            embedding=self.prior_embedding,
            classes=self.classes or None,
            **options,
        )
        return ByClass(made) if self.classes else made


class Block(nn.Module):
    """h + 1×1(a(k×k(a(1×1(a(h)))))), a = ReLU after a norm over channels; van den Oord et al. 2016a, figure 5.

    The last convolution starts at zero, so a new block is the identity.
    """

    def __init__(self, channels: int, width: int, kernel: int, normalization: str) -> None:
        super().__init__()
        sizes = (channels, width, width)
        self.norms: nn.ModuleList = nn.ModuleList(norm(normalization, size) for size in sizes)
        self.down: Linear = Linear(channels, width)
        self.conv: MaskedConv = MaskedConv(width, width, kernel, mask="B")
        self.up: Linear = Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor, shift: Tensor | None, convolve: Convolve) -> Tensor:
        """``h`` ``[..., C]``, with ``convolve`` standing for the masked convolution where it is."""
        first, second, third = self.norms
        inner = self.down(F.relu(first(h)))
        if shift is not None:
            inner = inner + shift
        inner = convolve(F.relu(second(inner)))
        step: Tensor = self.up(F.relu(third(inner)))
        return h + step


class PixelCNN(AutoregressiveGrid):
    """p(z) = Π p(z_ij | above, left) with masked convolutions: van den Oord, Kalchbrenner, Kavukcuoglu 2016.

        embedding; conv k×k mask A; layers × residual block (1×1, k×k mask B, 1×1); 1×1, ReLU, 1×1 → K logits

    A new prior is uniform over codes. Different from the paper: codes are embedded, there is one order of
    channels, blocks are pre-activation, and each has its norm over the channels of one position; statistics of a
    batch or of a picture would let a position see later ones. Classes shift the inside of each block.

    A position never sees those of the row above that are more than k//2 columns to the right of it, and so on
    upwards: the blind spot of stacked masks. :class:`~varflow.priors.GatedPixelCNN` has none.

    Cost: log_prob one pass; sampling one pass of work too, in H·W short steps: what the rows above say is computed
    a row at a time, and each activation once.

    Args:
        shape: (H, W).
        codes: K.
        channels: C.
        layers: residual blocks.
        kernel: k of the masked convolutions, odd, 3 or more.
        embedding: features of an embedded code.
        hidden: channels of the 1×1 layer before the logits.
        normalization: ``"layer"`` over channels, or ``"none"``.
        classes: condition on one of so many classes: labels are the ``context`` of ``log_prob``.

    Raises:
        SpecError: a size that is not positive, an even kernel, an unknown normalization.

    Example:
        >>> import torch
        >>> prior = PixelCNN((3, 4), codes=5, channels=8, layers=1, kernel=3)
        >>> z = prior.sample((2,))
        >>> z.shape, prior.log_prob(z).shape
        (torch.Size([2, 3, 4]), torch.Size([2]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        codes: int,
        channels: int = 64,
        layers: int = 10,
        kernel: int = 7,
        embedding: int = 64,
        hidden: int = 512,
        normalization: str = "layer",
        classes: int | None = None,
    ) -> None:
        super().__init__(shape, codes, embedding, classes)
        positive(channels=channels, layers=layers, hidden=hidden)
        width = max(1, channels // 2)
        self.first: MaskedConv = MaskedConv(embedding, channels, kernel, mask="A")
        self.blocks: nn.ModuleList = nn.ModuleList(
            Block(channels, width, kernel, normalization) for _ in range(layers)
        )
        self.shifts: nn.Embedding | None = None if classes is None else zero_embedding(classes, layers * width)
        self.head: nn.Sequential = nn.Sequential(
            norm(normalization, channels),
            nn.ReLU(),
            Linear(channels, hidden),
            nn.ReLU(),
            zero_linear(hidden, codes),
        )

    def _logits(self, embedded: Tensor, labels: Tensor | None) -> Tensor:
        h = self.first(embedded)
        for block, shift in zip(self._blocks, self._shifts(labels), strict=True):
            h = block(h, None if shift is None else shift[:, None, None], block.conv)
        out: Tensor = self.head(h)
        return out

    def _walk(self, batch: int, labels: Tensor | None) -> Walk:
        height, width = self.event_shape
        shifts = self._shifts(labels)
        first = self.first.stream(batch, width)
        streams = [block.conv.stream(batch, width) for block in self._blocks]
        for _ in range(height):
            for stream in (first, *streams):
                stream.start()
            for column in range(width):
                h = first.get(column)
                for block, shift, stream in zip(self._blocks, shifts, streams, strict=True):
                    h = block(h, shift, partial(stream.step, column))
                code = yield self.head(h)
                first.put(column, self.embed(code))

    @property
    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _shifts(self, labels: Tensor | None) -> Sequence[Tensor | None]:
        if labels is None or self.shifts is None:
            return [None] * len(self.blocks)
        return self.shifts(labels).chunk(len(self.blocks), -1)


def norm(normalization: str, channels: int) -> nn.Module:
    """A norm over the channels of one position."""
    if normalization not in NORMALIZATIONS:
        raise unknown("normalization", normalization, NORMALIZATIONS)
    return nn.LayerNorm(channels) if normalization == "layer" else nn.Identity()


def zero_linear(before: int, after: int) -> Linear:
    """A linear layer that starts at zero."""
    layer = Linear(before, after)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_embedding(count: int, features: int) -> nn.Embedding:
    """An embedding that starts at zero: a new conditional prior does not know its classes yet."""
    return nn.Embedding(count, features, _weight=torch.zeros(count, features))
