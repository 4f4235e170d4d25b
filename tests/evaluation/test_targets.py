"""Fits to targets against exact answers: q = p, two Gaussians, one of two modes, zero density, NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.core import random
from varflow.core.errors import NonFiniteError, ShapeError, SpecError
from varflow.evaluation import Evaluation, divergences, evaluate_target
from varflow.evaluation.target_scores import score
from varflow.flows import Planar
from varflow.posteriors import Gaussian, Hamiltonian
from varflow.priors import StandardNormal
from varflow.targets import U1, GaussianMixture
from varflow.targets.target import Target


class Shifted(Target):
    """N(m, diag s²), with ``log_scale_factor`` as its log Z, and only what a test leaves known."""

    window = (-8.0, 8.0, -8.0, 8.0)

    def __init__(self, mean, scale, log_z: float = 0.7) -> None:
        super().__init__(len(mean))
        self.m, self.s, self.log_z = (
            torch.tensor(mean).double(),
            torch.tensor(scale).double(),
            log_z,
        )

    def log_prob(self, z, context=None):
        normal = torch.distributions.Normal(self.m, self.s)
        return normal.log_prob(z.double()).sum(-1) + self.log_z

    @property
    def log_normalizer(self):
        return self.log_z

    @property
    def mean(self):
        return self.m

    @property
    def covariance(self):
        return torch.diag(self.s.square())

    def sample(self, shape=()):
        noise = random.normal((*shape, self.features), "target", dtype=torch.float64)
        return self.m + self.s * noise


def gaussian(mean, scale) -> Gaussian:
    q = Gaussian(len(mean))
    with torch.no_grad():
        q.mean.copy_(torch.tensor(mean))
        q.log_scale.copy_(torch.tensor(scale).log())
    return q


def values(evaluation: Evaluation) -> dict[str, float]:
    return {name: e.value for name, e in evaluation.estimates.items()}


def kl(m0, s0, m1, s1) -> float:
    m0, s0, m1, s1 = (np.asarray(a, float) for a in (m0, s0, m1, s1))
    return float((np.log(s1 / s0) + (s0**2 + (m0 - m1) ** 2) / (2 * s1**2) - 0.5).sum())


def test_where_q_is_p_everything_is_exact() -> None:
    model = vf.Model(Shifted([1.0, -2.0], [0.5, 2.0]), None, gaussian([1.0, -2.0], [0.5, 2.0]))
    found = evaluate_target(model, 2000, grid=8)
    v = values(found)
    # float32 parameters round log 0.5 and log 2, no more.
    for name in ("kl_q_p", "kl_p_q", "log_z_error", "kl_q_p_grid", "kl_p_q_grid"):
        assert abs(v[name]) < 1e-6, name
    assert v["ess_reverse"] == pytest.approx(1, abs=1e-9)
    assert v["ess_forward"] == pytest.approx(1, abs=1e-6)
    assert v["elbo"] == pytest.approx(0.7, abs=1e-6)
    assert v["eubo"] == pytest.approx(0.7, abs=1e-6)
    for name in ("mean_error", "covariance_error"):
        assert v[name] < 4 * found.estimates[name].monte_carlo_error
    assert found.estimates["kl_q_p"].standard_error is None


@pytest.mark.parametrize("seed", range(3))
def test_two_gaussians_have_their_closed_form_both_ways(seed: int) -> None:
    p, q = ([0.5, -1.0], [1.0, 1.5]), ([0.0, -0.7], [1.2, 1.4])
    found = evaluate_target(vf.Model(Shifted(*p), None, gaussian(*q)), 20_000, seed, grid=24)
    for name, exact in (("kl_q_p", kl(*q, *p)), ("kl_p_q", kl(*p, *q))):
        estimate = found.estimates[name]
        assert abs(estimate.value - exact) < 4 * estimate.monte_carlo_error
        assert found.estimates[f"{name}_grid"].value == pytest.approx(exact, abs=1e-6)
    # E_q w² of two Gaussians: the reverse and the forward effective sample size have one limit.
    s = np.array(q[1]), np.array(p[1])
    narrow = 2 * s[0] ** 2 - s[1] ** 2
    gap = np.array(q[0]) - np.array(p[0])
    exact = np.prod(np.sqrt(narrow) * s[1] / s[0] ** 2 * np.exp(-(gap**2) / narrow))
    for name in ("ess_reverse", "ess_forward"):
        estimate = found.estimates[name]
        assert abs(estimate.value - exact) < 4 * estimate.monte_carlo_error, name
    z = found.estimates["log_z_error"]
    assert abs(z.value) < 4 * z.monte_carlo_error
    assert z.khat == 0.0
    moved = found.estimates["mean_error"]
    assert moved.value == pytest.approx(math.hypot(0.5, 0.3), abs=4 * moved.monte_carlo_error)


def test_the_monte_carlo_error_is_the_spread_over_seeds() -> None:
    model = vf.Model(Shifted([0.5], [1.0]), None, gaussian([0.0], [1.3]))
    runs = [evaluate_target(model, 500, seed).estimates for seed in range(60)]
    for name in ("kl_q_p", "kl_p_q", "log_z_error", "ess_reverse", "ess_forward"):
        spread = np.std([run[name].value for run in runs], ddof=1)
        told = np.mean([run[name].monte_carlo_error for run in runs])
        # The standard deviation of 60 runs is known to 9 %.
        assert spread == pytest.approx(told, rel=0.4), name


def test_quadrature_equals_monte_carlo_for_a_flow() -> None:
    torch.manual_seed(3)
    flow = Planar(2, length=4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    found = evaluate_target(vf.Model(U1(), None, Gaussian(2, flow=flow)), 20_000, grid=32)
    for name in ("kl_q_p", "kl_p_q"):
        estimate = found.estimates[name]
        assert (
            abs(estimate.value - found.estimates[f"{name}_grid"].value)
            < 4 * estimate.monte_carlo_error
        )
    assert "mass of 1.0000" in found.estimates["kl_q_p_grid"].estimator


def test_coverage_is_0_for_one_mode_1_for_all_and_told_for_unequal_ones() -> None:
    def of(weights, q) -> dict[str, float]:
        locations = [[-6.0, 0.0], [6.0, 0.0]]
        target = GaussianMixture(2, locations=locations, weights=weights, scale=0.5)
        found = evaluate_target(vf.Model(target, None, q), 4000)
        assert found.per_example["mode_0"] + found.per_example["mode_1"] == pytest.approx(1)
        return {name: found.estimates[name] for name in ("mode_coverage", "mode_divergence")}

    one = of([1.0, 1.0], gaussian([6.0, 0.0], [0.5, 0.5]))
    assert one["mode_coverage"].value == pytest.approx(0, abs=1e-9)
    half = 0.5 * math.log2(1 / 0.75) + 0.5 * (0.5 * math.log2(0.5 / 0.75) + 0.5)
    assert one["mode_divergence"].value == pytest.approx(half, abs=1e-9)
    both = of([1.0, 1.0], gaussian([0.0, 0.0], [6.0, 0.5]))
    assert both["mode_coverage"].value == pytest.approx(
        1, abs=4 * both["mode_coverage"].monte_carlo_error
    )
    assert both["mode_divergence"].value < 1e-3
    # q that is even over modes of 0.9 and 0.1 covers all, and is wrong; the divergence says so.
    uneven = of([9.0, 1.0], gaussian([0.0, 0.0], [6.0, 0.5]))
    assert uneven["mode_coverage"].value > 0.999
    exact = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert f"the target itself has {exact:.6g}"[:36] in uneven["mode_coverage"].estimator
    assert 0.1 < uneven["mode_divergence"].value < 0.2


def test_fits_are_points_and_each_is_kept() -> None:
    def model(shift: float) -> vf.Model:
        return vf.Model(Shifted([0.0], [1.0]), None, gaussian([shift], [1.0]))

    shifts = [0.0, 0.4, 1.0]
    found = evaluate_target(vf.Ensemble([model(s) for s in shifts]), 5000)
    each = found.per_example["kl_q_p"]
    exact = np.array([s**2 / 2 for s in shifts])
    assert (np.abs(each - exact) <= 4 * np.sqrt(found.per_example["kl_q_p_variance"]) + 1e-6).all()
    estimate = found.estimates["kl_q_p"]
    assert estimate.points == found.data["fits"] == 3
    assert estimate.value == pytest.approx(each.mean())
    assert estimate.standard_error == pytest.approx(each.std(ddof=1) / math.sqrt(3))
    variances = found.per_example["kl_q_p_variance"]
    assert estimate.monte_carlo_error == pytest.approx(math.sqrt(variances.sum()) / 3)
    assert (
        f"median {np.median(each):.6g}, from {each.min():.6g} to {each.max():.6g}"
        in estimate.estimator
    )
    # A fit scores the same by itself.
    alone = evaluate_target(model(0.0), 5000)
    assert alone.estimates["kl_q_p"].value == each[0]


def test_fits_of_different_targets_are_told_and_kept_apart() -> None:
    models = [
        vf.Model(target, None, Gaussian(2)) for target in (U1(), Shifted([0.0, 0.0], [1.0, 1.0]))
    ]
    found = evaluate_target(vf.Ensemble(models), 500)
    assert any("different targets (U1, Shifted)" in note for note in found.notes)
    assert "mode_coverage" not in found.estimates
    assert np.isnan(found.per_example["mode_coverage"]).tolist() == [False, True]


def test_the_mode_of_a_model_and_its_dtype_are_left_alone() -> None:
    model = vf.Model(U1(), None, Gaussian(2)).train()
    state = torch.random.get_rng_state()
    evaluate_target(model, 100)
    assert model.training
    assert model.posterior.mean.dtype == torch.float32
    assert torch.equal(state, torch.random.get_rng_state())


def test_zero_density_is_an_infinite_divergence_and_not_an_error() -> None:
    class Half(Shifted):
        def log_prob(self, z, context=None):
            inside = super().log_prob(z) + math.log(2)
            return torch.where(z[..., 0] > 0, inside, -math.inf)

        def sample(self, shape=()):
            return super().sample(shape).abs()

    found = evaluate_target(vf.Model(Half([0.0], [1.0]), None, gaussian([0.0], [1.0])), 4000)
    v = values(found)
    assert v["elbo"] == -math.inf
    assert v["kl_q_p"] == math.inf
    assert found.estimates["kl_q_p"].monte_carlo_error is None
    assert v["kl_p_q"] == pytest.approx(math.log(2), abs=1e-6)
    assert v["ess_forward"] == pytest.approx(0.5, abs=1e-6)
    for name, exact in (("log_z_error", 0.0), ("ess_reverse", 0.5)):
        assert abs(v[name] - exact) < 4 * found.estimates[name].monte_carlo_error


def test_a_fit_that_diverged_is_named() -> None:
    models = [vf.Model(U1(), None, Gaussian(2)) for _ in range(3)]
    with torch.no_grad():
        models[1].posterior.mean[0] = math.nan
    with pytest.raises(
        NonFiniteError, match=r"was NaN at 100 of 100 samples of q in fit 1; .*run.members"
    ):
        evaluate_target(vf.Ensemble(models), 100)


def test_what_is_not_known_is_left_out_and_said() -> None:
    class Unknown(Shifted):
        log_normalizer = mean = covariance = None

        def sample(self, shape=()):
            raise SpecError("target: Unknown has no exact sampler")

    found = evaluate_target(vf.Model(Unknown([0.0], [1.0]), None, gaussian([0.0], [1.0])), 500)
    assert set(found.estimates) == {"elbo", "log_z", "ess_reverse"}
    assert found.estimates["log_z"].value == pytest.approx(0.7, abs=1e-6)
    assert any(note.startswith("kl_q_p, log_z_error: left out") for note in found.notes)
    assert any(note.startswith("kl_p_q, eubo, ess_forward: left out") for note in found.notes)


def test_the_hamiltonian_posterior_is_measured_on_its_extended_space() -> None:
    target = Shifted([0.5, 0.5], [1.0, 1.0])
    exact = vf.Model(
        target, None, Hamiltonian(gaussian([0.5, 0.5], [1.0, 1.0]), 3, initial_step=0.01)
    )
    found = evaluate_target(exact, 2000, grid=4)
    # It starts in the target and hardly moves; the leapfrog error is of order ε².
    assert abs(found.estimates["kl_q_p"].value) < 1e-4
    assert "extended space" in found.estimates["kl_q_p"].estimator
    assert "kl_p_q" not in found.estimates
    assert "kl_q_p_grid" not in found.estimates
    assert sum("log_prob" in note for note in found.notes) == 2


def gaussian_model(d: int = 3, **options):
    from varflow.core.lazy import resolve
    from varflow.targets import TABLE

    likelihood = resolve(TABLE["gaussian-model"])(d, observations=300, **options)
    return vf.Model(StandardNormal(d), likelihood, Gaussian(d)).double()


@pytest.mark.parametrize("batches", ["full", "minibatch"])
def test_the_exact_posterior_of_the_gaussian_model_scores_log_p(batches: str) -> None:
    model = gaussian_model(batches=batches)
    with torch.no_grad():
        best = model.likelihood.maximum_likelihood()
        model.likelihood.shift.copy_(best.shift)
        model.likelihood.log_scale.copy_(0.5 * best.variance.log())
        exact = model.likelihood.exact()
        model.posterior.mean.copy_(exact.mean)
        model.posterior.log_scale.copy_(0.5 * exact.variance.log())
    found = evaluate_target(model, 1000)
    v = values(found)
    for name in ("kl_q_p", "kl_p_q", "evidence_gap", "log_z_error"):
        assert abs(v[name]) < 1e-9, name
    assert v["elbo"] == pytest.approx(exact.log_evidence.item(), abs=1e-9)
    assert v["log_evidence"] == v["log_evidence_best"] == pytest.approx(v["elbo"], abs=1e-9)
    assert v["shift_error"] == pytest.approx(0, abs=1e-18)
    assert v["scale_error"] == pytest.approx(v["scale_floor"], rel=1e-9)
    assert v["scale_floor_expected"] == pytest.approx(
        (model.likelihood.true_scale.square().sum() / 600).item()
    )
    # The data know the prior mean through z alone: Δ and x̄ differ by nothing at the maximum.
    assert v["mean_error"] < 4 * found.estimates["mean_error"].monte_carlo_error


def test_the_gap_of_a_gaussian_model_is_a_closed_form_kl() -> None:
    model = gaussian_model()
    with torch.no_grad():
        exact = model.likelihood.exact()
        model.posterior.mean.copy_(exact.mean + 0.3)
        model.posterior.log_scale.copy_(0.5 * exact.variance.log() + 0.2)
    found = evaluate_target(model, 20_000)
    scale = exact.variance.sqrt().detach().numpy()
    m = exact.mean.detach().numpy()
    for name, value in (
        ("kl_q_p", kl(m + 0.3, scale * math.exp(0.2), m, scale)),
        ("kl_p_q", kl(m, scale, m + 0.3, scale * math.exp(0.2))),
    ):
        estimate = found.estimates[name]
        assert abs(estimate.value - value) < 4 * estimate.monte_carlo_error
    assert found.estimates["evidence_gap"].value > 0


def test_full_noise_has_its_own_errors_and_exact_posterior() -> None:
    found = values(evaluate_target(gaussian_model(noise="full"), 500))
    assert {"noise_error", "noise_floor", "diagonal_gap", "kl_q_p", "kl_p_q"} <= set(found)
    assert found["kl_q_p"] > found["diagonal_gap"] - 1e-9


def test_separate_blocks_are_added_up() -> None:
    model = gaussian_model(batches="separate", block=120)
    found = evaluate_target(model, 3000)
    v = values(found)
    with torch.no_grad():
        blocks = [model.likelihood.exact(torch.tensor([k])) for k in range(3)]
    log_p = sum(b.log_evidence.item() for b in blocks)
    q = model.posterior()
    gaps = [
        kl(q.mean.detach(), q.log_scale.exp().detach(), b.mean, b.variance.sqrt()) for b in blocks
    ]
    estimate = found.estimates["kl_q_p"]
    assert abs(estimate.value - sum(gaps)) < 4 * estimate.monte_carlo_error
    assert v["elbo"] + v["kl_q_p"] == pytest.approx(log_p)
    assert v["log_evidence_blocks"] == pytest.approx(log_p)
    assert "evidence_gap" not in v


def test_an_evaluation_of_a_target_is_shown_and_kept(tmp_path) -> None:
    found = evaluate_target(vf.Model(U1(), None, Gaussian(2)), 300)
    text = found.table()
    assert "U1; 1 fit, 300 samples each, seed 0" in text
    assert "value ±" not in text
    assert "± unknown" not in text
    found.save(tmp_path)
    again = Evaluation.load(tmp_path, "target")
    assert again.estimates == found.estimates
    assert again.notes == found.notes
    assert again.per_example.keys() == found.per_example.keys()
    several = evaluate_target(
        vf.Ensemble([vf.Model(U1(), None, Gaussian(2)) for _ in range(2)]), 300
    )
    assert "value ± se over fits" in several.table()
    assert "2 fits, 300 samples each" in several.table()


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (-74960.123456, 0.0, "-74960.1235"),
        (2.0, 0.0, "2"),
        (-19602.166167356, 7e-11, "-19602.166167356"),
        (7.28e-12, 7e-11, "7.3e-12"),
        (0.00024123, 6e-5, "0.000241"),
        (math.inf, None, "inf"),
    ],
)
def test_numbers_keep_the_digits_that_their_error_leaves(value, error, shown) -> None:
    from varflow.evaluation import Estimate

    assert Estimate("x", value, None, error, 9, 1, "nats", "", "", 0).number() == shown


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 0}, SpecError, "samples: was 0"),
        ({"samples": 1}, SpecError, "samples: was 1; errors need 2 or more"),
        ({"grid": 4}, ShapeError, "grid: was 4 in 3 dimensions"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(options, error, message) -> None:
    model = vf.Model(GaussianMixture(3, modes=2), None, Gaussian(3))
    with pytest.raises(error, match=message):
        evaluate_target(model, **{"samples": 10, **options})


def test_a_posterior_that_reads_x_is_refused() -> None:
    encoder = vf.networks.MLP(4, hidden=(3,))
    with pytest.raises(SpecError, match="its posterior reads x"):
        evaluate_target(vf.Model(U1(), None, Gaussian(2, encoder)), 10)


def test_results_do_not_depend_on_the_block_of_draws_beyond_their_noise(monkeypatch) -> None:
    from varflow.evaluation import target_scores

    model = vf.Model(Shifted([0.5], [1.0]), None, gaussian([0.0], [1.3])).double()
    whole = score(model, 1000, 0, 0)
    monkeypatch.setattr(target_scores, "_SAMPLES", 64)
    cut = score(model, 1000, 0, 0)
    for name in ("kl_q_p", "kl_p_q", "mean_error"):
        a, b = whole.numbers[name], cut.numbers[name]
        assert a.value != b.value
        assert abs(a.value - b.value) < 5 * math.hypot(a.error, b.error)


def test_quadrature_refuses_what_it_cannot_do() -> None:
    def flat(z):
        return torch.zeros(len(z))

    with pytest.raises(ShapeError, match="of 3 dimensions"):
        divergences(flat, flat, [(0, 1)] * 3)
    with pytest.raises(NonFiniteError, match="log_p: was nan at z"):
        divergences(flat, lambda z: flat(z) * math.nan, [(0.0, 1.0)], 1)
    found = divergences(flat, lambda z: flat(z) + 3.0, [(0.0, 1.0), (0.0, 1.0)], 2)
    assert found.kl_q_p == pytest.approx(0, abs=1e-12)
    assert found.log_normalizer == pytest.approx(3.0)
