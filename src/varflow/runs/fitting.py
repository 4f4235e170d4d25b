"""``fit``: the one verb, for a recipe, a spec, or a model of your own; and ``resume``."""

from __future__ import annotations

import dataclasses
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from varflow import native
from varflow.core import ranks
from varflow.core.errors import RunError, SpecError
from varflow.core.files import read_json, read_metrics, write_json
from varflow.core.form import Form
from varflow.data.dataset import Dataset
from varflow.data.protocols import Protocol
from varflow.data.unobserved import Unobserved
from varflow.ensemble import Ensemble
from varflow.model import Model
from varflow.runs import code_prior as second_stage
from varflow.runs.assemble import PARTS, build, build_ensemble, unobserved
from varflow.runs.folder import (
    RUN,
    SPEC,
    Elsewhere,
    Memory,
    RunFolder,
    check_data,
    describe_data,
    forget,
    prepare,
    read_about,
    read_form,
    read_preprocessing,
    read_state,
    started,
    write_start,
)
from varflow.runs.run import Run
from varflow.settings import recipes
from varflow.settings.spec import RunSpec
from varflow.training.engine import Engine
from varflow.training.loop import Loop
from varflow.training.progress import Progress

#: What can grow when a run goes on.
BUDGETS = ("epochs", "steps", "prior_epochs", "prior_steps")


@ranks.together
def fit(
    what: str | RunSpec | Model | Ensemble,
    data: Any = None,
    *,
    out: str | Path | None = None,
    parts: Mapping[str, nn.Module] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    recipe: str | None = None,
    **settings: Any,
) -> Run:
    """Maximise the objective, and give back the run.

    Args:
        what: the name of a recipe, a :class:`~varflow.RunSpec`, a :class:`~varflow.Model` of your own, or an
            :class:`~varflow.Ensemble` of models of targets, which are trained together.
        data: not for a target; without it the spec's data set; else a name or a path, a tensor or array
            ``[N, *event]`` (see :func:`varflow.data.from_tensor`), or a data set.
        out: folder of the run; without it nothing is written.
        parts: parts of your own (prior, likelihood, posterior) in place of the spec's.
        overwrite: replace the run that ``out`` holds.
        quiet: show no progress.
        recipe: name of the recipe that ``what`` came from, for the record.
        **settings: any setting of the spec by its name, e.g. ``flow="planar"``, ``epochs=20``.

    Returns:
        The run, its model in evaluation mode with the weights it stands for.

    Raises:
        SpecError: unknown or impossible settings, or parts that do not combine.
        DataError: the data are missing or not what was declared.
        RunError: the folder cannot be written or holds a run already.
        NonFiniteError: training met a NaN or an infinity.

    Example:
        >>> import torch, varflow as vf
        >>> x = (torch.rand(64, 6) < 0.5).float()
        >>> run = vf.fit("digits", x, latent=2, hidden=8, epochs=1, quiet=True)
        >>> run.outcome["finished"]
        True
    """
    spec, own = _what(what, parts)
    recipe = what if isinstance(what, str) else recipe
    if isinstance(data, str | Path):
        settings["data"] = str(data)
        data = None
    spec = spec.replace(**settings) if settings else spec
    spec.validate()
    engine = Engine.start(spec.training)
    model: Model | Ensemble
    dataset: Dataset | Unobserved
    if data is None and (spec.target.target != "none" or _nothing_observed(what)):
        model, dataset = for_target(spec, own)
    else:
        if spec.target.target != "none":
            raise SpecError(
                f"data: given beside target={spec.target.target}, which has none; leave one of the two out"
            )
        dataset = as_dataset(data, spec).to(engine.device, engine.dtype)
        model = build(spec, dataset, own)
    folder = None if out is None else Path(out)
    about = {"recipe": recipe, "own_parts": sorted(own), "data_given": data is not None}
    return _train(spec, model, dataset, engine, folder, about, quiet, None, overwrite)


