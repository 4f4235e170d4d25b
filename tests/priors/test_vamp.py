"""The VampPrior against the average of posteriors, one at a time."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import varflow as vf
from varflow.core import random
from varflow.core.errors import ShapeError, SpecError
from varflow.core.lazy import resolve
from varflow.objectives import ELBO
from varflow.priors import _components

pytestmark = pytest.mark.usefixtures("float64")

EVENTS, FEATURES, K = 5, 2, 4


def posterior(flow: str | None = None, amortized: bool = False, features: int = FEATURES):
    factory = None
    if flow is not None:
        factory = partial(resolve(vf.flows.TABLE[flow]), length=2)
    made = vf.posteriors.Gaussian(
        features,
        vf.networks.MLP(EVENTS, hidden=(8,), activation="tanh"),
        factory,
        amortized=amortized,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    return made


def bound(q: nn.Module, features: int = FEATURES, **options):
    prior = vf.priors.Vamp(features, EVENTS, components=K, **options)
    prior.bind(q)
    return prior


def one_by_one(prior, q, z):
    each = [q(u[None]).log_prob(z.unsqueeze(-2)).squeeze(-1) for u in prior.inputs()]
    # In logarithms: far from every component the densities themselves are 0.
    return torch.stack(each).logsumexp(0) - math.log(K)


@pytest.mark.parametrize(
    ("flow", "amortized"), [(None, False), ("planar", False), ("planar", True), ("iaf", True)]
)
def test_is_the_average_of_posteriors(flow, amortized, monkeypatch):
    q = posterior(flow, amortized)
    prior = bound(q)
    z = torch.randn(3, 6, FEATURES)
    expected = one_by_one(prior, q, z)
    torch.testing.assert_close(prior.log_prob(z), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prior.log_prob(z, q=prior.conditional()), prior.log_prob(z))
    monkeypatch.setattr(_components, "_LARGEST", 3 * K * FEATURES)
    with torch.no_grad():
        torch.testing.assert_close(prior.log_prob(z), expected, rtol=1e-9, atol=1e-9)
        assert prior.log_prob(z[0, 0]).shape == ()


def test_an_ancestral_posterior_too():
    bottom = posterior()
    q = vf.posteriors.Ancestral(bottom, vf.priors.GaussianLayer(FEATURES, 1, hidden=(6,)))
    prior = bound(q, features=FEATURES + 1)
    z = torch.randn(3, 6, FEATURES + 1)
    torch.testing.assert_close(prior.log_prob(z), one_by_one(prior, q, z), rtol=1e-9, atol=1e-9)
    assert prior.sample((7,)).shape == (7, FEATURES + 1)


@torch.no_grad()
@pytest.mark.parametrize("flow", [None, "planar"])
def test_samples_follow_the_density(flow):
    q = posterior(flow, amortized=flow is not None, features=1)
    prior = bound(q, features=1)
    # Wide: what a posterior of random weights says of an input may have a scale of twenty.
    axis = torch.linspace(-200, 200, 200_001)
    mass = prior.log_prob(axis[:, None]).exp() * (axis[1] - axis[0])
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    with random.stream(0):
        z = prior.sample((50, 400)).flatten()
    # The largest distance of distribution functions: 2.23/√n is exceeded once in 10,000.
    below = np.interp(z.numpy(), axis.numpy(), mass.cumsum(0).numpy())
    u = torch.from_numpy(below).sort().values
    ranks = torch.arange(1, len(u) + 1) / len(u)
    assert (u - ranks).abs().max() < 2.23 / math.sqrt(len(u)) + 2e-3


def model(seed: int = 0) -> vf.Model:
    torch.manual_seed(seed)
    q = posterior()
    decoder = vf.networks.MLP(FEATURES, EVENTS, hidden=(8,), activation="tanh")
    made = vf.Model(bound(q), vf.likelihoods.Gaussian(decoder, EVENTS, 1.0), q)
    made.prior.bind(q)
    return made


def test_each_tensor_is_registered_once():
    made = model()
    own = [name for name in made.state_dict() if name.startswith("prior.")]
    assert own == ["prior.free"]
    expected = sum(
        part.numel() for module in (made.likelihood, made.posterior) for part in module.parameters()
    )
    assert sum(p.numel() for p in made.parameters()) == expected + K * EVENTS


def test_a_copy_reads_its_own_posterior():
    made = model()
    twin = copy.deepcopy(made)
    z = torch.randn(4, FEATURES)
    before = twin.prior.log_prob(z)
    with torch.no_grad():
        for parameter in made.posterior.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin.prior.log_prob(z), before)
    assert not torch.allclose(made.prior.log_prob(z), before)
    assert twin.prior._posterior[0] is twin.posterior


@pytest.mark.parametrize("hold", [False, True])
def test_gradients_by_finite_differences(hold):
    """Also of the encoder, which the loss meets twice: in q(z|x) and in the prior."""
    made = model()
    x = torch.randn(3, EVENTS)

    def loss(hold: bool = False):
        with random.stream(5):
            return ELBO()(made.terms(x, 2, hold=hold), 1.0)

    chosen = [made.prior.free, made.posterior.moments.weight, made.posterior.encoder.layers[0].bias]
    gradients = torch.autograd.grad(loss(hold), chosen)
    if hold:
        # Of the pseudo-inputs the path gradient is the whole one; of the encoder only without the score.
        chosen, gradients = chosen[:1], gradients[:1]
    for parameter, gradient in zip(chosen, gradients, strict=True):
        flat = parameter.data.flatten()
        for index in (0, flat.numel() // 2, flat.numel() - 1):
            ends = []
            for step in (1e-5, -1e-5):
                flat[index] += step
                ends.append(loss().item())
                flat[index] -= step
            slope = (ends[0] - ends[1]) / 2e-5
            assert gradient.flatten()[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_starts_at_examples():
    x = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5]).repeat(K, 1)
    prior = vf.priors.Vamp(FEATURES, EVENTS, K, support="binary", start=x)
    expected = torch.tensor([0.05, 0.95, 0.05, 0.95, 0.5]).repeat(K, 1)
    torch.testing.assert_close(prior.inputs().detach(), expected)
    real = torch.randn(K, EVENTS)
    assert torch.equal(vf.priors.Vamp(FEATURES, EVENTS, K, start=real).inputs(), real)
    with pytest.raises(ShapeError, match=r"start: shape \(3, 5\)"):
        prior.start_at(torch.zeros(3, EVENTS))


def test_pictures():
    q = vf.posteriors.Gaussian(2, vf.networks.MLP((1, 3, 4), hidden=(8,)))
    prior = vf.priors.Vamp(2, (1, 3, 4), components=3, support="unit")
    prior.bind(q)
    assert prior.log_prob(prior.sample((4,))).shape == (4,)
    assert ((prior.inputs() > 0) & (prior.inputs() < 1)).all()


class _Coupled(nn.Module):
    features = 8
    couples_examples = True

    def forward(self, x):
        return torch.zeros(len(x), 8)


def test_refusals():
    prior = vf.priors.Vamp(FEATURES, EVENTS, K)
    with pytest.raises(SpecError, match="no posterior yet"):
        prior.log_prob(torch.zeros(3, FEATURES))
    with pytest.raises(SpecError, match="reads none"):
        prior.bind(vf.posteriors.Gaussian(FEATURES))
    with pytest.raises(SpecError, match="Hamiltonian has no density"):
        prior.bind(vf.posteriors.Hamiltonian(posterior(), steps=2))
    with pytest.raises(SpecError, match="batch statistics"):
        prior.bind(vf.posteriors.Gaussian(FEATURES, _Coupled()))
    with pytest.raises(SpecError, match="has 2 features, the posterior 3"):
        prior.bind(posterior(features=3))
    with pytest.raises(SpecError, match="support"):
        vf.priors.Vamp(FEATURES, EVENTS, K, support="grays")
    prior.bind(posterior())
    with pytest.raises(ShapeError, match=r"needs \[\.\.\., 2\]"):
        prior.log_prob(torch.zeros(3))
