"""Pages from the templates beside this file: one file each, that needs no network and no other file.

The one script is page.js, and a page runs no other: its policy names the digest. Text is escaped by jinja2, once and
everywhere; pictures stand inside the page. The one template of Markdown escapes what Markdown and HTML would read.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from varflow.report.read import size_of, source_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Pixels of the page for each pixel of a figure, which is drawn at 150 dpi.
_SCALE, _DPI = 0.6, 150


class Picture(NamedTuple):
    """A figure as a page shows it; without a ``source`` the caption says what is missing."""

    title: str
    caption: str
    source: str = ""
    width: int = 0
    height: int = 0


def render(template: str, **values: Any) -> str:
    """The page that a template makes of plain values."""
    return _environment(template.endswith(".md")).get_template(template).render(values)


def markdown(value: Any) -> Any:
    """A value as words of Markdown that mean nothing but themselves, on one line; what is marked as safe passes."""
    if isinstance(value, Markup):
        return value
    # The last three keep addresses from becoming links.
    return re.sub(r"([\\`*_\[\]<>|~$&@]|:(?=//)|(?<=www)\.)", r"\\\1", " ".join(str(value).split()))


def code(value: Any) -> Markup:
    """A value in the letters of code, on one line, also in a cell of a table."""
    words = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return Markup(f"`{words}`") if words else Markup("–")


def picture(image: bytes, title: str, caption: str) -> Picture:
    """A PNG, at one scale for all so that their letters match; or a GIF, pixel by pixel.

    Raises:
        DataError: neither a PNG nor a GIF.
    """
    kind, *sizes = size_of(image, title)
    if kind == "png":
        sizes = [round(_SCALE * n) for n in sizes]
    return Picture(title, caption, source_of(image, title), *sizes)


def drawn(figure: Figure, title: str, caption: str) -> Picture:
    """A matplotlib figure as a picture of the page."""
    buffer = io.BytesIO()
    # Ticks settle in the first layout; without it the second can cut off what they push outwards.
    figure.draw_without_rendering()
    figure.savefig(buffer, dpi=_DPI, format="png")
    return picture(buffer.getvalue(), title, caption)


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


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as rows: (``outer.inner``, value)."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


@cache
def _environment(of_markdown: bool = False) -> Environment:
    made = Environment(
        loader=PackageLoader("varflow.report"),
        autoescape=not of_markdown,
        finalize=markdown if of_markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(plain=plain, flat=flat, code=code)
    if not of_markdown:
        assert made.loader is not None
        script = made.loader.get_source(made, "page.js")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        made.globals.update(script=Markup(script), script_hash=f"sha256-{digest}")
    return made
