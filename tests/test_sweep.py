"""Sweeps: trials that are runs, pruned, refused, left and taken up again; and the test split last of all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import varflow as vf
from varflow.cli import main
from varflow.core.errors import RunError, SpecError
from varflow.core.files import Lock, read_json
from varflow.runs import fitting
from varflow.runs import sweep as sweeps
from varflow.runs import trials as working
from varflow.runs.folder import METRICS, WEIGHTS, read_state
from varflow.runs.run import Run
from varflow.runs.trials import Plan
from varflow.training import Callback

optuna = pytest.importorskip("optuna")

FIXED = {
    "latent": 2, "hidden": 8, "layers": 1, "threads": 1, "batch": 20, "steps": 20, "validate_every": "5 steps",
    "warmup": "0 steps",
}  # fmt: skip
SPACE = {"flow": ["none", "planar"], "length": {"low": 1, "high": 3}, "lr": {"low": 1e-3, "high": 1e-2, "log": True}}


def data() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    common = torch.rand(200, 1, generator=generator)
    return ((0.2 + 0.6 * common) > torch.rand(200, 6, generator=generator)).float()


def sweep(out, space=SPACE, **options):
    options = {"test_samples": 10, "figures": False, "quiet": True, "storage": out / "sweep.journal", **options}
    fixed = {name: value for name, value in FIXED.items() if name not in space}
    return vf.sweep("digits", space, data(), out=out, **{**fixed, **options})


def plain(found) -> list[tuple]:
    return [(t.number, t.state, t.value, t.settings) for t in found.trials]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of five trials, and what was evaluated while trials were fitted."""
    out, order = tmp_path_factory.mktemp("sweep") / "out", []
    evaluate, fit = Run.evaluate, fitting.fit
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fitting, "fit", lambda *a, **k: order.append("fit") or fit(*a, **k))
        patched.setattr(
            Run, "evaluate", lambda run, split=None, *a, **k: order.append(split) or evaluate(run, split, *a, **k)
        )
        found = sweep(out, trials=5, top=2, figures=True)
    return found, order


def test_a_trial_is_the_run_that_its_settings_make(swept, tmp_path):
    found, _ = swept
    assert [t.number for t in found.trials] == [0, 1, 2, 3, 4]
    assert {t.state for t in found.trials} == {"complete"}
    trial = found.best
    assert trial.value == max(t.value for t in found.trials)
    run = vf.fit("digits", data(), out=tmp_path / "alone", quiet=True, **FIXED, **trial.settings)
    assert trial.value == run.outcome["best_elbo"]
    assert (trial.folder / WEIGHTS).read_bytes() == (run.folder / WEIGHTS).read_bytes()
    assert read_json(trial.folder / "spec.json") == run.spec.to_dict()
    assert found.best_run().spec == run.spec
    for one in found.trials:
        assert ("length" in one.settings) == (one.settings["flow"] == "planar")


def test_the_test_split_is_read_last_and_for_the_best_alone(swept):
    found, order = swept
    assert order == ["fit"] * 5 + ["test"] * 2
    tested = {t.number for t in found.trials if (t.folder / "evaluation" / "test.json").exists()}
    ranked = sorted(found.trials, key=lambda t: -t.value)
    assert [t.number for t in found.top] == [t.number for t in ranked[:2]]
    assert tested == {t.number for t in found.top}
    pairs = found.comparison
    a, b = (vf.evaluation.Evaluation.load(t.folder) for t in found.top)
    difference = vf.evaluation.paired(b, a, "log_px")
    assert pairs.differences[0]["log_px"].value == difference.value
    assert pairs.differences[0]["log_px"].standard_error == difference.standard_error
    assert pairs.estimates[0]["nll"].samples == 10


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.images = "", 0
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.images += tag == "img"


