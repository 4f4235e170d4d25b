"""Batches read by worker processes before they are asked for, through torch's own DataLoader."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from varflow.core.errors import VarflowError
from varflow.data.permutations import Places

#: Batches that each worker has ready.
_READY = 4
#: Steps that the store is told of beforehand where no worker reads.
_TOLD = 2


class _Batches(Dataset[Any]):
    """Batches of training rows by their indices, for a loader. What is wrong with one comes back as a value, and is
    raised where the batch is used.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __getitem__(self, index: Places) -> tuple[Places, Any]:
        try:
            return index, self.rows.of("train", index)
        except VarflowError as error:
            return index, error


class Ahead:
    """The rows of the steps of a fit, in order.

    Args:
        rows: reads them (:class:`varflow.data.streamed.Rows`).
        chosen: step → indices of the training split.
        steps: that will be asked for.
        workers: processes that read; with none the store is told which rows come next, and they are read when they
            are asked for.
        pinned: whether batches are copied to a GPU.
    """

    def __init__(
        self, rows: Any, chosen: Callable[[int], Tensor], steps: range, workers: int, pinned: bool = False
    ) -> None:
        self.rows, self.chosen, self.steps = rows, chosen, steps
        self._at = steps.start
        self._batches: Iterator[Any] | None = None
        if workers and len(steps):
            fork = sys.platform == "linux"
            loader: DataLoader[Any] = DataLoader(
                _Batches(rows),
                sampler=self,
                batch_size=None,
                num_workers=min(workers, len(steps)),
                prefetch_factor=_READY,
                pin_memory=pinned,
                collate_fn=_as_it_is,
                worker_init_fn=_begin,
                multiprocessing_context="fork" if fork else None,
            )
            with warnings.catch_warnings():
                # A worker reads and decodes, and takes no lock that another thread may have held.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._batches = iter(loader)

    def __iter__(self) -> Iterator[Places]:
        for step in self.steps:
            yield self.chosen(step).cpu().numpy()

    def __len__(self) -> int:
        return len(self.steps)

    def take(self, index: Places) -> Tensor | None:
        """The rows ``index``, where they are the next that were to be asked for; None where they are others."""
        if self._batches is None:
            self._tell(index)
            return None
        if self._at >= self.steps.stop or not np.array_equal(self.chosen(self._at).cpu().numpy(), index):
            return None
        self._at += 1
        there, found = next(self._batches)
        assert np.array_equal(there, index)
        if isinstance(found, VarflowError):
            raise found
        values: Tensor = found
        return values

    def _tell(self, index: Places) -> None:
        """Tell the store of the rows of the steps after this one."""
        if not getattr(self.rows.store, "cold", False):
            return
        while self._at < self.steps.stop and not np.array_equal(self.chosen(self._at).cpu().numpy(), index):
            self._at += 1
        for step in range(self._at + 1, min(self._at + 1 + _TOLD, self.steps.stop)):
            self.rows.store.expect(self.rows.splits["train"].rows(self.chosen(step).cpu().numpy()))


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(worker: int) -> None:
    """In a worker: a signal to the group of a fit is not for it, and it computes by itself."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    torch.set_num_threads(1)
