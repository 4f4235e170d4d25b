"""What the protocols promise, whatever the files."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import varflow.data as vd
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.data.protocols import ALPHA, GRID, LEVELS

PICTURES = ("dynamic", "threshold", "logit", "uniform", "grey", "levels")


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
        x, ladj, *_ = data.batch(split, torch.arange(4))
        d = x[0].numel()
        # A uniform density of v + u over [0, L]^D is L^−D, as a uniform mass is; log p(x) = −D log L − ladj.
        log_prob = (
            -d * math.log(levels) - ladj
            if protocol in ("logit", "uniform")
            else torch.full_like(ladj, -d * math.log(data.levels or 0))
        )
        bits = data.bits_per_dim(log_prob, ladj)
        if protocol == "grey":
            assert bits is None
            continue
        expected = math.log2(2 if data.support == "binary" else levels)
        torch.testing.assert_close(bits, torch.full_like(bits, expected), atol=1e-12, rtol=0)
        assert data.bits_per_dim(log_prob.expand(3, 4), ladj).shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("protocol", ["logit", "uniform", "grey", "levels"])
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
    dequantized = values.double() + (drawn.double() + 0.5) / GRID
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: torch.logit(ALPHA / 2 + (1 - ALPHA) * v / levels), dequantized[i]
        )
        exact = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(ladj[i], exact, atol=1e-11, rtol=0)
    sheet = (
        math.log((1 - ALPHA) / levels) + torch.nn.functional.softplus(y) + torch.nn.functional.softplus(-y)
    ).sum(1)
    torch.testing.assert_close(ladj, sheet, atol=1e-11, rtol=0)
    y32, ladj32 = part.encode(values, drawn, torch.float32)
    torch.testing.assert_close(y32.double(), y, atol=5e-6, rtol=0)
    torch.testing.assert_close(ladj32.double(), ladj, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [17, 255, 256])
@pytest.mark.parametrize("protocol", ["uniform", "logit"])
def test_every_dequantized_value_returns_to_its_level(
    protocol: str, levels: int, dtype: torch.dtype
) -> None:
    part = LEVELS[protocol](protocol, levels)
    values = torch.arange(levels, dtype=torch.uint8)[:, None].expand(-1, GRID)
    drawn = torch.arange(GRID, dtype=part.stored).expand(levels, -1)
    x, _ = part.encode(values, drawn, dtype)
    assert bool(x.isfinite().all())
    assert torch.equal((part.invert(x) * (levels - 1)).round().to(torch.uint8), values)
    if protocol == "uniform":
        assert float(x.min()) > 0
        assert float(x.max()) < 1


def test_noise_fills_its_grid() -> None:
    part = LEVELS["uniform"]("uniform", 256)
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])
    drawn = part.draw(torch.zeros(3, dtype=torch.uint8), u)
    assert drawn.tolist() == [0, GRID // 2, GRID - 1]
    assert torch.equal(drawn.to(part.stored).to(drawn.dtype), drawn)


@pytest.mark.parametrize("levels", [17, 256])
def test_binarization_has_its_probabilities(levels: int) -> None:
    values = torch.arange(levels, dtype=torch.uint8).expand(20_000, levels)
    part = LEVELS["dynamic"]("dynamic", levels)
    with random.stream(1):
        x, ladj = part.encode(
            values, part.draw(values, random.uniform(values.shape, "binarize")), torch.float32
        )
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


#: Every number that 16 bits of noise can be.
SIXTEEN = (torch.arange(2**16) + 0.5) / 2**16


@pytest.mark.parametrize(
    ("levels", "bound"), [(2, 0.0), (17, 0.0), (178, 2**-17 + 2**-24), (256, 2**-17)]
)
def test_the_table_of_probabilities_of_binarization(levels: int, bound: float) -> None:
    part = LEVELS["dynamic"]("dynamic", levels)
    values = torch.arange(levels, dtype=torch.uint8)[:, None].expand(-1, 2**16)
    p = part.draw(values, SIXTEEN.expand(levels, -1)).double().mean(1)
    exact = torch.arange(levels).double() / (levels - 1)
    assert float((p - exact).abs().max()) <= bound
    assert (float(p[0]), float(p[-1])) == (0.0, 1.0)
    assert bool((p.diff() > 0).all())


def test_sixteen_bits_fill_the_grid_of_dequantization_evenly() -> None:
    drawn = LEVELS["uniform"]("uniform", 256).draw(torch.zeros(2**16, dtype=torch.uint8), SIXTEEN)
    assert drawn.int().bincount().tolist() == [2**16 // GRID] * GRID


def test_training_noise_has_sixteen_bits_of_a_purpose_and_is_shared_by_ranks() -> None:
    data = dataset("dynamic")
    recorder = random.Recorder(random.Stream(3, 5))
    with random.use(recorder):
        x = data.batch("train", torch.arange(8)).x
    (request,) = recorder.requests
    assert (request.kind, request.purpose, request.batch_dim) == ("uniform16", "binarize", 0)
    with random.use(random.Replay([random.Stream(3, 5).draw(request)])):
        assert torch.equal(data.batch("train", torch.arange(8)).x, x)
    for rank in range(2):
        with random.stream(3, 5, rank, 2):
            part = data.batch("train", torch.arange(4 * rank, 4 * rank + 4)).x
        assert torch.equal(part, x[4 * rank : 4 * rank + 4])


def test_threshold_is_above_one_half() -> None:
    for levels, last_zero in ((256, 127), (17, 8), (2, 0)):
        x, *_ = dataset("threshold", levels).batch("test", torch.arange(1))
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
    assert torch.equal(torch.get_rng_state(), state), (
        "evaluation must not touch the global generator"
    )


def test_fixed_noise_does_not_depend_on_the_split_length() -> None:
    x = torch.randint(
        0, 256, (1500, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
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
    data = vd.from_tensor(
        torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8), None, "logit", flip=True
    )
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
    mirrored = (seen[..., 0] == 1).all((1, 2))
    straight = (seen[..., 0] == 0).all((1, 2))
    assert bool((mirrored | straight).all())
    assert abs(int(mirrored.sum()) - 80) <= 4 * math.sqrt(40)
    assert bool((data.batch("test", torch.arange(20)).x[..., 0] == 0).all())
    with pytest.raises(SpecError, match="flip"):
        vd.from_tensor(torch.randn(20, 3), flip=True)
