"""The files of a run: written whole or not at all, read without executing anything.

    spec.json            the resolved settings
    run.json             recipe, import paths of own parts (read, never imported), how the fit ended
    data.json            data set, protocol, splits, checksums
    environment.json     versions, machine, seed, commit
    metrics.jsonl        one record a line: training terms and validations
    tensorboard/         the same curves for TensorBoard
    model.safetensors    the weights the run stands for
    state.pt             what a resumed fit needs to go on bit for bit
    training_scores.json    log p of training rows, which new rows are ranked among
    embeddings.safetensors  latents of training rows, which neighbours are looked for among
    snapshots/           weights now and then, of a fit to a target
    prior/               the fit of a code prior: the codes it is fitted to, and metrics, weights and state of its own
    trackers.json        under which names trackers know the run, where there are such
    evaluation/          estimates and per-example results
    figures/, report.html
    README.md            the model card (varflow.report.card)
"""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varflow.core.columns import Column
from varflow.core.errors import DataError, RunError
from varflow.core.files import TRAINING_ROWS, make_folder, read_json, write_atomically, write_json
from varflow.core.form import Form
from varflow.data.columns import Columns
from varflow.data.conditions import Conditions
from varflow.data.dataset import Dataset
from varflow.data.protocols import Protocol, restored
from varflow.data.target_batches import TargetBatches
from varflow.report.card import CARD, written_by_varflow
from varflow.settings.spec import RunSpec

SPEC, RUN, DATA, ENVIRONMENT = "spec.json", "run.json", "data.json", "environment.json"
PREPROCESSING = "preprocessing.json"
METRICS, WEIGHTS, STATE = "metrics.jsonl", "model.safetensors", "state.pt"
SNAPSHOTS, TRACKERS = "snapshots", "trackers.json"
#: What a run keeps of its training rows: their scores, and their latents.
TRAINING_SCORES, EMBEDDINGS = TRAINING_ROWS