def test_the_table_the_files_and_the_page_say_the_same(swept):
    found, _ = swept
    table = found.table()
    kept = read_json(found.folder / "sweep.json")
    page = Page((found.folder / "sweep.html").read_text())
    written = (found.folder / "sweep.md").read_text()
    assert kept["best"]["number"] == found.best.number
    assert [t["validation_bound"] for t in kept["trials"]] == [t.value for t in found.trials]
    assert set(kept["test"]) == {t.name for t in found.top}
    assert set(kept["differences"]) == {found.top[1].name}
    for text in (table, written, page.text):
        assert f"{found.best.value:.2f}" in text
        assert f"less {found.best.name}" in text
        assert "5 trials: 5 trained to their end" in text
    assert page.images == 3
    assert "planar, " not in table
    assert f"varflow sweep --resume {found.folder}" in page.text
    json.dumps(kept, allow_nan=False)


def test_a_sweep_in_two_sessions_is_that_of_one(swept, tmp_path):
    found, _ = swept
    storage = tmp_path / "sweep.journal"
    sweep(tmp_path / "out", trials=2, top=0, storage=storage)
    again = sweeps.resume_sweep(tmp_path / "out", data(), trials=5, top=0, quiet=True, figures=False)
    assert plain(again) == plain(found)
    # All are there: nothing is begun, and the same command says the same.
    once_more = sweep(tmp_path / "out", trials=5, top=1, storage=storage)
    assert plain(once_more) == plain(found)
    assert once_more.comparison is None
    assert once_more.test_rows()[1][0] == found.best.name


def test_a_bad_trial_is_pruned_and_a_good_one_is_not(tmp_path):
    rates = [5e-3, 6e-3, 7e-3, 8e-3, 9e-3, 1e-8, 1e-2]
    found = sweep(tmp_path / "out", {"lr": rates}, sampler="grid", top=0)
    assert [t.settings["lr"] for t in found.trials] == rates
    bad = found.trials[5]
    assert (bad.state, bad.step) == ("pruned", 5)
    assert bad.note == "pruned at step 5, below the median of the others there"
    assert found.trials[6].state == "complete"
    assert read_json(bad.folder / "run.json")["outcome"]["reason"] == bad.note
    warm = sweep(tmp_path / "warm", {"lr": rates}, sampler="grid", warmup="12 steps", top=0).trials[5]
    assert (warm.state, warm.step) == ("pruned", 15)


def test_what_does_not_combine_is_a_bad_trial_with_its_sentence(tmp_path):
    space = {"flow": ["nice", "none"], "latent": [1, 2], "length": [2]}
    found = sweep(tmp_path / "out", space, sampler="grid", top=0)
    assert [t.state for t in found.trials] == ["refused", "complete", "complete", "complete"]
    refused = found.trials[0]
    assert refused.settings == {"flow": "nice", "latent": 1, "length": 2}
    assert "needs at least 2" in refused.note
    assert refused.folder is None
    assert "refused: " + refused.note in found.table()
    with pytest.raises(RunError, match=r"no trial of 1 was trained to its end; the last one: .* needs at least 2"):
        sweep(tmp_path / "none", {"flow": ["nice"], "latent": [1], "length": [2]}, sampler="grid")


@pytest.mark.slow
def test_a_trial_that_diverges_is_a_failed_one(tmp_path):
    found = sweep(tmp_path / "out", {"optimizer": ["sgd"], "lr": [1e-3, 1e30]}, sampler="grid", top=0)
    assert [t.state for t in found.trials] == ["complete", "failed"]
    assert "is the first to hold" in found.trials[1].note


@pytest.mark.slow
def test_equal_settings_are_fitted_once(tmp_path):
    found = sweep(tmp_path / "out", {"flow": ["none", "planar"]}, sampler="random", trials=5, top=3)
    own = [t for t in found.trials if t.same_as is None]
    assert len(own) == 2
    for trial in found.trials:
        if trial.same_as is not None:
            assert trial.value == found.trials[trial.same_as].value
            assert trial.folder is None
    assert len(found.top) == 2


class Cut(BaseException):
    """What ends a process in the middle."""


