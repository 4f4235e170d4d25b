"""Interrupted fits: bit for bit the same as fits that were not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import varflow as vf
from varflow.errors import RunError, SpecError
from varflow.runfolder import METRICS, STATE, WEIGHTS, read_state

SETTINGS = {
    "latent": 3,
    "hidden": 16,
    "layers": 1,
    "flow": "planar",
    "length": 2,
    "amortized": True,
    "threads": 1,
    "quiet": True,
    "warmup": 2.0,
}
TIMES = ("seconds", "steps_per_second")


def records(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def command(*arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "varflow", "fit", *arguments, "--no-report", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def wait_for(path, process, seconds=60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


FLAGS = ["--latent", "3", "--hidden", "16", "--layers", "1", "--flow", "planar", "--length", "2"]
FLAGS += [
    "--amortized",
    "--threads",
    "1",
    "--epochs",
    "60",
    "--warmup",
    "2",
    "--optimizer",
    "adamax",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = command("digits", *FLAGS, "--out", str(folder))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "1200 steps" in out
    return folder


@pytest.mark.parametrize(
    ("number", "delay"), [(signal.SIGKILL, 0.27), (signal.SIGTERM, 0.1), (signal.SIGINT, 0.4)]
)
def test_killed_at_some_step_and_resumed_is_bit_for_bit_the_same(whole, tmp_path, number, delay):
    folder = tmp_path / "run"
    process = command("digits", *FLAGS, "--out", str(folder), "--save-every", "0.001")
    wait_for(folder / STATE, process)
    time.sleep(delay)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    state = read_state(folder)
    assert 0 < state["step"] < 1200, "the run ended before the signal"
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number, err
        assert f"--resume {folder}" in out
    assert vf.load(folder).model is not None
    process = command("--resume", str(folder))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert records(folder) == records(whole)


def test_ten_steps_are_five_and_five_more(tmp_path):
    ten = vf.fit("digits", steps=10, out=tmp_path / "ten", **SETTINGS)
    vf.fit("digits", steps=5, out=tmp_path / "five", **SETTINGS)
    more = vf.resume(tmp_path / "five", steps=10, quiet=True)
    for name, tensor in ten.model.state_dict().items():
        assert torch.equal(tensor, more.model.state_dict()[name]), name


def test_a_finished_run_says_so_and_its_settings_stay(tmp_path):
    vf.fit("digits", steps=5, out=tmp_path / "run", **SETTINGS)
    with pytest.raises(RunError, match="is finished"):
        vf.resume(tmp_path / "run", quiet=True)
    with pytest.raises(SpecError, match="keeps its settings"):
        vf.resume(tmp_path / "run", lr=0.1, quiet=True)


def test_a_run_is_not_replaced_unless_asked(tmp_path):
    vf.fit("digits", steps=2, out=tmp_path / "run", **SETTINGS)
    before = (tmp_path / "run" / WEIGHTS).read_bytes()
    with pytest.raises(RunError, match="already holds a run"):
        vf.fit("digits", steps=3, out=tmp_path / "run", **SETTINGS)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == before
    vf.fit("digits", steps=3, out=tmp_path / "run", overwrite=True, **SETTINGS)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() != before


def test_a_damaged_state_is_named(tmp_path):
    folder = tmp_path / "run"
    vf.fit("digits", steps=5, out=folder, **SETTINGS)
    blob = (folder / STATE).read_bytes()
    (folder / STATE).write_bytes(blob[: len(blob) // 2])
    with pytest.raises(RunError, match=r"state\.pt: damaged"):
        vf.resume(folder, steps=10, quiet=True)
    (folder / STATE).unlink()
    with pytest.raises(RunError, match="nothing to resume"):
        vf.resume(folder, steps=10, quiet=True)


def test_a_state_that_would_execute_code_is_refused(tmp_path):
    folder = tmp_path / "run"
    vf.fit("digits", steps=5, out=folder, **SETTINGS)
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    torch.save({"step": 1, "trap": Trap()}, folder / STATE)
    with pytest.raises(RunError, match="not a varflow state"):
        vf.resume(folder, steps=10, quiet=True)
    assert not marker.exists()


def test_metrics_that_were_cut_are_named(tmp_path):
    folder = tmp_path / "run"
    vf.fit("digits", steps=5, out=folder, **SETTINGS)
    (folder / METRICS).write_text("")
    with pytest.raises(RunError, match="was cut or replaced"):
        vf.resume(folder, steps=10, quiet=True)


def test_data_given_in_python_are_asked_for_again(tmp_path):
    x = (torch.rand(100, 6) < 0.5).float()
    settings = {**SETTINGS, "batch": 16}
    vf.fit("digits", x, steps=5, out=tmp_path / "run", **settings)
    with pytest.raises(RunError, match="pass them again"):
        vf.resume(tmp_path / "run", steps=10, quiet=True)
    run = vf.resume(tmp_path / "run", x, steps=10, quiet=True)
    whole = vf.fit("digits", x, steps=10, **settings)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name
    with pytest.raises(RunError, match="pass them again"):
        vf.load(tmp_path / "run").evaluate()
