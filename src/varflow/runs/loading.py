"""``load``: a run folder, opened. Nothing in it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varflow.core.errors import DataError, RunError
from varflow.core.files import read_json, read_metrics
from varflow.core.form import Form
from varflow.data.dataset import Dataset
from varflow.data.target_batches import TargetBatches
from varflow.ensemble import Ensemble
from varflow.model import Model
from varflow.runs import code_prior
from varflow.runs.assemble import build, build_ensemble, spec_data, target_batches
from varflow.runs.folder import (
    DATA,
    SPEC,
    WEIGHTS,
    check_data,
    read_about,
    read_conditions,
    read_form,
    read_preprocessing,
    read_weights,
)
from varflow.runs.hub import located
from varflow.runs.own import require
from varflow.runs.run import Run
from varflow.settings.spec import RunSpec

#: A setting up to this number is never a reason to look no further.
_SMALL = 10_000


def load(
    folder: str | Path,
    parts: Mapping[str, nn.Module] | None = None,
    data: Any = None,
    device: str = "cpu",
) -> Run:
    """The run in a folder, its model ready for use.

    Nothing from the folder is executed and no name found in it is imported: part names are looked up
    in varflow's own tables. The import paths of parts of your own stand in run.json to be read, no more.

    Args:
        folder: a run folder; or ``hf://owner/name``, ``hf://owner/name/folder`` or either with ``@revision`` behind
            it, on the Hugging Face hub (``varflow[hub]``).
        parts: the parts of your own that the run was fitted with, by name: objects of the same classes, whose weights
            are replaced.
        data: the data, where they were given in Python.
        device: where the model goes.

    Raises:
        RunError: no run there, a damaged or tampered file, another version, or a part that is missing; of the hub
            also no access, or neither a network nor a copy in its cache.
    """
    path, origin = located(folder)
    if not (path / SPEC).exists():
        raise RunError(
            f"folder: {path} holds no run (no {SPEC}); give the folder that `varflow fit` wrote"
        )
    spec = RunSpec.from_dict(read_json(path / SPEC))
    form = read_form(path)
    about = read_about(path)
    kept, picture = read_preprocessing(path, form)
    conditions = read_conditions(path, form)
    own = about["own_parts"]
    require(own, parts)
    weights = read_weights(path / WEIGHTS)
    _check_sizes(spec, form, path, weights, parts)
    model: Model | Ensemble
    if "ensemble" in own:
        model = (parts or {})["ensemble"]  # type: ignore[assignment]
    elif spec.training.fits > 1:
        model = build_ensemble(spec, form)
    else:
        model = build(spec, form, parts)
    if code_prior.needed(model):
        assert isinstance(model, Model)
        model, weights = code_prior.joined(model, weights, path)
    if spec.training.precision == "float64":
        model.double()
    assign_weights(model, weights, path / WEIGHTS)
    model.to(device).eval()
    dataset: Dataset | TargetBatches | None = None
    if data is not None:
        home = next(model.parameters())
        given = spec_data(data, spec, kept, conditions)
        if tuple(given.event_shape) != form.event_shape:
            raise DataError(
                f"data: one example has shape {list(given.event_shape)}, the run was fitted to "
                f"{list(form.event_shape)}; give data of the same columns or picture size"
            )
        dataset = given.to(home.device, home.dtype)
    elif form.support == "none":
        dataset = target_batches(spec, model.member(0))
    later = read_metrics(path / code_prior.FOLDER)
    outcome = about.get("outcome", {})
    run = Run(spec, model, form, path, read_metrics(path), outcome, dataset, later, kept, picture)
    run.conditions = conditions
    run.origin = origin
    run.other_data = data is not None and not _same_data(dataset, path)
    return run


def _same_data(dataset: Any, folder: Path) -> bool:
    """Whether these are the data that the run was fitted to."""
    try:
        check_data(dataset, folder)
    except RunError:
        return False
    return True


def _check_sizes(
    spec: RunSpec,
    form: Form,
    path: Path,
    weights: Mapping[str, Tensor],
    parts: Mapping[str, nn.Module] | None,
) -> None:
    """Refuse sizes that are not those of the weights, before a model of such sizes takes up memory.

    Raises:
        RunError: one sentence with the setting or the weight.
    """
    stored = dict(weights)
    if (path / code_prior.FOLDER / WEIGHTS).exists():
        stored |= read_weights(path / code_prior.FOLDER / WEIGHTS)
    total = sum(tensor.numel() for tensor in stored.values())
    for name, value in {**spec.sizes(), "fits": spec.training.fits}.items():
        # Small numbers build quickly, and the comparison of the weights themselves names what differs.
        if value > max(total, _SMALL):
            raise RunError(
                f"{path / SPEC}: {name} is {value}, and the weights of the run are {total} numbers in all; the spec "
                "or the weights were changed"
            )
    told, held = spec.target.settings and spec.target.loaded.facts(), read_json(path / DATA)
    for name, value in (told or {}).items():
        if held.get(name) != value:
            raise RunError(
                f"{path / SPEC}: {name} is {value!r}, and the run was fitted with {held.get(name)!r} ({DATA}); the "
                "spec or the data were changed"
            )
    if form.support == "none":
        return
    try:
        # Shapes without memory; a part that cannot be built so is compared later.
        with torch.device("meta"):
            expected = build(spec, form, parts).state_dict()
    except (NotImplementedError, RuntimeError):
        return
    for name in expected.keys() & stored.keys():
        if expected[name].shape != stored[name].shape:
            raise _other_shape(path / WEIGHTS, name, stored[name], expected[name])


def _other_shape(origin: Path, name: str, found: Tensor, needed: Tensor) -> RunError:
    return RunError(
        f"{origin}: '{name}' has shape {tuple(found.shape)}, the spec needs {tuple(needed.shape)}; the spec or the "
        "weights were changed"
    )


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
            raise _other_shape(origin, name, tensor, expected[name])
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise RunError(
                f"{origin}: '{name}' holds a NaN or an infinity; fit again or restore the file"
            )
    model.load_state_dict(dict(weights))
