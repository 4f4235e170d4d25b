"""Run folders: load, refuse, survive full disks; and the Python way."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.core.errors import RunError, SpecError
from varflow.runs.folder import DATA, RUN, SPEC, STATE, WEIGHTS, read_state

SETTINGS = {"latent": 2, "hidden": 8, "layers": 1, "threads": 1, "quiet": True}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    vf.fit("digits", steps=30, flow="planar", length=2, out=folder, **SETTINGS)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy that a test may damage."""
    import shutil

    return shutil.copytree(finished, tmp_path / "run")


def test_the_folder_holds_what_a_run_is(finished):
    names = {p.name for p in finished.iterdir()}
    assert {SPEC, RUN, DATA, "environment.json", "metrics.jsonl", WEIGHTS, STATE, "tensorboard"} <= names
    assert not [n for n in names if n.endswith(".part")]
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["engine"]["denormals_flushed"] is True
    data = json.loads((finished / DATA).read_text())
    assert data["protocol"] == "dynamic"
    assert data["event_shape"] == [1, 8, 8]


def test_tensorboard_reads_the_curves(finished):
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (finished / "tensorboard").iterdir()
    blob, tags, at = path.read_bytes(), set(), 0
    while at < len(blob):
        size = int.from_bytes(blob[at : at + 8], "little")
        event = Event.FromString(blob[at + 12 : at + 12 + size])
        tags |= {value.tag for value in event.summary.value}
        at += size + 16
    assert {"elbo/train", "elbo/validation", "kl/train", "ladj/validation"} <= tags


def test_loading_gives_the_same_model(finished):
    run = vf.load(finished)
    with vf.random.stream(0):
        first = run.evaluate(samples=5, limit=20)
    again = vf.load(finished).evaluate(samples=5, limit=20)
    assert first.estimates["elbo"].value == again.estimates["elbo"].value
    assert not run.model.training
    assert run.metrics[-1]["step"] == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(version=0), "format version 0, this varflow reads version 2"),
        (lambda s: s.pop("version"), "format version None"),
        (lambda s: s["flow"].update(flwo="x"), "unknown key 'flow.flwo'; did you mean 'flow'"),
        (lambda s: s.update(modle={}), "unknown role 'modle'"),
        (lambda s: s["flow"].update(flow="os.system"), "unknown value 'os.system'"),
        (lambda s: s["posterior"].update(latent=3), "the spec or the weights were changed"),
        (lambda s: s["posterior"].update(latent="2"), "latent: was '2'"),
        (lambda s: s.update(flow={"flow": "none"}), "the spec or the weights were changed"),
        (lambda s: s.update(posterior=[]), "not an object"),
    ],
)
def test_a_spec_that_is_old_or_changed_is_refused(folder, change, message):
    spec = json.loads((folder / SPEC).read_text())
    change(spec)
    (folder / SPEC).write_text(json.dumps(spec))
    with pytest.raises((RunError, SpecError)) as error:
        vf.load(folder)
    assert message in str(error.value)


