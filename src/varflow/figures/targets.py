"""Fits to a target: what was to be inferred beside what came out, as densities, curves and a film."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import DataError, ShapeError, SpecError, positive
from varflow.core.files import make_folder, write_atomically
from varflow.figures.base import INK, OKABE_ITO, Array, as_numpy, canvas, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

    from varflow.targets.target import Window

_CHUNK = 1 << 16


@torch.no_grad()
def density_on_grid(
    log_prob: Callable[[Tensor], Tensor],
    window: Window,
    size: int = 200,
    like: Tensor | None = None,
) -> Float[np.ndarray, "size size"]:
    """exp(log_prob) at the centres of ``size`` × ``size`` cells; row i is the i-th from below.

    Args:
        log_prob: z ``[N, 2]`` → ``[N]``, nats.
        window: (x_min, x_max, y_min, y_max).
        size: cells along each side.
        like: a tensor whose dtype and device z gets; float64 on the CPU without it.
    """
    positive(size=size)
    x, y = (_centres(window[2 * k], window[2 * k + 1], size) for k in (0, 1))
    points = torch.cartesian_prod(torch.from_numpy(y), torch.from_numpy(x)).flip(-1)
    points = points if like is None else points.to(like)
    values = torch.cat([log_prob(part).double().exp().cpu() for part in points.split(_CHUNK)])
    return values.reshape(size, size).numpy()


def density_of_samples(
    z: Float[Array, "N 2"], window: Window, size: int = 200
) -> Float[np.ndarray, "size size"]:
    """The histogram of z as a density per unit area, over all of z: also of what is outside the window."""
    points = as_numpy("z", z, None, 2)
    positive(size=size)
    if not len(points):
        raise ShapeError("z: is empty; give one sample or more")
    edges = [np.linspace(window[2 * k], window[2 * k + 1], size + 1) for k in (0, 1)]
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=[edges[1], edges[0]])
    cell = (edges[0][1] - edges[0][0]) * (edges[1][1] - edges[1][0])
    density: np.ndarray = counts / (len(points) * cell)
    return density


def density(
    values: Float[Array, "H W"],
    axes: Axes,
    window: Window,
    top: float | None = None,
    note: str | None = None,
) -> AxesImage:
    """One density, dark where it is high; white is 0.

    Args:
        values: ``[H, W]``, rows from below.
        axes: where to draw.
        window: (x_min, x_max, y_min, y_max) that the values cover.
        top: the value at the end of the colour scale; the largest one without it.
        note: written into the upper left corner.
    """
    array = as_numpy("values", values, None, None)
    if not (np.nanmin(array, initial=0.0) >= 0):
        raise ShapeError(f"values: as low as {np.nanmin(array):.3g}; a density is not negative")
    image = axes.imshow(
        array, origin="lower", extent=window, cmap=dark(), vmin=0,
        vmax=np.nanmax(array) if top is None else top, interpolation="bilinear", aspect="auto",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color="#BBBBBB", linewidth=0.6)
    if note:
        axes.text(0.03, 0.97, note, transform=axes.transAxes, va="top", fontsize=8, color=INK)
    return image


def density_grid(
    densities: Sequence[Sequence[Float[Array, "H W"] | None]],
    axes: Any,
    windows: Window | Sequence[Window],
    columns: Sequence[str],
    rows: Sequence[str] | None = None,
    notes: Sequence[Sequence[str | None]] | None = None,
) -> Any:
    """Targets in the first column, what was fitted to them in the others; one colour scale for all.

    The scale ends at the highest point of the targets, so that a fit looks right only where it is: a
    peak above it saturates.

    Args:
        densities: of each row: the target first, then the fits, ``[H, W]`` each with rows from below;
            None leaves a panel empty.
        axes: ``[rows, columns]`` axes, as :func:`canvas` gives them; a colour bar is put beside them.
        windows: one (x_min, x_max, y_min, y_max) for all rows, or one for each.
        columns: names of the columns.
        rows: names of the rows.
        notes: what to write into each panel (a KL), in the order of ``densities``.

    Raises:
        ShapeError: the numbers of panels, names or notes differ.

    Example:
        >>> import numpy as np
        >>> from varflow import figures
        >>> figure, axes = figures.canvas(1, 2)
        >>> p, q = np.eye(4), np.full((4, 4), 0.25)
        >>> drawn = figures.density_grid([[p, q]], axes, (-1, 1, -1, 1), ["target", "q"])
        >>> [panel.images[0].get_clim() for panel in drawn[0]]
        [(0.0, 1.0), (0.0, 1.0)]
    """
    shape = (len(densities), len(columns))
    sizes = {len(row) for row in densities} | {len(row) for row in notes or []}
    if axes.shape != shape or sizes != {shape[1]}:
        raise ShapeError(
            f"densities: {len(densities)} rows of {sorted(sizes)} panels for {len(columns)} columns and axes "
            f"{axes.shape}; give as many axes, names and notes as panels"
        )
    each = [windows] * shape[0] if isinstance(windows[0], int | float) else list(windows)
    for name, given in (("windows", each), ("rows", rows), ("notes", notes)):
        if given is not None and len(given) != shape[0]:
            raise ShapeError(f"{name}: {len(given)} for {shape[0]} rows; give one for each")
    targets = [
        np.nanmax(as_numpy("densities", row[0], None, None))
        for row in densities
        if row[0] is not None
    ]
    if not targets:
        raise ShapeError("densities: no target in the first column; it sets the colour scale")
    top, image = float(max(targets)), None
    for i, row in enumerate(densities):
        for j, values in enumerate(row):
            panel = axes[i, j]
            if i == 0:
                panel.set_title(columns[j])
            if values is None:
                panel.set_axis_off()
                continue
            note = notes[i][j] if notes is not None else None
            image = density(values, panel, each[i], top, note)  # type: ignore[arg-type]
            panel.set_box_aspect(1)
        if rows is not None:
            axes[i, 0].set_ylabel(rows[i])
    bar = axes[0, 0].figure.colorbar(
        image, ax=axes.ravel().tolist(), label="density", shrink=0.8, extend="max", aspect=30
    )
    bar.outline.set_visible(False)
    return axes


def bound_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    axes: Sequence[Axes],
    reference: float | str,
    name: str = "log Z",
    lines: Mapping[str, float] | None = None,
) -> Sequence[Axes]:
    """The ELBO while it is trained, below the exact value that it can reach.

    Left: the ELBO, framed so that its last four fifths can be read, with the exact value drawn in. Right:
    the gap between the two on a logarithmic scale, both as means over the steps between two records.
    Where a bound trained from noise lies above the exact value by its noise, the gap leaves a hole.

    Args:
        runs: name → rows of metrics.jsonl with ``step``, ``split`` train and ``elbo``.
        axes: one or two axes.
        reference: the exact value in nats, or the name of what the rows hold of it (``log_evidence``).
        name: how the reference is called.
        lines: other exact values to draw into the left axes, by name.

    Raises:
        DataError: no row has a step and a finite ELBO.
    """
    found = {label: _records(rows, reference) for label, rows in runs.items()}
    found = {label: arrays for label, arrays in found.items() if len(arrays[0])}
    if not found:
        raise DataError(
            "runs: no training row with a step and a finite elbo; pass rows of metrics.jsonl"
        )
    late: list[float] = []
    for (label, (steps, elbo, exact)), colour in zip(found.items(), _cycle(), strict=False):
        axes[0].plot(
            steps, elbo, color=colour, label=label if len(found) > 1 else "ELBO", linewidth=1.2
        )
        if isinstance(reference, str):
            mine = f"{name} at these parameters" if label == next(iter(found)) else None
            axes[0].plot(steps, exact, color=colour, linestyle="--", linewidth=1.0, label=mine)
        late += elbo[steps >= 0.2 * steps[-1]].tolist() + exact[-1:].tolist()
        if len(axes) > 1:
            gap = exact - elbo
            axes[1].plot(
                steps, np.where(gap > 0, gap, np.nan), color=colour, linewidth=1.2, label=label
            )
    values = dict(lines or {})
    if not isinstance(reference, str):
        values = {name: float(reference), **values}
    for dashes, (label, value) in zip(("-", ":", "-.", "--"), values.items(), strict=False):
        axes[0].axhline(value, color=INK, linestyle=dashes, linewidth=1.0, label=label, zorder=1)
        late.append(value)
    low, high = np.quantile(late, 0.02), max(late)
    margin = 0.08 * (high - low) + 1e-9 * max(abs(low), abs(high)) + 1e-12
    axes[0].set(xlabel="step", ylabel="nats", ylim=(low - margin, high + margin))
    legend = axes[0].legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8, borderaxespad=0.2
    )
    # It may reach over the next panel; an empty title keeps its height free.
    legend.set_in_layout(False)
    axes[0].set_title(" ")
    if len(axes) > 1:
        axes[1].set(xlabel="step", ylabel=f"{name} − ELBO (nats)", yscale="log")
        plain_log(axes[1].yaxis)
    return axes


def animate(
    target: Float[Array, "H W"],
    frames: Iterable[tuple[int, Float[Array, "H W"]]],
    window: Window,
    path: Path | str,
    name: str = "target",
    milliseconds: int = 120,
    hold: int = 2000,
    dpi: float = 80,
) -> Path:
    """A GIF of the target and, beside it, q at each of some steps of training; one colour scale.

    Args:
        target: the density of the target, rows from below (:func:`density_on_grid`).
        frames: (step, density of q), in order; drawn one at a time.
        window: (x_min, x_max, y_min, y_max) that all densities cover.
        path: of the file, which appears whole or not at all.
        name: title of the target.
        milliseconds: for which each frame is shown.
        hold: the same for the last.
        dpi: of the 6.6 × 3.6 inches.

    Raises:
        SpecError: the path does not end in .gif.
        ShapeError: there is no frame, or one has another shape.
        RunError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise SpecError(f"path: was {path.name}; an animation ends in .gif")
    exact = as_numpy("target", target, None, None)
    pictures = _frames(exact, frames, window, name, dpi)
    if not pictures:
        raise ShapeError("frames: there are none; give one or more")
    make_folder(path.parent)
    shown = [milliseconds] * (len(pictures) - 1) + [hold]
    write_atomically(
        path,
        lambda file: pictures[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=shown,
            loop=0,
            optimize=False,
        ),
    )
    return path


