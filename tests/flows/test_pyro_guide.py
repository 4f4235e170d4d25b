"""A flow as the guide of Pyro's SVI, as docs/own_loop.md has it, against the closed-form posterior."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import varflow as vf

PAGE = Path(__file__).parents[2] / "docs" / "own_loop.md"


@pytest.fixture
def empty_store() -> Iterator[None]:
    """Pyro keeps parameters by name in one store for all: a test that names its flow as another does has its own."""
    pyro = pytest.importorskip("pyro")
    with pyro.get_param_store().scope():
        yield


@pytest.fixture(scope="module")
def guided() -> dict[str, Any]:
    pytest.importorskip("pyro")
    torch.set_num_threads(1)
    block = next(b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "import pyro" in b)
    state: dict[str, Any] = {}
    exec(compile("import math, torch\nimport varflow as vf\n" + block, str(PAGE), "exec"), state)
    return state


@pytest.mark.filterwarnings("ignore")
def test_the_elbo_reaches_the_evidence(guided):
    import pyro

    elbo = pyro.infer.Trace_ELBO(num_particles=4000, vectorize_particles=True)
    with torch.no_grad():
        found = -float(elbo.loss(guided["model"], guided["guide"]))
    assert abs(found - float(guided["evidence"])) < 0.03


def test_draws_are_those_of_the_posterior(guided):
    a, y = guided["a"], guided["y"]
    precision = torch.eye(2) + a.T @ a / 0.25
    mean = torch.linalg.solve(precision, a.T @ y / 0.25)
    deviation = torch.linalg.inv(precision).diagonal().sqrt()
    torch.manual_seed(1)
    with torch.no_grad():
        draws = guided["flow"](torch.randn(4000, 2))[0]
    assert float(((draws.mean(0) - mean) / deviation).abs().max()) < 0.15 + 5 / math.sqrt(4000)
    assert float((draws.std(0) / deviation).log().abs().max()) < 0.15


def test_all_parameters_are_in_the_store(guided):
    import pyro

    store, flow = pyro.get_param_store(), guided["flow"]
    assert {f"flow$$${name}" for name, _ in flow.named_parameters()} <= set(store.keys())
    for name, parameter in flow.named_parameters():
        assert store[f"flow$$${name}"] is parameter


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [None, 16])
def test_a_plate_of_rows(guided, empty_store, rows):
    """One θ for each of 40 rows, the flow amortized over y; all rows at once, or a few at a step.

    Of θ ~ N(0, I) and y ~ N(A θ, 0.5² I) the posterior mean is linear in y, which one affine map of a context can be;
    the covariance is not diagonal, and the best that a diagonal q can do has the precisions of the diagonal of
    P = I + AᵀA/0.25: its ELBO is the evidence less ½ (Σ log Pᵢᵢ − log|P|) a row.
    """
    import pyro
    import pyro.distributions as dist

    pyro.set_rng_seed(1)
    a, count = guided["a"], 40
    y = dist.MultivariateNormal(torch.zeros(3), a @ a.T + 0.25 * torch.eye(3)).sample((count,))
    flow = vf.flows.Affine(2, context_features=3)

    def model():
        with pyro.plate("rows", count, subsample_size=rows) as chosen:
            theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(theta @ a.T, 0.5).to_event(1), obs=y[chosen])

    def guide():
        pyro.module("flow", flow)
        with pyro.plate("rows", count, subsample_size=rows) as chosen:
            base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            transform = vf.flows.as_transform(flow, y[chosen])
            pyro.sample("theta", dist.TransformedDistribution(base.expand([len(chosen)]), [transform]))

    elbo = pyro.infer.Trace_ELBO(num_particles=8, vectorize_particles=True)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.98})
    svi = pyro.infer.SVI(model, guide, optimizer, elbo)
    for _ in range(200):
        svi.step()
    precision = torch.eye(2) + a.T @ a / 0.25
    evidence = dist.MultivariateNormal(torch.zeros(3), a @ a.T + 0.25 * torch.eye(3)).log_prob(y)
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    with torch.no_grad():
        s, t = flow.parameters_of(y).chunk(2, -1)
        exact = torch.linalg.solve(precision, a.T @ y.T / 0.25).T
        deviation = precision.diagonal().rsqrt()
        assert float(((t - exact) / deviation).abs().max()) < 0.25
        assert float((s - deviation.log()).abs().max()) < 0.15
        full = pyro.infer.Trace_ELBO(num_particles=2000, vectorize_particles=True)
        if rows is None:
            reached = -float(full.loss(model, guide)) / count
            assert abs(reached - float(evidence.mean() - gap)) < 0.03
