"""Whether data are held in memory or read as they are needed; and what a streamed data set learns of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from varflow.core.errors import DataError, SpecError, unknown
from varflow.data.dataset import SPLITS, Dataset
from varflow.data.permutations import Split
from varflow.data.prepare import SPLIT_SEED
from varflow.data.protocols import LEVELS, Protocol, Standardize, column_name
from varflow.data.stores import Store
from varflow.data.streamed import Form, Rows, Streamed, spread
from varflow.data.table import Table

#: Data of more bytes, as they are stored, are streamed unless told.
ABOVE = 2**29
#: Training rows that kinds of columns, grids, tails and levels are found from, at most; of examples that are decoded
#: one by one, fewer.
SAMPLE, FEW = 20_000, 2_000
#: Numbers of a sample, at most.
_NUMBERS = 2**24
#: Means and scales are of all training rows where a pass over the data reads at most so many bytes.
ONE_PASS = 2**32
#: Bytes of the groups of a window, and the most groups of one.
_WINDOW, _GROUPS = 3 * 2**26, 16

HOW = ("auto", "always", "never")
ORDERS = ("auto", "stored", "computed")


class Reading(NamedTuple):
    """How data are read.

    Attributes:
        stream: "auto", "always" or "never".
        permutation: of the split and of each epoch: "stored", "computed", or by what is streamed.
        workers: processes that read beside the one that computes; None for what suits the data.
    """

    stream: str = "auto"
    permutation: str = "auto"
    workers: int | None = None

    def checked(self) -> Reading:
        """These, where they go together.

        Raises:
            SpecError: they do not.
        """
        if self.stream not in HOW:
            raise unknown("stream", self.stream, HOW)
        if self.permutation not in ORDERS:
            raise unknown("permutation", self.permutation, ORDERS)
        if self.stream == "always" and self.permutation == "stored":
            raise SpecError(
                "permutation: was stored, and streamed rows have an order that is computed; use auto, or stream=never"
            )
        if self.workers is not None and self.workers < 0:
            raise SpecError(f"workers: was {self.workers}; use 0 or more")
        return self

    def wants(self, nbytes: int) -> bool:
        """Whether data of so many bytes are streamed."""
        return self.stream == "always" or (
            self.stream == "auto" and self.permutation != "stored" and nbytes > ABOVE
        )

    @property
    def computed(self) -> bool:
        """Whether rows in memory have the order of streamed ones."""
        return self.permutation == "computed"


def streamed(
    store: Store,
    build: Callable[[Tensor, bool], Dataset],
    seed_eval: int,
    reading: Reading,
) -> Dataset:
    """The data set of a store, streamed or (stream="never", permutation="computed") in memory in the same orders.

    Args:
        store: where the rows lie.
        build: makes a data set of rows ``[N, *event]``, by which protocol, levels and pictures are decided; the
            second argument says whether they are a sample.
        seed_eval: as in :func:`varflow.data.load`.
        reading: how rows are read.

    Raises:
        DataError: fewer than three rows, or what the sample shows.
    """
    rows = Rows(store, _splits(store))
    sample, all_of_them = _sample(rows)
    made: Dataset = build(sample, not all_of_them)
    kept = made.preprocessing
    rows.form = _form(made, sample)
    facts: dict[str, Any] = {
        **({"columns": list(store.columns)} if store.columns else {}),
        **({"classes": list(store.classes)} if store.classes else {}),
        "split": "80/10/10 of a permutation computed from a seed",
        "split_seed": SPLIT_SEED,
        **store.facts(),
    }
    told = ""
    if not all_of_them:
        how = f"{len(sample):,} of {len(rows.splits['train']):,} training rows, chosen by a seed"
        kept, told = _learned(kept, rows, how)
    data = Streamed(
        rows,
        kept,
        made.event_shape,
        flip=made.flip,
        seed_eval=seed_eval,
        facts={**facts, **({"learned_from": told} if told else {})},
        why=f"more than {ABOVE // 2**20} MiB" if reading.stream == "auto" else "stream=always",
        workers=reading.workers,
    )
    return data.in_memory() if reading.stream == "never" else data


def _splits(store: Store) -> dict[str, Split]:
    n = len(store)
    tenth = max(1, n // 10)
    shares = (n - 2 * tenth, tenth, tenth)
    if min(shares) < 1:
        raise DataError(f"x: {n} rows to train/validate/test; give at least 3 rows")
    window = 1
    if store.groups:
        largest = max(store.groups) * store.row_bytes
        window = int(np.clip(_WINDOW // max(largest, 1), 1, _GROUPS))
        store.keep_groups(2 * window)
    # Of held-out rows few are read, each once: their windows need not be held in memory.
    windows = {"train": window, "validation": _GROUPS, "test": _GROUPS}
    return {
        split: Split(n, shares, number, store.groups, windows[split], SPLIT_SEED)
        for number, split in enumerate(SPLITS)
    }


def _sample(rows: Rows) -> tuple[Tensor, bool]:
    """Training rows that stand for all, and whether they are all there are."""
    store, order = rows.store, rows.splits["train"]
    one = max(int(np.prod(store.shape, dtype=np.int64)), 1)
    most = max(1, min(SAMPLE if not store.slow else FEW, _NUMBERS // one))
    index = spread(order.ends, most)
    return rows.of("train", index), len(index) == len(order)


def _form(made: Dataset, sample: Tensor) -> Form:
    """How rows become stored values, by what was made of the sample."""
    levels, scale = made.preprocessing.source_levels, 0
    if levels is not None and sample.dtype != torch.uint8:
        scale = 1 if float(sample.max()) > 1 else levels - 1
    unit = levels is None and made.protocol in LEVELS
    return Form(levels, scale, unit, made.picture)


def _learned(kept: Protocol, rows: Rows, how: str) -> tuple[Protocol, str]:
    """What the preprocessing learned of a sample, with means and scales of all training rows where one pass over the
    data gives them; and the sentence that says so.
    """
    if isinstance(kept, Standardize | Table) and rows.store.nbytes <= ONE_PASS and not rows.store.slow:
        loc, scale = _moments(rows)
        whole = f"means and scales are of all {len(rows.splits['train']):,} training rows, in one pass"
        if isinstance(kept, Standardize):
            return replace(kept, loc=loc, scale=scale), whole
        plain = kept.tail == 0
        kept = replace(kept, loc=torch.where(plain, loc, kept.loc), scale=torch.where(plain, scale, kept.scale))
        return kept, f"{whole}; grids and tails of {how}"
    if kept.learned() or kept.source_levels is not None:
        return kept, f"{'means, scales, grids and tails' if kept.learned() else 'the number of levels'} of {how}"
    return kept, ""


def _moments(rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each number over the training rows, float64, in one pass over the store.

    Raises:
        DataError: a column that is constant.
    """
    order, store = rows.splits["train"], rows.store
    count, held = 0, None
    for start, read in store.pieces():
        x = rows.checked(read, np.arange(start, start + len(read)))
        # Twice as fast as both at once.
        low, high = x.amin(0), x.amax(0)
        if held is None:
            # Near the mean, so that the sums lose no digits.
            shift = x[:1000].double().mean(0)
            held = [torch.zeros_like(shift), torch.zeros_like(shift), low, high]
        ours = torch.from_numpy(order.member(start, start + len(x))).double()
        away = x.double().sub_(shift)
        held[0] += torch.tensordot(ours, away, 1)
        held[1] += torch.tensordot(ours, away.square_(), 1)
        held[2:] = torch.minimum(held[2], low), torch.maximum(held[3], high)
        count += int(ours.sum())
    assert held is not None
    mean, low, high = held[0] / count, held[2], held[3]
    variance = held[1] / count - mean.square()
    # What is constant in the training rows alone leaves the rounding errors of its mean.
    constant = (low == high) | ~(variance > 1e-24 * torch.maximum(low.double().square(), high.double().square()))
    if bool(constant.any()):
        column = int(constant.flatten().nonzero()[0])
        raise DataError(
            f"protocol 'standardize': {column_name(column, store.columns)} of the training split is constant "
            f"({float(low.flatten()[column]):g}), its scale would be 0; drop the column or choose protocol 'none'"
        )
    return shift + mean, variance.sqrt()
