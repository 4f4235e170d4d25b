"""Points: where q puts the latents, before and after the flow; rows of data beside what a model makes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from varflow.core.errors import ShapeError
from varflow.figures.base import AFTER, BEFORE, INK, Array, as_numpy, categories

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

#: More classes than these are told apart by the names in the plot alone.
_LEGEND = 20
#: Letters of the name of a class.
_NAME = 20


def latents(
    z0: Float[Array, "N D"],
    z: Float[Array, "N D"],
    labels: Int[Array, " N"] | None,
    axes_pair: Sequence[Axes],
    contours: bool = True,
    classes: Sequence[str] = (),
) -> tuple[Axes, Axes]:
    """The same draws before (left) and after (right) the flow, on the same axes.

    For D > 2 both panels show the two principal directions of z, not centred: N(0, I) seen along
    orthonormal directions is N(0, I) again, so the contours keep their meaning.

    Args:
        z0: base draws ``[N, D]``.
        z: the same draws after the flow ``[N, D]``.
        labels: classes ``[N]``, or None. Each is named in the legend, and at its median where
            the names do not collide.
        axes_pair: the left and the right axes.
        contours: draw N(0, I) at 1, 2, 3 standard deviations.
        classes: the names of the classes 0, 1, …; their numbers without it.

    Raises:
        ShapeError: z0 and z differ in shape, or are not ``[N, D]``.
    """
    after = as_numpy("z", z, None, None)
    before = as_numpy("z0", z0, *after.shape)
    left, right = axes_pair
    directions, names = view(after)
    frame = limits(np.concatenate([before @ directions, after @ directions]), contours)
    for axes, points, title, symbol in (
        (left, before, "before the flow: draws of $q_0(z_0|x)$", "z_0"),
        (right, after, "after the flow: the same draws as $q(z|x)$", "z"),
    ):
        _scatter(points @ directions, labels, axes, contours, legend=axes is right, called=classes)
        axes.set(title=title, xlim=frame[0], ylim=frame[1])
        axes.set_xlabel(names[0].format(symbol))
        axes.set_ylabel(names[1].format(symbol))
    return left, right


def latent_scatter(
    z: Float[Array, "N D"],
    labels: Int[Array, " N"] | None,
    axes: Axes,
    contours: bool = True,
    classes: Sequence[str] = (),
) -> Axes:
    """One draw of q(z|x) for each of N examples; arguments as in :func:`latents`."""
    points = as_numpy("z", z, None, None)
    directions, names = view(points)
    points = points @ directions
    _scatter(points, labels, axes, contours, called=classes)
    frame = limits(points, contours)
    axes.set(xlim=frame[0], ylim=frame[1])
    axes.set_xlabel(names[0].format("z"))
    axes.set_ylabel(names[1].format("z"))
    return axes


def aggregate(z: Float[Array, "N D"], axes: Axes) -> Axes:
    """Mean and standard deviation of each latent under the aggregated posterior.

    q(z) = E_data q(z|x) against the prior, the band 0 ± 1. Where the bars leave the band or fall
    short of it, draws of the prior are not what the decoder was trained on.

    Args:
        z: one draw for each example ``[N, D]``, N ≥ 2.
        axes: where to draw.
    """
    values = as_numpy("z", z, None, None)
    if len(values) < 2:
        raise ShapeError(f"z: {len(values)} draws; a standard deviation needs two or more")
    dimensions = np.arange(1, values.shape[1] + 1)
    axes.axhspan(-1, 1, color="#E8E8E8", label="prior, 0 ± 1", zorder=0)
    axes.axhline(0, color="#AAAAAA", linewidth=0.8, zorder=1)
    axes.errorbar(
        dimensions, values.mean(0), yerr=values.std(0, ddof=1), fmt="o", color=AFTER, markersize=4,
        elinewidth=1.5, capsize=2, label="q(z), mean ± standard deviation",
    )  # fmt: skip
    axes.set(xlabel="latent dimension", ylabel="value", xlim=(0.3, len(dimensions) + 0.7))
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return axes


def plane(
    panels: Mapping[str, Float[Array, "N 2"]],
    axes: Sequence[Axes],
    labels: Int[Array, " N"] | None = None,
    names: Sequence[str] = (),
) -> Sequence[Axes]:
    """A scatter for each title, all in the frame of the first, which holds all of its points.

    Args:
        panels: title → points ``[N, 2]``; the first are the data.
        axes: one for each panel.
        labels: classes of the data, told by colour.
        names: of the two columns.

    Raises:
        ShapeError: points that are not in the plane, or not as many axes as panels.
    """
    if len(axes) != len(panels):
        raise ShapeError(f"axes: {len(axes)} for {len(panels)} panels; give one each")
    points = {title: as_numpy(title, values, None, 2) for title, values in panels.items()}
    data = next(iter(points.values()))
    heads = tuple(names) if len(names) == 2 else ("column 1", "column 2")
    low, high = data.min(0), data.max(0)
    margin = 0.08 * (high - low) + 1e-9 * np.maximum(np.abs(low), 1)
    for number, ((title, values), panel) in enumerate(zip(points.items(), axes, strict=True)):
        colour: Any = AFTER
        if number == 0:
            colour = "#555555"
            if labels is not None:
                classes = as_numpy("labels", labels, len(values)).astype(int)
                present = np.unique(classes)
                colours = dict(zip(present, categories(len(present)), strict=True))
                colour = [colours[k] for k in classes]
        panel.scatter(values[:, 0], values[:, 1], s=5, c=colour, alpha=0.6, linewidths=0)
        panel.set_xlim(low[0] - margin[0], high[0] + margin[0])
        panel.set_ylim(low[1] - margin[1], high[1] + margin[1])
        panel.set_aspect("equal", adjustable="box")
        outside = ((values < low - margin) | (values > high + margin)).any(-1).mean()
        panel.set_title(title + (f"\n{outside:.1%} outside" if outside else ""))
        panel.set_xlabel(heads[0])
    axes[0].set_ylabel(heads[1])
    return axes


def pairs(
    data: Float[Array, "N D"],
    samples: Float[Array, "M D"],
    axes: npt.NDArray[Any],
    names: Sequence[str] = (),
) -> npt.NDArray[Any]:
    """Every pair of the first columns: data in grey, samples of the model in blue.

    The diagonal has the columns' histograms as densities. Each frame is the central 99.8 % of the
    data widened by a tenth to each side, so that a stray sample cannot shrink everything else.

    Args:
        data: ``[N, D]``; NaN where a cell is missing, which is left out.
        samples: ``[M, D]``.
        axes: ``[P, P]`` axes with P ≤ D, as :func:`canvas` gives them; the upper triangle
            is left empty.
        names: of the columns.

    Raises:
        ShapeError: data and samples differ in their columns, or there are fewer columns than axes.
    """
    real, made = as_numpy("data", data, None, None), as_numpy("samples", samples, None, None)
    count = axes.shape[0]
    if real.shape[1] != made.shape[1]:
        raise ShapeError(
            f"samples: {made.shape[1]} columns, the data have {real.shape[1]}; give the same"
        )
    if axes.shape != (count, count) or count > real.shape[1]:
        raise ShapeError(
            f"axes: shape {axes.shape} for {real.shape[1]} columns; give [P, P] with P ≤ columns"
        )
    heads = list(names) or [f"column {number + 1}" for number in range(real.shape[1])]
    low, high = np.nanquantile(real, [0.001, 0.999], axis=0)
    margin = 0.1 * (high - low) + 1e-9 * np.maximum(np.abs(low), 1)
    low, high = low - margin, high + margin
    for i in range(count):
        for j in range(count):
            panel = axes[i, j]
            if j > i:
                panel.set_visible(False)
                continue
            panel.set_xlim(low[j], high[j])
            if i == j:
                bins = np.linspace(low[i], high[i], 41)
                for values, name, look in (
                    (real[:, i], "data", {"color": BEFORE}),
                    (made[:, i], "samples of the model", {"color": AFTER, "histtype": "step"}),
                ):
                    values = values[~np.isnan(values)]
                    # Densities of all values, also of those outside of the frame.
                    share = np.full(len(values), 1 / (len(values) * (bins[1] - bins[0])))
                    panel.hist(values, bins=bins.tolist(), weights=share, label=name, **look)
                panel.set_yticks([])
            else:
                panel.scatter(real[:, j], real[:, i], s=5, color="#8A8A8A", alpha=0.5, linewidths=0)
                panel.scatter(made[:, j], made[:, i], s=5, color=AFTER, alpha=0.5, linewidths=0)
                panel.set_ylim(low[i], high[i])
            panel.tick_params(labelsize=8, labelbottom=i == count - 1, labelleft=j == 0 and i > 0)
            if i == count - 1:
                panel.set_xlabel(heads[j], color=INK)
            if j == 0 and i > 0:
                panel.set_ylabel(heads[i], color=INK)
    axes[0, 0].legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8, borderaxespad=0.2)
    return axes


def _called(label: int, classes: Sequence[str]) -> str:
    name = str(classes[label]) if 0 <= label < len(classes) else str(label)
    # A dollar sign would begin a formula.
    return (name if len(name) <= _NAME else name[: _NAME - 1] + "…").replace("$", r"\$")


def view(points: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Two orthonormal directions ``[D, 2]`` and the names of what they show."""
    features = points.shape[1]
    if features == 1:
        # The second coordinate is empty: a 1-D latent lies on a line.
        return np.array([[1.0, 0.0]]), ("${}$", "")
    if features == 2:
        return np.eye(2), ("${}$, dimension 1", "${}$, dimension 2")
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(points, rowvar=False)))
    share = values[::-1][:2] / max(values.sum(), np.finfo(float).tiny)
    first, second = (
        f"${{}}$, principal direction {k + 1} ({share[k]:.0%} of var $z$)" for k in (0, 1)
    )
    return vectors[:, ::-1][:, :2], (first, second)


