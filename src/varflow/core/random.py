"""Where every random number comes from.

Each random tensor is drawn from a generator seeded by (seed, purpose, step), so a step can be
repeated without its predecessors: an interrupted run resumes bit for bit, a NaN can be replayed,
and several processes draw the *global* batch and keep their own slice of it.

Inside ``with stream(seed, step):`` the draws below follow that rule. Outside of it they use torch's
global generator, so that a user who calls ``torch.manual_seed`` gets what they expect.

Parts never call ``torch.randn`` themselves; they call :func:`normal`, :func:`uniform` or
:func:`uniform16` here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Request(NamedTuple):
    """One draw: what :class:`Recorder` notes and :class:`Replay` is fed with."""

    kind: str
    shape: tuple[int, ...]
    purpose: str
    dtype: torch.dtype
    device: torch.device
    batch_dim: int | None


@runtime_checkable
class Source(Protocol):
    """What answers a :class:`Request`."""

    def draw(self, request: Request) -> Tensor: ...


def derive(seed: int, purpose: str, step: int) -> int:
    """A 63-bit seed from (seed, purpose, step); unrelated for any two different triples."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(
    seed: int, purpose: str, step: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator of its own for (seed, purpose, step)."""
    return torch.Generator(device).manual_seed(derive(seed, purpose, step))


class Stream:
    """Draws of one step. Repeated requests of one purpose continue the same generator.

    With ``world`` > 1 a request that names its ``batch_dim`` is drawn for all ranks and sliced, so
    the numbers do not depend on how many processes share the batch.
    """

    def __init__(self, seed: int, step: int = 0, rank: int = 0, world: int = 1) -> None:
        self.seed: int = seed
        self.step: int = step
        self.rank: int = rank
        self.world: int = world
        self._generators: dict[tuple[str, torch.device], torch.Generator] = {}

    def draw(self, request: Request) -> Tensor:
        key = (request.purpose, request.device)
        if key not in self._generators:
            self._generators[key] = generator(self.seed, request.purpose, self.step, request.device)
        if self.world == 1 or request.batch_dim is None:
            return _fill(request, self._generators[key])
        local = request.shape[request.batch_dim]
        shape = list(request.shape)
        shape[request.batch_dim] = local * self.world
        whole = _fill(request._replace(shape=tuple(shape)), self._generators[key])
        return whole.narrow(request.batch_dim, self.rank * local, local).contiguous()


def row_keys(values: Tensor) -> list[int]:
    """A number for each row of ``values`` ``[N, D]`` that its numbers alone decide, for :class:`ByRow`."""
    values = values.double()
    # −0 and 0 are one value with two forms, and NaN has many.
    rows = torch.where(values.isnan(), torch.nan, values + 0.0).cpu().contiguous().numpy()
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return [int.from_bytes(digest, "little") for digest in digests]


class ByRow:
    """Draws of one step that belong to rows: along ``batch_dim`` those of a row depend on (seed, purpose, step, key
    of the row) alone, not on where it stands or on the rows beside it. Rows with one key have the same numbers.

    What has no ``batch_dim`` is drawn as by :class:`Stream`.

    Args:
        seed: of all rows.
        keys: an integer for each row of the batch.
        step: as for :class:`Stream`.
    """

    def __init__(self, seed: int, keys: Sequence[int], step: int = 0) -> None:
        self.seed, self.keys, self.step = seed, list(keys), step
        self._shared = Stream(seed, step)
        self._generators: dict[tuple[str, torch.device, int], torch.Generator] = {}

    def draw(self, request: Request) -> Tensor:
        if request.batch_dim is None:
            return self._shared.draw(request)
        shape = list(request.shape)
        if shape.pop(request.batch_dim) != len(self.keys):
            raise ValueError(
                f"keys: {len(self.keys)} for a draw {list(request.shape)}; give one for each of its "
                f"{request.shape[request.batch_dim]} rows"
            )
        row = request._replace(shape=tuple(shape), batch_dim=None)
        drawn = {key: _fill(row, self._generator(request, key)) for key in dict.fromkeys(self.keys)}
        return torch.stack([drawn[key] for key in self.keys], request.batch_dim)

    def _generator(self, request: Request, key: int) -> torch.Generator:
        of = (request.purpose, request.device, key)
        if of not in self._generators:
            purpose = f"{request.purpose}/row {key}"
            self._generators[of] = generator(self.seed, purpose, self.step, request.device)
        return self._generators[of]


class Recorder:
    """Passes requests on to ``source`` and notes them, for :class:`Replay`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.requests: list[Request] = []

    def draw(self, request: Request) -> Tensor:
        self.requests.append(request)
        return self.source.draw(request)


