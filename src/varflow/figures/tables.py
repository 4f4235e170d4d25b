"""Tables whose columns are each of a kind: marginals, missing cells, and what was said of removed ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from varflow.core.columns import NAMED, Column
from varflow.core.errors import ShapeError
from varflow.figures.base import AFTER, BEFORE, INK, VALIDATION, Array, as_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Values of a category that are shown by themselves, letters of a name, and whole numbers that get bars.
_VALUES, _LETTERS, _BARS = 12, 18, 40
#: Patterns of missing cells that are shown.
_PATTERNS = 12


def short(name: str, letters: int = _LETTERS) -> str:
    """A name that fits beside an axis; a dollar sign in it is a dollar sign."""
    text = name if len(name) <= letters else name[: letters - 1] + "…"
    return text.replace("$", r"\$")


def date_ticks(axis: Any) -> None:
    """A few days, as 2024-03-01, on an axis of days since 1970-01-01; times where they are within three days."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def written(day: float, place: Any) -> str:
        low, high = sorted(axis.get_view_interval())
        if not abs(day) < 3e6:
            return ""
        stamp = np.datetime64(round(day * 86400), "s")
        return str(stamp.astype("datetime64[D]")) if high - low > 3 else str(stamp)[5:16].replace("T", " ")

    axis.set_major_locator(MaxNLocator(3))
    axis.set_major_formatter(FuncFormatter(written))


