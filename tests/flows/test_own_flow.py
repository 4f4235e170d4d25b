"""A flow of a user's own: the forward map is enough until something asks for the inverse."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import varflow as vf
from varflow import flows, native, networks
from varflow.core.errors import SpecError
from varflow.priors import Flow as FlowPrior


class Bend(flows.Flow):
    """z + s tanh z with a scale s > 0 for each feature."""

    def __init__(self, features, context_features=0):
        super().__init__(features, context_features)
        self.a = nn.Parameter(torch.zeros(features))

    def push(self, z, local=()):
        s, h = F.softplus(self.a), z.tanh()
        return z + s * h, torch.log1p(s * (1 - h * h)).sum(-1)


def posterior():
    return vf.posteriors.Gaussian(2, vf.networks.MLP(6, hidden=(8,)), Bend)


def test_the_forward_map_is_enough_to_train_and_to_evaluate():
    likelihood = vf.likelihoods.Bernoulli(vf.networks.MLP(2, 6, hidden=(8,)), (6,))
    model = vf.Model(vf.priors.StandardNormal(2), likelihood, posterior())
    x = (torch.rand(100, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    before = model.posterior.flow.a.detach().clone()
    run = vf.fit(model, x, steps=5, quiet=True)
    assert not torch.equal(model.posterior.flow.a, before)
    assert run.evaluate(samples=20).estimates["nll"].value > 0


def test_the_forward_map_has_the_checks_of_every_flow():
    with pytest.raises(vf.errors.ShapeError, match="Bend needs"):
        Bend(2)(torch.zeros(3))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: Bend(2).inverse(torch.zeros(2)),
        lambda: posterior()(torch.zeros(3, 6)).log_prob(torch.zeros(3, 2)),
        lambda: posterior()(torch.zeros(3, 6)).draw(4, hold=True),
        lambda: FlowPrior(Bend(2)).log_prob(torch.zeros(3, 2)),
        lambda: flows.Compose(flows.Affine(2), Bend(2)).inverse(torch.zeros(2)),
        lambda: flows.as_transform(Bend(2)).inv(torch.zeros(2)),
    ],
    ids=["inverse", "log q", "path gradient", "prior", "composed", "transform"],
)
def test_what_needs_the_inverse_says_so(ask):
    with pytest.raises(SpecError, match=r"flow: Bend has no inverse, which .* needs .* write Bend\.pull"):
        ask()


MODULES = [
    found.name
    for room in (flows, networks, native)
    for found in pkgutil.iter_modules(room.__path__, f"{room.__name__}.")
]


@pytest.mark.parametrize("name", [*MODULES, "varflow.hmc"])
def test_examples_in_the_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
