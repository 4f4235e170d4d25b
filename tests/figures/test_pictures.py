"""Sheets of pictures: every pixel where it belongs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varflow import figures
from varflow.core.errors import ShapeError, SpecError


def axes():
    return figures.canvas()[1][0, 0]


def cells(sheet: np.ndarray, height: int, width: int, gap: int) -> list[np.ndarray]:
    """Cut a sheet into its pictures, in reading order."""
    rows = (sheet.shape[0] - gap) // (height + gap)
    columns = (sheet.shape[1] - gap) // (width + gap)
    return [
        sheet[gap + r * (height + gap) :, gap + c * (width + gap) :][:height, :width]
        for r in range(rows)
        for c in range(columns)
    ]


@given(
    count=st.integers(1, 30),
    columns=st.one_of(st.none(), st.integers(1, 8)),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
)
@settings(max_examples=25, deadline=None)
def test_image_grid_shows_every_picture_in_reading_order(count, columns, channels, height) -> None:
    images = torch.rand(count, channels, height, 7)
    shown = axes()
    assert figures.image_grid(images, shown, columns=columns) is shown
    sheet = np.asarray(shown.images[0].get_array())
    parts = cells(sheet, height, 7, gap=1)
    assert len(parts) >= count
    for picture, part in zip(images, parts, strict=False):
        np.testing.assert_allclose(part, picture.permute(1, 2, 0).expand(height, 7, 3), atol=1e-7)
    assert all((part == 1).all() for part in parts[count:])
    if columns is not None:
        assert (sheet.shape[1] - 1) // 8 == min(columns, count)


def test_reconstructions_stand_to_the_right_of_their_originals() -> None:
    originals = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 4, 4) / 10
    shown = figures.reconstructions(originals, originals + 0.4, axes(), columns=3)
    row = np.asarray(shown.images[0].get_array())[3 + 1, :, 0]
    values = [v for v in dict.fromkeys(row.round(3)) if v != 1]
    assert values == [0.0, 0.4, 0.1, 0.5, 0.2, 0.6]
    assert [t.get_text() for t in shown.texts] == ["data", "model"] * 3


def test_reconstructions_refuse_another_shape() -> None:
    with pytest.raises(ShapeError, match="one reconstruction for each original"):
        figures.reconstructions(torch.rand(3, 1, 4, 4), torch.rand(2, 1, 4, 4), axes())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 4, 4), r"images: shape \(3, 4, 4\)"),
        (torch.rand(0, 1, 4, 4), "N ≥ 1"),
        (torch.rand(2, 2, 4, 4), "1 or 3 channels"),
        (torch.full((2, 1, 4, 4), 255.0), r"255; expected \[0, 1\]"),
        (torch.full((2, 1, 4, 4), float("nan")), r"expected \[0, 1\]"),
    ],
)
def test_what_is_no_picture_is_refused(images, message) -> None:
    with pytest.raises(ShapeError, match=message):
        figures.image_grid(images, axes())


def test_columns_must_be_positive() -> None:
    with pytest.raises(SpecError, match="columns"):
        figures.image_grid(torch.rand(2, 1, 4, 4), axes(), columns=0)


def test_prior_quantiles_have_equal_mass_between_them() -> None:
    quantiles = figures.prior_quantiles(11, low=0.05)
    mass = torch.special.ndtr(quantiles)
    torch.testing.assert_close(mass.diff(), torch.full((10,), 0.09, dtype=torch.float64))
    torch.testing.assert_close(quantiles, -quantiles.flip(0))
    assert figures.prior_quantiles(1).tolist() == [0.0]


def test_decoded_grid_has_z1_to_the_right_and_z2_upwards() -> None:
    quantiles = figures.prior_quantiles(3)
    # Picture i·3 + j has the value of (z₂ = i, z₁ = j).
    images = (torch.arange(9.0) / 10).reshape(9, 1, 1, 1).expand(9, 1, 2, 2)
    shown = figures.decoded_grid(images, quantiles, axes())
    sheet = np.asarray(shown.images[0].get_array())[::2, ::2, 0]
    np.testing.assert_allclose(sheet, [[0.6, 0.7, 0.8], [0.3, 0.4, 0.5], [0.0, 0.1, 0.2]])
    assert [t.get_text() for t in shown.get_xticklabels()] == ["−2.1", "0.0", "2.1"]
    # The y axis of a picture points down, so the largest z₂ has the smallest position.
    up = dict(zip([t.get_text() for t in shown.get_yticklabels()], shown.get_yticks(), strict=True))
    assert up["2.1"] < up["0.0"] < up["−2.1"]


def test_decoded_grid_wants_a_square() -> None:
    with pytest.raises(ShapeError, match="8 pictures for 3 quantiles; give 9"):
        figures.decoded_grid(torch.rand(8, 1, 2, 2), figures.prior_quantiles(3), axes())
