"""The trials of a sweep, one after another in a process, beside other processes that share the storage.

A trial is a fit in a folder of its own. While a process works at one it holds the trial's lock, which the system lets
go when the process ends, however it ends. So a trial that is running by the storage and held by nobody was left: the
next process that looks for work takes it up, from its last checkpoint and bit for bit as if it had not been left.
"""

from __future__ import annotations

import math
import os
import platform
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from varflow.core import random
from varflow.core.errors import (
    DataError,
    NonFiniteError,
    RankError,
    RunError,
    ShapeError,
    SpecError,
)
from varflow.core.files import Lock, make_folder, read_json, read_metrics
from varflow.runs import fitting
from varflow.runs.folder import RUN, SPEC, started
from varflow.runs.loading import load
from varflow.runs.run import Run
from varflow.settings import space as spaces
from varflow.settings.spec import RunSpec
from varflow.training.callbacks import Callback, Fitting
from varflow.training.progress import Record

#: Trials that have ended before any is pruned, and validations of a trial before it can be.
_BEFORE_PRUNING, _VALIDATIONS = 5, 1
#: How often a trial is begun at one place, where its process dies each time.
ATTEMPTS = 3
#: Seconds that SQLite waits for another process to finish writing.
_PATIENCE = 120

#: What every trial may set differently without being of another sweep.
_OWN = ("data_dir", "threads")


@dataclass(frozen=True)
class Plan:
    """What a sweep does; plain values.

    Attributes:
        recipe: that the settings came from, or None.
        spec: what all trials share, as :meth:`varflow.RunSpec.to_dict` says it.
        space: what varies, as in its file.
        folder: of the sweep; the runs of its trials are in ``trials/``.
        storage: a SQLite file, a journal file, or the URL of a database.
        study: the name of the sweep in the storage.
        trials: how many in all, those of other processes and of earlier sessions among them; None for a whole grid.
        sampler: tpe, random or grid.
        prune: whether bad trials are ended early.
        seed: of the sampler.
        data_given: whether the data were given in Python.
    """

    recipe: str | None
    spec: dict[str, Any]
    space: dict[str, Any]
    folder: str
    storage: str
    study: str
    trials: int | None
    sampler: str
    prune: bool
    seed: int
    data_given: bool = False

    @property
    def name(self) -> str:
        """What is swept."""
        return self.recipe or "settings of one's own"

    @property
    def base(self) -> RunSpec:
        """What all trials share."""
        return RunSpec.from_dict(self.spec)

    def identity(self) -> dict[str, Any]:
        """What makes it the same sweep on another day and another machine."""
        shared = _anywhere(self.base).to_dict()
        return {"spec": shared, "space": self.space, "sampler": self.sampler, "seed": self.seed}

    def room(self, number: int) -> Path:
        """The run folder of a trial."""
        return Path(self.folder) / "trials" / f"{number:04d}"

    def lock(self, number: int) -> Path:
        """The lock of a trial."""
        return Path(self.folder) / "locks" / f"{number:04d}"

    def command(self) -> list[str]:
        """What makes it again, or goes on with it, on the command line."""
        return ["varflow", "sweep", "--resume", self.folder]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Stopped(Exception):
    """A signal ended a trial; what it had done is saved, and the trial is left to be taken up.

    Attributes:
        signal: which.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name} received")
        self.signal = number


# -- the storage -------------------------------------------------------------------------------------


def check_installed() -> None:
    """Refuse where Optuna is missing, without importing it."""
    if find_spec("optuna") is None:
        raise SpecError("sweep: Optuna is not installed; run: pip install 'varflow[sweep]'")


@contextmanager
def quiet_engine() -> Iterator[None]:
    """Optuna says nothing inside: neither what it notes of each trial nor which of its options may change."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)


