"""Latents that move: trajectories decoded step by step, and what a Hamiltonian posterior learned of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from varflow.core.errors import ShapeError
from varflow.figures.base import AFTER, BEFORE, INK, VALIDATION, Array, as_numpy, bare
from varflow.figures.pictures import _gap, _pictures, _sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def decoded_trajectories(
    originals: Float[Array, "N C H W"],
    steps: Float[Array, "K N C H W"],
    axes: Axes,
    labels: Sequence[str] | None = None,
    sides: Sequence[str] | None = None,
) -> Axes:
    """A row for each example: the picture itself, then what the latents decode to, point by point.

    Args:
        originals: ``[N, C, H, W]`` in [0, 1].
        steps: ``[K, N, C, H, W]`` in [0, 1], the decoded points of each trajectory.
        axes: where to draw.
        labels: over the K columns; z₀, z₁, … without it.
        sides: to the right of the N rows.

    Raises:
        ShapeError: the two do not belong together, or are no pictures in [0, 1].
    """
    left = _pictures("originals", originals)
    count = len(left)
    moving = as_numpy("steps", steps, None, count, None, None, None)
    points = len(moving)
    if not points or moving.shape[2:] != np.shape(originals)[1:]:
        raise ShapeError(
            f"steps: shape {moving.shape}; expected [K, {', '.join(map(str, np.shape(originals)))}] with K ≥ 1"
        )
    rows = _pictures("steps", moving.swapaxes(0, 1).reshape(count * points, *moving.shape[2:]))
    height, width = rows.shape[1:3]
    gap = _gap(width)
    sheet = _sheet(rows, points, gap)
    # The examples stand apart from what the model makes of them.
    data = _sheet(left, 1, gap)
    space = np.ones((sheet.shape[0], 2 * gap, 3))
    axes.imshow(np.concatenate([data, space, sheet], 1), interpolation="nearest")
    bare(axes)
    start = data.shape[1] + space.shape[1]
    named = [f"$z_{{{k}}}$" for k in range(points)] if labels is None else list(labels)
    places = [gap, *(start + gap + k * (width + gap) for k in range(points))]
    for text, place in zip(["data", *named], places, strict=True):
        axes.text(
            place + width / 2 - 0.5, -0.12 * height, text, ha="center", va="bottom", fontsize=8
        )
    for row, text in enumerate(sides or []):
        middle = gap + row * (height + gap) + height / 2
        axes.text(sheet.shape[1] + start + gap, middle, text, va="center", fontsize=8)
    axes.set_ylim(axes.get_ylim()[0], -0.5 * height)
    return axes


def hamiltonian_schedule(
    step_sizes: Float[Array, "K D"],
    factors: Float[Array, " K"],
    axes: Sequence[Axes],
    bound: float | None = None,
) -> Sequence[Axes]:
    """What a Hamiltonian posterior learned: step sizes ε, and the temperature 1/√β_k along a trajectory.

    Args:
        step_sizes: ``[K, D]``. Where they differ over latents, sorted ones are drawn: one line where all steps
            share them, else one for each step. Where they do not, ε against the step.
        factors: ``[K]``, α_k; 1/√β_k is the product of those that follow, and 1 at the end.
        axes: two: step sizes, temperature.
        bound: the largest step size, drawn if given.

    Raises:
        ShapeError: the two have different K, or K = 0.
    """
    alpha = as_numpy("factors", factors, None)
    sizes = as_numpy("step_sizes", step_sizes, len(alpha), None)
    if not len(alpha):
        raise ShapeError("factors: is empty; a trajectory has one leapfrog step or more")
    from matplotlib.ticker import MaxNLocator

    count, features = sizes.shape
    left, right = axes[0], axes[1]
    over_latents = features > 1 and np.ptp(sizes, 1).max() > 1e-12 * sizes.max()
    if over_latents:
        shared = np.ptp(sizes, 0).max() <= 1e-12 * sizes.max()
        for k in range(1 if shared else count):
            shade = AFTER if shared else (0.1 + 0.8 * k / max(1, count - 1))
            colour = AFTER if shared else _shade(float(shade))
            label = "all steps" if shared else f"step {k + 1}"
            left.plot(
                np.arange(1, features + 1), np.sort(sizes[k])[::-1], color=colour, label=label
            )
        left.set_xlabel("latents, by step size")
        if not shared and count <= 10:
            left.legend(fontsize=8, ncols=2)
    else:
        left.plot(np.arange(1, count + 1), sizes[:, 0], color=AFTER, marker="o", markersize=4)
        left.set_xlabel("leapfrog step")
    if bound is not None:
        left.axhline(bound, color=BEFORE, linestyle="--", linewidth=1)
        left.annotate(
            "bound",
            (1, bound),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
        )
    left.set(ylabel="step size $\\varepsilon$", ylim=(0, 1.12 * max(sizes.max(), bound or 0)))
    for panel in (left, right):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    # 1/√β_k = Π_{j > k} 1/α_j.
    roots = np.concatenate([np.cumprod(1 / alpha[::-1])[::-1], [1.0]])
    right.plot(np.arange(count + 1), roots, color=VALIDATION, marker="o", markersize=4)
    right.axhline(1, color=INK, linewidth=0.6)
    right.set(xlabel="leapfrog step k", ylabel="temperature $1/\\sqrt{\\beta_k}$")
    return axes


def _shade(at: float) -> tuple[float, ...]:
    from matplotlib import colormaps

    return tuple(colormaps["viridis"](at))
