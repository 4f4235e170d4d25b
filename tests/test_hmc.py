"""The leapfrog map against its exact properties, and acceptance and adaptation against known answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varflow import hmc
from varflow.core import random
from varflow.core.errors import ShapeError, SpecError

pytestmark = pytest.mark.usefixtures("float64")


def bumpy(z):
    """A log-density with no symmetry, whose gradient is not linear."""
    return -0.3 * z.square().sum(-1) + torch.sin(1.3 * z).sum(-1) + 0.2 * z.prod(-1).tanh()


def explicit(count: int):
    """The leapfrog of the textbook: two gradients a step, temper after it."""

    def run(z, rho, gradient, sizes, temper):
        for k in range(count):
            rho = rho + 0.5 * sizes[k] * gradient(z)
            z = z + sizes[k] * rho
            rho = rho + 0.5 * sizes[k] * gradient(z)
            rho = temper[k] * rho
        return z, rho

    return run


def phase_jacobian(run, features: int, leapfrog=hmc.leapfrog):
    z, rho = torch.randn(features), torch.randn(features)

    def whole(both):
        end = run(leapfrog, both[:features], both[features:])
        return torch.cat([end.z, end.rho])

    return torch.autograd.functional.jacobian(whole, torch.cat([z, rho]))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_shared_gradient_changes_nothing(steps):
    z, rho = torch.randn(2, 5, 3)
    sizes = list(0.3 * torch.rand(steps, 3))
    temper = list(torch.rand(steps))
    slope = hmc.slope(bumpy)
    end = hmc.leapfrog(z, rho, slope, sizes, steps, temper)
    expected = explicit(steps)(z, rho, lambda z: slope(z)[1], sizes, temper)
    torch.testing.assert_close(end.z, expected[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(end.rho, expected[1], rtol=0, atol=1e-13)
    torch.testing.assert_close(end.log_density, bumpy(end.z))


@pytest.mark.parametrize(("steps", "expected"), [(0, 0), (1, 2), (4, 5), (15, 16)])
@pytest.mark.parametrize("tempered", [False, True])
def test_k_steps_take_k_plus_one_gradients(steps, expected, tempered):
    calls = []

    def counted(z):
        calls.append(z)
        return bumpy(z)

    temper = [torch.tensor(0.9)] * steps if tempered else None
    hmc.leapfrog(torch.randn(4, 2), torch.randn(4, 2), hmc.slope(counted), 0.1, steps, temper)
    assert len(calls) == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.floats(1e-3, 0.5), st.integers(0, 2**31))
def test_untempered_steps_are_undone_by_reversing_the_momentum(steps, features, size, seed):
    torch.manual_seed(seed)
    z, rho = torch.randn(2, 3, features, dtype=torch.float64)
    slope = hmc.slope(bumpy)
    there = hmc.leapfrog(z, rho, slope, size, steps)
    back = hmc.leapfrog(there.z, -there.rho, slope, size, steps)
    torch.testing.assert_close(back.z, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(-back.rho, rho, rtol=0, atol=1e-9)


def volume_error(steps, features, tempered, leapfrog=hmc.leapfrog) -> float:
    torch.manual_seed(3)
    sizes = list(0.4 * torch.rand(steps, features))
    temper = list(0.5 + torch.rand(steps)) if tempered else None
    jacobian = phase_jacobian(
        lambda move, z, rho: move(z, rho, hmc.slope(bumpy), sizes, steps, temper),
        features,
        leapfrog,
    )
    expected = features * sum(a.log() for a in temper) if temper else torch.zeros(())
    return float((torch.linalg.slogdet(jacobian).logabsdet - expected).abs())


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("tempered", [False, True])
def test_volume_is_kept_and_tempering_has_its_closed_form(features, steps, tempered):
    assert volume_error(steps, features, tempered) < 1e-12


def test_a_drift_with_the_momentum_before_its_kick_is_caught():
    """pythae 0.1.2: not leapfrog, and not volume-preserving."""

    def late_kick(z, rho, slope, step, steps, temper=None):
        for k in range(steps):
            before = rho
            rho = rho + 0.5 * step[k] * slope(z)[1]
            z = z + step[k] * before
            rho = rho + 0.5 * step[k] * slope(z)[1]
        return hmc.Phase(z, rho, None)

    assert volume_error(3, 2, False, late_kick) > 1e-3


def test_energy_is_conserved_to_second_order():
    """Halving ε divides the energy error of a fixed length of time by four."""
    z, rho = torch.randn(2, 20, 2)

    def error(steps):
        end = hmc.leapfrog(z, rho, hmc.slope(bumpy), 1.0 / steps, steps)
        energy = [bumpy(a) - 0.5 * b.square().sum(-1) for a, b in ((z, rho), (end.z, end.rho))]
        return (energy[1] - energy[0]).abs().mean()

    assert 3.5 < error(16) / error(32) < 4.5


@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (3,), "step", "both"])
def test_affine_maps_composed_first_give_the_same(tempered, shape):
    steps, features = 10, 3
    a, b = torch.tensor([1.0, 40.0, 900.0]), torch.tensor([0.3, -70.0, 800.0])
    if shape in ("step", "both"):
        size = list(0.05 * torch.rand(steps, features if shape == "both" else 1))
    else:
        size = 0.05 * torch.rand(shape)
    temper = list(0.7 + 0.3 * torch.rand(steps)) if tempered else None
    z, rho = torch.randn(2, 6, 4, features)
    generic = hmc.leapfrog(
        z, rho, hmc.slope(lambda z: (b * z - 0.5 * a * z.square()).sum(-1)), size, steps, temper
    )
    composed = hmc.affine_leapfrog(z, rho, (b, a), size, steps, temper)
    for one, two in ((composed.z, generic.z), (composed.rho, generic.rho)):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_affine_gradients_are_those_of_the_generic_path():
    b, a, size = (torch.rand(3).requires_grad_() for _ in range(3))
    z, rho = torch.randn(2, 5, 3)
    temper = [torch.tensor(0.9), torch.tensor(0.8)]
    sizes = [size, 2 * size]
    total = []
    for end in (
        hmc.leapfrog(
            z, rho, hmc.slope(lambda z: (b * z - 0.5 * a * z * z).sum(-1)), sizes, 2, temper
        ),
        hmc.affine_leapfrog(z, rho, (b, a), sizes, 2, temper),
    ):
        value = (end.z.square() + end.rho.sin()).sum()
        total.append(torch.autograd.grad(value, [b, a, size], retain_graph=True))
    for one, two in zip(*total, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_an_explicit_gradient_is_preferred_and_equal():
    class Quadratic:
        asked = 0

        def __call__(self, z):
            return -0.5 * z.square().sum(-1)

        def value_and_gradient(self, z):
            self.asked += 1
            return self(z), -z

    density = Quadratic()
    z, rho = torch.randn(2, 3, 2)
    one = hmc.leapfrog(z, rho, hmc.slope(density), 0.2, 3)
    two = hmc.leapfrog(z, rho, hmc.slope(density.__call__), 0.2, 3)
    assert density.asked == 4
    for left, right in zip(one, two, strict=True):
        torch.testing.assert_close(left, right)


def test_gradients_work_where_nothing_is_recorded():
    with torch.no_grad():
        value, force = hmc.slope(bumpy)(torch.randn(4, 2))
    assert not value.requires_grad
    assert not force.requires_grad
    assert force.abs().sum() > 0
    with torch.inference_mode():
        assert hmc.slope(bumpy)(torch.randn(4, 2))[1].abs().sum() > 0


def test_vmap_over_trajectories_with_their_own_steps():
    z, rho = torch.randn(2, 5, 3, 2)
    sizes = 0.2 * torch.rand(5, 2)

    def run(z, rho, size):
        return hmc.leapfrog(z, rho, hmc.slope(bumpy), size, 3)[:2]

    together = torch.func.vmap(run)(z, rho, sizes)
    for i in range(5):
        for whole, part in zip(together, run(z[i], rho[i], sizes[i]), strict=True):
            torch.testing.assert_close(whole[i], part)


def test_wrong_arguments_are_named():
    z = torch.randn(4, 2)
    with pytest.raises(ShapeError, match=r"log_joint: gave shape \(4, 2\)"):
        hmc.slope(lambda z: -z.square())(z)
    with pytest.raises(ShapeError, match=r"log_joint: gave shape \(\)"):
        hmc.slope(lambda z: -z.square().sum())(z)
    with pytest.raises(SpecError, match="step: has 2 entries for 3 steps"):
        hmc.leapfrog(z, z, hmc.slope(bumpy), [torch.ones(()), torch.ones(())], 3)
    with pytest.raises(SpecError, match="temper: has 1 entries for 3 steps"):
        hmc.leapfrog(z, z, hmc.slope(bumpy), 0.1, 3, [torch.ones(())])
    with pytest.raises(SpecError, match="steps: was -1"):
        hmc.leapfrog(z, z, hmc.slope(bumpy), 0.1, -1)


def test_acceptance_has_the_probability_it_reports():
    ratio = torch.tensor([-torch.inf, -2.0, -0.5, 0.0, 3.0, torch.nan])
    chains = 20_000
    with random.stream(1):
        result = hmc.accept(
            torch.zeros(chains, 6, 1), torch.ones(chains, 6, 1), ratio.expand(chains, 6)
        )
    expected = torch.tensor([0.0, math.exp(-2), math.exp(-0.5), 1.0, 1.0, 0.0])
    torch.testing.assert_close(result.probability[0], expected)
    assert torch.equal(result.z[..., 0], result.moved.double())
    error = (expected * (1 - expected) / chains).sqrt()
    assert ((result.moved.double().mean(0) - expected).abs() <= 4 * error).all()


def test_a_chain_of_accepted_trajectories_keeps_its_target():
    """Moments of N(1, 0.5²) from 400 chains that start in it, at a step where a fifth is rejected."""

    def target(z):
        return -2.0 * (z - 1).square().sum(-1)

    with random.stream(0):
        z = 1 + 0.5 * random.normal((400, 1), "start")
        rates = []
        sums = []
        for _ in range(100):
            rho = random.normal(z.shape, "momentum")
            end = hmc.leapfrog(z, rho, hmc.slope(target), 0.85, 2)
            here = target(z) - 0.5 * rho.square().sum(-1)
            there = end.log_density - 0.5 * end.rho.square().sum(-1)
            z, _, probability = hmc.accept(z, end.z, there - here)
            rates.append(probability.mean())
            sums.append(z[:, 0])
    assert 0.5 < torch.stack(rates).mean() < 0.95
    each = torch.stack(sums)
    for values, exact in ((each, 1.0), ((each - 1).square(), 0.25)):
        by_chain = values.mean(0)
        error = by_chain.std() / math.sqrt(len(by_chain))
        assert abs(by_chain.mean() - exact) < 4 * error


@pytest.mark.parametrize("start", [1e-4, 5.0])
def test_step_sizes_adapt_to_their_acceptance_rate(start):
    """acceptance(ε) = exp(−ε²) is 0.65 at ε = 0.656, for every chain from wherever it starts."""
    state = hmc.start_adapting(torch.full((3,), start))
    for _ in range(1000):
        state = hmc.adapt(state, torch.exp(-(2 * state.log_step).exp()), target=0.65)
    torch.testing.assert_close(
        state.log_average.exp(), torch.full((3,), math.sqrt(-math.log(0.65))), rtol=0.02, atol=0
    )
