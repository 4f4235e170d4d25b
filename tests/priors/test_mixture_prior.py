"""The mixture of Gaussians against torch's, quadrature and counting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import vmap

import varflow as vf
from varflow.core import random
from varflow.core.errors import ShapeError, SpecError
from varflow.priors import _components
from varflow.priors._components import pick


def mixture(features, components, scale=1.0, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    prior = vf.priors.Mixture(features, components).to(dtype)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += scale * torch.randn_like(parameter)
    return prior


def torchs(prior):
    each = Independent(Normal(prior.means, prior.log_scales.exp()), 1)
    return MixtureSameFamily(Categorical(logits=prior.logits), each)


@settings(max_examples=30, deadline=None)
@given(
    features=st.integers(1, 6),
    components=st.integers(1, 9),
    tenths=st.integers(0, 30),
    seed=st.integers(0, 10**6),
)
def test_density_is_torchs(features, components, tenths, seed):
    prior = mixture(features, components, tenths / 10, seed=seed)
    z = 3 * torch.randn(2, 4, features, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(z), torchs(prior).log_prob(z), rtol=1e-11, atol=1e-11)


def test_integrates_to_one():
    prior = mixture(1, 5)
    axis = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    mass = prior.log_prob(axis[:, None]).exp().sum() * (axis[1] - axis[0])
    assert mass.item() == pytest.approx(1.0, abs=1e-9)


def test_starts_with_about_the_moments_of_a_standard_normal():
    torch.manual_seed(1)
    prior = vf.priors.Mixture(200, components=50)
    variance = prior.means.var(0) + (2 * prior.log_scales).exp().mean(0)
    assert variance.mean().item() == pytest.approx(1.0, abs=0.05)
    assert prior.means.mean().abs().item() < 0.03
    assert torch.pdist(prior.means).min() > 5


def test_responsibilities_are_bayes():
    prior = mixture(3, 4)
    z = torch.randn(6, 3, dtype=torch.float64)
    each = torchs(prior)
    joint = each.mixture_distribution.logits + each.component_distribution.log_prob(z[:, None])
    expected = (joint - each.log_prob(z)[:, None]).exp()
    torch.testing.assert_close(prior.responsibilities(z), expected)
    torch.testing.assert_close(expected.sum(-1), torch.ones_like(z[:, 0]))


def test_samples_come_from_each_component_as_often_as_it_weighs():
    prior = vf.priors.Mixture(1, 4).double()
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    with torch.no_grad():
        prior.logits.copy_(shares.log() + 3.0)
        prior.means.copy_(torch.tensor([[-30.0], [-10.0], [10.0], [30.0]]))
        prior.log_scales.copy_(torch.tensor([[0.0], [0.5], [-0.5], [-1.0]]))
        with random.stream(0):
            z = prior.sample((100, 400)).flatten()
    which = ((z + 40) / 20).floor().long()
    counts = torch.bincount(which, minlength=4).double()
    expected = shares * len(z)
    # χ² with 3 degrees of freedom: 21.1 is exceeded once in 10,000.
    assert ((counts - expected).square() / expected).sum() < 21.1
    for k in range(4):
        own = z[which == k] - prior.means[k, 0].item()
        scale = prior.log_scales[k, 0].exp().item()
        assert abs(own.mean().item()) < 4.5 * scale / math.sqrt(len(own))
        assert abs(own.std().item() / scale - 1) < 4.5 / math.sqrt(2 * len(own))


def test_picking_never_leaves_the_components():
    # Rounded shares may add up to less than the largest u below 1.
    shares = torch.full((10,), 0.0999999)
    u = torch.tensor([0.0, 0.05, 0.0999, 0.1001, 0.9999, 1 - 2**-24])
    assert pick(shares, u).tolist() == [0, 0, 0, 1, 9, 9]
    assert pick(torch.tensor([0.0, 1.0, 0.0]), u).tolist() == [1] * 6
    assert pick(torch.ones(1), u).tolist() == [0] * 6


def test_far_and_narrow_components_lose_no_digits():
    prior = vf.priors.Mixture(2, 2)
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[1000.0, -1000.0], [0.0, 0.0]]))
        prior.log_scales.fill_(math.log(1 / 64))
    z = prior.means[:1].detach() + 1 / 64
    exact = math.log(0.5) - 1 - math.log(2 * math.pi) + 2 * math.log(64)
    assert prior.log_prob(z).item() == pytest.approx(exact, abs=2e-6)
    assert torch.isfinite(prior.log_prob(torch.full((1, 2), 1e6))).all()


def test_slices_change_nothing(monkeypatch):
    prior = mixture(3, 4)
    z = torch.randn(5, 7, 3, dtype=torch.float64)
    whole = prior.log_prob(z)
    monkeypatch.setattr(_components, "_LARGEST", 50)
    with torch.no_grad():
        sliced = prior.log_prob(z)
    torch.testing.assert_close(sliced, whole.detach(), rtol=0, atol=1e-14)
    with torch.no_grad():
        assert prior.log_prob(z[:0]).shape == (0, 7)
        assert prior.log_prob(z[0, 0]).shape == ()


def test_twice_differentiable_and_vmap():
    prior = mixture(2, 3)
    z = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(prior.log_prob, (z,))
    torch.testing.assert_close(vmap(prior.log_prob)(z), prior.log_prob(z))


def test_refusals():
    with pytest.raises(SpecError, match="components: was 0"):
        vf.priors.Mixture(2, 0)
    with pytest.raises(SpecError, match="spread"):
        vf.priors.Mixture(2, 3, spread=1.0)
    with pytest.raises(ShapeError, match=r"needs \[\.\.\., 2\]"):
        vf.priors.Mixture(2, 3).log_prob(torch.zeros(5, 3))
