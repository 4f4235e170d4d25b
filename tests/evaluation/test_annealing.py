"""Annealed importance sampling: unbiased weights, resumed bit for bit, and defects that would show."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

import varflow as vf
from varflow import hmc
from varflow.core import random
from varflow.core.errors import NonFiniteError, ShapeError, SpecError
from varflow.evaluation import Annealed, Annealing, anneal, quadrature, transitions
from varflow.evaluation import annealing as room

from .conftest import tiny

SHORT = Annealing(chains=8, temperatures=6, leapfrog=2, warmup=20, chunk=4)


def score(model: vf.Model, x: torch.Tensor, settings: Annealing, log_px=None) -> float:
    """How many standard errors the mean of w/p(x) is from 1."""
    log_px = quadrature(model, x) if log_px is None else log_px
    ratio = (anneal(model, x, settings).log_weights - log_px).exp()
    return float((ratio.mean() - 1) / (ratio.std() / math.sqrt(ratio.numel())))


def posteriors() -> dict[str, vf.Model]:
    models = {"gaussian": tiny(), "one latent": tiny(latent=1)}
    models["planar"] = tiny(flow="planar", amortized=True)
    models["iaf"] = tiny(flow="iaf", amortized=True)
    inner = tiny()
    models["hamiltonian"] = vf.Model(
        inner.prior, inner.likelihood, vf.posteriors.Hamiltonian(inner.posterior, steps=2)
    ).double()
    mixture = vf.priors.Mixture(2, components=3).double()
    models["mixture prior"] = vf.Model(mixture, inner.likelihood, inner.posterior)
    return models


@pytest.mark.parametrize("start", ["posterior", "prior"])
@pytest.mark.parametrize("name", posteriors())
def test_weights_are_unbiased(binary, name, start):
    settings = Annealing(1000, 5, 2, start=start, warmup=20)
    assert abs(score(posteriors()[name], binary[:6], settings)) < 4


@pytest.mark.parametrize("schedule", ["sigmoidal", "geometric", "linear"])
def test_every_schedule_goes_from_the_start_to_the_end(binary, schedule):
    settings = Annealing(2000, 4, 2, schedule=schedule, start="prior", warmup=20)
    betas = settings.betas
    assert (betas[0], betas[-1], len(betas)) == (0, 1, 5)
    assert all(b > a for a, b in pairwise(betas))
    assert abs(score(tiny(), binary[:4], settings)) < 4


def test_a_linear_gaussian_model_with_many_latents():
    torch.manual_seed(3)
    model, exact = linear_gaussian(torch.randn(8, 5, dtype=torch.float64), 0.6)
    x = 2 * torch.randn(4, 8, dtype=torch.float64)
    settings = Annealing(400, 40, 3, start="prior", warmup=60)
    assert abs(score(model, x, settings, exact.log_prob(x))) < 4
    found = anneal(model, x, settings)
    assert ((found.log_px - exact.log_prob(x)).abs() < 5 * found.log_px_variance.sqrt()).all()


def linear_gaussian(weight: torch.Tensor, scale: float):
    """A model with p(x|z) = N(Wz, σ²I), and its exact answers; the posterior is untrained."""
    events, latent = weight.shape
    exact = vf.evaluation.LinearGaussian(weight, torch.zeros(events).double(), scale)
    decoder = vf.networks.MLP(latent, events, hidden=())
    model = vf.Model(
        vf.priors.StandardNormal(latent),
        vf.likelihoods.Gaussian(decoder, events, scale=scale),
        vf.posteriors.Gaussian(latent, vf.networks.MLP(events, hidden=(4,))),
    ).double()
    (linear,) = (m for m in decoder.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.zero_()
    return model, exact


def test_one_temperature_is_importance_sampling(binary):
    model, x = tiny(), binary[:5]
    found = anneal(model, x, Annealing(7, 1))
    with torch.no_grad(), random.stream(random.derive(0, "annealing", 0), 0):
        q = model.posterior(x)
        z = q.mean + q.log_scale.exp() * random.normal((7, 5, 2), "start", dtype=torch.float64)
        expected = model.log_joint(z, x) - q.log_prob(z)
    torch.testing.assert_close(found.log_weights, expected, rtol=0, atol=1e-12)
    assert found.acceptance.isnan().all()
    assert found.steps.shape == (0, 5)


def test_more_temperatures_are_tighter(binary):
    model, x = tiny(), binary[:20]
    exact = quadrature(model, x).mean()
    bounds = [
        anneal(model, x, Annealing(50, t, 3, start="prior", warmup=40)).log_weights.mean()
        for t in (1, 5, 40)
    ]
    gaps = [float(exact - bound) for bound in bounds]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


# -- defects, put in one at a time -----------------------------------------------------------------


def _accept(change, z, proposed, log_ratio, purpose="acceptance"):
    return _right_accept(z, proposed, change(log_ratio), purpose)


_right_accept = hmc.accept
_right_transition = transitions.transition
_right_normal = random.normal

HARD = Annealing(4000, 12, 2, acceptance=0.4, warmup=60)


def _every_proposal_moves(patch):
    def moves(z, proposed, log_ratio, purpose="acceptance"):
        right = _right_accept(z, proposed, log_ratio, purpose)
        return right._replace(z=proposed, moved=torch.ones_like(right.moved))

    patch.setattr(hmc, "accept", moves)


def _half_ratio(patch):
    patch.setattr(hmc, "accept", partial(_accept, lambda ratio: 0.5 * ratio))


def _without_kinetic_energy(patch):
    leapfrog = hmc.leapfrog

    def forgets(z, rho, *rest):
        # A last momentum as large as the first: the ratio sees the change of log f alone.
        return leapfrog(z, rho, *rest)._replace(rho=rho)

    patch.setattr(hmc, "leapfrog", forgets)


def _a_temperature_is_missing(patch):
    right = Annealing.betas.fget
    patch.setattr(Annealing, "betas", property(lambda self: [*right(self)[:-1], 0.9]))


def _the_next_temperature_moves(patch):
    def early(path, z, at, beta, *rest):
        betas = HARD.betas
        return _right_transition(path, z, at, betas[betas.index(beta) + 1], *rest)

    patch.setattr(room, "transition", early)


def _momenta_stand_still(patch):
    def normal(shape, purpose, **options):
        drawn = _right_normal(shape, purpose, **options)
        return 0 * drawn if purpose == "momentum" else drawn

    patch.setattr(random, "normal", normal)


def _stale_gradients(patch):
    patch.setattr(transitions.Densities, "replaced", lambda self, moved, other: other)


DEFECTS = [
    _every_proposal_moves, _half_ratio, _without_kinetic_energy, _a_temperature_is_missing,
    _the_next_temperature_moves, _momenta_stand_still, _stale_gradients,
]  # fmt: skip


def test_the_sound_code_passes_where_defects_are_sought(binary):
    assert abs(score(tiny(), binary[:4], HARD)) < 4


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda f: f.__name__.strip("_"))
def test_a_defect_is_caught(binary, monkeypatch, defect):
    defect(monkeypatch)
    assert not abs(score(tiny(), binary[:4], HARD)) < 5


# -- what users meet -------------------------------------------------------------------------------


def test_a_transition_leaves_its_density_alone(binary):
    model, x = tiny(), binary[:1]
    start, log_scale = transitions.starts(model, x, "prior")
    path = transitions.GeometricPath(model, x, start, log_scale, 2**30)
    # Exact samples of f_β at β = 0 are the prior's; twenty transitions later they still are.
    with torch.no_grad(), random.stream(1):
        z = start.draw(20_000)
        at = path.at(z)
        for _ in range(20):
            z, at, _ = transitions.transition(path, z, at, 0.0, torch.zeros(1, dtype=z.dtype), 3)
    assert z.mean(0).abs().max() < 4 / math.sqrt(20_000)
    assert (z.var(0) - 1).abs().max() < 4 * math.sqrt(2 / 20_000)
    again = path.at(z)
    for kept, fresh in zip(at, again, strict=True):
        torch.testing.assert_close(kept, fresh, rtol=0, atol=1e-12)


def test_a_transition_costs_one_gradient_a_step(binary, monkeypatch):
    calls = []
    inner = transitions.GeometricPath.at
    monkeypatch.setattr(transitions.GeometricPath, "at", lambda self, z: calls.append(1) or inner(self, z))
    anneal(tiny(), binary[:2], Annealing(3, 11, 4, warmup=10, chunk=2))
    # Two starts, ten transitions of the warm-up, ten of the chains.
    assert len(calls) == 2 + 4 * (10 + 10)


def test_acceptance_follows_its_target(binary):
    for target in (0.5, 0.65):
        settings = Annealing(16, 20, 4, acceptance=target)
        found = anneal(tiny(latent=6), binary[:8], settings)
        assert found.acceptance.mean() == pytest.approx(target, abs=0.06)
        assert found.steps.shape == (10, 8)


def test_interrupted_and_resumed_gives_the_same_numbers(binary, tmp_path, monkeypatch):
    model, x = tiny(flow="planar"), binary[:10]
    whole = anneal(model, x, SHORT)

    def interrupt(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        anneal(model.train(), x, SHORT, folder=tmp_path, progress=interrupt)
    assert model.training
    assert len(list(tmp_path.glob("ais-*.npz"))) == 2
    runs = []
    inner = room._Chunk.run
    monkeypatch.setattr(
        room._Chunk, "run", lambda self, *a: runs.append(self.first) or inner(self, *a)
    )
    resumed = anneal(model, x, SHORT, folder=tmp_path)
    assert runs == [8]
    for name in ("log_weights", "acceptance", "steps"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)), name
    again = anneal(model, x, SHORT, folder=tmp_path)
    assert runs == [8]
    assert torch.equal(again.log_weights, whole.log_weights)
    # Damage, other weights, another seed, other data: computed again.
    next(iter(tmp_path.glob("ais-*.npz"))).write_bytes(b"PK\x03\x04 not an archive")
    anneal(model, x, SHORT, folder=tmp_path)
    assert len(runs) == 2
    with torch.no_grad():
        next(model.likelihood.parameters()).add_(0.1)
    changed = anneal(model, x, SHORT, folder=tmp_path)
    assert len(runs) == 5
    assert not torch.equal(changed.log_weights, whole.log_weights)
    anneal(model, x, SHORT, folder=tmp_path, seed=1)
    anneal(model, 1 - x, SHORT, folder=tmp_path)
    assert len(runs) == 11


def test_memory_bounds_decoding_and_changes_nothing(binary):
    model, x = tiny(), binary[:4]
    whole = anneal(model, x, SHORT)
    tight = anneal(model, x, SHORT, memory=4000)
    torch.testing.assert_close(tight.log_weights, whole.log_weights, rtol=0, atol=1e-9)
    largest = []
    model.likelihood.value_and_gradient = lambda x, z: None
    inner = model.likelihood.decoder.forward
    model.likelihood.decoder.forward = lambda z: largest.append(z[..., 0].numel()) or inner(z)
    anneal(model, x, SHORT, memory=4000)
    assert max(largest) < 10
    with pytest.raises(SpecError, match="memory: was 10 bytes; the gradient of one latent takes"):
        anneal(model, x, SHORT, memory=10)


def test_points_do_not_depend_on_later_chunks(binary):
    model = tiny()
    some, more = anneal(model, binary[:4], SHORT), anneal(model, binary[:9], SHORT)
    assert torch.equal(some.log_weights, more.log_weights[:, :4])
    assert not torch.equal(more.log_weights[:, :4], more.log_weights[:, 4:8])


def test_one_image_and_one_chain_work(binary):
    found = anneal(tiny(), binary[:1], Annealing(1, 20, 2, warmup=20))
    assert found.log_px.shape == (1,)
    assert torch.equal(found.log_px, found.log_weights[0])
    assert found.log_px_variance.isnan().all()
    assert found.ess.item() == 1


def test_float32_and_the_random_state(binary):
    model, x = tiny().float(), binary[:3].float()
    before = torch.get_rng_state()
    found = anneal(model, x, SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.log_weights.dtype == torch.float64
    exact = quadrature(model, x)
    assert ((found.log_px - exact).abs() < 6 * found.log_px_variance.sqrt() + 0.05).all()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_nan_names_its_point(binary):
    model = tiny()
    model.likelihood.value_and_gradient = lambda x, z: None
    inner = model.likelihood.log_prob
    model.likelihood.log_prob = lambda x, z: torch.where(x[:, 0] == 7, math.nan, inner(x, z))
    x = binary[:10].clone()
    x[6, 0] = 7
    with pytest.raises(NonFiniteError, match="log_joint: was NaN at point 6"):
        anneal(model, x, SHORT)


def test_a_proposal_that_is_nan_is_refused(binary):
    model = tiny()
    model.likelihood.value_and_gradient = lambda x, z: None
    inner = model.likelihood.log_prob

    def cliff(x, z):
        return torch.where(z[..., 0] > 0.8, math.nan, inner(x, z))

    model.likelihood.log_prob = cliff
    with torch.no_grad():
        model.posterior.moments.bias[:2] = -1.0
        model.posterior.moments.bias[2:] = -2.0
    assert anneal(model, binary[:4], SHORT).log_weights.isfinite().all()


def test_impossible_points_score_minus_infinity(binary):
    model = tiny()
    model.likelihood.value_and_gradient = lambda x, z: None
    inner = model.likelihood.log_prob
    model.likelihood.log_prob = lambda x, z: torch.where(x[:, 0] == 1, -math.inf, inner(x, z))
    x = binary[:12]
    found = anneal(model, x, SHORT)
    impossible = x[:, 0] == 1
    assert (found.log_px[impossible] == -math.inf).all()
    assert found.log_px[~impossible].isfinite().all()
    assert (found.ess[impossible] - 1 / 8).abs().max() < 1e-12


def test_errors_of_the_estimate_are_its_spread_over_seeds(binary):
    model, x = tiny(), binary[:30]
    settings = Annealing(40, 3, 2, start="prior", warmup=20, chunk=30)
    runs = [anneal(model, x, settings, seed=seed) for seed in range(40)]
    spread = torch.stack([run.log_px for run in runs]).var(0).mean().sqrt()
    claimed = torch.stack([run.log_px_variance for run in runs]).mean().sqrt()
    # A variance from 40 values at each of 30 points.
    assert abs(spread / claimed - 1) < 4 / math.sqrt(2 * 39 * 30) + 0.03


def test_backwards_weights_average_to_the_other_bound():
    logs = torch.tensor([[1.0], [3.0]])
    up = Annealed(logs, logs[0], logs[:0], backwards=True)
    assert up.log_px.item() == pytest.approx(-math.log((math.exp(-1) + math.exp(-3)) / 2))
    down = Annealed(logs, logs[0], logs[:0])
    assert down.log_px.item() == pytest.approx(math.log((math.e + math.exp(3)) / 2))
    assert down.ess.item() == pytest.approx(
        (math.e + math.exp(3)) ** 2 / (2 * (math.exp(2) + math.exp(6)))
    )


def test_bad_settings_are_refused(binary):
    for name in ("chains", "temperatures", "leapfrog", "warmup", "chunk"):
        with pytest.raises(SpecError, match=f"{name}: was 0"):
            Annealing(**{name: 0})
    with pytest.raises(SpecError, match="schedule: unknown value 'linea'; did you mean 'linear'"):
        Annealing(schedule="linea")
    with pytest.raises(SpecError, match="start: unknown value 'q'"):
        Annealing(start="q")
    with pytest.raises(SpecError, match="acceptance: was 1"):
        Annealing(acceptance=1)
    with pytest.raises(ShapeError, match="at least one example"):
        anneal(tiny(), binary[:0], SHORT)
    with pytest.raises(ShapeError, match=r"exact: shape \(2, 2\)"):
        anneal(tiny(), binary[:3], SHORT, exact=torch.zeros(2, 2))
    target = vf.Model(vf.priors.StandardNormal(2), None, vf.posteriors.Gaussian(2))
    with pytest.raises(SpecError, match="has no likelihood; use evaluate_target"):
        anneal(target, binary[:3], SHORT)
    model = tiny()
    model.prior.event_shape = (2, 2)
    with pytest.raises(SpecError, match=r"latents have shape \(2, 2\)"):
        anneal(model, binary[:3], SHORT)
