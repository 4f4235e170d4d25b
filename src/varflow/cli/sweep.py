"""Fit over a space of settings, choose by the validation bound, and test what was chosen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from varflow.cli.common import config_file
from varflow.cli.output import OutputOptions
from varflow.core.errors import SpecError, suggestion
from varflow.settings import recipes, toml
from varflow.settings.flags import parse_with_settings, with_choices
from varflow.settings.roles import parts_with
from varflow.settings.spec import RunSpec


@dataclass(frozen=True)
class Sweep(OutputOptions):
    """Fits over a space of settings, by Optuna."""

    space: str | None = None
    """A TOML file: setting = [choices], or setting = {low = …, high = …, log = true, step = …}."""
    trials: int | None = None
    """How many in all, earlier ones of the same storage among them; 20 unless given, all of a grid."""
    jobs: int = 1
    """Processes at once."""
    out: str | None = None
    """Folder of the sweep; without it sweeps/ and the name of the recipe."""
    storage: str | None = None
    """A SQLite file (.db), a journal file (.journal) or the URL of a database, which several processes and machines
    may share; without it sweep.db in the folder. One that holds this sweep is gone on with."""
    study: str | None = None
    """Name of the sweep in the storage; without it the name of the recipe."""
    resume: str | None = None
    """Go on with the sweep in this folder; only --trials, --jobs, --top and --test-samples can be given beside it."""
    config: str | None = None
    """A TOML file of settings that all trials share, as for `varflow fit`."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """tpe learns from the trials before; grid goes through all combinations."""
    prune: bool = True
    """End a trial whose best bound is below the median of the others at the same validation."""
    top: int = 3
    """How many of the best are evaluated on the test split."""
    test_samples: int | None = None
    """Importance samples of that evaluation; 1000 for each example unless given."""
    sweep_seed: int = 0
    """Seed of the sampler; --seed is that of each fit."""
    figures: bool = True
    """Draw the figures of the page."""


#: What a sweep that goes on may be given.
_GROWS = ("trials", "jobs", "top", "test_samples", "figures", "quiet", "json")


def main(arguments: list[str]) -> int:
    name = None
    if arguments and not arguments[0].startswith("-"):
        name, arguments = arguments[0], arguments[1:]
    asks_help = any(a in ("-h", "--help") for a in arguments)
    spec = recipes.find(name).spec if name else RunSpec()
    resumes = any(word.partition("=")[0] == "--resume" for word in arguments)
    if resumes:
        _check_resumed(name, arguments)
    config = None if resumes or (asks_help and name is None) else config_file(arguments)
    if config is not None:
        spec, name = toml.read(config, name)
    base = with_choices(spec, arguments)
    summary = "Fit over a space of settings; what the space leaves open all trials share."
    command, typed = parse_with_settings(Sweep, "sweep", summary, base, name, arguments)
    if command.resume is None:
        if name is None and config is None:
            raise SpecError(f"recipe: missing; {suggestion('', recipes.TABLE)}, or --config FILE, or --resume SWEEP")
        if command.space is None:
            raise SpecError("space: missing; give a TOML file of what varies, --space space.toml")
    from varflow.runs import sweep as sweeps

    shared: dict[str, Any] = {
        "trials": command.trials, "jobs": command.jobs, "top": command.top, "test_samples": command.test_samples,
        "quiet": command.quiet, "figures": command.figures,
    }  # fmt: skip
    if command.resume is not None:
        found = sweeps.resume_sweep(command.resume, **shared)
    else:
        found = sweeps.sweep(
            spec, str(command.space), out=command.out, storage=command.storage, study=command.study,
            sampler=command.sampler, prune=command.prune, sweep_seed=command.sweep_seed, recipe=name, **shared,
            **typed,
        )  # fmt: skip
    page = found.folder / "sweep.html"
    command.answer(lambda: {**found.to_dict(), "sweep": found.folder, "signal": found.signal, "report": page})
    if found.signal is not None:
        print(f"{found.summary()}; saved. Go on with: varflow sweep --resume {found.folder}")
        return 128 + found.signal
    command.say(found.table())
    best = found.best
    assert best is not None
    command.say(f"best: {best.folder}")
    command.say(f"report: {page}")
    return 0


def _check_resumed(recipe: str | None, arguments: list[str]) -> None:
    if recipe is not None:
        raise SpecError("resume: given beside a recipe; a sweep knows its own settings")
    for word in arguments:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        own = name in {field.name for field in dataclasses.fields(Sweep)} - {"resume", *_GROWS}
        if word.startswith("--") and (own or (parts_with(name) and name not in _GROWS)):
            raise SpecError(f"{name}: a sweep that goes on keeps its settings; only --trials can grow")
