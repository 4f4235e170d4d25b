"""Latent space under the hand: a point and what it decodes to, the plane behind it, the way between two points."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow.core.errors import positive
from varflow.explore import drawing
from varflow.explore.opened import Given, Opened
from varflow.priors import interpolation
from varflow.priors.flow import Flow as FlowPrior

#: Pictures along a side of the plane, at most and at least; seconds that decoding them may take.
_MOST, _LEAST, _SECONDS = 15, 7, 0.8
#: Training rows in a plane of points.
_POINTS = 1500


def start(opened: Opened) -> list[float]:
    """Where all latents stand at first: 0 where the prior is centred there, else the mean of typical latents."""
    if opened.model.prior.standard or opened.density:
        return [0.0] * opened.features
    return [float(f"{value:.4g}") for value in opened.typical.mean(0).tolist()]


def at_example(opened: Opened, x: Tensor, given: Given = None) -> list[float]:
    """The centre of q(z|x) of one stored example, or its base point: what the other latents can stand at."""
    centre = opened.run.embed(x, "centre", given=given)
    return torch.as_tensor(centre).flatten(1)[0].double().tolist()


def moved(point: Sequence[float], directions: Sequence[int], to: Sequence[float]) -> list[float]:
    """``point`` with some of its coordinates set."""
    found = list(point)
    for number, value in zip(directions, to, strict=True):
        found[number] = float(value)
    return found


def view(opened: Opened, point: Sequence[float], given: Given = None) -> str:
    """What a point of latent space decodes to: a picture, or the row of a table."""
    x = opened.decode(torch.tensor([list(point)], dtype=torch.float64), given)
    return example(opened, x)


def example(opened: Opened, x: Tensor, caption: str = "") -> str:
    """One stored example as a picture or as a table."""
    if opened.picture:
        return drawing.picture(opened.shown(x)[0], caption)
    table = drawing.table(opened.cells(x[:1])) if len(opened.columns) <= 4 else upright(opened.cells(x[:1]))
    return (drawing.said(caption) if caption else "") + table


def upright(cells: Mapping[str, Sequence[Any]], head: str = "value") -> str:
    """One row of a table with its columns below each other."""
    return drawing.table({head: [values[0] for values in cells.values()]}, list(cells))


def frame(opened: Opened, directions: Sequence[int]) -> drawing.Frame:
    """The part of the plane of two latents that is shown."""
    (x0, x1), (y0, y1) = opened.window[directions[0]].tolist(), opened.window[directions[1]].tolist()
    return x0, x1, y0, y1


@torch.no_grad()
def decoded_plane(
    opened: Opened,
    directions: Sequence[int],
    point: Sequence[float],
    given: Given = None,
    side: int | None = None,
) -> np.ndarray[Any, Any]:
    """The pictures over a plane of two latents, the others as in ``point``, as one picture ``[C, H, W]``.

    Args:
        side: pictures along each side; as many as can be decoded in less than a second unless given.
    """
    if side is None:
        begun = time.perf_counter()
        opened.decode(torch.tensor([list(point)] * 16, dtype=torch.float64), given)
        each = (time.perf_counter() - begun) / 16
        side = int(np.clip((_SECONDS / max(each, 1e-6)) ** 0.5, _LEAST, _MOST))
    positive(side=side)
    x0, x1, y0, y1 = frame(opened, directions)
    # Each picture belongs to the middle of its cell.
    across = x0 + (x1 - x0) * (np.arange(side) + 0.5) / side
    upwards = y1 - (y1 - y0) * (np.arange(side) + 0.5) / side
    z = np.tile(np.asarray(point, float), (side * side, 1))
    z[:, directions[1]] = np.repeat(upwards, side)
    z[:, directions[0]] = np.tile(across, side)
    return drawing.sheet(opened.shown(opened.decode(torch.from_numpy(z), given)), side)


def points_plane(opened: Opened, directions: Sequence[int]) -> str:
    """Latents of training rows in the plane of two of them, coloured by their labels, as SVG without axes."""
    plot = drawing.Plot(frame(opened, directions))
    if opened.model.prior.standard:
        plot.circles((1, 2, 3))
    points = opened.typical[:_POINTS, list(directions)].numpy()
    labels = None if opened.latents is None or opened.density else opened.latents.labels
    if labels is None:
        plot.dots(points, drawing.OKABE_ITO[0], 3.5)
    else:
        numbers = labels[:_POINTS].numpy()
        classes = np.unique(numbers)
        for number, colour in zip(classes, drawing.colours(len(classes)), strict=True):
            plot.dots(points[numbers == number], colour, 3.5)
    return "".join(plot.parts)


def legend(opened: Opened) -> str:
    """Which colour is which label; empty where there are none."""
    labels = None if opened.latents is None else opened.latents.labels
    if labels is None:
        return ""
    classes = np.unique(labels[:_POINTS].numpy()).tolist()
    names = opened.run.classes
    each = (
        f'<span><i style="background:{colour}"></i>{html.escape(names[k] if k < len(names) else str(k))}</span>'
        for k, colour in zip(classes, drawing.colours(len(classes)), strict=True)
    )
    return f'<div class="vf-legend">{"".join(each)}</div>'


def ways(opened: Opened) -> tuple[str, ...]:
    """How one can go from one point to another: as ``run.interpolate`` does."""
    flowing = isinstance(opened.model.prior, FlowPrior) and not opened.density
    return ("straight", "sphere", "base") if flowing else ("straight", "sphere")


@torch.no_grad()
def way_between(
    opened: Opened,
    a: Sequence[float],
    b: Sequence[float],
    steps: int = 9,
    way: str = "straight",
    given: Given = None,
) -> str:
    """What lies between two points of latent space, both included: pictures in a strip, or rows of a table."""
    positive(steps=steps)
    first, last = (torch.tensor(list(end), dtype=opened.home.dtype, device=opened.home.device) for end in (a, b))
    if way == "base":
        context = opened.context(given, 1)
        read = (c[0] for c in opened.model.read_by_prior(context))
        path = interpolation.in_base(opened.model.prior, first, last, steps, *read)
    else:
        path = (interpolation.spherical if way == "sphere" else interpolation.linear)(first, last, steps)
    x = opened.decode(path, given)
    names = ["A", *[""] * (steps - 2), "B"][:steps]
    if opened.picture:
        return drawing.strip(opened.shown(x), names)
    return drawing.table(opened.cells(x), names)


def marker(opened: Opened, directions: Sequence[int], point: Sequence[float]) -> str:
    """The hand's place in the plane, as a part of an SVG of 100 × 100."""
    x, y = _within(opened, directions, point)
    return f'<circle class="vf-hand" cx="{x:.2f}" cy="{y:.2f}" r="2.6"/>'


def two_markers(opened: Opened, directions: Sequence[int], ends: Sequence[Sequence[float]]) -> str:
    """A, and B where it is there, with a line between them."""
    places = [_within(opened, directions, end) for end in ends]
    parts = []
    if len(places) == 2:
        (x0, y0), (x1, y1) = places
        parts.append(f'<path class="vf-between" d="M{x0:.2f} {y0:.2f}L{x1:.2f} {y1:.2f}"/>')
    for name, (x, y) in zip("AB", places, strict=False):
        parts.append(
            f'<circle class="vf-end" cx="{x:.2f}" cy="{y:.2f}" r="3.4"/>'
            f'<text class="vf-name" x="{x:.2f}" y="{y + 1.5:.2f}">{name}</text>'
        )
    return "".join(parts)


def _within(opened: Opened, directions: Sequence[int], point: Sequence[float]) -> tuple[float, float]:
    x0, x1, y0, y1 = frame(opened, directions)
    x, y = (point[k] for k in directions)
    return 100 * (x - x0) / (x1 - x0), 100 * (y1 - y) / (y1 - y0)
