"""A flow on positions and momenta after the leapfrog steps: exact weights, gradients, settings, known defects."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

import varflow as vf
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.evaluation import LinearGaussian
from varflow.flows import Flow, InverseAutoregressive, Planar
from varflow.model import LogJoint
from varflow.posteriors import Gaussian, Hamiltonian

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor([[0.3, -0.5, 0.8], [1.2, 0.4, -0.7]], dtype=torch.float64)
FLOWS = {
    "planar": partial(Planar, length=3),
    "iaf": partial(InverseAutoregressive, length=2, hidden=(6,)),
}


class Same(nn.Module):
    features = 3

    def forward(self, x):
        return x


def vae(flow, stirred: bool = True) -> tuple[LinearGaussian, vf.Model]:
    torch.manual_seed(1)
    exact = LinearGaussian(
        torch.tensor([[0.6, 0.2], [0.2, -0.6], [0.0, 0.3]]), torch.tensor([0.1, -0.2, 0.3]), 1.0
    )
    decoder = vf.networks.MLP(2, 3, hidden=())
    base = Gaussian(2, Same())
    with torch.no_grad():
        decoder.last.weight.copy_(exact.weight)
        decoder.last.bias.copy_(exact.bias)
        base.moments.weight.mul_(0.3)
        base.moments.bias.copy_(torch.tensor([0.0, 0.0, 0.1, 0.1]))
    posterior = Hamiltonian(
        base, 2, "free", "step", bound=1.0, initial_step=0.3, initial_temperature=1.3, flow=flow
    )
    if stirred and posterior.flow is not None:
        with torch.no_grad():
            for parameter in posterior.flow.parameters():
                parameter.add_(0.08 * torch.randn_like(parameter))
    likelihood = vf.likelihoods.Gaussian(decoder, 3, scale=1.0)
    return exact, vf.Model(vf.priors.StandardNormal(2), likelihood, posterior)


def excess(exact: LinearGaussian, model: vf.Model, samples: int = 100_000) -> tuple[float, bool]:
    """How many standard errors E[w / p(x)] is from 1, at worst over x; whether a tenth of the weights count."""
    with random.stream(4), torch.no_grad():
        ratio = (model.terms(X, samples).log_weight - exact.log_prob(X)).exp()
    enough = bool((ratio.mean(0).square() / ratio.square().mean(0) > 0.1).all())
    return float(((ratio.mean(0) - 1).abs() / (ratio.std(0) / math.sqrt(samples))).max()), enough


@pytest.mark.parametrize("flow", FLOWS)
def test_weights_average_to_the_evidence(flow):
    exact, model = vae(FLOWS[flow])
    off, enough = excess(exact, model)
    assert enough
    assert off < 4
    _, without = vae(None)
    with random.stream(1):
        moved = model.terms(X, 3)
    with random.stream(1):
        unmoved = without.terms(X, 3)
    assert (moved.z - unmoved.z).abs().max() > 0.01
    assert moved.draw.ladj.abs().max() > 1e-3


def test_an_identity_changes_nothing():
    _, model = vae(partial(Planar, length=3), stirred=False)
    with torch.no_grad():
        model.posterior.flow.u.zero_()
    _, without = vae(None)
    for field in ("z", "log_q", "log_likelihood"):
        with random.stream(1):
            one = getattr(model.terms(X, 5), field)
        with random.stream(1):
            two = getattr(without.terms(X, 5), field)
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


class WithoutLadj(Flow):
    """The determinant forgotten."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow.features)
        self.flow = flow

    def push(self, z, local=()):
        z, ladj = self.flow.push(z, local)
        return z, torch.zeros_like(ladj)

    def pull(self, z, local=()):
        return self.flow.pull(z, local)


class Shuffled(WithoutLadj):
    """h-vae permutes the examples of a batch where it means to permute features."""

    def push(self, z, local=()):
        z, ladj = self.flow.push(z, local)
        return z.flip(-2), ladj.flip(-1)


def test_a_forgotten_determinant_is_caught():
    exact, model = vae(FLOWS["planar"])
    model.posterior.flow = WithoutLadj(model.posterior.flow)
    assert excess(exact, model)[0] > 8


@pytest.mark.parametrize("mutant", [None, Shuffled])
def test_no_example_touches_another(mutant):
    _, model = vae(FLOWS["iaf"])
    if mutant is not None:
        model.posterior.flow = mutant(model.posterior.flow)
    x = X.clone().requires_grad_()
    with random.stream(1):
        terms = model.terms(x, 2)
    (gradient,) = torch.autograd.grad(terms.log_weight[:, 0].sum(), x)
    assert gradient[0].abs().max() > 1e-3
    assert (gradient[1].abs().max() > 1e-3) == (mutant is Shuffled)


@pytest.mark.parametrize("flow", FLOWS)
def test_gradients_by_finite_differences(flow):
    _, model = vae(FLOWS[flow])

    def loss():
        with random.stream(5):
            return -model.terms(X, 3).log_weight.mean()

    parameters, h = list(model.parameters()), 1e-5
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(loss(), parameters), strict=True
    ):
        flat, found = parameter.detach().view(-1), gradient.reshape(-1)
        for i in range(0, flat.numel(), max(1, flat.numel() // 5)):
            centre, values = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = centre + sign * h
                values.append(loss().item())
            flat[i] = centre
            assert abs((values[0] - values[1]) / (2 * h) - found[i].item()) < 1e-7


def test_a_trajectory_has_one_point_more_and_ends_where_the_draw_does():
    _, model = vae(FLOWS["planar"])
    q = model.posterior(X)
    with random.stream(6):
        path = q.trajectory(LogJoint(model, X), 2)
    with random.stream(6):
        draw = q.draw(2, LogJoint(model, X))
    assert path.shape == (4, 2, 2, 2)
    torch.testing.assert_close(path[-1], draw.z)


def test_from_the_settings(tmp_path):
    torch.set_default_dtype(torch.float32)
    x = (torch.rand(64, 6) < torch.rand(64, 1)).float()
    settings = {
        "latent": 2,
        "hidden": 8,
        "leapfrog": 2,
        "extended_flow": "iaf",
        "extended_length": 2,
    }
    run = vf.fit("digits", x, epochs=2, batch=32, quiet=True, out=tmp_path / "run", **settings)
    again = vf.load(tmp_path / "run", data=x)
    assert again.model.posterior.flow.features == 4
    found = again.evaluate(samples=30)
    assert found.estimates["elbo"].value <= -found.estimates["nll"].value
    assert run.outcome["finished"]
    for wrong, message in (
        ({"leapfrog": 0}, "extended_flow: belongs to the Hamiltonian posterior, and without leapfrog steps"),
        ({"extended_flow": "iav"}, "extended_flow: unknown value 'iav'"),
        ({"extended_length": 0}, "extended_length: was 0"),
    ):
        with pytest.raises(SpecError, match=message):
            vf.fit("digits", x, steps=1, quiet=True, **{**settings, **wrong})


def test_what_does_not_fit_is_refused():
    with pytest.raises(SpecError, match="needs 4 features and no context"):
        Hamiltonian(Gaussian(2), 2, flow=Planar(2))
    with pytest.raises(SpecError, match="0 steps have no momenta"):
        Hamiltonian(Gaussian(2), 0, flow=Planar(4))
