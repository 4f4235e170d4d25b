"""Differences with their intervals, one below the other on a common scale: a forest plot that a page draws itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from varflow.evaluation.estimate import Estimate
from varflow.report.points import tick_words, ticks

#: Standard errors to each side of an interval that covers 95 % of a normal distribution.
WIDE = 1.96
#: What lies to the right of 0, by quantity.
_RIGHT = {
    "log_px": "Right of 0: a larger log p(x) than that of {first}",
    "elbo": "Right of 0: a higher bound than that of {first}",
    "inference_gap": "Left of 0: a smaller gap than that of {first}",
    "approximation_gap": "Left of 0: a smaller gap than that of {first}",
    "amortization_gap": "Left of 0: a smaller gap than that of {first}",
}


class Branch(NamedTuple):
    """A row of the plot; places in per cent of its width.

    Attributes:
        name: of the run.
        value: as words.
        at: of the value; None where it is not finite.
        narrow, wide: both ends of ± one and ± 1.96 standard errors; None where there is no error.
    """

    name: str
    value: str
    at: float | None
    narrow: tuple[float, float] | None
    wide: tuple[float, float] | None


class Forest(NamedTuple):
    """The differences in one quantity."""

    title: str
    unit: str
    told: str
    branches: list[Branch]
    zero: float
    ticks: list[tuple[float, str]]


def forests(
    first: str,
    names: Sequence[str],
    found: Sequence[Mapping[str, Estimate]],
    titles: Mapping[str, str],
    words: Mapping[tuple[str, str], str],
) -> list[Forest]:
    """A plot for each quantity.

    Args:
        first: the run that the others are compared with.
        names: of the others.
        found: for each of them quantity → paired difference.
        titles: quantity → what a reader calls it.
        words: (name, quantity) → the difference in words.
    """
    return [
        _forest(first, quantity, title, [(name, one[quantity], words[name, quantity]) for name, one in rows])
        for quantity, title in titles.items()
        if (rows := [(name, one) for name, one in zip(names, found, strict=True) if quantity in one])
    ]


def _forest(first: str, quantity: str, title: str, rows: Sequence[tuple[str, Estimate, str]]) -> Forest:
    ends = [0.0]
    for _, one, _ in rows:
        if math.isfinite(one.value):
            reach = WIDE * (_error(one) or 0.0)
            ends += [one.value - reach, one.value + reach]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    def interval(one: Estimate, times: float) -> tuple[float, float] | None:
        error = _error(one)
        if error is None or not math.isfinite(one.value):
            return None
        return place(one.value - times * error), place(one.value + times * error)

    branches = [
        Branch(
            name, text, place(one.value) if math.isfinite(one.value) else None, interval(one, 1), interval(one, WIDE)
        )
        for name, one, text in rows
    ]
    return Forest(
        title,
        rows[0][1].unit,
        _RIGHT.get(quantity.rpartition("/")[2], "").format(first=first),
        branches,
        place(0.0),
        [(place(at), tick_words(at)) for at in ticks(low, high, 5)],
    )


def _error(one: Estimate) -> float | None:
    known = one.standard_error is not None and math.isfinite(one.standard_error)
    return one.standard_error if known else None
