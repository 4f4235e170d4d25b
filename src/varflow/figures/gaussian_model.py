"""The Gaussian model by dimension: what was learned beside its closed-form references."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from varflow.core.errors import DataError, ShapeError
from varflow.figures.base import INK, categories

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from varflow.evaluation import Evaluation

_PANELS = (
    ("shift_error", "‖Δ − x̄‖²"),
    ("scale_error", "‖σ − σ*‖²"),
    ("kl_q_p", "log p(D) − ELBO (nats)"),
)
_MARKERS = "osD^vP*X"


def rows_of(evaluation: Evaluation, family: str, dimensions: int) -> list[dict[str, Any]]:
    """The fits of an evaluation as rows for :func:`error_by_dimension`, one each."""
    names = [key for key, _ in _PANELS] + ["scale_floor", "scale_floor_expected"]
    arrays = {
        name: evaluation.per_example[name] for name in names if name in evaluation.per_example
    }
    return [
        {
            "family": family,
            "dimensions": dimensions,
            **{n: float(a[fit]) for n, a in arrays.items()},
        }
        for fit in range(len(evaluation.per_example["index"]))
    ]


def error_by_dimension(
    rows: Sequence[Mapping[str, Any]],
    axes: Sequence[Axes],
    gaps: Mapping[str, Mapping[int, float]] | None = None,
) -> Sequence[Axes]:
    """Three panels against the dimension d, on logarithmic scales: errors of Δ and σ, gap of the bound.

    A line joins the geometric means over data sets or seeds; the single fits are dots. The floor that
    maximum likelihood reaches on the same data stands in the middle panel, closed-form gaps in the right.
    A value of zero or below (a bound that is exact up to rounding or noise) cannot stand on a logarithmic
    scale: it is drawn at the lower edge as an open triangle, and no line runs through that dimension.

    Args:
        rows: each with ``family``, ``dimensions`` and any of ``shift_error``, ``scale_error``, ``kl_q_p``,
            ``scale_floor``; see :func:`rows_of`.
        axes: three axes.
        gaps: name → {d: nats}, closed-form gaps to draw in.

    Raises:
        DataError: no rows, or a row without family and dimensions.
        ShapeError: not three axes.
    """
    if len(axes) != len(_PANELS):
        raise ShapeError(f"axes: {len(axes)} of them; give three")
    if not rows:
        raise DataError("rows: there are none; give the results of one fit or more")
    for row in rows:
        if not {"family", "dimensions"} <= row.keys():
            raise DataError(f"rows: one has {sorted(row)}; it needs family and dimensions")
    families = list(dict.fromkeys(str(row["family"]) for row in rows))
    for panel, (key, label) in zip(axes, _PANELS, strict=True):
        panel.set(xlabel="dimension d", ylabel=label, xscale="log", yscale="log")
        below: list[tuple[float, Any]] = []
        for family, colour, marker in zip(
            families, categories(len(families)), _cycle(), strict=False
        ):
            points = _points([r for r in rows if r["family"] == family], key)
            below += [(d, colour) for d, values in points.items() for v in values if v <= 0]
            kept = {d: [v for v in values if v > 0] for d, values in points.items()}
            kept = {d: values for d, values in kept.items() if values}
            if not kept:
                continue
            for d, values in kept.items():
                panel.plot(
                    [d] * len(values), values, marker, color=colour, markersize=3, alpha=0.4, mew=0
                )
            whole = {d: values for d, values in kept.items() if len(values) == len(points[d])}
            means = [math.exp(np.log(values).mean()) for values in whole.values()]
            panel.plot(
                list(whole),
                means,
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.3,
                label=family,
            )
        if key == "scale_error":
            _reference(panel, _floor(rows), "maximum likelihood", ":")
        if key == "kl_q_p":
            for style, (name, gap) in zip(("--", "-.", ":"), (gaps or {}).items(), strict=False):
                _reference(panel, {d: [nats] for d, nats in gap.items()}, name, style)
        for at, colour in below:
            panel.plot(
                at, 0.01, marker="v", transform=panel.get_xaxis_transform(), markerfacecolor="none",
                markeredgecolor=colour, markersize=6, clip_on=False,
            )  # fmt: skip
        sizes = sorted({int(row["dimensions"]) for row in rows})
        panel.set_xticks(sizes, [str(d) for d in sizes])
        panel.minorticks_off()
    lines: dict[str, Any] = {}
    for panel in axes:
        handles, names = panel.get_legend_handles_labels()
        lines.update(dict(zip(names, handles, strict=True)))
    if lines:
        axes[0].figure.legend(
            list(lines.values()), list(lines), loc="outside upper center", ncols=min(len(lines), 5), fontsize=9,
        )  # fmt: skip
    return axes


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> dict[int, list[float]]:
    """d → finite values, in order of d."""
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: int(row["dimensions"])):
        value = row.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            found.setdefault(int(row["dimensions"]), []).append(float(value))
    return found


def _floor(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[float]]:
    return _points(rows, "scale_floor") or _points(rows, "scale_floor_expected")


def _reference(axes: Axes, points: Mapping[int, Sequence[float]], name: str, style: str) -> None:
    ordered = sorted((d, float(np.mean(values))) for d, values in points.items())
    if ordered:
        d, values = zip(*ordered, strict=True)
        axes.plot(d, values, color=INK, linestyle=style, linewidth=1.2, label=name, zorder=1)


def _cycle() -> str:
    return _MARKERS * 4
