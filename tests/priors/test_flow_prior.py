"""Flow priors: every family is a normalised density whose samples follow it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, stack_module_state, vmap

import varflow as vf
from varflow.core import random
from varflow.core.errors import ShapeError, SpecError
from varflow.core.lazy import resolve
from varflow.flows.flow import Flow as Map
from varflow.networks.made import Step
from varflow.objectives import ELBO

pytestmark = pytest.mark.usefixtures("float64")

families = pytest.mark.parametrize("name", sorted(vf.flows.TABLE))
#: The families with a name of their own in a spec.
TABLED = sorted(set(vf.priors.TABLE) & set(vf.flows.TABLE))


def moved(prior: nn.Module, scale: float = 0.7) -> nn.Module:
    """``prior`` with its parameters moved from their start, relative to their fan-in."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += scale * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5
    return prior


def made(name: str, features: int = 2, scale: float = 0.7, length: int = 2):
    length = 1 if name in ("affine", "triangular") else length
    return moved(vf.priors.flow_prior(features, name, length=length), scale)


def grid(halfwidth: float = 12.0, nodes: int = 401):
    axis = torch.linspace(-halfwidth, halfwidth, nodes)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2


@families
def test_starts_as_its_base(name):
    prior = vf.priors.flow_prior(3, name, length=2)
    z = torch.randn(7, 3)
    torch.testing.assert_close(prior.log_prob(z), vf.priors.StandardNormal(3).log_prob(z))


@families
@torch.no_grad()
def test_integrates_to_one_and_samples_have_its_moments(name):
    prior = made(name, scale=0.5)
    points, area = grid()
    mass = prior.log_prob(points).exp() * area
    assert mass.sum().item() == pytest.approx(1.0, abs=2e-3)
    z = prior.sample((4000,))
    for statistic in (lambda v: v, torch.square, lambda v: v.prod(-1, keepdim=True)):
        exact = (mass[:, None] * statistic(points)).sum(0)
        drawn = statistic(z)
        error = drawn.std(0) / math.sqrt(len(z))
        assert ((drawn.mean(0) - exact).abs() < 4.5 * error + 5e-3).all()


@families
@pytest.mark.parametrize("inverted", [False, True])
def test_density_is_the_base_over_the_jacobian_of_decode(name, inverted):
    prior = made(name, features=4)
    prior.inverted = inverted
    e = torch.randn(5, 4)
    z = prior.decode(e).detach()
    slope = vmap(jacrev(prior.decode))(e)
    expected = prior.base.log_prob(e) - torch.linalg.slogdet(slope).logabsdet
    torch.testing.assert_close(prior.log_prob(z), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(prior.encode(z), e, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["maf", "iaf", "spline"])
def test_the_table_takes_the_way_round_with_a_parallel_density(name, monkeypatch):
    prior = resolve(vf.priors.TABLE[name])(5)
    assert prior.inverted == (name != "maf")

    def refuse(*_):
        raise AssertionError("a density must not go feature by feature")

    monkeypatch.setattr(Step, "sequential", refuse)
    prior.log_prob(torch.randn(3, 5))


@pytest.mark.parametrize("name", TABLED)
def test_twice_differentiable_and_vmap(name):
    prior = made(name)
    z = torch.randn(3, 2, requires_grad=True)
    # Second derivatives of relu networks and splines jump, at no point of this draw.
    assert torch.autograd.gradgradcheck(prior.log_prob, (z,), atol=1e-4)
    each = torch.stack([prior.log_prob(one) for one in z])
    torch.testing.assert_close(vmap(prior.log_prob)(z), each)


@pytest.mark.parametrize("name", ["maf", "coupling", "planar"])
def test_many_priors_in_one_program(name):
    priors = [made(name) for _ in range(3)]
    state = stack_module_state(priors)
    z = torch.randn(4, 2)

    class Score(nn.Module):
        def __init__(self, prior):
            super().__init__()
            self.prior = prior

        def forward(self, z):
            return self.prior.log_prob(z)

    state = tuple({f"prior.{k}": v for k, v in group.items()} for group in state)
    together = vmap(lambda s: functional_call(Score(priors[0]), s, (z,)))(state)
    torch.testing.assert_close(together, torch.stack([prior.log_prob(z) for prior in priors]))


def test_a_learned_base():
    base = vf.priors.Mixture(2, components=3)
    prior = vf.priors.flow_prior(2, "maf", base=base)
    z = torch.randn(6, 2)
    torch.testing.assert_close(prior.log_prob(z), base.log_prob(z))
    prior.log_prob(z).sum().backward()
    assert base.means.grad is not None


def test_the_same_stream_gives_the_same_sample():
    prior = made("maf", features=3)
    with random.stream(3):
        first = prior.sample((2, 5))
    with random.stream(3):
        again = prior.sample((2, 5))
    assert first.shape == (2, 5, 3)
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["maf", "iaf"])
@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("shape", [(), (7,), (0,), (2, 3)])
def test_samples_are_the_same_with_and_without_gradients(name, features, shape):
    prior = made(name, features)
    with random.stream(3):
        kept = prior.sample(shape)
    with random.stream(3), torch.no_grad():
        free = prior.sample(shape)
    assert kept.shape == free.shape == (*shape, features)
    torch.testing.assert_close(kept.detach(), free, rtol=1e-11, atol=1e-11)
    kept.sum().backward()
    if features > 1:
        assert all(p.grad is not None for p in prior.parameters())