@ranks.together
def resume(
    folder: str | Path,
    data: Any = None,
    *,
    parts: Mapping[str, nn.Module] | None = None,
    quiet: bool = False,
    **budget: Any,
) -> Run:
    """Go on with an interrupted fit, bit for bit as if it had not been interrupted.

    A run that was cut off before it saved anything begins again. A larger budget under a rate that falls over the
    budget (``decay`` cosine or linear) is another run than one with that budget from the start, and says so.

    Args:
        folder: the run.
        data: the data, where they were given in Python.
        parts: the parts of your own that the run was fitted with.
        quiet: show no progress.
        **budget: ``epochs`` or ``steps``, or ``prior_epochs`` or ``prior_steps`` of the second stage: a larger
            budget than before.

    Raises:
        RunError: nothing to resume, a damaged state, or a run that is finished.
        SpecError: a setting that is no budget.
    """
    path = Path(folder)
    if not (path / SPEC).exists():
        raise RunError(
            f"folder: {path} holds no run (no {SPEC}); give the folder that `varflow fit` wrote"
        )
    spec = RunSpec.from_dict(read_json(path / SPEC))
    for name in budget:
        if name not in BUDGETS:
            raise SpecError(
                f"{name}: a resumed run keeps its settings; only {', '.join(BUDGETS)} can grow"
            )
        if name in ("epochs", "steps") and second_stage.begun(path):
            raise RunError(
                f"{name}: the second stage of {path} is fitted to the codes of the first, which cannot grow any "
                "more; give prior_epochs or prior_steps, or fit again"
            )
        if name in BUDGETS[2:] and not spec.has("second_stage"):
            raise SpecError(f"{name}: this run has no second stage; give epochs or steps")
    before = spec
    if budget:
        spec = spec.replace(**budget)
        spec.validate()
    about = read_about(path)
    for name in about.get("own_parts", []):
        if name not in (parts or {}):
            raise RunError(
                f"parts: the run was fitted with its own {name}; pass parts={{'{name}': ...}}"
            )
    state = read_state(path) if started(path) else None
    engine = Engine.start(spec.training, None if state is None else state.get("engine"))
    if about.get("data_given") and data is None:
        raise RunError(
            "data: this run was fitted to data given in Python; pass them again with data=..."
        )
    dataset: Dataset | Unobserved
    model: Model | Ensemble
    if read_form(path).support == "none":
        model, dataset = for_target(spec, dict(parts or {}))
    else:
        kept, _ = read_preprocessing(path)
        dataset = as_dataset(data, spec, kept).to(engine.device, engine.dtype)
        model = build(spec, dataset, parts)
    check_data(dataset, path)
    return _train(spec, model, dataset, engine, path, about, quiet, state, before=before)


def as_dataset(data: Any, spec: RunSpec, kept: Protocol | None = None) -> Dataset:
    """Whatever ``fit`` accepts as data, as a data set.

    Under the preprocessing that a run has ``kept``, where there is one: it is never learned again.
    """
    from varflow import data as room

    settings = spec.data
    protocol = settings.protocol
    if protocol == "auto":
        protocol = spec.likelihood.protocol
    continuous = spec.likelihood.continuous
    if kept is not None and kept.learned():
        protocol = "none"
    if data is None:
        found = room.load(
            settings.data,
            protocol=protocol,
            continuous=continuous,
            data_dir=settings.data_dir,
            flip=settings.flip,
            levels=settings.levels,
            resize=settings.resize,
            verify=settings.verify,
            data_seed=settings.data_seed,
        )
    elif isinstance(data, Dataset):
        found = data
    else:
        found = room.from_tensor(
            data,
            protocol=protocol,
            continuous=continuous,
            levels=settings.levels,
            flip=settings.flip,
        )
    if kept is not None and kept.learned():
        found = found.under(kept)
    return found.first(train=settings.train_limit, validation=settings.validation_limit)