def limits(points: np.ndarray, contours: bool) -> tuple[tuple[float, float], ...]:
    """A frame for all points, and for the third contour."""
    low, high = points.min(0), points.max(0)
    if contours:
        low, high = np.minimum(low, -3.2), np.maximum(high, 3.2)
    margin = 0.03 * (high - low) + 1e-3
    return tuple((float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True))


def _scatter(
    points: np.ndarray,
    labels: Array | None,
    axes: Axes,
    contours: bool,
    legend: bool = True,
    called: Sequence[str] = (),
) -> None:
    size = float(np.clip(4000 / len(points), 3, 25))
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, color=AFTER, alpha=0.5, linewidths=0)
    else:
        classes = as_numpy("labels", labels, len(points)).astype(int)
        names = np.unique(classes)
        colours = dict(zip(names, categories(len(names)), strict=True))
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=size,
            c=[colours[k] for k in classes],
            alpha=0.65,
            linewidths=0,
        )
        placed: list[np.ndarray] = []
        apart = 0.045 * float(np.ptp(points, axis=0).max())
        for name in names:
            word = _called(int(name), called)
            axes.scatter([], [], s=30, color=colours[name], label=word)
            # The median sits inside the class also where a few of its points lie far away.
            middle = np.median(points[classes == name], axis=0)
            if any(np.abs(middle - other).max() < apart for other in placed):
                continue
            placed.append(middle)
            frame = {"boxstyle": "round,pad=0.18", "fc": "white", "ec": colours[name], "alpha": 0.9}
            axes.text(
                float(middle[0]),
                float(middle[1]),
                word,
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold",
                bbox=frame,
            )
    if labels is not None and legend and len(names) <= _LEGEND:
        axes.legend(
            title="label",
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            handletextpad=0.1,
            borderaxespad=0.3,
        )
    if contours:
        angle = np.linspace(0, 2 * np.pi, 200)
        for radius in (1, 2, 3):
            axes.plot(
                radius * np.cos(angle), radius * np.sin(angle), color=INK, linewidth=0.8,
                linestyle=(0, (4, 3)), zorder=3,
            )  # fmt: skip
    axes.set_aspect("equal", adjustable="box")
