"""Two stochastic layers against a linear-Gaussian model whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal
from torch.func import vmap

import varflow as vf
from varflow.core import random
from varflow.core.errors import ShapeError, SpecError
from varflow.objectives import ELBO, ImportanceWeighted

pytestmark = pytest.mark.usefixtures("float64")

A = torch.tensor([[0.8]], dtype=torch.float64)
SHIFT, SCALE1 = 0.3, 0.7
W = torch.tensor([[1.0], [-0.5], [0.3]], dtype=torch.float64)
BIAS, SCALE = torch.tensor([0.1, 0.0, -0.2], dtype=torch.float64), 0.9


def linear_layer(weight, bias, scale):
    """p(h|g) = N(weight·g + bias, scale²)."""
    features, given = weight.shape
    layer = vf.priors.GaussianLayer(given, features, hidden=())
    with torch.no_grad():
        layer.network.last.weight.copy_(torch.cat((weight, torch.zeros_like(weight))))
        layer.network.last.bias.copy_(
            torch.cat(
                (
                    torch.as_tensor(bias).expand(features),
                    torch.as_tensor(scale).log().expand(features),
                )
            )
        )
    return layer


def generative():
    """h₂ ~ N(0, 1), h₁ = A h₂ + shift + noise, x = W h₁ + bias + noise."""
    prior = vf.priors.Ancestral(vf.priors.StandardNormal(1), linear_layer(A, SHIFT, SCALE1))
    decoder = vf.networks.MLP(1, 3, hidden=())
    with torch.no_grad():
        decoder.last.weight.copy_(W)
        decoder.last.bias.copy_(BIAS)
    return prior, vf.likelihoods.Gaussian(vf.priors.Reads(decoder, 1), 3, SCALE)


class _Same(nn.Module):
    features = 3

    def forward(self, x):
        return x


def inference(off: float = 0.0):
    """The exact q(h₁|x) q(h₂|h₁), its means moved and its scales widened by ``off``."""
    variance1 = (A @ A.T).item() + SCALE1**2
    covariance = W @ W.T * variance1 + SCALE**2 * torch.eye(3)
    gain = torch.linalg.solve(covariance, W * variance1).T
    mean = SHIFT - (gain @ (W[:, 0] * SHIFT + BIAS))
    left = variance1 - (gain @ W).item() * variance1
    bottom = vf.posteriors.Gaussian(1, _Same())
    with torch.no_grad():
        bottom.moments.weight.copy_(torch.cat((gain, torch.zeros(1, 3))))
        bottom.moments.bias.copy_(
            torch.cat((mean + off, torch.tensor([0.5 * math.log(left) + off])))
        )
    back = A.T / variance1
    scale = math.sqrt(1 - (back @ A).item()) * math.exp(off)
    above = linear_layer(back, -back[0] * SHIFT - off, torch.tensor(scale))
    return vf.posteriors.Ancestral(bottom, above)


def model(off: float = 0.0) -> vf.Model:
    prior, likelihood = generative()
    return vf.Model(prior, likelihood, inference(off))


def evidence(x):
    covariance = W @ W.T * ((A @ A.T).item() + SCALE1**2) + SCALE**2 * torch.eye(3)
    return MultivariateNormal(W[:, 0] * SHIFT + BIAS, covariance).log_prob(x)


@torch.no_grad()
def test_the_exact_posterior_gives_the_exact_evidence():
    x = torch.randn(4, 3)
    log_weight = model().terms(x, 50).log_weight
    torch.testing.assert_close(log_weight, evidence(x).expand(50, 4), rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("leapfrog", [0, 3])
def test_mean_weight_is_the_evidence(leapfrog):
    made = model(off=0.25)
    if leapfrog:
        q = vf.posteriors.Hamiltonian(made.posterior, steps=leapfrog, initial_step=0.1)
        made = vf.Model(made.prior, made.likelihood, q)
    x = torch.randn(3, 3)
    with random.stream(0):
        log_weight = made.terms(x, 40_000 if leapfrog else 100_000).log_weight
    weight = (log_weight - evidence(x)).exp()
    assert (weight.mean(0).square() / weight.square().mean(0) > 0.1).all()
    error = weight.std(0) / math.sqrt(len(weight))
    assert ((weight.mean(0) - 1).abs() < 4 * error).all()
    assert (log_weight.std(0) > 0.05).all()


def test_gradients_by_finite_differences():
    made = model(off=0.25)
    x = torch.randn(3, 3)

    def loss():
        with random.stream(5):
            return ELBO()(made.terms(x, 2), 1.0)

    parameters = list(made.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat = parameter.data.view(-1)
        for index in {0, flat.numel() - 1}:
            ends = []
            for step in (1e-5, -1e-5):
                flat[index] += step
                ends.append(loss().item())
                flat[index] -= step
            slope = (ends[0] - ends[1]) / 2e-5
            assert gradient.flatten()[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_path_gradient_vanishes_at_the_exact_posterior():
    made = model()
    x = torch.randn(3, 3)
    with random.stream(0):
        total = made.terms(x, 4)
    with random.stream(0):
        held = made.terms(x, 4, hold=True)
    torch.testing.assert_close(held.log_q, total.log_q)
    own = list(made.posterior.parameters())
    path = torch.autograd.grad(-held.log_weight.mean(), own)
    assert max(gradient.abs().max().item() for gradient in path) < 1e-10
    score = torch.autograd.grad(-total.log_weight.mean(), own)
    assert max(gradient.abs().max().item() for gradient in score) > 1e-3


@pytest.mark.parametrize("layers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_doubly_reparameterised_gradients_are_those_of_the_bound(layers):
    """In pairs, since both see the same noise; the scores that one leaves out have mean zero."""
    torch.manual_seed(1)
    if layers == 2:
        made = model(off=0.25)
        x = torch.randn(3)
    else:
        prior, posterior = deep()
        made = vf.Model(prior, vf.likelihoods.Gaussian(vf.priors.Reads(vf.networks.MLP(4, 5), 4), 5, 0.5), posterior)
        x = torch.randn(5)
    own = list(made.posterior.parameters())
    rows = []
    for seed in range(400):
        found = []
        for gradient in ("total", "dreg"):
            objective = ImportanceWeighted(gradient)
            with random.stream(seed):
                loss = objective(made.terms(x.expand(8, -1), 3, hold=objective.hold), 1.0)
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, own)]))
        rows.append(found[0] - found[1])
    difference = torch.stack(rows)
    error = difference.std(0) / math.sqrt(len(rows))
    # About a hundred parameters: the largest of so many standard errors is below 4.5.
    assert (difference.mean(0).abs() <= 4.5 * error + 1e-9).all()


@torch.no_grad()
def test_samples_have_the_joint_moments():
    prior, _ = generative()
    with random.stream(0):
        z = prior.sample((200, 200)).reshape(-1, 2)
    expected = torch.tensor([[A.item() ** 2 + SCALE1**2, A.item()], [A.item(), 1.0]])
    joint = MultivariateNormal(torch.tensor([SHIFT, 0.0]), expected)
    torch.testing.assert_close(prior.log_prob(z), joint.log_prob(z))
    error = 5 / math.sqrt(len(z))
    assert (z.mean(0) - joint.mean).abs().max() < error * 1.1
    assert (z.T.cov() - expected).abs().max() < error * 1.5


def deep():
    """Three layers of 4, 3 and 2 latents, with networks."""
    layer = vf.priors.GaussianLayer
    up = vf.priors.Ancestral(vf.priors.StandardNormal(2), layer(2, 3, hidden=(6,)))
    prior = vf.priors.Ancestral(up, layer(3, 4, hidden=(6,)))
    bottom = vf.posteriors.Gaussian(4, vf.networks.MLP(5, hidden=(6,), activation="tanh"))
    down = vf.posteriors.Ancestral(bottom, layer(4, 3, hidden=(6,)))
    return prior, vf.posteriors.Ancestral(down, layer(3, 2, hidden=(6,)))


def test_three_layers_by_hand():
    prior, posterior = deep()
    assert prior.slices == {"h1": slice(0, 4), "h2": slice(4, 7), "h3": slice(7, 9)}
    assert prior.event_shape == (9,)
    assert posterior.features == 9
    q = posterior(torch.randn(5, 5))
    draw = q.draw(3)
    h1, h2, h3 = (draw.z[..., part] for part in prior.slices.values())
    expected = (
        vf.priors.StandardNormal(2).log_prob(h3)
        + prior.top.conditional.log_prob(h2, h3)
        + prior.conditional.log_prob(h1, h2)
    )
    torch.testing.assert_close(prior.log_prob(draw.z), expected)
    torch.testing.assert_close(q.log_prob(draw.z), draw.log_q)
    torch.testing.assert_close(
        draw.log_q,
        q.bottom.bottom.log_prob(h1)
        + posterior.bottom.conditional.log_prob(h2, h1)
        + posterior.conditional.log_prob(h3, h2),
    )
    again = posterior.from_local(q.local)
    torch.testing.assert_close(again.log_prob(draw.z), draw.log_q)
    assert prior.sample((2, 3)).shape == (2, 3, 9)


def test_a_flow_below_is_scored_by_its_inverse():
    flow = vf.flows.Planar(2, length=2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    bottom = vf.posteriors.Gaussian(2, vf.networks.MLP(5, hidden=(6,)), flow)
    q = vf.posteriors.Ancestral(bottom, vf.priors.GaussianLayer(2, 1, hidden=(4,)))(
        torch.randn(3, 5)
    )
    draw = q.draw(4)
    torch.testing.assert_close(q.log_prob(draw.z), draw.log_q, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(draw.ladj, torch.zeros(()))
    # The base density at z0, less ladj: h₂ is its own base.
    base = Normal(q.bottom.mean, q.bottom.log_scale.exp()).log_prob(draw.z0[..., :2]).sum(-1)
    above = q.conditional.log_prob(draw.z0[..., 2:], draw.z[..., :2])
    torch.testing.assert_close(draw.log_q, base + above - draw.ladj)


def test_twice_differentiable_vmap_and_no_example_touches_another():
    prior, posterior = deep()
    z = torch.randn(3, 9, requires_grad=True)
    assert torch.autograd.gradgradcheck(prior.log_prob, (z,))
    torch.testing.assert_close(vmap(prior.log_prob)(z), prior.log_prob(z))
    x = torch.randn(3, 5)
    q = posterior(x)
    one = posterior(x[1:2])
    torch.testing.assert_close(q.log_prob(z)[1:2], one.log_prob(z[1:2]))


def test_reading_the_first_latents():
    decoder = vf.networks.MLP(3, (2, 2), hidden=(4,))
    reads = vf.priors.Reads(decoder, 3)
    z = torch.randn(5, 7)
    assert reads.out_shape == (2, 2)
    assert torch.equal(reads(z), decoder(z[:, :3]))
    with pytest.raises(ShapeError, match="reads 3 latents"):
        reads(z[:, :2])


def test_refusals():
    layer = vf.priors.GaussianLayer
    with pytest.raises(SpecError, match="reads 3 features, the layer above has 2"):
        vf.priors.Ancestral(vf.priors.StandardNormal(2), layer(3, 4))
    bottom = vf.posteriors.Gaussian(4, vf.networks.MLP(5, hidden=(6,)))
    with pytest.raises(SpecError, match="reads 3 features, the layer below has 4"):
        vf.posteriors.Ancestral(bottom, layer(3, 2))
    with pytest.raises(SpecError, match="wrap it"):
        vf.posteriors.Ancestral(vf.posteriors.Hamiltonian(bottom, steps=1), layer(4, 2))
    prior, _ = generative()
    with pytest.raises(ShapeError, match=r"needs \[\.\.\., 2\]"):
        prior.log_prob(torch.zeros(4, 3))
