"""Figures made of pictures. A sheet is one image, so a hundred pictures cost one artist."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from varflow.core.errors import ShapeError, positive
from varflow.figures.base import Array, as_numpy, bare, encoded

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def image_grid(images: Float[Array, "N C H W"], axes: Axes, columns: int | None = None) -> Axes:
    """Pictures in reading order.

    Args:
        images: ``[N, C, H, W]`` in [0, 1], with 1 or 3 channels.
        axes: where to draw.
        columns: pictures in a row; without it as many as make the sheet square.

    Raises:
        ShapeError: not a batch of pictures, or values outside [0, 1].

    Example:
        >>> import torch
        >>> from varflow import figures
        >>> figure, axes = figures.canvas()
        >>> drawn = figures.image_grid(torch.rand(12, 1, 8, 8), axes[0, 0], columns=4)
        >>> drawn.images[0].get_array().shape
        (28, 37, 3)
    """
    pictures = _pictures("images", images)
    if columns is None:
        columns = math.ceil(math.sqrt(len(pictures)))
    positive(columns=columns)
    _show(_sheet(pictures, min(columns, len(pictures))), axes)
    return axes


def reconstructions(
    originals: Float[Array, "N C H W"],
    reconstructions: Float[Array, "N C H W"],
    axes: Axes,
    columns: int = 5,
) -> Axes:
    """Originals, each with its reconstruction directly to the right; pairs are set apart by a gap.

    Args:
        originals, reconstructions: ``[N, C, H, W]`` in [0, 1], pair by pair.
        axes: where to draw.
        columns: pairs in a row.

    Raises:
        ShapeError: the two differ in shape, or are no pictures in [0, 1].
    """
    left, right = _pictures("originals", originals), _pictures("reconstructions", reconstructions)
    if left.shape != right.shape:
        raise ShapeError(
            f"reconstructions: shape {tuple(np.shape(reconstructions))}, the originals have "
            f"{tuple(np.shape(originals))}; give one reconstruction for each original"
        )
    positive(columns=columns)
    columns = min(columns, len(left))
    between = _gap(left.shape[2]) // 2 or 1
    joint = np.ones((*left.shape[:2], between, 3))
    paired = np.concatenate([left, joint, right], axis=2)
    gap = 3 * _gap(left.shape[2])
    _show(_sheet(paired, columns, gap), axes)
    height, width = left.shape[1:3]
    stride = paired.shape[2] + gap
    for column in range(columns):
        start = gap + column * stride
        for text, middle in (("data", start + width / 2), ("model", start + width * 1.5 + between)):
            axes.text(
                middle - 0.5, gap - 0.12 * height - 0.5, text, ha="center", va="bottom", fontsize=8
            )
    axes.set_ylim(axes.get_ylim()[0], -0.25 * height)
    return axes


def prior_quantiles(count: int, low: float = 0.02) -> Float[Tensor, " count"]:
    """Φ⁻¹ of ``count`` equally spaced probabilities in [low, 1 − low], equal in prior mass."""
    positive(count=count)
    probabilities = torch.linspace(low, 1 - low, count, dtype=torch.float64)
    return torch.special.ndtri(probabilities if count > 1 else torch.full_like(probabilities, 0.5))


def decoded_grid(
    images: Float[Array, "R*R C H W"], quantiles: Float[Array, " R"], axes: Axes
) -> Axes:
    """The pictures that a 2-D latent decodes to, over the square of prior quantiles.

    Args:
        images: ``[R·R, C, H, W]`` in [0, 1]; picture ``i·R + j`` belongs to
            z = (quantiles[j], quantiles[i]): z₁ grows to the right, z₂ upwards.
        quantiles: ``[R]``, ascending, e.g. :func:`prior_quantiles`.
        axes: where to draw.

    Raises:
        ShapeError: the number of pictures is not the square of the number of quantiles.
    """
    pictures = _pictures("images", images)
    values = as_numpy("quantiles", quantiles, None)
    side = len(values)
    if len(pictures) != side * side:
        raise ShapeError(
            f"images: {len(pictures)} pictures for {side} quantiles; give {side * side}"
        )
    rows = pictures.reshape(side, side, *pictures.shape[1:])[::-1]
    _show(_sheet(rows.reshape(pictures.shape), side, gap=0), axes)
    height, width = pictures.shape[1:3]
    shown = np.unique(np.linspace(0, side - 1, min(side, 7)).round().astype(int))
    labels = [f"{values[k]:.1f}".replace("-0.0", "0.0").replace("-", "−") for k in shown]
    axes.set_xticks((shown + 0.5) * width - 0.5, labels)
    axes.set_yticks((side - shown - 0.5) * height - 0.5, labels)
    axes.tick_params(length=2)
    axes.set_xlabel("$z_1$ (steps of equal prior mass)")
    axes.set_ylabel("$z_2$")
    return axes


def decoded_trajectories(
    originals: Float[Array, "N C H W"],
    steps: Float[Array, "K N C H W"],
    axes: Axes,
    labels: Sequence[str] | None = None,
    sides: Sequence[str] | None = None,
) -> Axes:
    """A row for each example: the picture itself, then what the latents decode to, point by point.

    Args:
        originals: ``[N, C, H, W]`` in [0, 1].
        steps: ``[K, N, C, H, W]`` in [0, 1], the decoded points of each trajectory.
        axes: where to draw.
        labels: over the K columns; z₀, z₁, … without it.
        sides: to the right of the N rows.

    Raises:
        ShapeError: the two do not belong together, or are no pictures in [0, 1].
    """
    left = _pictures("originals", originals)
    count = len(left)
    moving = as_numpy("steps", steps, None, count, None, None, None)
    points = len(moving)
    if not points or moving.shape[2:] != np.shape(originals)[1:]:
        raise ShapeError(
            f"steps: shape {moving.shape}; expected [K, {', '.join(map(str, np.shape(originals)))}] with K ≥ 1"
        )
    rows = _pictures("steps", moving.swapaxes(0, 1).reshape(count * points, *moving.shape[2:]))
    height, width = rows.shape[1:3]
    gap = _gap(width)
    sheet = _sheet(rows, points, gap)
    # The examples stand apart from what the model makes of them.
    data = _sheet(left, 1, gap)
    space = np.ones((sheet.shape[0], 2 * gap, 3))
    axes.imshow(np.concatenate([data, space, sheet], 1), interpolation="nearest")
    bare(axes)
    start = data.shape[1] + space.shape[1]
    named = [f"$z_{{{k}}}$" for k in range(points)] if labels is None else list(labels)
    places = [gap, *(start + gap + k * (width + gap) for k in range(points))]
    for text, place in zip(["data", *named], places, strict=True):
        axes.text(
            place + width / 2 - 0.5, -0.12 * height, text, ha="center", va="bottom", fontsize=8
        )
    for row, text in enumerate(sides or []):
        middle = gap + row * (height + gap) + height / 2
        axes.text(sheet.shape[1] + start + gap, middle, text, va="center", fontsize=8)
    axes.set_ylim(axes.get_ylim()[0], -0.5 * height)
    return axes


def code_maps(
    codes: Int[Array, "N h w"],
    colours: Float[Array, "K 3"],
    axes: Axes,
    decoded: Float[Array, "N C H W"],
    originals: Float[Array, "N C H W"] | None = None,
    columns: int = 4,
) -> Axes:
    """Each example as a row of tiles: the picture (where there is one), its codes, and what they decode to.

    Args:
        codes: ``[N, h, w]``.
        colours: of the codewords, e.g. :func:`codeword_colours`.
        axes: where to draw.
        decoded: ``[N, C, H, W]`` in [0, 1].
        originals: as ``decoded``.
        columns: examples in a row.

    Raises:
        ShapeError: numbers of examples differ, or a code has no colour.
    """
    right = _pictures("decoded", decoded)
    grid = as_numpy("codes", codes, len(right), None, None).astype(np.int64)
    table = as_numpy("colours", colours, None, 3)
    if grid.size and not 0 <= grid.min() <= grid.max() < len(table):
        raise ShapeError(
            f"codes: from {grid.min()} to {grid.max()}; there are colours for {len(table)}"
        )
    positive(columns=columns)
    height, width = right.shape[1:3]
    rows = np.arange(height) * grid.shape[1] // height
    along = np.arange(width) * grid.shape[2] // width
    tiles = [table[grid][:, rows][:, :, along], right]
    names = ["codes", "decoded"]
    if originals is not None:
        tiles.insert(0, _pictures("originals", originals))
        names.insert(0, "data")
    between = _gap(height) // 2 or 1
    joint = np.ones((len(right), height, between, 3))
    parts = [part for tile in tiles for part in (joint, tile)][1:]
    sheet, gap = np.concatenate(parts, 2), 3 * _gap(height)
    columns = min(columns, len(right))
    _show(_sheet(sheet, columns, gap), axes)
    for column in range(columns):
        start = gap + column * (sheet.shape[2] + gap)
        for number, name in enumerate(names):
            middle = start + number * (width + between) + width / 2 - 0.5
            axes.text(middle, gap - 0.12 * height - 0.5, name, ha="center", va="bottom", fontsize=7)
    axes.set_ylim(axes.get_ylim()[0], -0.25 * height)
    return axes


def codeword_colours(codewords: Float[Array, "K D"]) -> np.ndarray:
    """A colour for each codeword ``[K, 3]``, alike for codewords that are near each other.

    Red, green and blue are the ranks along the three directions in which the codewords differ most.

    Raises:
        ShapeError: not ``[K, D]``.
    """
    words = as_numpy("codewords", codewords, None, None).astype(np.float64)
    directions = np.linalg.svd(words - words.mean(0), full_matrices=False)[2][:3]
    seen = words @ directions.T
    colours = np.full((len(words), 3), 0.5)
    if len(words) > 1:
        ranks = seen.argsort(0).argsort(0) / (len(words) - 1)
        colours[:, : ranks.shape[1]] = 0.08 + 0.87 * ranks
    return colours


def tiled(images: Float[Array, "N C H W"], columns: int) -> str:
    """Pictures in reading order without a gap, pixel by pixel, as the source of one picture."""
    from PIL import Image

    sheet = (_sheet(_pictures("images", images), columns, gap=0) * 255).round().astype(np.uint8)
    return f"data:image/png;base64,{base64.b64encode(encoded(Image.fromarray(sheet))).decode()}"


def _pictures(name: str, images: Array) -> np.ndarray:
    """``[N, H, W, 3]``."""
    values = as_numpy(name, images, None, None, None, None)
    if len(values) == 0 or values.shape[1] not in (1, 3):
        raise ShapeError(
            f"{name}: shape {values.shape}; expected [N, C, H, W] with N ≥ 1 and 1 or 3 channels"
        )
    # Written so that NaN fails too.
    if not (values.min() >= -1e-6 and values.max() <= 1 + 1e-6):
        raise ShapeError(
            f"{name}: values from {values.min():.3g} to {values.max():.3g}; expected [0, 1], "
            "as dataset.pictures(x) gives them"
        )
    values = np.clip(values, 0, 1)
    return np.broadcast_to(values.transpose(0, 2, 3, 1), (len(values), *values.shape[2:], 3))


def _gap(size: int) -> int:
    return max(1, size // 14)


def _sheet(pictures: np.ndarray, columns: int, gap: int | None = None) -> np.ndarray:
    """One picture of all, row by row, on white."""
    count, height, width, _ = pictures.shape
    gap = _gap(width) if gap is None else gap
    rows = math.ceil(count / columns)
    sheet = np.ones((rows * (height + gap) + gap, columns * (width + gap) + gap, 3))
    for k, picture in enumerate(pictures):
        top, left = gap + k // columns * (height + gap), gap + k % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def _show(sheet: np.ndarray, axes: Axes) -> None:
    axes.imshow(sheet, interpolation="nearest")
    bare(axes)
