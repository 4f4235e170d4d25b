"""The Gaussian model with diagonal noise, against brute force."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.func import functional_call, stack_module_state, vmap

import varflow as vf
from varflow.core import random
from varflow.core.errors import DataError, ShapeError, SpecError
from varflow.targets import GaussianModel, generate, simulate
from varflow.targets.gaussian_statistics import best_variance, row_by_row


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=False)


def made(
    count: int = 12, features: int = 3, batches: str = "full", block: int = 5, seed: int = 0
) -> tuple[GaussianModel, Tensor]:
    """A model away from its start, and its data."""
    generator = torch.Generator().manual_seed(seed)
    data = 1.5 + 2 * torch.randn(count, features, generator=generator, dtype=torch.float64)
    shift, log_scale = torch.randn(2, features, generator=generator, dtype=torch.float64)
    model = GaussianModel(data, shift, 0.3 * log_scale, batches=batches, block=block)  # type: ignore[arg-type]
    return model, data


def brute_force(model: GaussianModel, data: Tensor, z: Tensor) -> Tensor:
    noise = Normal(z.unsqueeze(-2) + model.shift, model.log_scale.exp())
    return noise.log_prob(data).sum((-1, -2))


def marginal(model: GaussianModel, data: Tensor, j: int) -> MultivariateNormal:
    """Of the n values of dimension j: N(Δ, σ² I + 1 1ᵀ)."""
    n = len(data)
    covariance = (2 * model.log_scale[j]).exp() * torch.eye(n).double() + 1
    return MultivariateNormal(model.shift[j].expand(n), covariance)


# The likelihood.


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_log_prob_is_the_sum_over_rows(batch: tuple[int, ...]) -> None:
    model, data = made(20)
    z = torch.randn(*batch, 3, dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(None, z), brute_force(model, data, z))
    plain = row_by_row(data, model.shift, (2 * model.log_scale).exp().diag(), z)
    torch.testing.assert_close(model.log_prob(None, z), plain)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(center=floats(-1e6, 1e6), log_scale=floats(-5, 5), spread=floats(-3, 3), n=st.integers(1, 9))
def test_log_prob_with_extreme_data(center: float, log_scale: float, spread: float, n: int) -> None:
    """Data far from zero lose nothing: statistics are centred."""
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    data = center + 10**spread * noise
    model = GaussianModel(data, shift=center, log_scale=log_scale)
    z = torch.tensor([0.3, -0.7], dtype=torch.float64)
    expected = brute_force(model, data, z)
    torch.testing.assert_close(model.log_prob(None, z), expected, rtol=1e-8, atol=1e-8)


def test_minibatches_are_unbiased_and_pay_one_prior() -> None:
    model, data = made(12, batches="minibatch")
    z = torch.randn(4, 3, dtype=torch.float64)
    pieces = torch.randperm(12).split(4)
    each = torch.stack([model.log_prob(rows, z) for rows in pieces])
    torch.testing.assert_close(each.mean(0), model.log_prob(None, z))
    for rows, value in zip(pieces, each, strict=True):
        torch.testing.assert_close(value, 3 * brute_force(model, data[rows], z))
    whole = model.log_prob(torch.arange(12), z)
    torch.testing.assert_close(whole, model.log_prob(None, z))
    assert model.rows == 12


def test_separate_blocks_are_data_sets() -> None:
    model, data = made(12, batches="separate", block=5)
    z = torch.randn(4, 3, dtype=torch.float64)
    assert (model.blocks, model.rows) == (3, 3)
    for k, rows in enumerate(data.split(5)):
        x = torch.tensor([k])
        torch.testing.assert_close(model.log_prob(x, z), brute_force(model, rows, z))
    total = sum(model.log_prob(torch.tensor([k]), z) for k in range(3))
    torch.testing.assert_close(total, model.log_prob(None, z))


@pytest.mark.parametrize(
    ("batches", "x"),
    [("full", None), ("minibatch", torch.tensor([3, 1, 4])), ("separate", torch.tensor([1]))],
)
def test_affine_gradient_is_the_gradient(batches: str, x: Tensor | None) -> None:
    model, _ = made(12, batches=batches)
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.log_prob(x, z).sum(), z)
    b, a = model.affine_gradient(x)
    torch.testing.assert_close(b - a * z, gradient)


@pytest.mark.parametrize("batches", ["full", "minibatch"])
def test_twice_differentiable_in_z_and_parameters(batches: str) -> None:
    model, _ = made(12, 2, batches)
    x = torch.tensor([0, 5, 2]) if batches == "minibatch" else None
    z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def run(z: Tensor, shift: Tensor, log_scale: Tensor) -> Tensor:
        return functional_call(model, {"shift": shift, "log_scale": log_scale}, (x, z))

    leaves = (z, model.shift, model.log_scale)
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("batches", ["full", "minibatch", "separate"])
def test_vmap_over_stacked_models_is_a_loop(batches: str) -> None:
    models = [made(12, batches=batches, seed=seed)[0] for seed in range(3)]
    x = {"full": None, "minibatch": torch.tensor([0, 7]), "separate": torch.tensor([2])}[batches]
    state = stack_module_state(models)
    z = torch.randn(3, 4, 3, dtype=torch.float64)
    skeleton = copy.deepcopy(models[0]).to("meta")
    out = vmap(lambda p, b, z: functional_call(skeleton, (p, b), (x, z)))(*state, z)
    for i, model in enumerate(models):
        torch.testing.assert_close(out[i], model.log_prob(x, z[i]))


@pytest.mark.parametrize("batches", ["minibatch", "separate"])
def test_state_holds_the_data(batches: str) -> None:
    old, new = (made(12, batches=batches, seed=seed)[0] for seed in (0, 1))
    new.load_state_dict(old.state_dict())
    z, x = torch.randn(2, 3).double(), torch.tensor([1])
    assert torch.equal(old.log_prob(x, z), new.log_prob(x, z))


def test_single_precision_is_as_good_as_it_can_be() -> None:
    truth = generate(400, 10_000)
    double = GaussianModel(truth.data, truth.shift, truth.scale.log())
    single = GaussianModel(truth.data.float(), truth.shift, truth.scale.log())
    z = double.exact().mean.detach() + 0.01 * torch.randn(5, 400, dtype=torch.float64)
    z32 = z.float().requires_grad_()
    z.requires_grad_()
    value, expected = single.log_prob(None, z32), double.log_prob(None, z)
    assert value.dtype == torch.float32
    # Ten roundings of a number near 10⁶.
    assert (value - expected).abs().max() < 10 * torch.finfo(
        torch.float32
    ).eps * expected.abs().max()
    (gradient,) = torch.autograd.grad(value.sum(), z32)
    (exact,) = torch.autograd.grad(expected.sum(), z)
    assert (gradient - exact).abs().max() < 1e-3 * exact.abs().max()


def test_mean_and_sample() -> None:
    model, _ = made(12)
    z = torch.randn(1, 3, dtype=torch.float64)
    with random.stream(0):
        x = model.sample(z.expand(20_000, 3))
    assert torch.equal(model.mean(z), z + model.shift)
    error = model.log_scale.exp() / math.sqrt(20_000)
    assert ((x.mean(0) - model.mean(z)[0]).abs() < 4 * error).all()
    assert ((x.std(0) - model.log_scale.exp()).abs() < 4 * error).all()


# Exact answers.


def test_evidence_is_that_of_the_marginal() -> None:
    model, data = made(15)
    expected = sum(marginal(model, data, j).log_prob(data[:, j]) for j in range(3))
    torch.testing.assert_close(model.exact().log_evidence, expected)
    torch.testing.assert_close(model.log_evidence(), expected)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_evidence_by_integration_in_one_dimension(count: int) -> None:
    model, _ = made(count, 1)
    z = torch.linspace(-12, 12, 40_001, dtype=torch.float64)[:, None]
    log_joint = model.log_prob(None, z) + Normal(0.0, 1.0).log_prob(z[:, 0])
    evidence = torch.logsumexp(log_joint, 0) + math.log(24 / 40_000)
    exact = model.exact()
    torch.testing.assert_close(evidence, exact.log_evidence, rtol=1e-10, atol=1e-10)
    weight = torch.softmax(log_joint, 0)
    mean = (weight * z[:, 0]).sum()
    torch.testing.assert_close(mean, exact.mean[0], rtol=1e-8, atol=1e-8)
    variance = (weight * (z[:, 0] - mean).square()).sum()
    torch.testing.assert_close(variance, exact.variance[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("features", [1, 25, 400])
def test_weights_of_the_exact_posterior_are_constant(features: int) -> None:
    """(iii): log w = log p(D) for every z."""
    truth = generate(features, 100)
    model = GaussianModel(truth.data, truth.shift, truth.scale.log())
    exact = model.exact()
    q = Independent(Normal(exact.mean, exact.variance.sqrt()), 1)
    z = q.sample((50,))
    prior = Independent(Normal(torch.zeros(features).double(), 1.0), 1)
    log_weight = model.log_prob(None, z) + prior.log_prob(z) - q.log_prob(z)
    assert log_weight.std() < 1e-9
    torch.testing.assert_close(log_weight.mean(), exact.log_evidence)


def test_evidence_of_separate_blocks() -> None:
    model, data = made(12, batches="separate", block=5)
    expected = sum(
        marginal(model, rows, j).log_prob(rows[:, j]) for rows in data.split(5) for j in range(3)
    )
    torch.testing.assert_close(model.log_evidence(), expected)
    single = sum(model.exact(torch.tensor([k])).log_evidence for k in range(3))
    torch.testing.assert_close(single, expected)
    # All data share one z in the model proper.
    whole = sum(marginal(model, data, j).log_prob(data[:, j]) for j in range(3))
    torch.testing.assert_close(model.exact().log_evidence, whole)


def test_exact_evidence_at_the_truth_is_the_known_size() -> None:
    """Of the data of the paper, at d = 25: −7.496e4 in expectation, its 40 blocks −7.819e4."""
    truth = generate(25)
    for batches, expected, tolerance in (
        ("full", -7.496e4, 1500.0),
        ("separate", -7.819e4, 1500.0),
    ):
        model = GaussianModel(truth.data, truth.shift, truth.scale.log(), batches=batches)  # type: ignore[arg-type]
        assert abs(model.log_evidence().item() - expected) < tolerance


# Maximum likelihood.


@pytest.mark.parametrize("batches", ["full", "separate"])
@pytest.mark.parametrize("count", [2, 12, 40])
def test_maximum_likelihood_is_stationary_and_better_than_its_neighbours(
    batches: str, count: int
) -> None:
    model, _ = made(count, batches=batches)
    best = model.maximum_likelihood()
    with torch.no_grad():
        model.shift.copy_(best.shift)
        model.log_scale.copy_(0.5 * best.variance.log())
    evidence = model.log_evidence()
    torch.testing.assert_close(evidence, best.log_evidence)
    gradients = torch.autograd.grad(evidence, list(model.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-8
    for parameter in model.parameters():
        for j in range(3):
            for move in (-0.02, 0.02):
                with torch.no_grad():
                    parameter[j] += move
                    assert model.log_evidence() < evidence
                    parameter[j] -= move


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(n=st.integers(2, 10_000), log_s=floats(-15, 15))
def test_best_variance_solves_its_equation(n: int, log_s: float) -> None:
    count, scatter = torch.tensor(float(n)).double(), torch.tensor(n * math.exp(log_s)).double()
    s = best_variance(count, scatter)
    terms = torch.stack([(count - 1) / s, 1 / (s + count), -scatter / s.square()])
    assert terms.sum().abs() < 1e-12 * terms.abs().sum()


def test_one_block_by_ecme_agrees_with_the_closed_form() -> None:
    """ECME is what several blocks take; on one block it has the closed form to meet."""
    model, data = made(12, batches="separate", block=12)
    assert model.blocks == 1
    closed = model.maximum_likelihood()
    from varflow.targets.gaussian_statistics import ecme

    shift, variance = ecme(model._parts())
    torch.testing.assert_close(shift, closed.shift)
    torch.testing.assert_close(variance, closed.variance)
    torch.testing.assert_close(closed.shift, data.mean(0))


def test_errors_of_the_best_solution_are_at_the_floor() -> None:
    model = simulate(100)
    best = model.maximum_likelihood()
    start = model.errors()
    assert start.scale_to_best > 1e3
    with torch.no_grad():
        model.shift.copy_(best.shift)
        model.log_scale.copy_(0.5 * best.variance.log())
    errors = model.errors()
    assert errors.shift_to_best == 0
    assert errors.scale_to_best < 1e-20
    assert errors.floor == pytest.approx(1.2e-3, abs=5e-5)  # 1.2e-3 at d = 100
    # Σⱼ σⱼ² χ²₁ / 2N around its mean.
    scale = model.get_buffer("true_scale")
    spread = math.sqrt(2 * scale.pow(4).sum().item()) / 20_000
    assert abs(errors.scale_to_truth - errors.floor) < 4 * spread
    assert errors.best_to_truth == pytest.approx(errors.scale_to_truth)
    # Δ̂ − Δ is z up to noise.
    z = generate(100).z
    assert errors.shift_to_truth == pytest.approx(z.square().sum().item(), rel=0.01)


def test_errors_without_the_truth() -> None:
    errors = made()[0].errors()
    assert errors.shift_to_best > 0
    assert (
        errors.shift_to_truth
        is errors.scale_to_truth
        is errors.best_to_truth
        is errors.floor
        is None
    )


# The data.


def test_generated_truth() -> None:
    made = generate(5, 20_000, seed=1)
    assert made.shift.tolist() == pytest.approx([-0.4, -0.2, 0.0, 0.2, 0.4])
    assert made.scale.tolist() == pytest.approx([1.0, 0.325, 0.1, 0.325, 1.0])
    assert made.data.dtype == torch.float64
    error = made.scale / math.sqrt(20_000)
    assert ((made.data.mean(0) - made.z - made.shift).abs() < 4 * error).all()
    assert ((made.data.std(0) - made.scale).abs() < 4 * error).all()
    assert torch.equal(made.data, generate(5, 20_000, seed=1).data)
    assert not torch.equal(made.data, generate(5, 20_000, seed=2).data)
    assert generate(1, 3).scale.tolist() == [1.0]
    assert torch.equal(generate(3, 4).covariance, torch.diag(generate(3, 4).scale.square()))


def test_correlated_noise_has_the_covariance_it_states() -> None:
    made = generate(4, 50_000, seed=0, correlation=-0.8)
    centred = made.data - made.data.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(0) / math.sqrt(50_000)
    assert ((products.mean(0) - made.covariance).abs() < 4 * error).all()
    assert made.covariance[0, 1] / (made.scale[0] * made.scale[1]) == pytest.approx(-0.8)
    values = torch.linalg.eigvalsh(generate(200, 2, correlation=0.5).covariance / torch.outer(
        *[generate(200, 2).scale] * 2
    ))  # fmt: skip
    assert values[-1] / values[0] == pytest.approx(9, rel=0.01)


# Errors.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GaussianModel(torch.zeros(3)), ShapeError, "data: was torch.float32 of shape"),
        (lambda: GaussianModel(torch.zeros(3, 2).long()), ShapeError, "data: was torch.int64"),
        (lambda: GaussianModel(torch.zeros(0, 2)), DataError, "is empty"),
        (lambda: GaussianModel(torch.tensor([[math.nan], [1.0]])), DataError, "data: 1 rows"),
        (lambda: GaussianModel(torch.zeros(3, 2), torch.zeros(3)), ShapeError, "shift: shape"),
        (lambda: GaussianModel(torch.zeros(3, 2), batches="ful"), SpecError, "did you mean 'full'"),  # type: ignore[arg-type]
        (lambda: GaussianModel(torch.zeros(3, 2), block=0), SpecError, "block: was 0"),
        (lambda: made()[0].log_prob(None, torch.zeros(2)), ShapeError, "z: shape"),
        (lambda: made()[0].log_prob(torch.tensor([0]), torch.zeros(3)), SpecError, "x: given"),
        (
            lambda: made(batches="minibatch")[0].log_prob(torch.zeros(2), torch.zeros(3)),
            ShapeError,
            "use whole numbers",
        ),
        (
            lambda: made(batches="separate")[0].log_prob(torch.tensor([0, 1]), torch.zeros(3)),
            ShapeError,
            "one block at a time",
        ),
        (
            lambda: made(batches="minibatch")[0].exact(torch.tensor([0, 1])),
            SpecError,
            "a minibatch has no evidence",
        ),
        (
            lambda: GaussianModel(torch.tensor([[0.1, 1.0]] * 9)).maximum_likelihood(),
            SpecError,
            "constant in dimension 0, so the noise covariance is singular",
        ),
        (lambda: generate(0), SpecError, "features: was 0"),
        (lambda: generate(3, correlation=1.0), SpecError, "correlation: was 1.0"),
        (lambda: simulate(3, 5, noise="ful"), SpecError, "did you mean 'full'"),  # type: ignore[arg-type]
        (
            lambda: simulate(3, 5, noise="full", batches="separate"),
            SpecError,
            "'separate' is for diagonal noise",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_the_advice_for_rows_that_are_not_kept_is_followed() -> None:
    data, rows = torch.randn(6, 2), torch.arange(3)
    with pytest.raises(SpecError, match="build it with batches='minibatch'"):
        GaussianModel(data).log_prob(rows, torch.zeros(2))
    assert GaussianModel(data, batches="minibatch").log_prob(rows, torch.zeros(2)).shape == ()


# Training.


@pytest.mark.slow
def test_vb_reaches_the_evidence_and_the_floor_of_the_error() -> None:
    """Its family holds the exact posterior, so nothing but the optimizer can keep it from log p(D)."""
    run = vf.fit(
        "gaussian-model", dimensions=3, observations=50, fits=20, steps=2000, samples=128, lr=0.03,
        decay="cosine", quiet=True, threads=1,
    )  # fmt: skip
    from_floor = []
    with random.stream(1), torch.no_grad():
        terms = run.model.terms(samples=2000).log_weight
    for fit, member in enumerate(run.model.members()):
        likelihood, q = member.likelihood, member.infer()
        exact, best, errors = likelihood.exact(), likelihood.maximum_likelihood(), likelihood.errors()
        assert exact.log_evidence.dtype == torch.float64
        p = Independent(Normal(exact.mean, exact.variance.sqrt()), 1)
        gap = kl_divergence(Independent(Normal(q.mean, q.log_scale.exp()), 1), p).item()
        assert 0 <= gap < 1e-3
        assert 0 <= (best.log_evidence - exact.log_evidence).item() < 1e-3
        # The bound itself, by samples: log p(D) less that gap, and never above the maximum.
        elbo, error = terms[:, fit].mean(), terms[:, fit].std() / math.sqrt(len(terms))
        assert abs(exact.log_evidence - gap - elbo) < 4 * error + 1e-9
        assert elbo < best.log_evidence + 4 * error
        assert errors.scale_to_best < 1e-5 * errors.floor
        assert errors.scale_to_truth == pytest.approx(errors.best_to_truth, rel=0.02)
        from_floor.append(errors.scale_to_truth / errors.floor)
    ratio = torch.tensor(from_floor)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))
    assert ratio.std() < 2
