"""Random numbers: what they are a function of, and the sixteen-bit ones against their law."""

from __future__ import annotations

import math

import pytest
import torch

from varflow.core import random

KINDS = [random.normal, random.uniform, random.uniform16]


@pytest.mark.parametrize("draw", KINDS)
def test_a_draw_is_a_function_of_seed_purpose_and_step(draw) -> None:
    def get(seed: int, purpose: str, step: int) -> torch.Tensor:
        with random.stream(seed, step):
            return draw((3, 5), purpose)

    assert torch.equal(get(1, "a", 2), get(1, "a", 2))
    for other in ((0, "a", 2), (1, "b", 2), (1, "a", 3)):
        assert not torch.equal(get(1, "a", 2), get(*other))
    with random.stream(1, 2):
        first, second = draw((3, 5), "a"), draw((3, 5), "a")
    assert torch.equal(first, get(1, "a", 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("draw", KINDS)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_slice_one_draw(draw, world: int) -> None:
    with random.stream(4):
        whole = draw((2, 6, 3), "a", batch_dim=1)
    parts = []
    for rank in range(world):
        with random.stream(4, rank=rank, world=world):
            parts.append(draw((2, 6 // world, 3), "a", batch_dim=1))
    assert torch.equal(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("draw", KINDS)
def test_outside_a_stream_torchs_generator_answers(draw) -> None:
    torch.manual_seed(5)
    one = draw((7,), "a")
    torch.manual_seed(5)
    assert torch.equal(draw((7,), "b"), one)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sixteen_bits_have_their_shape_and_lie_on_midpoints(shape, dtype: torch.dtype) -> None:
    with random.stream(0):
        u = random.uniform16(shape, "a", dtype=dtype)
    assert (u.shape, u.dtype) == (shape, dtype)
    k = u * 2**16 - 0.5
    assert torch.equal(k, k.round())
    assert bool(((k >= 0) & (k < 2**16)).all())


def test_sixteen_bits_are_uniform_in_each_of_them() -> None:
    n = 1 << 20
    with random.stream(1):
        u = random.uniform16((n,), "a", dtype=torch.float64)
    # Four numbers come from one word of 64 bits: each quarter by itself, so that no bit of a word is idle.
    for quarter in u.view(-1, 4).t():
        k = (quarter * 2**16 - 0.5).int()
        for bit in range(16):
            ones = float(((k >> bit) & 1).double().mean())
            assert abs(ones - 0.5) <= 4.5 * 0.5 / math.sqrt(n / 4), bit
    counts = (u * 256).int().bincount(minlength=256).double()
    chi2 = float(((counts - n / 256) ** 2 / (n / 256)).sum())
    assert abs(chi2 - 255) <= 4 * math.sqrt(2 * 255)
    pairs = torch.corrcoef(u.view(-1, 4).t())
    assert float((pairs - torch.eye(4)).abs().max()) <= 4.5 / math.sqrt(n / 4)


def test_sixteen_bits_are_the_same_numbers_in_both_precisions() -> None:
    with random.stream(2):
        one = random.uniform16((9,), "a", dtype=torch.float32)
    with random.stream(2):
        other = random.uniform16((9,), "a", dtype=torch.float64)
    assert torch.equal(one.double(), other)


def test_an_unknown_kind_is_refused() -> None:
    request = random.Request("cauchy", (1,), "a", torch.float32, torch.device("cpu"), None)
    with pytest.raises(ValueError, match="uniform16"):
        random.Stream(0).draw(request)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sixteen_bits_on_a_gpu() -> None:
    n = 1 << 20
    with random.stream(1):
        u = random.uniform16((n,), "a", dtype=torch.float64, device="cuda")
    with random.stream(1):
        assert torch.equal(u, random.uniform16((n,), "a", dtype=torch.float64, device="cuda"))
    for quarter in u.view(-1, 4).t():
        assert abs(float(quarter.mean()) - 0.5) <= 4.5 / math.sqrt(12 * n / 4)
        k = (quarter * 2**16 - 0.5).int()
        assert all(
            abs(float(((k >> b) & 1).double().mean()) - 0.5) <= 2.25 / math.sqrt(n / 4)
            for b in range(16)
        )
