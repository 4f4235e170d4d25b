"""What is observed of examples: x, the context c that they are conditioned on, and which cells of x are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Observed:
    """x with its context and its mask, row by row; sliced like a tensor of rows.

    Attributes:
        x: ``[B, *event]``, as a model sees it.
        context: c ``[B, C]``; None where nothing is conditioned on.
        mask: ``[B, *event]``, True where a cell of x is there; None where all are.

    A function that takes examples takes a tensor x, or this where there is more than x.
    """

    x: Shaped[Tensor, "batch ..."]
    context: Float[Tensor, "batch context"] | None = None
    mask: Bool[Tensor, "batch ..."] | None = None

    def _each(self, change: Any) -> Observed:
        return Observed(
            change(self.x),
            None if self.context is None else change(self.context),
            None if self.mask is None else change(self.mask),
        )

    def __getitem__(self, rows: Any) -> Observed:
        return self._each(lambda part: part[rows])

    def __len__(self) -> int:
        return len(self.x)

    def split(self, size: int) -> list[Observed]:
        """Parts of ``size`` rows, the last one of what is left."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    @property
    def shape(self) -> torch.Size:
        return self.x.shape

    @property
    def ndim(self) -> int:
        return self.x.ndim

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype


#: Examples as a model takes them.
Examples = Tensor | Observed


def observed(x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Examples:
    """x itself where there is nothing else."""
    return x if context is None and mask is None else Observed(x, context, mask)


def parts_of(examples: Examples | None) -> tuple[Any, Tensor | None, Tensor | None]:
    """(x, context, mask) of examples."""
    if isinstance(examples, Observed):
        return examples.x, examples.context, examples.mask
    return examples, None, None


def joined(parts: list[Any]) -> Any:
    """Several examples, one after the other."""
    if not isinstance(parts[0], Observed):
        return torch.cat(parts)
    of: dict[str, Any] = {
        name: None if getattr(parts[0], name) is None else torch.cat([getattr(part, name) for part in parts])
        for name in ("x", "context", "mask")
    }
    return Observed(**of)
