"""What all figures share: canvas, colours, arrays, and files that appear whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from varflow.core.errors import ShapeError
from varflow.core.files import make_folder, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Array = Tensor | np.ndarray

#: Okabe and Ito's eight colours, told apart with any colour vision.
OKABE_ITO = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000",
)  # fmt: skip
#: Petroff's ten colours (2021, arXiv:2107.02270), optimised for the same purpose.
PETROFF = (
    "#3F90DA", "#FFA90E", "#BD1F01", "#94A4A2", "#832DB6",
    "#A96B59", "#E76300", "#B9AC70", "#717581", "#92DADD",
)  # fmt: skip
BEFORE, AFTER, INK = "#B8B8B8", OKABE_ITO[0], "#333333"
TRAIN, VALIDATION = OKABE_ITO[0], OKABE_ITO[5]

_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100,
}


@contextmanager
def style() -> Iterator[None]:
    """The house style inside the block; matplotlib's own settings come back after it."""
    import matplotlib

    settings: Any = _STYLE
    with matplotlib.rc_context(settings):
        yield


def canvas(
    rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 4.8
) -> tuple[Figure, Any]:
    """A figure and its axes ``[rows, columns]``, laid out so that nothing is cut off.

    It knows no window: :func:`save` writes it, and a notebook shows it where it is the last line of a cell. Sizes in
    inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from varflow.figures.illustration import Inline

    figure = Inline(figsize=(width, height))
    figure.set_layout_engine("compressed", w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: Path | str, dpi: int = 150) -> Path:
    """Write ``figure`` to ``path``, as PNG, SVG or PDF by its suffix.

    Readers see the old file or the new one, never half a file.

    Raises:
        RunError: the file cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    # Ticks settle in the first layout; without it the second can cut off what they push outwards.
    figure.draw_without_rendering()
    write_atomically(
        path, lambda file: figure.savefig(file, dpi=dpi, format=path.suffix[1:] or "png")
    )
    return path


def encoded(image: Any, form: str = "PNG", **options: Any) -> bytes:
    """A picture of Pillow as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=form, optimize=True, **options)
    return buffer.getvalue()


def categories(count: int) -> list[Any]:
    """``count`` colours for unordered classes: distinct up to ten, then steps of one scale."""
    if count <= len(OKABE_ITO):
        return list(OKABE_ITO[:count])
    if count <= len(PETROFF):
        return list(PETROFF[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](step) for step in np.linspace(0, 1, count)]


def signed() -> Colormap:
    """Blue for negative, orange for positive; dark in between, to be seen on white."""
    from matplotlib.colors import LinearSegmentedColormap

    anchors = ["#56B4E9", "#0072B2", "#3A3A3A", "#D55E00", "#F0A030"]
    return LinearSegmentedColormap.from_list("signed", anchors)


def as_numpy(name: str, array: Array | Sequence[Any], *shape: int | None) -> np.ndarray:
    """``array`` as float64 numpy on the CPU; ``shape`` lists the sizes it must have, None for any.

    Raises:
        ShapeError: another number of dimensions or another size.
    """
    if isinstance(array, Tensor):
        array = array.detach().cpu().double().numpy()
    values = np.asarray(array, float)
    fits = values.ndim == len(shape) and all(
        want is None or want == size for want, size in zip(shape, values.shape, strict=True)
    )
    if shape and not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ShapeError(f"{name}: shape {values.shape}; expected [{wanted}]")
    return values


def bare(axes: Axes) -> Axes:
    """No ticks, no frame: for pictures."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes
