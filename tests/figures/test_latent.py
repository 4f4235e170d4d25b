"""Latents: the same draws, the same frame, the right projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from varflow import figures
from varflow.core.errors import ShapeError


def draws(features: int, count: int = 60):
    source = torch.Generator().manual_seed(0)
    z0 = torch.randn(count, features, generator=source, dtype=torch.float64)
    return z0, 2 * z0 + 1, torch.arange(count) % 10


def points(axes) -> np.ndarray:
    return np.asarray(axes.collections[0].get_offsets())


@pytest.mark.parametrize("features", [1, 2, 5])
def test_both_panels_share_limits_draws_and_projection(features: int) -> None:
    z0, z, labels = draws(features)
    pair = figures.canvas(1, 2)[1][0]
    left, right = figures.latents(z0, z, labels, pair)
    assert left is pair[0]
    assert right is pair[1]
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()
    # A shift and a scale commute with any projection: the right panel is a function of the left.
    shift = points(right) - 2 * points(left)
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-12)
    for panel in pair:
        low, high = np.array([panel.get_xlim(), panel.get_ylim()]).T
        assert (points(panel) > low).all()
        assert (points(panel) < high).all()
        assert (low < -3).all()
        assert (high > 3).all()


def test_two_dimensions_are_shown_as_they_are() -> None:
    z0, z, labels = draws(2)
    left, right = figures.latents(z0, z, labels, figures.canvas(1, 2)[1][0])
    np.testing.assert_array_equal(points(left), z0)
    np.testing.assert_array_equal(points(right), z)
    assert "dimension 1" in right.get_xlabel()


def test_more_dimensions_are_shown_along_the_principal_directions_uncentred() -> None:
    source = torch.Generator().manual_seed(1)
    spread = torch.tensor([0.1, 5.0, 0.1, 3.0], dtype=torch.float64)
    z = torch.randn(4000, 4, generator=source, dtype=torch.float64) * spread + 7
    axes = figures.latent_scatter(z, None, figures.canvas()[1][0, 0])
    shown = np.abs(points(axes))
    np.testing.assert_allclose(shown[:, 0], z[:, 1].abs().numpy(), atol=1.0)
    np.testing.assert_allclose(shown[:, 1], z[:, 3].abs().numpy(), atol=1.0)
    assert "principal direction 1 (74% of var" in axes.get_xlabel()


def test_contours_are_circles_of_one_two_three() -> None:
    z0, _, _ = draws(2)
    axes = figures.latent_scatter(z0, None, figures.canvas()[1][0, 0])
    radii = [np.hypot(*line.get_xydata().T) for line in axes.lines]
    np.testing.assert_allclose(radii, np.array([[1.0], [2.0], [3.0]]) * np.ones(200))
    bare = figures.latent_scatter(z0, None, figures.canvas()[1][0, 0], contours=False)
    assert not bare.lines


def test_labels_give_one_colour_each_and_one_legend_for_the_pair() -> None:
    z0, z, labels = draws(2)
    left, right = figures.latents(z0, z, labels, figures.canvas(1, 2)[1][0])
    colours = right.collections[0].get_facecolors()
    for name in range(10):
        assert len(np.unique(colours[labels == name], axis=0)) == 1
    assert len(np.unique(colours, axis=0)) == 10
    assert left.get_legend() is None
    assert [t.get_text() for t in right.get_legend().get_texts()] == [str(k) for k in range(10)]


def test_names_at_the_medians_do_not_collide() -> None:
    z = torch.cat([torch.zeros(20, 2), torch.full((10, 2), 5.0)])
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] * 10)
    axes = figures.latent_scatter(z, labels, figures.canvas()[1][0, 0])
    assert [t.get_text() for t in axes.texts] == ["0", "2"]
    assert axes.texts[1].get_position() == (5.0, 5.0)


def test_aggregate_shows_mean_and_standard_deviation() -> None:
    z = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    axes = figures.aggregate(z, figures.canvas()[1][0, 0])
    line, _, (bars,) = axes.containers[0].lines
    np.testing.assert_allclose(line.get_ydata(), [2.0, 1.0])
    np.testing.assert_allclose([s[:, 1] for s in bars.get_segments()], [[0.0, 4.0], [1.0, 1.0]])
    with pytest.raises(ShapeError, match="two or more"):
        figures.aggregate(z[:1], axes)


def test_shapes_are_checked() -> None:
    pair = figures.canvas(1, 2)[1][0]
    with pytest.raises(ShapeError, match="z0"):
        figures.latents(torch.zeros(4, 2), torch.zeros(5, 2), None, pair)
    with pytest.raises(ShapeError, match="labels"):
        figures.latent_scatter(torch.zeros(4, 2), torch.zeros(3), pair[0])
