"""Signals, and what the processes of a fit tell each other at every step: gradients, metrics, whether to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from varflow.core import ranks

#: Signals that end a fit, the last one first where several came.
WATCHED = (signal.SIGINT, signal.SIGTERM)
#: Steps between two looks at the signals where reading a number means waiting for the device.
_EVERY = 10


class Signals:
    """SIGINT and SIGTERM end a fit after the current step; a second one ends the program.

    Attributes:
        received: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Signals can be watched from the main thread alone; elsewhere the caller keeps them."""
        try:
            before = [signal.signal(number, self._note) for number in WATCHED]
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in zip(WATCHED, before, strict=True):
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number


class Exchange:
    """One sum over processes a step, of everything at once.

    Each process has the mean over its share of the batch; shares are equal, so the mean over processes is
    the gradient of the global batch. A NaN on one is a NaN on all. Not DistributedDataParallel: a step is
    more than one module's forward pass (inner gradients, stacked fits, compiled steps), and a single
    flat sum has the same bits on every process.

    Attributes:
        signal: what a process was told to stop with, known to all of them after the same step; or None.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters: list[nn.Parameter] = list(parameters)
        self.signal: int | None = None
        self._steps = 0
        # On the device, so that a step without a signal copies nothing there.
        self._nothing = torch.zeros(len(WATCHED), device=self.parameters[0].device)

    @torch.no_grad()
    def __call__(self, row: Tensor, received: int | None) -> Tensor:
        """Put the mean gradient into the parameters; returns the mean of ``row``, the metrics of a step.

        Raises:
            RankError: another process has ended.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        told = self._nothing.to(row)
        if received is not None:
            told = torch.tensor([float(received == number) for number in WATCHED]).to(row)
        flat = torch.cat([*(g.reshape(-1) for g in gradients), row, told])
        ranks.all_reduce(flat)
        flat /= ranks.world()
        *means, row, told = flat.split([*(g.numel() for g in gradients), len(row), len(told)])
        torch._foreach_copy_(
            gradients, [m.view_as(g) for m, g in zip(means, gradients, strict=True)]
        )
        self._steps += 1
        if flat.device.type == "cpu" or self._steps % _EVERY == 0:
            for number, share in zip(WATCHED, told.tolist(), strict=True):
                self.signal = number if share > 0 else self.signal
        return row
