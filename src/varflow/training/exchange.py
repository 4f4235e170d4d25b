"""What the processes of a fit tell each other at every step: gradients, metrics, and whether to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from varflow.core import ranks

#: Signals that end a fit, the last one first where several came.
WATCHED = (signal.SIGINT, signal.SIGTERM)
#: Steps between two looks at the signals where reading a number means waiting for the device.
_EVERY = 10


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
        self.parameters = list(parameters)
        self.signal: int | None = None
        self._steps = 0

    @torch.no_grad()
    def __call__(self, row: Tensor, received: int | None) -> Tensor:
        """Put the mean gradient into the parameters; returns the mean of ``row``, the metrics of a step.

        Raises:
            RankError: another process has ended.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        told = torch.tensor([float(received == number) for number in WATCHED])
        flat = torch.cat([*(g.reshape(-1) for g in gradients), row, told.to(row)])
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
