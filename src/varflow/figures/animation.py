"""Training as a film: the target beside q, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from varflow.core.errors import ShapeError, SpecError
from varflow.core.files import make_folder, write_atomically
from varflow.figures.base import Array, as_numpy, canvas, style
from varflow.figures.targets import density

if TYPE_CHECKING:
    from varflow.targets.target import Window


def animate(
    target: Float[Array, "H W"],
    frames: Iterable[tuple[int, Float[Array, "H W"]]],
    window: Window,
    path: Path | str,
    name: str = "target",
    milliseconds: int = 120,
    hold: int = 2000,
    dpi: int = 80,
) -> Path:
    """A GIF of the target and, beside it, q at each of some steps of training; one colour scale.

    Args:
        target: the density of the target, rows from below (:func:`density_on_grid`).
        frames: (step, density of q), in order; drawn one at a time.
        window: (x_min, x_max, y_min, y_max) that all densities cover.
        path: of the file, which appears whole or not at all.
        name: title of the target.
        milliseconds: for which each frame is shown.
        hold: the same for the last.
        dpi: of the 6.6 × 3.6 inches.

    Raises:
        SpecError: the path does not end in .gif.
        ShapeError: there is no frame, or one has another shape.
        RunError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise SpecError(f"path: was {path.name}; an animation ends in .gif")
    exact = as_numpy("target", target, None, None)
    pictures = _draw(exact, frames, window, name, dpi)
    if not pictures:
        raise ShapeError("frames: there are none; give one or more")
    make_folder(path.parent)
    shown = [milliseconds] * (len(pictures) - 1) + [hold]
    write_atomically(
        path,
        lambda file: pictures[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=shown,
            loop=0,
            optimize=False,
        ),
    )
    return path


def _draw(
    exact: np.ndarray,
    frames: Iterable[tuple[int, Array]],
    window: Window,
    name: str,
    dpi: int,
) -> Sequence[Any]:
    """The frames as images of one palette."""
    from PIL import Image

    with style():
        figure, axes = canvas(1, 2, 6.6, 3.6)
        left, right = axes[0]
        density(exact, left, window)
        left.set_title(name)
        image = density(np.zeros_like(exact), right, window, top=float(exact.max()))
        for panel in (left, right):
            panel.set_box_aspect(1)
        right.set_title("q at step 0")
        figure.set_dpi(dpi)
        # The layout settles once; afterwards nothing moves from frame to frame.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        drawn: list[Any] = []
        palette = None
        for step, values in frames:
            image.set_data(as_numpy("frames", values, *exact.shape))
            right.set_title(f"q at step {step:,}")
            painter: Any = figure.canvas
            painter.draw()
            colours = Image.fromarray(np.asarray(painter.buffer_rgba())[..., :3].copy())
            # The target's panel has all the colours of the scale.
            palette = palette or colours.quantize(256, dither=Image.Dither.NONE)
            drawn.append(colours.quantize(palette=palette, dither=Image.Dither.NONE))
    return drawn