@pytest.mark.parametrize(("length", "hidden"), [(5, (64,)), (2, (64, 64))])
def test_sampling_computes_each_hidden_unit_once(length, hidden, monkeypatch):
    """The multiplications of a sample are about those of a density, and not D times as many."""
    features, spent = 16, [0]
    prior = vf.priors.flow_prior(features, "maf", length=length, hidden=hidden)
    from varflow.networks import made as room

    def counting(x, weight, bias=None):
        spent[0] += x.shape[:-1].numel() * weight.numel()
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(room, "linear", counting)
    # Where gradients are kept the density takes other functions.
    with torch.no_grad():
        prior.log_prob(torch.randn(8, features))
    density, spent[0] = spent[0], 0
    prior.sample((8,))
    assert 0 < spent[0] <= density


class _Inverse(Map):
    """A flow turned round."""

    def __init__(self, flow: Map):
        super().__init__(flow.features)
        self.flow = flow

    def push(self, z, local=()):
        return self.flow.pull(z, local)

    def pull(self, z, local=()):
        return self.flow.push(z, local)


class _After(nn.Module):
    """A decoder that reads f(z)."""

    def __init__(self, flow: Map, decoder: nn.Module):
        super().__init__()
        self.flow, self.decoder, self.out_shape = flow, decoder, decoder.out_shape

    def forward(self, z):
        return self.decoder(self.flow(z)[0])


@pytest.mark.parametrize("kind", ["iaf", "maf"])
def test_a_static_autoregressive_posterior_is_an_autoregressive_prior(kind):
    """q(z|x) = f#N(μ, σ²) under N(0, I), and N(μ, σ²) under f⁻¹#N(0, I) with decoder∘f: one model.

    Both forms of the prior: the inverted IAF, and a MAF, whose dual the posterior's flow then is.
    """
    features, events = 3, 5
    if kind == "iaf":
        flow: Map = vf.flows.InverseAutoregressive(features, length=2)
        prior = vf.priors.Flow(flow, inverted=True)
    else:
        maf = vf.flows.MaskedAutoregressive(features, length=2)
        flow, prior = _Inverse(maf), vf.priors.Flow(maf)
    moved(flow)
    encoder = vf.networks.MLP(events, hidden=(8,), activation="tanh")
    decoder = vf.networks.MLP(features, events, hidden=(8,), activation="tanh")
    with_flow = vf.posteriors.Gaussian(features, encoder, flow)
    plain = vf.posteriors.Gaussian(features, encoder)
    plain.moments = with_flow.moments
    posterior_side = vf.Model(
        vf.priors.StandardNormal(features), vf.likelihoods.Gaussian(decoder, events, 1.0), with_flow
    )
    prior_side = vf.Model(prior, vf.likelihoods.Gaussian(_After(flow, decoder), events, 1.0), plain)
    x = torch.randn(6, events)
    shared = [*encoder.parameters(), *decoder.parameters(), *flow.parameters()]
    terms, gradients = [], []
    for model in (posterior_side, prior_side):
        with random.stream(0):
            found = model.terms(x, samples=4)
        terms.append(found)
        gradients.append(torch.autograd.grad(ELBO()(found, 1.0), shared))
    torch.testing.assert_close(terms[0].log_weight, terms[1].log_weight, rtol=0, atol=1e-11)
    torch.testing.assert_close(terms[0].log_likelihood, terms[1].log_likelihood, rtol=0, atol=1e-11)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0])


def test_refusals():
    with pytest.raises(SpecError, match=r"base: is over events of shape \(2,\)"):
        vf.priors.Flow(vf.flows.Planar(3), vf.priors.StandardNormal(2))
    with pytest.raises(SpecError, match="did you mean 'maf'"):
        vf.priors.flow_prior(3, "mafs")
    with pytest.raises(SpecError, match="planar has no hidden layers"):
        vf.priors.flow_prior(3, "planar", hidden=(8,))
    with pytest.raises(ShapeError, match=r"needs \[\.\.\., 3\]"):
        vf.priors.flow_prior(3, "maf").log_prob(torch.zeros(4, 2))


def test_half_precision_gives_a_full_density():
    prior = vf.priors.flow_prior(4, "maf", length=2).float()
    z = torch.randn(5, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = prior.log_prob(z)
    assert torch.equal(inside, prior.log_prob(z))