def test_a_trial_that_was_left_is_taken_up_from_its_checkpoint_to_the_bit(tmp_path, monkeypatch):
    validated, steps = working._Reports.validated, []

    def cut(self, record, fitting):
        validated(self, record, fitting)
        if self.trial.number == 1 and record["step"] == 10:
            raise Cut

    def note(self, record, fitting):
        steps.append((self.trial.number, record["step"]))
        validated(self, record, fitting)

    options = {"space": SPACE, "trials": 2, "top": 0, "save_every": 1e-9, "prune": False}
    whole = sweep(tmp_path / "whole", **options)
    monkeypatch.setattr(working._Reports, "validated", cut)
    with pytest.raises(Cut):
        sweep(tmp_path / "out", **options)
    assert read_state(tmp_path / "out" / "trials" / "0001")["step"] == 5
    monkeypatch.setattr(working._Reports, "validated", note)
    found = sweep(tmp_path / "out", **options)
    assert steps == [(1, 10), (1, 15), (1, 20)]
    assert plain(found) == plain(whole)
    for one, other in zip(found.trials, whole.trials, strict=True):
        assert (one.folder / WEIGHTS).read_bytes() == (other.folder / WEIGHTS).read_bytes()


def test_a_trial_whose_process_dies_at_one_place_again_and_again_has_failed(tmp_path, monkeypatch):
    def cut(self, record, fitting):
        if self.trial.number == 0:
            raise Cut

    monkeypatch.setattr(working._Reports, "validated", cut)
    options = {"space": {"flow": ["none", "planar"]}, "sampler": "grid", "top": 0}
    sessions, found = 0, None
    while found is None and sessions < 10:
        try:
            found = sweep(tmp_path / "out", **options)
        except Cut:
            sessions += 1
    # Those that came further than the ones before are not counted.
    assert working.ATTEMPTS <= sessions <= working.ATTEMPTS + 2
    assert [t.state for t in found.trials] == ["failed", "complete"]
    assert found.trials[0].note == "its process died 3 times at the same place"


def test_a_trial_that_ended_before_it_was_told_is_not_fitted_again(tmp_path, monkeypatch):
    end = working._end

    def cut(*values, **facts):
        raise Cut

    options = {"space": {"flow": ["none"]}, "sampler": "grid", "top": 0}
    monkeypatch.setattr(working, "_end", cut)
    with pytest.raises(Cut):
        sweep(tmp_path / "out", **options)
    monkeypatch.setattr(working, "_end", end)
    monkeypatch.setattr(fitting, "fit", None)
    monkeypatch.setattr(fitting, "resume", None)
    found = sweep(tmp_path / "out", **options)
    assert found.trials[0].state == "complete"
    assert found.trials[0].value == found.best_run().outcome["best_elbo"]


@pytest.mark.slow
def test_a_signal_leaves_a_trial_that_the_next_session_ends(tmp_path):
    class Told(Callback):
        def validated(self, record, fitting):
            if record["step"] == 10 and "0001" in str(fitting.folder):
                os.kill(os.getpid(), signal.SIGTERM)

    fit = fitting.fit
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fitting, "fit", lambda *a, callbacks, **k: fit(*a, callbacks=[*callbacks, Told()], **k))
        found = sweep(tmp_path / "out", trials=3, top=0)
    assert found.signal == signal.SIGTERM
    assert [t.state for t in found.trials] == ["complete", "running"]
    assert not (tmp_path / "out" / "sweep.json").exists()
    again = sweep(tmp_path / "out", trials=3, top=0)
    assert again.signal is None
    assert len([t for t in again.trials if t.state == "complete"]) == 3


def test_a_lock_goes_with_the_process_that_held_it(tmp_path):
    path = tmp_path / "lock"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom varflow.core.files import Lock\n"
        "lock = Lock.take(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert Lock.take(path, wait=False) is None
        process.kill()
        process.wait()
        held = Lock.take(path, wait=False)
    assert held is not None
    assert Lock.take(path, wait=False) is None
    held.release()
    with Lock.take(path) as again:
        assert again is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"space": {"flow": ["none"]}}, "of another space"),
        ({"latent": 3}, "of another recipe or other settings"),
        ({"sampler": "random"}, "of another sampler"),
        ({"sweep_seed": 1}, "of another seed of the sampler"),
    ],
)
def test_a_storage_with_another_sweep_is_refused(swept, change, sentence):
    found, _ = swept
    with pytest.raises(SpecError) as caught:
        sweep(found.folder, trials=5, **change)
    assert sentence in str(caught.value)


