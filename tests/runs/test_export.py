"""Programs that run without varflow give what the model gives, for any number of rows."""

import json

import numpy as np
import pytest
import torch

import varflow as vf
from varflow import cli
from varflow.core.errors import SpecError
from varflow.runs.export import programs

FLOWS = ("planar", "radial", "iaf", "maf", "nice", "coupling", "householder", "sylvester")
MEAN, SCALE = torch.tensor([1000.0, -3.0, 0.02]).double(), torch.tensor([50.0, 4.0, 0.001]).double()


def table(rows=120):
    generator = torch.Generator().manual_seed(0)
    return MEAN + SCALE * torch.randn(rows, 3, generator=generator, dtype=torch.float64)


def pictures(channels=1, size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (40, channels, size, size), generator=generator, dtype=torch.uint8)


def of_table(**settings):
    shared = {"likelihood": "gaussian", "protocol": "standardize", "latent": 2, "hidden": 8, "steps": 2}
    return vf.fit("digits", table(), quiet=True, **shared | settings)


def made(kind):
    if kind == "dense":
        return vf.fit("digits", pictures(), latent=2, hidden=8, steps=2, quiet=True)
    if kind == "table":
        return of_table()
    if kind == "density":
        return vf.fit("density", table(), prior_length=1, steps=2, quiet=True)
    if kind == "codes":
        return vf.fit("vq-vae", pictures(3, 16), codes=5, steps=1, quiet=True)
    return of_table(flow=kind, length=2, amortized=True)


def rows_like(example, rows):
    """Rows of the size of the data, and of the kind of the example."""
    if example.dtype == torch.uint8:
        return pictures(*example.shape[1:3])[torch.arange(rows) % 40]
    if example.shape[1:] == (3,) and example.dtype == torch.float32:
        return table()[torch.arange(rows) % 120].float()
    return example[torch.arange(rows) % len(example)]


def outputs(found):
    return list(found) if isinstance(found, tuple | list) else [found]


@pytest.mark.parametrize("kind", ["dense", "table", "planar", "iaf"])
def test_files_of_torch_give_the_same(kind, tmp_path):
    run = made(kind)
    run.export(tmp_path, "torch")
    for name, program in programs(run).items():
        loaded = torch.export.load(tmp_path / f"{name}.pt2").module()
        for rows in (1, 7, 64):
            x = rows_like(program.example, rows)
            with torch.no_grad():
                expected, found = outputs(program.module(x)), outputs(loaded(x))
            for one, other in zip(expected, found, strict=True):
                torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "table", "density", "codes", *FLOWS])
def test_onnx_gives_the_same(kind, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = made(kind)
    run.export(tmp_path)
    about = json.loads((tmp_path / "programs.json").read_text())
    for name, program in programs(run).items():
        session = runtime.InferenceSession(str(tmp_path / f"{name}.onnx"))
        (taken,) = about["programs"][name]["takes"]
        for rows in (1, 7, 64):
            x = rows_like(program.example, rows)
            with torch.no_grad():
                expected = outputs(program.module(x))
            found = session.run(list(about["programs"][name]["gives"]), {taken: x.numpy()})
            for one, other in zip(expected, found, strict=True):
                np.testing.assert_allclose(other, one.numpy(), rtol=1e-5, atol=1e-5)


def test_programs_are_in_the_units_of_the_data():
    run = made("table")
    made_of = programs(run)
    x = table()[:9].float()
    mean, scale, centre = made_of["encoder"].module(x)
    torch.testing.assert_close(mean, run.embed(x))
    torch.testing.assert_close(scale, run.embed(x, "scale"))
    torch.testing.assert_close(centre, run.embed(x, "centre"))
    decoded = run.preprocessing.invert(run.model.likelihood.mean(mean))
    torch.testing.assert_close(made_of["decoder"].module(mean), decoded)
    density = made("density")
    found = programs(density)["log_prob"].module(x).double()
    torch.testing.assert_close(found, density.log_prob(x), rtol=1e-5, atol=1e-4)


def test_the_verb_and_its_refusals(capsys, tmp_path):
    vf.fit("energy", length=1, steps=1, quiet=True, out=tmp_path / "energy")
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(tmp_path / "energy"), "--format", "torch", "--out", str(tmp_path / "e")])
    assert ended.value.code == 2
    assert "export: this is a fit to a target" in capsys.readouterr().err
    with pytest.raises(SpecError, match="format: unknown value 'h5'"):
        made("table").export(tmp_path, "h5")
