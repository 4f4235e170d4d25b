"""A fit to a target in the plane as draws of q that move while it is trained.

The gallery keeps them as plain values in ``film.json`` beside its figures; :mod:`varflow.report.film` shows them. The
draws of all frames are made of the same random numbers, so that each can be followed.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow.core.files import write_json
from varflow.figures.base import encoded
from varflow.figures.targets import dark

FILM = "film.json"
#: Draws in a frame.
DRAWS = 1200
#: Steps of the grid that places are rounded to; 0 stands for a draw outside of the window.
_GRID = 254


def keep(
    folder: Path,
    name: str,
    exact: np.ndarray,
    window: tuple[float, ...],
    frames: Iterable[tuple[int, Tensor]],
) -> Path | None:
    """Write ``film.json``, or take away the one of before where there are fewer than two frames."""
    path = folder / FILM
    found = film(name, exact, window, frames)
    if len(found["steps"]) < 2:
        path.unlink(missing_ok=True)
        return None
    write_json(path, found)
    return path


def film(
    name: str, exact: np.ndarray, window: tuple[float, ...], frames: Iterable[tuple[int, Tensor]]
) -> dict[str, Any]:
    """The target and the draws of each frame as plain values.

    Args:
        name: of the target.
        exact: its density ``[H, W]``, rows from below.
        window: (x_min, x_max, y_min, y_max) that it covers.
        frames: (step, draws of q ``[N, 2]``), N the same in all.

    Returns:
        ``name``; ``target``, a picture of the density; ``window``; ``steps``; ``draws``, how many; and ``places``:
        the bytes of ``[frames, N, 2]`` in base64, x from the left and y from above in 254 steps from 1 on, and 0
        outside of the window.
    """
    steps, places = [], []
    for step, z in frames:
        steps.append(int(step))
        places.append(on_grid(np.asarray(z.double().cpu()), window))
    whole = np.stack(places) if places else np.zeros((0, 0, 2), np.uint8)
    return {
        "name": name,
        "target": picture_of(exact),
        "window": [float(edge) for edge in window],
        "steps": steps,
        "draws": int(whole.shape[1]),
        "places": base64.b64encode(whole.tobytes()).decode(),
    }


def on_grid(z: np.ndarray, window: tuple[float, ...]) -> np.ndarray:
    """Points ``[N, 2]`` as bytes: 1 … 255 from left to right and from above to below, 0 outside of the window."""
    low, high = np.array(window)[[0, 2]], np.array(window)[[1, 3]]
    share = (z - low) / (high - low)
    share[:, 1] = 1 - share[:, 1]
    inside = np.isfinite(share).all(-1) & (share >= 0).all(-1) & (share <= 1).all(-1)
    grid = 1 + np.round(np.where(inside[:, None], share, 0) * _GRID)
    found: np.ndarray = np.where(inside[:, None], grid, 0).astype(np.uint8)
    return found


def picture_of(density: np.ndarray) -> str:
    """A density ``[H, W]``, rows from below, as the source of a picture: white is 0, dark is high."""
    from PIL import Image

    top = float(np.nanmax(density))
    levels = np.round(np.nan_to_num(density / top) * 255).clip(0, 255).astype(np.uint8)[::-1]
    image = Image.fromarray(np.ascontiguousarray(levels), "P")
    image.putpalette((dark()(np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes())
    return f"data:image/png;base64,{base64.b64encode(encoded(image)).decode()}"


def frames_of(
    model: Any,
    snapshots: Iterable[tuple[int, Mapping[str, Tensor]]],
    draw: Callable[[Any], Tensor],
) -> Iterable[tuple[int, Tensor]]:
    """(step, draws) of each snapshot of ``model``, whose weights are left as they are."""
    again = copy.deepcopy(model)
    for step, weights in snapshots:
        again.load_state_dict(dict(weights))
        with torch.no_grad():
            yield step, draw(again)
