"""Figures of tables: what stands in them, for every kind of column."""

from __future__ import annotations

import numpy as np
import pytest

from varflow import figures
from varflow.core.columns import Column
from varflow.core.errors import ShapeError

G = np.random.default_rng(0)
TOWNS = tuple(f"a town number {k}" for k in range(20))
COLUMNS = {
    "real": (Column("dose $", "real"), G.standard_normal(300)),
    "positive": (Column("pay", "positive"), np.exp(G.standard_normal(300))),
    "count": (Column("visits", "count"), G.poisson(3, 300).astype(float)),
    "long count": (Column("steps", "count"), G.poisson(3000, 300).astype(float)),
    "ordinal": (Column("size", "ordinal", ("small", "medium", "large")), G.integers(0, 3, 300).astype(float)),
    "category": (Column("town", "category", TOWNS), G.integers(0, 20, 300) * 1.0),
    "binary": (Column("sex", "binary", ("f", "m")), G.integers(0, 2, 300).astype(float)),
    "date": (Column("when", "date"), 18000 + np.round(100 * G.standard_normal(300))),
    "constant": (Column("same", "real"), np.full(300, 2.0)),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_marginals_and_imputed_values_of_every_kind(name, tmp_path):
    column, values = COLUMNS[name]
    values = values.copy()
    values[::7] = np.nan
    with figures.style():
        figure, axes = figures.canvas(1, 2)
        figures.marginal(values, values[::-1], column, axes[0, 0])
        there = values[~np.isnan(values)]
        figures.imputed_values(there, there[::-1], column, axes[0, 1])
        path = figures.save(figure, tmp_path / "f.png", dpi=50)
    assert path.stat().st_size > 2000
    assert axes[0, 0].patches, "something is drawn"
    shares = [patch.get_height() for patch in axes[0, 0].containers[0]] if axes[0, 0].containers else []
    assert not shares or max(shares) <= 1


def test_bars_are_shares_of_the_cells_that_are_there():
    _, axes = figures.canvas()
    values = np.array([0.0, 0.0, 0.0, 1.0, np.nan])
    figures.marginal(values, values[:0], Column("sex", "binary", ("f", "m")), axes[0, 0])
    assert [bar.get_height() for bar in axes[0, 0].containers[0]] == [0.75, 0.25]
    with pytest.raises(ShapeError, match="no cell of column 'sex' is there"):
        figures.marginal(values[4:], values, Column("sex", "binary", ("f", "m")), axes[0, 0])


def test_missing_cells_by_column_and_pattern():
    gone = np.zeros((10, 3))
    gone[:4, 1] = 1
    gone[:1, 2] = 1
    _, axes = figures.canvas(1, 2)
    left, right = figures.missing_cells(gone, ["a", "b", "c"], axes[0])
    assert [bar.get_width() for bar in left.containers[0]] == [0.0, 0.4, 0.1]
    np.testing.assert_array_equal(right.images[0].get_array(), [[0, 0, 0], [0, 1, 0], [0, 1, 1]])
    assert [label.get_text() for label in right.get_yticklabels()] == ["60.0%", "30.0%", "10.0%"]


def test_coverage_of_uniform_ranks_lies_on_the_diagonal():
    rank = (np.arange(1000) + 0.5) / 1000
    _, axes = figures.canvas(1, 3)
    figures.coverage(rank, np.arange(1000.0), axes[0, 0])
    line = axes[0, 0].containers[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(orig=False), line.get_xdata(orig=False), atol=2e-3)
    figures.ranks(rank, axes[0, 1])
    assert {bar.get_height() for bar in axes[0, 1].containers[0]} == {50}
    figures.reliability(np.full(100, 0.8), np.arange(100) % 5 > 0, axes[0, 2])
    np.testing.assert_allclose(axes[0, 2].containers[0].lines[0].get_ydata(orig=False), 0.8)
    with pytest.raises(ShapeError, match="rank: no cell has one"):
        figures.coverage(np.array([np.nan]), np.zeros(1), axes[0, 0])
