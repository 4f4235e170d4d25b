"""The closed form of the Hamiltonian posterior's gap, against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from varflow.core.errors import ShapeError, SpecError
from varflow.targets import best_hamiltonian_gap, generate, hamiltonian_gap
from varflow.targets.hamiltonian_bound import quadratic_tempering


def problem(features: int = 3, steps: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(features + steps)

    def positive(*shape: int) -> Tensor:
        return 0.3 + torch.rand(*shape, generator=generator, dtype=torch.float64)

    return {
        "precision": 4 * positive(features),
        "mean": torch.randn(features, generator=generator, dtype=torch.float64),
        "steps": 0.3 * positive(steps, features),
        "tempering": positive(steps),
        "base_mean": torch.randn(features, generator=generator, dtype=torch.float64),
        "base_scale": positive(features),
    }


def log_weights(p: dict[str, Tensor], samples: int) -> Tensor:
    """log w − log p(x) of simulated trajectories, in the form with γ₀ (no β₀ in it)."""
    d = len(p["precision"])
    generator = torch.Generator().manual_seed(1)
    noise, gamma = torch.randn(2, samples, d, generator=generator, dtype=torch.float64)
    z = p["base_mean"] + p["base_scale"] * noise
    rho = gamma / p["tempering"].prod()
    log_q = Independent(Normal(p["base_mean"], p["base_scale"]), 1).log_prob(z)
    standard = Independent(Normal(torch.zeros(d).double(), 1.0), 1)
    for size, factor in zip(p["steps"], p["tempering"], strict=True):
        rho = rho - 0.5 * size * p["precision"] * (z - p["mean"])
        z = z + size * rho
        rho = factor * (rho - 0.5 * size * p["precision"] * (z - p["mean"]))
    log_p = Independent(Normal(p["mean"], p["precision"].rsqrt()), 1).log_prob(z)
    return log_p + standard.log_prob(rho) - log_q - standard.log_prob(gamma)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("features", [1, 3])
def test_gap_by_simulation(features: int, steps: int) -> None:
    p = problem(features, steps)
    short = -log_weights(p, 100_000)
    error = short.std() / math.sqrt(len(short))
    assert abs(short.mean() - hamiltonian_gap(**p)) < 4 * error


def test_gap_of_no_step_is_a_divergence() -> None:
    p = problem(3, 0)
    base = Independent(Normal(p["base_mean"], p["base_scale"]), 1)
    posterior = Independent(Normal(p["mean"], p["precision"].rsqrt()), 1)
    torch.testing.assert_close(hamiltonian_gap(**p), kl_divergence(base, posterior))


def test_gap_of_the_posterior_itself_after_a_quarter_turn() -> None:
    """Exact dynamics keep N(μ, 1/a) × N(0, I); leapfrog does as its steps shrink, quadratically."""
    a, mu = torch.tensor([2.0, 0.5]).double(), torch.tensor([1.0, -1.0]).double()
    gaps = []
    for steps in (50, 100):
        size = torch.full((steps,), 1.0 / steps, dtype=torch.float64)
        gaps.append(hamiltonian_gap(a, mu, size, base_mean=mu, base_scale=a.rsqrt()).item())
    assert 0 < gaps[1] < gaps[0] < 1e-6


def test_gap_is_never_negative_and_has_gradients() -> None:
    for steps in range(6):
        assert hamiltonian_gap(**problem(2, steps)) > 0
    p = {name: tensor.requires_grad_() for name, tensor in problem(2, 3).items()}
    assert torch.autograd.gradcheck(lambda *v: hamiltonian_gap(*v), tuple(p.values()))


def test_shapes_of_steps() -> None:
    p = problem(3, 2)
    del p["base_mean"], p["base_scale"]
    same = {**p, "steps": torch.tensor([[0.1] * 3, [0.2] * 3]).double()}
    flat = {**p, "steps": torch.tensor([0.1, 0.2]).double()}
    torch.testing.assert_close(hamiltonian_gap(**same), hamiltonian_gap(**flat))
    with pytest.raises(ShapeError, match="steps: shape"):
        hamiltonian_gap(**{**p, "steps": torch.zeros(2, 2)})
    with pytest.raises(ShapeError, match="tempering: shape"):
        hamiltonian_gap(**{**p, "tempering": torch.ones(3).double()})


def test_quadratic_schedule() -> None:
    alpha = quadratic_tempering(5.0, 4)
    assert alpha.prod() == pytest.approx(1 / 5)
    # 1/√β_k = (1 − 1/√β₀) k²/K² + 1/√β₀ at k = 1, over the same at k = 0.
    assert alpha[0] == pytest.approx(((1 - 5) / 16 + 5) / 5)
    assert quadratic_tempering(5.0, 1).tolist() == pytest.approx([0.2])


def _posterior(features: int, count: int) -> Tensor:
    return count / generate(features, 1).scale.square() + 1


@pytest.mark.parametrize(
    ("features", "count", "gap", "temperature"),
    [
        (25, 256, 1_853, 6.5),
        (25, 10_000, 12_275, 16.4),
        (100, 256, 7_534, 6.5),
        (100, 10_000, 49_944, 16.4),
    ],
)
def test_best_gap_reproduces_the_known_numbers(
    features: int, count: int, gap: float, temperature: float
) -> None:
    """Those are minima over a coarser grid, of q₀ centred on the posterior mean: none is beaten by 0.3 %."""
    best = best_hamiltonian_gap(_posterior(features, count), 0.0)
    assert 0.997 * gap < best.gap <= gap
    assert best.temperature == pytest.approx(temperature, rel=0.05)
    again = hamiltonian_gap(_posterior(features, count), 0.0, best.steps[None], best.tempering)
    assert again.item() == pytest.approx(best.gap)


def test_best_gap_without_tempering() -> None:
    best = best_hamiltonian_gap(_posterior(25, 256), 0.0, tempered=False)
    assert best.gap == pytest.approx(32_279, abs=0.5)
    assert best.temperature == 1


def test_best_gap_is_a_minimum() -> None:
    a, mu = _posterior(5, 50), torch.linspace(-1, 1, 5).double()
    best = best_hamiltonian_gap(a, mu, steps=3)
    for factor in (0.97, 1.03):
        moved = hamiltonian_gap(a, mu, factor * best.steps.expand(3, -1), best.tempering)
        assert moved > best.gap
        alpha = quadratic_tempering(factor * best.temperature, 3)
        assert hamiltonian_gap(a, mu, best.steps.expand(3, -1), alpha) > best.gap
    assert best.gap < best_hamiltonian_gap(a, mu, steps=1).gap


def test_bad_settings() -> None:
    with pytest.raises(SpecError, match="steps: was 0"):
        best_hamiltonian_gap(torch.ones(2), 0.0, steps=0)
    with pytest.raises(SpecError, match="precision: has an entry"):
        best_hamiltonian_gap(torch.zeros(2), 0.0)
