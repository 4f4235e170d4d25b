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
from varflow.cli import main
from varflow.core.errors import RunError, SpecError
from varflow.runs.folder import METRICS, RUN, SPEC, STATE, WEIGHTS, prepare, read_state
from varflow.training.loop import Loop

SETTINGS = {
    "latent": 3,
    "hidden": 16,
    "layers": 1,
    "flow": "planar",
    "length": 2,
    "amortized": True,
    "threads": 1,
    "quiet": True,
    "warmup": "2 epochs",
}
TIMES = ("seconds", "steps_per_second")


def records(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def command(*arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "varflow", "fit", *arguments, "--no-report"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def wait_for(path, process, words="", seconds=60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists() or words not in path.read_text():
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
    "2 epochs",
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
    ("number", "delay"), [
        (signal.SIGKILL, 0.27),
        pytest.param(signal.SIGTERM, 0.1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 0.4, marks=pytest.mark.slow),
    ]
)
def test_killed_at_some_step_and_resumed_is_bit_for_bit_the_same(whole, tmp_path, number, delay):
    folder = tmp_path / "run"
    process = command("digits", *FLAGS, "--out", str(folder), "--save-every", "0.001")
    wait_for(folder / METRICS, process, '"split": "train"')
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
    if number == signal.SIGKILL:
        process = command("--resume", str(folder))
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    else:
        # By another process than the one that began, as well: here, without the start of a third.
        vf.resume(folder, quiet=True)
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert records(folder) == records(whole)


@pytest.mark.slow
def test_a_fit_killed_before_its_first_checkpoint_goes_on(whole, tmp_path):
    folder = tmp_path / "run"
    process = command("digits", *FLAGS, "--out", str(folder))
    wait_for(folder / METRICS, process, '"split": "train"')
    process.kill()
    process.communicate(timeout=60)
    assert read_state(folder)["step"] == 0, "a checkpoint beside that of the start"
    vf.resume(folder, quiet=True)
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert records(folder) == records(whole)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_fit_cut_off_before_its_first_state_begins_again(tmp_path, monkeypatch, recorded):
    class Cut(BaseException):
        pass

    def cut(loop):
        raise Cut

    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "save" if recorded else "_validate", cut)
        with pytest.raises(Cut):
            vf.fit("digits", steps=10, out=folder, **SETTINGS)
    assert (folder / SPEC).exists()
    assert not (folder / STATE).exists()
    assert (folder / METRICS).exists() == recorded
    run = vf.resume(folder, quiet=True)
    whole = vf.fit("digits", steps=10, out=tmp_path / "whole", **SETTINGS)
    assert run.outcome["finished"]
    assert (folder / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert records(folder) == records(whole.folder)


def told_at(monkeypatch, step, number=signal.SIGINT):
    """A signal during an update, of the first loop that comes to it."""
    update, sent = Loop.update, []

    def wrapped(loop):
        if loop.step == step and not sent:
            sent.append(step)
            os.kill(os.getpid(), number)
        return update(loop)

    monkeypatch.setattr(Loop, "update", wrapped)


@pytest.mark.slow
def test_a_signal_in_the_last_step_is_no_interruption(tmp_path, monkeypatch, capsys):
    told_at(monkeypatch, 9)
    words = ["--latent", "2", "--hidden", "8", "--threads", "1", "--steps", "10"]
    with pytest.raises(SystemExit) as end:
        main(["fit", "digits", *words, "--out", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    assert "10 steps" in out
    assert "--resume" not in out
    assert (tmp_path / "run" / "report.html").exists()
    outcome = vf.load(tmp_path / "run").outcome
    assert (outcome["finished"], outcome["signal"]) == (True, None)


def test_a_signal_in_the_first_step_leaves_one_step(tmp_path, monkeypatch):
    told_at(monkeypatch, 0, signal.SIGTERM)
    run = vf.fit("digits", steps=10, out=tmp_path / "run", **SETTINGS)
    assert (run.outcome["step"], run.outcome["finished"]) == (1, False)
    assert run.outcome["signal"] == signal.SIGTERM
    again = vf.resume(tmp_path / "run", quiet=True)
    whole = vf.fit("digits", steps=10, out=tmp_path / "whole", **SETTINGS)
    assert records(again.folder) == records(whole.folder)


def test_a_finished_run_that_goes_on_is_not_finished(tmp_path, monkeypatch):
    folder, seen = tmp_path / "run", []
    vf.fit("digits", steps=5, out=folder, **SETTINGS)
    assert json.loads((folder / RUN).read_text())["outcome"]["finished"]
    update = Loop.update

    def wrapped(loop):
        seen.append(json.loads((folder / RUN).read_text())["outcome"])
        return update(loop)

    monkeypatch.setattr(Loop, "update", wrapped)
    vf.resume(folder, steps=7, quiet=True)
    assert [(o["finished"], o["reason"], o["step"]) for o in seen] == [(False, "going on", 5)] * 2
    ended = json.loads((folder / RUN).read_text())["outcome"]
    assert (ended["finished"], ended["step"]) == (True, 7)


def test_a_larger_budget_under_a_falling_rate_is_told(tmp_path, capsys):
    spoken = {**SETTINGS, "quiet": False, "decay": "cosine"}
    vf.fit("digits", steps=5, out=tmp_path / "run", **spoken)
    assert "note: decay" not in capsys.readouterr().err
    vf.resume(tmp_path / "run", steps=10)
    said = capsys.readouterr().err
    assert "note: decay=cosine falls to zero over the budget, which is another one now" in said
    vf.fit("digits", steps=5, out=tmp_path / "plain", **{**spoken, "decay": "none"})
    vf.resume(tmp_path / "plain", steps=10)
    assert "note: decay" not in capsys.readouterr().err


def test_the_speed_after_a_resume_counts_its_own_steps_alone(tmp_path, monkeypatch):
    clock = iter(range(10**6))
    # A second passes at each look at the clock, and each step looks once.
    monkeypatch.setattr("varflow.training.loop.time.perf_counter", lambda: float(next(clock)))
    update = Loop.update

    def slow(loop):
        next(clock)
        return update(loop)

    monkeypatch.setattr(Loop, "update", slow)
    told_at(monkeypatch, 9)
    settings = {**SETTINGS, "keep": "last", "validate_every": "50 epochs"}
    vf.fit("digits", steps=20, out=tmp_path / "run", **settings)
    run = vf.resume(tmp_path / "run", quiet=True)
    (record,) = [r for r in run.metrics if r["split"] == "train"]
    assert record["step"] == 20
    assert record["steps_per_second"] == pytest.approx(10 / 11)


def test_only_the_folder_of_a_run_is_cleared(tmp_path, monkeypatch):
    mine = [tmp_path / room / "mine.txt" for room in ("figures", "evaluation", "prior", "tensorboard")]
    mine.append(tmp_path / "report.html")
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    vf.fit("digits", steps=1, out=tmp_path, overwrite=True, **SETTINGS)
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
    # Now it holds a run. A clearing that is cut off leaves a folder that still does.
    with monkeypatch.context() as patched:
        unlink = type(tmp_path).unlink

        def stop(path, missing_ok=False):
            if path.name == STATE:
                raise KeyboardInterrupt
            unlink(path, missing_ok)

        patched.setattr(type(tmp_path), "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, True)
    assert (tmp_path / SPEC).exists()
    prepare(tmp_path, True)
    assert not any(path.exists() for path in (*mine, tmp_path / SPEC, tmp_path / STATE))


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