def environment(spec: RunSpec, engine: Engine) -> dict[str, Any]:
    """Versions, machine, seed and commit."""
    import varflow

    return {
        "varflow": varflow.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(terse=True),
        "processor": _processor(engine),
        "engine": engine.to_dict(),
        "seed": spec.training.seed,
        "processes": ranks.world(),
        "commit": _commit(),
    }


def _what(
    what: str | RunSpec | Model | Ensemble, parts: Mapping[str, nn.Module] | None
) -> tuple[RunSpec, dict[str, nn.Module]]:
    own = dict(parts or {})
    if isinstance(what, str):
        return recipes.find(what).spec, own
    if isinstance(what, RunSpec):
        return what, own
    if isinstance(what, Ensemble):
        if own:
            raise SpecError("parts: given beside an ensemble, whose models have theirs")
        return RunSpec(), {"ensemble": what}
    if isinstance(what, Model):
        if own:
            raise SpecError("parts: given beside a model, which has its own; give one of the two")
        named = {name: getattr(what, name) for name in PARTS}
        spec = RunSpec()
        if second_stage.needed(what):
            spec = spec.replace(posterior="quantizer", network="grid", prior="pixelcnn")
        return spec, {name: part for name, part in named.items() if part is not None}
    raise SpecError(
        f"what: was {type(what).__name__}; use the name of a recipe, a RunSpec or a Model"
    )


def _nothing_observed(what: Any) -> bool:
    """Whether a model given in Python has no data to be fitted to."""
    if isinstance(what, Ensemble):
        return True
    return isinstance(what, Model) and (what.likelihood is None or hasattr(what.likelihood, "batches"))


def for_target(
    spec: RunSpec, own: dict[str, nn.Module]
) -> tuple[Model | Ensemble, Unobserved]:
    """The model of a target, or the stacked fits, and what stands for their data."""
    ensemble = own.get("ensemble")
    if isinstance(ensemble, Ensemble):
        return ensemble, unobserved(spec, ensemble.member(0))
    nowhere = Form((1,), "none")
    if spec.training.fits == 1:
        model = build(spec, nowhere, own)
        return model, unobserved(spec, model)
    if own:
        raise SpecError(
            f"fits: was {spec.training.fits}, with parts of your own ({', '.join(own)}); build the models and "
            "pass varflow.Ensemble([...]) instead"
        )
    ensemble = build_ensemble(spec, nowhere)
    return ensemble, unobserved(spec, ensemble.member(0))


