"""What the protocols promise, whatever the files."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import varflow.data as vd
from varflow import random
from varflow.data.protocols import ALPHA, LEVELS
from varflow.errors import DataError, ShapeError, SpecError

PICTURES = ("dynamic", "threshold", "logit", "uniform", "grey")


def every_level(levels: int, rows: int = 40) -> Tensor:
    """[rows, 1, 4, levels] with every level in every row."""
    return torch.arange(levels, dtype=torch.uint8).expand(rows, 1, 4, levels).contiguous()


def dataset(protocol: str, levels: int = 256, rows: int = 40, **options: object) -> vd.Dataset:
    return vd.from_tensor(every_level(levels, rows), None, protocol, levels, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("protocol", PICTURES)
def test_uniform_scores_log2_levels(protocol: str, levels: int) -> None:
    data = dataset(protocol, levels).to("cpu", torch.float64)
    for split in data.sizes:
        x, ladj = data.batch(split, torch.arange(4))
        d = x[0].numel()
        # uniform on [0,1]^D in model space has density exp(−ladj); a uniform mass is L^−D.
        log_prob = -ladj if protocol in ("logit", "uniform") else torch.full((4,), -d * math.log(data.levels or 0))
        bits = data.bits_per_dim(log_prob, ladj)
        expected = math.log2(2 if data.support == "binary" else levels)
        torch.testing.assert_close(bits, torch.full_like(bits, expected), atol=1e-12, rtol=0)
        assert data.bits_per_dim(log_prob.expand(3, 4), ladj).shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("protocol", ["logit", "uniform", "grey"])
def test_inverse_gives_back_every_level(protocol: str, levels: int, dtype: torch.dtype) -> None:
    values = every_level(levels)
    part = LEVELS[protocol](protocol, levels)
    centre = part.draw(values, torch.full(values.shape, 0.5)) if part.purpose else None
    x, _ = part.encode(values, centre, dtype)
    picture = part.invert(x)
    assert torch.equal((picture * (levels - 1)).round().to(torch.uint8), values)
    torch.testing.assert_close(picture, values.to(dtype) / (levels - 1), atol=1e-7, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2, 17, 200, 256]))
def test_logit_ladj_is_the_log_determinant(seed: int, levels: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, (3, 5), generator=g, dtype=torch.uint8)
    part = LEVELS["logit"]("logit", levels)
    drawn = part.draw(values, torch.rand((3, 5), generator=g))
    y, ladj = part.encode(values, drawn, torch.float64)
    picture = (values.double() + (drawn.double() + 0.5) / 2**15) / levels
    for i in range(3):
        jacobian = torch.func.jacfwd(lambda v: torch.logit(ALPHA / 2 + (1 - ALPHA) * v))(picture[i])
        torch.testing.assert_close(ladj[i], torch.linalg.slogdet(jacobian).logabsdet, atol=1e-11, rtol=0)
    sheet = (math.log(1 - ALPHA) + torch.nn.functional.softplus(y) + torch.nn.functional.softplus(-y)).sum(1)
    torch.testing.assert_close(ladj, sheet, atol=1e-11, rtol=0)
    y32, ladj32 = part.encode(values, drawn, torch.float32)
    torch.testing.assert_close(y32.double(), y, atol=5e-6, rtol=0)
    torch.testing.assert_close(ladj32.double(), ladj, atol=2e-5, rtol=0)


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("levels", [17, 256])
def test_dequantized_values_stay_inside_their_bin(levels: int, extreme: float) -> None:
    values = every_level(levels)
    part = LEVELS["uniform"]("uniform", levels)
    x, _ = part.encode(values, part.draw(values, torch.full(values.shape, extreme)), torch.float32)
    assert float(x.min()) > 0
    assert float(x.max()) < 1
    assert torch.equal((x.double() * levels).floor().to(torch.uint8), values)


@pytest.mark.parametrize("levels", [17, 256])
def test_binarization_has_its_probabilities(levels: int) -> None:
    values = torch.arange(levels, dtype=torch.uint8).expand(20_000, levels)
    part = LEVELS["dynamic"]("dynamic", levels)
    with random.stream(1):
        x, ladj = part.encode(values, part.draw(values, random.uniform(values.shape, "binarize")), torch.float32)
    p = torch.arange(levels).double() / (levels - 1)
    se = (p * (1 - p) / len(values)).sqrt()
    assert bool(((x.double().mean(0) - p).abs() <= 4 * se).all())
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert not ladj.any()


def test_binarization_is_exact_at_the_ends() -> None:
    for levels in (2, 17, 255, 256):
        part = LEVELS["dynamic"]("dynamic", levels)
        ends = torch.tensor([0, levels - 1], dtype=torch.uint8)
        for u in (0.0, 1 - 2**-24):
            assert part.draw(ends, torch.full((2,), u)).tolist() == [0.0, 1.0]


def test_threshold_is_above_one_half() -> None:
    for levels, last_zero in ((256, 127), (17, 8), (2, 0)):
        x, _ = dataset("threshold", levels).batch("test", torch.arange(1))
        assert torch.equal(x[0, 0, 0], (torch.arange(levels) > last_zero).float())


@pytest.mark.parametrize("protocol", ["dynamic", "logit", "uniform"])
def test_noise_is_fresh_in_training_and_fixed_in_evaluation(protocol: str) -> None:
    data, index = dataset(protocol), torch.arange(4)

    def get(split: str, seed: int, step: int = 0) -> Tensor:
        with random.stream(seed, step):
            return data.batch(split, index).x

    assert not torch.equal(get("train", 0), get("train", 0, step=1))
    assert not torch.equal(get("train", 0), get("train", 1))
    assert torch.equal(get("train", 3, 7), get("train", 3, 7))
    with random.stream(0):
        assert not torch.equal(data.batch("train", index).x, data.batch("train", index).x)
    for split in ("validation", "test"):
        assert torch.equal(get(split, 0), get(split, 1, step=5))
        fresh = dataset(protocol)
        torch.manual_seed(99)
        assert torch.equal(fresh.batch(split, index.flip(0)).x.flip(0), get(split, 0))
        other = dataset(protocol, seed_eval=1)
        assert not torch.equal(other.batch(split, index).x, get(split, 0))
    state = torch.get_rng_state()
    dataset(protocol).batch("test", index)
    assert torch.equal(torch.get_rng_state(), state), "evaluation must not touch the global generator"


def test_fixed_noise_does_not_depend_on_the_split_length() -> None:
    x = torch.randint(0, 256, (1500, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    splits = {"train": x, "validation": x, "test": x}
    whole = vd.from_tensor(splits, None, "dynamic")
    part = vd.from_tensor({**splits, "test": x[:1100]}, None, "dynamic")
    index = torch.arange(1100)
    assert torch.equal(whole.batch("test", index).x, part.batch("test", index).x)
    assert not torch.equal(whole.batch("test", index).x, whole.batch("validation", index).x)


def test_precision_does_not_change_the_draws() -> None:
    for protocol in ("dynamic", "uniform"):
        data = dataset(protocol)
        for split in ("train", "test"):
            with random.stream(0):
                a = data.batch(split, torch.arange(4)).x
            with random.stream(0):
                b = data.to("cpu", torch.float64).batch(split, torch.arange(4)).x
            assert (a.dtype, b.dtype) == (torch.float32, torch.float64)
            torch.testing.assert_close(a.double(), b, atol=1e-7, rtol=0)


def test_ranks_share_the_global_draw() -> None:
    data = vd.from_tensor(torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8), None, "logit", flip=True)
    index = torch.arange(8)
    with random.stream(5, 2):
        whole = data.batch("train", index).x
    parts = []
    for rank in range(2):
        with random.stream(5, 2, rank, 2):
            parts.append(data.batch("train", index[rank * 4 : rank * 4 + 4]).x)
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("protocol", PICTURES)
@pytest.mark.parametrize("flip", [False, True])
def test_mean_is_the_expected_value(protocol: str, flip: bool) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randint(0, 17, (3000, 2, 3), dtype=torch.uint8, generator=g)
    x[..., 0] //= 3
    data = vd.from_tensor(x, None, protocol, 17, flip=flip).to("cpu", torch.float64)
    n, passes = data.sizes["train"], 60
    with random.stream(0):
        draws = torch.stack([data.batch("train", torch.arange(n)).x.mean(0) for _ in range(passes)])
    mean, se = draws.mean(0), draws.std(0) / math.sqrt(passes)
    assert data.mean().shape == data.event_shape
    assert bool(((mean - data.mean()).abs() <= 4 * se + 1e-12).all())


def test_flips_mirror_whole_pictures_in_training_only() -> None:
    x = torch.arange(4, dtype=torch.uint8).expand(200, 1, 3, 4).contiguous()
    data = vd.from_tensor(x, None, "grey", 4, flip=True)
    with random.stream(0):
        seen = data.batch("train", torch.arange(160)).x
    mirrored = (seen == seen[:, :, :1, :1]).any() & (seen[..., 0] == 1).all((1, 2))
    straight = (seen[..., 0] == 0).all((1, 2))
    assert bool((mirrored | straight).all())
    assert abs(int(mirrored.sum()) - 80) <= 4 * math.sqrt(40)
    assert bool((data.batch("test", torch.arange(20)).x[..., 0] == 0).all())
    with pytest.raises(SpecError, match="flip"):
        vd.from_tensor(torch.randn(20, 3), flip=True)


def test_standardize_has_its_ladj_and_its_inverse() -> None:
    x = torch.randn(200, 3, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 50.0]) + 7
    data = vd.from_tensor(x, None, "standardize").to("cpu", torch.float64)
    y, ladj = data.batch("train", torch.arange(160))
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3, dtype=torch.float64))
    raw = data.raw("train")
    torch.testing.assert_close(ladj, torch.full((160,), float(-raw.std(0, correction=0).log().sum())).double())
    torch.testing.assert_close(data.original(y), raw, atol=1e-9, rtol=0)
    torch.testing.assert_close(data.mean(), y.mean(0), atol=1e-12, rtol=0)
    assert data.bits_per_dim(ladj, ladj) is None
    assert data.pictures(y) is None
    with pytest.raises(DataError, match="column 1 .* constant"):
        vd.from_tensor(torch.stack([torch.randn(30), torch.full((30,), 0.1)], 1), None, "standardize")


def test_real_numbers_pass_as_they_are() -> None:
    x = torch.randn(50, 4)
    data = vd.from_tensor(x)
    assert (data.protocol, data.support, data.levels, data.event_shape) == ("none", "real", None, (4,))
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
    assert vd.from_tensor(floats, None, "grey").support == "unit"
    assert vd.from_tensor(floats, None, "dynamic").support == "binary"


def test_floats_become_levels() -> None:
    levels = torch.randint(0, 17, (30, 4, 4))
    for x in (levels / 16, levels.double()):
        data = vd.from_tensor(x, None, "dynamic", levels=17)
        assert data.raw("train").dtype == torch.uint8
        assert data.describe()["source_levels"] == 17
        assert data.event_shape == (1, 4, 4)
        values = torch.cat([data.raw(split) for split in data.sizes]).flatten(1).sum(1).sort().values
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
        (torch.randn(5, 2), {"labels": torch.zeros(4, dtype=torch.int64)}, ShapeError, r"integers \[5\]"),
        (torch.randn(5, 2), {"labels": torch.zeros(5)}, ShapeError, "integers"),
        ({"train": torch.randn(5, 2), "validation": torch.randn(5, 2)}, {}, DataError, "train and test"),
        ({"train": torch.randn(5, 2), "test": torch.randn(5, 3)}, {}, ShapeError, "one shape"),
    ],
)
def test_what_is_wrong_is_said(x: object, options: dict[str, object], error: type[Exception], match: str) -> None:
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
    for index in (torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64), torch.ones(32, dtype=torch.bool)):
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
