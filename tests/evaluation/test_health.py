"""Active units and the distance of the aggregated posterior, on cases with known answers."""

from __future__ import annotations

import math

import pytest
import torch

import varflow as vf
from varflow.core.errors import ShapeError, SpecError
from varflow.evaluation import active_units, aggregated_distance, latents
from varflow.evaluation.health import _energy
from varflow.evaluation.memory import SlicedJoint
from varflow.priors.prior import Prior

from .conftest import tiny


def test_gaussian_moments_are_exact(binary):
    model = tiny(latent=3)
    found = latents(model, [binary[:200], binary[200:]])
    q = model.posterior(binary)
    torch.testing.assert_close(found.mean, q.mean.detach())
    torch.testing.assert_close(found.variance, (2 * q.log_scale).exp().detach())
    assert found.samples == 0
    assert not found.noise.any()
    assert found.draw.shape == (300, 3)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.log_scale.exp()), torch.distributions.Normal(0, 1)
    )
    torch.testing.assert_close(found.kl, kl.detach())


def test_kl_by_dimension_is_not_claimed_for_a_flow(binary):
    found = latents(tiny(flow="radial"), [binary], samples=7)
    assert found.kl is None
    assert found.samples == 7
    torch.testing.assert_close(found.noise, found.variance / 7)


def test_sampled_means_approach_the_exact_ones(binary):
    """An identity flow makes the posterior the same Gaussian, but its moments are sampled."""
    plain, flowed = tiny(), tiny(flow="radial")
    flowed.load_state_dict(plain.state_dict(), strict=False)
    vf.random.generator(0, "unused")
    with torch.no_grad():
        for parameter in flowed.posterior.flow.parameters():
            parameter.zero_()
    exact, sampled = latents(plain, [binary]), latents(flowed, [binary], samples=400)
    error = (sampled.mean - exact.mean) / sampled.noise.sqrt()
    assert error.square().mean().item() == pytest.approx(1, abs=4 * math.sqrt(2 / error.numel()))


def test_noise_of_sampled_means_is_no_activity(binary):
    """A posterior that ignores x has no active unit, however noisy its sampled means are."""
    model = tiny(flow="radial")
    with torch.no_grad():
        model.posterior.moments.weight.zero_()
    found = latents(model, [binary], samples=10)
    assert found.mean.var(0).min() > 0.01
    units = active_units(found)
    assert (units.activity.abs() < 4 * units.standard_error).all()
    assert units.activity.abs().max() < 0.5 * found.mean.var(0).max()


def test_activity_of_known_means():
    torch.manual_seed(0)
    mean = torch.randn(500, 3, dtype=torch.float64) * torch.tensor([1.0, 0.2, 0.001])
    zero = torch.zeros_like(mean)
    found = vf.evaluation.health.Latents(mean, zero + 1, zero, mean, None, 0)
    units = active_units(found)
    assert units.count == 2
    torch.testing.assert_close(units.activity, mean.var(0))
    assert units.uncertain < 1e-3
    assert units.uncertain_monte_carlo == 0
    # The standard error of a variance of normal values is σ²√(2/N).
    claimed = units.standard_error / units.activity
    torch.testing.assert_close(
        claimed, torch.full_like(claimed, math.sqrt(2 / 500)), rtol=0.2, atol=0
    )


def test_a_unit_at_the_threshold_makes_the_count_uncertain():
    mean = 0.1 * torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.2, 1.2], dtype=torch.float64)[:, None]
    zero = torch.zeros_like(mean)
    found = vf.evaluation.health.Latents(mean, zero, zero, mean, None, 0)
    units = active_units(found, threshold=mean.var(0).item())
    assert units.count == 0
    assert units.uncertain == pytest.approx(0.5)


def test_energy_distance_equals_its_definition():
    torch.manual_seed(0)
    a, b = torch.randn(7, 3).double(), torch.randn(5, 3).double() + 1
    between = sum((x - y).norm() for x in a for y in b) / 35
    within_a = sum((x - y).norm() for x in a for y in a) / 42
    within_b = sum((x - y).norm() for x in b for y in b) / 20
    for memory in (1, 2**20):
        distance, _, _ = _energy(a, b, memory)
        assert distance == pytest.approx((2 * between - within_a - within_b).item(), rel=1e-12)