def open_study(plan: Plan) -> Any:
    """The study of a plan, made where the storage has none yet.

    Raises:
        SpecError: the storage is no file that Optuna writes, or holds another sweep under that name.
        RunError: the storage cannot be opened.
    """
    import optuna

    make_folder(Path(plan.folder))
    identity = plan.identity()
    with Lock.take(Path(plan.folder) / "sweep.lock") or _free():
        try:
            study = optuna.create_study(
                storage=_storage(plan.storage),
                study_name=plan.study,
                direction="maximize",
                load_if_exists=True,
                pruner=_pruner(plan),
            )
            held = study.user_attrs.get("sweep")
            if held is None:
                if study.get_trials(deepcopy=False):
                    raise SpecError(
                        f"storage: {plan.storage} holds a study '{plan.study}' that is no sweep of varflow; give "
                        "another storage or study"
                    )
                study.set_user_attr("sweep", identity)
                if plan.sampler == "grid":
                    space = spaces.read(plan.space, plan.base)
                    for settings in space.grid(plan.base):
                        study.enqueue_trial(settings)
                return study
        except (OSError, optuna.exceptions.StorageInternalError) as error:
            raise RunError(f"storage: {plan.storage} cannot be opened ({error}); give another file") from error
        except Exception as error:
            if type(error).__module__.startswith(("sqlalchemy", "sqlite3")):
                words = str(error).splitlines()[0]
                raise RunError(f"storage: {plan.storage} cannot be opened ({words}); give another file") from error
            raise
    for key, value in identity.items():
        if held.get(key) != value:
            raise SpecError(
                f"storage: {plan.storage} holds a sweep '{plan.study}' of another {_WORDS[key]}; go on with the same "
                "settings, or give another storage or study"
            )
    return study


_WORDS = {"spec": "recipe or other settings", "space": "space", "sampler": "sampler", "seed": "seed of the sampler"}


@contextmanager
def _free() -> Iterator[None]:
    yield


def _storage(where: str) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in where:
        return RDBStorage(where)
    path = Path(where)
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        make_folder(path.parent)
        return RDBStorage(f"sqlite:///{path.resolve()}", engine_kwargs={"connect_args": {"timeout": _PATIENCE}})
    if path.suffix in (".journal", ".jsonl", ".log"):
        make_folder(path.parent)
        return JournalStorage(JournalFileBackend(str(path.resolve())))
    raise SpecError(
        f"storage: was '{where}'; use a SQLite file (.db), a journal file (.journal), which suits network folders, "
        "or the URL of a database"
    )


def _pruner(plan: Plan) -> Any:
    from optuna.pruners import MedianPruner, NopPruner

    if not plan.prune:
        return NopPruner()
    return MedianPruner(n_startup_trials=_BEFORE_PRUNING, n_warmup_steps=_VALIDATIONS)


def _sampler(plan: Plan, number: int) -> Any:
    """A sampler of its own for each trial, so that a sweep that was cut off goes on as it would have gone."""
    from optuna.samplers import RandomSampler, TPESampler

    seed = random.derive(plan.seed, "trial", number) % 2**32
    # Trials that run beside this one count as bad ones, so that not all try the same.
    return TPESampler(seed=seed, constant_liar=True) if plan.sampler == "tpe" else RandomSampler(seed=seed)


# -- a process of the sweep --------------------------------------------------------------------------


def work(
    plan: Plan,
    data: Any = None,
    threads: int | None = None,
    ended: Callable[[], object] = lambda: None,
    parent: int | None = None,
) -> None:
    """Take trials, new ones and those that were left, until there are no more to take.

    Args:
        plan: of the sweep.
        data: where they were given in Python.
        threads: of each fit, where the settings say nothing.
        ended: called after each trial.
        parent: the process without which this one is not to go on.

    Raises:
        Stopped: a signal ended a trial.
        DataError, RunError: the data or the disk fail every trial alike.
    """
    study, space = open_study(plan), spaces.read(plan.space, plan.base)
    while (claimed := _claim(plan, study)) is not None:
        trial, lock = claimed
        with lock:
            _run(plan, study, space, trial, data, threads, parent)
        ended()


