"""Gated PixelCNN: a vertical stack for the rows above, a horizontal one for the row itself; no blind spot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import positive
from varflow.core.settings import settings
from varflow.networks.linear import Linear
from varflow.networks.masked import LeftConv, RowConv, check_kernel, shift_down
from varflow.priors.code_grid import AutoregressiveGrid, Walk
from varflow.priors.pixelcnn import PixelCNNSettings, norm, zero_embedding, zero_linear


@settings("GatedPixelCNN")
class GatedPixelCNNSettings(PixelCNNSettings):
    """Those of a PixelCNN."""


def gate(x: Float[Tensor, "... double"]) -> Float[Tensor, "... single"]:
    """tanh(a) ⊙ sigmoid(b) for x = (a, b): van den Oord et al. 2016b, eq. 2."""
    a, b = x.chunk(2, -1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    """One layer of both stacks; van den Oord et al. 2016b, figure 2.

    The vertical stack sees whole rows, its own included, and enters the horizontal one a row further down. The
    first layer's horizontal convolution leaves its centre out, and has no residual.
    """

    def __init__(
        self, before: int, channels: int, kernel: int, normalization: str, first: bool
    ) -> None:
        super().__init__()
        self.norm_vertical: nn.Identity | nn.Module = nn.Identity() if first else norm(normalization, before)
        self.norm_horizontal: nn.Identity | nn.Module = nn.Identity() if first else norm(normalization, before)
        self.vertical: RowConv = RowConv(before, 2 * channels, kernel // 2 + 1, kernel)
        self.horizontal: LeftConv = LeftConv(before, 2 * channels, kernel, centre=not first)
        self.across: Linear = Linear(2 * channels, 2 * channels)
        self.out: Linear = Linear(channels, 2 * channels)

    def merge(self, h: Tensor | None, inner: Tensor) -> tuple[Tensor, Tensor]:
        """The horizontal stack behind its convolution: (what the next layer gets, what the head gets).

        ``h`` is what entered the layer, None for the first.
        """
        step, skip = self.out(gate(inner)).chunk(2, -1)
        return (step if h is None else h + step), skip


class GatedPixelCNN(AutoregressiveGrid):
    """p(z) = Π p(z_ij | above, left) with two gated stacks: van den Oord et al. 2016b (arXiv:1606.05328).

        v ← tanh·σ(V(v));   h ← h + 1×1(tanh·σ(H(h) + 1×1(V(v) a row down)));   head: ReLU Σ skips, 1×1, ReLU, 1×1

    V sees k//2 + 1 rows, H the k//2 positions to the left and (but for the first layer) its own. Every position
    sees all positions before it that the depth reaches. A new prior is uniform over codes. Different from the
    paper: codes are embedded, there is one order of channels, each stack may be normalized over the channels of
    one position, and classes start without effect.

    Cost: log_prob one pass; sampling one pass of work too: the vertical stack a row at a time, the horizontal one
    in H·W short steps.

    Args:
        shape: (H, W).
        codes: K.
        channels: C of both stacks.
        layers: gated layers behind the first.
        kernel: k, odd, 3 or more.
        embedding: features of an embedded code.
        hidden: channels of the 1×1 layer before the logits.
        normalization: of each stack before each layer: ``"layer"`` over channels, or ``"none"``.
        classes: condition on one of so many classes (eq. 4): labels are the ``context`` of ``log_prob``.

    Raises:
        SpecError: a size that is not positive, an even kernel, an unknown normalization.

    Example:
        >>> import torch
        >>> prior = GatedPixelCNN((3, 4), codes=5, channels=8, layers=1, kernel=3, classes=2)
        >>> z = prior.sample((2,), labels=torch.tensor([0, 1]))
        >>> z.shape, prior.log_prob(z, torch.tensor([0, 1])).shape
        (torch.Size([2, 3, 4]), torch.Size([2]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        codes: int,
        channels: int = 256,
        layers: int = 13,
        kernel: int = 7,
        embedding: int = 64,
        hidden: int = 512,
        normalization: str = "layer",
        classes: int | None = None,
    ) -> None:
        super().__init__(shape, codes, embedding, classes)
        positive(channels=channels, layers=layers, hidden=hidden)
        check_kernel(kernel, 3)
        self.layers: nn.ModuleList = nn.ModuleList(
            GatedLayer(channels if index else embedding, channels, kernel, normalization, not index)
            for index in range(layers + 1)
        )
        width = (layers + 1) * 4 * channels
        self.shifts: nn.Embedding | None = None if classes is None else zero_embedding(classes, width)
        self.head: nn.Sequential = nn.Sequential(
            nn.ReLU(), Linear(channels, hidden), nn.ReLU(), zero_linear(hidden, codes)
        )

    def _logits(self, embedded: Tensor, labels: Tensor | None) -> Tensor:
        v, h = embedded, None
        skips: Tensor | float = 0.0
        for layer, (shift_v, shift_h) in zip(self._layers, self._shifts(labels), strict=True):
            rows = layer.vertical(layer.norm_vertical(v))
            left = layer.horizontal(embedded if h is None else layer.norm_horizontal(h))
            h, skip = layer.merge(h, left + layer.across(shift_down(rows)) + _wide(shift_h))
            v = gate(rows + _wide(shift_v))
            skips = skips + skip
        out: Tensor = self.head(skips)
        return out

    def _walk(self, batch: int, labels: Tensor | None) -> Walk:
        height, width = self.event_shape
        shifts = self._shifts(labels)
        row_streams = [layer.vertical.stream() for layer in self._layers]
        left_streams = [layer.horizontal.stream(batch, width) for layer in self._layers]
        # What the vertical stack says to each layer of the current row; nothing is above the first.
        across = [layer.across.bias.expand(batch, width, -1) for layer in self._layers]
        for row in range(height):
            codes = []
            for column in range(width):
                h: Tensor | None = None
                skips: Tensor | float = 0.0
                for layer, stream, above, (_, shift) in zip(
                    self._layers, left_streams, across, shifts, strict=True
                ):
                    if h is not None:
                        stream.put(column, layer.norm_horizontal(h))
                    inner = stream.get(column) + above[:, column] + shift
                    h, skip = layer.merge(h, inner)
                    skips = skips + skip
                code = yield self.head(skips)
                codes.append(self.embed(code))
                left_streams[0].put(column, codes[-1])
            if row + 1 < height:
                across = self._row(torch.stack(codes, 1), row_streams, shifts)

    def _row(self, v: Tensor, streams: list, shifts: list) -> list[Tensor]:
        """The vertical stack of a finished row ``[N, W, E]``: what it says to each layer of the next."""
        across = []
        for layer, stream, (shift, _) in zip(self._layers, streams, shifts, strict=True):
            rows = stream(layer.norm_vertical(v))
            across.append(layer.across(rows))
            v = gate(rows + (shift if isinstance(shift, float) else shift[:, None]))
        return across

    @property
    def _layers(self) -> list[GatedLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _shifts(self, labels: Tensor | None) -> list:
        """(vertical, horizontal) of each layer: ``[N, 2C]`` by class, or 0."""
        if labels is None or self.shifts is None:
            return [(0.0, 0.0)] * len(self.layers)
        each = self.shifts(labels).chunk(2 * len(self.layers), -1)
        return list(zip(each[::2], each[1::2], strict=True))


def _wide(shift: Tensor | float) -> Tensor | float:
    return shift if isinstance(shift, float) else shift[:, None, None]
