"""Learning curves, Pareto k̂, pairs of columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from varflow import figures
from varflow.core.errors import DataError, ShapeError
from varflow.figures.curves import _running_mean


def rows(steps: int, split: str = "train", start: float = -500.0):
    """A curve that falls into place in the first tenth."""
    return [
        {
            "step": k,
            "split": split,
            "elbo": -100 + (start + 100) * np.exp(-k / (0.02 * steps)) + 0.001 * k,
            "log_likelihood": -80.0,
            "kl": 20.0,
            "beta": min(1.0, 0.1 + k / (0.5 * steps)),
        }
        for k in range(steps)
    ]


def panels():
    return figures.canvas(1, 3)[1][0]


def named(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def test_curves_carry_the_metrics_by_split() -> None:
    metrics = rows(50) + rows(50, "validation", start=-300.0)
    axes = figures.learning_curves(metrics, panels())
    for panel, key in zip(axes, ("elbo", "log_likelihood", "kl"), strict=True):
        for split in ("train", "validation"):
            line = named(panel, split)
            own = [row for row in metrics if row["split"] == split]
            np.testing.assert_array_equal(line.get_xdata(), [row["step"] for row in own])
            np.testing.assert_array_equal(line.get_ydata(), [row[key] for row in own])


def test_the_frame_fits_the_late_part_and_an_inset_shows_the_beginning() -> None:
    axes = figures.learning_curves(rows(1000), panels())
    low, high = axes[0].get_ylim()
    # The upper 55 % of the frame hold the last 80 % of the steps; the rest is kept for the inset.
    assert low > -103
    assert high < -98
    late = np.array([row["elbo"] for row in rows(1000)])[200:]
    assert (late > low + 0.44 * (high - low)).mean() > 0.98
    (inset,) = axes[0].child_axes
    bottom, top = inset.get_ylim()
    assert bottom < -490
    assert top > -100
    assert inset.get_position().y1 < 0.45


def test_no_inset_where_everything_fits() -> None:
    flat = [{"step": k, "split": "train", "elbo": -1.0 - 0.01 * k} for k in range(30)]
    axes = figures.learning_curves(flat, panels())
    assert not axes[0].child_axes
    low, high = axes[0].get_ylim()
    assert low < -1.29
    assert high > -1.0


def test_rounding_of_a_constant_is_not_magnified() -> None:
    made = [
        {"step": step, "split": "train", "elbo": -8 + step / 100, "log_likelihood": -4.925639 + 1e-8 * (step % 3)}
        for step in range(0, 100, 10)
    ]
    low, high = figures.learning_curves(made, panels())[1].get_ylim()
    assert low < -5.1 < -4.7 < high


def test_long_curves_get_a_running_mean_that_keeps_lines() -> None:
    values = 3.0 * np.arange(500) + 1
    np.testing.assert_allclose(_running_mean(values, 10), values)
    axes = figures.learning_curves(rows(500), panels())
    assert named(axes[0], "train (running mean)").get_xdata().size == 500


def test_warm_up_is_shaded_up_to_the_last_partial_weight() -> None:
    metrics = rows(100)
    axes = figures.learning_curves(metrics, panels())
    expected = max(row["step"] for row in metrics if row["beta"] < 1)
    for panel in axes:
        (span,) = [patch for patch in panel.patches if patch.get_label() == "KL warm-up"]
        assert span.get_x() == 0
        assert span.get_width() == expected
    constant = [{**row, "beta": 0.5} for row in metrics]
    assert not figures.learning_curves(constant, panels())[0].patches


def test_gaps_and_a_single_row_are_drawn() -> None:
    metrics = [
        {"step": 1, "split": "train", "elbo": float("nan")},
        {"step": 2, "split": "train", "elbo": -3.0, "kl": None},
        {"split": "train", "elbo": -9.0},
    ]
    axes = figures.learning_curves(metrics, panels())
    np.testing.assert_array_equal(named(axes[0], "train").get_xydata(), [[2.0, -3.0]])
    assert not axes[2].lines


@pytest.mark.parametrize("metrics", [[], [{"step": 1, "split": "train", "elbo": float("inf")}]])
def test_no_finite_elbo_is_said(metrics) -> None:
    with pytest.raises(DataError, match="metrics"):
        figures.learning_curves(metrics, panels())


def test_weights_count_what_lies_above_and_what_is_undefined() -> None:
    khat = torch.tensor([0.1, 0.2, 0.75, 1.5, float("nan"), float("-inf")])
    axes = figures.weights(khat, figures.canvas()[1][0, 0])
    assert sum(patch.get_height() for patch in axes.patches) == 4
    assert axes.get_title() == "2 of 6 points above 0.7; 1 undefined; 1 with constant weights"
    assert axes.lines[0].get_xdata() == [0.7, 0.7]
    with pytest.raises(ShapeError, match="empty"):
        figures.weights(torch.zeros(0), axes)
    undefined = figures.weights(torch.full((3,), float("nan")), figures.canvas()[1][0, 0])
    assert "3 undefined" in undefined.get_title()


def test_pairs_show_columns_against_each_other() -> None:
    source = torch.Generator().manual_seed(0)
    data = torch.randn(200, 5, generator=source, dtype=torch.float64) * 3
    samples = torch.randn(100, 5, generator=source, dtype=torch.float64)
    # One sample far away must not change the frame.
    samples[0] = 1e6
    axes = figures.pairs(data, samples, figures.canvas(3, 3)[1])
    real, made = axes[2, 1].collections
    np.testing.assert_array_equal(real.get_offsets(), data[:, [1, 2]])
    np.testing.assert_array_equal(made.get_offsets(), samples[:, [1, 2]])
    assert max(np.abs(axes[2, 1].get_xlim())) < 20
    assert not axes[0, 2].get_visible()
    assert axes[2, 0].get_xlabel() == "column 1"


def test_pairs_of_constant_columns_and_wrong_shapes() -> None:
    figures.pairs(torch.ones(5, 2), torch.zeros(5, 2), figures.canvas(2, 2)[1])
    with pytest.raises(ShapeError, match="samples: 3 columns"):
        figures.pairs(torch.ones(5, 2), torch.zeros(5, 3), figures.canvas(2, 2)[1])
    with pytest.raises(ShapeError, match="axes"):
        figures.pairs(torch.ones(5, 2), torch.zeros(5, 2), figures.canvas(3, 3)[1])