def _train(
    spec: RunSpec,
    model: Model | Ensemble,
    dataset: Dataset | Unobserved,
    engine: Engine,
    folder: Path | None,
    about: dict[str, Any],
    quiet: bool,
    state: dict[str, Any] | None,
    overwrite: bool = False,
    before: RunSpec | None = None,
) -> Run:
    """Train from the start, or from ``state``; ``before`` is the spec of the run where one goes on."""
    model.to(device=engine.device, dtype=engine.dtype)
    whole, followed = model, second_stage.needed(model)
    if followed:
        assert isinstance(model, Model)
        model = second_stage.first(model)
    writes = folder is not None and ranks.rank() == 0
    sink = Memory() if folder is None else RunFolder(folder) if writes else Elsewhere()
    progress = Progress(0, quiet=quiet or ranks.rank() > 0)
    loop = Loop(model, dataset, spec, engine, sink, progress)
    progress.steps = loop.steps
    if folder is not None and writes and before is None:
        # Only now: whatever is wrong with the settings has been said, and no half-made run is left.
        prepare(folder, overwrite)
        write_start(folder, spec, dataset, about, environment(spec, engine))
    if isinstance(sink, RunFolder):
        sink.watch(loop.kept_weights)
    if state is not None:
        loop.load_state(state)
        if loop.step >= loop.steps and not followed:
            raise RunError(
                f"folder: {folder} is finished ({loop.step} of {loop.steps} steps); "
                "give a larger budget, e.g. epochs or steps, to go on"
            )
        if isinstance(sink, RunFolder):
            sink.rewind(state)
            if not second_stage.begun(sink.folder):
                now = {"step": loop.step, "finished": False, "reason": "going on", "signal": None}
                write_json(sink.folder / SPEC, spec.to_dict())
                write_json(sink.folder / RUN, {**about, "outcome": about.get("outcome", {}) | now})
    elif before is not None and isinstance(sink, RunFolder):
        # Cut off before its first state: again from the start.
        forget(sink.folder)
        write_json(sink.folder / SPEC, spec.to_dict())
    if before is not None and folder is not None and loop.step > 0:
        for note in _jumps(before, spec, folder):
            progress.say(note)
    if not engine.denormals_flushed:
        progress.say(
            "note: denormal numbers are not flushed in all CPU threads (torch had started them before); "
            "long fits will slow down. Call fit before other torch work, or torch.set_flush_denormal(True) first"
        )
    if state is not None and state["engine"].get("native") and not engine.native:
        progress.say(
            f"note: the run was begun with compiled code, and there is none here ({native.reason()}); "
            "it goes on in torch, equal up to rounding"
        )
    # Where the data were found may differ.
    seen = {k: v for k, v in describe_data(dataset).items() if k not in ("source", "folder")}
    ranks.meet({"settings": spec.replace(data_dir=None).to_dict(), "data": seen})
    ranks.copy_first(model)
    try:
        with progress, ranks.lockstep():
            outcome = loop.run()
    finally:
        if isinstance(sink, RunFolder):
            sink.close()
    ended = dataclasses.asdict(outcome)
    later: list[dict[str, Any]] = []
    if outcome.finished and outcome.signal is not None:
        # It came during the last step. Only what was to follow is left undone.
        name = signal.Signals(outcome.signal).name
        if followed:
            ended |= {
                "finished": False,
                "reason": f"{name} received at the end of the first stage, step {outcome.step}",
            }
        else:
            ended["signal"] = None
    elif followed and outcome.finished:
        assert isinstance(whole, Model)
        assert isinstance(dataset, Dataset)

        def waits() -> None:
            if folder is not None and writes:
                told = {"finished": False, "reason": "the second stage is not finished"}
                write_json(folder / SPEC, spec.to_dict())
                write_json(folder / RUN, {**about, "outcome": {**ended, **told}})

        # A second stage that is finished is left as it is, unless its budget has grown.
        if not about.get("outcome", {}).get("second_stage", {}).get("finished"):
            waits()
        ranks.meet()
        second, later = second_stage.fit(spec, whole, dataset, engine, folder, quiet, waits)
        model = whole
        told = dataclasses.asdict(second)
        if second.finished:
            told["signal"] = None
        ended |= {name: told[name] for name in ("finished", "reason", "signal")}
        ended["second_stage"] = told
    if folder is not None and writes:
        write_json(folder / RUN, {**about, "outcome": ended})
    ranks.meet()
    model.eval()
    form = Form(tuple(dataset.event_shape), dataset.support, dataset.levels)
    records = sink.records if isinstance(sink, Memory) else read_metrics(Path(folder or ""))
    return Run(spec, model, form, folder, records, ended, dataset, later)


def _jumps(before: RunSpec, spec: RunSpec, folder: Path) -> list[str]:
    """What to say where a budget has changed that the learning rate falls over."""
    changed = [""] if before.training != spec.training else []
    if any(before.get(n) != spec.get(n) for n in BUDGETS[2:]) and started(folder / second_stage.FOLDER):
        changed.append("prior_")
    out = []
    for stage in changed:
        decay = spec.get(f"{stage}decay")
        if decay in ("cosine", "linear"):
            out.append(
                f"note: {stage}decay={decay} falls to zero over the budget, which is another one now: the learning "
                "rate jumps here, and the run is not what it would have been with this budget from the start"
            )
    return out


def _processor(engine: Engine) -> str:
    if engine.device.startswith("cuda"):
        return torch.cuda.get_device_name(engine.device)
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit of the working folder, where it is a git checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
