"""Every log p that a run gives is of x in the units of the data, under the preprocessing that training learned."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.core.errors import DataError, RunError, ShapeError, SpecError

OPTIONS = {"steps": 300, "batch": 128, "quiet": True}


@pytest.fixture(scope="module")
def lengths() -> torch.Tensor:
    return 1000 + 50 * torch.randn(1500, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(lengths: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("units") / "run"
    vf.fit("density", lengths, prior="maf", out=out, **OPTIONS)
    return out


def closed_form(x: torch.Tensor, mean: float = 1000.0, scale: float = 50.0) -> torch.Tensor:
    each = -0.5 * ((x - mean) / scale) ** 2 - 0.5 * math.log(2 * math.pi) - math.log(scale)
    return each.sum(1)


def test_nll_is_that_of_the_raw_rows(folder: Path, lengths: torch.Tensor) -> None:
    found = vf.load(folder, data=lengths).evaluate().estimates
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(50))
    error = found["nll"].standard_error
    assert error is not None
    # Five standard errors of 150 test rows, and the fit's own distance from the truth.
    assert abs(found["nll"].value - entropy) < 5 * error + 0.1
    assert found["nll_standardized"].value == pytest.approx(found["nll"].value - 2 * math.log(50), abs=0.2)
    assert "units of the data" in found["nll"].estimator


@pytest.mark.slow
def test_best_elbo_and_records_are_of_the_raw_rows(folder: Path) -> None:
    run = vf.load(folder)
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(50))
    assert -run.outcome["best_elbo"] == pytest.approx(entropy, abs=0.6)
    assert run.metrics[-1]["elbo"] == pytest.approx(-entropy, abs=0.6)


def test_log_prob_of_new_raw_rows_needs_no_data(folder: Path) -> None:
    new = 1000 + 50 * torch.randn(400, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    run = vf.load(folder)
    gap = closed_form(new) - run.log_prob(new)
    assert abs(gap.mean().item()) < 0.1
    np.testing.assert_allclose(run.log_prob(new.numpy()), run.log_prob(new), rtol=1e-6)
    drawn = run.sample(2000)
    z = (drawn.double().mean(0) - 1000) / 50
    # Twice five standard errors of 2,000 draws, for the fit's own distance.
    assert z.abs().max() < 10 / math.sqrt(2000)


def test_a_change_of_units_moves_log_p_by_its_log_determinant(folder: Path, lengths: torch.Tensor) -> None:
    metres = vf.load(folder)
    centimetres = vf.fit("density", 100 * lengths, prior="maf", **OPTIONS)
    there, here = metres.log_prob(lengths[:50]), centimetres.log_prob(100 * lengths[:50])
    torch.testing.assert_close(here, there - 2 * math.log(100), atol=2e-3, rtol=0)


@pytest.mark.slow
def test_another_process_without_the_data_gives_the_same_numbers(folder: Path) -> None:
    script = (
        "import sys, torch, varflow as vf\ntorch.set_num_threads(1)\n"
        "x = torch.linspace(900, 1100, 20).reshape(10, 2)\n"
        "print([v.hex() for v in vf.load(sys.argv[1]).log_prob(x).tolist()])\n"
    )
    here, there = (
        subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert here == there


def test_new_data_are_never_learned_from(folder: Path) -> None:
    shifted = 1300 + 50 * torch.randn(300, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    run = vf.load(folder, data=shifted)
    assert run.other_data
    x, ladj, *_ = run.dataset.batch("test", torch.arange(10))
    # 300 above the mean of training are six standard deviations there.
    assert float(x.mean()) == pytest.approx(6, abs=0.8)
    assert float(ladj.mean()) == pytest.approx(-2 * math.log(50), abs=0.2)
    found = run.evaluate()
    assert found.estimates["nll"].value > 25
    assert not (folder / "evaluation" / "test.json").exists() or (
        vf.evaluation.Evaluation.load(folder, "test").estimates["nll"].value < 15
    )


@pytest.mark.slow
def test_malignant_rows_are_strange_to_a_density_of_benign_ones() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    table = datasets.load_breast_cancer()
    benign, malignant = table.data[table.target == 1], table.data[table.target == 0]
    run = vf.fit("density", benign, steps=300, batch=128, quiet=True)
    typical, strange = np.median(run.log_prob(benign)), np.median(run.log_prob(malignant))
    assert strange < typical - 100


def test_what_is_not_like_the_training_rows_is_refused(folder: Path) -> None:
    run = vf.load(folder)
    with pytest.raises(ShapeError, match=r"should be \[N, 2\]"):
        run.log_prob(torch.zeros(4, 3))
    with pytest.raises(DataError, match="row 1, column 0"):
        run.log_prob(torch.tensor([[1.0, 2.0], [math.nan, 0.0]]))
    with pytest.raises(DataError, match="one example has shape"):
        vf.load(folder, data=torch.randn(20, 3))
    target = vf.fit("energy", steps=2, quiet=True)
    with pytest.raises(SpecError, match="no x"):
        target.log_prob(torch.zeros(2, 2))


def test_pictures_come_and_go_as_levels() -> None:
    levels = torch.randint(0, 256, (60, 1, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    run = vf.fit("digits", levels, protocol="logit", likelihood="gaussian", latent=2, hidden=8, steps=5, quiet=True)
    drawn = run.sample(7)
    assert drawn.shape == (7, 1, 3, 3)
    assert drawn.dtype == torch.uint8
    found = run.log_prob(levels[:5], samples=50)
    # Of nine levels of 256: near −9 log 256, far from a density on [0, 1]^9.
    assert found.shape == (5,)
    assert bool((found < -9 * math.log(256) + 20).all())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": [50.0]}, r"scale has shape \[1\], the data have \[2\]"),
        ({"scale": [50.0, 0.0]}, "scale is not positive"),
        ({"loc": [float("nan"), 0.0]}, "loc holds a NaN"),
        ({"loc": "x"}, "cannot be read"),
    ],
)
def test_a_changed_preprocessing_is_refused(folder: Path, change: dict[str, object], said: str) -> None:
    path = folder / "preprocessing.json"
    before = path.read_text()
    facts = json.loads(before)
    facts["learned"] |= change
    try:
        path.write_text(json.dumps(facts))
        with pytest.raises(RunError, match=said):
            vf.load(folder)
        path.unlink()
        with pytest.raises(RunError, match=r"preprocessing.json"):
            vf.load(folder)
    finally:
        path.write_text(before)


def test_what_are_no_numbers_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"x: was the path 'rows\.csv'; read the file first"):
        vf.load(folder).log_prob("rows.csv")