def _claim(plan: Plan, study: Any) -> tuple[Any, Lock] | None:
    """A trial and its lock: one that was left, or a new one; None where nothing is to be done."""
    from optuna.trial import Trial, TrialState

    make_folder(Path(plan.folder) / "locks")
    with Lock.take(Path(plan.folder) / "sweep.lock") or _free():
        known = study.get_trials(deepcopy=False)
        for found in known:
            # Those that a process of another folder works at have no lock here.
            if found.state != TrialState.RUNNING or not plan.lock(found.number).exists():
                continue
            lock = Lock.take(plan.lock(found.number), wait=False)
            if lock is None:
                continue
            if study.get_trials(deepcopy=False)[found.number].state == TrialState.RUNNING:
                study.sampler = _sampler(plan, found.number)
                return Trial(study, found._trial_id), lock
            lock.release()
        begun = [found for found in known if found.state != TrialState.WAITING]
        if plan.trials is not None and len(begun) >= plan.trials:
            return None
        if plan.sampler == "grid" and len(begun) == len(known):
            return None
        study.sampler = _sampler(plan, len(begun))
        trial = study.ask()
        lock = Lock.take(plan.lock(trial.number))
        assert lock is not None
        return trial, lock


class _Reports(Callback):
    """Tells the storage of every validation, and ends a trial that is worse than the median of the others."""

    def __init__(self, trial: Any, parent: int | None) -> None:
        self.trial, self.parent = trial, parent
        self._told = set(_frozen(trial).intermediate_values)

    def recorded(self, record: Record, fitting: Fitting) -> None:
        if self.parent is not None and os.getppid() != self.parent:
            # Whoever asked for the sweep has gone: end as if told to, with everything saved.
            os.kill(os.getpid(), signal.SIGTERM)

    def validated(self, record: Record, fitting: Fitting) -> None:
        if fitting.stage != "model" or fitting.bound is None:
            return
        # Trials with other batches have other steps; the number of the validation they share.
        number = math.ceil(fitting.step / fitting.validate_every)
        if number not in self._told:
            self._told.add(number)
            self.trial.report(fitting.bound, number)
        # In a warm-up the bound that is scored is not the one that is followed.
        due = fitting.settled <= fitting.step < fitting.steps
        if due and self.trial.should_prune():
            reason = f"pruned at step {fitting.step}, below the median of the others there"
            self.trial.set_user_attr("pruned", reason)
            fitting.stop(reason)


def _run(
    plan: Plan, study: Any, space: spaces.Space, trial: Any, data: Any, threads: int | None, parent: int | None
) -> None:
    """Fit a trial and tell the storage what came of it.

    Raises:
        Stopped, DataError, RunError: as :func:`work`.
    """
    from optuna.trial import TrialState

    if not _attempt(plan, trial):
        _end(study, trial, TrialState.FAIL, failed=f"its process died {ATTEMPTS} times at the same place")
        return
    try:
        spec, _ = space.spec(plan.base, lambda name, axis: _suggest(trial, name, axis))
        spec.validate()
        if (twin := _twin(study, trial)) is not None:
            _end(study, trial, twin.state, twin.value, same_as=twin.number, **_outcome(twin.user_attrs))
            return
        if threads is not None and spec.get("threads") is None:
            spec = spec.replace(threads=threads)
        run = _fit(plan, spec, trial, data, parent)
    except (SpecError, ShapeError) as error:
        # Told as pruned: the sampler counts it among the bad ones, and leaves the place.
        _end(study, trial, TrialState.PRUNED, refused=str(error))
        return
    except NonFiniteError as error:
        _end(study, trial, TrialState.PRUNED, failed=str(error))
        return
    except (DataError, RunError, RankError) as error:
        _end(study, trial, TrialState.FAIL, failed=str(error))
        raise
    except (RuntimeError, MemoryError) as error:
        # Out of memory, most often: a size that does not fit says nothing of the others.
        words = (str(error).splitlines() or [""])[0]
        _end(study, trial, TrialState.FAIL, failed=f"{type(error).__name__}: {words}")
        return
    if run.outcome["signal"] is not None:
        trial.set_user_attr("attempts", [])
        raise Stopped(int(run.outcome["signal"]))
    facts = {"step": run.outcome["step"], "seconds": round(run.outcome["seconds"], 3)}
    if "pruned" in trial.user_attrs:
        _end(study, trial, TrialState.PRUNED, **facts)
        return
    value = _score(run, trial)
    if value is None or not math.isfinite(value):
        words = "there is no validation bound; give data with a validation split"
        _end(study, trial, TrialState.FAIL, failed=words, **facts)
        return
    _end(study, trial, TrialState.COMPLETE, value, reason=run.outcome["reason"], **facts)


