"""A data set whose rows are read as they are needed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from varflow.core.errors import DataError
from varflow.data.dataset import _ROWS, SPLITS, Dataset
from varflow.data.permutations import Places, Split, clipped
from varflow.data.prepare import channels_first, numbers
from varflow.data.protocols import Protocol, column_name
from varflow.data.stores import Store

#: Rows of validation and test that are looked at, unless told.
HELD_OUT = 10_000
#: A held-out split stays in memory once it is read where its rows take at most so many bytes; likewise ``raw``.
_KEPT, _WHOLE = 2**27, 2**29
#: Blocks of noise, of 1000 rows each, that are kept.
_BLOCKS = 4


class Form(NamedTuple):
    """How rows of a store become stored values: what a sample of them showed.

    Attributes:
        levels: L, where they are levels; None for real numbers.
        scale: what they are multiplied with to be levels; 0 where they are bytes already.
        unit: whether real numbers have to lie in [0, 1].
        picture: whether they are pictures.
    """

    levels: int | None
    scale: int
    unit: bool
    picture: bool


class Rows:
    """The rows of a store as stored values, checked as they come.

    Args:
        store: where they lie.
        splits: which of them are train, validation and test.
        form: how they become stored values; None leaves them as they are read.
    """

    def __init__(self, store: Store, splits: Mapping[str, Split], form: Form | None = None) -> None:
        self.store, self.splits, self.form = store, dict(splits), form

    def of(self, split: str, index: Places) -> Tensor:
        """Rows ``index`` of a split ``[B, *event]``, on the CPU.

        Raises:
            DataError: a NaN, an infinity or another level than the sample showed, with the row; or they cannot be
                read.
        """
        return self.at(self.splits[split].rows(index))

    def at(self, places: Places) -> Tensor:
        """The rows at ``places`` of the store."""
        return self.checked(self.store.read(places), places)

    def checked(self, read: Any, places: Places) -> Tensor:
        """What was read, as stored values."""
        x = _tensor(read)
        # Of finite numbers the sum is finite, but for overflow: it is one pass without a copy.
        if x.is_floating_point() and not bool(x.sum().isfinite()):
            self._refuse(~x.isfinite(), x, places, "remove or impute such rows")
        if self.form is not None:
            x = self._in_form(x, places, self.form)
        return x

    def _in_form(self, x: Tensor, places: Places, form: Form) -> Tensor:
        if form.levels is not None and not form.scale:
            wrong = x >= form.levels if form.levels < 256 else None
            if wrong is not None:
                self._refuse(wrong, x, places, f"should be below levels={form.levels}; say levels=256 (--levels 256)")
        elif form.levels is not None:
            level = (x * form.scale).round()
            wrong = (level - x * form.scale).abs() > 1e-3
            wrong |= (level < 0) | (level > form.levels - 1)
            said = f"is none of the {form.levels} levels of the rows before; check levels, or leave it out"
            self._refuse(wrong, x, places, said)
            x = level.to(torch.uint8)
        elif form.unit:
            self._refuse((x < 0) | (x > 1), x, places, "should be within [0, 1]; rescale, or choose protocol 'none'")
        return channels_first(x) if form.picture else x

    def _refuse(self, wrong: Tensor, x: Tensor, places: Places, advice: str) -> None:
        if not bool(wrong.any()):
            return
        row, column = (int(i) for i in wrong.flatten(1).nonzero()[0])
        where = column_name(column, self.store.columns)
        value, place = float(x.flatten(1)[row, column]), int(places[row])
        name = f"'{self.store.files[place]}'" if self.store.files else f"row {place}"
        raise DataError(f"x: {value:g} in {name} of {self.store.name}, {where}; {advice}")


class Streamed(Dataset):
    """Splits whose rows are read from a store, a batch at a time.

    Rows are train, validation or test by a permutation that is computed and not stored
    (:mod:`varflow.data.permutations`), and so is the order of an epoch: both are known from their seeds, so that a
    resumed run and each of several processes read what one run would. The same rows in memory
    (:meth:`in_memory`) give the same batches to the bit.

    Made by :func:`varflow.data.load` and :func:`varflow.data.from_tensor` of data beyond
    :data:`varflow.data.streaming.ABOVE`, or with ``stream="always"``.
    """

    resident = False

    def __init__(
        self,
        rows: Rows,
        protocol: Protocol,
        event_shape: Sequence[int],
        *,
        flip: bool = False,
        seed_eval: int = 0,
        facts: Mapping[str, Any] | None = None,
        why: str = "",
        workers: int | None = None,
    ) -> None:
        assert rows.form is not None
        empty = {split: torch.empty(0, *event_shape) for split in SPLITS}
        super().__init__(
            rows.store.name, protocol, empty, picture=rows.form.picture, flip=flip, seed_eval=seed_eval, facts=facts
        )
        self.rows, self._why = rows, why
        self.workers = rows.store.workers if workers is None else workers
        self._limits: dict[str, int] = {}
        self.windows = rows.splits["train"].ends
        self._files = rows.store.files
        self._kept: dict[str, Tensor] = {}
        self._noise: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._ahead: Any = None
        self._sample: Tensor | None = None

    @property
    def sizes(self) -> dict[str, int]:
        orders = self.rows.splits.items()
        return {split: min(len(order), self._limits.get(split, len(order))) for split, order in orders}

    def looked_at(self, split: str) -> int:
        if split == "train" or split in self._limits:
            return self.sizes[split]
        return min(self.sizes[split], HELD_OUT)

    def notes(self) -> list[str]:
        out = [f"data: {self.name} is streamed: {self._said()}; stream=never (--stream never) holds it in memory"]
        held = {split: (self.looked_at(split), self.sizes[split]) for split in ("validation", "test")}
        if any(few < size for few, size in held.values()):
            few = ", ".join(f"{n:,} of {size:,} {split} rows" for split, (n, size) in held.items())
            out.append(
                f"data: validation, evaluation and figures look at {few}, chosen by a seed; --validation-limit and "
                "evaluate --limit set other numbers"
            )
        if "learned_from" in self._facts:
            out.append(f"data: {self._facts['learned_from']}")
        return out

    def describe(self) -> dict[str, Any]:
        looked_at = {split: self.looked_at(split) for split in ("validation", "test")}
        return {**super().describe(), "streamed": self._said(), "looked_at": looked_at}

    def _said(self) -> str:
        store = self.rows.store
        shape = "×".join(map(str, store.shape))
        size = f"{len(store):,} rows of {shape} {store.dtype}, {_size(store.nbytes)}"
        return f"{size}, read as they are needed ({self._why})"

    def stored(self, split: str, index: Int64[Tensor, " batch"]) -> Shaped[Tensor, "batch ..."]:
        self._check(split)
        chosen = index.detach().cpu().numpy()
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.sizes[split]:
            raise IndexError(f"index: {chosen.min()} … {chosen.max()}, {split} has {self.sizes[split]} rows")
        if split == "train":
            values = None if self._ahead is None else self._ahead.take(chosen)
            values = self.rows.of(split, chosen) if values is None else values
            return values.to(self.device, non_blocking=True)
        few = self.looked_at(split)
        if len(chosen) and int(chosen.max()) < few and self._row_bytes * few <= _KEPT:
            if split not in self._kept:
                self._kept[split] = self._in_order(split, few)
            return self._kept[split][torch.from_numpy(chosen)].to(self.device)
        return self.rows.of(split, chosen).to(self.device)

    @property
    def _row_bytes(self) -> int:
        return self.rows.store.row_bytes

    def _in_order(self, split: str, count: int) -> Tensor:
        """The first ``count`` rows of a split, read a piece at a time: in the order of the file, for most of them."""
        parts = [self.rows.of(split, np.arange(at, min(at + 4096, count))) for at in range(0, count, 4096)]
        return torch.cat(parts)

    def raw(self, split: str) -> Shaped[Tensor, "n ..."]:
        """All stored values of ``split``, where they are few.

        Raises:
            DataError: they would take more than half a gigabyte; ask for rows with :meth:`stored`.
        """
        self._check(split)
        size = self.sizes[split]
        if size * self._row_bytes > _WHOLE:
            raise DataError(
                f"{split}: {size:,} rows of {self.name} are streamed and not read as a whole; give fewer "
                f"({split}_limit), or rows of your own"
            )
        return self._in_order(split, size).to(self.device)

    def labels(self, split: str) -> Int64[Tensor, " n"] | None:
        """Class numbers of ``split``, where the store knows them without reading the rows."""
        self._check(split)
        held = self.rows.store.labels()
        if held is None:
            return None
        order = self.rows.splits[split].rows(np.arange(self.sizes[split]))
        return torch.from_numpy(held[order].astype(np.int64)).to(self.device)

    def places(self, split: str) -> Int64[Tensor, " n"]:
        self._check(split)
        return torch.from_numpy(self.rows.splits[split].rows(np.arange(self.sizes[split])))

    def origins(self, split: str, index: Int64[Tensor, " batch"]) -> list[int] | list[str]:
        self._check(split)
        places = self.rows.splits[split].rows(index.cpu().numpy()).tolist()
        return [self._files[place] for place in places] if self._files else places

    def few(self, count: int) -> Int64[Tensor, " count"]:
        """Indices of training rows that stand for all of them: the first of some windows, in a seeded order."""
        return torch.from_numpy(spread(clipped(self.rows.splits["train"].ends, self.sizes["train"]), count))

    def mean(self) -> Tensor:
        """The mean of x over training rows that stand for all (:meth:`few`)."""
        if self._mean is None:
            values = self.rows.of("train", self.few(HELD_OUT).numpy())
            mean = torch.stack([self._protocol.expected(part.to(self.device)).sum(0) for part in values.split(_ROWS)])
            total = mean.sum(0) / len(values)
            self._mean = (total + total.flip(-1)) / 2 if self.flip else total
        return self._mean.to(self.dtype)

    def _fixed_at(self, split: str, index: Tensor, values: Tensor) -> Tensor:
        chosen = index.cpu()
        purpose = f"{self._protocol.purpose}/{split}"
        u = torch.empty(len(chosen), *self.event_shape)
        block = chosen // _ROWS
        for number in block.unique().tolist():
            here = block == number
            u[here] = self._noise_of(purpose, number)[chosen[here] % _ROWS]
        return self._protocol.draw(values, u.to(self.device)).to(self._protocol.stored)

    def _noise_of(self, purpose: str, block: int) -> Tensor:
        key = purpose, block
        if key not in self._noise:
            self._noise[key] = self._block_noise(purpose, block)
            while len(self._noise) > _BLOCKS:
                self._noise.popitem(last=False)
        return self._noise[key]

    def read_ahead(self, rows: Callable[[int], Tensor], steps: range) -> None:
        """Have worker processes read the rows of the steps to come; others are read when they are asked for."""
        from varflow.data.read_ahead import Ahead

        if self._ahead is not None:
            self._ahead.close()
        self._ahead = Ahead(self.rows, rows, steps, self.workers, self.device.type == "cuda")

    def first(self, **limits: int | None) -> Dataset:
        given = self._checked_limits(limits)
        if not given:
            return self
        fewer = self._copy()
        fewer._limits = {**self._limits, **given}
        fewer.windows = clipped(self.rows.splits["train"].ends, fewer.sizes["train"])
        return fewer

    def under(self, preprocessing: Protocol) -> Dataset:
        moved = self._copy()
        moved._protocol = preprocessing.to(torch.device(self.device))
        return moved

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Dataset:
        moved = super().to(device, dtype)
        assert isinstance(moved, Streamed)
        moved._ahead = None
        return moved

    def _copy(self) -> Streamed:
        fewer = copy.copy(self)
        fewer._drawn, fewer._mean, fewer._kept, fewer._ahead = {}, None, {}, None
        fewer._noise = OrderedDict()
        return fewer

    def in_memory(self) -> Dataset:
        """The same rows in memory, in the same orders: every batch is the same to the bit."""
        raw = {split: self._in_order(split, self.sizes[split]) for split in SPLITS}
        labels = {split: self.labels(split) for split in SPLITS}
        held = Dataset(
            self.name,
            self._protocol,
            raw,
            {split: y.cpu() for split, y in labels.items() if y is not None},
            picture=self.picture,
            flip=self.flip,
            seed_eval=self.seed_eval,
            facts=self._facts,
            places={split: self.places(split) for split in SPLITS},
            files=self._files,
        )
        held.windows = self.windows
        return held.to(self.device, self.dtype)


def _tensor(read: Any) -> Tensor:
    """What was read as a tensor of uint8 or floats. It is nobody else's, and copied only where its numbers change."""
    if not isinstance(read, np.ndarray) or read.ndim < 2 or read.dtype not in (np.float32, np.float64, np.uint8):
        return numbers(read, "all")
    usable = read.flags.writeable and read.flags.c_contiguous and read.dtype.isnative
    return torch.from_numpy(read) if usable else numbers(read, "all")


def _size(nbytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"


def spread(ends: Places, count: int) -> Places:
    """``count`` indices, or all there are, in equal parts from the beginnings of the windows that end at ``ends``."""
    size = int(ends[-1])
    if count >= size:
        return np.arange(size, dtype=np.int64)
    begins, sizes = ends - np.diff(ends, prepend=0), np.diff(ends, prepend=0)
    some = np.linspace(0, len(ends) - 1, min(len(ends), 16)).round().astype(np.int64)
    share = -(-count // len(some))
    parts = [np.arange(begins[w], begins[w] + min(share, int(sizes[w]))) for w in np.unique(some)]
    out: Places = np.concatenate(parts)[:count].astype(np.int64)
    return out
