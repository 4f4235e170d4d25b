"""Train a recipe, or go on with a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varflow.cli.common import beside, config_file
from varflow.cli.output import OutputOptions
from varflow.core.errors import SpecError, suggestion
from varflow.core.files import read_json
from varflow.settings.flags import parse_with_settings, with_choices
from varflow.settings.roles import parts_with
from varflow.settings.spec import RunSpec


@dataclass(frozen=True)
class Fit(OutputOptions):
    """Train a recipe, or go on with a run."""

    config: str | None = None
    """A TOML file of settings, flat or in sections, as `varflow show RUN --toml` prints one; flags win over it."""
    out: str | None = None
    """Folder of the run; without it runs/ and a name made of recipe, data, flow and seed."""
    resume: str | None = None
    """Go on with the run in this folder, bit for bit; only --epochs, --steps, --prior-epochs or --prior-steps can be
    given beside it."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    track: str | None = None
    """Where curves, figures and settings go beside the folder: mlflow, wandb, trackio, tensorboard, or several with
    commas between; with --resume without it where the run was tracked before, and none to track no more."""
    report: bool = True
    """Write report.html at the end."""
    figures: Literal["few", "all"] = "few"
    """Which figures it holds: a few that take a second, or all that apply; `varflow report RUN` draws all later."""


#: A spec that has every budget.
_BUDGETS = RunSpec().replace(posterior="quantizer", network="grid", prior="pixelcnn")


def main(arguments: list[str]) -> int:
    from varflow.settings import recipes, toml

    name = None
    if arguments and not arguments[0].startswith("-"):
        name, arguments = arguments[0], arguments[1:]
    asks_help = any(a in ("-h", "--help") for a in arguments)
    spec = recipes.find(name).spec if name else RunSpec()
    config = None if asks_help and name is None else config_file(arguments)
    resumes = any(word.partition("=")[0] == "--resume" for word in arguments)
    if resumes:
        _check_resumed(name, arguments)
    elif config is not None:
        spec, name = toml.read(config, name)
    # Whether a run that goes on has a code prior is not known yet.
    base = _BUDGETS if resumes and name is None else with_choices(spec, arguments)
    summary = "Train a recipe; every setting has the recipe's value unless given."
    command, typed = parse_with_settings(Fit, "fit", summary, base, name, arguments)
    if not asks_help and name is None and command.resume is None and config is None:
        raise SpecError(f"recipe: missing; {suggestion('', recipes.TABLE)}, or --config FILE, or --resume RUN")
    from varflow.runs import fitting

    if command.resume is not None:
        budget = {key: typed[key] for key in fitting.BUDGETS if key in typed}
        run = fitting.resume(command.resume, quiet=command.quiet, track=command.track, **budget)
    else:
        spec = base.replace(**typed)
        spec.validate()
        out = (
            command.out
            or f"runs/{name or Path(str(config)).stem}-{_subject(spec)}-{_flow_name(spec)}-seed{spec.training.seed}"
        )
        run = fitting.fit(
            spec, out=out, overwrite=command.overwrite, quiet=command.quiet, recipe=name, track=command.track
        )
    return _finish(run, command)


def _check_resumed(recipe: str | None, arguments: list[str]) -> None:
    if recipe is not None:
        raise SpecError("resume: given beside a recipe; a run knows its own settings")
    pairs = [getattr(part.settings, "either", ()) for part in _BUDGETS.parts.values()]
    grows = {name for own in pairs for pair in own for name in pair}
    for word in arguments:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        settles = name in ("config", "out", "overwrite") or bool(parts_with(name))
        if word.startswith("--") and settles and name not in grows:
            raise SpecError(
                f"{name}: a resumed run keeps its settings; only --epochs or --steps, --prior-epochs or "
                "--prior-steps can grow"
            )


def _finish(run: Any, command: Fit) -> int:
    outcome = run.outcome
    if beside():
        if outcome["signal"] is None and command.report:
            # The first process draws; all have to be there.
            run.report(command.figures)
        return 0 if outcome["signal"] is None else 128 + int(outcome["signal"])
    if outcome["signal"] is not None:
        print(f"{outcome['reason']}; saved. Go on with: varflow fit --resume {run.folder}")
        command.answer(lambda: _document(run, None))
        return 128 + int(outcome["signal"])
    drawn = run.report(command.figures) if command.report else None
    command.answer(lambda: _document(run, drawn))
    if command.quiet:
        return 0
    if run.infers_target:
        last = run.metrics[-1]["elbo"] if run.metrics else float("nan")
        how = "last training ELBO" + (" (mean over the fits)" if run.spec.training.fits > 1 else "")
        bound = f"{how} {last:.4f} nats"
    else:
        bound = (
            f"best validation ELBO {outcome['best_elbo']:.2f} nats at step {outcome['best_step']}"
        )
    took = f"{outcome['step']} steps in {outcome['seconds']:.0f} s"
    second = outcome.get("code_prior")
    print(f"{run.folder}: {took}, {outcome['reason']}; {bound}" + (" under uniform codes" if second else ""))
    if second:
        took = f"{second['step']} steps in {second['seconds']:.0f} s"
        best = f"best validation log p(codes) {second['best_elbo']:.2f} nats at step {second['best_step']}"
        print(f"prior over codes: {took}, {second['reason']}; {best}")
    if drawn is not None:
        print(f"report: {drawn}")
        if command.figures == "few":
            print(f"all figures: varflow report {run.folder}")
    print(f"next: varflow evaluate {run.folder}")
    return 0


def _document(run: Any, drawn: Path | None) -> dict[str, Any]:
    """run.json, and of metrics.jsonl the last record of each split, without the single updates in it."""
    last = {record["split"]: {k: v for k, v in record.items() if k != "elbos"} for record in run.metrics}
    units = {"best_elbo": "nats", "elbo": "nats", "log_likelihood": "nats", "kl": "nats", "seconds": "s"}
    return {**read_json(run.folder / "run.json"), "run": run.folder, "last": last, "units": units, "report": drawn}


def _subject(spec: RunSpec) -> str:
    """What is modelled or inferred, for the name of a folder."""
    target, dimensions = spec.get("target"), spec.get("dimensions")
    if target == "none":
        return Path(spec.get("data")).stem
    return str(target) + ("" if dimensions == 2 else f"-{dimensions}d")


def _flow_name(spec: RunSpec) -> str:
    if spec.get("posterior") == "quantizer":
        return f"{spec.get('codes')}codes-{spec.get('prior')}"
    moved = f"-top{spec.get('top_latent')}" if spec.get("top_latent") else ""
    moved += f"-leapfrog{spec.get('leapfrog')}" if spec.get("leapfrog") else ""
    if spec.get("flow", "none") == "none":
        return "none" + moved
    seen = "-amortized" if spec.get("amortized") else ""
    return f"{spec.get('flow')}{spec.get('length')}{seen}{moved}"
