"""A run: a fitted model with everything that belongs to it, and :func:`load` to open one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from varflow.building import PARTS, Form, build
from varflow.data.dataset import Dataset
from varflow.errors import RunError
from varflow.files import read_json
from varflow.model import Model
from varflow.runfolder import (
    SPEC,
    WEIGHTS,
    check_data,
    read_about,
    read_form,
    read_metrics,
    read_weights,
)
from varflow.specs import RunSpec


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
        return f"Run({self.folder or 'in memory'}, {self.outcome.get('step', 0)} steps)"

    @property
    def dataset(self) -> Dataset:
        """The data of the run, read again where it is not at hand, on the model's device."""
        if self._dataset is None:
            if self._given_data():
                raise RunError(
                    "data: this run was fitted to data given in Python, which the folder does not hold; "
                    "pass them again, e.g. load(folder, data=tensor)"
                )
            from varflow.fitting import as_dataset

            loaded = as_dataset(None, self.spec)
            if self.folder is not None:
                check_data(loaded, self.folder)
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
        return self.folder is not None and bool(read_about(self.folder).get("data_given"))


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
    about = read_about(path)
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
