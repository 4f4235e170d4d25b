"""Many latents within a bound on memory: how many are decoded at once, and gradients piece by piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from varflow import hmc
from varflow.core.errors import SpecError
from varflow.core.observed import Examples, parts_of
from varflow.model import LogJoint, Model
from varflow.posteriors.posterior import Draw

#: Copies of the decoder's largest activation that count against the memory: its input, its output,
#: and two temporaries of the activation or of the likelihood.
COPIES = 4

#: Bytes that decoding takes at most on a CPU. Slices that leave the caches are slower by half (dense decoder
#: of 784 pixels, 128 points × 1,000 samples: 1.29 s from 32 MiB on, 0.85 s from 8 MiB down).
CACHE = 2**23


class SlicedJoint(LogJoint):
    """z ``[S, B, D]`` → log p(x, z) and its gradient, decoded in slices.

    Args:
        memory: bytes that a gradient may take. The bound does not change the result beyond rounding.
    """

    def __init__(self, model: Model, x: Examples, memory: int) -> None:
        super().__init__(model, x)
        self.batch: Examples = x
        self.memory: int = memory
        self._rows = 0

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self._rows = self._rows or gradient_rows(self.memory, self.model, self.batch, z)
        if z[..., 0].numel() <= self._rows:
            return self._at(z, slice(None))
        columns: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for samples, points in slices(len(z), z.shape[1], self._rows):
            columns.setdefault(points.start, []).append(self._at(z[samples, points], points))
        joined = [
            [torch.cat(parts) for parts in zip(*column, strict=True)] for column in columns.values()
        ]
        value, gradient = (torch.cat(parts, 1) for parts in zip(*joined, strict=True))
        return value, gradient

    def _at(self, z: Tensor, points: slice) -> tuple[Tensor, Tensor]:
        value, gradient = hmc.slope(LogJoint(self.model, self.batch[points]))(z)
        assert value is not None
        return value, gradient


def gradient_rows(memory: int, model: Model, x: Examples, z: Tensor) -> int:
    """How many rows (samples × points) fit into ``memory`` bytes of decoding with a gradient.

    A gradient takes what decoding takes, and keeps what its way back needs; both are measured.

    Raises:
        SpecError: not one fits.
    """
    one, two = (z[:1, :1].repeat(n, 1, 1) for n in (1, 2))
    kept = _kept(model, x[:1], two) - _kept(model, x[:1], one)
    row = kept + COPIES * _largest(model, x[:1], one, two)
    return _fit(memory, row, "the gradient of one latent", x)


def rows_within(memory: int, model: Model, x: Examples, draw: Draw) -> int:
    """How many rows (samples × points) fit into ``memory`` bytes of decoding.

    The largest activation of a row is measured: the likelihood runs on one and on two rows, and what each of
    its operations makes may grow in between (weights do not).

    Raises:
        SpecError: not one fits.
    """
    one, two = (draw.z[:1, :1].repeat(n, *[1] * (draw.z.ndim - 1)) for n in (1, 2))
    return _fit(memory, COPIES * _largest(model, x[:1], one, two), "decoding one latent", x)


def _fit(memory: int, row: int, what: str, x: Examples) -> int:
    if memory < row:
        raise SpecError(f"memory: was {memory} bytes; {what} takes about {row}, use at least that")
    return memory // row if x.device.type != "cpu" else max(min(memory, CACHE) // row, 1)


def _largest(model: Model, x: Examples, one: Tensor, two: Tensor) -> int:
    """Bytes by which a row more makes the likelihood's largest tensor larger; x itself is one."""
    sizes = []
    for z in (one, two):
        with _Sizes() as made, torch.no_grad():
            model.log_likelihood(z, x)
        sizes.append(made.sizes)
    small, large = sizes
    if len(small) == len(large):
        grown = [b - a for a, b in zip(small, large, strict=True)]
    else:
        grown = [size for size in large if size not in small]
    values = parts_of(x)[0]
    return max([values.numel() * values.element_size(), *grown])


def _kept(model: Model, x: Examples, z: Tensor) -> int:
    """Bytes that the likelihood's gradient in z keeps on the way forward."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        model.log_likelihood(z.detach().requires_grad_(), x)
    return sum(sizes.values())


class _Sizes(TorchDispatchMode):
    """The bytes of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To skip the compiler is to import it, more than a second; nothing is compiled here.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.sizes.append(tensor.numel() * tensor.element_size())
        return out


def slices(samples: int, points: int, rows: int) -> list[tuple[slice, slice]]:
    """Rectangles of at most ``rows`` entries that tile [samples, points], by points first."""
    width = min(points, rows)
    height = max(rows // width, 1)
    return [
        (slice(s, s + height), slice(p, p + width))
        for p in range(0, points, width)
        for s in range(0, samples, height)
    ]
