"""Mixtures of linear regressions: densities, draws, and what EM finds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import varflow as vf
from varflow.core import random
from varflow.core.errors import ShapeError, SpecError


def fitted(x: Tensor, c: Tensor, held: int = 0) -> vf.priors.Experts:
    prior = vf.priors.Experts(x.shape[1], c.shape[1]).double()
    cut = len(x) - held
    rows = {"train": (x[:cut], c[:cut]), "validation": (x[cut:], c[cut:])}
    prior.start(lambda split: rows[split][0], lambda split: rows[split][1])
    return prior


@pytest.fixture(scope="module")
def by_class() -> tuple[Tensor, Tensor, Tensor]:
    """Three classes, each a Gaussian of its own far from the others: x, one-hot c, the true log p(x|c)."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (1500,), generator=generator)
    centres = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    scales = torch.tensor([0.5, 0.3, 0.7], dtype=torch.float64)[y, None]
    noise = torch.randn(1500, 2, generator=generator, dtype=torch.float64)
    log_p = (-0.5 * noise.square() - scales.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    return centres[y] + scales * noise, torch.nn.functional.one_hot(y, 3).double(), log_p


@pytest.fixture(scope="module")
def prior(by_class) -> vf.priors.Experts:
    return fitted(by_class[0][:1200], by_class[1][:1200], held=200)


def test_it_finds_the_density_of_each_class(by_class, prior):
    x, c, exact = by_class
    short = (exact - prior.log_prob(x, c))[1200:].mean()
    assert abs(float(short)) < 0.08
    assert float(prior.log_prob(x, c.roll(1, 1)).mean()) < float(exact.mean()) - 5, "c must matter"


def test_a_linear_regression_is_found_to_the_digits_of_least_squares():
    generator = torch.Generator().manual_seed(1)
    c = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    b = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]], dtype=torch.float64)
    noise = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    prior = fitted(c @ b + 0.1 * noise, c)
    torch.testing.assert_close(prior.slopes[0], b.mT, atol=0.01, rtol=0)
    exact = (-0.5 * noise.square() - math.log(0.1) - 0.5 * math.log(2 * math.pi)).sum(-1).mean()
    assert abs(float(prior.log_prob(c @ b + 0.1 * noise, c).mean() - exact)) < 0.05


def test_a_context_that_says_nothing_leaves_the_mixture_of_x(by_class):
    x, _, _ = by_class
    x, generator = x[:600], torch.Generator().manual_seed(2)
    c = torch.randn(len(x), 2, generator=generator, dtype=torch.float64)
    prior, plain = fitted(x, c, held=200), vf.priors.Gaussians(2).double()
    rows = {"train": x[:400], "validation": x[400:]}
    plain.start(lambda split: rows[split])
    assert abs(float((prior.log_prob(x, c) - plain.log_prob(x)).mean())) < 0.03


def test_it_integrates_to_one_and_draws_what_it_says(prior):
    axis = torch.linspace(-8, 10, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for context in torch.eye(3, dtype=torch.float64):
        mass = prior.log_prob(grid, context).exp().sum() * (axis[1] - axis[0]) ** 2
        assert float(mass) == pytest.approx(1, abs=1e-6)
        with random.stream(3):
            drawn = prior.sample((4000,), context)
        each = prior.log_prob(drawn, context)
        weights = prior.log_prob(grid, context).exp() * (axis[1] - axis[0]) ** 2
        entropy = -(weights * prior.log_prob(grid, context)).sum()
        assert float((-each.mean() - entropy).abs() / (each.std() / 4000**0.5)) < 6


def test_contexts_broadcast_from_the_left(by_class, prior):
    x, c, _ = by_class
    z = x[:12].reshape(3, 4, 2)
    rows = torch.stack([prior.log_prob(z[:, j], c[j].expand(3, -1)) for j in range(4)], 1)
    torch.testing.assert_close(prior.log_prob(z, c[:4]), rows)
    with random.stream(0):
        assert prior.sample((5, 4), c[:4]).shape == (5, 4, 2)


def test_it_survives_few_rows_constant_columns_and_saving(by_class):
    generator = torch.Generator().manual_seed(5)
    x = torch.cat([torch.randn(9, 2, generator=generator), torch.ones(9, 1)], 1).double()
    c = torch.cat([torch.ones(9, 1), torch.zeros(9, 2)], 1).double()
    prior = fitted(x, c, held=3)
    assert bool(prior.log_prob(x, c).isfinite().all())
    other = vf.priors.Experts(3, 3).double()
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.log_prob(x, c), prior.log_prob(x, c))


def test_refusals():
    prior = vf.priors.Experts(2, 3)
    with pytest.raises(SpecError, match="context: missing"):
        prior.log_prob(torch.zeros(4, 2))
    with pytest.raises(ShapeError, match=r"context: shape \(4, 2\)"):
        prior.log_prob(torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ShapeError, match="z: shape"):
        prior.log_prob(torch.zeros(4, 5), torch.zeros(4, 3))
    with pytest.raises(SpecError, match="base: reads a context"):
        vf.priors.Flow(vf.flows.Affine(2), base=prior)


def test_a_conditional_density_starts_at_it(by_class):
    """A mixture that knows no class is a place that a flow with a class does not leave."""
    x, c, exact = (t[:500] for t in by_class)
    data = vf.data.from_tensor(x, labels=c.argmax(1), condition=("label",), continuous=True)
    run = vf.fit("conditional-density", data, quiet=True, steps=1, threads=1)
    found = torch.as_tensor(run.log_prob(x, given={"label": c.argmax(1)}))
    assert float((exact - found).mean()) < 0.15
