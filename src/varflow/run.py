"""A run is a folder: what was asked for, what happened, what was learned.

spec.json            the resolved settings
run.json             recipe, own parts, how the fit ended
data.json            data set, protocol, splits, checksums
environment.json     versions, machine, seed, commit
metrics.jsonl        one record a line: training terms and validations
tensorboard/         the same curves for TensorBoard
model.safetensors    the weights the run stands for
state.pt             what a resumed fit needs to go on bit for bit
evaluation/          estimates and per-example results
figures/, report.html
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varflow.building import PARTS, Form, build
from varflow.data.dataset import Dataset
from varflow.errors import RunError
from varflow.files import make_folder, read_json, write_atomically, write_json
from varflow.model import Model
from varflow.specs import RunSpec

SPEC, RUN, DATA, ENVIRONMENT = "spec.json", "run.json", "data.json", "environment.json"
METRICS, WEIGHTS, STATE = "metrics.jsonl", "model.safetensors", "state.pt"


class RunFolder:
    """Writes a run: the sink of the loop. Every file is replaced whole, or appended a line at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None
        self._weights: Any = None
        self._purge: int | None = None

    def watch(self, weights: Any) -> None:
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

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _curves(self, record: dict[str, Any]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            options = {} if self._purge is None else {"purge_step": self._purge}
            self._writer = SummaryWriter(
                str(self.folder / "tensorboard"), write_to_disk=True, **options
            )
        for name, value in record.items():
            if name not in ("step", "epoch", "split") and isinstance(value, float):
                self._writer.add_scalar(f"{name}/{record['split']}", value, record["step"])


class Memory:
    """A sink that keeps everything in memory, for fits without a folder."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def record(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def position(self) -> int:
        return len(self.records)

    def save(self, state: dict[str, Any]) -> None:
        self.state = state


class Run:
    """A fitted model with what belongs to it.

    Attributes:
        folder: where it lives, or None for a fit that was not written.
        spec: its settings.
        model: in evaluation mode.
        form: shape and support of the data.
        metrics: the records of the fit.
        outcome: how the fit ended, as plain values.
    """

    def __init__(
        self,
        spec: RunSpec,
        model: Model,
        form: Form,
        folder: Path | None = None,
        metrics: list[dict[str, Any]] | None = None,
        outcome: dict[str, Any] | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        self.spec, self.model, self.form, self.folder = spec, model, form, folder
        self.metrics, self.outcome = metrics or [], outcome or {}
        self._dataset = dataset

    def __repr__(self) -> str:
        where = self.folder or "in memory"
        return f"Run({where}: {self.spec.data.data}, flow {self.spec.posterior.flow}, {self.outcome.get('reason')})"

    @property
    def dataset(self) -> Dataset:
        """The data of the run, read again where it is not at hand, on the model's device."""
        if self._dataset is None:
            if self._given_data():
                raise RunError(
                    "data: this run was fitted to data given in Python, which the folder does not hold; "
                    "pass them again, e.g. load(folder, data=tensor)"
                )
            from varflow import data

            settings = self.spec.data
            loaded = data.load(
                settings.data,
                protocol=settings.protocol,
                data_dir=settings.data_dir,
                flip=settings.flip,
            )
            if tuple(loaded.event_shape) != self.form.event_shape:
                raise RunError(
                    f"data: events of shape {tuple(loaded.event_shape)}, the run was fitted to "
                    f"{self.form.event_shape}; point --data-dir to the data of the run"
                )
            home = next(self.model.parameters())
            self._dataset = loaded.to(home.device, home.dtype)
        return self._dataset

    def evaluate(self, split: str = "test", samples: int = 1000, **options: Any) -> Any:
        """Estimates on a split; see :func:`varflow.evaluation.evaluate`. Saved in the run folder."""
        from varflow import evaluation

        result = evaluation.evaluate(
            self.model, self.dataset, split=split, samples=samples, **options
        )
        if self.folder is not None:
            result.save(self.folder)
        return result

    def report(self) -> Path:
        """Draw every figure that applies and write report.html; returns its path.

        Raises:
            RunError: the run has no folder.
        """
        if self.folder is None:
            raise RunError("folder: this run is in memory; fit with out=... to have files")
        from varflow import figures
        from varflow.evaluation import Evaluation
        from varflow.report import write_report

        evaluated = (self.folder / "evaluation" / "test.json").exists()
        evaluation = Evaluation.load(self.folder, "test") if evaluated else None
        target = self.folder / "figures"
        figures.gallery(self.model, self.dataset, self.metrics, target, evaluation=evaluation)
        return write_report(self.folder)

    def _given_data(self) -> bool:
        return self.folder is not None and bool(read_json(self.folder / RUN).get("data_given"))


def save_weights(path: Path, weights: Mapping[str, Tensor], step: int) -> None:
    """Weights as safetensors, whole or not at all."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # One entry alone: the order of several is not fixed, and equal runs shall be equal files.
    blob = save(plain, metadata={"step": str(step)})
    write_atomically(path, lambda file: file.write(blob))


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
    if not isinstance(state, dict) or "step" not in state:
        raise RunError(f"{path}: not a varflow state; fit again")
    return state


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line cut off by a crash is left out."""
    path = folder / METRICS
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def read_form(folder: Path) -> Form:
    """Shape and support of the data of a run."""
    values = read_json(folder / DATA)
    try:
        shape = tuple(values["event_shape"])
        support = values["support"]
        if not shape or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"event_shape {shape}")
        if support not in ("binary", "unit", "real"):
            raise ValueError(f"support {support!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder / DATA}: not what varflow wrote ({error}); restore it or fit again"
        ) from error
    return Form(shape, support)


