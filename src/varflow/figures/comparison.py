"""Figures of several runs in one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from varflow.core.errors import DataError, ShapeError
from varflow.figures.base import as_numpy, categories

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def overlaid_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], axes: Axes) -> Axes:
    """The validation ELBO of several runs against the step; the training ELBO where there is no validation.

    The frame fits the last 80 % of the steps, so that a steep beginning does not flatten the differences.

    Args:
        runs: name → rows of metrics.jsonl.
        axes: where to draw.

    Raises:
        DataError: no run has a row with a step and a finite ELBO.
    """
    drawn = {name: _curve(rows) for name, rows in runs.items()}
    if not any(len(steps) for steps, _ in drawn.values()):
        raise DataError(
            "runs: none has a row with a step and a finite elbo; pass the rows of metrics.jsonl"
        )
    last = max(steps[-1] for steps, _ in drawn.values() if len(steps))
    late = []
    for (name, (steps, values)), colour in zip(drawn.items(), categories(len(drawn)), strict=True):
        marker = "o" if len(steps) <= 60 else ""
        axes.plot(steps, values, color=colour, marker=marker, markersize=3, label=name)
        late.append(values[steps >= 0.2 * last])
    kept = np.concatenate(late)
    low, high = np.quantile(kept, [0.02, 1.0])
    margin = 0.06 * (high - low) + 1e-9 * abs(high) + 1e-12
    axes.set(
        xlabel="step", ylabel="ELBO (nats)", xlim=(0, 1.02 * last), ylim=(low - margin, high + margin)
    )  # fmt: skip
    _legend(axes)
    return axes


def bound_by_samples(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]], axes: Axes
) -> Axes:
    """The importance-weighted bound against its number of samples, on a logarithmic axis.

    Args:
        curves: name → (k, the bound L_k in nats, its error), each of one length.
        axes: where to draw.

    Raises:
        ShapeError: the three differ in length, or are empty.
    """
    if not curves:
        raise ShapeError("curves: is empty; give one for each run")
    for (name, curve), colour in zip(curves.items(), categories(len(curves)), strict=True):
        counts = as_numpy("counts", curve[0], None)
        values = as_numpy("values", curve[1], len(counts))
        errors = as_numpy("errors", curve[2], len(counts))
        if not len(counts):
            raise ShapeError("curves: one has no points; give at least one number of samples")
        known = np.where(np.isfinite(errors), errors, 0.0)
        axes.errorbar(
            counts, values, yerr=known, color=colour, marker="o", markersize=4, capsize=2, label=name
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set(xlabel="importance samples k", ylabel="bound of log p(x) (nats)")
    _legend(axes)
    return axes


def _curve(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    for split in ("validation", "train"):
        found = [
            (float(row["step"]), float(row["elbo"]))
            for row in rows
            if row.get("split") == split
            and "step" in row
            and isinstance(row.get("elbo"), int | float)
            and np.isfinite(row["elbo"])
        ]
        if found:
            steps, values = np.array(found).T
            return steps, values
    return np.empty(0), np.empty(0)


def _legend(axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(loc="lower right", fontsize=8)
