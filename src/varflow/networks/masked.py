"""Masked convolutions over grids: what comes out at a position sees the positions before it alone.

Positions are read row by row, left to right. Tensors are ``[B, H, W, C]``, channels last, so that a layer norm
or a 1×1 convolution is a product over the last dimension, on whole grids and on single columns alike.

Every convolution here can also be *walked*: a stream keeps the inputs that are still in sight and computes each
output once, when its inputs are there. That is what makes sampling cost one pass instead of H·W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import SpecError, positive
from varflow.networks.linear import linear, uniform


class RowConv(nn.Module):
    """A convolution that sees the last ``rows`` rows, its own included, k columns wide.

    Out[i, j] depends on in[i − rows + 1 … i, j − k//2 … j + k//2]; zeros beyond the edges. Only after
    :func:`shift_down` is it causal: its own row is then the row above. As the vertical stack of van den Oord et al.
    2016b, figure 1.

    Args:
        in_channels: channels in.
        channels: channels out.
        rows: rows in sight.
        kernel: k, odd.
        bias: add a bias.

    Raises:
        SpecError: a size that is not positive, an even kernel.
    """

    def __init__(
        self, in_channels: int, channels: int, rows: int, kernel: int, bias: bool = True
    ) -> None:
        super().__init__()
        positive(in_channels=in_channels, channels=channels, rows=rows)
        check_kernel(kernel)
        self.rows: int = rows
        self.kernel: int = kernel
        fan_in = in_channels * rows * kernel
        self.weight: nn.Parameter = uniform(channels, in_channels, rows, kernel, fan_in=fan_in)
        self.bias: nn.Parameter | None = uniform(channels, fan_in=fan_in) if bias else None

    def forward(
        self, x: Float[Tensor, "batch height width before"]
    ) -> Float[Tensor, "batch height width after"]:
        """All positions at once."""
        side = self.kernel // 2
        padded = F.pad(x, (0, 0, side, side, self.rows - 1, 0))
        return _conv(padded, self.weight, self.bias)

    def stream(self) -> RowStream:
        """The same convolution, a row at a time."""
        return RowStream(self)


class RowStream:
    """Rows in, rows out: the state of a :class:`RowConv` while a grid is walked."""

    def __init__(self, conv: RowConv) -> None:
        self.rows: int = conv.rows
        self.side: int = conv.kernel // 2
        self.bias: nn.Parameter | None = conv.bias
        # One matrix [out, rows·in] for each column offset.
        self.offsets: tuple[Tensor, ...] = conv.weight.permute(3, 0, 2, 1).flatten(2).unbind(0)
        self.seen: list[Tensor] = []

    def __call__(
        self, row: Float[Tensor, "batch width before"]
    ) -> Float[Tensor, "batch width after"]:
        """The next row of outputs, from the next row of inputs.

        One product for each column offset, over the columns and rows that exist: nothing is multiplied by padding.
        """
        self.seen = [*self.seen, row][-self.rows :]
        window = torch.cat(self.seen, -1)
        width, depth = row.shape[1], window.shape[-1]
        weights = [weight[:, -depth:] for weight in self.offsets]
        # The middle offset comes first, because it alone reaches every column.
        out = linear(window, weights[self.side], self.bias)
        for offset in range(-self.side, self.side + 1):
            if offset == 0 or abs(offset) >= width:
                continue
            low, high = max(0, -offset), min(width, width - offset)
            seen = window[:, low + offset : high + offset]
            out[:, low:high] += linear(seen, weights[offset + self.side])
        return out


class LeftConv(nn.Module):
    """A convolution along a row: out[i, j] depends on in[i, j − k//2 … j], or with ``centre=False`` … j − 1.

    The horizontal stack of van den Oord et al. 2016b, figure 1. Arguments as :class:`RowConv`, with:

    Args:
        centre: whether a position sees itself.

    Raises:
        SpecError: as :class:`RowConv`; a kernel of 1 without its centre, which would see nothing.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, centre: bool) -> None:
        super().__init__()
        positive(in_channels=in_channels, channels=channels)
        check_kernel(kernel, 1 if centre else 3)
        self.side: int = kernel // 2
        self.centre: bool = centre
        self.taps: int = self.side + centre
        fan_in = in_channels * self.taps
        self.weight: nn.Parameter = uniform(channels, in_channels, 1, self.taps, fan_in=fan_in)
        self.bias: nn.Parameter = uniform(channels, fan_in=fan_in)

    def forward(
        self, x: Float[Tensor, "batch height width before"]
    ) -> Float[Tensor, "batch height width after"]:
        """All positions at once."""
        padded = F.pad(x, (0, 0, self.side, 0 if self.centre else -1))
        return _conv(padded, self.weight, self.bias)

    def stream(self, batch: int, width: int) -> LeftStream:
        """The same convolution, a position at a time."""
        return LeftStream(self, batch, width)


class LeftStream:
    """The state of a :class:`LeftConv` while rows are walked from left to right, one after the other."""

    def __init__(self, conv: LeftConv, batch: int, width: int) -> None:
        self.taps: int = conv.taps
        self.side: int = conv.side
        self.bias: nn.Parameter = conv.bias
        self.matrix: Tensor = conv.weight.permute(0, 2, 3, 1).flatten(1)
        # Zeros to the left of column 0. What a row leaves behind is overwritten before the next one reads it.
        self.row: Tensor = conv.weight.new_zeros(batch, self.side + width, conv.weight.shape[1])

    def put(self, column: int, x: Float[Tensor, "batch before"]) -> None:
        """Input of the current row at ``column``."""
        self.row[:, self.side + column] = x

    def get(self, column: int) -> Float[Tensor, "batch after"]:
        """Output of the current row at ``column``, whose inputs have all been put."""
        window = self.row[:, column : column + self.taps].flatten(1)
        return linear(window, self.matrix, self.bias)


class MaskedConv(nn.Module):
    """The masked k×k convolution of PixelCNN: van den Oord et al. 2016a, section 3.4 and figure 2.

        out[i, j] = rows above, k wide, + the same row to the left (+ the centre, for mask B)

    Mask A leaves the centre out and belongs to the first layer; mask B keeps it. Different from the paper: the
    taps that a mask would zero are not stored and not computed, 24 or 25 of 49 for k = 7. :meth:`dense` gives the
    k×k kernel.

    Args:
        in_channels: channels in.
        channels: channels out.
        kernel: k, odd; 3 or more for mask A.
        mask: ``"A"`` or ``"B"``.

    Raises:
        SpecError: a size that is not positive, an even kernel, another mask.

    Example:
        >>> import torch
        >>> MaskedConv(2, 5, kernel=3, mask="A")(torch.zeros(1, 4, 4, 2)).shape
        torch.Size([1, 4, 4, 5])
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, mask: str) -> None:
        super().__init__()
        if mask not in ("A", "B"):
            raise SpecError(f"mask: was {mask!r}; use 'A' without the centre, or 'B' with it")
        self.mask = mask
        self.left: LeftConv = LeftConv(in_channels, channels, kernel, centre=mask == "B")
        side = kernel // 2
        self.above: RowConv | None = RowConv(in_channels, channels, side, kernel, bias=False) if side else None
        # Both parts are drawn for the number of inputs that a position has in all.
        fan_in = in_channels * (side * kernel + self.left.taps)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)

    def forward(
        self, x: Float[Tensor, "batch height width before"]
    ) -> Float[Tensor, "batch height width after"]:
        """All positions at once."""
        out = self.left(x)
        return out if self.above is None else out + shift_down(self.above(x))

    def dense(self) -> Float[Tensor, "after before kernel kernel"]:
        """The k×k kernel, zero from the centre on, or after it, as ``torch.nn.functional.conv2d`` takes it."""
        side, taps = self.left.side, self.left.taps
        row = F.pad(self.left.weight, (0, 2 * side + 1 - taps, 0, side))
        return row if self.above is None else torch.cat((self.above.weight, row), 2)

    def stream(self, batch: int, width: int) -> MaskedStream:
        """The same convolution, a position at a time."""
        return MaskedStream(self, batch, width)


class MaskedStream:
    """The state of a :class:`MaskedConv` while a grid is walked: ``start`` a row, then ``put`` and ``get``."""

    def __init__(self, conv: MaskedConv, batch: int, width: int) -> None:
        self.side: int = conv.left.side
        self.left: LeftStream = conv.left.stream(batch, width)
        self.rows: RowStream | None = None if conv.above is None else conv.above.stream()
        self.begun: bool = False
        self.above: Tensor | None = None

    def start(self) -> None:
        """Begin the next row: what the finished rows say to it is one product a column offset."""
        if self.begun and self.rows is not None:
            # The copy, because the columns of the finished row are about to be overwritten.
            self.above = self.rows(self.left.row[:, self.side :].clone())
        self.begun = True

    def put(self, column: int, x: Float[Tensor, "batch before"]) -> None:
        self.left.put(column, x)

    def get(self, column: int) -> Float[Tensor, "batch after"]:
        out = self.left.get(column)
        return out if self.above is None else out + self.above[:, column]

    def step(self, column: int, x: Float[Tensor, "batch before"]) -> Float[Tensor, "batch after"]:
        """Put, and get: for mask B, whose output waits for nothing else."""
        self.put(column, x)
        return self.get(column)


def shift_down(
    x: Float[Tensor, "batch height width channels"],
) -> Float[Tensor, "batch height width channels"]:
    """Row i becomes row i + 1; row 0 is zeros, the last row is lost."""
    return F.pad(x, (0, 0, 0, 0, 1, -1))


def check_kernel(kernel: int, least: int = 1) -> None:
    """Refuse a kernel that is not an odd number from ``least`` on.

    Raises:
        SpecError: naming it.
    """
    positive(kernel=kernel)
    if kernel % 2 == 0 or kernel < least:
        raise SpecError(f"kernel: was {kernel}; use an odd number, {least} or more")


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1)