def load(
    folder: str | Path,
    parts: Mapping[str, nn.Module] | None = None,
    data: Any = None,
    device: str = "cpu",
) -> Run:
    """The run in a folder, its model ready for use.

    Nothing from the folder is executed and no name found in it is imported: part names are looked up
    in varflow's own tables.

    Args:
        folder: a run folder.
        parts: the parts of your own that the run was fitted with, by name.
        data: the data, where they were given in Python.
        device: where the model goes.

    Raises:
        RunError: no run there, a damaged or tampered file, another version, or a part that is missing.
    """
    path = Path(folder)
    if not (path / SPEC).exists():
        raise RunError(
            f"folder: {path} holds no run (no {SPEC}); give the folder that `varflow fit` wrote"
        )
    spec = RunSpec.from_dict(read_json(path / SPEC))
    form = read_form(path)
    about = read_json(path / RUN)
    own = about.get("own_parts", [])
    for name in own:
        if name not in PARTS or name not in (parts or {}):
            raise RunError(
                f"parts: the run was fitted with its own {name}; pass parts={{'{name}': ...}}"
            )
    model = build(spec, form, parts)
    weights = read_weights(path / WEIGHTS)
    if spec.training.precision == "float64":
        model.double()
    assign_weights(model, weights, path / WEIGHTS)
    model.to(device).eval()
    dataset = None
    if data is not None:
        from varflow.fitting import as_dataset

        home = next(model.parameters())
        dataset = as_dataset(data, spec).to(home.device, home.dtype)
    return Run(spec, model, form, path, read_metrics(path), about.get("outcome", {}), dataset)


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Put weights into a model, all of them and nothing else.

    Raises:
        RunError: names or shapes differ, or a weight is not finite.
    """
    expected = model.state_dict()
    missing, extra = (
        sorted(expected.keys() - weights.keys()),
        sorted(weights.keys() - expected.keys()),
    )
    if missing or extra:
        raise RunError(
            f"{origin}: does not belong to this spec (missing: {missing[:3] or 'none'}, "
            f"unexpected: {extra[:3] or 'none'}); the spec or the weights were changed"
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise RunError(
                f"{origin}: '{name}' has shape {tuple(tensor.shape)}, the spec needs "
                f"{tuple(expected[name].shape)}; the spec or the weights were changed"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise RunError(
                f"{origin}: '{name}' holds a NaN or an infinity; fit again or restore the file"
            )
    model.load_state_dict(dict(weights))


def prepare(folder: Path, overwrite: bool) -> None:
    """A folder for a new run.

    Raises:
        RunError: it holds a run already, or cannot be written.
    """
    if (folder / SPEC).exists() and not overwrite:
        raise RunError(
            f"out: {folder} already holds a run; go on with --resume {folder}, "
            "replace it with --overwrite, or choose another folder"
        )
    make_folder(folder)
    if overwrite:
        import shutil

        for name in (SPEC, RUN, DATA, ENVIRONMENT, METRICS, WEIGHTS, STATE, "report.html"):
            (folder / name).unlink(missing_ok=True)
        for name in ("tensorboard", "evaluation", "figures"):
            shutil.rmtree(folder / name, ignore_errors=True)


def write_start(
    folder: Path,
    spec: RunSpec,
    dataset: Dataset,
    about: dict[str, Any],
    environment: dict[str, Any],
) -> None:
    """The files that say what a run is; spec.json last, so that a folder with it is a run."""
    description = {
        **dataset.describe(),
        "event_shape": list(dataset.event_shape),
        "support": dataset.support,
        "levels": dataset.levels,
    }
    write_json(folder / DATA, description)
    write_json(folder / ENVIRONMENT, environment)
    write_json(folder / RUN, about)
    write_json(folder / SPEC, spec.to_dict())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
