"""Pareto k̂ against known tails and an independent scalar implementation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varflow.core.errors import NonFiniteError, SpecError
from varflow.evaluation import pareto_k
from varflow.evaluation.psis import tail_k, tail_length


def scalar_k(log_weights: list[float]) -> float:
    """Zhang and Stephens 2009, table and equations, one weight at a time in plain Python."""
    samples = len(log_weights)
    ordered = sorted(log_weights)
    tail = math.ceil(min(samples / 5, 3 * math.sqrt(samples)))
    cut = math.exp(ordered[-tail - 1] - ordered[-1])
    y = [math.exp(v - ordered[-1]) - cut for v in ordered[-tail:]]
    m = 30 + int(math.sqrt(tail))
    quartile = y[math.floor(tail / 4 + 0.5) - 1]
    bs = [1 / y[-1] + (1 - math.sqrt(m / (j - 0.5))) / (3 * quartile) for j in range(1, m + 1)]

    def k_of(b: float) -> float:
        return sum(math.log1p(-b * v) for v in y) / tail

    profile = [tail * (math.log(-b / k_of(b)) - k_of(b) - 1) for b in bs]
    weights = [1 / sum(math.exp(other - own) for other in profile) for own in profile]
    k = k_of(sum(b * w for b, w in zip(bs, weights, strict=True)))
    return (tail * k + 10 * 0.5) / (tail + 10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(25, 400), st.floats(0.05, 3.0))
def test_agrees_with_a_scalar_implementation(seed, samples, spread):
    source = torch.Generator().manual_seed(seed)
    log_w = spread * torch.randn(samples, dtype=torch.float64, generator=source)
    assert pareto_k(log_w).item() == pytest.approx(scalar_k(log_w.tolist()), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("k", [-0.4, 0.1, 0.5, 0.7, 1.0, 1.5])
def test_finds_the_shape_of_generalised_pareto_tails(k):
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    weights = 1 + torch.expm1(-k * torch.log(u)) / k
    assert pareto_k(weights.log()).item() == pytest.approx(k, abs=0.03)


def test_agrees_with_maximum_likelihood_of_scipy():
    from scipy.stats import genpareto

    torch.manual_seed(0)
    weights = (1.2 * torch.randn(100_000, dtype=torch.float64)).exp()
    top = weights.sort(descending=True).values[: tail_length(len(weights)) + 1]
    shape, _, _ = genpareto.fit((top[:-1] - top[-1]).numpy(), floc=0)
    # Two estimators of one shape, each with a standard error of about 1/√M.
    assert tail_k(top.log()).item() == pytest.approx(shape, abs=2 / math.sqrt(len(top)))


def test_rows_are_independent_and_the_scale_does_not_matter():
    torch.manual_seed(0)
    log_w = torch.randn(3, 4, 200, dtype=torch.float64) * 2
    k = pareto_k(log_w)
    assert k.shape == (3, 4)
    for i, j in [(0, 0), (2, 3)]:
        torch.testing.assert_close(k[i, j], pareto_k(log_w[i, j]), rtol=0, atol=1e-12)
    for shift in (-1e4, 1e4):
        torch.testing.assert_close(pareto_k(log_w + shift), k, rtol=0, atol=1e-6)


def test_constant_weights_have_no_tail():
    assert (pareto_k(torch.full((2, 100), -90.0, dtype=torch.float64)) == -math.inf).all()
    rounded = -90 + 1e-5 * torch.randn(100, dtype=torch.float64)
    assert pareto_k(rounded, tolerance=1e-3) == -math.inf
    assert pareto_k(rounded).isfinite()


@pytest.mark.parametrize("samples", [0, 1, 2, 24])
def test_few_weights_give_nan(samples):
    assert pareto_k(torch.randn(3, samples)).isnan().all()


def test_one_sample_more_is_enough():
    assert pareto_k(torch.randn(25, dtype=torch.float64)).isfinite()


def test_zero_weights_count_as_samples():
    torch.manual_seed(0)
    log_w = torch.randn(100, dtype=torch.float64)
    half = torch.cat([log_w, torch.full((100,), -math.inf, dtype=torch.float64)])
    assert pareto_k(half).isfinite()
    only_few = torch.cat([log_w[:3], torch.full((197,), -math.inf, dtype=torch.float64)])
    assert pareto_k(only_few) == math.inf
    assert pareto_k(torch.full((50,), -math.inf)) == math.inf


def test_one_weight_that_dwarfs_all_others_is_heavy():
    log_w = torch.zeros(1000, dtype=torch.float64)
    log_w[0] = 1e4
    assert pareto_k(log_w) == math.inf
    torch.manual_seed(0)
    wild = 1e3 * torch.randn(1000, dtype=torch.float64)
    assert pareto_k(wild) > 1


def test_ties_and_the_exponential_limit_stay_finite():
    # Equal exceedances make one b of the grid exactly 0 when m is a multiple of 8.
    top = torch.cat([torch.full((100,), math.log(2.0)), torch.zeros(1)]).double()
    assert tail_k(top).isfinite()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(value):
    log_w = torch.zeros(100)
    log_w[3] = value
    with pytest.raises(NonFiniteError, match="log_weights: hold NaN or"):
        pareto_k(log_w)


def test_a_tail_of_four_is_refused():
    with pytest.raises(SpecError, match="top: holds 5 weights"):
        tail_k(torch.zeros(5))
