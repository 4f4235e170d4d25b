"""Data sets from the user's tensors: what is made of them, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

import varflow.data as vd
from varflow.core.errors import DataError, ShapeError, SpecError


def dataset(protocol: str) -> vd.Dataset:
    x = torch.arange(256, dtype=torch.uint8).expand(40, 1, 4, 256).contiguous()
    return vd.from_tensor(x, None, protocol)


def test_standardize_has_its_ladj_and_its_inverse() -> None:
    x = torch.randn(200, 3, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 50.0]) + 7
    data = vd.from_tensor(x, None, "standardize").to("cpu", torch.float64)
    y, ladj, *_ = data.batch("train", torch.arange(160))
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3, dtype=torch.float64))
    raw = data.raw("train")
    torch.testing.assert_close(
        ladj, torch.full((160,), float(-raw.std(0, correction=0).log().sum())).double()
    )
    torch.testing.assert_close(data.original(y), raw, atol=1e-9, rtol=0)
    torch.testing.assert_close(data.mean(), y.mean(0), atol=1e-12, rtol=0)
    assert data.bits_per_dim(ladj, ladj) is None
    assert data.pictures(y) is None
    with pytest.raises(DataError, match=r"column 1 .* constant"):
        vd.from_tensor(
            torch.stack([torch.randn(30), torch.full((30,), 0.1)], 1), None, "standardize"
        )


def test_real_numbers_pass_as_they_are() -> None:
    x = torch.randn(50, 4)
    data = vd.from_tensor(x)
    assert (data.protocol, data.support, data.levels, data.event_shape) == (
        "none",
        "real",
        None,
        (4,),
    )
    batch = data.batch("train", torch.tensor([2, 0]))
    assert torch.equal(batch.x, data.raw("train")[[2, 0]])
    assert not batch.ladj.any()
    together = torch.cat([data.raw(split) for split in data.sizes])
    assert torch.equal(together.sort(0).values, x.sort(0).values)


def test_auto_follows_the_data() -> None:
    grey = torch.randint(0, 256, (20, 5, 5), dtype=torch.uint8)
    binary = torch.randint(0, 2, (20, 6))
    assert vd.from_tensor(grey).protocol == "dynamic"
    assert vd.from_tensor(grey[:, None].expand(-1, 3, -1, -1)).protocol == "logit"
    for x in (binary.float(), binary.bool(), binary.to(torch.uint8)):
        data = vd.from_tensor(x)
        assert (data.protocol, data.support, data.levels) == ("threshold", "binary", 2)
        assert torch.equal(data.batch("train", torch.arange(16)).x, data.raw("train").float())
    floats = torch.rand(20, 6)
    assert vd.from_tensor(floats).support == "real"
    assert vd.from_tensor(floats, None, "grey").support == "grey"
    assert vd.from_tensor(floats, None, "dynamic").support == "binary"


def test_floats_become_levels() -> None:
    levels = torch.randint(0, 17, (30, 4, 4))
    for x in (levels / 16, levels.double()):
        data = vd.from_tensor(x, None, "dynamic", levels=17)
        assert data.raw("train").dtype == torch.uint8
        assert data.describe()["source_levels"] == 17
        assert data.event_shape == (1, 4, 4)
        values = (
            torch.cat([data.raw(split) for split in data.sizes]).flatten(1).sum(1).sort().values
        )
        assert torch.equal(values, levels.flatten(1).sum(1).sort().values)


def test_to_keeps_everything() -> None:
    data = dataset("logit")
    data.batch("test", torch.arange(2))
    data.mean()
    moved = data.to("cpu", torch.float64)
    assert data.dtype == torch.float32
    assert moved.mean().dtype == torch.float64
    assert moved.describe() == data.describe()
    with pytest.raises(SpecError, match="bfloat16"):
        data.to("cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("x", "options", "error", "match"),
    [
        (torch.randn(20, 3), {"protocol": "logti"}, SpecError, "did you mean 'logit'"),
        (torch.randn(20, 3), {"protocol": "logit"}, SpecError, "needs levels"),
        (torch.randn(20, 3), {"protocol": "grey"}, DataError, r"within \[0, 1\]"),
        (torch.randn(20, 3), {"protocol": "static"}, SpecError, "'mnist' alone"),
        (torch.rand(20, 3), {"levels": 300}, SpecError, "2 … 256"),
        (torch.rand(20, 3), {"levels": 17}, DataError, "not the 17 levels"),
        (torch.rand(20, 3), {"levels": 17, "protocol": "none"}, SpecError, "leave levels out"),
        (torch.zeros(20, 3, dtype=torch.uint8), {"protocol": "none"}, SpecError, "real numbers"),
        (torch.full((20, 3), 9, dtype=torch.uint8), {"levels": 8}, DataError, "level 9"),
        (torch.zeros(20, 5, 6, 7, dtype=torch.uint8), {}, ShapeError, "C = 1 or 3"),
        (torch.zeros(20, 5, 6, dtype=torch.int64), {}, DataError, "torch.uint8"),
        (torch.zeros(0, 3), {}, DataError, "no data"),
        (torch.zeros(2, 3), {}, DataError, "at least 3 rows"),
        (torch.tensor(1.0), {}, ShapeError, "a row an example"),
        (torch.zeros(5, 2, dtype=torch.complex64), {}, ShapeError, "real numbers"),
        (
            torch.randn(5, 2),
            {"labels": torch.zeros(4, dtype=torch.int64)},
            ShapeError,
            r"integers \[5\]",
        ),
        (torch.randn(5, 2), {"labels": torch.zeros(5)}, ShapeError, "integers"),
        (
            {"train": torch.randn(5, 2), "validation": torch.randn(5, 2)},
            {},
            DataError,
            "train and test",
        ),
        ({"train": torch.randn(5, 2), "test": torch.randn(5, 3)}, {}, ShapeError, "one shape"),
    ],
)
def test_what_is_wrong_is_said(
    x: object, options: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        vd.from_tensor(x, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_names_the_row(bad: float) -> None:
    x = torch.randn(20, 3)
    x[7, 2] = bad
    with pytest.raises(DataError, match="row 7, column 2"):
        vd.from_tensor(x)


def test_splits_and_index_are_checked() -> None:
    data = dataset("grey")
    with pytest.raises(SpecError, match="did you mean 'validation'"):
        data.raw("valid")
    for index in (
        torch.zeros(2),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.ones(32, dtype=torch.bool),
    ):
        with pytest.raises(ShapeError, match="index"):
            data.batch("train", index)


def test_given_splits_are_kept() -> None:
    x = {"train": torch.randn(50, 2), "test": torch.randn(7, 2)}
    y = {"train": torch.arange(50), "test": torch.arange(7)}
    data = vd.from_tensor(x, y)
    assert data.sizes == {"train": 45, "validation": 5, "test": 7}
    assert torch.equal(data.raw("validation"), x["train"][45:])
    assert torch.equal(data.labels("validation"), torch.arange(45, 50))
    assert "last tenth" in data.describe()["split"]


def test_permutation_keeps_labels_with_their_rows() -> None:
    x = torch.arange(100.0)[:, None] + 0.5
    data = vd.from_tensor(x, torch.arange(100))
    again = vd.from_tensor(x)
    for split in data.sizes:
        assert torch.equal(data.raw(split)[:, 0], data.labels(split) + 0.5)
        assert torch.equal(data.raw(split), again.raw(split))
        assert again.labels(split) is None
    assert data.describe()["split_seed"] == 0
