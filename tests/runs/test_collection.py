"""Copies with weights of half the bytes, and folders of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import varflow as vf
from varflow.cli import main
from varflow.core.errors import RunError, SpecError
from varflow.runs.collection import collection, table
from varflow.runs.folder import read_weights, save_weights, step_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> vf.Run:
    out = tmp_path_factory.mktemp("collection") / "whole"
    run = vf.fit("digits", latent=2, hidden=32, steps=20, out=out, quiet=True)
    run.evaluate(samples=5, limit=20)
    return run


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_rounded_copy_has_half_the_bytes_and_opens_in_float32(run: vf.Run, tmp_path: Path, dtype: str) -> None:
    copied = run.copy(tmp_path / "small", dtype=dtype)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (run.folder, copied.folder)]
    assert sizes[1] < 0.6 * sizes[0]
    assert step_of(tmp_path / "small" / "model.safetensors") == 20
    opened = vf.load(tmp_path / "small").model.state_dict()
    precision = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for name, tensor in run.model.state_dict().items():
        assert opened[name].dtype == tensor.dtype
        torch.testing.assert_close(opened[name], tensor, rtol=precision, atol=1e-7)


def test_estimates_of_other_weights_stay_behind(run: vf.Run, tmp_path: Path) -> None:
    copied = run.copy(tmp_path / "small", dtype="float16")
    assert not list(copied.folder.glob("evaluation/*"))
    assert not (copied.folder / "training_scores.json").exists()
    assert list(run.copy(tmp_path / "whole").folder.glob("evaluation/test.json"))
    found = copied.evaluate(samples=5, limit=20)
    before = vf.evaluation.Evaluation.load(run.folder)
    assert found.estimates["elbo"].value == pytest.approx(before.estimates["elbo"].value, rel=1e-2)


def test_refuses_what_does_not_fit(run: vf.Run, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="dtype: unknown value 'float8'"):
        run.copy(tmp_path / "small", dtype="float8")
    large = run.copy(tmp_path / "large")
    weights = read_weights(large.folder / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = 1e6
    save_weights(large.folder / "model.safetensors", weights, 20)
    with pytest.raises(RunError, match="too large for float16; use bfloat16"):
        vf.load(large.folder).copy(tmp_path / "small", dtype="float16")


def test_a_folder_of_models_is_listed(run: vf.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b", "a"):
        run.copy(tmp_path / name)
    run.copy(tmp_path / "c", dtype="float16")
    found = collection(tmp_path)
    assert [kept.folder.name for kept in found] == ["a", "b", "c"]
    assert "elbo" in found[0].estimates
    assert not found[2].estimates
    text = table(found)
    assert all(words in text for words in ("digits: 2 latents", "5 samples, 20 points", "c: not evaluated"))
    with pytest.raises(SystemExit) as end:
        main(["models", str(tmp_path)])
    assert end.value.code == 0
    assert text in capsys.readouterr().out


def test_a_folder_without_models_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["models", str(tmp_path)])
    assert end.value.code == 2
    assert "holds no model" in capsys.readouterr().err