class Replay:
    """Hands out tensors drawn beforehand, in order: a compiled step takes its noise as an input."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors: list[Tensor] = list(tensors)
        self.position: int = 0

    def draw(self, request: Request) -> Tensor:
        tensor = self.tensors[self.position]
        self.position += 1
        return tensor


_source: Source | None = None


@contextmanager
def use(source: Source) -> Iterator[Source]:
    """Let ``source`` answer every draw inside the block."""
    global _source
    previous, _source = _source, source
    try:
        yield source
    finally:
        _source = previous


@contextmanager
def stream(seed: int, step: int = 0, rank: int = 0, world: int = 1) -> Iterator[Source]:
    """Draws inside the block depend on (seed, purpose, step) alone."""
    with use(Stream(seed, step, rank, world)) as source:
        yield source


def normal_steps(out: Sequence[Tensor], seed: int, purpose: str, first: int) -> None:
    """Fill ``out[0][i]``, ``out[1][i]``, … with what :func:`normal` draws, one after the other, in step first + i."""
    source = torch.Generator()
    for index, drawn in enumerate(zip(*out, strict=True)):
        source.manual_seed(derive(seed, purpose, first + index))
        for tensor in drawn:
            tensor.normal_(generator=source)


def _fill(request: Request, source: torch.Generator | None) -> Tensor:
    options = {"dtype": request.dtype, "device": request.device, "generator": source}
    if request.kind == "normal":
        return torch.randn(request.shape, **options)  # type: ignore[call-overload]
    if request.kind == "uniform":
        return torch.rand(request.shape, **options)  # type: ignore[call-overload]
    if request.kind == "uniform16":
        return _midpoints(request, source)
    raise ValueError(
        f"kind: unknown distribution '{request.kind}'; choices: normal, uniform, uniform16"
    )


def _midpoints(request: Request, source: torch.Generator | None) -> Tensor:
    count = math.prod(request.shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=request.device)
    # Without an upper end all 64 bits of a word are drawn: four numbers each.
    words.random_(-(2**63), None, generator=source)
    short = words.view(torch.int16)[:count].view(request.shape)
    return short.to(request.dtype).add_(2**15 + 0.5).mul_(2.0**-16)


def _request(
    kind: str,
    shape: Sequence[int],
    purpose: str,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    batch_dim: int | None,
) -> Tensor:
    request = Request(
        kind,
        tuple(shape),
        purpose,
        dtype or torch.get_default_dtype(),
        torch.device(device or "cpu"),
        batch_dim,
    )
    return _fill(request, None) if _source is None else _source.draw(request)


def normal(
    shape: Sequence[int],
    purpose: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch_dim: int | None = None,
) -> Tensor:
    """Standard normal numbers of ``shape``; ``batch_dim`` names the dimension that ranks share."""
    return _request("normal", shape, purpose, dtype, device, batch_dim)


def uniform(
    shape: Sequence[int],
    purpose: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch_dim: int | None = None,
) -> Tensor:
    """Uniform numbers on [0, 1) of ``shape``; ``batch_dim`` names the dimension that ranks share."""
    return _request("uniform", shape, purpose, dtype, device, batch_dim)


def uniform16(
    shape: Sequence[int],
    purpose: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch_dim: int | None = None,
) -> Tensor:
    """(k + 1/2)/2¹⁶ with k uniform on 0 … 2¹⁶ − 1, otherwise as :func:`uniform`.

    Noise for data, where 2¹⁶ values are enough: never 0 or 1, P(u < p) within 2⁻¹⁷ of p for every p, and
    on a CPU less than half the time of :func:`uniform`. Exact in float32 and float64.
    """
    return _request("uniform16", shape, purpose, dtype, device, batch_dim)
