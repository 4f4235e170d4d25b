"""Orders of rows that are computed and never stored: where a row comes in an order takes no memory, however many rows
there are.

A permutation of 0 … n − 1 is a Feistel network over pairs (a, b) of Z_A × Z_B with A·B ≥ n: each round adds a
number, drawn by hashing one half with the key of the round, to the other half. So each round can be undone, and the
whole is a bijection of A·B numbers; one that leaves 0 … n − 1 is sent through again until it is back ("cycle
walking"). A is ⌈√n⌉, so that at most √n numbers lie beyond n, and hardly any is walked. All of it is in whole
numbers: the same on every machine.

Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", generalized Feistel and cycle walking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.core import random

Places = NDArray[np.int64]

#: Rounds of a network, half of them for each part of a pair.
_ROUNDS = 8
_PIECE = 2**13
_WORD = np.uint64
#: Of the finalizer of SplitMix64 (Steele, Lea and Flood 2014), whose output bits each depend on all input bits.
_MIX = _WORD(0xBF58476D1CE4E5B9), _WORD(0x94D049BB133111EB)
_SHIFTS, _HALF = (_WORD(30), _WORD(27)), _WORD(32)


class Permutation:
    """A seeded permutation of 0 … n − 1 that takes no memory.

    Args:
        size: n.
        seed, purpose, step: which permutation (:func:`varflow.core.random.derive`).

    Cost: about 0.1 µs a number.

    >>> order = Permutation(10, seed=0, purpose="doc")
    >>> sorted(order(np.arange(10)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, size: int, seed: int, purpose: str, step: int = 0) -> None:
        self.size = size
        self._high = max(math.isqrt(max(size - 1, 0)) + 1, 1)
        self._low = max(-(-size // self._high), 1)
        self._keys = [_WORD(random.derive(seed, f"{purpose}/round {number}", step)) for number in range(_ROUNDS)]

    def __call__(self, places: Places) -> Places:
        """What stands at ``places``: ``[B]``, whole numbers of 0 … n − 1 to such."""
        return self._walk(places, range(_ROUNDS), 1)

    def inverse(self, values: Places) -> Places:
        """Where ``values`` stand: ``self(self.inverse(values)) == values``."""
        return self._walk(values, range(_ROUNDS - 1, -1, -1), -1)

    def _walk(self, numbers: Places, rounds: Sequence[int], sign: int) -> Places:
        numbers = np.asarray(numbers, np.int64)
        found = np.empty_like(numbers)
        # In pieces that stay in the processor's cache.
        for at in range(0, len(numbers), _PIECE):
            part = self._pass(numbers[at : at + _PIECE], rounds, sign)
            while (beyond := np.flatnonzero(part >= self.size)).size:
                part[beyond] = self._pass(part[beyond], rounds, sign)
            found[at : at + _PIECE] = part
        return found

    def _pass(self, numbers: Places, rounds: Sequence[int], sign: int) -> Places:
        high, low = np.divmod(numbers, self._low)
        for number in rounds:
            if number % 2:
                low = _moved(low, _hashed(high, self._keys[number], self._low), self._low, sign)
            else:
                high = _moved(high, _hashed(low, self._keys[number], self._high), self._high, sign)
        out: Places = high * self._low + low
        return out


def _hashed(values: Places, key: Any, size: int) -> Places:
    """A number of 0 … size − 1 for each value, by its value and the key."""
    word = values.view(_WORD) ^ key
    word ^= word >> _SHIFTS[0]
    word *= _MIX[0]
    word ^= word >> _SHIFTS[1]
    word *= _MIX[1]
    # The upper half of the bits, times the size, over 2³²: enough for every size below 2³².
    word >>= _HALF
    word *= _WORD(size)
    word >>= _HALF
    return word.view(np.int64)


def _moved(values: Places, by: Places, size: int, sign: int) -> Places:
    """values ± by, modulo the size; both are below it."""
    if sign > 0:
        out = values + by
        out -= size * (out >= size)
    else:
        out = values - by
        out += size * (out < 0)
    return out


class Split:
    """Which rows of a file are those of a split, as an order of them: index → row of the file.

    Rows that lie in one piece are permuted as a whole, and the splits are cut out of that order. A file of groups
    that are read as a whole (row groups of Parquet, batches of Arrow) is cut within each group, in proportion, so
    that every split has rows of all of them; its order goes through *windows* of some groups, in which rows of all of
    these are mixed.

    Args:
        size: rows of the file.
        shares: of the splits, in order; their sum is the size.
        number: of the split among them.
        groups: rows of each group; without them all rows are one.
        window: groups of a window.
        seed: of the order.
    """

    def __init__(
        self,
        size: int,
        shares: Sequence[int],
        number: int,
        groups: Sequence[int] = (),
        window: int = 1,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        rows = np.array(groups or [size], np.int64)
        ends = rows.cumsum()
        starts = ends - rows
        counts = np.array([_counts(edge, shares) for edge in (0, *ends.tolist())], np.int64)
        each = np.diff(counts, axis=0)
        own = each[:, number]
        # Within a group the splits stand one after the other.
        self._first = each[:, :number].sum(1)
        self._starts, self._rows = starts, rows
        order = Permutation(len(rows), seed, f"split/{number}/groups")(np.arange(len(rows)))
        self._grouped = bool(groups)
        self._windows = [order[at : at + window] for at in range(0, len(order), window)]
        sizes = np.array([int(own[groups_].sum()) for groups_ in self._windows], np.int64)
        self._own, self._number = own, number
        #: Where each window ends in the order.
        self.ends: Places = sizes.cumsum()
        self.size = int(self.ends[-1])

    def __len__(self) -> int:
        return self.size

    def rows(self, index: Places) -> Places:
        """The rows of the file at ``index`` of the split."""
        index = np.asarray(index, np.int64)
        if not self._grouped:
            return self._within(0, index + self._first[0])
        out = np.empty_like(index)
        for number, chosen, place in by_window(self.ends, index):
            groups = self._windows[number]
            edges = self._own[groups].cumsum()
            mixed = Permutation(int(edges[-1]), self.seed, f"split/{self._number}/window", number)(place)
            found = np.empty_like(mixed)
            for one, here, at in by_window(edges, mixed):
                group = int(groups[one])
                found[here] = self._within(group, at + self._first[group])
            out[chosen] = found
        return out

    def _within(self, group: int, places: Places) -> Places:
        order = Permutation(int(self._rows[group]), self.seed, "split", group)
        return order(places) + self._starts[group]

    def member(self, start: int, stop: int) -> Any:
        """Which of the rows start … stop − 1 of the file, in one group, are of the split: ``[stop − start]``."""
        group = int(np.searchsorted(self._starts, start, side="right")) - 1
        order = Permutation(int(self._rows[group]), self.seed, "split", group)
        place = order.inverse(np.arange(start, stop) - self._starts[group]) - self._first[group]
        return (place >= 0) & (place < self._own[group])


def _counts(rows: int, shares: Sequence[int]) -> list[int]:
    """How many of the first ``rows`` rows each split has: in proportion, and never fewer of more rows."""
    out, left, of = [], rows, sum(shares)
    for share in shares:
        out.append(left * share // of if of else 0)
        left, of = left - out[-1], of - share
    return out


def by_window(ends: Places, index: Places) -> list[tuple[int, Any, Places]]:
    """(window, which of ``index`` lie in it, their places in it), for each window that has some."""
    window = np.searchsorted(ends, index, side="right")
    out = []
    for number in np.unique(window):
        chosen = window == number
        begin = int(ends[number - 1]) if number else 0
        out.append((int(number), chosen, index[chosen] - begin))
    return out


def clipped(ends: Places, size: int) -> Places:
    """The windows of the first ``size`` rows of a split."""
    return np.unique(np.minimum(ends, size))


class Epoch:
    """The order of an epoch: position → index of the training split, a fresh permutation in each.

    Windows (:class:`Split`) come one after the other in a fresh order, each with a fresh order of its rows: what lies
    near in the order lies near in the file. Of one window it is a permutation of all rows.

    Args:
        ends: of the windows of the split.
        seed: of the run.
        epoch: which.
    """

    def __init__(self, ends: Places, seed: int, epoch: int) -> None:
        self.seed, self.epoch = seed, epoch
        sizes = np.diff(ends, prepend=0)
        self._order = Permutation(len(sizes), seed, "shuffle/windows", epoch)(np.arange(len(sizes)))
        self._begins = ends - sizes
        self._sizes = sizes
        self._ends = sizes[self._order].cumsum()

    def __call__(self, start: int, stop: int) -> Places:
        """The indices at the positions start … stop − 1."""
        positions = np.arange(start, stop, dtype=np.int64)
        out = np.empty_like(positions)
        for number, chosen, place in by_window(self._ends, positions):
            window = int(self._order[number])
            purpose = f"shuffle/window {window}"
            order = Permutation(int(self._sizes[window]), self.seed, purpose, self.epoch)
            out[chosen] = order(place) + self._begins[window]
        return out
