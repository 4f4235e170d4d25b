"""Orders that are computed: each is a bijection, they differ, and splits of groups have rows of all of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from varflow.data.permutations import Epoch, Permutation, Split, clipped

GROUPS = [(1000, (), 1), (1000, (100,) * 10, 3), (103, (50, 50, 3), 2), (10, (1,) * 10, 4), (47, (7, 1, 30, 9), 1)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 10, 64, 97, 1000, 12_345])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_permutation_is_a_bijection_with_its_inverse(size: int, seed: int) -> None:
    order = Permutation(size, seed, "test")
    found = order(np.arange(size))
    assert np.array_equal(np.sort(found), np.arange(size))
    assert np.array_equal(order.inverse(found), np.arange(size))


def test_random_sizes_and_seeds() -> None:
    draw = np.random.default_rng(0)
    for size, seed in zip(draw.integers(1, 5000, 40), draw.integers(0, 2**40, 40), strict=True):
        found = Permutation(int(size), int(seed), "test")(np.arange(size))
        assert np.array_equal(np.sort(found), np.arange(size))


def test_a_huge_one_takes_no_memory_and_is_undone() -> None:
    order, places = Permutation(10**12, 3, "test"), np.array([0, 1, 10**11, 10**12 - 1])
    found = order(places)
    assert found.min() >= 0
    assert found.max() < 10**12
    assert np.array_equal(order.inverse(found), places)


def test_all_orders_of_four_are_equally_frequent() -> None:
    counts = Counter(tuple(Permutation(4, seed, "test")(np.arange(4)).tolist()) for seed in range(2400))
    assert len(counts) == 24
    # χ² with 23 degrees of freedom: above 60 once in 30,000.
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 60


def test_neighbours_are_torn_apart() -> None:
    found = Permutation(10_000, 1, "test")(np.arange(10_000))
    # Their correlation has a standard error of 0.01.
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(found, np.arange(10_000))[0, 1]) < 0.05


@pytest.mark.parametrize(("size", "groups", "window"), GROUPS)
def test_splits_are_disjoint_and_whole(size: int, groups: tuple[int, ...], window: int) -> None:
    tenth = max(1, size // 10)
    shares, seen = (size - 2 * tenth, tenth, tenth), []
    for number in range(3):
        split = Split(size, shares, number, groups, window)
        assert len(split) == shares[number]
        rows = split.rows(np.arange(len(split)))
        start, members = 0, []
        for group in groups or (size,):
            members += (np.flatnonzero(split.member(start, start + group)) + start).tolist()
            start += group
        assert sorted(rows.tolist()) == members
        seen += members
    assert sorted(seen) == list(range(size))


@pytest.mark.parametrize(("size", "groups", "window"), GROUPS)
def test_an_epoch_reads_every_row_once_and_the_next_in_another_order(
    size: int, groups: tuple[int, ...], window: int
) -> None:
    ends = Split(size, (size - 2, 1, 1), 0, groups, window).ends
    first, second = (Epoch(ends, 5, epoch)(0, size - 2) for epoch in (0, 1))
    for order in (first, second):
        assert np.array_equal(np.sort(order), np.arange(size - 2))
    assert not np.array_equal(first, second)
    # Pieces of it are the same as all of it.
    pieces = [Epoch(ends, 5, 0)(at, min(at + 3, size - 2)) for at in range(0, size - 2, 3)]
    assert np.array_equal(np.concatenate(pieces), first)


def test_groups_have_rows_of_every_split_and_an_epoch_takes_window_after_window() -> None:
    groups = (100,) * 20
    held = Split(2000, (1600, 200, 200), 1, groups, 16)
    assert np.bincount(held.rows(np.arange(200)) // 100, minlength=20).tolist() == [10] * 20
    train = Split(2000, (1600, 200, 200), 0, groups, 4)
    order = train.rows(Epoch(train.ends, 0, 0)(0, 1600)) // 100
    assert [len(set(order[at : at + 320].tolist())) for at in range(0, 1600, 320)] == [4] * 5


def test_fewer_rows_are_the_first_of_the_same_order() -> None:
    ends = Split(1000, (800, 100, 100), 0, (100,) * 10, 3).ends
    assert clipped(ends, 250).tolist() == [240, 250]
    assert np.array_equal(np.sort(Epoch(clipped(ends, 250), 0, 0)(0, 250)), np.arange(250))
