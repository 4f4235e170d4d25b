"""Defects of other Hamiltonian VAEs, each put into this one, each found by a check that the right code passes.

The checks are the ones the library is held to: weights average to the evidence (a linear-Gaussian VAE), the ELBO lies
below it, the map of positions and momenta keeps volume, and gradients are those of finite differences. The defects
are pythae's, as its HVAE's training step and its likelihood estimate have them; those of h-vae stand in
test_hamiltonian.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import varflow as vf
from varflow import hmc
from varflow.core import random
from varflow.evaluation import LinearGaussian, importance_sample
from varflow.posteriors import Gaussian, Hamiltonian
from varflow.posteriors import gaussian as base_room
from varflow.posteriors import hamiltonian as room

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor([[0.3, -0.5, 0.8], [1.2, 0.4, -0.7]], dtype=torch.float64)
#: Of each x, with 1,000 samples each.
COPIES = 160


class Same(nn.Module):
    features = 3

    def forward(self, x):
        return x


def vae(decoder: nn.Module | None = None) -> tuple[LinearGaussian, vf.Model]:
    """p(x|z) = N(Wz + b, I), q = three tempered leapfrog steps from a Gaussian a little too wide."""
    exact = LinearGaussian(
        torch.tensor([[0.6, 0.2], [0.2, -0.6], [0.0, 0.3]]), torch.tensor([0.1, -0.2, 0.3]), 1.0
    )
    linear = vf.networks.MLP(2, 3, hidden=())
    base = Gaussian(2, Same())
    with torch.no_grad():
        linear.last.weight.copy_(exact.weight)
        linear.last.bias.copy_(exact.bias)
        base.moments.weight.mul_(0.3)
        base.moments.bias.copy_(torch.tensor([0.0, 0.0, 0.1, 0.1]))
    posterior = Hamiltonian(
        base, 3, "fixed", "dimension", bound=1.0, initial_step=0.3, initial_temperature=1.8
    )
    likelihood = vf.likelihoods.Gaussian(decoder or linear, 3, scale=1.0)
    return exact, vf.Model(vf.priors.StandardNormal(2), likelihood, posterior)


# The checks: how far off, in units in which the right code has about 1 or less.


def weights_off() -> float:
    """Standard errors between the mean weight and p(x), through the estimator that test scores come from."""
    exact, model = vae()
    x = X.repeat(COPIES, 1)
    ratio = (importance_sample(model, x, 1000).log_px - exact.log_prob(x)).exp().view(COPIES, 2)
    error = ratio.std(0) / math.sqrt(COPIES)
    return float(((ratio.mean(0) - 1).abs() / error).max())


def elbo_off() -> float:
    """Standard errors by which the training objective's −loss lies above log p(x), or 0."""
    exact, model = vae()
    objective = vf.objectives.ELBO()
    with torch.no_grad(), random.stream(3):
        terms = model.terms(X, 4000)
        each = torch.stack([-objective(slice_of(terms, s), 1.0) for s in range(400)])
    excess = each.mean() - exact.log_prob(X).mean()
    return float(excess / (each.std() / math.sqrt(len(each))))


def slice_of(terms: vf.model.Terms, part: int) -> vf.model.Terms:
    rows = slice(10 * part, 10 * part + 10)
    draw = terms.draw._replace(
        control=None if terms.draw.control is None else terms.draw.control[rows]
    )
    return vf.model.Terms(
        terms.z[rows],
        terms.log_likelihood[rows],
        terms.log_prior[rows],
        terms.log_q[rows],
        draw,
    )


def volume_off() -> float:
    """|log|det ∂(z_K, ρ_K)/∂(z₀, ρ₀)| − D log √β₀| of one trajectory, over 1e-9."""
    _, model = vae(vf.networks.MLP(2, 3, hidden=(4,), activation="tanh"))
    steps, factors, temperature = model.posterior.schedule()
    slope = hmc.slope(vf.model.LogJoint(model, X[:1]))

    def end(start: Tensor) -> Tensor:
        z, rho = start.chunk(2)
        last = hmc.leapfrog(z.view(1, 1, 2), rho.view(1, 1, 2), slope, steps, 3, factors)
        return torch.cat([last.z.flatten(), last.rho.flatten()])

    jacobian = torch.autograd.functional.jacobian(end, torch.tensor([0.3, -0.8, 0.5, 1.1]))
    found = torch.linalg.slogdet(jacobian).logabsdet
    return float((found + 2 * temperature.detach().log()).abs() / 1e-9)


def gradient_off() -> float:
    """Largest difference of the ELBO's gradient from central differences, over 1e-7."""
    _, model = vae(vf.networks.MLP(2, 3, hidden=(4,), activation="tanh"))

    def loss() -> Tensor:
        with random.stream(5):
            return vf.objectives.ELBO()(model.terms(X, 3), 1.0)

    parameters = list(model.parameters())
    worst, h = 0.0, 1e-5
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(loss(), parameters), strict=True
    ):
        flat, found = parameter.detach().view(-1), gradient.reshape(-1)
        for i in range(flat.numel()):
            centre, values = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = centre + sign * h
                values.append(loss().item())
            flat[i] = centre
            worst = max(worst, abs((values[0] - values[1]) / (2 * h) - found[i].item()))
    return worst / 1e-7