def _attempt(plan: Plan, trial: Any) -> bool:
    """Note that a trial is begun or taken up; False where that has led nowhere before."""
    records = read_metrics(plan.room(trial.number))
    reached = records[-1]["step"] if records else -1
    before = [at for at in trial.user_attrs.get("attempts", []) if at >= reached]
    trial.set_user_attr("attempts", [*before, reached])
    trial.set_user_attr("process", f"{os.getpid()} on {platform.node()}")
    return len(before) < ATTEMPTS


def _fit(plan: Plan, spec: RunSpec, trial: Any, data: Any, parent: int | None) -> Run:
    """The run of a trial: begun, gone on with, or as it is where it had ended."""
    folder = plan.room(trial.number)
    callbacks = [_Reports(trial, parent)]
    if (folder / SPEC).exists() and started(folder) and _same(RunSpec.from_dict(read_json(folder / SPEC)), spec):
        outcome = read_json(folder / RUN).get("outcome") or {}
        if outcome.get("finished"):
            return load(folder, data=data)
        return fitting.resume(folder, data, quiet=True, callbacks=callbacks)
    return fitting.fit(
        spec, data, out=folder, overwrite=True, quiet=True, recipe=plan.recipe, callbacks=callbacks
    )


def _same(one: RunSpec, other: RunSpec) -> bool:
    """Whether two specs are one, wherever they run."""
    return _anywhere(one) == _anywhere(other)


def _anywhere(spec: RunSpec) -> RunSpec:
    left: dict[str, Any] = {name: None for name in _OWN if spec.get(name) is not None}
    return spec.replace(**left)


def _score(run: Run, trial: Any) -> float | None:
    """The validation bound of the weights that a run keeps, nats of x in the units of the data."""
    if "code_prior" in run.outcome:
        # Of both stages together.
        return float(run.evaluate("validation").estimates["elbo"].value)
    if run.spec.training.keep == "best":
        return float(run.outcome["best_elbo"])
    told = _frozen(trial).intermediate_values
    return float(told[max(told)]) if told else None


def _suggest(trial: Any, name: str, axis: spaces.Choices | spaces.Range) -> Any:
    if isinstance(axis, spaces.Choices):
        return trial.suggest_categorical(name, axis.values)
    if axis.whole:
        step = 1 if axis.step is None else int(axis.step)
        return trial.suggest_int(name, int(axis.low), int(axis.high), step=step, log=axis.log)
    return trial.suggest_float(name, axis.low, axis.high, step=axis.step, log=axis.log)


def _twin(study: Any, trial: Any) -> Any:
    """A trial of the same settings that has ended well or was pruned: its result would be the same to the bit."""
    from optuna.trial import TrialState

    for found in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        if found.number < trial.number and found.params == trial.params and "same_as" not in found.user_attrs:
            return found
    return None


def _outcome(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name in ("pruned", "refused", "failed", "reason")}


def _frozen(trial: Any) -> Any:
    """A trial as the storage has it now."""
    return trial.study.get_trials(deepcopy=False)[trial.number]


def _end(study: Any, trial: Any, state: Any, value: float | None = None, **facts: Any) -> None:
    """Tell the storage how a trial ended."""
    from optuna.trial import TrialState

    for name, fact in facts.items():
        trial.set_user_attr(name, fact)
    study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
