"""docs/own_loop.md: its blocks run, and the loops reach answers that are known."""

import math
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "own_loop.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.fixture(scope="module")
def names() -> dict:
    """What the blocks before the one on Pyro leave behind."""
    held: dict = {}
    with torch.random.fork_rng():
        for block in blocks()[:-1]:
            exec(compile(block, str(PAGE), "exec"), held)
            held.setdefault("after", []).append(dict(held))
    return held


def test_a_flow_fitted_to_samples_reaches_their_entropy(names):
    """x = s z + m + 0.1 ε with one z: covariance s sᵀ + 0.01 I."""
    scale = torch.tensor([[2.0], [0.5]]).double()
    covariance = scale @ scale.T + 0.01 * torch.eye(2).double()
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * covariance))
    assert entropy - 0.1 < names["nats"] < entropy + 0.15


def test_a_flow_fitted_to_an_energy_has_a_small_divergence(names):
    assert -0.02 < names["kl"] < 0.2


def test_a_vae_by_hand_reaches_the_evidence_of_its_factor_model(names):
    """The ELBO is below log p(x) of the factor model that made the data, and near it."""
    weight = names["weight"].double()
    covariance = weight.T @ weight + 0.25 * torch.eye(6).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance)
    best = exact.log_prob(names["data"][:500].double())
    error = float(best.std()) / 500**0.5
    assert float(best.mean()) - 0.6 < names["elbo"] < float(best.mean()) + 5 * error


def test_a_flow_as_a_guide_reaches_the_evidence(capsys):
    """x_i ~ N(m₁ + m₂, 1) with m ~ N(0, 4 I): x is Gaussian with covariance I + 8 · 11ᵀ."""
    pyro = pytest.importorskip("pyro")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    held: dict = {"torch": torch}
    exec(compile("import varflow as vf\n" + blocks()[-1], str(PAGE), "exec"), held)
    covariance = torch.eye(3).double() + 8 * torch.ones(3, 3).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance)
    evidence = float(exact.log_prob(held["observed"].double()))
    assert evidence - 0.15 < held["evidence"] < evidence + 0.1
    assert any("flow" in name for name in pyro.get_param_store())
    pyro.clear_param_store()