class RunFolder:
    """Writes a run: the sink of the loop. Every file is replaced whole, or appended a line at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None
        self._weights: Any = None
        self._purge: int | None = None

    def watch(self, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """``weights()`` gives what :meth:`save` puts into model.safetensors."""
        self._weights = weights

    def rewind(self, state: dict[str, Any]) -> None:
        """Forget the records written after ``state``: a resumed fit writes them again."""
        path = self.folder / METRICS
        size = path.stat().st_size if path.exists() else 0
        if size < state["metrics_bytes"]:
            raise RunError(
                f"{path}: {size} bytes, the saved state expects at least {state['metrics_bytes']}; "
                "the file was cut or replaced, restore it or fit again"
            )
        if path.exists():
            with open(path, "r+b") as file:
                file.truncate(state["metrics_bytes"])
        self._purge = state["step"]

    def record(self, record: dict[str, Any]) -> None:
        path = self.folder / METRICS
        try:
            with open(path, "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(
                f"{path}: could not be appended to ({error}); free space and resume"
            ) from error
        self._curves(record)

    def position(self) -> int:
        path = self.folder / METRICS
        return path.stat().st_size if path.exists() else 0

    def save(self, state: dict[str, Any]) -> None:
        write_atomically(self.folder / STATE, lambda file: torch.save(state, file))
        if self._weights is not None:
            save_weights(self.folder / WEIGHTS, self._weights(), state["step"])

    def snapshot(self, step: int, weights: Mapping[str, Tensor]) -> None:
        room = self.folder / SNAPSHOTS
        make_folder(room)
        save_weights(room / f"step-{step:08d}.safetensors", weights, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _curves(self, record: dict[str, Any]) -> None:
        # The plain writer, not SummaryWriter: that one writes from a thread, and waits for it for
        # ever once the disk is full.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        folder = self.folder / "tensorboard"
        try:
            if self._writer is None:
                make_folder(folder)
                self._writer = EventsWriter(str(folder / "events"))
                if self._purge is not None:
                    began = SessionLog(status=SessionLog.START)
                    self._event(Event(step=self._purge, session_log=began))
            for name, value in record.items():
                if name not in ("step", "epoch", "split") and isinstance(value, float):
                    summary = scalar(f"{name}/{record['split']}", value)
                    self._event(Event(step=record["step"], summary=summary))
            self._writer.flush()
        except OSError as error:
            self._writer = None
            raise RunError(f"{folder}: cannot be written ({error}); free space and resume") from error

    def _event(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)


class Memory:
    """A sink that keeps everything in memory, for fits without a folder."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.snapshots: list[tuple[int, dict[str, Tensor]]] = []

    def record(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def position(self) -> int:
        return len(self.records)

    def save(self, state: dict[str, Any]) -> None:
        self.state = state

    def snapshot(self, step: int, weights: Mapping[str, Tensor]) -> None:
        kept = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        self.snapshots.append((step, kept))


class Elsewhere:
    """A sink that keeps nothing: another process writes."""

    def record(self, record: dict[str, Any]) -> None: ...

    def position(self) -> int:
        return 0

    def save(self, state: dict[str, Any]) -> None: ...

    def snapshot(self, step: int, weights: Mapping[str, Tensor]) -> None: ...


def save_weights(path: Path, weights: Mapping[str, Tensor], step: int) -> None:
    """Weights as safetensors, whole or not at all."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # One entry alone: the order of several is not fixed, and equal runs shall be equal files.
    blob = save(plain, metadata={"step": str(step)})
    write_atomically(path, lambda file: file.write(blob))


def step_of(path: Path) -> int:
    """The update that weights are of, as :func:`save_weights` wrote it beside them; 0 where it is not there."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return int((file.metadata() or {}).get("step", 0))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights from safetensors; nothing in the file is executed.

    Raises:
        RunError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as load_blob

    try:
        return load_blob(path.read_bytes())
    except FileNotFoundError:
        raise RunError(
            f"{path}: missing; the run has not saved a model yet, resume or fit again"
        ) from None
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(
            f"{path}: damaged ({error}); resume the run from its state, or fit again"
        ) from error


def read_state(folder: Path) -> dict[str, Any]:
    """The resumable state; only tensors and plain values are read.

    Raises:
        RunError: the file is missing or damaged.
    """
    path = folder / STATE
    if not path.exists():
        raise RunError(f"{path}: missing; nothing to resume in {folder}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise RunError(
            f"{path}: damaged or not a varflow state ({_first_line(error)}); fit again"
        ) from error
    keys = ("step", "model", "optimizer", "engine", "metrics_bytes", "pending", "best")
    if not isinstance(state, dict) or any(key not in state for key in keys):
        raise RunError(f"{path}: not a varflow state; fit again")
    return state


def read_form(folder: Path) -> Form:
    """Shape and support of the data of a run."""
    values = read_json(folder / DATA)
    try:
        shape = tuple(values["event_shape"])
        support, levels = values["support"], values.get("levels")
        if not shape or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"event_shape {shape}")
        if support not in ("binary", "grey", "levels", "unit", "real", "codes", "columns", "none"):
            raise ValueError(f"support {support!r}")
        if levels is not None and not (type(levels) is int and levels > 0):
            raise ValueError(f"levels {levels!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder / DATA}: not what varflow wrote ({error}); restore it or fit again"
        ) from error
    form = Form(shape, support, levels, _columns(folder) if support == "columns" else ())
    conditions = read_conditions(folder, form) if (folder / PREPROCESSING).exists() else None
    return form if conditions is None else replace(form, context=conditions.columns)


def _columns(folder: Path) -> tuple[Column, ...]:
    """What is known of the columns of a table."""
    learned = read_json(folder / PREPROCESSING).get("learned") or {}
    try:
        return tuple(Column.from_json(held) for held in learned["columns"])
    except (KeyError, TypeError, DataError) as error:
        raise RunError(
            f"{folder / PREPROCESSING}: not what varflow wrote ({error}); restore it or fit again"
        ) from error


def write_preprocessing(folder: Path, dataset: Dataset | TargetBatches) -> None:
    """What stands between the stored values and the model, with what it learned from the training split."""
    if not isinstance(dataset, Dataset):
        return
    kept = dataset.preprocessing
    facts = {
        "protocol": kept.name, "levels": kept.source_levels, "picture": dataset.picture, "learned": kept.learned(),
    }  # fmt: skip
    if dataset.conditions is not None:
        facts["conditions"] = dataset.conditions.preprocessing.learned()
    write_json(folder / PREPROCESSING, facts)


def read_preprocessing(folder: Path, form: Form) -> tuple[Protocol | None, bool]:
    """The preprocessing of a run whose data have ``form``, and whether they are pictures; None for a target.

    Raises:
        RunError: the file is missing or damaged, or not of these data.
    """
    if form.support == "none":
        return None, False
    facts = read_json(folder / PREPROCESSING)
    try:
        kept = restored(facts["protocol"], facts["levels"], facts["learned"])
        flaw = kept.flaw(form.event_shape)
        if flaw is not None:
            raise DataError(flaw)
        return kept, bool(facts["picture"])
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise RunError(
            f"{folder / PREPROCESSING}: not what varflow wrote ({error}); restore it or fit again"
        ) from error


