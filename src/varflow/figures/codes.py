"""Figures of discrete latents: maps of codes, how often each is used, and how both stages went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from varflow.core.errors import DataError, ShapeError, positive
from varflow.figures.base import AFTER, BEFORE, TRAIN, VALIDATION, Array, as_numpy
from varflow.figures.curves import _curve, _draw
from varflow.figures.pictures import _gap, _pictures, _sheet, _show

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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


def code_usage(counts: Float[Array, " K"], axes: Axes) -> Axes:
    """How often each code occurs, the most frequent first; the line is equal use of all.

    Raises:
        DataError: no code occurs.
    """
    values = as_numpy("counts", counts, None).astype(np.float64)
    if not values.sum() > 0:
        raise DataError("counts: no code occurs; count the codes of at least one example")
    shares = np.sort(values / values.sum())[::-1]
    entropy = -sum(p * math.log(p) for p in shares if p > 0)
    axes.bar(np.arange(1, len(shares) + 1), shares, width=1.0, color=AFTER)
    axes.axhline(1 / len(shares), color=BEFORE, linewidth=1.2)
    used = int((shares > 0).sum())
    axes.set(
        xlabel="codes, the most frequent first",
        ylabel="share of all codes",
        xlim=(0.4, len(shares) + 0.6),
        title=f"perplexity {math.exp(entropy):.1f}, {used} of {len(shares)} codes in use",
    )
    return axes


def code_curves(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    uniform: float,
    axes_pair: Sequence[Axes],
) -> Sequence[Axes]:
    """Perplexity in the first stage, and −log p(codes) in the second, which starts at the uniform prior's.

    Args:
        first, second: records of both stages, by step, from 0: before training.
        uniform: H·W·log K, nats.
        axes_pair: left and right axes.

    Raises:
        DataError: neither stage has a record of these.
    """
    left, right = axes_pair
    flipped = [{**row, "nll": -row["elbo"]} for row in second if "elbo" in row]
    drawn = False
    for panel, rows, key in ((left, first, "perplexity"), (right, flipped, "nll")):
        for split, colour in (("train", TRAIN), ("validation", VALIDATION)):
            steps, values = _curve(rows, split, key)
            if steps.size:
                _draw(panel, steps, values, split, colour)
                drawn = True
    if not drawn:
        raise DataError("first: no record has a perplexity; pass the rows of metrics.jsonl")
    left.set(xlabel="step of the first stage", ylabel="perplexity of the codes", ylim=(0, None))
    right.set(xlabel="step of the second stage", ylabel="−log p(codes) (nats)")
    if flipped:
        right.axhline(uniform, color=BEFORE, linewidth=1.2, label="uniform prior")
        right.set_ylim(top=1.05 * uniform)
    else:
        right.text(0.5, 0.5, "no second stage", ha="center", va="center", transform=right.transAxes)
    for panel in axes_pair:
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    return axes_pair
