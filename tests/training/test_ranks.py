"""Several processes against one: the same weights, the same records, and errors that end all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import varflow as vf
from varflow.core import random
from varflow.core.files import read_metrics
from varflow.runs.folder import METRICS, read_state

sys.path.insert(0, str(Path(__file__).parent))
from two_ranks import CASES, ERRORS, SMALL, TAKEN

# One worker starts the two processes, and for all of these tests.
pytestmark = pytest.mark.xdist_group("ranks")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [*TORCHRUN, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    out = tmp_path_factory.mktemp("two")
    vf.fit("digits", out=out / "taken", **TAKEN)
    process = start(Path(__file__).with_name("two_ranks.py"), out)
    try:
        said = process.communicate(timeout=120)[0]
    finally:
        # The launcher ends its processes.
        process.terminate()
    assert process.returncode == 0, said[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_to_the_result_of_one(case: str, two: Path) -> None:
    run = CASES[case]()
    expected = run.model.state_dict()
    rtol, atol = (1e-3, 1e-4) if case == "float32" else (1e-7, 1e-9)
    for rank in (0, 1):
        weights, records, step = torch.load(two / f"{case}-{rank}.pt", weights_only=True)
        assert step == run.outcome["step"]
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=rtol, atol=atol)
        assert len(records) == len(run.metrics)
        for got, one in zip(records, run.metrics, strict=True):
            assert got["loss"] == pytest.approx(one["loss"], rel=rtol)
            assert got["elbo"] == pytest.approx(one["elbo"], rel=rtol)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_processes_hold_the_same_bits(case: str, two: Path) -> None:
    first, second = (torch.load(two / f"{case}-{rank}.pt", weights_only=True)[0] for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@pytest.mark.slow
def test_a_model_of_ones_own_starts_with_the_weights_of_the_first_process(two: Path) -> None:
    first, second = (torch.load(two / f"own-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@pytest.mark.slow
def test_one_process_writes_and_evaluates(two: Path) -> None:
    records = [json.loads(line) for line in (two / "run" / METRICS).read_text().splitlines()]
    assert [(r["split"], r["step"]) for r in records] == [
        (r["split"], r["step"]) for r in vf.fit("digits", **SMALL).metrics
    ]
    assert len(list((two / "run" / "tensorboard").iterdir())) == 1
    assert json.loads((two / "run" / "environment.json").read_text())["processes"] == 2
    first, second = ((two / f"evaluation-{rank}.json").read_text() for rank in (0, 1))
    assert first == second
    assert float(first) == vf.load(two / "run").evaluate(samples=20).estimates["nll"].value


SAID = {
    "rank 1 reads other data": ("SpecError", "SpecError", "data: differ between the processes"),
    "rank 1 has another seed": ("SpecError", "SpecError", "settings: differ between"),
    "rank 1 has a wrong setting": ("RankError", "SpecError", "did you mean 'planar'"),
    "no even share": ("SpecError", "SpecError", "batch: 33 in a step .* use 32 or 34"),
    "batch statistics": ("SpecError", "SpecError", "normalization: .* use normalization=group"),
    "importance bound of a target": (
        "SpecError",
        "SpecError",
        "objective: the samples of a target",
    ),
    "a folder that holds a run": ("RunError", "RankError", "process 0 met an error"),
    "infinity on rank 1": ("NonFiniteError", "NonFiniteError", "step 0: .* infinity"),
    "rank 1 breaks off": ("RankError", "RunError", "the disk of rank 1 is full"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ERRORS)
def test_an_error_ends_all_processes_and_one_of_them_says_why(case: str, two: Path) -> None:
    found = [json.loads((two / f"errors-{rank}.json").read_text())[case] for rank in (0, 1)]
    *kinds, message = SAID[case]
    assert [kind for kind, _, _ in found] == kinds
    assert re.search(message, found[1][1])
    assert sum(not silent for _, _, silent in found) <= 1


def test_a_share_of_a_draw_is_a_slice_of_the_whole() -> None:
    """The data order and every noise tensor are those of the global batch."""
    with random.stream(5, 3):
        whole = random.normal((4, 6, 2), "posterior", batch_dim=1)
    parts = []
    for rank in range(3):
        with random.stream(5, 3, rank, 3):
            parts.append(random.normal((4, 2, 2), "posterior", batch_dim=1))
    assert torch.equal(torch.cat(parts, 1), whole)


FLAGS = [
    *("--latent", "3", "--hidden", "16", "--layers", "1", "--flow", "planar", "--length", "2", "--amortized"),
    *("--threads", "1", "--precision", "float64", "--optimizer", "adamax", "--no-report"),
]  # fmt: skip


def fit(*arguments: object) -> subprocess.Popen[str]:
    return start("-m", "varflow", "fit", *arguments)


def read(folder: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in r.items() if "second" not in k} for r in read_metrics(folder)]


@pytest.mark.slow
def test_sigterm_leaves_a_run_that_one_process_takes_to_the_same_end(tmp_path: Path) -> None:
    """And whatever comes from two processes comes once."""
    folder = tmp_path / "run"
    process = fit("digits", *FLAGS, "--epochs", 2000, "--out", folder)
    end = time.monotonic() + 60
    while not any(record["split"] == "train" for record in read(folder)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert said.count("SIGTERM received at step") == 1, said
    step = read_state(folder)["step"]
    assert 0 < step < 40_000
    assert f"SIGTERM received at step {step}" in said

    steps = step + 60
    resumed = vf.resume(folder, steps=steps, quiet=True)
    settings = json.loads((folder / "spec.json").read_text())
    spec = vf.RunSpec.from_dict(settings)
    whole = vf.fit(spec, quiet=True, steps=steps)
    assert [(r["split"], r["step"]) for r in read(folder)] == [
        (r["split"], r["step"]) for r in whole.metrics
    ]
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_a_whole_command_ends_well_and_reports_once(tmp_path: Path) -> None:
    flags = [flag for flag in FLAGS if flag != "--no-report"]
    process = fit("digits", *flags, "--epochs", 1, "--out", tmp_path / "run")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert said.count("report: ") == said.count("next: varflow evaluate") == 1
    assert (tmp_path / "run" / "report.html").exists()


def test_two_processes_take_over_from_one(two: Path) -> None:
    whole, resumed = vf.fit("digits", **{**TAKEN, "steps": 24}), vf.load(two / "taken")
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=1e-7, atol=1e-9)
    assert [r["step"] for r in read(two / "taken")] == [0, 12, 12, 20, 20, 24, 24]


@pytest.mark.slow
def test_the_command_line_says_an_error_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    vf.fit("digits", out=folder, **SMALL)
    again = fit("digits", "--out", folder)
    said = again.communicate(timeout=60)[0]
    assert again.returncode != 0
    assert said.count("varflow: ") == said.count("already holds a run; go on with --resume") == 1, (
        said
    )
