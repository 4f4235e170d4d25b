"""The few pieces of HTML that a report is made of. Text is escaped here, once, for all of them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from varflow.core.errors import DataError

#: Pixels of the page for each pixel of a figure, which is drawn at 150 dpi.
_SCALE = 0.6

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #5c5c66; --paper: #fff; --line: #d9d9de;
  --tint: #f4f5f7; --mark: #fff2cc; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --soft: #a5a5ad; --paper: #17181b;
  --line: #38393f; --tint: #212328; --mark: #4a3f1c; --accent: #6db8e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.75rem; padding-bottom: 0.25rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: 0.9rem; }
.cards { display: flex; flex-wrap: wrap; gap: 0.75rem; margin: 1rem 0; }
.card { background: var(--tint); border-radius: 8px; padding: 0.7rem 1rem; min-width: 12rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums;
  width: 100%; }
th, td { text-align: left; padding: 0.3rem 0.7rem 0.3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: normal; }
th { font-weight: 600; }
td.whole { white-space: nowrap; }
td:last-child { min-width: 11rem; }
table.settings td { overflow-wrap: anywhere; min-width: 5rem; }
table.settings td:first-child { width: 14rem; }
tr.changed td { background: var(--mark); }
figure { margin: 1.25rem 0; }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; background: #fff;
  border-radius: 6px; padding: 6px; }
pre { background: var(--tint); border-radius: 6px; padding: 0.7rem 1rem; white-space: pre-wrap;
  font-size: 0.88rem; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --tint: #f4f4f4;
    --mark: #eee; --line: #bbb; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  h2, h3 { break-after: avoid; }
  figure, tr, .card { break-inside: avoid; }
  figure img { max-height: 20cm; width: auto; }
  tr.changed td:first-child { font-weight: 700; }
}
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; ``body`` are pieces made by the functions below."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, soft: bool = False) -> str:
    css = ' class="soft"' if soft else ""
    return f"<p{css}>{escape(text)}</p>" if text else ""


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Label, number and unit, in boxes side by side."""
    boxes = (
        f'<div class="card">{escape(label)}<b>{escape(number)}</b>'
        f'<span class="soft">{escape(unit)}</span></div>'
        for label, number, unit in items
    )
    return '<div class="cards">' + "".join(boxes) + "</div>"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    whole: Collection[int] = (),
    marked: Collection[int] = (),
    kind: str = "",
) -> str:
    """A table that scrolls by itself where the screen is narrow.

    Args:
        columns: names of the columns.
        rows: their cells, as text.
        whole: columns that are never broken into lines.
        marked: rows that are set off.
        kind: CSS class.
    """
    unbroken, changed = ' class="whole"', ' class="changed"'
    lines = []
    for k, row in enumerate(rows):
        cells = (
            f"<td{unbroken if j in whole else ''}>{escape(cell)}</td>" for j, cell in enumerate(row)
        )
        lines.append(f"<tr{changed if k in marked else ''}>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    css = f' class="{escape(kind)}"' if kind else ""
    return (
        f'<div class="scroll"><table{css}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts(values: Mapping[str, Any]) -> str:
    """Nested plain values, one row each."""
    return table(
        ("name", "value"), [(name, plain(v)) for name, v in _flat(values)], kind="settings"
    )


def picture(image: bytes, title: str, caption: str) -> str:
    """A figure with the PNG inside the page, at one scale for all, so that their letters match; or a GIF,
    pixel by pixel.

    Raises:
        DataError: neither a PNG nor a GIF.
    """
    if image[:8] == b"\x89PNG\r\n\x1a\n" and len(image) >= 24:
        kind, (width, height) = (
            "png",
            (round(_SCALE * n) for n in struct.unpack(">II", image[16:24])),
        )
    elif image[:6] in (b"GIF87a", b"GIF89a") and len(image) >= 10:
        kind, (width, height) = "gif", struct.unpack("<HH", image[6:10])
    else:
        raise DataError(f"{title}: not a PNG or GIF; draw the figures again")
    data = base64.b64encode(image).decode()
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" alt="{escape(title)}" '
        f'width="{width}" height="{height}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def plain(value: Any) -> str:
    """A value of a JSON file as a reader writes it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