def test_damaged_files_are_named(folder):
    blob = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(blob[:-100])
    with pytest.raises(RunError, match=r"model\.safetensors: damaged"):
        vf.load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(RunError, match=r"model\.safetensors: missing"):
        vf.load(folder)
    for name, text, message in [
        (DATA, "{}", "not what varflow wrote"),
        (DATA, '{"event_shape": [1, -8, 8], "support": "binary"}', "event_shape"),
        (DATA, '{"event_shape": [1, 8, 8], "support": "eval()"}', "support"),
        (SPEC, "{", "cannot be read as JSON"),
        (SPEC, "[]", "expected a JSON object"),
    ]:
        (folder / name).write_text(text)
        with pytest.raises(RunError, match=message):
            vf.load(folder)
    (folder / SPEC).unlink()
    with pytest.raises(RunError, match="holds no run"):
        vf.load(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    from varflow.runs.folder import read_weights, save_weights

    weights = read_weights(folder / WEIGHTS)
    name = next(iter(weights))
    weights[name].view(-1)[0] = float("nan")
    save_weights(folder / WEIGHTS, weights, 0)
    with pytest.raises(RunError, match=f"'{name}' holds a NaN"):
        vf.load(folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another folder"):
        vf.fit("digits", steps=2, out=tmp_path / "file" / "run", **SETTINGS)
    with pytest.raises(RunError, match="choose another folder"):
        vf.fit("digits", steps=2, out=tmp_path / "file", **SETTINGS)


@pytest.mark.slow
def test_a_size_limit_hit_while_saving_loses_nothing(folder):
    """What `ulimit -f` does: the state no longer fits, the one that was there stays."""
    before, step = (folder / STATE).read_bytes(), read_state(folder)["step"]
    weights = (folder / WEIGHTS).read_bytes()
    limit = len(before) // 2

    def small_files() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "varflow", "fit", "--resume", str(folder), "--steps", "60", "--quiet"],
        capture_output=True,
        text=True,
        preexec_fn=small_files,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "what was there before is kept" in done.stderr
    assert (folder / STATE).read_bytes() == before
    assert (folder / WEIGHTS).read_bytes() == weights
    assert not list(folder.glob(".*.part"))
    assert read_state(folder)["step"] == step
    assert vf.resume(folder, steps=60, quiet=True).outcome["step"] == 60


@pytest.mark.parametrize("size", [pytest.param(40_000, marks=pytest.mark.slow), 4_000])
def test_a_size_limit_hit_while_recording_ends_the_fit_with_a_message(tmp_path, size):
    """Curves and metrics grow; the fit must stop with a sentence, not wait for a writer that died."""

    def small_files() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    small = ["--latent", "2", "--hidden", "2", "--layers", "1", "--threads", "1", "--quiet"]
    words = ["fit", "digits", *small, "--epochs", "400", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "varflow", *words],
        capture_output=True,
        text=True,
        preexec_fn=small_files,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "free space" in done.stderr.lower()


def test_a_smaller_budget_leaves_the_run_as_it_is(folder):
    before = (folder / SPEC).read_bytes()
    with pytest.raises(RunError, match="is finished"):
        vf.resume(folder, steps=10, quiet=True)
    assert (folder / SPEC).read_bytes() == before


def test_other_data_than_the_run_was_fitted_with_are_refused(tmp_path):
    path = tmp_path / "d.npy"
    np.save(path, np.random.default_rng(0).normal(size=(200, 3)))
    vf.fit("digits", path, steps=10, out=tmp_path / "run", **SETTINGS)
    vf.load(tmp_path / "run").evaluate(samples=5)
    np.save(path, np.random.default_rng(1).normal(size=(300, 3)))
    with pytest.raises(RunError, match="the run was fitted with"):
        vf.load(tmp_path / "run").evaluate(samples=5)
    with pytest.raises(RunError, match="the run was fitted with"):
        vf.resume(tmp_path / "run", steps=20, quiet=True)


def test_other_files_that_were_tampered_with_are_named(folder):
    (folder / "metrics.jsonl").write_bytes(b"[]\n\xff\xfe\n")
    assert vf.load(folder).metrics == []
    (folder / RUN).write_text("[]")
    with pytest.raises(RunError, match=r"run\.json: not what varflow wrote"):
        vf.load(folder)


def test_grey_values_have_no_bits_per_dim_and_no_density(tmp_path):
    with pytest.raises(SpecError, match="grey"):
        vf.fit("digits", protocol="grey", steps=5, **SETTINGS)
    run = vf.fit("digits", protocol="grey", likelihood="bernoulli", grey=True, steps=5, **SETTINGS)
    assert "bits_per_dim" not in run.evaluate(samples=30, limit=20).estimates
    run = vf.fit("digits", protocol="uniform", steps=5, **SETTINGS)
    assert "bits_per_dim" in run.evaluate(samples=30, limit=20).estimates


def test_a_model_of_your_own_and_a_tensor(tmp_path):
    x = (torch.rand(200, 6) < 0.3).float()
    network = vf.networks.MLP(6, hidden=(8,))

    def model() -> vf.Model:
        return vf.Model(
            prior=vf.priors.StandardNormal(2),
            likelihood=vf.likelihoods.Bernoulli(vf.networks.MLP(2, 6, hidden=(8,)), (6,)),
            posterior=vf.posteriors.Gaussian(2, network, flow=vf.flows.Planar(2, length=3)),
        )

    run = vf.fit(model(), x, epochs=3, batch=20, threads=1, quiet=True, out=tmp_path / "run")
    assert run.evaluate(samples=20).estimates["nll"].value > 0
    with pytest.raises(RunError, match=r"its own likelihood \(.*:Bernoulli\), .*pass parts=\{'likelihood'"):
        vf.load(tmp_path / "run")
    fresh = model()
    parts = {"prior": fresh.prior, "likelihood": fresh.likelihood, "posterior": fresh.posterior}
    again = vf.load(tmp_path / "run", parts=parts, data=x)
    assert torch.equal(again.model.posterior.flow.u, run.model.posterior.flow.u)
    assert np.isfinite(again.evaluate(samples=20).estimates["nll"].value)


def test_what_does_not_combine_is_refused():
    with pytest.raises(SpecError, match="binary"):
        vf.fit("digits", torch.rand(50, 4) * 5, likelihood="bernoulli", steps=2, **SETTINGS)
    with pytest.raises(SpecError, match="part 'decoder'"):
        vf.fit("digits", parts={"decoder": torch.nn.Linear(2, 2)}, steps=2, **SETTINGS)
    with pytest.raises(SpecError, match="lenght"):
        vf.fit("digits", lenght=3, **SETTINGS)
    with pytest.raises(SpecError, match="what: was int"):
        vf.fit(3)


def test_fits_in_memory_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = vf.fit("digits", steps=3, **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match="in memory"):
        run.report()


@pytest.mark.slow
def test_the_readme_example_runs(tmp_path, monkeypatch):
    from pathlib import Path

    text = (Path(__file__).parents[1] / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("epochs=200", "epochs=2"), "README.md", "exec"), {})
    assert list(tmp_path.rglob("report.html"))
