"""The compiled functions on tensors: shapes and addresses, no autograd."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from varflow.native.build import BuildError

#: Of a masked autoregressive network, the last one included.
MOST_LAYERS = 64

_SIZE, _INT, _REAL, _ADDRESS = ctypes.c_ssize_t, ctypes.c_int, ctypes.c_double, ctypes.c_void_p
#: function → what it returns (not 0 where memory is short) and takes; its name ends in _f32 or _f64.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "planar_push": (_INT, [*[_SIZE] * 4, _INT, _REAL, *[_ADDRESS] * 6]),
    "planar_back": (_INT, [*[_SIZE] * 4, _INT, _REAL, *[_ADDRESS] * 10]),
    "bernoulli_sums": (None, [*[_SIZE] * 3, *[_ADDRESS] * 4]),
    "made_affine": (_INT, [*[_SIZE] * 3, *[_INT] * 3, _REAL, *[_ADDRESS] * 7]),
    # fits, samples, K, steps, shift; energies, noise; weights, rates, taken; objective; optimizer; tensors, rows
    "planar_fit": (
        _INT,
        [
            *(*[_SIZE] * 4, _REAL, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS, _ADDRESS, _SIZE),
            *(*[_INT] * 3, *[_REAL] * 4, _INT, _REAL, _REAL, *[_ADDRESS] * 3, _SIZE),
        ],
    ),
}

#: u ``[*sets, K, D]``, w ``[*sets, K, D]``, b ``[*sets, K]``; or one tensor ``[*sets, K (2D + 1)]`` of the three.
Parameters = tuple[Tensor, ...]


class Calls:
    """Planar chains, Bernoulli sums and affine autoregressive steps in float32 and float64.

    Chains: with u, w and b apart, points follow their set: z ``[*sets, *points, D]``. With one packed tensor sets
    follow points: z ``[*points, *sets, D]``.

    Raises:
        BuildError: the library does not compute what it should.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {}
        for name, (result, arguments) in _SIGNATURES.items():
            for dtype, suffix in ((torch.float32, "f32"), (torch.float64, "f64")):
                try:
                    function = getattr(library, f"{name}_{suffix}")
                except AttributeError as error:
                    raise BuildError(f"the compiled library is incomplete: {error}") from error
                function.argtypes, function.restype = arguments, result
                self._functions[name, dtype] = function
        self._check()

    def function(self, name: str, dtype: torch.dtype) -> Any:
        """One of them as C has it; it gives back whether it failed."""
        return self._functions[name, dtype]

    def push(
        self, z: Tensor, parameters: Parameters, length: int, shift: float
    ) -> tuple[Tensor, Tensor]:
        """z′ and ladj."""
        z = z.contiguous()
        u, w, b = _apart(parameters)
        out, ladj = torch.empty_like(z), z.new_empty(z.shape[:-1])
        failed = self._functions["planar_push", z.dtype](
            *_sizes(z, u, w, length, shift),
            *(z.data_ptr(), u.data_ptr(), _address(w), _address(b)),
            *(out.data_ptr(), ladj.data_ptr()),
        )
        if failed:
            raise MemoryError(f"planar: no memory for {length} steps of {z.shape[-1]} features")
        return out, ladj

    def back(
        self,
        z: Tensor,
        parameters: Parameters,
        grad_out: Tensor,
        grad_ladj: Tensor,
        length: int,
        shift: float,
        wanted: bool = True,
    ) -> tuple[Tensor, ...]:
        """The gradients of z and, if ``wanted``, of the parameters."""
        z, grad_out, grad_ladj = z.contiguous(), grad_out.contiguous(), grad_ladj.contiguous()
        u, w, b = _apart(parameters)
        grad_z = torch.empty_like(z)
        grads = [None if x is None or not wanted else torch.empty_like(x) for x in (u, w, b)]
        failed = self._functions["planar_back", z.dtype](
            *_sizes(z, u, w, length, shift),
            *(z.data_ptr(), u.data_ptr(), _address(w), _address(b)),
            *(grad_out.data_ptr(), grad_ladj.data_ptr(), grad_z.data_ptr()),
            *(_address(x) for x in grads),
        )
        if failed:
            raise MemoryError(f"planar: no memory for {length} steps of {z.shape[-1]} features")
        return grad_z, *(x for x in grads if x is not None)

    def bernoulli(
        self, x: Tensor, logits: Tensor, dims: int, slopes: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The sums over the last ``dims`` dimensions and, if wanted, x − σ(logits).

        Both contiguous; the shape of x is what the shape of the logits ends in.
        """
        out = logits.new_empty(logits.shape[: logits.dim() - dims])
        slope = torch.empty_like(logits) if slopes else None
        size, rows = logits.numel() // out.numel(), out.numel()
        self._functions["bernoulli_sums", logits.dtype](
            *(rows, x.numel() // size, size),
            *(x.data_ptr(), logits.data_ptr(), out.data_ptr(), _address(slope)),
        )
        return out, slope

    def made(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        counts: Sequence[Sequence[int]],
        bound: float,
        reverse: bool,
        solve: bool,
    ) -> tuple[Tensor, Tensor]:
        """y and Σ s of points x ``[..., D]``; the first bias may differ between them, ``[..., units]``.

        Weights are masked, units in the order of their degrees, ``counts[layer][degree]`` of each; the last layer
        gives all log-scales, then all shifts.
        """
        x, weights, biases = x.contiguous(), [w.contiguous() for w in weights], [b.contiguous() for b in biases]
        out, total = torch.empty_like(x), x.new_empty(x.shape[:-1])
        hidden, features = len(counts), x.shape[-1]
        failed = self._functions["made_affine", x.dtype](
            *(total.numel(), features, hidden, int(reverse), int(solve), int(biases[0].ndim > 1), bound),
            (ctypes.c_ssize_t * hidden)(*(len(w) for w in weights[:-1])),
            (ctypes.c_ssize_t * (hidden * features))(*(n for layer in counts for n in layer[:features])),
            (ctypes.c_void_p * len(weights))(*(w.data_ptr() for w in weights)),
            (ctypes.c_void_p * len(biases))(*(b.data_ptr() for b in biases)),
            *(x.data_ptr(), out.data_ptr(), total.data_ptr()),
        )
        if failed:
            raise MemoryError(f"made: no memory for {sum(map(sum, counts))} units")
        return out, total

    def _check(self) -> None:
        """Steps and sums of known outcome: a compiler that breaks the arithmetic is not used."""
        for dtype in (torch.float32, torch.float64):
            for found, expected in (self._planar(dtype), self._sums(dtype), self._affine(dtype), self._fit(dtype)):
                if not all(abs(a - b) < 5e-6 * max(1, abs(b)) for a, b in zip(found, expected, strict=True)):
                    raise BuildError("the compiled library gives wrong numbers")

    def _planar(self, dtype: torch.dtype) -> tuple[list[float], list[float]]:
        """Two points, one step: found and expected."""
        z = torch.tensor([[0.3], [-2.0]], dtype=dtype)
        u, w, b = (torch.tensor([x], dtype=dtype) for x in ([0.5], [2.0], 0.1))
        out, ladj = self.push(z, (u, w, b), 1, 0.0)
        hat = (math.log1p(math.e) - 1) / 2
        slopes = [math.tanh(2 * x + 0.1) for x in (0.3, -2.0)]
        moved = [x + hat * h for x, h in zip((0.3, -2.0), slopes, strict=True)]
        return [*out[:, 0].tolist(), *ladj.tolist()], moved + [math.log1p((1 - h * h) * 2 * hat) for h in slopes]

    def _sums(self, dtype: torch.dtype) -> tuple[list[float], list[float]]:
        """One row of three logits and its slopes: found and expected."""
        x = torch.tensor([[1.0, 0.0, 1.0]], dtype=dtype)
        logits = torch.tensor([[0.4, 0.4, -90.0]], dtype=dtype)
        total, slopes = self.bernoulli(x, logits, 1, slopes=True)
        share = 1 / (1 + math.exp(-0.4))
        expected = [0.4 - 2 * math.log1p(math.exp(0.4)) - 90, 1 - share, -share, 1.0]
        return [total.item(), *(slopes[0].tolist() if slopes is not None else ())], expected

    def _affine(self, dtype: torch.dtype) -> tuple[list[float], list[float]]:
        """Two features, one unit: a = 0.2 + h and b = 0.1 h of the second, h = relu(0.5 y₁ + 0.3)."""
        weights = [[[0.5, 0.0]], [[0.0], [1.0], [0.0], [0.1]]]
        biases = [[0.3], [0.1, 0.2, 0.4, 0.0]]
        out, total = self.made(
            torch.tensor([[1.0, -2.0]], dtype=dtype),
            [torch.tensor(x, dtype=dtype) for x in weights],
            [torch.tensor(x, dtype=dtype) for x in biases],
            [[0, 1]],
            3.0,
            reverse=False,
            solve=False,
        )
        first = 3 * math.tanh(0.1 / 3)
        y = math.exp(first) + 0.4
        h = 0.5 * y + 0.3
        second = 3 * math.tanh((0.2 + h) / 3)
        return [*out[0].tolist(), total.item()], [y, 0.1 * h - 2 * math.exp(second), first + second]


    def _fit(self, dtype: torch.dtype) -> tuple[list[float], list[float]]:
        """One point, one step that moves nothing, the second energy: loss, KL, ladj, and where the mean goes."""
        tensors = [torch.tensor(x, dtype=dtype) for x in ([[0.0, 0.0]], [[1.0, 0.0]], [0.0], [0.3, -0.2], [0.0, 0.0])]
        squares = [torch.zeros_like(x) for x in tensors]
        noise, rows = torch.tensor([[0.4, -1.0]], dtype=dtype), torch.empty(3, dtype=torch.float64)
        weight, rate = torch.tensor([0.5, 0.1], dtype=torch.float64).split(1)
        states = [None if i % 3 else squares[i // 3].data_ptr() for i in range(15)]
        failed = self._functions["planar_fit", dtype](
            *(1, 1, 1, 1, math.log(math.e - 1), (ctypes.c_int * 1)(2), noise.data_ptr(), 2),
            # RMSprop without memory goes by the sign of the gradient.
            *(weight.data_ptr(), rate.data_ptr(), 0, 1, 0, 2, 0.0, 0.0, 1e-12, 0.0, 0, 0.0, 0.0),
            (ctypes.c_void_p * 5)(*(x.data_ptr() for x in tensors)),
            (ctypes.c_void_p * 15)(*states),
            *(rows.data_ptr(), 3),
        )
        log_q = -0.5 * (0.4**2 + 1) - math.log(2 * math.pi)
        log_p = -0.5 * ((-1.2 - math.sin(0.35 * math.pi)) / 0.4) ** 2
        expected = [0.0, log_q - 0.5 * log_p, log_q - log_p, 0.0, 0.2, -0.1]
        return [float(failed), *rows.tolist(), *tensors[3].tolist()], expected


def _apart(parameters: Parameters) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if len(parameters) == 1:
        return parameters[0].contiguous(), None, None
    u, w, b = parameters
    return u.contiguous(), w.contiguous(), b.contiguous()


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _sizes(
    z: Tensor, u: Tensor, w: Tensor | None, length: int, shift: float
) -> tuple[int | float, ...]:
    """Sets, points of each, steps, features, packed, shift."""
    features = z.shape[-1]
    sets = u.numel() // (length * (2 * features + 1 if w is None else features))
    points = z.numel() // features // sets if sets else 0
    return sets, points, length, features, int(w is None), shift
