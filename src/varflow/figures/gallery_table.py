"""The figures of a gallery that show a table: its columns, its missing cells, and what was said of removed ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow.core import random
from varflow.core.columns import NAMED, Column
from varflow.figures import scatter, tables
from varflow.figures.base import canvas
from varflow.figures.gallery_scene import LATENTS, Drawn, Scene

#: Columns of a table that are shown, each by itself and in pairs.
_COLUMNS, _PAIRED = 24, 5
#: Rows whose missing cells are counted.
_ROWS = 20_000


def _stored(scene: Scene, count: int) -> tuple[Tensor, Tensor]:
    """Stored values of the first rows, and of as many draws of the model."""
    data = scene.dataset.stored(scene.split, torch.arange(count)).double().cpu()
    with random.stream(scene.seed):
        drawn = scene.dataset.preprocessing.stored_values(scene.sample(count))
    return data, drawn.double().cpu()


def marginals(scene: Scene) -> Drawn:
    """Each column by itself, data beside samples."""
    count = scene.size(LATENTS)
    data, drawn = _stored(scene, count)
    columns = scene.dataset.column_kinds
    shown = [j for j in range(len(columns)) if bool((~data[:, j].isnan()).any())][:_COLUMNS]
    wide = min(4, len(shown) + 1)
    high = -(-(len(shown) + 1) // wide)
    figure, axes = canvas(high, wide, 0.6 + 2.7 * wide, 0.4 + 2.0 * high)
    panels = list(axes.flat)
    for j, panel in zip(shown, panels, strict=False):
        tables.marginal(data[:, j], drawn[:, j], columns[j], panel)
        panel.tick_params(labelsize=8)
    tables.legend(panels[len(shown)])
    for panel in panels[len(shown) + 1 :]:
        panel.set_visible(False)
    caption = (
        f"{count:,} {scene.examples} and as many draws of p(x) with the likelihood's noise, {len(shown)} of "
        f"{len(columns)} columns in the units of the table; of the data the cells that are there. Heights are shares "
        f"of cells; numbers within the central 99.8 % of the data, positive ones on a logarithmic axis.{scene.under}"
    )
    return Drawn(figure, "Columns", caption)


def pairs(scene: Scene) -> Drawn:
    """The first columns against each other, data beside samples, by their names."""
    count = scene.size(LATENTS)
    data, drawn = _stored(scene, count)
    columns = scene.dataset.column_kinds
    # Columns with few cells show nothing beside others.
    shown = [j for j in range(len(columns)) if int((~data[:, j].isnan()).sum()) > 1][:_PAIRED]
    names = [_head(columns[j]) for j in shown]
    real, made = (np.stack([_axis(v[:, j], columns[j], j) for j in shown], 1) for v in (data, drawn))
    size = len(shown)
    figure, axes = canvas(size, size, 1.0 + 2.0 * size, 1.0 + 1.8 * size)
    scatter.pairs(real, made, axes, names)
    for place, j in enumerate(shown):
        _ticks(columns[j], axes[size - 1, place].xaxis, axes[place, 0].yaxis if place else None)
    caption = (
        f"{count:,} {scene.examples} (grey) and {count:,} draws of p(x) with the likelihood's noise (blue), {size} "
        f"of {len(columns)} columns in the units of the table; rows with a missing cell of the two are left out. "
        "Named values are spread a little, so that points are not above each other. Diagonal: the density of each "
        "column."
        f"{scene.under}"
    )
    return Drawn(figure, "Data and samples", caption)


def _head(column: Column) -> str:
    name = tables.short(column.name)
    return f"log₁₀ {name}" if column.kind == "positive" else name


def _axis(values: Tensor, column: Column, seed: int) -> np.ndarray:
    v = values.numpy()
    if column.kind == "positive":
        return np.log10(v)
    if column.kind in NAMED or column.kind == "count":
        return v + np.random.default_rng(seed).uniform(-0.3, 0.3, len(v))
    return v


def _ticks(column: Column, x: Any, y: Any) -> None:
    for axis in (x, y):
        if axis is None:
            continue
        if column.kind in NAMED and len(column.categories) <= 8:
            names = [tables.short(name, 10) for name in column.categories]
            axis.set_ticks(range(len(names)), names)
            if axis is x and sum(map(len, names)) > 12:
                for label in axis.get_ticklabels():
                    label.set(rotation=40, ha="right")
        elif column.kind == "date":
            tables.date_ticks(axis)


def is_missing(scene: Scene) -> bool:
    """Whether a cell of the training rows is missing."""
    return bool(scene.dataset.raw("train")[:_ROWS].isnan().any())


def missing(scene: Scene) -> Drawn:
    """Where cells are missing."""
    gone = scene.dataset.raw("train")[:_ROWS].isnan().cpu()
    names = [column.name for column in scene.dataset.column_kinds]
    figure, axes = canvas(1, 2, 9.6, min(max(2.8, 1.2 + 0.22 * len(names)), 8.0))
    tables.missing_cells(gone.double(), names, axes[0])
    caption = (
        f"Missing cells of {len(gone):,} training rows of {scene.dataset.name}. Left: their share in each "
        "column. Right: which cells are missing together, the most frequent patterns first, with the share of rows "
        "that have each."
    )
    return Drawn(figure, "Missing cells", caption)


def _removed(scene: Scene) -> tuple[dict[str, np.ndarray], str]:
    cells = scene.removed.per_example
    first = next(iter(scene.removed.estimates.values()))
    return cells, f"{len(cells['row']):,} cells removed at random from {first.points:,} rows of {first.protocol}"


def imputed(scene: Scene) -> Drawn:
    """Removed cells against what was filled in."""
    cells, said = _removed(scene)
    columns = scene.dataset.column_kinds
    shown = [j for j in range(len(columns)) if (cells["column"] == j).any()][:12]
    wide = min(4, len(shown))
    high = -(-len(shown) // wide)
    figure, axes = canvas(high, wide, 0.8 + 2.6 * wide, 0.6 + 2.3 * high)
    panels = list(axes.flat)
    for j, panel in zip(shown, panels, strict=False):
        own = cells["column"] == j
        tables.imputed_values(cells["truth"][own], cells["value"][own], columns[j], panel)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for row in axes[:, 0]:
        row.set_ylabel("filled in")
    for place in range(max(len(shown) - wide, 0), len(shown)):
        panels[place].set_xlabel("removed")
    caption = (
        f"{said}: what each was (horizontal) and what was filled in from the rest of its row (vertical), "
        f"{len(shown)} of {len(columns)} columns in the units of the table. Means spread less than cells do, so a "
        "cloud flatter than the line is right where the rest of the row says little. Of named values: how many "
        "cells, and the share of those with the value below as colour."
    )
    return Drawn(figure, "Imputed cells", caption)


def calibration(scene: Scene) -> Drawn:
    """Whether the spread of imputations is right."""
    cells, said = _removed(scene)
    named = np.array([c.kind in NAMED for c in scene.dataset.column_kinds])[cells["column"].astype(int)]
    ordered = np.array([c.kind not in ("category", "binary") for c in scene.dataset.column_kinds])
    rank = np.where(ordered[cells["column"].astype(int)], cells["rank"], np.nan)
    ranked = bool((~np.isnan(rank)).any())
    count = 2 * ranked + bool(named.any())
    figure, axes = canvas(1, count, 0.8 + 3.3 * count, 3.5)
    panels = list(axes[0])
    if ranked:
        tables.ranks(rank, panels[0])
        tables.coverage(rank, cells["row"], panels[1])
    if named.any():
        right = (cells["value"] == cells["truth"]).astype(float)
        tables.reliability(1 - cells["spread"][named], right[named], panels[-1])
    caption = f"{said}."
    if ranked:
        caption += (
            " Left: the probability that p(cell|rest of the row) puts below each removed number, by 199 draws; grey: "
            "where 95 % of the bars of a right one lie, were all cells independent. Next: the share of cells inside "
            "of central intervals, with two standard errors over rows."
        )
    if named.any():
        caption += " Right-most: how often the most probable value is right, against the probability it was given."
    return Drawn(figure, "Calibration of imputations", caption)
