"""The streamed estimate: against brute force, independent of the memory, within it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import varflow as vf
from varflow.core import random
from varflow.core.errors import NonFiniteError, ShapeError, SpecError
from varflow.evaluation import Importance, LinearGaussian, importance_sample, pareto_k, quadrature
from varflow.evaluation import importance as room
from varflow.evaluation.memory import COPIES, rows_within

from .conftest import tiny


def same(a: Importance, b: Importance, atol: float) -> None:
    for f in fields(Importance):
        one, two = getattr(a, f.name), getattr(b, f.name)
        torch.testing.assert_close(one, two, rtol=0, atol=atol, equal_nan=True, msg=f.name)


def brute_force_bound(model: vf.Model, x: torch.Tensor, samples: int) -> float:
    """E log 1/K Σ w_k over all multisets of K Gauss–Hermite nodes of the one latent."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = weights / weights.sum()
    with torch.no_grad(), random.use(random.Replay([torch.tensor(nodes)[:, None, None]])):
        log_w = model.terms(x[None], len(nodes)).log_weight[:, 0].numpy()
    chosen = np.array(list(itertools.combinations_with_replacement(range(len(nodes)), samples)))
    orders = [
        math.factorial(samples) / math.prod(math.factorial(n) for n in Counter(row).values())
        for row in chosen.tolist()
    ]
    probability = np.array(orders) * weights[chosen].prod(1)
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    bounds = np.logaddexp.reduce(log_w[chosen], axis=1) - math.log(samples)
    return float(probability @ bounds)


@pytest.mark.parametrize("samples", [1, 2, pytest.param(5, marks=pytest.mark.slow)])
def test_the_bound_equals_brute_force(binary, samples):
    model, points = tiny(latent=1), 8000
    expected = brute_force_bound(model, binary[0], samples)
    found = importance_sample(model, binary[:1].expand(points, -1), samples).log_px
    error = found.std() / math.sqrt(points)
    assert abs(found.mean() - expected) < 4 * error
    # The bounds of neighbouring K are told apart at this precision.
    assert brute_force_bound(model, binary[0], samples + 1) - expected > 4 * error or samples == 5


@pytest.mark.parametrize("latent", [1, 2])
def test_many_samples_reach_the_quadrature(binary, latent):
    model, x = tiny(latent), binary[:5]
    found = importance_sample(model, x, 20_000)
    gap = found.log_px - quadrature(model, x)
    assert (gap.abs() < 4 * found.log_px_variance.sqrt()).all()
    assert (found.elbo < quadrature(model, x)).all()


@pytest.mark.parametrize("samples", [1, 2, 24, 25, 64, 65, 131, 200])
@pytest.mark.parametrize("flow", [None, "planar"])
def test_streaming_equals_all_samples_at_once(binary, samples, flow):
    model, x = tiny(flow=flow, amortized=flow is not None), binary[:5]
    found = importance_sample(model, x, samples, seed=3)
    terms = []
    with torch.no_grad():
        for number, start in enumerate(range(0, samples, room.SAMPLES)):
            with random.stream(3, number):
                terms.append(model.terms(x, min(room.SAMPLES, samples - start)))
    log_w = torch.cat([t.log_weight for t in terms])
    weights = (log_w - log_w.amax(0)).exp()
    expected = {
        "log_px": log_w.logsumexp(0) - math.log(samples),
        "elbo": log_w.mean(0),
        "elbo_variance": log_w.var(0) / samples if samples > 1 else torch.full((5,), math.nan),
        "log_likelihood": torch.cat([t.log_likelihood for t in terms]).mean(0),
        "log_prior": torch.cat([t.log_prior for t in terms]).mean(0),
        "log_q": torch.cat([t.log_q for t in terms]).mean(0),
        "kl": torch.cat([t.kl for t in terms]).mean(0),
        "ladj": torch.cat([t.draw.ladj for t in terms]).mean(0),
        "ess": weights.sum(0).square() / weights.square().sum(0) / samples,
        "khat": pareto_k(log_w.T.contiguous()),
    }
    if samples > 1:
        expected["log_px_variance"] = weights.var(0) / weights.mean(0).square() / samples
    for name, value in expected.items():
        torch.testing.assert_close(
            getattr(found, name), value.double(), rtol=0, atol=1e-9, equal_nan=True, msg=name
        )
    assert found.log_px.dtype == torch.float64


@pytest.mark.parametrize("memory", [3000, 30_000, 300_000])
@pytest.mark.parametrize("samples", [1, 70])
def test_the_memory_bound_does_not_change_the_result(binary, memory, samples):
    model, x = tiny(flow="radial"), binary[:140]
    same(importance_sample(model, x, samples), importance_sample(model, x, samples, memory), 1e-9)


def test_float32_agrees_too(binary):
    model, x = tiny().float(), binary[:10].float()
    whole, sliced = importance_sample(model, x, 100), importance_sample(model, x, 100, memory=3000)
    torch.testing.assert_close(whole.log_px, sliced.log_px, rtol=0, atol=1e-5)


def test_results_do_not_depend_on_the_rest_of_the_data_set(binary):
    model = tiny()
    whole = importance_sample(model, binary, 10)
    parts = [importance_sample(model, binary[s : s + 128], 10, first=s) for s in (0, 128, 256)]
    same(whole, Importance.concatenate(parts), 1e-12)


class _Tracker(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel() * out.element_size())
        return out


def wide(events: int = 4096) -> vf.Model:
    return vf.Model(
        vf.priors.StandardNormal(2),
        vf.likelihoods.Bernoulli(vf.networks.MLP(2, events, hidden=(4,)), events),
        vf.posteriors.Gaussian(2, vf.networks.MLP(events, hidden=(4,))),
    )


