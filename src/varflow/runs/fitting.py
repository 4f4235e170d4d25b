"""``fit``: the one verb, for a recipe, a spec, or a model of your own; and ``resume``."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from varflow import native
from varflow.core import ranks
from varflow.core.errors import NonFiniteError, RunError, SpecError
from varflow.core.files import read_json, read_metrics, write_json
from varflow.data.columns import Columns
from varflow.data.dataset import Dataset
from varflow.data.kinds import table_lines
from varflow.data.target_batches import TargetBatches
from varflow.ensemble import Ensemble
from varflow.model import Model
from varflow.report.card import write_card
from varflow.runs import code_prior, restarts, training_rows
from varflow.runs import own as own_parts
from varflow.runs.assemble import build, for_target, form_of, spec_data
from varflow.runs.environment import environment
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
    read_conditions,
    read_form,
    read_preprocessing,
    read_state,
    started,
    write_start,
)
from varflow.runs.hub import is_address
from varflow.runs.run import Run
from varflow.runs.trackers import choice as trackers
from varflow.settings import recipes
from varflow.settings.keywords import BudgetKeywords, Keywords, RecipeName
from varflow.settings.spec import RunSpec
from varflow.training.callbacks import Callback, Callbacks, Fitting
from varflow.training.engine import Engine
from varflow.training.loop import Loop, Outcome
from varflow.training.progress import Progress

#: What can grow when a run goes on.
BUDGETS = ("epochs", "steps", "prior_epochs", "prior_steps")


@ranks.together
def fit(
    what: RecipeName | str | RunSpec | Model | Ensemble,
    data: Any = None,
    *,
    out: str | Path | None = None,
    parts: Mapping[str, nn.Module] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    recipe: str | None = None,
    callbacks: Sequence[Callback] = (),
    track: str | Sequence[str] | None = None,
    **settings: Unpack[Keywords],
) -> Run:
    """Maximise the objective, and give back the run.

    Args:
        what: the name of a recipe, a :class:`~varflow.RunSpec`, a :class:`~varflow.Model` of your own, or an
            :class:`~varflow.Ensemble` of models of targets, which are trained together.
        data: not for a target; without it the spec's data set; else a name or a path, a tensor or array
            ``[N, *event]`` (see :func:`varflow.data.from_tensor`), or a data set.
        out: folder of the run; without it nothing is written. A process that torchrun started in place of one that
            died goes on with the run that it finds there (docs/processes.md).
        parts: parts of your own (prior, likelihood, posterior) in place of the spec's (docs/own_parts.md). Two rows
            go through them before the first update, and what does not fit is named with its shape.
        overwrite: replace the run that ``out`` holds.
        quiet: show no progress.
        recipe: name of the recipe that ``what`` came from, for the record.
        callbacks: look on, and may end the fit (:class:`varflow.training.Callback`).
        track: where curves, figures and settings go beside the folder: one or several of mlflow, wandb, trackio,
            tensorboard (:mod:`varflow.trackers`).
        **settings: any setting of the spec by its name, e.g. ``flow="planar"``, ``epochs=20``; none of a part that is
            given as an object.

    Returns:
        The run, its model in evaluation mode with the weights it stands for.

    Raises:
        SpecError: unknown or impossible settings, or parts that do not combine.
        DataError: the data are missing or not what was declared.
        RunError: the folder cannot be written or holds a run already, or a callback raised an exception.
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
    given: dict[str, Any] = {**settings}
    if isinstance(data, str | Path):
        given["data"] = str(data)
        data = None
    spec = spec.replace(**given) if given else spec
    own_parts.refuse_settings(settings, spec, own)
    spec.validate()
    if out is not None and restarts.left_behind(Path(out), spec):
        return resume(out, data, parts=own, quiet=quiet, callbacks=callbacks, track=track)
    told = Callbacks(callbacks, spec.training.seed, trackers.named(track, out))
    engine = Engine.start(spec.training)
    dataset: Dataset | TargetBatches
    model: Model | Ensemble
    if data is None and (spec.target.target != "none" or _nothing_observed(what)):
        model, dataset = for_target(spec, own)
    elif spec.target.target != "none":
        raise SpecError(
            f"data: given beside target={spec.target.target}, which has none; leave one of the two out"
        )
    else:
        dataset = spec_data(data, spec).to(engine.device, engine.dtype)
        model = build(spec, dataset, own)
    if own and isinstance(model, Model):
        own_parts.dry_run(model.to(device=engine.device, dtype=engine.dtype), dataset)
    paths = {name: own_parts.import_paths(part) for name, part in sorted(own.items())}
    about = {"recipe": recipe, "own_parts": paths, "data_given": data is not None}
    begun = _Fit(spec, model, dataset, engine, None if out is None else Path(out), about, quiet, told)
    begun.start(overwrite)
    return begun.finish()


