"""Objectives on a linear-Gaussian VAE with an encoder, where expectations are closed forms or small integrals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import varflow as vf
from varflow.core import random
from varflow.model import LogJoint
from varflow.objectives import ELBO, AnnealedELBO, ImportanceWeighted
from varflow.posteriors import Gaussian, Hamiltonian

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor([[0.3, -0.5, 0.8], [1.2, 0.4, -0.7], [-0.6, 0.1, 0.2]], dtype=torch.float64)


class Same(nn.Module):
    features = 3

    def forward(self, x):
        return x


def vae(features: int = 2) -> vf.Model:
    """p(x|z) = N(Wz + b, I), q(z|x) a Gaussian whose moments are linear in x. Always the same: ``free_bits``
    of the cases lie between the two KL terms of this one."""
    torch.manual_seed(0)
    decoder = vf.networks.MLP(features, 3, hidden=())
    base = Gaussian(features, Same())
    likelihood = vf.likelihoods.Gaussian(decoder, 3, scale=1.0)
    return vf.Model(vf.priors.StandardNormal(features), likelihood, base)


def expected(model: vf.Model) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E_q log p(x|z), E_q log p(z), E_q log q(z|x), and KL of each latent, for each x; closed forms."""
    q, last = model.posterior(X), model.likelihood.decoder.last
    variance = (2 * q.log_scale).exp()
    spread = (variance * last.weight.square().sum(0)).sum(-1)
    log_2pi = math.log(2 * math.pi)
    log_likelihood = -0.5 * ((X - last(q.mean)).square().sum(-1) + spread) - 1.5 * log_2pi
    log_prior = -0.5 * (q.mean.square() + variance + log_2pi).sum(-1)
    log_q = -(0.5 + 0.5 * log_2pi + q.log_scale).sum(-1)
    kl = 0.5 * (q.mean.square() + variance - 1) - q.log_scale
    return log_likelihood, log_prior, log_q, kl


def exact_loss(objective, weight: float, model: vf.Model) -> Tensor:
    log_likelihood, log_prior, log_q, kl = expected(model)
    if isinstance(objective, AnnealedELBO):
        return (log_q - weight * (log_likelihood + log_prior)).mean()
    if objective.free_bits:
        each, free = kl.mean(0), objective.free_bits
        return weight * torch.where(each > free, each, free).sum() - log_likelihood.mean()
    return (weight * kl.sum(-1) - log_likelihood).mean()


CASES = [
    (ELBO(), 1.0),
    (ELBO(control=False), 1.0),
    (ELBO(beta=3.0), 3.0),
    (ELBO(beta=0.5, control=False), 0.5),
    # Half way through a warm-up of 10 updates.
    (ELBO(beta=2.0, warmup=10), ELBO(beta=2.0, warmup=10).weight(5)),
    (ELBO(gradient="path"), 1.0),
    (ELBO(free_bits=0.15), 1.0),
    (ELBO(free_bits=0.15, beta=2.0), 2.0),
    (AnnealedELBO(steps=10), 0.3),
    (AnnealedELBO(steps=10, gradient="path"), 1.0),
]


@pytest.mark.parametrize(("objective", "weight"), CASES)
def test_value_and_gradient_are_those_of_the_closed_form(objective, weight):
    """Means of 60 independent estimates of 300 samples, within 4 of their standard errors."""
    model = vae()
    parameters = list(model.parameters())
    if getattr(objective, "free_bits", 0):
        each = expected(model)[3].mean(0)
        assert each.min() < objective.free_bits < each.max()
    exact = exact_loss(objective, weight, model)
    target = torch.cat(
        [exact.view(1), *(g.flatten() for g in gradients(exact, parameters))]
    ).detach()
    rows = []
    for repeat in range(60):
        with random.stream(11, repeat):
            terms = model.terms(X, 300, hold=objective.hold, groups=objective.groups)
        loss = objective(terms, weight)
        rows.append(
            torch.cat([loss.view(1), *(g.flatten() for g in gradients(loss, parameters))]).detach()
        )
    found = torch.stack(rows)
    error = found.std(0) / math.sqrt(len(rows))
    off = (found.mean(0) - target).abs()
    assert (off < 4 * error + 1e-12).all(), (off / error).max()


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def test_a_warmup_is_a_line_in_the_updates():
    objective = ELBO(beta=2.0, warmup=10)
    assert [objective.weight(step) for step in (0, 1, 5, 10, 11)] == [0.0, 0.2, 1.0, 2.0, 2.0]
    assert objective.final == 2.0


