"""The linear-Gaussian model and quadrature against independent answers."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

import varflow as vf
from varflow.core.errors import ShapeError, SpecError
from varflow.evaluation import LinearGaussian, quadrature

from .conftest import tiny


def linear(latent: int, events: int = 4) -> LinearGaussian:
    torch.manual_seed(0)
    weight = torch.randn(events, latent, dtype=torch.float64)
    return LinearGaussian(weight, torch.randn(events, dtype=torch.float64), 0.7)


@pytest.mark.parametrize("latent", [1, 2, 6])
def test_marginal_and_posterior_satisfy_bayes(latent):
    exact = linear(latent)
    x = torch.randn(5, 4, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    marginal = MultivariateNormal(exact.bias, exact.weight @ exact.weight.T + 0.49 * eye)
    torch.testing.assert_close(exact.log_prob(x), marginal.log_prob(x), rtol=0, atol=1e-11)
    z = torch.randn(5, latent, dtype=torch.float64)
    mean, covariance = exact.posterior(x)
    prior = MultivariateNormal(torch.zeros_like(z), torch.eye(latent, dtype=torch.float64))
    noise = MultivariateNormal(z @ exact.weight.T + exact.bias, 0.49 * eye)
    joint = prior.log_prob(z) + noise.log_prob(x)
    posterior = MultivariateNormal(mean, covariance).log_prob(z)
    torch.testing.assert_close(joint - posterior, exact.log_prob(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("latent", [1, 2])
def test_quadrature_reaches_the_exact_answer(latent):
    exact = linear(latent)
    decoder = vf.networks.MLP(latent, 4, hidden=())
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(exact.weight if "weight" in name else exact.bias)
    model = vf.Model(
        vf.priors.StandardNormal(latent),
        vf.likelihoods.Gaussian(decoder, 4, scale=0.7),
        vf.posteriors.Gaussian(latent, vf.networks.MLP(4, hidden=(3,))),
    ).double()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(exact.weight if "weight" in name else exact.bias)
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(quadrature(model, x), exact.log_prob(x), rtol=0, atol=1e-10)


def test_a_normalised_likelihood_sums_to_one():
    events = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    total = quadrature(tiny(latent=2), events, nodes=401).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-10)


def test_what_quadrature_cannot_do_is_refused(binary):
    with pytest.raises(SpecError, match="model: has 3 latents"):
        quadrature(tiny(latent=3), binary[:1])
    with pytest.raises(SpecError, match="nodes: was 10"):
        quadrature(tiny(latent=1), binary[:1], nodes=10)
    with pytest.raises(SpecError, match="nodes: 5 are too few"):
        quadrature(tiny(latent=1), binary[:1], nodes=5)


def test_bad_linear_models_are_refused():
    with pytest.raises(ShapeError, match=r"weight: shape \(3,\)"):
        LinearGaussian(torch.zeros(3), torch.zeros(3), 1.0)
    with pytest.raises(SpecError, match="scale: was 0"):
        LinearGaussian(torch.zeros(3, 1), torch.zeros(3), 0.0)
