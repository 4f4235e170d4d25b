"""What a 2-D flow does to the plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import ShapeError, positive
from varflow.figures.base import BEFORE, signed
from varflow.flows.flow import Flow

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def fit_height(axes: Axes, width: float, least: float = 2.6, most: float = 5.6) -> None:
    """Give the figure the height that a panel of this width in inches needs, so that none of it is empty."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    height = 1.0 + width * (high - low) / (right - left)
    axes.figure.set_figheight(min(max(height, least), most))  # type: ignore[union-attr]


@torch.no_grad()
def flow_grid(
    flow: Flow | Callable[..., tuple[Tensor, Tensor]],
    axes: Axes,
    context: Float[Tensor, " context"] | None = None,
    extent: float | tuple[float, float] = 3.0,
    centre: tuple[float, float] = (0.0, 0.0),
    lines: int = 13,
    points: int = 241,
) -> Axes:
    """A regular grid (light) and its image under z → z′ (coloured).

    Colour is the local log|det ∂z′/∂z| in nats: orange where the flow thins the density out, blue
    where it concentrates it. A flow that keeps volume everywhere is coloured by the line's own
    coordinate instead, so that one can follow a line.

    Args:
        flow: a flow of two features, or any callable z ``[N, 2]`` → (z′ ``[N, 2]``, ladj ``[N]``).
        axes: where to draw; a colour bar is put beside it.
        context: ``[C]``, for an amortized flow.
        extent: half the width of the grid, or (half the width, half the height).
        centre: the middle of the grid.
        lines: grid lines in each direction.
        points: points on each line.

    Raises:
        ShapeError: the flow does not have two features.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import CenteredNorm, Normalize

    positive(lines=lines, points=points)
    if isinstance(flow, Flow) and flow.features != 2:
        raise ShapeError(
            f"flow: has {flow.features} features; only a flow of 2 can be drawn as a grid"
        )
    width, height = extent if isinstance(extent, tuple) else (extent, extent)
    before = _grid(width, height, centre, lines, points)
    sent = torch.from_numpy(before.reshape(-1, 2)).to(**_home(flow, context))
    moved, ladj = flow(sent) if context is None else flow(sent, context)
    after = moved.double().cpu().numpy().reshape(before.shape)
    density = ladj.double().cpu().numpy().reshape(before.shape[:-1])

    axes.add_collection(LineCollection(list(before), colors=BEFORE, linewidths=0.7, zorder=1))
    segments = np.stack([after[:, :-1], after[:, 1:]], axis=2).reshape(-1, 2, 2)
    norm: Normalize
    if np.abs(density).max() < 1e-6:
        # A line is told from its neighbours by the coordinate that it was drawn at.
        fixed = np.repeat(np.tile(np.linspace(-1, 1, lines), 2), points - 1)
        coloured = LineCollection(list(segments), cmap="viridis", norm=Normalize(-1, 1), zorder=2)
        coloured.set_array(fixed)
        label, ticks = "line (volume is kept everywhere)", [-1.0, 0.0, 1.0]
    else:
        local = 0.5 * (density[:, :-1] + density[:, 1:]).reshape(-1)
        # One line that the flow tears apart must not wash out the colours of all others.
        reach = max(float(np.quantile(np.abs(local), 0.98)), 1e-6)
        norm = CenteredNorm(0, halfrange=reach)
        coloured = LineCollection(list(segments), cmap=signed(), norm=norm, zorder=2)
        coloured.set_array(local)
        label, ticks = "log |det| (nats)", None
    coloured.set_linewidth(1.3)
    axes.add_collection(coloured)
    bar = axes.figure.colorbar(coloured, ax=axes, label=label, ticks=ticks, shrink=0.8)
    bar.outline.set_visible(False)
    corners = np.concatenate([before.reshape(-1, 2), after.reshape(-1, 2)])
    low, high = corners.min(0), corners.max(0)
    margin = 0.04 * (high - low)
    axes.set(
        xlim=(low[0] - margin[0], high[0] + margin[0]),
        ylim=(low[1] - margin[1], high[1] + margin[1]),
    )
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlabel("dimension 1")
    axes.set_ylabel("dimension 2")
    return axes


def _grid(
    width: float, height: float, centre: tuple[float, float], lines: int, points: int
) -> np.ndarray:
    """``[2 · lines, points, 2]``: first the vertical lines, then the horizontal ones."""
    at, along = np.linspace(-1, 1, lines), np.linspace(-1, 1, points)
    vertical = np.stack(np.broadcast_arrays(at[:, None], along[None, :]), axis=-1)
    both = np.concatenate([vertical, vertical[..., ::-1]])
    return both * np.array([width, height]) + np.asarray(centre)


def _home(flow: Any, context: Tensor | None) -> dict[str, Any]:
    known = next(flow.parameters(), context) if isinstance(flow, nn.Module) else context
    if known is None:
        return {"dtype": torch.get_default_dtype()}
    return {"dtype": known.dtype, "device": known.device}
