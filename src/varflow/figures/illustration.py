"""Figures that a notebook shows by themselves, with pyplot or without."""

from __future__ import annotations

import base64
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from varflow.core import display
from varflow.core.errors import SpecError
from varflow.core.files import make_folder, write_atomically

if TYPE_CHECKING:
    from varflow.figures.gallery_scene import Drawn, Entry

#: Dots per inch of what a notebook shows.
DPI = 100
#: How far 256 colours may be off: most of the pixels, of 255 levels, and a pixel in a thousand.
_MOST, _FEW = 1.5, 12.0


class Inline(Figure):
    """A matplotlib figure that is its own picture where it ends a cell."""

    def _repr_png_(self) -> bytes:
        return png(self, self.dpi)


@dataclass(frozen=True, eq=False, repr=False)
class Illustration:
    """One figure of a run, with what it shows.

    At the end of a cell it shows itself, its caption below it.

    Attributes:
        name: of the figure, as in ``run.figures``.
        title, caption: what it shows, on which data.
        image: the picture, PNG or GIF.
        figure: to be changed or saved in other forms; None of an animation.
    """

    name: str
    title: str
    caption: str
    image: bytes
    figure: Figure | None = None

    @property
    def kind(self) -> str:
        """``png`` or ``gif``."""
        return "gif" if self.image[:3] == b"GIF" else "png"

    def save(self, path: Path | str, dpi: int = 150) -> Path:
        """Write it as a file, by its suffix PNG, SVG or PDF, an animation as GIF; returns the path.

        Raises:
            SpecError: an animation as another file.
            RunError: the file cannot be written.
        """
        from varflow.figures.base import save

        path = Path(path)
        if self.figure is not None:
            return save(self.figure, path, dpi)
        if path.suffix != f".{self.kind}":
            raise SpecError(f"path: was {path.name}; {self.name} is written as .{self.kind}")
        make_folder(path.parent)
        write_atomically(path, lambda file: file.write(self.image))
        return path

    def __repr__(self) -> str:
        return f"Illustration({self.name}: {self.title}, {len(self.image) / 1024:.0f} kB {self.kind.upper()})"

    def _repr_png_(self) -> bytes | None:
        return self.image if self.kind == "png" else None

    def _repr_html_(self) -> str:
        return display.block(self._img(), self._note())

    def _ipython_display_(self) -> None:
        # The picture as a PNG, which also pages that strip HTML show, and its caption below.
        from IPython.display import display as show

        plain = repr(self)
        held = {"text/html": self._img()} if self.kind == "gif" else {"image/png": _base64(self.image)}
        show({**held, "text/plain": plain}, raw=True)
        show({"text/html": self._note(), "text/plain": f"{self.title}. {self.caption}"}, raw=True)

    def _img(self) -> str:
        form, at = (">II", 16) if self.kind == "png" else ("<HH", 6)
        width, height = struct.unpack_from(form, self.image, at)
        alt = display.text(f"{self.title}. {self.caption}")
        return (
            f'<img src="data:image/{self.kind};base64,{_base64(self.image)}" alt="{alt}" width="{width}" '
            f'height="{height}" style="max-width: 100%; height: auto">'
        )

    def _note(self) -> str:
        title = display.HTML(f"<strong>{display.text(self.title)}.</strong> ")
        return display.note(display.HTML(title + display.text(self.caption)))


def png(figure: Figure, dpi: float = DPI) -> bytes:
    """A matplotlib figure as PNG, of 256 colours where that is as good: less than half the size."""
    buffer = io.BytesIO()
    # Ticks settle in the first layout; without it the second can cut off what they push outwards.
    figure.draw_without_rendering()
    figure.savefig(buffer, dpi=dpi, format="png")
    return _smaller(buffer.getvalue())


def _smaller(image: bytes) -> bytes:
    # matplotlib needs it too.
    from PIL import Image

    full = Image.open(io.BytesIO(image)).convert("RGB")
    few = full.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    off = np.abs(np.asarray(full, float) - np.asarray(few.convert("RGB"), float)).max(-1)
    if off.mean() > _MOST or np.quantile(off, 0.999) > _FEW:
        return image
    buffer = io.BytesIO()
    few.save(buffer, format="PNG", optimize=True)
    return min(buffer.getvalue(), image, key=len)


def of_drawn(name: str, drawn: Drawn, dpi: float | None = None) -> Illustration:
    """A figure of a gallery."""
    return Illustration(name, drawn.title, drawn.caption, png(drawn.figure, dpi or DPI), drawn.figure)


def of_file(name: str, entry: Entry) -> Illustration:
    """A figure that is a file."""
    return Illustration(name, entry.title, entry.caption, entry.path.read_bytes())


def _base64(image: bytes) -> str:
    return base64.b64encode(image).decode()
