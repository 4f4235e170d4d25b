"""The Gaussian model with correlated noise, against brute force and against the diagonal model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.func import functional_call, stack_module_state, vmap

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError
from varflow.flows import Triangular
from varflow.posteriors import Gaussian
from varflow.targets import CorrelatedGaussianModel, GaussianModel, generate, simulate
from varflow.targets.gaussian_statistics import row_by_row


def made(
    count: int = 12,
    features: int = 3,
    batches: str = "full",
    seed: int = 0,
    correlation: float = 0.7,
) -> tuple[CorrelatedGaussianModel, Tensor]:
    truth = generate(features, count, seed, correlation)
    covariance = truth.covariance + 0.05 * torch.eye(features)
    model = CorrelatedGaussianModel(truth.data, 0.3, covariance, batches=batches)  # type: ignore[arg-type]
    return model, truth.data


def brute_force(model: CorrelatedGaussianModel, data: Tensor, z: Tensor) -> Tensor:
    return row_by_row(data, model.shift, model.covariance, z)


def marginal(model: CorrelatedGaussianModel, count: int) -> MultivariateNormal:
    """Of all rows as one vector: blocks Σ on the diagonal, and I everywhere."""
    same = torch.kron(torch.eye(count).double(), model.covariance)
    shared = torch.kron(torch.ones(count, count).double(), torch.eye(model.features).double())
    return MultivariateNormal(model.shift.repeat(count), same + shared)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("count", [2, 20])
def test_log_prob_is_the_sum_over_rows(batch: tuple[int, ...], count: int) -> None:
    model, data = made(count)
    z = torch.randn(*batch, 3, dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(None, z), brute_force(model, data, z))


def test_minibatches_are_unbiased() -> None:
    model, data = made(12, batches="minibatch")
    z = torch.randn(4, 3, dtype=torch.float64)
    pieces = torch.randperm(12).split(4)
    each = torch.stack([model.log_prob(rows, z) for rows in pieces])
    torch.testing.assert_close(each.mean(0), model.log_prob(None, z))
    torch.testing.assert_close(each[0], 3 * brute_force(model, data[pieces[0]], z))
    assert (model.rows, made()[0].rows) == (12, None)


def test_diagonal_covariance_is_the_diagonal_model() -> None:
    truth = generate(4, 30)
    full = CorrelatedGaussianModel(truth.data, truth.shift, truth.covariance)
    diagonal = GaussianModel(truth.data, truth.shift, truth.scale.log())
    z = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(full.log_prob(None, z), diagonal.log_prob(None, z))
    torch.testing.assert_close(full.exact().log_evidence, diagonal.exact().log_evidence)
    torch.testing.assert_close(full.exact().mean, diagonal.exact().mean)
    variance = torch.diag(diagonal.exact().variance)
    torch.testing.assert_close(full.exact().covariance, variance)
    assert full.diagonal_gap().abs() < 1e-10


def test_evidence_is_that_of_the_marginal() -> None:
    model, data = made(8)
    expected = marginal(model, 8).log_prob(data.flatten())
    torch.testing.assert_close(model.exact().log_evidence, expected)
    torch.testing.assert_close(model.log_evidence(), expected)


@pytest.mark.parametrize(("features", "correlation"), [(1, 0.0), (3, 0.9), (50, 0.99)])
def test_weights_of_the_exact_posterior_are_constant(features: int, correlation: float) -> None:
    model, _ = made(100, features, correlation=correlation)
    exact = model.exact()
    q = MultivariateNormal(exact.mean, exact.covariance)
    z = q.sample((50,))
    prior = Independent(Normal(torch.zeros(features).double(), 1.0), 1)
    log_weight = model.log_prob(None, z) + prior.log_prob(z) - q.log_prob(z)
    assert log_weight.std() < 1e-9
    torch.testing.assert_close(log_weight.mean(), exact.log_evidence)


def test_the_triangular_flow_is_exact_and_the_best_diagonal_has_the_gap() -> None:
    """Where richer posteriors win, and by how much."""
    model, _ = made(100, 4, correlation=0.95)
    exact = model.exact()
    posterior = Gaussian(4, flow=Triangular(4), base="fixed").double()
    factor = torch.linalg.cholesky(exact.covariance)
    scale = factor.diagonal()
    i, j = torch.tril_indices(4, 4, -1)
    with torch.no_grad():
        below = 2 * (factor / scale)[i, j]  # the flow divides by √D = 2
        posterior.flow.static.copy_(torch.cat([exact.mean, scale.log(), below]))  # type: ignore[union-attr]
    prior = Independent(Normal(torch.zeros(4).double(), 1.0), 1)

    def log_weight(z: Tensor, log_q: Tensor) -> Tensor:
        return model.log_prob(None, z) + prior.log_prob(z) - log_q

    draw = posterior().draw(100)
    log_w = log_weight(draw.z, draw.log_q)
    assert log_w.std() < 1e-9
    torch.testing.assert_close(log_w.mean(), exact.log_evidence)
    precision = torch.linalg.inv(exact.covariance).diagonal()
    diagonal = Independent(Normal(exact.mean, precision.rsqrt()), 1)
    kl = torch.distributions.kl_divergence(
        MultivariateNormal(exact.mean, torch.diag(1 / precision)),
        MultivariateNormal(exact.mean, exact.covariance),
    )
    torch.testing.assert_close(model.diagonal_gap(), kl)
    assert kl > 0.5
    z = diagonal.sample((20_000,))
    short = exact.log_evidence - log_weight(z, diagonal.log_prob(z))
    assert abs(short.mean() - kl) < 4 * short.std() / math.sqrt(20_000)


@pytest.mark.parametrize("count", [4, 30])
def test_maximum_likelihood_is_stationary_and_better_than_its_neighbours(count: int) -> None:
    model, data = made(count)
    best = model.maximum_likelihood()
    at_best = CorrelatedGaussianModel(data, best.shift, best.covariance)
    evidence = at_best.log_evidence()
    torch.testing.assert_close(evidence, best.log_evidence)
    gradients = torch.autograd.grad(evidence, list(at_best.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-8
    generator = torch.Generator().manual_seed(0)
    for parameter in at_best.parameters():
        for _ in range(10):
            move = 0.01 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            move = move.tril(-1) if move.ndim == 2 else move
            with torch.no_grad():
                parameter += move
                assert at_best.log_evidence() < evidence
                parameter -= move


def test_errors_of_the_best_solution_are_near_the_floor() -> None:
    model = simulate(10, 10_000, noise="full")
    assert isinstance(model, CorrelatedGaussianModel)
    best, truth = model.maximum_likelihood(), generate(10, 10_000, 0, 0.9)
    assert model.errors().covariance_to_best > 1e3
    at_best = CorrelatedGaussianModel(
        truth.data, best.shift, best.covariance, truth=(truth.shift, truth.covariance)
    )
    errors = at_best.errors()
    assert errors.shift_to_best == 0
    assert errors.covariance_to_best < 1e-20
    assert errors.best_to_truth == pytest.approx(errors.covariance_to_truth)
    assert errors.floor is not None
    # One data set lies about it as a sum of squares of few large terms does; the mean over data sets is below.
    assert 0.05 * errors.floor < errors.covariance_to_truth < 10 * errors.floor
    found = []
    for seed in range(40):
        draw = generate(3, 500, seed, 0.5)
        fitted = CorrelatedGaussianModel(draw.data, truth=(draw.shift, draw.covariance)).errors()
        found.append(fitted.best_to_truth)
    measured = torch.tensor(found)
    assert abs(measured.mean() - fitted.floor) < 4 * measured.std() / math.sqrt(40)


def test_errors_without_the_truth() -> None:
    errors = made()[0].errors()
    assert errors.covariance_to_truth is errors.best_to_truth is errors.floor is None


def test_known_noise_is_not_learned() -> None:
    truth = generate(3, 20, 0, 0.5)
    model = CorrelatedGaussianModel(truth.data, covariance=truth.covariance, learn_noise=False)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["shift"]
    torch.testing.assert_close(model.covariance, truth.covariance)


def test_twice_differentiable() -> None:
    model, _ = made(12, 2)
    z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def run(z: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(("shift", "log_scale", "below"), values, strict=True))
        return functional_call(model, state, (None, z))

    leaves = (z, model.shift, model.log_scale, model.below)
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("batches", ["full", "minibatch"])
def test_vmap_over_stacked_models_is_a_loop(batches: str) -> None:
    models = [made(12, batches=batches, seed=seed)[0] for seed in range(3)]
    x = torch.tensor([0, 7]) if batches == "minibatch" else None
    z = torch.randn(3, 4, 3, dtype=torch.float64)
    skeleton = copy.deepcopy(models[0]).to("meta")
    out = vmap(lambda p, b, z: functional_call(skeleton, (p, b), (x, z)))(
        *stack_module_state(models), z
    )
    for i, model in enumerate(models):
        torch.testing.assert_close(out[i], model.log_prob(x, z[i]))


def test_mean_and_sample() -> None:
    model, _ = made(12)
    z = torch.randn(1, 3, dtype=torch.float64)
    with random.stream(0):
        x = model.sample(z.expand(20_000, 3)) - model.mean(z)
    products = x[:, :, None] * x[:, None, :]
    error = products.std(0) / math.sqrt(20_000)
    assert ((products.mean(0) - model.covariance).abs() < 4 * error).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: _with(torch.eye(2)), ShapeError, "covariance: shape"),
        (lambda: _with(torch.ones(3, 3)), SpecError, "covariance: is singular or indefinite"),
        (lambda: _with(-torch.eye(3)), SpecError, "covariance: is singular or indefinite"),
        (lambda: _with(torch.eye(3) + torch.ones(3, 3).triu(1)), SpecError, "is not symmetric"),
        (
            lambda: CorrelatedGaussianModel(torch.randn(3, 3).double()).maximum_likelihood(),
            SpecError,
            "has not full rank, so the noise covariance that fits best is singular",
        ),
        (
            lambda: CorrelatedGaussianModel(torch.randn(2, 5)).maximum_likelihood(),
            SpecError,
            "has not full rank",
        ),
        (
            lambda: CorrelatedGaussianModel(torch.zeros(3, 2), batches="separate"),  # type: ignore[arg-type]
            SpecError,
            "batches: unknown value 'separate'",
        ),
        (lambda: made()[0].log_prob(None, torch.zeros(2)), ShapeError, "z: shape"),
        (lambda: made()[0].log_prob(torch.tensor([0]), torch.zeros(3)), SpecError, "x: given"),
    ],
)
def test_mistakes_are_named(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def _with(covariance: Tensor) -> CorrelatedGaussianModel:
    return CorrelatedGaussianModel(torch.randn(9, 3).double(), covariance=covariance)