@pytest.mark.parametrize("samples", [3, 97, 500])
def test_memory_stays_within_its_bound_for_any_number_of_samples(samples):
    memory = 4 * 2**20
    with _Tracker() as tracker:
        importance_sample(wide(), torch.ones(5, 4096), samples, memory)
    assert tracker.largest * COPIES <= memory
    with _Tracker() as tracker:
        importance_sample(wide(), torch.ones(5, 4096), samples)
    assert tracker.largest * COPIES > memory or samples == 3


def test_rows_follow_the_largest_activation_of_the_decoder():
    x = torch.ones(1, 4096)
    model = wide()
    draw = model.posterior(x).draw(2)
    row = 4096 * 4
    assert rows_within(COPIES * row * 7, model, x, draw) == 7
    with pytest.raises(SpecError, match=r"memory: was 1000 bytes; decoding one latent takes about"):
        rows_within(1000, model, x, draw)


def test_the_exact_posterior_has_no_error():
    exact = LinearGaussian(torch.tensor([[0.75]]).double(), torch.zeros(1).double(), 0.5)
    decoder, encoder = vf.networks.MLP(1, 1, hidden=()), nn.Identity()
    encoder.features = 1
    model = vf.Model(
        vf.priors.StandardNormal(1),
        vf.likelihoods.Gaussian(decoder, 1, scale=exact.scale),
        vf.posteriors.Gaussian(1, encoder),
    ).double()
    x = torch.tensor([[0.4], [-2.0]]).double()
    _, covariance = exact.posterior(x)
    (linear,) = (m for m in decoder.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(exact.weight)
        linear.bias.zero_()
        model.posterior.moments.weight.copy_(torch.cat([covariance * 0.75 / 0.25, 0 * covariance]))
        model.posterior.moments.bias.copy_(torch.cat([0 * covariance, covariance.log() / 2])[:, 0])
    found = importance_sample(model, x, 100)
    torch.testing.assert_close(found.log_px, exact.log_prob(x), rtol=0, atol=1e-12)
    assert found.elbo_variance.max() < 1e-24
    assert found.log_px_variance.max() < 1e-12
    assert (found.khat == -math.inf).all()
    torch.testing.assert_close(found.ess, torch.ones(2).double(), rtol=0, atol=1e-9)


def test_the_monte_carlo_error_is_the_spread_over_seeds(binary):
    model, x = tiny(), binary[:40]
    runs = [importance_sample(model, x, 400, seed=seed) for seed in range(60)]
    spread = torch.stack([r.log_px.mean() for r in runs]).std()
    claimed = torch.stack([r.log_px_variance.sum().sqrt() / 40 for r in runs]).mean()
    # A standard deviation from 60 values has a relative error of 1/√118.
    assert abs(spread / claimed - 1) < 4 / math.sqrt(118)


def test_mode_and_random_state_are_left_alone(binary):
    model = tiny().train()
    before = torch.get_rng_state()
    importance_sample(model, binary[:3], 5)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("part", ["likelihood", "prior"])
def test_nan_names_its_term(binary, part):
    model = tiny()
    inner = getattr(model, part).log_prob
    getattr(model, part).log_prob = lambda *args: math.nan * inner(*args)
    with pytest.raises(NonFiniteError, match=f"log_{part}: was NaN at point 0"):
        importance_sample(model, binary[:3], 5)
    assert model.training


def test_a_nan_latent_is_the_posteriors_doing(binary):
    model = tiny()
    with torch.no_grad():
        model.posterior.moments.bias.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="log_q: was NaN at point 0"):
        importance_sample(model, binary[:3], 5)


def test_terms_whose_sum_overflows_are_refused(binary):
    model = tiny()
    model.likelihood.log_prob = lambda x, z: torch.full(z.shape[:-1], 1.5e308, dtype=z.dtype)
    model.prior.log_prob = lambda z: torch.full(z.shape[:-1], 1.5e308, dtype=z.dtype)
    with pytest.raises(NonFiniteError, match="log_weight: was infinite at point 0"):
        importance_sample(model, binary[:3], 5)


def test_one_bad_point_is_named(binary):
    model = tiny()
    inner = model.likelihood.log_prob

    def log_prob(x, z):
        return torch.where(x[:, 0] == 7, math.nan, inner(x, z))

    model.likelihood.log_prob = log_prob
    x = binary[:140].clone()
    x[133, 0] = 7
    with pytest.raises(NonFiniteError, match="log_likelihood: was NaN at point 133"):
        importance_sample(model, x, 5, memory=3000)


def test_impossible_points_score_minus_infinity(binary):
    model = tiny()
    inner = model.likelihood.log_prob
    model.likelihood.log_prob = lambda x, z: torch.where(x[:, 0] == 1, -math.inf, inner(x, z))
    found = importance_sample(model, binary[:20], 50)
    impossible = binary[:20, 0] == 1
    assert (found.log_px[impossible] == -math.inf).all()
    assert (found.ess[impossible] == 0).all()
    assert (found.khat[impossible] == math.inf).all()
    assert found.log_px[~impossible].isfinite().all()


def test_bad_arguments_are_refused(binary):
    model = tiny()
    with pytest.raises(SpecError, match="samples: was 0"):
        importance_sample(model, binary, 0)
    with pytest.raises(ShapeError, match="at least one example"):
        importance_sample(model, binary[:0])
    with pytest.raises(SpecError, match="first: was 5"):
        importance_sample(model, binary, 3, first=5)
    with pytest.raises(SpecError, match="memory: was 10 bytes"):
        importance_sample(model, binary, 3, memory=10)


def test_progress_counts_points(binary):
    seen = []
    importance_sample(tiny(), binary, 2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(128, 300), (256, 300), (300, 300)]
