"""Points that a page can be asked about: where each example lies in latent space, with its picture or its row.

The gallery keeps them as plain values in ``points.json`` beside its figures; :mod:`varflow.report.points` draws them.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow.core.files import write_json
from varflow.figures import scatter
from varflow.figures.base import encoded
from varflow.figures.gallery_latents import widens
from varflow.figures.gallery_scene import Scene

POINTS = "points.json"
#: Examples that are shown, and those of a report at the end of a fit, which is not to be waited for.
MOST, FEW = 500, 250
#: Longest side of a picture on the sheet, in pixels, and pictures in a row of it.
_SIDE, _ACROSS = 48, 20
#: Bytes of a sheet of colours that is kept without loss.
_LOSSLESS = 300_000
#: Columns of a table that are told of a row.
_COLUMNS = 40


def applies(scene: Scene) -> bool:
    """Whether examples have a place in a latent space."""
    return not scene.model.posterior.discrete and scene.size(2) == 2


def keep(scene: Scene, folder: Path, few: bool = False) -> Path | None:
    """Write ``points.json``; where there are no points, take away the one of before. Returns its path, if any."""
    path = folder / POINTS
    if not applies(scene):
        path.unlink(missing_ok=True)
        return None
    write_json(path, points(scene, FEW if few else MOST))
    return path


def points(scene: Scene, most: int = MOST) -> dict[str, Any]:
    """One draw of q(z|x) for each of the first examples, before and after the flow where there is one.

    Returns:
        Plain values: ``panels``, each with ``title``, ``axes``, the ``window`` (x_min, x_max, y_min, y_max) and
        ``points`` ``[N, 2]``; ``contours``, whether the prior is N(0, I); ``names`` of the examples; ``classes`` and
        ``labels`` ``[N]``, or none; the ``sheet`` of all pictures in the order of the points, or None; ``columns``
        and ``rows`` ``[N, columns]`` as words, or none; ``title`` and ``caption``.
    """
    count = scene.size(most)
    z0, z = (np.asarray(v[:count].double().cpu()) for v in _latents(scene, count))
    contours = bool(scene.model.prior.standard)
    observed = bool(scene.model.posterior.observed)
    columns, rows = _rows(scene, count)
    names = [str(name) for name in scene.dataset.origins(scene.split, torch.arange(count))]
    files = bool(names) and not all(name.isdigit() for name in names)
    labels, classes = _labels(scene, count)
    directions, axes = scatter.view(z)
    if observed and z.shape[1] == 2:
        axes = _axis_names(scene)
    shown = [("q(z|x)", "z", z)]
    title = "Data" if observed else "Latents"
    if scene.flow is not None:
        shown = [("before the flow", "z₀", z0), ("after the flow", "z", z)]
        title = "Latents before and after the flow"
    elif observed:
        shown = [("", "x", z)]
    seen = [points @ directions for _, _, points in shown]
    windows = [scatter.limits(points, contours) for points in seen]
    if len(seen) > 1 and not widens(scene):
        windows = [scatter.limits(np.concatenate(seen), contours)] * len(seen)
    return {
        "title": title,
        "caption": _caption(scene, count, contours, len(set(map(str, windows))) > 1),
        "split": scene.split,
        "panels": [
            {
                "title": name,
                "axes": [_plain(axis, symbol, "x" if observed else "z") for axis in axes],
                "window": [edge for pair in _square(window) for edge in pair],
                "points": np.round(points, 4).tolist(),
            }
            for (name, symbol, _), points, window in zip(shown, seen, windows, strict=True)
        ],
        "contours": contours and not observed,
        "names": names if files else [f"{scene.split} row {name}" for name in names],
        "labels": labels,
        "classes": classes,
        "sheet": _sheet(scene, count) if scene.pictures else None,
        "columns": columns,
        "rows": rows,
    }


def _latents(scene: Scene, count: int) -> tuple[Tensor, Tensor]:
    """Those of the figures where they were drawn; the same ones otherwise."""
    return scene.latents if "latents" in vars(scene) else scene.encode(count)


def _caption(scene: Scene, count: int, contours: bool, apart: bool) -> str:
    if scene.model.posterior.observed:
        return f"The first {count:,} {scene.examples}, as the model sees them."
    text = f"One draw of q(z|x) for each of the first {count:,} {scene.examples}."
    if scene.flow is not None:
        text += " The same draws before and after the flow; the prior is charged at z alone."
        text += " The base is more than twice as wide, so each panel has axes of its own." if apart else ""
    return text + (" Dashed: the prior at 1, 2 and 3 standard deviations." if contours else "")


def _labels(scene: Scene, count: int) -> tuple[list[int] | None, list[str]]:
    """The class of each example, and what the classes are called."""
    found = scene.labels(count)
    if found is None:
        return None, []
    labels = [int(label) for label in found]
    return labels, scene.class_names(max(labels) + 1)


def _axis_names(scene: Scene) -> tuple[str, str]:
    heads = list(scene.dataset.columns)
    first, second = heads if len(heads) == 2 else ["column 1", "column 2"]
    return first, second


def _plain(axis: str, symbol: str, whole: str) -> str:
    """An axis of :func:`varflow.figures.scatter.view` without formulas; shares are of the variance of ``whole``."""
    return axis.replace("${}$", symbol).replace("$z$", whole)


def _square(limits: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The least square around a window, so that lengths are equal in both directions."""
    reach = max(high - low for low, high in limits) / 2
    return [((low + high) / 2 - reach, (low + high) / 2 + reach) for low, high in limits]


