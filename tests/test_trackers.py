"""Trackers: what is read back from the stores that MLflow, W&B, trackio and TensorBoard keep."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import varflow as vf
from varflow.core.errors import SpecError
from varflow.core.files import read_json
from varflow.runs import trackers
from varflow.runs.trackers import choice

SETTINGS = {
    "latent": 2, "hidden": 8, "layers": 1, "threads": 1, "quiet": True, "validate_every": "10 steps",
}  # fmt: skip


class Kept(trackers.Tracker):
    """Keeps what it is given, as a fake store would."""

    name = "kept"

    def __init__(self, **options):
        super().__init__(**options)
        self.opened, self.curves, self.drawn, self.values, self.ends = [], {}, [], {}, []

    def open(self, fitting, before):
        self.opened.append(before)
        return {"run": "42"}

    def settings(self, values):
        self.values = dict(values)

    def scalars(self, values, step):
        for name, value in values.items():
            self.curves.setdefault(name, {})[step] = value

    def figure(self, name, path, step):
        assert path.read_bytes().startswith(b"\x89PNG")
        self.drawn.append((name, step))

    def close(self, status, summary):
        self.ends.append((status, dict(summary)))


def curve(run, name: str, split: str) -> dict[int, float]:
    return {r["step"]: r[name] for r in run.metrics if r["split"] == split}


def test_curves_figures_settings_and_the_end_reach_a_tracker(tmp_path):
    kept = Kept()
    plain = vf.fit("digits", steps=35, **SETTINGS)
    run = vf.fit("digits", steps=35, out=tmp_path / "run", callbacks=[kept], **SETTINGS)
    for name, tensor in plain.model.state_dict().items():
        assert tensor.equal(run.model.state_dict()[name]), name
    assert kept.curves["elbo/validation"] == curve(run, "elbo", "validation")
    assert kept.curves["kl/train"] == curve(run, "kl", "train")
    assert set(kept.curves["elbo/validation"]) == {0, 10, 20, 30, 35}
    assert kept.values["latent"] == 2
    assert kept.values == {n: v for part in run.spec.parts.values() for n, v in part.values().items()}
    on_the_way = [(name, step) for step in (10, 20) for name in ("samples", "reconstructions")]
    assert kept.drawn == [*on_the_way, ("samples", 35), ("reconstructions", 35), ("curves", 35)]
    ((status, summary),) = kept.ends
    assert status == "finished"
    assert summary == {name: run.outcome[name] for name in summary}
    assert read_json(tmp_path / "run" / "trackers.json") == {"kept": {"run": "42"}}
    again = Kept(figures=False)
    vf.resume(run.folder, steps=36, quiet=True, callbacks=[again])
    assert again.opened == [{"run": "42"}]
    assert not again.drawn


def test_a_target_and_a_failed_fit_are_told():
    kept = Kept()
    vf.fit(vf.recipes.find("energy").spec.preset(length=2), steps=3, threads=1, quiet=True, callbacks=[kept])
    assert ("densities", 3) in kept.drawn
    assert kept.ends[0][0] == "finished"

    class Broken(vf.training.Callback):
        def validated(self, record, fitting):
            raise ValueError("broken")

    kept = Kept(figures=False)
    with pytest.raises(vf.errors.RunError):
        vf.fit("digits", steps=3, callbacks=[kept, Broken()], **SETTINGS)
    assert kept.ends == [("failed", {"reason": "RunError: callback Broken.validated: ValueError: broken"})]


@pytest.mark.parametrize(
    ("track", "sentence"),
    [
        ("mlfow", "track: unknown value 'mlfow'; did you mean 'mlflow'?"),
        ("tensorboard,tensorboard", "track: tensorboard is given twice"),
        ("tensorboard", "track: tensorboard writes into the folder of the run, and there is none; give out="),
    ],
)
def test_mistakes_are_one_sentence(track, sentence):
    with pytest.raises(SpecError) as caught:
        vf.fit("digits", steps=1, track=track, **SETTINGS)
    assert sentence in str(caught.value)


def test_a_missing_library_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    for name in ("mlflow", "wandb", "trackio"):
        with pytest.raises(SpecError) as caught:
            vf.fit("digits", steps=1, track=name, out=tmp_path, **SETTINGS)
        assert str(caught.value) == f"track: {name} is not installed; run: pip install 'varflow[{name}]'"
    assert choice.named("none", None) == []
    assert not (tmp_path / "spec.json").exists()


@pytest.mark.slow
def test_nothing_is_imported_without_being_used():
    script = (
        "import sys, varflow as vf\n"
        "vf.fit('digits', latent=2, hidden=8, steps=2, threads=1, quiet=True, callbacks=[vf.training.Callback()])\n"
        "found = {'mlflow', 'wandb', 'trackio', 'optuna', 'matplotlib', 'tensorboardX'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tensorboard_has_pictures_under_the_curves(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    run = vf.fit("digits", steps=15, out=tmp_path / "run", track="tensorboard", **SETTINGS)
    vf.resume(run.folder, steps=20, quiet=True)
    found = []
    for path in sorted((run.folder / "tensorboard" / "figures").iterdir()):
        blob, at = path.read_bytes(), 0
        while at < len(blob):
            size = int.from_bytes(blob[at : at + 8], "little")
            event = Event.FromString(blob[at + 12 : at + 12 + size])
            at += size + 16
            for value in event.summary.value:
                assert value.image.encoded_image_string.startswith(b"\x89PNG")
                assert value.image.width > 100
                found.append((value.tag, event.step))
    assert set(found) == {
        *[(f"figures/{name}", 10) for name in ("samples", "reconstructions")],
        *[(f"figures/{name}", 15) for name in ("samples", "reconstructions", "curves")],
        *[(f"figures/{name}", 20) for name in ("samples", "reconstructions", "curves")],
    }
    assert any(path.is_file() for path in (run.folder / "tensorboard").iterdir())


# What the libraries import and open is theirs to answer for.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_mlflow_has_curves_parameters_figures_and_the_status(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = tmp_path / "first"
    vf.fit("digits", steps=15, out=folder, track="mlflow", **SETTINGS)
    run = vf.resume(folder, steps=25, quiet=True)
    client = mlflow.MlflowClient(tracking_uri=uri)
    known = read_json(folder / "trackers.json")["mlflow"]["run"]
    experiment = client.get_experiment_by_name("varflow")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.run_name, found.info.status) == (known, "first", "FINISHED")
    assert found.data.params["latent"] == "2"
    assert found.data.params["steps"] == "15"
    assert found.data.tags["now.steps"] == "25"
    assert found.data.tags["outcome.reason"] == "the budget is used"
    for name, split in (("elbo", "validation"), ("kl", "train")):
        points = {m.step: m.value for m in client.get_metric_history(known, f"{name}/{split}")}
        assert points == curve(run, name, split)
    assert {a.path for a in client.list_artifacts(known, "figures")} == {
        "figures/samples.png", "figures/reconstructions.png", "figures/curves.png",
    }  # fmt: skip
    pictures = [a.path for a in client.list_artifacts(known, "images")]
    assert any("samples" in path and "10" in path for path in pictures)
    spec = client.download_artifacts(known, "spec.json", str(tmp_path))
    assert read_json(Path(spec)) == run.spec.to_dict()
    tracker = trackers.MLflow(uri=uri, experiment="other", figures=False)
    vf.fit("digits", steps=2, callbacks=[tracker], **SETTINGS)
    assert client.get_experiment_by_name("other") is not None


def leveldb_log(blob: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after W&B's header of 7 bytes: blocks of 32 KiB, in which each
    fragment has a checksum of 4 bytes, its length in 2, and its place in the record in 1.
    """
    at, record = 7, b""
    while at + 7 <= len(blob):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, place = int.from_bytes(blob[at + 4 : at + 6], "little"), blob[at + 6]
        record += blob[at + 7 : at + 7 + size]
        at += 7 + size
        if place in (1, 4):
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")
def test_wandb_has_curves_config_and_figures_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", exc_type=ImportError)
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = vf.fit("digits", steps=15, out=tmp_path / "first", track="wandb", **SETTINGS)
    (path,) = (run.folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert read_json(run.folder / "trackers.json")["wandb"]["run"] in path.name
    curves, config, name, code = {}, {}, "", None
    for blob in leveldb_log(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(blob)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = record.run.display_name
        elif kind == "exit":
            code = record.exit.exit_code
        elif kind == "history":
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            for key, value in row.items():
                curves.setdefault(key, {})[row["step"]] = value
        elif kind == "config":
            config |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.config.update}
    assert (name, code) == ("first", 0)
    assert config["latent"] == 2
    assert curves["elbo/validation"] == pytest.approx(curve(run, "elbo", "validation"), rel=1e-12)
    for figure, steps in (("samples", {10, 15}), ("curves", {15})):
        assert {step for key in curves if key.startswith(f"figures/{figure}") for step in curves[key]} == steps


@pytest.mark.filterwarnings("ignore")
def test_trackio_has_curves_config_and_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    trackio = pytest.importorskip("trackio")
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    assert trackio.__version__
    folder = tmp_path / "first"
    vf.fit("digits", steps=15, out=folder, track="trackio", **SETTINGS)
    run = vf.resume(folder, steps=25, quiet=True)
    rows = storage.get_logs("varflow", "first")
    found = {row["step"]: row["elbo/validation"] for row in rows if "elbo/validation" in row}
    assert found == pytest.approx(curve(run, "elbo", "validation"), rel=1e-12)
    assert {row["step"] for row in rows if "figures/samples" in row} == {10, 15, 20, 25}
    assert storage.get_run_config("varflow", "first")["latent"] == 2
