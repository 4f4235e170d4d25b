"""Small drawings as text for a page: pictures as PNG inside of their address, everything else as SVG.

They are made while somebody drags a slider, so nothing here opens a canvas of matplotlib: a drawing takes a few
milliseconds. Colours of lines and words come from the page (``currentColor``), so that light and dark both work.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.figures.base import OKABE_ITO, PETROFF

Array = NDArray[Any]
#: (x_min, x_max, y_min, y_max).
Frame = tuple[float, float, float, float]

#: Blue where density is concentrated, grey in the middle, orange where it is thinned out.
SIGNED = ("#0072B2", "#3E8FC1", "#7AA5BF", "#9FB0B8", "#A9A9A9", "#C4A886", "#D49A5B", "#DD7F30", "#D55E00")
#: Side of a drawing in its own units.
SIDE = 400


def png(picture: Array) -> bytes:
    """A picture ``[C, H, W]`` or ``[H, W]`` in [0, 1], 1 or 3 channels, as PNG; written for speed."""
    from PIL import Image

    levels = (np.clip(np.nan_to_num(picture), 0, 1) * 255 + 0.5).astype(np.uint8)
    if levels.ndim == 3:
        levels = levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)
    blob = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(levels)).save(blob, "PNG", compress_level=1)
    return blob.getvalue()


def address(picture: Array) -> str:
    """A picture as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def picture(values: Array, caption: str = "", kind: str = "vf-picture") -> str:
    """An ``<img>`` of one picture with a caption below; its pixels stay squares however large it is shown."""
    image = f'<img class="vf-pixels" alt="{html.escape(caption or "picture", True)}" src="{address(values)}">'
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{image}{below}</figure>'


def strip(pictures: Array, captions: Sequence[str] = ()) -> str:
    """Pictures ``[N, C, H, W]`` side by side, on as many lines as it takes."""
    names = list(captions) or [""] * len(pictures)
    each = (picture(values, name, "vf-tile") for values, name in zip(pictures, names, strict=True))
    return f'<div class="vf-strip">{"".join(each)}</div>'


