"""The log-weight of the one model, held against models whose log p(x) is known."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

import varflow as vf
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.core.lazy import resolve
from varflow.evaluation import LinearGaussian

pytestmark = pytest.mark.usefixtures("float64")

FLOWS = [
    pytest.param(name, amortized, id=f"{name}-{'amortized' if amortized else 'static'}")
    for name, amortized in itertools.product(vf.flows.TABLE, (False, True))
]


def exact_model() -> LinearGaussian:
    """Three observed values, two latents; the columns of W are orthogonal, so p(z|x) is diagonal."""
    weight = torch.tensor([[0.6, 0.2], [0.2, -0.6], [0.0, 0.3]])
    weight[:, 1] -= weight[:, 0] * (weight[:, 0] @ weight[:, 1]) / weight[:, 0].square().sum()
    return LinearGaussian(weight, torch.tensor([0.1, -0.2, 0.3]), 1.0)


def likelihood(exact: LinearGaussian) -> nn.Module:
    events, features = exact.weight.shape
    decoder = vf.networks.MLP(features, events, hidden=())
    (linear,) = (m for m in decoder.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(exact.weight)
        linear.bias.copy_(exact.bias)
    return vf.likelihoods.Gaussian(decoder, events, scale=exact.scale)


class Same(nn.Module):
    """An encoder whose features are x."""

    features = 3

    def forward(self, x):
        return x


def model_with(flow: str | None, amortized: bool = False) -> vf.Model:
    # A chain of affine maps is one, and refused.
    length = 1 if flow == "affine" else 2
    factory = None if flow is None else partial(resolve(vf.flows.TABLE[flow]), length=length)
    posterior = vf.posteriors.Gaussian(2, Same(), factory, amortized=amortized)
    with torch.no_grad():
        posterior.moments.weight.mul_(0.3)
        posterior.moments.bias.copy_(torch.tensor([0.0, 0.0, 0.2, 0.2]))
    return vf.Model(vf.priors.StandardNormal(2), likelihood(exact_model()), posterior)


def disturb(model: vf.Model, size: float = 0.2) -> None:
    """Move the flow's parameters away from the identity; wide layers by less."""
    with torch.no_grad():
        for parameter in model.posterior.flow.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 1
            parameter.add_(size / math.sqrt(width) * torch.randn_like(parameter))


def make_identity(flow: nn.Module) -> None:
    """Reflections start anywhere; two equal ones undo each other. The other flows start there."""
    if isinstance(flow, vf.flows.Householder):
        with torch.no_grad():
            if flow.context_features:
                flow.weight.copy_(torch.eye(flow.features))
                flow.bias.zero_()
            else:
                flow.v[1] = flow.v[0]


X = torch.tensor([[0.3, -0.5, 0.8], [1.2, 0.4, -0.7]], dtype=torch.float64)


@pytest.mark.parametrize(("flow", "amortized"), [pytest.param(None, False, id="none"), *FLOWS])
def test_weights_average_to_one_and_the_elbo_is_a_bound(flow, amortized):
    # One flow of each kind: some draws leave a posterior too narrow for its weights to have a variance.
    torch.manual_seed(0)
    model = model_with(flow, amortized)
    if flow is not None:
        disturb(model)
        z = torch.randn(5, 2)
        context = X[:1] if amortized else None
        assert not torch.allclose(model.posterior.flow(z, context)[0], z, atol=1e-3)
    samples, log_px = 100_000, exact_model().log_prob(X)
    with torch.no_grad(), random.stream(seed=1):
        log_w = model.terms(X, samples).log_weight
    ratio = (log_w - log_px).exp()
    assert (ratio.mean(0).square() / ratio.square().mean(0) > 0.1).all()
    error = ratio.std(0) / math.sqrt(samples)
    assert ((ratio.mean(0) - 1).abs() < 4 * error).all()
    assert (log_w.mean(0) <= log_px + 3 * log_w.std(0) / math.sqrt(samples)).all()
    # The gap of the bound is real here: the test above could fail.
    assert (log_w.mean(0) < log_px - 5 * log_w.std(0) / math.sqrt(samples)).all()


def test_the_exact_posterior_has_constant_weights():
    exact = exact_model()
    model = model_with(None)
    _, covariance = exact.posterior(X)
    to_mean = covariance @ exact.weight.T / exact.scale**2
    with torch.no_grad():
        moments = model.posterior.moments
        moments.weight.copy_(torch.cat([to_mean, torch.zeros(2, 3)]))
        moments.bias.copy_(torch.cat([-to_mean @ exact.bias, covariance.diagonal().log() / 2]))
    log_w = model.terms(X, 1000).log_weight
    assert log_w.std(0).max() < 1e-9
    torch.testing.assert_close(log_w.mean(0), exact.log_prob(X), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("flow", "amortized"), FLOWS)
def test_an_identity_flow_leaves_the_elbo_as_it_is(flow, amortized):
    plain, flowed = model_with(None), model_with(flow, amortized)
    flowed.load_state_dict(plain.state_dict(), strict=False)
    make_identity(flowed.posterior.flow)
    values = []
    for model in (plain, flowed):
        with random.stream(seed=2):
            values.append(model.terms(X, 1000).log_weight.mean(0))
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("flow", "amortized"), [pytest.param(None, False, id="none"), *FLOWS])
def test_hold_keeps_the_value_of_log_q(flow, amortized):
    model = model_with(flow, amortized)
    if flow is not None:
        disturb(model)
    values = []
    for hold in (False, True):
        with random.stream(seed=3):
            values.append(model.terms(X, 50, hold=hold).log_q)
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-8)