@ranks.together
def resume(
    folder: str | Path,
    data: Any = None,
    *,
    parts: Mapping[str, nn.Module] | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    track: str | Sequence[str] | None = None,
    **budget: Unpack[BudgetKeywords],
) -> Run:
    """Go on with an interrupted fit, bit for bit as if it had not been interrupted.

    A run that was cut off before it saved anything begins again. A larger budget under a rate that falls over the
    budget (``decay`` cosine or linear) is another run than one with that budget from the start, and says so.

    Args:
        folder: the run.
        data: the data, where they were given in Python.
        parts: the parts of your own that the run was fitted with.
        quiet: show no progress.
        callbacks: look on, and may end the fit (:class:`varflow.training.Callback`).
        track: as in :func:`fit`; without it, where the run was tracked before. "none" tracks no more.
        **budget: ``epochs`` or ``steps``, or ``prior_epochs`` or ``prior_steps`` of the code prior: a larger
            budget than before.

    Raises:
        RunError: nothing to resume, a damaged state, a run that is finished, or a callback that raised an exception.
        SpecError: a setting that is no budget.
    """
    if is_address(folder):
        raise RunError(f"folder: {folder} lies on the hub, where no state is kept that a fit goes on from; fit again")
    path = Path(folder)
    with ranks.files_of_first(path, restarts.READ) as here:
        if not (here / SPEC).exists():
            raise RunError(
                f"folder: {path} holds no run (no {SPEC}); give the folder that `varflow fit` wrote"
            )
        before = RunSpec.from_dict(read_json(here / SPEC))
        spec = _with_budget(before, budget, path)
        replaces = restarts.left_behind(path, spec)
        if replaces and restarts.is_finished(path):
            return restarts.opened(path, spec, data, parts)
        about = read_about(here)
        own_parts.require(about["own_parts"], parts)
        tracking = trackers.named(trackers.before(path) if track is None else track, path)
        told = Callbacks(callbacks, spec.training.seed, tracking)
        state = read_state(here) if started(here) else None
        engine = Engine.start(spec.training, None if state is None else state.get("engine"))
        if about.get("data_given") and data is None:
            raise RunError(
                "data: this run was fitted to data given in Python; pass them again with data=..."
            )
        dataset: Dataset | TargetBatches
        model: Model | Ensemble
        form = read_form(here)
        if form.support == "none":
            model, dataset = for_target(spec, dict(parts or {}))
        else:
            kept, _ = read_preprocessing(here, form)
            dataset = spec_data(data, spec, kept, read_conditions(here, form)).to(engine.device, engine.dtype)
            model = build(spec, dataset, parts)
        check_data(dataset, here)
    begun = _Fit(spec, model, dataset, engine, path, about, quiet, told)
    begun.go_on(state, before)
    if replaces:
        begun.progress.say(f"note: a process of this fit was replaced; it goes on from step {begun.loop.step}")
    return begun.finish()


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
        named = {name: getattr(what, name) for name in own_parts.PARTS}
        spec = RunSpec()
        if code_prior.needed(what):
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


def _with_budget(before: RunSpec, budget: Mapping[str, Any], path: Path) -> RunSpec:
    """The settings of a run that goes on: its own, and a larger budget.

    Raises:
        SpecError: a setting that is no budget, or of a code prior that the run has not.
        RunError: the budget of a quantizer whose codes are in use.
    """
    for name in budget:
        if name not in BUDGETS:
            raise SpecError(
                f"{name}: a resumed run keeps its settings; only {', '.join(BUDGETS)} can grow"
            )
        if name in BUDGETS[:2] and code_prior.begun(path):
            raise RunError(
                f"{name}: the code prior of {path} is fitted to the codes of the quantizer, which cannot go on any "
                "more; give prior_epochs or prior_steps, or fit again"
            )
        if name in BUDGETS[2:] and not before.has("code_prior"):
            raise SpecError(f"{name}: this run has no code prior; give epochs or steps")
    if not budget:
        return before
    spec = before.replace(**budget)
    spec.validate()
    return spec