def _rows(scene: Scene, count: int) -> tuple[list[str], list[list[str]]]:
    """The columns of a table, and those of what it is conditioned on; no more than a reader can take in."""
    found: dict[str, list[str]] = {}
    if not scene.pictures and len(scene.dataset.event_shape) == 1:
        values = scene.dataset.raw(scene.split)[:count]
        found |= _told(scene.dataset.preprocessing, values, scene.dataset.columns)
    if (conditions := scene.dataset.conditions) is not None:
        given = _told(conditions.preprocessing, conditions.values[scene.split][:count], ())
        found |= {f"given {name}": cells for name, cells in given.items()}
    kept = list(found)[:_COLUMNS]
    return kept, [list(row) for row in zip(*(found[name] for name in kept), strict=True)]


def _told(preprocessing: Any, values: Tensor, heads: Sequence[str]) -> dict[str, list[str]]:
    """Stored values as words, by column."""
    if hasattr(preprocessing, "table"):
        table = preprocessing.table(values)
    else:
        names = heads if len(heads) == values.shape[1] else [f"column {k + 1}" for k in range(values.shape[1])]
        table = dict(zip(names, np.asarray(values.double().cpu()).T, strict=True))
    return {str(name): [_word(cell) for cell in _cells(column)] for name, column in table.items()}


def _cells(column: Any) -> list[Any]:
    array = column if isinstance(column, np.ndarray) else np.asarray(column)
    plain: np.ndarray[Any, Any] = np.ma.getdata(array)
    cells = (np.datetime_as_string(plain) if plain.dtype.kind == "M" else plain).tolist()
    mask = np.ma.getmaskarray(array)
    return [None if hidden else cell for cell, hidden in zip(cells, mask, strict=True)]


def _word(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "missing"
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def _sheet(scene: Scene, count: int) -> dict[str, Any]:
    """All pictures as they are stored, in rows of one image."""
    stored = scene.dataset.raw(scene.split)[:count].reshape(count, *scene.dataset.event_shape)
    levels = (stored.double() * (255 / scene.dataset.preprocessing.top)).round().clamp(0, 255)
    return sheet(levels.byte().cpu().numpy())


def sheet(pictures: np.ndarray) -> dict[str, Any]:
    """Pictures ``[N, C, H, W]`` of uint8, C = 1 or 3, in rows of one image that a page can hold.

    Returns:
        its ``source``, ``across`` (pictures in a row), ``width`` and ``height`` of each in pixels.
    """
    from PIL import Image

    count, colours, height, width = pictures.shape
    shrink = min(1.0, _SIDE / max(height, width))
    high, wide = max(1, round(height * shrink)), max(1, round(width * shrink))
    across = min(_ACROSS, count)
    image = Image.new("L" if colours == 1 else "RGB", (across * wide, -(-count // across) * high))
    for k, picture in enumerate(pictures):
        one = Image.fromarray(picture[0] if colours == 1 else picture.transpose(1, 2, 0))
        if shrink < 1:
            one = one.resize((wide, high), Image.Resampling.LANCZOS)
        image.paste(one, (k % across * wide, k // across * high))
    blob, kind = encoded(image, "PNG"), "png"
    if colours > 1 and len(blob) > _LOSSLESS:
        blob, kind = encoded(image, "JPEG", quality=85), "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(blob).decode()}"
    return {"source": source, "across": across, "width": wide, "height": high}
