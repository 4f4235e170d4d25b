# pyright: strict
"""What users write: mypy --strict and pyright take every line, and it runs (tests/typing/test_typed.py)."""

from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor, nn

import varflow as vf
from varflow.evaluation import Estimate, Evaluation
from varflow.flows import Planar

SMALL: dict[str, Any] = {"hidden": 8, "layers": 1, "threads": 1}


class Bend(vf.flows.Flow):
    """z + s tanh z."""

    def __init__(self, features: int, context_features: int = 0) -> None:
        super().__init__(features, context_features)
        self.a = nn.Parameter(torch.zeros(features))

    def push(self, z: Tensor, local: tuple[Tensor, ...] = ()) -> tuple[Tensor, Tensor]:
        s, h = self.a.exp(), z.tanh()
        return z + s * h, torch.log1p(s * (1 - h * h)).sum(-1)


def a_recipe(folder: Path) -> None:
    x = (torch.rand(64, 6) < 0.5).float()
    run = vf.fit("digits", x, latent=2, flow="planar", length=2, epochs=1, quiet=True, out=folder, **SMALL)
    assert_type(run, vf.Run)
    assert_type(run.model, vf.Model | vf.Ensemble)
    assert_type(run.spec, vf.RunSpec)
    drawn: Tensor = run.sample(3)
    assert drawn.shape == (3, 6)
    log_prob: Tensor = run.log_prob(x[:4], samples=5)
    assert log_prob.shape == (4,)
    evaluation = run.evaluate(samples=5, limit=5)
    assert_type(evaluation, Evaluation)
    assert_type(evaluation.estimates["nll"], Estimate)
    nll: float = evaluation.estimates["nll"].value
    assert nll > 0
    again = vf.load(folder, data=x)
    assert_type(again, vf.Run)
    assert_type(vf.resume(folder, x, epochs=2, quiet=True), vf.Run)


def a_recipe_whose_name_is_a_variable(name: str) -> vf.RunSpec:
    spec = vf.recipes.find(name).spec.replace(flow="iaf", lr=5e-4, patience="3 epochs")
    assert_type(spec, vf.RunSpec)
    return spec.replace(patience=3, validate_every=0.5, likelihood="gaussian", scale="learned")


def parts_of_ones_own() -> None:
    model = vf.Model(
        prior=vf.priors.StandardNormal(2),
        likelihood=vf.likelihoods.Bernoulli(vf.networks.MLP(2, 6, hidden=(8,)), (6,)),
        posterior=vf.posteriors.Gaussian(2, vf.networks.MLP(6, hidden=(8,)), flow=Bend),
    )
    terms = model.terms(torch.ones(5, 6), samples=3)
    assert_type(terms, vf.Terms)
    assert_type(terms.log_weight, Tensor)
    assert_type(model.prior, vf.priors.Prior)
    assert_type(model.posterior, vf.posteriors.Posterior)
    draw = model.encode(torch.ones(5, 6))
    assert_type(draw, vf.posteriors.Draw)
    z, ladj = Planar(2, length=3)(torch.zeros(4, 2))
    assert_type(z, Tensor)
    assert_type(ladj, Tensor)


def a_target() -> None:
    ring = vf.targets.Ring()
    model = vf.Model(ring, None, vf.posteriors.Gaussian(2, flow=Planar(2, length=2)))
    run = vf.fit(model, steps=2, quiet=True, threads=1)
    assert_type(run.outcome, dict[str, Any])


def data_and_errors() -> str:
    data = vf.data.from_tensor(torch.randn(40, 3))
    assert_type(data, vf.data.Dataset)
    assert_type(vf.density(vf.priors.flow_prior(3, "maf"), 3), vf.Model)
    try:
        vf.fit("digits", data, **SMALL, length=3)
    except vf.errors.SpecError as error:
        return str(error)
    return ""