class _Fit:
    """A fit from its first update, or from where it stopped, to the run that comes of it.

    Args:
        spec: of the run.
        model: with its initial weights.
        dataset: on the engine's device.
        engine: device, dtype, threads.
        folder: of the run; None keeps everything in memory.
        about: what run.json says beside the outcome.
        quiet: show no progress.
        callbacks: look on.
    """

    def __init__(
        self,
        spec: RunSpec,
        model: Model | Ensemble,
        dataset: Dataset | TargetBatches,
        engine: Engine,
        folder: Path | None,
        about: dict[str, Any],
        quiet: bool,
        callbacks: Callbacks,
    ) -> None:
        self.spec, self.dataset, self.engine, self.folder = spec, dataset, engine, folder
        self.about, self.quiet, self.callbacks = about, quiet, callbacks
        self.model = model.to(device=engine.device, dtype=engine.dtype)
        #: The model whose prior learns codes after the loop, where there is one.
        self.coded = model if isinstance(model, Model) and code_prior.needed(model) else None
        learns = self.model if self.coded is None else code_prior.first(self.coded)
        self.writes = folder is not None and ranks.rank() == 0
        self.sink: Memory | Elsewhere | RunFolder = (
            Memory() if folder is None else RunFolder(folder) if self.writes else Elsewhere()
        )
        self.progress = Progress(0, quiet=quiet or ranks.rank() > 0)
        fitting = Fitting(spec, learns, dataset, folder)
        self.loop = Loop(learns, dataset, spec, engine, self.sink, self.progress, callbacks, fitting)
        self.progress.steps = self.loop.steps
        if isinstance(self.sink, RunFolder):
            self.sink.watch(self.loop.kept_weights)

    def start(self, overwrite: bool) -> None:
        """Make the folder. Only now: whatever is wrong with the settings has been said."""
        from varflow import __version__

        self.about = {"varflow": __version__, **self.about}
        if isinstance(self.dataset, Dataset) and isinstance(self.dataset.preprocessing, Columns):
            for line in table_lines(self.dataset.preprocessing.overview()):
                self.progress.say(line)
        for line in self.dataset.notes():
            self.progress.say(line)
        if self.folder is not None and self.writes:
            prepare(self.folder, overwrite)
            restarts.take(self.folder, self.about)
            write_start(
                self.folder, self.spec, self.dataset, self.about, environment(self.spec, self.engine)
            )

    def go_on(self, state: dict[str, Any] | None, before: RunSpec) -> None:
        """Take up ``state``, or begin again where a run was cut off before it saved one.

        Raises:
            RunError: the run is finished.
        """
        loop, folder = self.loop, self.folder
        over = bool(self.about.get("outcome", {}).get("finished"))
        if self.writes:
            restarts.take(folder or Path(), self.about)
        if state is None:
            if isinstance(self.sink, RunFolder):
                forget(self.sink.folder)
                write_json(self.sink.folder / SPEC, self.spec.to_dict())
            return
        loop.load_state(state)
        # One that was killed between its last update and its end is brought to that end.
        if loop.step >= loop.steps and self.coded is None and over:
            raise RunError(
                f"folder: {folder} is finished ({loop.step} of {loop.steps} steps); "
                "give a larger budget, e.g. epochs or steps, to go on"
            )
        if isinstance(self.sink, RunFolder):
            self.sink.rewind(state)
            if not code_prior.begun(self.sink.folder):
                now = {"step": loop.step, "finished": False, "reason": "going on", "signal": None}
                self._tell(self.about.get("outcome", {}) | now)
        if folder is not None and loop.step > 0:
            for note in _jumps(before, self.spec, folder):
                self.progress.say(note)
        if state["engine"].get("native") and not self.engine.native:
            self.progress.say(
                f"note: the run was begun with compiled code, and there is none here ({native.reason()}); "
                "it goes on in torch, equal up to rounding"
            )

    def finish(self) -> Run:
        """Train, then the prior over codes where there is one; and the run that holds it all."""
        try:
            run = self._finish()
            self.callbacks.finish(run)
        except BaseException as error:
            self.callbacks.fail(error)
            raise
        return run

    def _finish(self) -> Run:
        outcome = self._train()
        ended = dataclasses.asdict(outcome)
        model, later = self.loop.model, []
        if outcome.finished and outcome.signal is not None:
            # It came during the last step. Only what was to follow is left undone.
            ended["signal"] = None
            if self.coded is not None:
                name = signal.Signals(outcome.signal).name
                ended |= {
                    "signal": outcome.signal,
                    "finished": False,
                    "reason": f"{name} received at the end of the quantizer, step {outcome.step}",
                }
        elif self.coded is not None and self.loop.fitting.reason is not None:
            ended |= {"finished": False, "reason": f"{outcome.reason}; the code prior is not fitted"}
        elif self.coded is not None and outcome.finished:
            model = self.coded
            later = self._fit_code_prior(self.coded, ended)
        if self.folder is not None and self.writes:
            write_json(self.folder / RUN, {**self.about, "outcome": ended})
        ranks.meet()
        model.eval()
        dataset = self.dataset
        form = form_of(dataset)
        records = ranks.first(
            lambda: self.sink.records if isinstance(self.sink, Memory) else read_metrics(self.folder or Path())
        )
        run = Run(self.spec, model, form, self.folder, records, ended, dataset, later)
        self._keep_training_rows(run)
        if self.folder is not None and self.writes:
            write_card(self.folder)
        return run

    def _keep_training_rows(self, run: Run) -> None:
        """What scores are ranked among, and neighbours looked for, once the data are elsewhere."""
        if self.folder is None or not self.writes or run.infers_target:
            return
        try:
            training_rows.keep(run, self.folder)
        except NonFiniteError as error:
            self.progress.say(f"note: the training rows could not be scored: {error}")

    def _train(self) -> Outcome:
        if not self.engine.denormals_flushed:
            self.progress.say(
                "note: denormal numbers are not flushed in all CPU threads (torch had started them before); "
                "long fits will slow down. Call fit before other torch work, or torch.set_flush_denormal(True) first"
            )
        if self.engine.device == "cpu" and (note := native.absence()):
            self.progress.say(note)
        # Where the data were found may differ.
        seen = {k: v for k, v in describe_data(self.dataset).items() if k not in ("source", "folder")}
        ranks.meet({"settings": self.spec.replace(data_dir=None).to_dict(), "data": seen})
        ranks.copy_first(self.loop.model)
        self.callbacks.meet()
        try:
            with self.progress, ranks.lockstep():
                return self.loop.run()
        finally:
            if isinstance(self.sink, RunFolder):
                self.sink.close()

    def _fit_code_prior(self, model: Model, ended: dict[str, Any]) -> list[dict[str, Any]]:
        """Fit the prior to the codes of the finished quantizer; its outcome goes into ``ended``."""
        assert isinstance(self.dataset, Dataset)

        def waits() -> None:
            if self.writes:
                self._tell({**ended, "finished": False, "reason": "the code prior is not finished"})

        # One that is finished is left as it is, unless its budget has grown.
        if not self.about.get("outcome", {}).get("code_prior", {}).get("finished"):
            waits()
        ranks.meet()
        second, later = code_prior.fit(
            self.spec, model, self.dataset, self.engine, self.folder, self.quiet, waits, self.callbacks,
            bool(self.about.get("outcome", {}).get("code_prior", {}).get("finished")),
        )  # fmt: skip
        told = dataclasses.asdict(second)
        if second.finished:
            told["signal"] = None
        ended |= {name: told[name] for name in ("finished", "reason", "signal")}
        ended["code_prior"] = told
        return later

    def _tell(self, outcome: dict[str, Any]) -> None:
        """Settings and outcome as they are now, in the folder."""
        assert self.folder is not None
        write_json(self.folder / SPEC, self.spec.to_dict())
        write_json(self.folder / RUN, {**self.about, "outcome": outcome})


def _jumps(before: RunSpec, spec: RunSpec, folder: Path) -> list[str]:
    """What to say where a budget has changed that the learning rate falls over."""
    changed = [""] if before.training != spec.training else []
    if any(before.get(n) != spec.get(n) for n in BUDGETS[2:]) and started(folder / code_prior.FOLDER):
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
