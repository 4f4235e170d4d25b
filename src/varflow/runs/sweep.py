"""``sweep``: many fits over a space of settings, by Optuna; the best by the validation bound, then tested."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from varflow.core import display
from varflow.core.errors import RunError, SpecError, positive, suggestion
from varflow.core.files import read_json, write_json
from varflow.core.live import Live
from varflow.evaluation.estimate import Estimate
from varflow.evaluation.evaluation import Evaluation, outdated
from varflow.report import sweep as pages
from varflow.runs import trials as working
from varflow.runs.comparison import Comparison, aligned, compare, piped, titled
from varflow.runs.loading import load
from varflow.runs.run import Run
from varflow.runs.sweep_processes import in_several, in_this_process
from varflow.runs.trials import Plan
from varflow.settings import recipes
from varflow.settings import space as spaces
from varflow.settings.spec import RunSpec

#: The plan of a sweep in its folder.
PLAN = "plan.json"
#: Trials where nothing else is said, and those that are evaluated on the test split.
TRIALS, TOP = 20, 3
#: What a table shows of one evaluation.
_SHOWN = ("nll", "elbo", "bits_per_dim")


@dataclass(frozen=True)
class Trial:
    """A trial as the storage has it.

    Attributes:
        number: counted from 0.
        state: complete, pruned (ended early as bad), refused (settings that do not combine), failed, or running.
        value: the validation bound in nats of x in the units of the data; of a pruned trial at its last validation.
        settings: what was drawn for it: setting → value.
        folder: its run; None where it has none, or lies on another machine.
        note: how it ended.
        step, seconds: updates, and time in the loop.
        same_as: the trial of the same settings whose result this one has.
    """

    number: int
    state: str
    value: float | None
    settings: dict[str, Any]
    folder: Path | None = None
    note: str = ""
    step: int | None = None
    seconds: float | None = None
    same_as: int | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:04d}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "number": self.number, "state": self.state, "validation_bound": self.value, "settings": self.settings,
            "folder": None if self.folder is None else str(self.folder), "note": self.note, "step": self.step,
            "seconds": self.seconds, "same_as": self.same_as,
        }  # fmt: skip


@dataclass(repr=False)
class Sweep:
    """A sweep and what came of it.

    Attributes:
        plan: what it does.
        trials: in the order in which they began.
        top: the best by the validation bound, best first, each other than the ones before.
        comparison: the top on the test split with their differences in pairs, where there are two or more.
        signal: the signal that ended it before its end, or None.
    """

    plan: Plan
    trials: list[Trial]
    top: list[Trial] = field(default_factory=list)
    comparison: Comparison | None = None
    signal: int | None = None

    @property
    def folder(self) -> Path:
        """Of the sweep."""
        return Path(self.plan.folder)

    @property
    def best(self) -> Trial | None:
        """The trial with the largest validation bound; None before any has ended."""
        return next(iter(self.ranked()), None) if any(t.state == "complete" for t in self.trials) else None

    def best_run(self, **options: Any) -> Run:
        """The run of the best trial; ``options`` of :func:`varflow.load`.

        Raises:
            RunError: no trial was trained to its end here.
        """
        if self.best is None or self.best.folder is None:
            raise RunError("sweep: no trial was trained to its end here; see its note in the table")
        return load(self.best.folder, **options)

    def ranked(self) -> list[Trial]:
        """Trials that were trained to their end, best first; then the others."""
        ended = [t for t in self.trials if t.state == "complete"]
        others = [t for t in self.trials if t.state != "complete"]
        return sorted(ended, key=lambda t: (-(t.value or 0.0), t.number)) + others

    def rows(self) -> list[list[str]]:
        """A heading, then a row for each trial."""
        names = list(self.plan.space)
        out = [["trial", *names, "validation bound (nats)", "steps", "how it ended"]]
        for trial in self.ranked():
            settings = [_word(trial.settings[n]) if n in trial.settings else "–" for n in names]
            value = "–" if trial.value is None else f"{trial.value:.2f}"
            how = trial.note if trial.state in ("complete", "running") else f"{trial.state}: {trial.note}"
            if trial.same_as is not None:
                how = f"the settings of {trial.same_as:04d}"
            how = how.replace("pruned: pruned", "pruned")
            out.append([trial.name, *settings, value, str(trial.step or "–"), how])
        return out

    def test_rows(self) -> list[list[str]]:
        """A heading, then a row for each of the top on the test split; nothing before they were evaluated."""
        if self.comparison is not None:
            return self.comparison.rows()
        found = self._alone
        if found is None:
            return []
        shown = {name: found.estimates[name] for name in _SHOWN if name in found.estimates}
        cells = [e.figures() if e.standard_error else e.number() for e in shown.values()]
        return [["run", *map(titled, shown)], [self.top[0].name, *cells]]

    @cached_property
    def _alone(self) -> Evaluation | None:
        if len(self.top) != 1 or self.top[0].folder is None:
            return None
        path = self.top[0].folder
        return Evaluation.load(path) if (path / "evaluation" / "test.json").exists() else None

    def summary(self) -> str:
        """What there was, in a line."""
        states = [t.state for t in self.trials]
        counts = [
            f"{states.count(state)} {words}"
            for state, words in _COUNTED.items()
            if state in states or state == "complete"
        ]
        return f"{len(states)} trials: {', '.join(counts)}"

    def shared(self) -> dict[str, Any]:
        """The settings that all trials share and that are not a part's own default."""
        base = self.plan.base
        changed = base.changes(RunSpec())
        return {"recipe": self.plan.recipe, **{n: v for n, v in changed.items() if n not in self.plan.space}}

    def footer(self) -> list[str]:
        """How the numbers came about."""
        plan = self.plan
        lines = [f"{self.summary()}; sampler {plan.sampler}, seed {plan.seed}; the storage is {plan.storage}"]
        if self.comparison is not None:
            lines += self.comparison.footer()
        elif (found := self._alone) is not None:
            first: Estimate = next(iter(found.estimates.values()))
            lines.append(f"{first.protocol}; {first.points} points, {first.samples} samples each, seed {first.seed}")
        return lines

    def table(self) -> str:
        """Plain text: the trials, then the best on the test split with their differences."""
        parts = [aligned(self.rows())]
        if rows := self.test_rows():
            parts += ["", "on the test split, which nothing above has seen:", aligned(rows)]
        if self.comparison is not None:
            parts += ["", aligned(self.comparison.difference_rows())]
        return "\n".join([*parts, *self.footer()])

    def __repr__(self) -> str:
        best = self.best
        said = "" if best is None else f"; best {best.name}, validation bound {best.value:.2f} nats"
        return f"Sweep({self.plan.name}: {self.summary()}{said})"

    def _repr_html_(self) -> str:
        heads, *rows = self.rows()
        pieces = [display.heading(f"Sweep over {self.plan.name}"), display.table(heads, rows, (0, len(heads) - 1))]
        if tested := self.test_rows():
            pieces += [display.heading("The best on the test split"), display.table(tested[0], tested[1:])]
        if self.comparison is not None:
            heads, *rows = self.comparison.difference_rows()
            pieces += [display.table(heads, rows)]
        return display.block(*pieces, display.note(*self.footer()))

    def markdown(self) -> str:
        """The same in Markdown."""
        parts = [f"# Sweep over {self.plan.name}", piped(self.rows())]
        if rows := self.test_rows():
            parts += ["## The best on the test split", piped(rows)]
        if self.comparison is not None:
            parts += [piped(self.comparison.difference_rows())]
        return "\n\n".join([*parts, *self.footer()]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that fit strict JSON."""
        best = self.best
        compared = self.comparison
        alone = self._alone
        tested = {} if alone is None else {self.top[0].name: alone.estimates}
        if compared is not None:
            tested = dict(zip(compared.names, compared.estimates, strict=True))
        pairs = {} if compared is None else dict(zip(compared.names[1:], compared.differences, strict=True))
        return {
            "plan": self.plan.to_dict(),
            "best": None if best is None else best.to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
            "test": {name: {q: e.to_dict() for q, e in found.items()} for name, found in tested.items()},
            "differences": {name: {q: e.to_dict() for q, e in found.items()} for name, found in pairs.items()},
        }


_COUNTED = {
    "complete": "trained to their end", "pruned": "pruned", "refused": "refused", "failed": "failed",
    "running": "not at their end",
}  # fmt: skip


def sweep(
    what: str | RunSpec,
    space: str | Path | Mapping[str, Any],
    data: Any = None,
    *,
    trials: int | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    storage: str | Path | None = None,
    study: str | None = None,
    sampler: Literal["tpe", "random", "grid"] = "tpe",
    prune: bool = True,
    top: int = TOP,
    test_samples: int | None = None,
    sweep_seed: int = 0,
    quiet: bool = False,
    figures: bool = True,
    recipe: str | None = None,
    **settings: Any,
) -> Sweep:
    """Fit over a space of settings, choose by the validation bound, and test what was chosen.

    Each trial is a run in ``out/trials/``. Settings that do not combine count as bad trials, with the sentence that
    refuses them. A trial whose best bound so far is below the median of the others at the same validation is ended
    early, after its warm-up. Trials are drawn and told by Optuna in the ``storage``, which other processes and
    machines may share; what was cut off there is taken up again. When all trials have ended, the best are evaluated
    on the test split, which nothing before has read, and compared in pairs.

    Args:
        what: the name of a recipe, or a :class:`~varflow.RunSpec`.
        space: a TOML file or a mapping, setting → choices ``["none", "planar"]`` or a range
            ``{"low": 1e-4, "high": 1e-2, "log": True}`` (:mod:`varflow.settings.space`).
        data: as for :func:`varflow.fit`.
        trials: how many in all, earlier ones of the same storage among them; 20 unless given, all of a grid.
        jobs: processes at once. Where the settings name no threads, they share those of the machine.
        out: the folder; ``sweeps/`` and the recipe's name unless given.
        storage: a SQLite file (.db), a journal file (.journal) or the URL of a database; ``sweep.db`` in the folder
            unless given.
        study: the name of the sweep in the storage, the recipe's unless given.
        sampler: tpe learns from the trials before; random; grid goes through all combinations of choices and whole
            numbers.
        prune: end bad trials early.
        top: how many of the best are evaluated on the test split; 0 leaves it alone.
        test_samples: importance samples of that evaluation for each example; as for ``run.evaluate`` unless given.
        sweep_seed: of the sampler; ``seed`` is that of each fit.
        quiet: print nothing.
        figures: draw the figures of the page.
        recipe: name of the recipe that a spec came from, for the record.
        **settings: of every trial, as for :func:`varflow.fit`.

    Returns:
        The sweep. Its table is in ``sweep.md``, its numbers in ``sweep.json``, its page is ``sweep.html``.

    Raises:
        SpecError: an unknown setting or space, a target (which has no validation bound), or Optuna is missing.
        RunError: the storage holds another sweep, or no trial was trained to its end.
        DataError: the data are missing.

    Example:
        >>> import torch, varflow as vf
        >>> x = (torch.rand(200, 6) < 0.5).float()
        >>> space = {"flow": ["none", "planar"], "lr": {"low": 1e-3, "high": 1e-2, "log": True}}
        >>> found = vf.sweep("digits", space, x, trials=2, latent=2, hidden=8, steps=5, out=folder, quiet=True)
        >>> len(found.trials), found.best.state
        (2, 'complete')
    """
    working.check_installed()
    if not isinstance(what, str | RunSpec):
        raise SpecError(f"what: was {type(what).__name__}; a sweep needs the name of a recipe or a RunSpec")
    recipe = what if isinstance(what, str) else recipe
    base = recipes.find(what).spec if isinstance(what, str) else what
    if isinstance(data, str | Path):
        settings["data"] = str(data)
        data = None
    base = base.replace(**settings)
    base.validate()
    if base.get("target") != "none":
        raise SpecError("what: a target has no validation split, by which a sweep chooses; give a recipe of data")
    found = spaces.read(space, base)
    for name in settings:
        if name in found.axes:
            raise SpecError(f"{name}: is given once and for all, and varies in the space; leave one of the two out")
    if sampler not in ("tpe", "random", "grid"):
        raise SpecError(f"sampler: unknown value '{sampler}'; {suggestion(sampler, ('tpe', 'random', 'grid'))}")
    if sampler == "grid":
        next(found.grid(base))
    if trials is None and sampler != "grid":
        trials = TRIALS
    positive(jobs=jobs, **({} if trials is None else {"trials": trials}))
    name = recipe or "sweep"
    folder = Path(out) if out is not None else Path("sweeps") / name
    where = str(storage) if storage is not None else str(folder / "sweep.db")
    plan = Plan(
        recipe, base.to_dict(), found.plain(), str(folder), where, study or name, trials, sampler, prune, sweep_seed,
        data is not None,
    )  # fmt: skip
    return _go(plan, data, jobs, top, test_samples, quiet, figures)


def resume_sweep(
    folder: str | Path,
    data: Any = None,
    *,
    trials: int | None = None,
    jobs: int = 1,
    top: int = TOP,
    test_samples: int | None = None,
    quiet: bool = False,
    figures: bool = True,
) -> Sweep:
    """Go on with the sweep in a folder: what was cut off, and up to ``trials`` in all.

    Args:
        folder: of the sweep.
        data: the data, where they were given in Python.
        trials: how many in all; as many as before unless given.
        jobs, top, test_samples, quiet, figures: as for :func:`sweep`.

    Raises:
        RunError: the folder holds no sweep.
        SpecError: data that were given in Python are missing.
    """
    working.check_installed()
    path = Path(folder) / PLAN
    if not path.exists():
        raise RunError(f"folder: {folder} holds no sweep (no {PLAN}); give the folder that `varflow sweep` wrote")
    try:
        kept = Plan(**{**read_json(path), "folder": str(folder)})
        kept.identity()
    except TypeError as error:
        raise RunError(f"{path}: not what varflow wrote ({error}); give the command of the sweep again") from error
    if kept.data_given and data is None:
        raise SpecError("data: this sweep is over data given in Python; pass them again")
    plan = kept if trials is None else Plan(**{**kept.to_dict(), "trials": trials})
    positive(jobs=jobs, **({} if plan.trials is None else {"trials": plan.trials}))
    return _go(plan, data, jobs, top, test_samples, quiet, figures)


def _go(
    plan: Plan, data: Any, jobs: int, top: int, samples: int | None, quiet: bool, figures: bool
) -> Sweep:
    if not isinstance(top, int) or top < 0:
        raise SpecError(f"top: was {top!r}; use 0 or more")

    _check_folder(plan)
    live = Live(quiet=quiet, stays=False)
    with working.quiet_engine(), live:
        study = working.open_study(plan)
        write_json(Path(plan.folder) / PLAN, plan.to_dict())
        told = _Told(plan, study, live)
        told.begin()
        number = in_this_process(plan, data, told) if jobs == 1 else in_several(plan, data, jobs, told)
        made = Sweep(plan, _trials(plan, study), signal=number)
    if number is not None:
        return made
    if made.best is None:
        notes = [t.note for t in made.trials if t.state in ("refused", "failed")]
        why = f"; the last one: {notes[-1]}" if notes else ""
        raise RunError(f"sweep: no trial of {len(made.trials)} was trained to its end{why}")
    _test(made, data, top, samples, quiet)
    pages.write(made, figures)
    return made


def _check_folder(plan: Plan) -> None:
    """Refuse a folder with the trials of another sweep."""
    path = Path(plan.folder) / PLAN
    held = read_json(path) if path.exists() else {}
    known = (held.get("study"), Path(str(held.get("storage"))).resolve())
    if held and known != (plan.study, Path(plan.storage).resolve()):
        raise SpecError(
            f"out: {plan.folder} holds another sweep ('{held.get('study')}' in {held.get('storage')}); choose "
            "another folder"
        )


def _test(made: Sweep, data: Any, top: int, samples: int | None, quiet: bool) -> None:
    """Evaluate the best on the test split, and compare them in pairs."""
    apart = [t for t in made.ranked() if t.state == "complete" and t.same_as is None and t.folder is not None]
    made.top = apart[:top]
    for trial in made.top:
        assert trial.folder is not None
        if not _is_tested(trial.folder, samples):
            with Live(quiet=quiet, stays=False) as live:
                live.say(f"trial {trial.number}: evaluating on the test split")
                load(trial.folder, data=data).evaluate("test", samples, progress=partial(live.show, unit="points"))
    if len(made.top) > 1:
        made.comparison = compare([t.folder for t in made.top if t.folder is not None])


def _is_tested(folder: Path, samples: int | None) -> bool:
    path = folder / "evaluation" / "test.json"
    if not path.exists():
        return False
    kept = read_json(path)
    counts = {e["samples"] for e in kept["estimates"].values()}
    return not outdated(folder, kept) and (samples is None or counts == {samples})


# -- what the storage holds ----------------------------------------------------------------------------


def _trials(plan: Plan, study: Any) -> list[Trial]:
    from optuna.trial import TrialState

    out = []
    for found in study.get_trials(deepcopy=False):
        if found.state == TrialState.WAITING:
            continue
        facts = found.user_attrs
        state = {TrialState.COMPLETE: "complete", TrialState.FAIL: "failed", TrialState.RUNNING: "running"}.get(
            found.state, "pruned"
        )
        for name in ("refused", "failed"):
            state = name if name in facts and state != "complete" else state
        told = found.intermediate_values
        value = found.value if state == "complete" else told[max(told)] if told and state == "pruned" else None
        note = next((facts[n] for n in ("refused", "failed", "pruned", "reason") if n in facts), state)
        folder = plan.room(found.number)
        out.append(
            Trial(
                found.number, state, None if value is None or not math.isfinite(value) else value,
                dict(found.params), folder if (folder / "spec.json").exists() else None, str(note),
                facts.get("step"), facts.get("seconds"), facts.get("same_as"),
            )
        )  # fmt: skip
    return out


class _Told:
    """Says what came of each trial, once, what a session finds, and how far it is."""

    def __init__(self, plan: Plan, study: Any, live: Live) -> None:
        self.plan, self.study, self.live, self.say = plan, study, live, live.say
        self._known: set[int] = set()

    def begin(self) -> None:
        """Note what has ended before."""
        trials = _trials(self.plan, self.study)
        self._known = {t.number for t in trials if t.state != "running"}
        if trials:
            self.say(f"{self.plan.storage}: {len(self._known)} trials have ended before; going on")
        self.live.already(len(self._known))
        self._show(trials)

    def look(self) -> None:
        """Say what has ended since the last time."""
        trials = _trials(self.plan, self.study)
        for trial in trials:
            if trial.state != "running" and trial.number not in self._known:
                self._known.add(trial.number)
                self.say(self._line(trial))
        self._show(trials)

    def _show(self, trials: list[Trial]) -> None:
        """How many have ended, and the best of them."""
        # All trials of a grid are in the storage from the start.
        total = self.plan.trials or len(self.study.get_trials(deepcopy=False))
        best = max((t for t in trials if t.state == "complete"), key=lambda t: t.value or -math.inf, default=None)
        words = "" if best is None or best.value is None else f"best {best.value:.2f} nats (trial {best.number})"
        self.live.show(len(self._known), max(total, len(trials)), words=words, unit="trials")

    def _line(self, trial: Trial) -> str:
        words = " ".join(f"{name}={_word(value)}" for name, value in trial.settings.items())
        if trial.same_as is not None:
            return f"trial {trial.number}: {words}: the settings of trial {trial.same_as}"
        if trial.state == "complete":
            took = f"{trial.step} steps, {trial.seconds:.0f} s"
            best = max(t.value or -math.inf for t in _trials(self.plan, self.study) if t.state == "complete")
            mark = ", the best so far" if trial.value == best else ""
            return f"trial {trial.number}: {words}: {trial.value:.2f} nats ({took}){mark}"
        note = trial.note if trial.note.startswith(trial.state) else f"{trial.state}: {trial.note}"
        return f"trial {trial.number}: {words}: {note}"


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
