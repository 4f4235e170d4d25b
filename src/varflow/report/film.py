"""Fits to targets in the plane as films: the draws of q of each step, moved by the script of the page.

A film is made of ``figures/film.json`` (:mod:`varflow.figures.gallery_film`). Without a script, and on paper, it is
its last frame.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from varflow.core.errors import DataError, RunError
from varflow.figures.base import AFTER, encoded
from varflow.report.read import checked_source, in_script, read_kind, source_of

#: Pixels of a still, and radius of a draw in it.
_SIDE, _RADIUS = 320, 1.6


class Reel(NamedTuple):
    """One target and what was fitted to it.

    Attributes:
        name: of the target.
        note: a number under it; may be empty.
        target: picture of its density.
        still: picture of the last draws.
        draws: how many.
        last: the step that they are of.
    """

    name: str
    note: str
    target: str
    still: str
    draws: int
    last: int


class Film(NamedTuple):
    """Reels that run together; ``told`` is what the script of the page reads."""

    reels: list[Reel]
    frames: int
    told: str


def of_folder(figures: Path) -> Film | None:
    """The film of a folder of figures; None where there is none.

    Raises:
        RunError: film.json is not what varflow wrote.
    """
    path = figures / "film.json"
    return film([read_kind(path, dict)], str(path)) if path.exists() else None


def film(
    held: Sequence[Mapping[str, Any]],
    where: str = "film",
    names: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Film:
    """The film of plain values, as :func:`varflow.figures.gallery_film.film` gives them.

    Args:
        held: of each reel; where their steps differ all end with the shortest.
        where: what an error calls them.
        names, notes: of the reels, in place of those of the targets and of none.

    Raises:
        RunError: they are not what varflow wrote.
    """
    reels, told = [], []
    try:
        frames = min(len(one["steps"]) for one in held)
        for k, one in enumerate(held):
            steps = [int(step) for step in one["steps"]][:frames]
            draws = int(one["draws"])
            places = np.frombuffer(base64.b64decode(one["places"], validate=True), np.uint8)
            if draws < 1 or frames < 2 or places.size != len(one["steps"]) * draws * 2:
                raise ValueError(f"{places.size} places for {len(one['steps'])} frames of {draws} draws")
            moves = places.reshape(-1, draws, 2)[:frames]
            name = names[k] if names else str(one["name"])
            target = checked_source(one["target"], name)
            reels.append(Reel(name, notes[k] if notes else "", target, still(moves[-1]), draws, steps[-1]))
            told.append({"steps": steps, "draws": draws, "places": base64.b64encode(moves.tobytes()).decode()})
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise RunError(f"{where}: not what varflow wrote ({error}); draw the figures again") from error
    return Film(reels, frames, in_script(told))


def still(places: np.ndarray) -> str:
    """Draws ``[N, 2]`` in bytes as a picture with nothing behind it."""
    from PIL import Image, ImageDraw

    # Drawn at twice the size: Pillow's circles have hard edges.
    image = Image.new("RGBA", (2 * _SIDE, 2 * _SIDE), (255, 255, 255, 0))
    pen = ImageDraw.Draw(image)
    for x, y in places[(places > 0).all(-1)].astype(float):
        u, v = ((place - 1) / 254 * 2 * _SIDE for place in (x, y))
        r = 2 * _RADIUS
        pen.ellipse((u - r, v - r, u + r, v + r), fill=AFTER)
    small = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return source_of(encoded(small.quantize(32)), "still")