@pytest.mark.parametrize("latent", [1, 2, 40])
def test_a_posterior_that_is_the_prior_scores_noise_and_another_does_not(latent):
    prior = vf.priors.StandardNormal(latent)
    torch.manual_seed(0)
    z = torch.randn(600, latent)
    same = aggregated_distance(z, prior)
    assert abs(same.distance - same.noise_mean) < 4 * math.sqrt(1.1) * same.noise
    assert abs(same.noise_mean) < 4 * same.noise / math.sqrt(same.repetitions)
    other = aggregated_distance(1.5 * z + 0.5, prior)
    assert other.distance > 10 * other.noise
    torch.testing.assert_close(other.mean, (1.5 * z + 0.5).double().mean(0))


def test_the_distance_of_shifted_normals_in_one_dimension():
    """2E|X − Y| − E|X − X′| − E|Y − Y′| is known for normals through the folded normal mean."""
    shift = 0.8
    normal = torch.distributions.Normal(0.0, 1.0)
    at = torch.tensor(shift / math.sqrt(2))
    folded = math.sqrt(2) * (
        math.sqrt(2 / math.pi) * math.exp(-(at**2) / 2) + at * (1 - 2 * normal.cdf(-at))
    )
    expected = 2 * folded.item() - 2 * 2 / math.sqrt(math.pi)
    torch.manual_seed(0)
    found = aggregated_distance(torch.randn(2000, 1) + shift, vf.priors.StandardNormal(1))
    error = math.hypot(found.standard_error, found.monte_carlo_error)
    assert abs(found.distance - expected) < 4 * error
    assert error < 0.2 * expected


class Grid(Prior):
    """Codes 0 … 3 on a 2×2 grid."""

    event_shape = (2, 2)

    def log_prob(self, z, context=None):
        return torch.full(z.shape[:-2], -4 * math.log(4))

    def sample(self, shape=()):
        u = vf.random.uniform((*shape, 2, 2), "prior")
        return (4 * u).long()


def test_any_prior_that_can_be_sampled_will_do():
    torch.manual_seed(0)
    codes = torch.randint(0, 4, (400, 4))
    found = aggregated_distance(codes, Grid())
    assert abs(found.distance) < 5 * found.noise
    assert aggregated_distance(codes.clamp(max=1), Grid()).distance > 10 * found.noise


def test_large_sets_are_cut_and_small_ones_refused():
    prior = vf.priors.StandardNormal(2)
    assert aggregated_distance(torch.randn(50, 2), prior, limit=20).points == 20
    with pytest.raises(ShapeError, match="at least two points"):
        aggregated_distance(torch.randn(1, 2), prior)
    with pytest.raises(SpecError, match="repetitions: was 1"):
        aggregated_distance(torch.randn(5, 2), prior, repetitions=1)
    with pytest.raises(SpecError, match="samples: was 1"):
        latents(tiny(), [torch.zeros(3, 6).double()], samples=1)
    with pytest.raises(ShapeError, match="one point"):
        active_units(latents(tiny(), [torch.zeros(1, 6).double()]))


def test_memory_bounds_a_posterior_that_follows_gradients(binary, monkeypatch):
    """Draws of a Hamiltonian posterior decode; a bound on memory bounds how many at once, and changes nothing."""
    plain = tiny()
    model = vf.Model(
        plain.prior, plain.likelihood, vf.posteriors.Hamiltonian(plain.posterior, 2)
    ).double()
    inner, rows = SlicedJoint._at, []

    def counted(joint, z, points):
        rows.append(z[..., 0].numel())
        return inner(joint, z, points)

    monkeypatch.setattr(SlicedJoint, "_at", counted)
    free = latents(model, [binary[:40]], samples=6)
    assert max(rows) == 240
    rows.clear()
    bound = latents(model, [binary[:40]], samples=6, memory=2**13)
    assert 1 < max(rows) < 60
    torch.testing.assert_close(bound.mean, free.mean)
    torch.testing.assert_close(bound.draw, free.draw)
    with pytest.raises(SpecError, match="memory: was 10 bytes"):
        latents(model, [binary[:40]], samples=6, memory=10)
    # Through `evaluate`, whose health has 50 samples: every call stays within the bound.
    data = vf.data.from_tensor(binary, levels=2).to("cpu", torch.float64)
    rows.clear()
    vf.evaluation.evaluate(model, data, samples=5, limit=20, memory=2**13)
    assert max(rows) < 60