def _log_axis(axis: Any) -> None:
    """No labels but at powers of ten, where there are two of them; others would lie on each other."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = np.log10(axis.get_view_interval())
    if np.floor(high) > np.ceil(low):
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_minor_locator(LogLocator(subs=(1.0, 3.0)))


def marginal(data: Float[Array, " N"], samples: Float[Array, " M"], column: Column, axes: Axes) -> Axes:
    """A column of a table: data in grey, samples of the model in blue, in the units of the table.

    Numbers as histograms over the central 99.8 % of the data, with all cells counted; a positive column on a
    logarithmic axis. Values of a category, and counts of a short range, as bars.

    Args:
        data, samples: stored values, NaN where a cell is missing.
        column: what is known of it.
        axes: where to draw.

    Raises:
        ShapeError: no cell of the data is there.
    """
    real, made = as_numpy("data", data, None), as_numpy("samples", samples, None)
    real, made = real[~np.isnan(real)], made[~np.isnan(made)]
    if not real.size:
        raise ShapeError(f"data: no cell of column '{column.name}' is there; give at least one")
    axes.set_title(short(column.name, 30))
    if column.kind in NAMED:
        _bars(real, made, np.arange(len(column.categories)), [short(name) for name in column.categories], axes)
        return axes
    low, high = np.quantile(real, [0.001, 0.999])
    # Few cells fill few bins.
    bars = int(np.clip(2 * np.sqrt(real.size), 10, 40))
    if column.kind == "count" and high - low < _BARS:
        _bars(real, made, np.arange(int(low), int(high) + 1), None, axes)
        return axes
    if column.kind == "date":
        date_ticks(axes.xaxis)
    if column.kind == "positive":
        bins = np.geomspace(low, high if high > low else 1.01 * low, bars + 1)
        axes.set_xscale("log")
    elif column.kind == "count":
        # Bins of as many whole numbers each.
        width = max(int(np.ceil((high - low) / bars)), 1)
        bins = np.arange(int(low), int(high) + 1 + width, width) - 0.5
    else:
        margin = 0.02 * (high - low) + 1e-9 * max(abs(low), 1.0)
        bins = np.linspace(low - margin, high + margin, bars + 1)
    for values, look in ((real, {"color": BEFORE}), (made, {"color": AFTER, "histtype": "step", "linewidth": 1.3})):
        axes.hist(values, bins=bins.tolist(), weights=np.full(len(values), 1 / max(len(values), 1)), **look)
    axes.set_xlim(bins[0], bins[-1])
    axes.set_yticks([])
    if column.kind == "positive":
        _log_axis(axes.xaxis)
    return axes


def _bars(real: np.ndarray, made: np.ndarray, codes: np.ndarray, names: list[str] | None, axes: Axes) -> None:
    """Shares of values, those of the data beside those of the samples."""
    shares = [np.array([(v == code).mean() if v.size else 0.0 for code in codes]) for v in (real, made)]
    if names is not None and len(codes) > _VALUES:
        # The most frequent ones, as they are in the data.
        codes = np.sort(np.argsort(-shares[0], kind="stable")[:_VALUES])
        shares, names = [share[codes] for share in shares], [names[code] for code in codes]
    place = np.arange(len(codes)) if names is not None else codes
    axes.bar(place - 0.2, shares[0], width=0.4, color=BEFORE)
    axes.bar(place + 0.2, shares[1], width=0.4, color=AFTER)
    axes.set_yticks([])
    if names is None:
        axes.locator_params(axis="x", integer=True)
        return
    long = sum(map(len, names)) > 24
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if long else {}
    axes.set_xticks(place, names, fontsize=8, **turned)


def legend(axes: Axes) -> None:
    """What the colours of :func:`marginal` are."""
    from matplotlib.patches import Patch

    handles = [Patch(color=BEFORE, label="data"), Patch(color=AFTER, label="samples of the model")]
    axes.legend(handles=handles, loc="center", fontsize=9)
    axes.set_axis_off()


def missing_cells(
    missing: Bool[Array, "N D"], names: Sequence[str], axes_pair: Sequence[Axes]
) -> tuple[Axes, Axes]:
    """Left: the share of missing cells of each column. Right: the most frequent patterns, a row each, missing cells
    dark, with the share of rows that have it.

    Args:
        missing: which cells are missing.
        names: of the columns.
        axes_pair: left and right.

    Raises:
        ShapeError: not as many names as columns.
    """
    gone = as_numpy("missing", missing, None, len(names)) > 0.5
    left, right = axes_pair
    share = gone.mean(0)
    place = np.arange(len(names))
    left.barh(place, share, color=AFTER)
    left.set(xlabel="share of missing cells", ylim=(len(names) - 0.4, -0.6))
    left.set_xlim(0, max(1.1 * float(share.max()), 0.01))
    left.locator_params(axis="x", nbins=5)
    left.set_yticks(place, [short(name) for name in names], fontsize=8 if len(names) <= 25 else 5)
    patterns, counts = np.unique(gone, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_PATTERNS]
    right.imshow(patterns[order], cmap="Blues", vmin=0, vmax=1.3, aspect="auto", interpolation="nearest")
    right.set_yticks(np.arange(len(order)), [f"{counts[k] / len(gone):.1%}" for k in order], fontsize=8)
    step = max(len(names) // 25, 1)
    right.set_xticks(place[::step], [short(name) for name in names][::step], fontsize=8, rotation=60, ha="right")
    right.set_title(f"{len(order)} of {len(patterns):,} patterns, dark where missing")
    right.set_ylabel("share of rows")
    return left, right


def imputed_values(truth: Float[Array, " M"], value: Float[Array, " M"], column: Column, axes: Axes) -> Axes:
    """Removed cells of a column against what was filled in; of named values how often each was taken for each."""
    true, filled = as_numpy("truth", truth, None), as_numpy("value", value, None)
    axes.set_title(short(column.name, 30))
    if column.kind in NAMED:
        size = len(column.categories)
        table = np.zeros((size, size))
        np.add.at(table, (filled.astype(int), true.astype(int)), 1)
        shares = table / np.maximum(table.sum(0, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
        names = [short(name, 10) for name in column.categories]
        if size <= _VALUES:
            turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if sum(map(len, names)) > 18 else {}
            axes.set_xticks(range(size), names, fontsize=7, **turned)
            axes.set_yticks(range(size), names, fontsize=7)
            for i in range(size):
                for j in range(size):
                    if table[i, j]:
                        axes.text(
                            j, i, f"{int(table[i, j])}", ha="center", va="center", fontsize=7,
                            color="white" if shares[i, j] > 0.55 else INK,
                        )  # fmt: skip
        return axes
    axes.scatter(true, filled, s=8, color=AFTER, alpha=0.6, linewidths=0)
    low, high = min(true.min(), filled.min()), max(true.max(), filled.max())
    if column.kind == "positive":
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = 0.9 * low, 1.1 * high
    else:
        margin = 0.05 * (high - low) + 1e-9 * max(abs(low), 1.0)
        low, high = low - margin, high + margin
    axes.plot([low, high], [low, high], color=VALIDATION, linewidth=1)
    axes.set(xlim=(low, high), ylim=(low, high))
    if column.kind == "positive":
        _log_axis(axes.xaxis)
        _log_axis(axes.yaxis)
    if column.kind == "date":
        date_ticks(axes.xaxis)
        date_ticks(axes.yaxis)
    axes.tick_params(labelsize=8, which="both")
    return axes


def coverage(rank: Float[Array, " M"], groups: Float[Array, " M"], axes: Axes) -> Axes:
    """The share of cells inside of central intervals against the probability that the intervals have.

    Args:
        rank: the probability below each cell; uniform where it is right. NaN where there is none.
        groups: the row of each cell: cells of a row are one draw, for the error bars of two standard errors.
        axes: where to draw.

    Raises:
        ShapeError: no cell has a rank.
    """
    ranks = as_numpy("rank", rank, None)
    rows = as_numpy("groups", groups, len(ranks))
    rows, ranks = rows[~np.isnan(ranks)], ranks[~np.isnan(ranks)]
    if not ranks.size:
        raise ShapeError("rank: no cell has one; give at least one")
    _, rows = np.unique(rows, return_inverse=True)
    widths = np.linspace(0.05, 0.95, 19)
    found, errors = [], []
    for width in widths:
        inside = np.abs(ranks - 0.5) <= width / 2
        share = inside.mean()
        moved = np.bincount(rows, inside - share)
        found.append(share)
        errors.append(2 * np.sqrt(np.square(moved).sum()) / len(ranks))
    axes.plot([0, 1], [0, 1], color=BEFORE, linewidth=1.2)
    axes.errorbar(widths, found, yerr=errors, color=AFTER, marker="o", markersize=3.5, capsize=2, linewidth=1)
    axes.set(
        xlabel="probability of the interval", ylabel="share of removed cells inside", xlim=(0, 1), ylim=(0, 1.02),
        title=f"{len(ranks):,} numbers",
    )  # fmt: skip
    return axes


def ranks(rank: Float[Array, " M"], axes: Axes) -> Axes:
    """Histogram of the probability below each cell, with the band that 95 % of bars of a uniform one lie in."""
    values = as_numpy("rank", rank, None)
    values = values[~np.isnan(values)]
    bins = 20 if len(values) >= 400 else 10
    counts, edges = np.histogram(values, bins=bins, range=(0, 1))
    expected, spread = len(values) / bins, 1.96 * np.sqrt(len(values) * (1 / bins) * (1 - 1 / bins))
    axes.axhspan(max(expected - spread, 0), expected + spread, color="#E8E8E8", zorder=0)
    axes.axhline(expected, color=BEFORE, linewidth=1.2, zorder=1)
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=AFTER, alpha=0.8, edgecolor="white")
    axes.set(
        xlabel="probability below the removed cell", ylabel="cells", xlim=(0, 1), ylim=(0, None),
        title="uniform where the spread is right",
    )  # fmt: skip
    return axes


def reliability(stated: Float[Array, " M"], right: Float[Array, " M"], axes: Axes) -> Axes:
    """How often the most probable value is right, against the probability that it was given; cells in groups of as
    many each, with two standard errors.

    Raises:
        ShapeError: no cells.
    """
    said = as_numpy("stated", stated, None)
    hit = as_numpy("right", right, len(said))
    if not said.size:
        raise ShapeError("stated: no cells; give at least one")
    order = np.argsort(said, kind="stable")
    groups = np.array_split(order, min(10, max(len(said) // 20, 1)))
    x = [said[group].mean() for group in groups]
    y = [hit[group].mean() for group in groups]
    error = [2 * np.sqrt(max(p * (1 - p), 0.25 / len(g)) / len(g)) for p, g in zip(y, groups, strict=True)]
    axes.plot([0, 1], [0, 1], color=BEFORE, linewidth=1.2)
    axes.errorbar(x, y, yerr=error, color=AFTER, marker="o", markersize=4, capsize=2, linewidth=1)
    axes.set(
        xlabel="probability of the most probable value", ylabel="share that are right", xlim=(0, 1.02),
        ylim=(0, 1.05), title=f"{len(said):,} named values",
    )  # fmt: skip
    return axes
