"""Stands where a data set stands, for targets: there is nothing to observe, or the model owns its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """``x``: which rows or blocks of its own data the model reads ``[B]``; None where it reads no data.
    ``ladj``: None, for nothing is preprocessed.
    """

    x: Tensor | None
    ladj: None = None

    @property
    def seen(self) -> Tensor | None:
        """What the model takes: x."""
        return self.x


class TargetBatches:
    """The batches of a model that has no data, or holds them.

    Args:
        name: of the target.
        features: D, the number of latents.
        rows: how many rows or blocks an epoch goes through; None for a model that reads no data or all of
            them at each step.
        blocks: whether these are blocks, read one at a time.
        facts: what :meth:`describe` says beside the name.
    """

    support = "none"
    protocol = "none"
    levels = None
    #: Nothing is shared out but the samples of q.
    shared = "samples"
    #: The weights of a fit to a target become an animation.
    keeps_snapshots = True
    #: No rows but the model's own, which are on its device.
    resident = True

    def __init__(
        self,
        name: str,
        features: int,
        rows: int | None = None,
        blocks: bool = False,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.name: str = name
        self.rows: int | None = rows
        self.blocks: bool = blocks
        self.event_shape: tuple[int, ...] = (features,)
        self.sizes: dict[str, int] = {"train": rows or 1, "validation": 0, "test": 0}
        self._facts = dict(facts or {})

    def step_rows(self, batch: int) -> int:
        """Rows in a step, where ``batch`` are asked for: a block is a batch by itself."""
        return 1 if self.blocks else min(batch, self.sizes["train"])

    def computed_order(self, seed: int, epoch: int) -> None:
        """None: the order of an epoch is drawn."""

    def looked_at(self, split: str) -> int:
        """Rows that validation looks at: there are none."""
        return self.sizes[split]

    def read_ahead(self, rows: Callable[[int], Tensor], steps: range) -> None:
        """There is nothing to read."""

    def notes(self) -> list[str]:
        """There is nothing to say."""
        return []

    def batch(self, split: str, index: Tensor) -> Rows:
        """The rows of a step; ``split`` is always train."""
        return Rows(None if self.rows is None else index)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> TargetBatches:
        return self

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "protocol": self.protocol, "splits": self.sizes, **self._facts}

    def pictures(self, x: Tensor) -> None:
        return None
