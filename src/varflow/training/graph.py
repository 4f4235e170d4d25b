"""The whole training step as one CUDA graph: gathering, forward, backward, clipping and update in one launch.

A small step is bound by the launches of its kernels, some microseconds each. A captured step launches once. What
changes from step to step must therefore lie in tensors at fixed places, filled before each launch:

* the rows of the batch, the weight of the objective, and the learning rate (the loop's own tensor);
* the noise. It is drawn outside of the graph, by the same kernels from the same generators of (seed, purpose, step)
  as in an eager step, and copied to its place. So a captured step has the numbers of an eager one, and is replayed
  and resumed like one. Torch's way, a generator inside of the graph that counts its launches, keeps neither promise.

The first steps run eagerly on the stream of the capture: they compile, allocate and choose what is chosen once. Then
a step is captured, which runs none of it, and launched; so every step of a fit happens once, in order. The kernels
are those of the eager step, and so are their results, to the bit, wherever the libraries choose the same algorithm
for the same shapes.

A step that reads a number back to the host, copies from pageable memory, or makes tensors whose sizes depend on
values cannot be captured. ``tests/training/test_graph.py`` holds every recipe and part to these rules without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from varflow.core import random
from varflow.core.errors import SpecError

#: Eager steps before the capture. Two have to ask for the same noise, and the first may prepare something.
WARM_UP = 3

#: (rows, weight of the objective, source of noise) → metrics of the step, on the device.
Step = Callable[[Tensor, "float | Tensor", random.Source], Tensor]


class Recording(Protocol):
    """A captured sequence of operations."""

    def replay(self) -> None: ...


class Recorder(Protocol):
    """What captures a step."""

    def beside(self) -> AbstractContextManager[Any]:
        """Where the eager steps before the capture run."""

    def capture(self) -> AbstractContextManager[Recording]:
        """Operations inside are captured, not run."""


class Cuda:
    """CUDA graphs of torch, on a stream of their own."""

    def __init__(self, device: str) -> None:
        self.device = device

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    @contextmanager
    def beside(self) -> Iterator[None]:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)

    @contextmanager
    def capture(self) -> Iterator[Recording]:
        graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.stream.device)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                yield graph
        finally:
            # A capture that fails does not leave its stream.
            torch.cuda.set_stream(outside)


class Graphed:
    """A step that is captured once it has run a few times, and launched whole from then on.

    Args:
        step: from rows to metrics, with the update in it. It has to do the same operations each time.
        setting: ``"auto"`` runs on eagerly where the step cannot be captured, and ``say`` hears why; ``"on"``
            refuses.
        recorder: what captures.
        dtype: of the weight.
        say: takes a sentence for the user.

    Attributes:
        captured: whether steps are launched whole by now.
        reason: why they are not and will not be; empty as long as they may.
    """

    def __init__(
        self, step: Step, setting: str, recorder: Recorder, dtype: torch.dtype, say: Callable[[str], None]
    ) -> None:
        self._step, self._setting, self._recorder = step, setting, recorder
        self._dtype, self._say = dtype, say
        self._done = 0
        self._requests: list[random.Request] = []
        self._recording: Recording | None = None
        self.reason: str = ""

    @property
    def captured(self) -> bool:
        return self._recording is not None

    def forget(self, reason: str = "") -> None:
        """Begin again, because tensors were replaced; or with a ``reason`` stay eager from here on."""
        self._recording, self._done, self.reason = None, 0, reason

    def __call__(self, rows: Tensor, weight: float, source: random.Source) -> Tensor:
        """The metrics of the step on ``rows``; a captured step returns the same tensor each time.

        Raises:
            SpecError: the step cannot be captured, and the setting is ``"on"``.
        """
        if self._recording is None and not self.reason and self._done >= WARM_UP:
            self._capture(rows, weight)
        if self._recording is None:
            return self._eager(rows, weight, source)
        self._rows.copy_(rows)
        self._weight.fill_(weight)
        for tensor, request in zip(self._noise, self._requests, strict=True):
            tensor.copy_(source.draw(request))
        self._recording.replay()
        return self._row

    def _eager(self, rows: Tensor, weight: float, source: random.Source) -> Tensor:
        if self.reason:
            return self._with(source, rows, weight)
        noted, asked = random.Recorder(source), self._requests
        with self._recorder.beside():
            row = self._with(noted, rows, weight)
        self._done, self._requests = self._done + 1, noted.requests
        if self._done >= WARM_UP and noted.requests != asked:
            self.give_up("it asks for other random numbers from one step to the next")
        return row

    def _capture(self, rows: Tensor, weight: float) -> None:
        self._rows = rows.clone()
        self._weight = torch.full((), weight, dtype=self._dtype, device=rows.device)
        self._noise = [torch.empty(r.shape, dtype=r.dtype, device=r.device) for r in self._requests]
        try:
            with self._recorder.capture() as recording:
                self._row = self._with(random.Replay(self._noise), self._rows, self._weight)
        except (RuntimeError, NotImplementedError) as error:
            # The end of a capture that has failed is an error, too; the first of them says why.
            cause: BaseException = error
            while cause.__context__ is not None:
                cause = cause.__context__
            self.give_up(str(cause).strip().partition("\n")[0] or type(cause).__name__)
        else:
            self._recording = recording

    def _with(self, source: random.Source, rows: Tensor, weight: float | Tensor) -> Tensor:
        with random.use(source):
            return self._step(rows, weight, source)

    def give_up(self, reason: str) -> None:
        """Run eagerly from here on, and say why. Raises as :meth:`__call__`."""
        self.forget(reason)
        if self._setting == "on":
            raise SpecError(
                f"graph: was on, and this step cannot be captured as a CUDA graph ({reason}); use graph=auto"
            )
        self._say(f"note: the step is not captured as a CUDA graph ({reason}); it runs eagerly")