CHECKS: dict[str, tuple[Callable[[], float], float]] = {
    "weights": (weights_off, 4.0),
    "ELBO": (elbo_off, 4.0),
    "volume": (volume_off, 1.0),
    "gradient": (gradient_off, 1.0),
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_right_code_passes(check):
    off, allowed = CHECKS[check]
    assert off() < allowed


# The defects.


def drift_by_the_old_momentum(z, rho, slope, step, steps, temper=None):
    """The position moves by the momentum it had before its half step."""
    value = None
    for k in range(steps):
        before = rho
        rho = rho + 0.5 * step[k] * slope(z)[1]
        z = z + step[k] * before
        value, force = slope(z)
        rho = rho + 0.5 * step[k] * force
        rho = rho if temper is None else temper[k] * rho
    return hmc.Phase(z, rho, value)


def momentum_not_tempered(z, rho, slope, step, steps, temper=None, leapfrog=hmc.leapfrog):
    """The tempered momentum is computed and then overwritten."""
    return leapfrog(z, rho, slope, step, steps, None)


def gradient_of_first_order(z, rho, slope, step, steps, temper=None, leapfrog=hmc.leapfrog):
    """The gradient of log p(x|z) is taken without its own graph; that of the prior keeps it."""

    def constant(z):
        value, force = slope(z)
        return value, (force + z).detach() - z

    return leapfrog(z, rho, constant, step, steps, temper)


def softplus_sampled_exponential_charged(monkeypatch):
    """z₀ has the scale softplus(log σ²), and is charged with σ."""
    right = base_room.GaussianConditional.draw

    def draw(self, samples=1, log_joint=None, hold=False):
        wider = base_room.GaussianConditional(
            self.mean, nn.functional.softplus(2 * self.log_scale).log(), None, ()
        )
        found = right(wider, samples, log_joint, hold)
        return found._replace(log_q=self.log_prob(found.z), control=None)

    monkeypatch.setattr(base_room.GaussianConditional, "draw", draw)


def first_momentum_charged_at_the_end(monkeypatch):
    """log N(ρ₀; 0, 1/β₀) is computed from ρ_K, and with √β₀ for β₀."""
    right = room.HamiltonianConditional.draw

    def draw(self, samples=1, log_joint=None, hold=False):
        found = right(self, samples, log_joint, hold)
        kinetic = 0.5 * found.momentum.square().sum(-1)
        base = self.base.log_prob(found.z0)
        return found._replace(log_q=base + kinetic - kinetic / self.posterior.temperature)

    monkeypatch.setattr(room.HamiltonianConditional, "draw", draw)


def means_without_their_constant(monkeypatch, forgotten=0):
    """log q₀(z₀) and log N(γ₀) are replaced by their means, −Σ log σ, and the D nats beside them are forgotten."""
    right = room.HamiltonianConditional.draw

    def draw(self, samples=1, log_joint=None, hold=False):
        found = right(self, samples, log_joint, hold)
        kinetic = 0.5 * found.momentum.square().sum(-1)
        features = found.z.shape[-1]
        entropy = self.base.log_scale.sum(-1) + 0.5 * features * math.log(2 * math.pi)
        return found._replace(log_q=kinetic - entropy - forgotten * features, control=None)

    monkeypatch.setattr(room.HamiltonianConditional, "draw", draw)


def means_without_their_constant_upwards(monkeypatch):
    """The same with the D nats counted for the bound instead of against it: above log p(x)."""
    means_without_their_constant(monkeypatch, forgotten=2)


def leapfrog_is(mutant) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(hmc, "leapfrog", mutant)


#: defect → how it is put in, and the checks that see it.
DEFECTS = {
    "drift by the old momentum": (
        leapfrog_is(drift_by_the_old_momentum),
        ["weights", "volume"],
    ),
    "momentum not tempered": (leapfrog_is(momentum_not_tempered), ["weights", "volume"]),
    "gradient of first order": (leapfrog_is(gradient_of_first_order), ["gradient"]),
    "one scale sampled, another charged": (softplus_sampled_exponential_charged, ["weights"]),
    "first momentum charged at the end": (first_momentum_charged_at_the_end, ["weights"]),
    "means without their constant": (means_without_their_constant, ["weights"]),
    "D nats too many": (means_without_their_constant_upwards, ["weights", "ELBO"]),
}


@pytest.mark.parametrize(
    ("defect", "check"), [(name, check) for name, (_, seen) in DEFECTS.items() for check in seen]
)
def test_each_defect_is_caught(monkeypatch, defect, check):
    DEFECTS[defect][0](monkeypatch)
    off, allowed = CHECKS[check]
    assert off() > 2 * allowed


def test_every_image_size_is_scored():
    """pythae's estimate is tied to 28×28."""
    for shape in ((1, 5, 7), (3, 4, 4)):
        encoder = vf.networks.MLP(shape, hidden=(6,))
        decoder = vf.networks.MLP(2, shape, hidden=(6,), activation="tanh")
        model = vf.Model(
            vf.priors.StandardNormal(2),
            vf.likelihoods.Bernoulli(decoder, shape),
            Hamiltonian(Gaussian(2, encoder), 2),
        )
        assert importance_sample(model, torch.ones(3, *shape), 10).log_px.shape == (3,)


@pytest.mark.parametrize("samples", [1, 50, 150, 250])
def test_as_many_samples_are_drawn_as_asked_for(samples, monkeypatch):
    """pythae's estimate of 1, 50, 150 and 250 samples uses 100, 100, 100 and 200."""
    _, model = vae()
    drawn, right = [], room.HamiltonianConditional.draw

    def draw(self, samples=1, log_joint=None, hold=False):
        drawn.append(samples)
        return right(self, samples, log_joint, hold)

    monkeypatch.setattr(room.HamiltonianConditional, "draw", draw)
    with torch.no_grad():
        importance_sample(model, X, samples)
    assert sum(drawn) == samples
