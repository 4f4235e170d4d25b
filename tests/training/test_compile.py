"""torch.compile: the same training, and the setting reaches the step."""

import shutil

import pytest
import torch

import varflow as vf

SETTINGS = {"latent": 4, "hidden": 16, "layers": 1, "threads": 1, "quiet": True, "steps": 25}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    "flow",
    [
        {},
        {"flow": "planar", "length": 4, "amortized": True},
        {"flow": "radial", "length": 3},
        {"flow": "iaf", "length": 2, "amortized": True, "warmup": 1.0},
        {"flow": "nice", "length": 3},
    ],
    ids=lambda flow: flow.get("flow", "none"),
)
def test_a_compiled_step_does_what_the_plain_one_does(flow):
    plain = vf.fit("digits", **{**SETTINGS, **flow})
    compiled = vf.fit("digits", compile=True, **{**SETTINGS, **flow})
    for one, other in zip(plain.metrics, compiled.metrics, strict=True):
        assert one["elbo"] == pytest.approx(other["elbo"], rel=1e-4)
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(tensor, compiled.model.state_dict()[name], atol=2e-4), name
