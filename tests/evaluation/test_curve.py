"""The bound against its number of samples, from one set of weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import varflow as vf
from varflow.core.errors import SpecError
from varflow.evaluation import bound_curve, evaluate, grouped_bounds, quadrature

from .conftest import tiny


@pytest.fixture
def dataset(binary):
    rows = torch.cat([binary, binary.flip(0), binary.roll(1, 1)])
    return vf.data.from_tensor(rows.to(torch.uint8), levels=2, name="bits").to("cpu", torch.float64)


def test_groups_average_to_the_bound_of_their_size():
    # Two equally likely weights: E log 1/k Σ w over all 2^k sequences is known.
    choices = torch.tensor([0.0, 1.5], dtype=torch.float64)
    torch.manual_seed(1)
    weights = choices[torch.randint(0, 2, (60, 4000))]
    counts = [1, 2, 7, 60]
    values, variances = grouped_bounds(weights, counts)
    for k, value, variance in zip(counts[:3], values, variances, strict=False):
        every = torch.tensor(list(itertools.product([0, 1], repeat=k)))
        expected = (choices[every].logsumexp(1) - math.log(k)).mean()
        assert abs(value.mean() - expected) < 4 * value.std() / math.sqrt(4000)
        # The claimed variance is the spread over the independent columns.
        assert variance.mean() == pytest.approx(value.var().item(), rel=0.15)
    # Groups do not have to divide the samples: 8 of 7, and 4 weights are left.
    assert torch.equal(values[2], grouped_bounds(weights[:56], [7])[0][0])
    assert variances[3].mean() == pytest.approx(values[3].var().item(), rel=0.15)


def test_its_ends_are_the_elbo_and_the_likelihood_of_an_evaluation(dataset):
    model = tiny(flow="planar")
    found = bound_curve(model, dataset, samples=150)
    whole = evaluate(model, dataset, samples=150)
    assert list(found.estimates) == ["bound_1", "bound_10", "bound_100", "bound_150"]
    for name, other, sign in (("bound_1", "elbo", 1), ("bound_150", "nll", -1)):
        one, two = found.estimates[name], whole.estimates[other]
        assert one.value == pytest.approx(sign * two.value, abs=1e-9)
        assert one.standard_error == pytest.approx(two.standard_error, rel=1e-9)
        assert one.monte_carlo_error == pytest.approx(two.monte_carlo_error, rel=1e-6)
    nested = bound_curve(model, dataset, samples=150, counts=[1, 10, 50, 150])
    bounds = [e.value for e in nested.estimates.values()]
    assert bounds == sorted(bounds)
    assert bounds[-1] == found.estimates["bound_150"].value
    exact = quadrature(model, dataset.batch("test", torch.arange(90)).x, nodes=201).mean().item()
    assert bounds[0] < exact
    assert abs(bounds[-1] - exact) < 4 * found.estimates["bound_150"].monte_carlo_error


def test_the_memory_does_not_change_it(dataset):
    wide = bound_curve(tiny(), dataset, samples=70, points=20)
    tight = bound_curve(tiny(), dataset, samples=70, points=20, memory=4000)
    assert wide.estimates["bound_70"].value == pytest.approx(
        tight.estimates["bound_70"].value, abs=1e-12
    )


def test_chosen_counts_progress_and_saving(dataset, tmp_path):
    seen = []
    model = tiny().train()

    def told(done, total):
        seen.append((done, total))

    found = bound_curve(model, dataset, samples=8, points=5, counts=[2, 8], progress=told)
    assert model.training
    assert list(found.estimates) == ["bound_2", "bound_8"]
    assert "mean over 4 groups of log of the mean of 2 weights" in found.table()
    assert seen == [(5, 5)]
    found.save(tmp_path)
    assert vf.evaluation.Evaluation.load(tmp_path, "test-curve").estimates == found.estimates


def test_one_sample_has_no_monte_carlo_error(dataset):
    found = bound_curve(tiny(), dataset, samples=1, points=5)
    assert list(found.estimates) == ["bound_1"]
    assert found.estimates["bound_1"].monte_carlo_error is None


def test_bad_arguments_are_refused(dataset):
    with pytest.raises(SpecError, match="counts: has 9; use numbers from 1 to the 8 samples"):
        bound_curve(tiny(), dataset, samples=8, counts=[9])
    with pytest.raises(SpecError, match="samples: was 0"):
        bound_curve(tiny(), dataset, samples=0)
    with pytest.raises(SpecError, match="split: unknown value 'tset'"):
        bound_curve(tiny(), dataset, "tset")