def _frames(
    exact: np.ndarray,
    frames: Iterable[tuple[int, Array]],
    window: Window,
    name: str,
    dpi: float,
) -> Sequence[Any]:
    """The frames as images of one palette."""
    from PIL import Image

    with style():
        figure, axes = canvas(1, 2, 6.6, 3.6)
        left, right = axes[0]
        density(exact, left, window)
        left.set_title(name)
        image = density(np.zeros_like(exact), right, window, top=float(exact.max()))
        for panel in (left, right):
            panel.set_box_aspect(1)
        right.set_title("q at step 0")
        figure.set_dpi(dpi)
        # The layout settles once; afterwards nothing moves from frame to frame.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        drawn: list[Any] = []
        palette = None
        for step, values in frames:
            image.set_data(as_numpy("frames", values, *exact.shape))
            right.set_title(f"q at step {step:,}")
            painter: Any = figure.canvas
            painter.draw()
            colours = Image.fromarray(np.asarray(painter.buffer_rgba())[..., :3].copy())
            # The target's panel has all the colours of the scale.
            palette = palette or colours.quantize(256, dither=Image.Dither.NONE)
            drawn.append(colours.quantize(palette=palette, dither=Image.Dither.NONE))
    return drawn


def _records(
    rows: Sequence[Mapping[str, Any]], reference: float | str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, ELBO and the exact value of the training rows; means over fits where there are several."""
    kept = []
    for row in rows:
        if row.get("split") != "train" or "step" not in row:
            continue
        exact = row.get(reference) if isinstance(reference, str) else reference
        values = (float(row["step"]), _number(row.get("elbo")), _number(exact))
        if all(map(math.isfinite, values)):
            kept.append(values)
    array = np.array(kept, float).reshape(-1, 3)
    return array[:, 0], array[:, 1], array[:, 2]


def _number(value: Any) -> float:
    if isinstance(value, list) and value:
        return float(np.mean(value))
    return float(value) if isinstance(value, int | float) else math.nan


def _cycle() -> list[str]:
    return [c for c in OKABE_ITO if c != "#F0E442"] * 4


def dark() -> Colormap:
    """White for 0, then matplotlib's magma from its light end to black: lightness alone tells the order."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    anchors = ["#FFFFFF", *colormaps["magma_r"](np.linspace(0.06, 1, 16))]
    return LinearSegmentedColormap.from_list("density", anchors)


def plain_log(axis: Axis) -> None:
    """A logarithmic axis labelled 0.2, 1, 50, 1e-06 instead of with powers in superscript."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.3, 0.5)))


def _centres(low: float, high: float, size: int) -> np.ndarray:
    edges = np.linspace(low, high, size + 1)
    centres: np.ndarray = 0.5 * (edges[:-1] + edges[1:])
    return centres
