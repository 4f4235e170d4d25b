"""Bounds from both sides on data simulated from the model, and annealed estimates of a data set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.core.errors import SpecError
from varflow.evaluation import (
    Annealing,
    Evaluation,
    anneal,
    annealed_likelihood,
    paired,
    quadrature,
    sandwich_bounds,
    simulate,
)

from .conftest import tiny

SHORT = Annealing(chains=8, temperatures=10, leapfrog=2, warmup=20, chunk=50)


@pytest.fixture
def dataset(binary):
    rows = torch.cat([binary, binary.flip(0), binary.roll(1, 1)])
    return vf.data.from_tensor(rows.to(torch.uint8), levels=2, name="bits").to("cpu", torch.float64)


def exact_of(model: vf.Model, x: torch.Tensor) -> torch.Tensor:
    """log p(x) by quadrature, once for each of the at most 64 different x."""
    distinct, which = x.unique(dim=0, return_inverse=True)
    nodes = {1: 2001, 2: 201}[model.prior.event_shape[0]]
    return quadrature(model, distinct, nodes=nodes)[which]


@pytest.mark.parametrize("start", ["posterior", "prior"])
@pytest.mark.parametrize("latent", [1, 2])
def test_exact_likelihoods_lie_between_the_two_bounds(latent, start):
    model, points = tiny(latent), 150
    found = sandwich_bounds(model, points, Annealing(4, 8, 2, start=start, warmup=20, chunk=50))
    exact = exact_of(model, simulate(model, points)[1])
    lower, upper = (torch.as_tensor(found.per_example[name]) for name in ("lower", "upper"))
    for bound, sign in ((lower, 1), (upper, -1)):
        short = sign * (exact - bound)
        assert short.mean() > -5 * short.std() / math.sqrt(points)
    gap = found.estimates["gap"]
    assert gap.value == pytest.approx(float((upper - lower).mean()), abs=1e-12)
    assert gap.standard_error == pytest.approx(float((upper - lower).std() / math.sqrt(points)))


def test_few_temperatures_leave_a_gap_that_many_close():
    model, points = tiny(2), 200
    exact = exact_of(model, simulate(model, points)[1]).mean()
    gaps = []
    coarse = Annealing(1, 1, start="prior", chunk=200)
    fine = Annealing(4, 40, 3, warmup=60, chunk=200)
    for settings in (coarse, fine):
        found = sandwich_bounds(model, points, settings).estimates
        gaps.append(found["gap"])
        # The points are the same: only the chains are random.
        for name, sign in (("lower", 1), ("upper", -1)):
            short = sign * (exact - found[name].value)
            assert short > (0.05 if len(gaps) == 1 else -0.02)
    assert "acceptance" not in sandwich_bounds(model, 3, coarse).estimates
    assert gaps[0].value > 4 * gaps[0].standard_error
    assert abs(gaps[1].value) < gaps[0].value / 20 + 5 * gaps[1].standard_error


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_backwards_weights_are_unbiased_for_the_reciprocal(start):
    # E 1/w = 1/p(x) over exact posterior samples and chains.
    model, points = tiny(2), 3000
    z, x = simulate(model, points)
    settings = Annealing(1, 6, 2, start=start, warmup=20, chunk=1000)
    found = anneal(model, x, settings, exact=z)
    exact = exact_of(model, x)
    ratio = (exact - found.log_weights[0]).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(points)
    # From a point that is no posterior sample they are not.
    wrong = anneal(model, x, settings, exact=z.roll(1, 0))
    ratio = (exact - wrong.log_weights[0]).exp()
    assert abs(ratio.mean() - 1) > 4 * ratio.std() / math.sqrt(points)


def test_both_directions_move_alike():
    model = tiny()
    z, x = simulate(model, 20)
    there, back = anneal(model, x, SHORT), anneal(model, x, SHORT, exact=z)
    assert torch.equal(there.steps, back.steps)
    assert back.backwards
    assert abs(there.acceptance.mean() - back.acceptance.mean()) < 0.1


def test_simulated_data_come_from_the_model():
    model, points = tiny(1), 20_000
    z, x = simulate(model, points)
    assert z.shape == (points, 1)
    values, counts = x.unique(dim=0, return_counts=True)
    expected = points * quadrature(model, values).exp()
    chi = ((counts - expected).square() / expected).sum()
    assert abs(chi - len(values)) < 4 * math.sqrt(2 * len(values))
    assert torch.equal(simulate(model, 5)[1], simulate(model, 5)[1])
    assert not torch.equal(simulate(model, 5)[0], simulate(model, 5, seed=1)[0])


def test_a_data_set_gets_estimates_with_errors(dataset, tmp_path):
    model = tiny(flow="planar")
    found = annealed_likelihood(model, dataset, points=40, settings=SHORT, folder=tmp_path)
    exact = exact_of(model, dataset.batch("test", torch.arange(40)).x)
    nll = found.estimates["nll"]
    assert abs(nll.value + exact.mean().item()) < 4 * nll.monte_carlo_error
    assert (nll.samples, nll.points, nll.protocol) == (8, 40, "bits test, threshold")
    assert nll.value == pytest.approx(-found.per_example["log_px"].mean())
    assert found.estimates["nll_one_chain"].value > nll.value
    moved = found.estimates["acceptance"].value
    assert moved == pytest.approx(found.per_example["acceptance"].mean())
    bits, scale = found.estimates["bits_per_dim"], 6 * math.log(2)
    assert bits.value == pytest.approx(nll.value / scale)
    assert bits.monte_carlo_error == pytest.approx(nll.monte_carlo_error / scale)
    found.save(tmp_path)
    kept = Evaluation.load(tmp_path, "test-annealed")
    assert kept.estimates == found.estimates
    np.testing.assert_array_equal(kept.per_example["log_px"], found.per_example["log_px"])
    assert "8 chains over 10 temperatures (sigmoidal) from the posterior" in found.table()
    assert paired(found, kept).value == 0


def test_an_interrupted_sandwich_goes_on(tmp_path):
    model = tiny()

    def interrupt(done, total):
        if done == 70:
            raise KeyboardInterrupt

    settings = Annealing(3, 6, 1, warmup=10, chunk=20)
    whole = sandwich_bounds(model, 60, settings)
    with pytest.raises(KeyboardInterrupt):
        sandwich_bounds(model, 60, settings, folder=tmp_path, progress=interrupt)
    assert len(list(tmp_path.glob("ais-*.npz"))) == 3
    resumed = sandwich_bounds(model, 60, settings, folder=tmp_path)
    for name, values in whole.per_example.items():
        np.testing.assert_array_equal(resumed.per_example[name], values)


def test_progress_reaches_the_end(dataset):
    seen = []

    def told(done, total):
        seen.append((done, total))

    sandwich_bounds(tiny(), 7, Annealing(2, 3, 1, warmup=5, chunk=3), progress=told)
    assert seen[-1] == (14, 14)
    assert seen == sorted(seen)


def test_bad_arguments_are_refused(dataset):
    with pytest.raises(SpecError, match="points: was 0"):
        sandwich_bounds(tiny(), 0)
    with pytest.raises(SpecError, match="points: was 1000; bits has 90 test points"):
        annealed_likelihood(tiny(), dataset, points=1000)
    with pytest.raises(SpecError, match="split: unknown value 'tset'; did you mean 'test'"):
        annealed_likelihood(tiny(), dataset, "tset")