# The importance-weighted bound of a Hamiltonian posterior over one latent: integrals over z₀ and γ₀.


def hamiltonian() -> vf.Model:
    model = vae(1)
    with torch.no_grad():
        model.likelihood.decoder.last.weight.mul_(1.5)
        model.posterior.moments.bias.add_(0.2)
    posterior = Hamiltonian(
        model.posterior, 2, "free", "step", bound=1.0, initial_step=0.35, initial_temperature=1.6
    )
    return vf.Model(model.prior, model.likelihood, posterior)


def log_weights(model: vf.Model, noise: Tensor) -> Tensor:
    """log w of the first x at base noises (ε, γ) ``[N, 2]``."""
    x = X[:1]
    shaped = [noise[:, i].view(-1, 1, 1) for i in range(2)]
    with random.use(random.Replay(shaped)):
        return model.terms(x, len(noise)).log_weight[:, 0]


def quadrature_bound(model: vf.Model, samples: int) -> float:
    """E log 1/K Σ w over the 2K base noises, Gauss–Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss({1: 40, 2: 24}[samples])
    weights = weights / weights.sum()
    grid = torch.tensor(list(itertools.product(nodes, nodes)))
    mass = torch.tensor([a * b for a, b in itertools.product(weights, weights)])
    with torch.no_grad():
        each = log_weights(model, grid)
    if samples == 1:
        return float(mass @ each)
    pairs = torch.logaddexp(each[:, None], each[None, :]) - math.log(2)
    return float(mass @ pairs @ mass)


@pytest.mark.parametrize("samples", [1, 2])
def test_the_bound_of_a_hamiltonian_posterior_is_the_integral(samples):
    model = hamiltonian()
    exact = quadrature_bound(model, samples)
    evidence = vf.evaluation.LinearGaussian(
        model.likelihood.decoder.last.weight.detach(),
        model.likelihood.decoder.last.bias.detach(),
        1.0,
    ).log_prob(X[:1])
    assert exact < evidence
    count = 40_000
    with random.stream(7), torch.no_grad():
        log_w = model.terms(X[:1], samples * count).log_weight.view(samples, count)
    each = torch.logsumexp(log_w, 0) - math.log(samples)
    assert abs(each.mean() - exact) < 4 * each.std() / math.sqrt(count)
    # pythae reports Σ w̃ log w instead, which is too high.
    weighted = (torch.softmax(log_w, 0) * log_w).sum(0)
    if samples > 1:
        assert weighted.mean() - exact > 8 * weighted.std() / math.sqrt(count)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_gradient_of_that_bound_by_finite_differences(samples):
    model = hamiltonian()
    parameters = list(model.parameters())

    def loss() -> Tensor:
        with random.stream(5):
            return ImportanceWeighted()(model.terms(X, samples))

    analytic = torch.autograd.grad(loss(), parameters)
    h = 1e-5
    for parameter, gradient in zip(parameters, analytic, strict=True):
        flat, found = parameter.detach().view(-1), gradient.reshape(-1)
        for i in range(flat.numel()):
            centre, values = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = centre + sign * h
                values.append(loss().item())
            flat[i] = centre
            assert abs((values[0] - values[1]) / (2 * h) - found[i].item()) < 1e-7


@pytest.mark.parametrize("activation", ["tanh", "softplus", "gelu"])
def test_the_explicit_gradient_is_that_of_double_backward(activation):
    """The decoder that writes its own vector-Jacobian product against the recorded one; gelu has none."""
    decoder = vf.networks.MLP(2, 4, hidden=(5, 3), activation=activation)
    encoder = vf.networks.MLP(4, hidden=(3,), activation="tanh")
    posterior = Hamiltonian(Gaussian(2, encoder), 3, "free", "both", bound=1.0, initial_step=0.3)
    model = vf.Model(vf.priors.StandardNormal(2), vf.likelihoods.Bernoulli(decoder, 4), posterior)
    x = torch.tensor([[1.0, 0, 1, 1], [0, 1, 0, 0]])
    z = torch.randn(2, 2)
    explicit = LogJoint(model, x).value_and_gradient(z)
    assert (explicit is None) == (activation == "gelu")

    def both(log_joint) -> list[Tensor]:
        with random.stream(8):
            draw = model.posterior(x).draw(2, log_joint=log_joint)
        value = (model.log_joint(draw.z, x) - draw.log_q).mean()
        return [value, *torch.autograd.grad(value, list(model.parameters()))]

    for one, two in zip(
        both(LogJoint(model, x)), both(lambda z: model.log_joint(z, x)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)
