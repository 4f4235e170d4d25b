"""p(z|c) and p(x|c): flow priors read a context, and every other part refuses one by its name."""

from __future__ import annotations

import math

import pytest
import torch

import varflow as vf
from varflow.core.errors import SpecError


def conditional(features: int, context_features: int) -> vf.priors.Flow:
    flow = vf.flows.MaskedAutoregressive(features, length=2, context_features=context_features)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vf.priors.Flow(flow)


def test_it_is_the_change_of_variables_under_the_context() -> None:
    prior = conditional(3, 2).double()
    z, c = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    e, ladj = prior.flow.inverse(z, c)
    torch.testing.assert_close(prior.log_prob(z, c), vf.priors.StandardNormal(3).log_prob(e) + ladj)
    torch.testing.assert_close(prior.decode(prior.encode(z, c), c), z, atol=1e-6, rtol=0)


def test_it_integrates_to_one_for_every_context() -> None:
    prior = conditional(1, 2).double()
    # z = sinh t reaches ±40,000: how wide p(z|c) is depends on the weights that were drawn.
    t = torch.linspace(-11.3, 11.3, 200_001, dtype=torch.float64)
    z = t.sinh()[:, None]
    for c in torch.randn(5, 2, dtype=torch.float64):
        total = torch.trapezoid(prior.log_prob(z, c.expand(len(z), 2)).exp() * t.cosh(), t)
        assert total.item() == pytest.approx(1, abs=1e-6)


def test_draws_follow_the_context() -> None:
    prior = conditional(2, 1)
    c = torch.tensor([[-2.0], [2.0]])
    draws = prior.sample((4000, 2), c)
    assert draws.shape == (4000, 2, 2)
    alone = prior.sample((4000,), c[1])
    gap = (draws[:, 1].mean(0) - alone.mean(0)).abs()
    # Five standard errors of the difference of two means of 4,000 draws.
    assert bool((gap < 5 * draws[:, 1].std(0) * math.sqrt(2 / 4000)).all())


def test_a_conditional_density_reaches_the_known_one() -> None:
    """x|c ~ N((c, −c), diag(1, ½)²): −log p(x|c) comes to its entropy, which no density of x alone reaches."""
    c = torch.randn(4000, 1)
    scale = torch.tensor([1.0, 0.5])
    x = torch.cat([c, -c], 1) + scale * torch.randn(4000, 2)
    model = vf.density(vf.priors.Flow(vf.flows.MaskedAutoregressive(2, length=1, context_features=1)), 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(400):
        rows = torch.arange(256) + 256 * (step % 14)
        loss = -model.terms(x[rows], context=c[rows]).log_weight.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.terms(x[3584:], context=c[3584:]).log_weight[0]
    entropy = math.log(2 * math.pi * math.e) + scale.log().sum().item()
    error = found.std().item() / math.sqrt(len(found))
    # Four standard errors of the held-out rows, and what 400 updates leave.
    assert abs(-found.mean().item() - entropy) < 4 * error + 0.05


@pytest.mark.parametrize(
    "prior",
    [
        vf.priors.StandardNormal(2),
        vf.priors.Mixture(2, components=3),
        vf.priors.Gaussians(2),
        vf.priors.flow_prior(2, "maf", length=1),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_a_prior_without_a_context_refuses_one_by_its_name(prior: vf.priors.Prior) -> None:
    with pytest.raises(SpecError, match=rf"context: the prior {type(prior).__name__} reads none"):
        prior.log_prob(torch.zeros(3, 2), torch.zeros(3, 1))
    with pytest.raises(SpecError, match=rf"context: the prior {type(prior).__name__} reads none"):
        prior.sample((3,), torch.zeros(3, 1))


def test_a_vamp_prior_refuses_one_and_takes_its_components_under_another_name() -> None:
    prior = vf.priors.Vamp(2, (6,), 3)
    prior.bind(vf.posteriors.Gaussian(2, vf.networks.MLP(6, hidden=(4,))))
    z = torch.randn(4, 2)
    torch.testing.assert_close(prior.log_prob(z, q=prior.conditional()), prior.log_prob(z))
    with pytest.raises(SpecError, match="context: the prior Vamp reads none"):
        prior.log_prob(z, torch.zeros(4, 1))


def test_a_missing_context_is_named() -> None:
    with pytest.raises(SpecError, match=r"context: missing; .* 2 context features"):
        conditional(3, 2).log_prob(torch.zeros(4, 3))


def test_a_prior_alone_may_read_the_context() -> None:
    """p(x|c) = ∫ p(x|z) p(z|c) dz."""
    likelihood = vf.likelihoods.Bernoulli(vf.networks.MLP(2, 6, hidden=(4,)), (6,))
    posterior = vf.posteriors.Gaussian(2, vf.networks.MLP(6, hidden=(4,)))
    model = vf.Model(conditional(2, 1), likelihood, posterior)
    x, c = torch.zeros(3, 6), torch.zeros(3, 1)
    terms = model.terms(x, context=c)
    torch.testing.assert_close(terms.log_prior, model.prior.log_prob(terms.z, c))
    torch.testing.assert_close(terms.log_likelihood, likelihood.log_prob(x, terms.z))
    with pytest.raises(SpecError, match=r"context: missing; this model is p\(x\|c\)"):
        model.terms(x)
