"""torch.compile: the same training, and the setting reaches the step."""

import shutil

import pytest
import torch

import varflow as vf
from varflow.core.errors import SpecError
from varflow.networks import linear

SETTINGS = {"latent": 4, "hidden": 16, "layers": 1, "threads": 1, "quiet": True, "steps": 25}


def compiles(test):
    test = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")(test)
    test = pytest.mark.skipif(
        shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
    )(test)
    return pytest.mark.slow(test)


def both(**settings):
    """A plain and a compiled fit."""
    return [
        vf.fit("digits", compile=compile, **{**SETTINGS, **settings}) for compile in (False, True)
    ]


@compiles
@pytest.mark.parametrize(
    "flow",
    [
        {},
        {"flow": "planar", "length": 4, "amortized": True},
        {"flow": "radial", "length": 3},
        {"flow": "iaf", "length": 2, "amortized": True, "warmup": "1 epoch"},
        {"flow": "nice", "length": 3},
        {"objective": "iwae", "samples": 3, "gradient": "dreg"},
    ],
    ids=lambda flow: flow.get("flow", flow.get("gradient", "none")),
)
def test_a_compiled_step_does_what_the_plain_one_does(flow):
    # In float64: Adam's first updates follow the sign of a gradient, and where that is rounding alone, float32
    # sums of another order part by whole updates.
    plain, compiled = both(precision="float64", **flow)
    for one, other in zip(plain.metrics, compiled.metrics, strict=True):
        assert one["elbo"] == pytest.approx(other["elbo"], rel=1e-12)
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(tensor, compiled.model.state_dict()[name], rtol=0, atol=1e-10), name


@compiles
@pytest.mark.parametrize("products", ["blas", "onednn"])
def test_a_compiled_step_in_float32_has_the_same_bound(products, monkeypatch):
    if products == "onednn" and not linear._available():
        pytest.skip("this torch has no oneDNN linear")
    monkeypatch.setattr(linear, "_SMALL", 1)
    monkeypatch.setattr(linear, "_chosen", products)
    plain, compiled = both()
    for one, other in zip(plain.metrics, compiled.metrics, strict=True):
        assert one["elbo"] == pytest.approx(other["elbo"], rel=1e-5)


@compiles
def test_many_fits_in_one_compiled_step():
    settings = {"target": "u1", "length": 4, "samples": 32, "fits": 3, "steps": 20, "threads": 1, "quiet": True}
    plain, compiled = (
        vf.fit("energy", precision="float64", compile=compile, **settings)
        for compile in (False, True)
    )
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(tensor, compiled.model.state_dict()[name], rtol=0, atol=1e-10), name


def test_weighed_gradients_of_several_layers_are_not_compiled():
    settings = {"objective": "iwae", "samples": 3, "gradient": "dreg", "top_latent": 2}
    with pytest.raises(SpecError, match="compile: the gradients"):
        vf.fit("digits", compile=True, **{**SETTINGS, **settings})