def one_latent(flow: str | None) -> vf.Model:
    torch.manual_seed(1)
    exact = LinearGaussian(torch.tensor([[0.7]]), torch.tensor([0.2]), 0.8)
    factory = None if flow is None else resolve(vf.flows.TABLE[flow])
    posterior = vf.posteriors.Gaussian(1, vf.networks.MLP(1, hidden=(3,)), factory)
    model = vf.Model(vf.priors.StandardNormal(1), likelihood(exact), posterior)
    if flow is not None:
        disturb(model, 0.3)
    return model


@pytest.mark.parametrize("flow", [None, "planar", "sylvester", "affine"])
def test_path_gradient_is_the_gradient_of_the_elbo(flow):
    """A grid as noise makes both expectations exact; finite differences are the judge."""
    model = one_latent(flow)
    nodes = torch.linspace(-10, 10, 4001)[:, None, None]
    weights = torch.softmax(-nodes[:, 0].square() / 2, 0)
    x = torch.tensor([[0.9]])

    def elbo(hold: bool) -> torch.Tensor:
        with random.use(random.Replay([nodes])):
            return (weights * model.terms(x, len(nodes), hold=hold).log_weight).sum()

    chosen = [p for p in model.posterior.parameters() if p.requires_grad]
    held = torch.autograd.grad(elbo(True), chosen, allow_unused=True)
    step = 1e-5
    for parameter, gradient in zip(chosen, held, strict=True):
        found = torch.zeros_like(parameter)
        for i in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[i] += sign * step
                    values.append(elbo(False))
                    parameter.view(-1)[i] -= sign * step
            found.view(-1)[i] = (values[0] - values[1]) / (2 * step)
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(gradient, found, rtol=1e-5, atol=1e-7)


def test_terms_add_up_and_have_one_value_for_each_sample_and_example():
    model = model_with("planar")
    terms = model(X, samples=3)
    assert terms.z.shape == (3, 2, 2)
    for value in (terms.log_likelihood, terms.log_prior, terms.log_q, terms.draw.ladj):
        assert value.shape == (3, 2)
    torch.testing.assert_close(
        terms.log_weight, terms.log_likelihood - terms.kl, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        model.log_joint(terms.z, X), terms.log_likelihood + terms.log_prior, rtol=0, atol=1e-12
    )


def test_the_prior_is_charged_where_the_flow_ends():
    """An affine flow that inflates must lose under N(0, I): log p(z_K), not log p(z_0)."""
    model = model_with("affine")
    disturb(model)
    terms = model.terms(X, 4)
    assert torch.equal(terms.log_prior, model.prior.log_prob(terms.z))
    assert not torch.allclose(terms.log_prior, model.prior.log_prob(terms.draw.z0), atol=1e-3)


def test_samples_reconstructions_and_codes_have_the_shape_of_their_space():
    model = model_with("radial", amortized=True)
    assert model.sample(5).shape == (5, 3)
    assert model.sample(5, mean=True).shape == (5, 3)
    assert model.reconstruct(X).shape == X.shape
    assert model.reconstruct(X, mean=False).shape == X.shape
    assert model.encode(X, samples=4).z.shape == (4, 2, 2)


def test_samples_follow_the_exact_marginal():
    exact, count = exact_model(), 200_000
    with random.stream(seed=4):
        x = model_with(None).sample(count)
    covariance = exact.weight @ exact.weight.T + exact.scale**2 * torch.eye(3)
    error = (covariance.diagonal() / count).sqrt()
    assert ((x.mean(0) - exact.bias).abs() < 4 * error).all()
    spread = (covariance.diagonal().outer(covariance.diagonal()) + covariance.square()) / count
    assert ((x.T.cov() - covariance).abs() < 4 * spread.sqrt()).all()


def test_parts_of_different_sizes_are_refused():
    with pytest.raises(SpecError, match=r"prior: is over events of shape \(3,\)"):
        vf.Model(
            vf.priors.StandardNormal(3),
            likelihood(exact_model()),
            vf.posteriors.Gaussian(2, Same()),
        )


class MyNormal(vf.priors.Prior):
    """N(0, I) under another class, which only its attribute says."""

    standard = True

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = (2,)
        self.normal = vf.priors.StandardNormal(2)

    def log_prob(self, z, context=None):
        return self.normal.log_prob(z, context)

    def sample(self, shape=()):
        return self.normal.sample(shape)


def test_parts_say_what_they_are_and_are_not_recognised_by_class():
    posterior = vf.posteriors.Gaussian(2, Same())
    model = vf.Model(MyNormal(), None, posterior)
    ours, house = model.infer(X), vf.Model(vf.priors.StandardNormal(2), None, posterior).infer(X)
    torch.testing.assert_close(ours.kl_groups(model.prior), house.kl_groups(vf.priors.StandardNormal(2)))
    assert model.member(0) is model
