"""What a notebook shows of a result: pieces of HTML without scripts, style sheets or other files.

Text is escaped here, once. Letters and lines have the colours of the page around them, so that they can be read in
light and in dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

#: Rows of a table that a notebook shows, at most.
ROWS = 40
_SHORT = 30
_CELL = "text-align: {side}; padding: 0.25em 0.8em; vertical-align: top; white-space: {wrap}"
#: Told apart in light and in dark.
_COLOURS = ("currentColor", "#3F90DA")


class HTML(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: Any) -> str:
    """A value as HTML."""
    return value if isinstance(value, HTML) else escape(str(value))


def block(*pieces: str) -> str:
    """Pieces below each other; what is too wide for the page scrolls."""
    return f'<div style="overflow-x: auto">{"".join(pieces)}</div>'


def heading(title: Any, more: Any = "") -> str:
    """What is shown, in bold, and a few words beside it."""
    return f"<div><strong>{text(title)}</strong>{' ' if more else ''}{text(more)}</div>"


def note(*lines: Any) -> str:
    """How numbers came about, in small letters: a paragraph a line."""
    return "".join(f'<div style="font-size: 85%; opacity: 0.8">{text(line)}</div>' for line in lines)


def folded(title: Any, *pieces: str) -> str:
    """Pieces that open at a click."""
    return f'<details style="font-size: 85%"><summary>{text(title)}</summary>{"".join(pieces)}</details>'


def table(heads: Sequence[Any], rows: Iterable[Sequence[Any]], words: Iterable[int] = (0,)) -> str:
    """A table; the columns ``words`` hold words and stand to the left, numbers stand to the right.

    The first cell of a row is its heading. Rows beyond :data:`ROWS` are counted.
    """
    left, given = set(words), list(rows)
    shown = given[:ROWS]

    def cell(kind: str, column: int, value: Any, scope: str = "") -> str:
        side = "left" if column in left else "right"
        # Short words are not broken at their hyphens.
        wrap = "normal" if column in left and len(str(value)) > _SHORT else "nowrap"
        held = f' scope="{scope}"' if scope else ""
        return f'<{kind}{held} style="{_CELL.format(side=side, wrap=wrap)}">{text(value)}</{kind}>'

    head = "".join(cell("th", column, name, "col") for column, name in enumerate(heads))
    body = "".join(
        "<tr>"
        + "".join(
            cell("td" if column else "th", column, value, "" if column else "row")
            for column, value in enumerate(row)
        )
        + "</tr>"
        for row in shown
    )
    more = note(f"and {len(given) - len(shown):,} more") if len(given) > len(shown) else ""
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<table style="margin: 0.4em 0">{top}<tbody>{body}</tbody></table>{more}'


def facts(values: Mapping[str, Any]) -> str:
    """What is known of something, a row each; what is empty is left out."""
    return table((), ((name, value) for name, value in values.items() if value not in ("", None)), words=(0, 1))


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str) -> str:
    """Curves over the step as a small drawing; empty where there are fewer than two points.

    The lowest twentieth of the values may lie below the frame, as a curve that starts far down would hide its end.
    """
    kept = {
        name: [(float(x), float(y)) for x, y in zip(*points, strict=True) if math.isfinite(y)]
        for name, points in series.items()
    }
    kept = {name: points for name, points in kept.items() if len(points) > 1}
    if not kept:
        return ""
    values = sorted(y for points in kept.values() for _, y in points)
    low, high = values[len(values) // 20], values[-1]
    first, last = (end(x for points in kept.values() for x, _ in points) for end in (min, max))
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin
    width, height, left, below = 440, 110, 84, 18

    def place(x: float, y: float) -> str:
        across = left + (width - left) * (x - first) / ((last - first) or 1.0)
        # Far below the frame is as good as anywhere below it, and keeps the numbers short.
        up = height * (high - max(y, low - (high - low))) / (high - low)
        return f"{across:.1f},{up:.1f}"

    letters = 'font-size="11" fill="currentColor"'
    lines, names = [], []
    for colour, (name, points) in zip(_COLOURS, kept.items(), strict=False):
        path = " ".join(place(*point) for point in points)
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>')
        names.append(f'<tspan fill="{colour}">{text(name)}</tspan>')
    frame = f'<rect x="{left}" y="0" width="{width - left}" height="{height}"'
    # Every drawing on a page has an area of its own to be cut by: the inner svg cuts what leaves it.
    inside = f'<svg x="0" y="0" width="{width}" height="{height}" overflow="hidden">{"".join(lines)}</svg>'
    marks = "".join(
        f'<text x="{left - 6}" y="{y}" text-anchor="end" {letters}>{value:.4g}</text>'
        for y, value in ((11, high), (height - 2, low))
    )
    steps = "".join(
        f'<text x="{x}" y="{height + 14}" text-anchor="{anchor}" {letters}>{value}</text>'
        for x, anchor, value in (
            (left, "start", f"step {first:,.0f}"),
            (width, "end", f"{last:,.0f}"),
        )
    )
    legend = (
        f'<text x="{left - 6}" y="{height // 2 + 4}" text-anchor="end" {letters}>{text(unit)}</text>'
        f'<text x="{(left + width) / 2}" y="{height + 14}" text-anchor="middle" {letters}>'
        f"{' · '.join(names)}</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height + below}" '
        f'viewBox="0 0 {width} {height + below}"><title>{text(", ".join(kept))}</title>'
        f'{frame} fill="none" stroke="currentColor" stroke-opacity="0.3"/>{inside}{marks}{steps}{legend}</svg>'
    )


def tree(module: Any) -> str:
    """The parts of a torch module with their settings, the sizes of their own tensors, and how many parameters are
    in each; a parameter that stands at two places is counted at the first.
    """
    found = list(_walk(module, "", 0, set()))
    deepest = max(depth for depth, *_ in found)
    while len([row for row in found if row[0] <= deepest]) > ROWS and deepest > 1:
        deepest -= 1
    kept = [row for row in found if row[0] <= deepest]
    rows = [
        (HTML(f'<span style="padding-left: {1.2 * depth:.1f}em">{text(name)}</span>'), kind, sizes, f"{count:,}")
        for depth, name, kind, sizes, count in kept
    ]
    hidden = len(found) - len(kept)
    below = note(f"{hidden} parts further inside are not shown; print(model) lists them") if hidden else ""
    return block(table(("part", "what it is", "its own tensors", "parameters"), rows, words=(0, 1, 2)), below)


def _walk(module: Any, name: str, depth: int, seen: set[int]) -> Iterator[tuple[int, str, str, str, int]]:
    mine = [parameter for parameter in module.parameters() if id(parameter) not in seen]
    own = ", ".join(
        f"{label} {'×'.join(map(str, tensor.shape)) or 'one number'}"
        for label, tensor in module.named_parameters(recurse=False)
        if id(tensor) not in seen
    )
    seen |= {id(tensor) for tensor in module.parameters(recurse=False)}
    said = " ".join(module.extra_repr().split())
    kind = f"{type(module).__name__}({said})" if said else type(module).__name__
    yield depth, name or type(module).__name__, kind if name or said else "", own, sum(p.numel() for p in mine)
    for label, child in module.named_children():
        yield from _walk(child, label, depth + 1, seen)
