"""Density estimation: a prior fitted to data by maximum likelihood with the same ``fit``."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

import varflow as vf
from varflow import density
from varflow.core.errors import SpecError


def test_log_weight_is_the_log_density():
    prior = vf.priors.flow_prior(12, "maf", length=2)
    model = density(prior, (3, 4))
    x = torch.randn(5, 3, 4)
    terms = model.terms(x, samples=2)
    expected = prior.log_prob(x.flatten(1))
    torch.testing.assert_close(terms.log_weight, expected.expand(2, 5))
    assert model.sample(6).shape == (6, 3, 4)


def test_maf_reaches_the_entropy_of_a_gaussian_table():
    torch.manual_seed(0)
    truth = MultivariateNormal(
        torch.tensor([1.0, -1.0]), scale_tril=torch.tensor([[1.0, 0.0], [0.9, 0.5]])
    )
    data = vf.data.from_tensor(truth.sample((5000,)), protocol="none")
    model = density(vf.priors.flow_prior(2, "maf", length=2, hidden=(32,)), (2,))
    run = vf.fit(
        model, data, steps=1200, batch=256, lr=5e-3, decay="cosine", keep="last", quiet=True
    )
    found = run.evaluate(samples=2)
    nll = found.estimates["nll"]
    assert nll.monte_carlo_error < 1e-6
    assert abs(nll.value - truth.entropy().item()) < 4 * nll.standard_error
    # On the same points the divergence shows far below that error.
    x = data.batch("test", torch.arange(data.sizes["test"])).x
    with torch.no_grad():
        gap = truth.log_prob(x) - run.model.prior.log_prob(x)
    assert gap.mean().item() < 0.02
    assert gap.mean().item() > -4 * gap.std().item() / math.sqrt(len(gap))


def test_a_mixture_finds_both_clusters():
    torch.manual_seed(0)
    x = torch.cat((torch.randn(2000, 2) * 0.3 + 2, torch.randn(2000, 2) * 0.3 - 2))
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.3)) + math.log(2)
    model = density(vf.priors.Mixture(2, components=4), (2,))
    run = vf.fit(model, x, protocol="none", steps=400, batch=256, lr=2e-2, quiet=True)
    nll = run.evaluate(samples=2).estimates["nll"]
    assert abs(nll.value - entropy) < 4 * nll.standard_error + 0.03


def test_discrete_values_are_refused():
    x = (torch.rand(50, 4) < 0.5).float()
    with pytest.raises(SpecError, match="no upper bound"):
        vf.fit(density(vf.priors.Mixture(4), (4,)), x, steps=1, quiet=True)


def test_an_evaluation_says_what_applies_to_a_density_and_nothing_else():
    run = vf.fit("density", epochs=2, quiet=True)
    found = run.evaluate()
    assert list(found.estimates) == ["nll", "bits_per_dim", "aggregated_distance"]
    nll, bits = found.estimates["nll"], found.estimates["bits_per_dim"]
    assert (nll.monte_carlo_error, nll.samples, nll.points) == (0, 1, 250)
    assert "of the data as the model sees them from p(x)" in found.estimates["aggregated_distance"].estimator
    batch = run.dataset.batch("test", torch.arange(250))
    with torch.no_grad():
        log_px = run.model.prior.log_prob(batch.x.flatten(1)).double()
    # Of the dequantized levels, in bins one wide.
    log_px = log_px + batch.ladj.double()
    assert nll.value == pytest.approx(-log_px.mean().item(), rel=1e-6)
    assert nll.standard_error == pytest.approx((log_px.std() / math.sqrt(250)).item(), rel=1e-5)
    exact = -log_px / (64 * math.log(2))
    assert bits.value == pytest.approx(exact.mean().item(), rel=1e-6)
    assert found.notes == []


@pytest.mark.slow
def test_every_family_improves_on_its_base_on_a_table_of_ones_own(tmp_path):
    """A banana in a .csv, from the command's own settings: held-out log-likelihood with its error."""
    g = torch.Generator().manual_seed(1)
    u = torch.randn(3000, 2, generator=g)
    table = torch.stack([u[:, 0], 0.5 * u[:, 1] + u[:, 0].square()], 1)
    path = tmp_path / "banana.csv"
    path.write_text("\n".join(f"{a:.6f},{b:.6f}" for a, b in table.tolist()))
    exact = math.log(2 * math.pi * math.e) + math.log(0.5)
    found = {}
    for prior in ("maf", "spline"):
        run = vf.fit(
            "density", data=str(path), protocol="none", prior=prior, prior_length=3, prior_hidden=32,
            prior_base="normal", prior_defensive=0.0, steps=300, lr=5e-3, decay="cosine", quiet=True,
        )  # fmt: skip
        nll = run.evaluate().estimates["nll"]
        assert nll.points == 300
        start = -run.model.prior.base.log_prob(run.dataset.batch("test", torch.arange(300)).x)
        assert nll.value < start.mean().item() - 1
        assert nll.value > exact - 4 * nll.standard_error
        found[prior] = nll.value
    assert min(found.values()) < exact + 4 * nll.standard_error


def test_hidden_layers_of_a_prior_can_be_counted():
    data = vf.data.from_tensor(torch.randn(40, 3))
    spec = vf.RunSpec().replace(likelihood="identity", prior="maf", prior_hidden=20)
    assert vf.build(spec, data).prior.flow.made.hidden == (20,)
    assert vf.build(spec.replace(prior_layers=2), data).prior.flow.made.hidden == (20, 20)
    assert vf.recipes.find("vlae").spec.prior.prior_hidden == 512


def test_exact_samples_of_a_target_are_fitted_by_maximum_likelihood():
    """The other divergence: KL(p‖q), by exact samples that were not seen and by quadrature. Both modes are held."""
    target = vf.targets.U1()
    with vf.random.stream(0):
        data = target.sample((10_000,))
    model = density(vf.priors.flow_prior(2, "planar", length=8), (2,))
    run = vf.fit(
        model, data, protocol="none", steps=1500, batch=256, lr=2e-2, decay="cosine", quiet=True, threads=1
    )
    nll = run.evaluate().estimates["nll"]
    p, q = target.double(), run.model.prior.double()
    rule = p.rule()
    with torch.no_grad(), vf.random.stream(1):
        log_p, log_q = p.log_density(rule.points), q.log_prob(rule.points)
        mass = (rule.log_weights + log_q).exp()
        exact = ((rule.log_weights + log_p).exp() * (log_p - log_q)).sum().item()
        x = p.sample((20_000,))
        gap = p.log_density(x) - q.log_prob(x)
    assert 0 < exact < 0.1
    assert abs(gap.mean().item() - exact) < 4 * gap.std().item() / math.sqrt(len(gap))
    assert abs(nll.value - p.entropy - exact) < 4 * nll.standard_error
    assert mass.sum().item() == pytest.approx(1, abs=2e-3)
    held = (mass[:, None] * p.mode_probabilities(rule.points)).sum(0)
    torch.testing.assert_close(held, torch.full((2,), 0.5).double(), rtol=0, atol=0.05)