def test_a_folder_with_another_sweep_is_refused(swept, tmp_path):
    found, _ = swept
    for change in ({"storage": tmp_path / "other.journal"}, {"study": "other"}):
        with pytest.raises(SpecError, match=r"out: .* holds another sweep"):
            sweep(found.folder, trials=5, **change)


def test_a_run_of_other_settings_in_the_place_of_a_trial_is_replaced(tmp_path):
    options = {"sampler": "grid", "top": 0}
    sweep(tmp_path / "out", {"lr": [1e-3]}, **options)
    (tmp_path / "out" / "sweep.journal").unlink()
    (tmp_path / "out" / "plan.json").unlink()
    found = sweep(tmp_path / "out", {"lr": [2e-3]}, **options)
    assert found.best_run().spec.get("lr") == 2e-3
    assert found.trials[0].value == found.best_run().outcome["best_elbo"]


def test_a_storage_that_is_none_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"storage: was 'sweep\.txt'; use a SQLite file"):
        sweep(tmp_path / "out", storage="sweep.txt")
    (tmp_path / "no.db").write_text("this is no database " * 100)
    with pytest.raises(RunError, match=r"no\.db cannot be opened"):
        sweep(tmp_path / "out", storage=tmp_path / "no.db")
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    study = optuna.create_study(storage=url, study_name="digits", direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(SpecError, match="that is no sweep of varflow"):
        sweep(tmp_path / "out", storage=url)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": 1e-3}, "lr: is given once and for all, and varies in the space"),
        ({"lattent": 3}, "lattent: unknown setting; did you mean 'latent'?"),
        ({"jobs": 0}, "jobs: was 0; use a positive integer"),
        ({"trials": 0}, "trials: was 0; use a positive integer"),
        ({"top": -1}, "top: was -1; use 0 or more"),
        ({"sampler": "tep"}, "sampler: unknown value 'tep'; did you mean 'tpe'?"),
        ({"sampler": "grid"}, "lr: a grid needs choices"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, options, sentence):
    with pytest.raises(SpecError) as caught:
        sweep(tmp_path / "out", **options)
    assert sentence in str(caught.value)
    with pytest.raises(SpecError, match="a target has no validation split"):
        vf.sweep("energy", {"lr": [1e-3]}, out=tmp_path / "out")
    with pytest.raises(RunError, match="holds no sweep"):
        sweeps.resume_sweep(tmp_path / "none")


def test_a_missing_engine_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(working, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"Optuna is not installed; run: pip install 'varflow\[sweep\]'"):
        sweep(tmp_path / "out")


def call(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.mark.slow
def test_a_sweep_on_the_command_line(tmp_path, capsys):
    space = tmp_path / "space.toml"
    space.write_text('flow = ["none", "planar"]\nlength = [2]\n')
    words = ["--hidden", "8", "--latent", "2", "--steps", "6", "--sampler", "grid", "--test-samples", "5"]
    words += ["--space", space, "--out", tmp_path / "out", "--no-figures"]
    code, out, err = call(capsys, "sweep", "digits", *words)
    assert code == 0, err
    assert "trial 0: flow=none: " in err
    assert "2 trials: 2 trained to their end" in out
    assert f"best: {tmp_path / 'out' / 'trials'}" in out
    code, again, err = call(capsys, "sweep", "--resume", tmp_path / "out", "--no-figures", "--test-samples", "5")
    assert code == 0
    assert again == out
    assert "2 trials have ended before" in err
    for words, sentence in (
        (["digits"], "space: missing"),
        ([], "recipe: missing"),
        (["digits", "--space", tmp_path / "none.toml"], "there is no such file"),
        (["digits", "--spcae", "x"], "--spcae: unknown setting; did you mean 'space'?"),
        (["digits", "--resume", tmp_path / "out"], "resume: given beside a recipe"),
        (["--resume", tmp_path / "out", "--lr", "1"], "lr: a sweep that goes on keeps its settings"),
        (["--resume", tmp_path / "out", "--space", "1"], "space: a sweep that goes on keeps its settings"),
        (["--resume", tmp_path], "holds no sweep"),
    ):
        code, _, err = call(capsys, "sweep", *words)
        assert code == 2
        assert sentence in err


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["db", "journal"])
def test_a_killed_worker_is_replaced_and_its_trial_ends_to_the_bit(tmp_path, suffix):
    space = tmp_path / "space.toml"
    space.write_text("lr = [1e-3, 2e-3, 3e-3]\n")
    out = tmp_path / "out"
    settings = {"hidden": 64, "latent": 2, "steps": 1000, "save_every": 0.001, "validate_every": "50 steps"}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "varflow", "sweep", "digits", "--space", str(space), "--jobs", "2"]
    command += ["--sampler", "grid", "--no-prune", "--top", "2", "--test-samples", "5", "--no-figures"]
    command += ["--out", str(out), "--storage", str(tmp_path / f"sweep.{suffix}"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as process:
        end, metrics = time.monotonic() + 120, out / "trials" / "0000" / METRICS
        while not metrics.exists() or metrics.read_text().count('"split": "train"') < 3:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.02)
        plan = Plan(**read_json(out / "plan.json"))
        at_work = working.open_study(plan).trials[0].user_attrs["process"]
        os.kill(int(at_work.split()[0]), signal.SIGKILL)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "a process of the sweep died (SIGKILL); another takes up its trial" in said
    kept = read_json(out / "sweep.json")
    assert [t["state"] for t in kept["trials"]] == ["complete"] * 3
    # The first was killed, the last was nobody's.
    for trial in kept["trials"][::2]:
        folder = tmp_path / f"alone-{trial['number']}"
        alone = vf.fit("digits", out=folder, quiet=True, **settings, **trial["settings"])
        assert alone.outcome["best_elbo"] == trial["validation_bound"]
        assert (alone.folder / WEIGHTS).read_bytes() == (Path(trial["folder"]) / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_two_jobs_take_data_given_in_python_and_say_what_is_wrong(tmp_path):
    found = sweep(tmp_path / "out", {"flow": ["none", "planar"]}, sampler="grid", jobs=2, threads=None, top=2)
    assert [t.state for t in found.trials] == ["complete", "complete"]
    assert read_json(found.trials[0].folder / "spec.json")["training"]["threads"] >= 1
    with pytest.raises(vf.errors.DataError, match="/nowhere"):
        vf.sweep("digits", {"lr": [1e-3, 2e-3]}, "/nowhere.npy", jobs=2, out=tmp_path / "bad", quiet=True, **FIXED)


@pytest.mark.slow
def test_two_commands_share_the_trials_of_a_sweep(tmp_path):
    """As on two machines that see the same folder: no trial twice, none missing, the values of one command."""
    space = tmp_path / "space.toml"
    space.write_text("lr = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3]\n")
    settings = {"hidden": 64, "latent": 2, "steps": 600, "validate_every": "50 steps"}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "varflow", "sweep", "digits", "--space", str(space), "--sampler", "grid"]
    command += ["--no-prune", "--top", "1", "--test-samples", "5", "--no-figures", "--threads", "1"]
    command += ["--out", str(tmp_path / "out"), "--storage", str(tmp_path / "sweep.journal"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    machines = []
    for number in (0, 1):
        home = tmp_path / f"machine{number}"
        home.mkdir()
        machines.append(subprocess.Popen(command, cwd=home, **pipes))
    for machine in machines:
        said, _ = machine.communicate(timeout=200)
        assert machine.returncode == 0, said
    trials = working.open_study(Plan(**read_json(tmp_path / "out" / "plan.json"))).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 6
    assert {t.user_attrs["process"].split()[0] for t in trials} == {str(m.pid) for m in machines}
    assert len({t.params["lr"] for t in trials}) == 6
    alone = vf.fit("digits", quiet=True, threads=1, **settings, lr=trials[0].params["lr"])
    assert trials[0].value == alone.outcome["best_elbo"]
