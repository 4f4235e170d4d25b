"""The machine: device, dtype, threads, denormals. Decided once, stored, and reused on resume."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from varflow import native
from varflow.core import ranks
from varflow.core.errors import SpecError
from varflow.networks import linear
from varflow.training.settings import TrainingSettings

#: Of glibc's malloc.h, and the largest value they take.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST = -1, -3, 2**31 - 1


@dataclass(frozen=True)
class Engine:
    """What ``auto`` chose.

    Attributes:
        device: a torch device, spelled out.
        precision: float32, float64 or bf16.
        threads: CPU threads.
        compile: whether the training step is compiled.
        products: which library multiplies float32 matrices on the CPU; see :mod:`varflow.networks.linear`.
        native: whether compiled code stands in for torch; see :mod:`varflow.native`.
        denormals_flushed: whether denormal numbers are flushed to zero in all CPU threads. Adam's moments
            go denormal after some hundred steps on real images, and arithmetic on them is many times slower.
        graph: whether the step becomes a CUDA graph: auto, on or off; see :mod:`varflow.training.graph`.
    """

    device: str
    precision: str
    threads: int
    compile: bool
    products: str
    native: bool
    denormals_flushed: bool
    graph: str = "off"

    @staticmethod
    def start(spec: TrainingSettings, decided: dict[str, Any] | None = None) -> Engine:
        """Set up the process for ``spec``; ``decided`` is what an interrupted run had chosen.

        Raises:
            SpecError: the device does not exist here.
        """
        keep_freed_memory()
        # Flushing is a flag of each thread, inherited at creation: it must be set before torch starts its pool.
        torch.set_flush_denormal(True)
        threads = decided["threads"] if decided else spec.threads
        if threads is not None and threads < 1:
            raise SpecError(f"threads: was {threads}; use 1 or more")
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        if ranks.several() and not decided and ":" in spec.device:
            raise SpecError(
                f"device: was '{spec.device}' for {ranks.world()} processes; use cuda, and each takes its own"
            )
        device = _own(decided["device"]) if decided else _own(_device(spec.device))
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise SpecError(
                f"device: was {device}, but no CUDA device is available here; use device=cpu"
            )
        if decided:
            linear.use_library(decided["products"])
            native.use(decided.get("native", False))
        return Engine(
            device,
            spec.precision,
            torch.get_num_threads(),
            spec.compile,
            linear.library(),
            native.in_use(),
            denormals_flushed(),
            decided.get("graph", "off") if decided else _graph(spec.graph, device),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters, data and densities."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 for the networks where asked for; nothing otherwise."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def denormals_flushed() -> bool:
    """Whether a parallel operation flushes denormals in every thread that takes part in it."""
    # From its bits: a thread that flushes would turn 1e-40 into 0 while filling the tensor.
    tiny = torch.full((1 << 20,), 71_362, dtype=torch.int32).view(torch.float32)
    return not bool((tiny * 1.0).view(torch.int32).any())


def keep_freed_memory() -> bool:
    """Let this process reuse the memory of large tensors; whether it could be told to.

    glibc maps blocks of 32 MiB and more from the system, and hands them back when they are freed: the next tensor of
    that size costs a page fault for each 4 KiB, a seventh of the time of a convolutional network's step. The process
    then keeps the most memory that it ever used.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))


def _own(device: str) -> str:
    """Where several processes share CUDA devices, the one of this process."""
    if not (ranks.several() and device.startswith("cuda")):
        return device
    if ranks.local() >= torch.cuda.device_count():
        raise SpecError(
            f"device: process {ranks.local()} of this machine has no CUDA device of its own (there are "
            f"{torch.cuda.device_count()}); start as many processes as devices, or use device=cpu"
        )
    own = f"cuda:{ranks.local()}"
    torch.cuda.set_device(own)
    return own


def _graph(setting: str, device: str) -> str:
    """The setting where a step could be captured; off where none can."""
    reason = ""
    if not device.startswith("cuda"):
        reason = f"the device is {device}"
    elif ranks.several():
        reason = f"{ranks.world()} processes exchange gradients inside of a step"
    if reason and setting == "on":
        raise SpecError(f"graph: was on, and {reason}; use graph=auto, or one process on a CUDA device")
    return "off" if reason else setting


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SpecError(f"device: unknown device '{name}'; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise SpecError(f"device: was '{name}'; this version runs on cpu and cuda")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SpecError(
                f"device: was '{name}', but no CUDA device is available here; use device=cpu"
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise SpecError(
                f"device: was '{name}'; there are {torch.cuda.device_count()} CUDA devices"
            )
    return str(device)
