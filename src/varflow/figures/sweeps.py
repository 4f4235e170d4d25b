"""Figures of a sweep: how it went, and its value against each setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from varflow.core.errors import DataError
from varflow.figures.base import AFTER, BEFORE, INK, VALIDATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How much is shown below the lower quartile of the finished trials, in units of what lies above it.
_BELOW = 2.0


def progress_of_trials(numbers: Sequence[int], values: Sequence[float], kept: Sequence[bool], axes: Axes) -> Axes:
    """The value of each trial against its number, and the best so far.

    Args:
        numbers, values: of the trials that have a value.
        kept: whether each was trained to its end; the others were pruned.
        axes: where to draw.

    Raises:
        DataError: there is none.
    """
    from matplotlib.ticker import MaxNLocator

    x, y, whole = np.asarray(numbers), np.asarray(values, dtype=float), np.asarray(kept, dtype=bool)
    if not whole.any():
        raise DataError("values: no trial was trained to its end; there is nothing to draw")
    axes.scatter(x[~whole], y[~whole], marker="x", color=BEFORE, s=28, label="pruned")
    axes.scatter(x[whole], y[whole], color=AFTER, s=28, label="trained to its end")
    order = np.argsort(x[whole])
    best = np.maximum.accumulate(y[whole][order])
    axes.step(x[whole][order], best, where="post", color=INK, linewidth=1.0, label="best so far")
    axes.set(xlabel="trial", ylabel="validation bound (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _frame(axes, y, y[whole])
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    return axes


def values_by_setting(
    name: str, trials: Sequence[Mapping[str, Any]], values: Sequence[float], axes: Axes, log: bool = False
) -> Axes:
    """The value against one setting, for the trials that have it; the best is marked.

    Args:
        name: of the setting.
        trials: the settings of each trial.
        values: of each trial.
        axes: where to draw. A setting that is no number gets a place for each of its values.
        log: a logarithmic axis.

    Raises:
        DataError: no trial has this setting.
    """
    met = [(settings[name], value) for settings, value in zip(trials, values, strict=True) if name in settings]
    if not met:
        raise DataError(f"name: no trial has the setting '{name}'")
    found, heights = [one for one, _ in met], np.array([value for _, value in met])
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in found)
    if numbers:
        places = np.array(found, dtype=float)
        if log:
            from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

            axes.set_xscale("log")
            # The minor labels of a narrow panel would lie above each other.
            decades = np.log10(places.max() / places.min())
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        names = sorted(set(map(str, found)))
        places = np.array([names.index(str(one)) for one in found], dtype=float)
        axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0)
        axes.set_xlim(-0.6, len(names) - 0.4)
    axes.scatter(places, heights, color=AFTER, s=24, alpha=0.8)
    top = int(heights.argmax())
    axes.scatter(places[top], heights[top], s=90, facecolor="none", edgecolor=VALIDATION, linewidth=1.6)
    axes.set_xlabel(name)
    _frame(axes, heights, heights)
    return axes


def _frame(axes: Axes, values: np.ndarray, whole: np.ndarray) -> None:
    """Leave far-off trials below the frame, so that the others can be told apart."""
    top, quartile = float(whole.max()), float(np.quantile(whole, 0.25))
    if not math.isfinite(top - quartile) or top <= quartile:
        return
    low = max(float(values.min()), quartile - _BELOW * (top - quartile))
    pad = 0.08 * (top - low)
    axes.set_ylim(low - pad, top + pad)
    hidden = int((values < low).sum())
    if hidden:
        axes.annotate(
            f"{hidden} below", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=8, color="#666666"
        )
