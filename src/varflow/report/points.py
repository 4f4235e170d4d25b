"""Points that a page can be asked about: panels as vector graphics, and what is told of each point.

They are drawn from ``figures/points.json`` (:mod:`varflow.figures.gallery_points`) without a script; the script of
the page adds what happens under the pointer and the keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from varflow.core.errors import DataError, RunError
from varflow.report.colours import of_classes
from varflow.report.read import checked_source, in_script, read_kind

#: Side of a panel in its own units; what is left of it for axes, and above and right.
SIDE, AXIS, EDGE = 460, 52, 10
#: More classes have no legend, and more letters of their names no room in the panel.
_LEGEND, _LETTERS = 24, 14
#: Space that the names of classes keep from each other.
_APART = 24


class Mark(NamedTuple):
    """A point of a panel: which example, and where, in units of the panel."""

    example: int
    x: float
    y: float


class Panel(NamedTuple):
    """One scatter.

    Attributes:
        title: of the panel; may be empty.
        axes: what the two axes are.
        groups: the marks of each class: its number, light colour, dark colour, marks; one alone where there are none.
        names: of classes, at the median of each: name, x, y.
        ticks: of both axes: place, label.
        under: a picture that fills it, in front of which only the mark that is asked for is seen; may be empty.
        rings: centre and radius of the prior's contours: x, y, radius.
    """

    title: str
    axes: tuple[str, str]
    groups: list[tuple[int, str, str, list[Mark]]]
    names: list[tuple[str, float, float]]
    ticks: tuple[list[tuple[float, str]], list[tuple[float, str]]]
    rings: list[tuple[float, float, float]]
    under: str = ""


class Scatter(NamedTuple):
    """All panels of the same points; ``told`` is what the script of the page reads, ``sheet`` the pictures."""

    title: str
    caption: str
    panels: list[Panel]
    legend: list[tuple[int, str, str, str]]
    sheet: str
    told: str
    size: int


def of_folder(figures: Path) -> Scatter | None:
    """The scatter of a folder of figures; None where there is none.

    Raises:
        RunError: points.json is not what varflow wrote.
    """
    path = figures / "points.json"
    if not path.exists():
        return None
    return scatter(read_kind(path, dict), str(path))


def scatter(held: Mapping[str, Any], where: str = "points") -> Scatter:
    """The scatter of plain values, as :func:`varflow.figures.gallery_points.points` gives them.

    Raises:
        RunError: they are not what varflow wrote.
    """
    try:
        return _scatter(held)
    except (KeyError, TypeError, ValueError, IndexError, DataError) as error:
        raise RunError(f"{where}: not what varflow wrote ({error}); draw the figures again") from error


def _scatter(held: Mapping[str, Any]) -> Scatter:
    panels = held["panels"]
    count = len(held["names"])
    labels = None if held["labels"] is None else [int(label) for label in held["labels"]]
    classes = [str(name) for name in held["classes"]]
    sizes = {len(panel["points"]) for panel in panels}
    sizes |= {count} if labels is None else {len(labels)}
    sizes |= {len(held["rows"])} if held["rows"] else set()
    if sizes != {count} or not count:
        raise ValueError(f"{sorted(sizes)} points for {count} names")
    if labels is not None and (min(labels) < 0 or max(labels) >= len(classes)):
        raise ValueError(f"labels {min(labels)} to {max(labels)} of {len(classes)} classes")
    colours = of_classes(len(classes)) if labels is not None else []
    sheet = held["sheet"]
    told: dict[str, Any] = {
        "names": [str(name) for name in held["names"]],
        "labels": labels,
        "classes": classes,
        "columns": [str(name) for name in held["columns"]],
        "rows": [[str(cell) for cell in row] for row in held["rows"]],
        "sheet": None if sheet is None else {key: int(sheet[key]) for key in ("across", "width", "height")},
    }
    present = sorted(set(labels or ()))
    return Scatter(
        str(held["title"]),
        str(held["caption"]),
        [_panel(panel, labels, classes, colours, bool(held["contours"])) for panel in panels],
        [(k, classes[k], *colours[k]) for k in present] if len(present) <= _LEGEND else [],
        "" if sheet is None else checked_source(sheet["source"], "sheet"),
        in_script(told),
        count,
    )


def _panel(
    held: Mapping[str, Any],
    labels: Sequence[int] | None,
    classes: Sequence[str],
    colours: Sequence[tuple[str, str]],
    contours: bool,
) -> Panel:
    x0, x1, y0, y1 = (float(edge) for edge in held["window"])
    if not (math.isfinite(x0 + x1 + y0 + y1) and x1 > x0 and y1 > y0):
        raise ValueError(f"window {held['window']}")
    across = (SIDE - AXIS - EDGE) / (x1 - x0)
    upwards = (SIDE - AXIS - EDGE) / (y1 - y0)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(AXIS + (x - x0) * across, 1), round(EDGE + (y1 - y) * upwards, 1)

    marks = []
    for index, (x, y) in enumerate(held["points"]):
        # What lies outside of the window is left out; a NaN lies nowhere.
        if x0 <= float(x) <= x1 and y0 <= float(y) <= y1:
            marks.append(Mark(index, *place(float(x), float(y))))
    first, second = (str(axis) for axis in held["axes"])
    groups: list[tuple[int, str, str, list[Mark]]] = []
    names = []
    if labels is None:
        groups.append((0, "", "", marks))
    else:
        for k in sorted(set(labels)):
            own = [mark for mark in marks if labels[mark.example] == k]
            groups.append((k, *colours[k], own))
            if own and len(classes[k]) <= _LETTERS:
                names.append((classes[k], median(m.x for m in own), median(m.y for m in own)))
    return Panel(
        str(held["title"]),
        (first, second),
        groups,
        _spread(names),
        (
            [(place(at, y0)[0], tick_words(at)) for at in ticks(x0, x1)],
            [(place(x0, at)[1], tick_words(at)) for at in ticks(y0, y1)] if second else [],
        ),
        [(*place(0, 0), round(radius * across, 1)) for radius in (1, 2, 3)] if contours else [],
        checked_source(held["under"], "under") if held.get("under") else "",
    )


def _spread(names: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Those names that do not lie on one before."""
    kept: list[tuple[str, float, float]] = []
    for name, x, y in names:
        wide = 4.5 * len(name)
        if all(abs(x - u) > max(_APART, wide + 4.5 * len(other)) or abs(y - v) > _APART for other, u, v in kept):
            kept.append((name, x, y))
    return kept


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two ends, ``most`` at the most, in steps of 1, 2 or 5 times a power of ten."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10):
        if (high - low) / (factor * step) <= most:
            step *= factor
            break
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]


def tick_words(value: float) -> str:
    """What stands at a tick."""
    text = f"{value:.6g}"
    return "0" if float(text) == 0 else text.replace("-", "−")
