"""A flow as the guide of Pyro's SVI, as docs/own_loop.md has it, against the closed-form posterior."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "own_loop.md"


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
