"""Grids of codes as a data set, and pixels between −1 and 1."""

import math

import pytest
import torch

from varflow.core import random
from varflow.core.errors import DataError, ShapeError
from varflow.data import from_codes, from_tensor

SPLITS = ("train", "validation", "test")


def grids(count=6, dtype=torch.uint8):
    return {split: torch.arange(count * 6, dtype=dtype).reshape(count, 2, 3) for split in SPLITS}


def test_codes_come_back_as_integers():
    data = from_codes(grids())
    x = data.batch("test", torch.tensor([1, 3])).x
    assert x.dtype is torch.int64
    assert torch.equal(x, grids()["test"][[1, 3]].long())
    assert data.support == "codes"
    assert data.bits_per_dim(torch.zeros(2), torch.zeros(2)) is None
    assert data.pictures(x) is None


def test_labels_come_before_their_codes():
    labels = {split: torch.tensor([300, 1, 2, 3, 4, 5]) for split in SPLITS}
    x = from_codes(grids(), labels).batch("train", torch.tensor([0, 5])).x
    assert x.tolist() == [[300, 0, 1, 2, 3, 4, 5], [5, 30, 31, 32, 33, 34, 35]]


@pytest.mark.parametrize(
    ("codes", "labels", "error", "words"),
    [
        ({"train": grids()["train"]}, None, DataError, "split validation is missing"),
        ({**grids(), "train": torch.zeros(0, 2, 3, dtype=torch.uint8)}, None, DataError, "empty"),
        (
            {**grids(), "test": torch.zeros(1, 3, 2, dtype=torch.uint8)},
            None,
            ShapeError,
            "one size",
        ),
        (grids(dtype=torch.float32), None, ShapeError, "use integers"),
        ({**grids(), "test": torch.zeros(4, dtype=torch.long)}, None, ShapeError, "use integers"),
        (grids(), {"train": torch.zeros(6)}, DataError, "validation has none for 6"),
        (grids(), dict.fromkeys(SPLITS, torch.zeros(5)), DataError, r"train has \(5,\) for 6"),
    ],
)
def test_what_is_no_grid_of_codes_is_named(codes, labels, error, words):
    with pytest.raises(error, match=words):
        from_codes(codes, labels)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_pixels_between_minus_one_and_one(levels):
    values = torch.arange(levels, dtype=torch.uint8).repeat(3, 1)[:, None, None, :].contiguous()
    data = from_tensor(dict.fromkeys(SPLITS, values), protocol="symmetric", levels=levels)
    assert data.support == "real"
    x, ladj, *_ = data.batch("test", torch.arange(3))
    assert -1 < x.min() < -1 + 2 / levels
    assert 1 - 2 / levels < x.max() < 1
    torch.testing.assert_close(data.pictures(x), values / (levels - 1))
    # A uniform density on [−1, 1] scores log₂ L exactly.
    uniform = torch.full((3,), -levels * math.log(2))
    torch.testing.assert_close(
        data.bits_per_dim(uniform, ladj), torch.full((3,), math.log2(levels)), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(data.mean().flatten(), (2 * torch.arange(levels) + 1) / levels - 1)
    draws = []
    for step in range(2):
        with random.stream(0, step):
            draws.append(data.batch("train", torch.arange(3)).x)
    assert not torch.equal(*draws)
