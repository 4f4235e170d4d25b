"""Points in the plane: data beside samples of a model, on the same axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from varflow.core.errors import ShapeError
from varflow.figures.base import AFTER, Array, as_numpy, categories

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plane(
    panels: Mapping[str, Float[Array, "N 2"]],
    axes: Sequence[Axes],
    labels: Int[Array, " N"] | None = None,
) -> Sequence[Axes]:
    """A scatter for each title, all in the frame of the first, which holds all of its points.

    Args:
        panels: title → points ``[N, 2]``; the first are the data.
        axes: one for each panel.
        labels: classes of the data, told by colour.

    Raises:
        ShapeError: points that are not in the plane, or not as many axes as panels.
    """
    if len(axes) != len(panels):
        raise ShapeError(f"axes: {len(axes)} for {len(panels)} panels; give one each")
    points = {title: as_numpy(title, values, None, 2) for title, values in panels.items()}
    data = next(iter(points.values()))
    low, high = data.min(0), data.max(0)
    margin = 0.08 * (high - low) + 1e-9 * np.maximum(np.abs(low), 1)
    for number, ((title, values), panel) in enumerate(zip(points.items(), axes, strict=True)):
        colour: Any = AFTER
        if number == 0:
            colour = "#555555"
            if labels is not None:
                classes = as_numpy("labels", labels, len(values)).astype(int)
                names = np.unique(classes)
                colours = dict(zip(names, categories(len(names)), strict=True))
                colour = [colours[k] for k in classes]
        panel.scatter(values[:, 0], values[:, 1], s=5, c=colour, alpha=0.6, linewidths=0)
        panel.set_xlim(low[0] - margin[0], high[0] + margin[0])
        panel.set_ylim(low[1] - margin[1], high[1] + margin[1])
        panel.set_aspect("equal", adjustable="box")
        outside = ((values < low - margin) | (values > high + margin)).any(-1).mean()
        panel.set_title(title + (f"\n{outside:.1%} outside" if outside else ""))
        panel.set_xlabel("column 1")
    axes[0].set_ylabel("column 2")
    return axes