def read_conditions(folder: Path, form: Form) -> Conditions | None:
    """What a run has learned of its conditions; None where it has none.

    Raises:
        RunError: the file is damaged.
    """
    if form.support == "none":
        return None
    held = read_json(folder / PREPROCESSING).get("conditions")
    if held is None:
        return None
    try:
        made = restored("columns", None, held)
        assert isinstance(made, Columns)
        return Conditions(made)
    except DataError as error:
        raise RunError(
            f"{folder / PREPROCESSING}: not what varflow wrote ({error}); restore it or fit again"
        ) from error


def describe_data(dataset: Dataset | TargetBatches) -> dict[str, Any]:
    """What data.json holds."""
    return {
        **dataset.describe(),
        "event_shape": list(dataset.event_shape),
        "support": dataset.support,
        "levels": dataset.levels,
    }


def check_data(dataset: Dataset | TargetBatches, folder: Path) -> None:
    """Whether these are the data a run was fitted to.

    Raises:
        RunError: shape, protocol, splits or checksums differ, with what differs.
    """
    there, here = read_json(folder / DATA), json.loads(json.dumps(describe_data(dataset)))
    for key in here:
        # Where they were found may differ; what they are may not.
        if key not in ("source", "folder", "flip", "frame") and here[key] != there.get(key):
            raise RunError(
                f"data: {key} is {here[key]}, the run was fitted with {there.get(key)}; give the data of the run"
            )


def snapshots(folder: Path) -> list[tuple[int, dict[str, Tensor]]]:
    """(step, weights) that a fit to a target left behind, in order of the steps; they may be none."""
    files = sorted((folder / SNAPSHOTS).glob("step-*.safetensors"))
    found = [(path.stem.partition("-")[2], path) for path in files]
    return [(int(step), read_weights(path)) for step, path in found if step.isdigit()]


def read_about(folder: Path) -> dict[str, Any]:
    """run.json; its ``own_parts`` are part → import paths of the classes, none in a list of before there were any.

    Raises:
        RunError: it is missing or not what varflow wrote.
    """
    about = read_json(folder / RUN)
    own = about.get("own_parts") if isinstance(about, dict) else None
    if isinstance(own, list):
        own = {str(name): [] for name in own}
    known = ("prior", "likelihood", "posterior", "ensemble")
    if not isinstance(own, dict) or not all(name in known and _is_words(paths) for name, paths in own.items()):
        raise RunError(f"{folder / RUN}: not what varflow wrote; restore it or fit again")
    return {**about, "own_parts": own}


def _is_words(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def prepare(folder: Path, overwrite: bool) -> None:
    """A folder for a new run. Where it holds one, ``overwrite`` clears that; other folders keep what they hold.

    Raises:
        RunError: it holds a run already, or cannot be written.
    """
    holds_run = (folder / SPEC).exists()
    if holds_run and not overwrite:
        raise RunError(
            f"out: {folder} already holds a run; go on with --resume {folder}, "
            "replace it with --overwrite, or choose another folder"
        )
    make_folder(folder)
    if holds_run:
        for name in ("tensorboard", "evaluation", "figures", SNAPSHOTS, "prior"):
            shutil.rmtree(folder / name, ignore_errors=True)
        # A README.md of the user's own stays.
        card = folder / CARD
        if card.is_file() and written_by_varflow(card.read_text(encoding="utf-8", errors="replace")):
            card.unlink()
        # The spec last: a clearing that is cut off leaves a folder that can be cleared again.
        told = (RUN, DATA, PREPROCESSING, ENVIRONMENT, METRICS, TRACKERS)
        for name in (*told, WEIGHTS, STATE, *TRAINING_ROWS, "report.html", SPEC):
            (folder / name).unlink(missing_ok=True)


def started(folder: Path) -> bool:
    """Whether a run has saved anything to go on from; one that was cut off before that begins again."""
    return (folder / STATE).exists() or (folder / WEIGHTS).exists()


def forget(folder: Path) -> None:
    """Drop the records of a fit that was cut off before its first state."""
    (folder / METRICS).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def write_start(
    folder: Path,
    spec: RunSpec,
    dataset: Dataset | TargetBatches,
    about: dict[str, Any],
    environment: dict[str, Any],
) -> None:
    """The files that say what a run is; spec.json last, so that a folder with it is a run."""
    write_json(folder / DATA, describe_data(dataset))
    write_preprocessing(folder, dataset)
    write_json(folder / ENVIRONMENT, environment)
    write_json(folder / RUN, about)
    write_json(folder / SPEC, spec.to_dict())


def _first_line(error: Exception) -> str:
    # torch goes on with advice to load what could run code.
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0][:200]