def sheet(pictures: Array, columns: int) -> Array:
    """Pictures ``[R · columns, C, H, W]`` as one, without gaps: ``[C, R · H, columns · W]``."""
    count, channels, height, width = pictures.shape
    rows = count // columns
    grid = pictures[: rows * columns].reshape(rows, columns, channels, height, width)
    joined: Array = grid.transpose(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
    return joined


def colours(count: int) -> list[str]:
    """A colour for each of ``count`` classes; beyond ten they repeat."""
    palette = [c for c in OKABE_ITO if c != "#000000"] if count <= 7 else list(PETROFF)
    return [palette[k % len(palette)] for k in range(count)]


def table(columns: Mapping[str, Sequence[Any]], rows: Sequence[str] = ()) -> str:
    """Columns of equal length as an HTML table; ``rows`` are names in front of its rows."""
    heads = [*([""] if rows else []), *columns]
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in heads)
    body = []
    for number, cells in enumerate(zip(*columns.values(), strict=True)):
        first = f"<th>{html.escape(rows[number])}</th>" if rows else ""
        body.append(f"<tr>{first}{''.join(f'<td>{html.escape(cell_text(c))}</td>' for c in cells)}</tr>")
    return (
        f'<div class="vf-scroll"><table class="vf-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def cell_text(value: Any) -> str:
    """A cell as a reader wants it: four digits of a real number, nothing of one that is missing."""
    if value is None or value is np.ma.masked:
        return ""
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return ""
        return f"{number:.0f}" if number == round(number) and abs(number) < 1e6 else f"{number:.4g}"
    return str(value)


def said(text: str) -> str:
    """A sentence below or instead of a drawing."""
    return f'<p class="vf-said">{html.escape(text)}</p>'


def trouble(text: str) -> str:
    """What went wrong, in a sentence."""
    return f'<p class="vf-trouble" role="alert">{html.escape(text)}</p>'


class Plot:
    """An SVG of the plane: x to the right, y upwards, in the units of what is shown.

    Args:
        frame: what part of the plane is shown.
        x, y: what the axes are called.
        aspect: height over width.
    """

    def __init__(self, frame: Frame, x: str = "", y: str = "", aspect: float = 1.0) -> None:
        self.frame, self.names = frame, (x, y)
        self.width, self.height = SIDE, round(SIDE * aspect)
        self.parts: list[str] = []

    def place(self, points: Array) -> Array:
        """Points ``[..., 2]`` in the units of the drawing."""
        x0, x1, y0, y1 = self.frame
        low, span = np.array([x0, y1]), np.array([x1 - x0, y0 - y1])
        placed: Array = (points - low) / span * np.array([self.width, self.height])
        return placed

    def lines(self, curves: Iterable[Array], colour: str, width: float = 1.0, opacity: float = 1.0) -> None:
        """Curves ``[P, 2]`` in one colour."""
        parts = []
        for curve in curves:
            placed = np.round(self.place(curve), 1)
            # Far outside nothing is drawn, and huge numbers stay out of the text.
            inside = np.clip(placed, -4 * SIDE, 5 * SIDE)
            parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in inside.tolist()))
        self.parts.append(
            f'<path d="{"".join(parts)}" fill="none" stroke="{colour}" stroke-width="{width}" opacity="{opacity}"/>'
        )

    def dots(self, points: Array, colour: str, size: float = 3.0, opacity: float = 0.7) -> None:
        """Points ``[N, 2]`` in one colour."""
        placed = np.round(self.place(points), 1)
        seen = placed[((placed > -9) & (placed < max(self.width, self.height) + 9)).all(-1)]
        path = "".join(f"M{x:g} {y:g}h0" for x, y in seen.tolist())
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{size}" stroke-linecap="round" '
            f'opacity="{opacity}"/>'
        )

    def ring(self, centre: Array, colour: str = "currentColor", radius: float = 6.0) -> None:
        """A small circle around a point, of the same size whatever is shown."""
        x, y = np.round(self.place(centre), 1).tolist()
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )

    def circles(self, radii: Sequence[float]) -> None:
        """Circles around 0, of these radii in the units of the plane, dashed."""
        x, y = self.place(np.zeros(2)).tolist()
        wide = self.width / (self.frame[1] - self.frame[0])
        high = self.height / (self.frame[3] - self.frame[2])
        for r in radii:
            self.parts.append(
                f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{r * wide:.1f}" ry="{r * high:.1f}" fill="none" '
                'stroke="currentColor" stroke-dasharray="4 4" opacity="0.45"/>'
            )

    def image(self, values: Array, window: Frame) -> None:
        """A picture ``[C, H, W]`` behind everything, stretched over ``window``."""
        low, high = self.place(np.array([window[0], window[3]])), self.place(np.array([window[1], window[2]]))
        (x, y), (width, height) = low.tolist(), (high - low).tolist()
        self.parts.insert(
            0,
            f'<image href="{address(values)}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            'preserveAspectRatio="none"/>',
        )

    def bars(self, edges: Array, counts: Array, colour: str = "#8FB4CF") -> None:
        """A histogram standing on the lower edge of the frame."""
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
            (x0, top), (x1, bottom) = self.place(np.array([[left, count], [right, self.frame[2]]])).tolist()
            self.parts.append(
                f'<rect x="{x0:.1f}" y="{top:.1f}" width="{max(x1 - x0 - 0.6, 0.4):.1f}" '
                f'height="{max(bottom - top, 0):.1f}" fill="{colour}"/>'
            )

    def mark(self, x: float, colour: str, label: str, spread: float = 0.0) -> None:
        """An upright line at x with its name, and a band of ``spread`` to both sides."""
        middle = float(self.place(np.array([x, 0.0]))[0])
        if spread:
            left, right = self.place(np.array([[x - spread, 0], [x + spread, 0]]))[:, 0].tolist()
            self.parts.append(
                f'<rect x="{left:.1f}" y="0" width="{max(right - left, 1):.1f}" height="{self.height}" '
                f'fill="{colour}" opacity="0.25"/>'
            )
        anchor = "end" if middle > self.width / 2 else "start"
        self.parts.append(
            f'<path d="M{middle:.1f} 0V{self.height}" stroke="{colour}" stroke-width="2.5"/>'
            f'<text x="{middle + (-6 if anchor == "end" else 6):.1f}" y="16" text-anchor="{anchor}" fill="{colour}" '
            f'font-weight="600">{html.escape(label)}</text>'
        )

    def text(self, kind: str = "vf-plot") -> str:
        """The drawing as SVG, with numbers at the ends of its axes."""
        x0, x1, y0, y1 = self.frame
        w, h = self.width, self.height
        x, y = (html.escape(name) for name in self.names)
        axes = [f'<rect x="0" y="0" width="{w}" height="{h}" fill="none" stroke="currentColor" opacity="0.35"/>']
        if x:
            axes.append(
                f'<text x="0" y="{h + 18}">{_short(x0)}</text><text x="{w}" y="{h + 18}" text-anchor="end">'
                f'{_short(x1)}</text><text x="{w / 2}" y="{h + 18}" text-anchor="middle">{x}</text>'
            )
        left = 4
        if y:
            left = 58
            axes.append(
                f'<text x="-6" y="{h}" text-anchor="end">{_short(y0)}</text><text x="-6" y="12" text-anchor="end">'
                f'{_short(y1)}</text>'
                f'<text transform="translate(-14 {h / 2}) rotate(-90)" text-anchor="middle">{y}</text>'
            )
        # Curves are cut at the frame, names and numbers are not.
        clip = f"vf{abs(hash((self.frame, w, h))) % 10**8}"
        inner = f'<g clip-path="url(#{clip})">{"".join(self.parts)}</g>'
        below = 24 if x else 4
        return (
            f'<svg class="{kind}" viewBox="{-left} -4 {w + left + 4} {h + 4 + below}" role="img" '
            f'xmlns="http://www.w3.org/2000/svg">'
            f'<clipPath id="{clip}"><rect x="0" y="0" width="{w}" height="{h}"/></clipPath>'
            f'{inner}<g fill="currentColor">{"".join(axes)}</g></svg>'
        )


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def histogram(values: Array, marks: Sequence[tuple[float, float, str, str]], x: str, bins: int = 40) -> str:
    """A histogram with marks (value, half the width of its band, name, colour).

    The frame holds the central 99 % of the values and all marks; what lies outside of it is counted in the outermost
    bars.
    """
    values = np.asarray(values, float)
    places = [m[0] for m in marks if math.isfinite(m[0])]
    low, high = np.quantile(values, [0.005, 0.995])
    low, high = min([low, *places]), max([high, *places])
    margin = 0.04 * (high - low) or 1.0
    low, high = low - margin, high + margin
    edges = np.linspace(low, high, bins + 1)
    counts = np.histogram(np.clip(values, low, high), edges)[0]
    plot = Plot((low, high, 0.0, 1.3 * max(counts.max(), 1)), x, "", aspect=0.42)
    plot.bars(edges, counts)
    for value, spread, name, colour in marks:
        if math.isfinite(value):
            plot.mark(value, colour, name, spread if math.isfinite(spread) else 0.0)
    return plot.text()


def dark(values: Array) -> Array:
    """Densities ``[H, W]`` from 0 on as colours ``[3, H, W]``: white where there is none, dark where it is high."""
    stops = np.array([[255, 255, 255], [253, 216, 170], [245, 140, 98], [198, 64, 110], [106, 28, 112], [22, 12, 56]])
    top = float(np.nanmax(values)) or 1.0
    at = np.clip(np.nan_to_num(values) / top, 0, 1)
    ways = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(at, ways, stops[:, k] / 255) for k in range(3)])
