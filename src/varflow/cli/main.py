"""The command line: a thin face over the library.

Commands are looked up here and their flags come from the dataclasses; torch is imported only by the
command that needs it, so help is instant.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from varflow.cli import evaluation as cli_evaluation
from varflow.cli import runs as cli_runs
from varflow.cli.runs import at_least_one, open_run
from varflow.core.errors import SpecError, VarflowError, suggestion, unknown
from varflow.settings.flags import check_flags, parse, spec_flags, spec_types, spelled_out, with_choices
from varflow.settings.spec import RunSpec

_HELP = """\
varflow: deep latent-variable models and variational inference with normalizing flows

usage: varflow COMMAND [options]        (varflow COMMAND --help for the options)

  recipes       the named experiments
  fit           train a recipe:   varflow fit dense --flow planar --amortized --out runs/planar
                go on with a run: varflow fit --resume runs/planar
  evaluate      ELBO, log-likelihood, bits/dim and health of a run, with their errors
  anneal        log p(x) by annealed importance sampling, with bounds from both sides on simulated data
  gaps          log p(x) − ELBO taken apart: what the family costs, and what the encoder costs
  curve         the importance-weighted bound against its number of samples
  compare       runs side by side on the same test examples:   varflow compare RUN RUN
  sample        pictures or rows drawn from a run's model
  reconstruct   test examples beside their reconstructions
  report        every figure and a self-contained report.html of a run
  data          the data sets: what is here, download, check
  demo          several posteriors compared on the embedded digits, in about a minute
"""


@dataclass(frozen=True)
class Fit:
    """Train a recipe, or go on with a run."""

    out: str | None = None
    """Folder of the run; without it runs/ and a name made of recipe, data, flow and seed."""
    resume: str | None = None
    """Go on with the run in this folder, bit for bit; only --epochs, --steps, --prior-epochs or --prior-steps can be
    given beside it."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    quiet: bool = False
    """Show no progress."""
    report: bool = True
    """Draw the figures and write report.html at the end."""


@dataclass(frozen=True)
class Evaluate:
    """Estimates on a split, with their errors; per-example results are kept in the run.

    A fit to a target is set beside its exact answers instead.
    """

    run: str
    """Folder of the run."""
    split: Literal["auto", "test", "validation", "train"] = "auto"
    """The split; auto is test. A target has none."""
    samples: int | None = None
    """Importance samples: 1000 for each example, 100,000 for each fit to a target, unless given."""
    grid: int | None = None
    """Targets in one or two dimensions: KL by quadrature too, on so many panels along each."""
    limit: int | None = None
    """The first examples of the split alone."""
    memory: float = 1.0
    """Bound on working memory, GiB."""
    seed: int = 0
    """Seed of the estimate."""
    device: str = "cpu"
    """cpu, cuda, cuda:0, ..."""
    threads: int | None = None
    """CPU threads; without it torch's choice."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""


@dataclass(frozen=True)
class Data:
    """The data sets: what is here, download, check."""

    action: Literal["list", "download", "check"] = "list"
    """list: all data sets and whether they are here; download NAME; check NAME: read it and verify checksums."""
    name: str | None = None
    """The data set."""
    data_dir: str | None = None
    """Folder of the named data sets; without it VARFLOW_DATA, then ~/.cache/varflow."""


@dataclass(frozen=True)
class Demo:
    """Several posteriors compared on the embedded digits: table, figures, report."""

    out: str = "demo"
    """Folder for the runs and the pictures."""
    epochs: float = 200.0
    """Budget of each fit."""
    seed: int = 0
    """Seed of every fit."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 and one sentence for anything a user can mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
    except VarflowError as error:
        if not error.silent and (error.exchanged or not _beside()):
            print(f"varflow: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 141
    sys.exit(code)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if _beside() and (command != "fit" or "-h" in rest or "--help" in rest):
        # Under torchrun the first process alone does what is no training.
        return 0
    if command == "--version":
        from varflow import __version__

        print(__version__)
        return 0
    if command not in _COMMANDS:
        raise SpecError(f"command: unknown '{command}'; {suggestion(command, _COMMANDS)}")
    return _COMMANDS[command](rest)


def _beside() -> bool:
    """Whether torchrun started this process beside the one that speaks."""
    return "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"


#: A spec that has every budget.
_BUDGETS = RunSpec().replace(posterior="quantizer", network="grid", prior="pixelcnn")


# -- commands ----------------------------------------------------------------------------------


def _recipes(arguments: list[str]) -> int:
    from varflow.settings import recipes

    if arguments and arguments[0] in ("-h", "--help"):
        print(
            "usage: varflow recipes [NAME]\n\nThe named experiments; with NAME, one with its settings."
        )
        return 0
    if arguments:
        recipe = recipes.find(arguments[0])
        print(
            f"{recipe.name}: {recipe.summary}\nsource: {recipe.source}\ndiffers: {recipe.differs or 'nothing'}"
        )
        for role, part in recipe.spec.parts.items():
            print(f"{role}: " + ", ".join(f"{k}={v}" for k, v in part.values().items()))
        return 0
    width = max(len(name) for name in recipes.TABLE)
    for recipe in recipes.every():
        print(f"{recipe.name:<{width}}  {recipe.summary}")
    return 0


def _fit(arguments: list[str]) -> int:
    from varflow.settings import recipes

    name = None
    if arguments and not arguments[0].startswith("-"):
        name, arguments = arguments[0], arguments[1:]
    asks_help = any(a in ("-h", "--help") for a in arguments)
    spec = recipes.find(name).spec if name else RunSpec()
    resumes = any(word.partition("=")[0] == "--resume" for word in arguments)
    # A run that goes on has a second stage if it has one; its budgets are read without knowing.
    base = _BUDGETS if resumes else with_choices(spec, arguments)
    types = {**spec_types(base), **get_type_hints(Fit)}
    arguments = spelled_out(arguments, types)
    given = check_flags(arguments, types, base)

    import tyro

    fields: list[Any] = [("run", Fit, dataclasses.field(default_factory=Fit)), *spec_flags(base)]
    kind: Any = dataclasses.make_dataclass("FitCommand", fields, frozen=True)
    kind.__doc__ = "Train a recipe; every setting has the recipe's value unless given."
    parsed = tyro.cli(
        tyro.conf.OmitArgPrefixes[kind],
        prog=f"varflow fit {name or 'RECIPE'}",
        description=None if name else "Recipes: " + ", ".join(recipes.TABLE),
        args=arguments,
    )
    command: Fit = parsed.run
    typed = {n: v for role in base.parts for n, v in vars(getattr(parsed, role)).items() if n in given}
    if not asks_help and name is None and command.resume is None:
        raise SpecError(f"recipe: missing; {suggestion('', recipes.TABLE)}, or --resume RUN")
    from varflow.runs import fitting

    if command.resume is not None:
        if name is not None:
            raise SpecError("resume: given beside a recipe; a run knows its own settings")
        budget = {key: typed[key] for key in fitting.BUDGETS if key in typed}
        for key in sorted(given - set(budget) - {"resume", "quiet", "report"}):
            raise SpecError(
                f"{key}: a resumed run keeps its settings; only --epochs or --steps, --prior-epochs or "
                "--prior-steps can grow"
            )
        run = fitting.resume(command.resume, quiet=command.quiet, **budget)
    else:
        spec = base.replace(**typed)
        spec.validate()
        out = (
            command.out
            or f"runs/{name}-{_subject(spec)}-{_flow_name(spec)}-seed{spec.training.seed}"
        )
        run = fitting.fit(
            spec, out=out, overwrite=command.overwrite, quiet=command.quiet, recipe=name
        )
    return _finish(run, command)


def _finish(run: Any, command: Fit) -> int:
    outcome = run.outcome
    if _beside():
        if outcome["signal"] is None and command.report:
            # The first process draws; all have to be there.
            run.report()
        return 0 if outcome["signal"] is None else 128 + int(outcome["signal"])
    if outcome["signal"] is not None:
        print(f"{outcome['reason']}; saved. Go on with: varflow fit --resume {run.folder}")
        return 128 + int(outcome["signal"])
    if run.infers_target:
        last = run.metrics[-1]["elbo"] if run.metrics else float("nan")
        how = "last training ELBO" + (" (mean over the fits)" if run.spec.training.fits > 1 else "")
        bound = f"{how} {last:.4f} nats"
    else:
        bound = (
            f"best validation ELBO {outcome['best_elbo']:.2f} nats at step {outcome['best_step']}"
        )
    took = f"{outcome['step']} steps in {outcome['seconds']:.0f} s"
    second = outcome.get("second_stage")
    print(f"{run.folder}: {took}, {outcome['reason']}; {bound}" + (" under uniform codes" if second else ""))
    if second:
        took = f"{second['step']} steps in {second['seconds']:.0f} s"
        best = f"best validation log p(codes) {second['best_elbo']:.2f} nats at step {second['best_step']}"
        print(f"prior over codes: {took}, {second['reason']}; {best}")
    if command.report:
        print(f"report: {run.report()}")
    print(f"next: varflow evaluate {run.folder}")
    return 0


def _evaluate(arguments: list[str]) -> int:
    options = parse(Evaluate, arguments, "run")
    if not 0 < options.memory < 2**20:
        raise SpecError(f"memory: was {options.memory}; use gibibytes, above 0")
    run = open_run(options.run, options.device, options.threads, options.data_dir)
    from varflow.evaluation import Progress

    more = {}
    if options.grid is not None:
        if not run.infers_target:
            raise SpecError(f"grid: was {options.grid}; it is for targets, leave it out")
        more["grid"] = options.grid
    if options.samples is not None:
        at_least_one("samples", options.samples)
    with Progress() as progress:
        result = run.evaluate(
            None if options.split == "auto" else options.split,
            options.samples,
            memory=int(options.memory * 2**30),
            seed=options.seed,
            limit=options.limit,
            progress=progress,
            **more,
        )
    print(result.table())
    print(f"report: {run.report()}")
    return 0


def _data(arguments: list[str]) -> int:
    options = parse(Data, arguments, "action", "name")
    from varflow import data
    from varflow.data.sources import verification

    if options.action == "list":
        print(data.overview(options.data_dir))
        return 0
    if options.name is None:
        raise SpecError(f"name: missing; {suggestion('', data.SOURCES)}")
    known = data.DOWNLOADS if options.action == "download" else data.SOURCES
    if options.name not in known:
        raise unknown("name", options.name, known)
    if options.action == "download":
        print(data.download(options.name, options.data_dir, say=_aside))
        return 0
    facts = data.load(options.name, data_dir=options.data_dir).describe()
    for key, value in facts.items():
        print(f"{key}: {value}")
    print(verification(facts.get("checksums", {})))
    return 0


def _demo(arguments: list[str]) -> int:
    options = parse(Demo, arguments)
    from varflow.cli.demo import demo
    from varflow.core import ranks

    ranks.stay_alone()
    demo(Path(options.out), options.epochs, options.seed)
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "recipes": _recipes,
    "fit": _fit,
    "evaluate": _evaluate,
    **cli_evaluation.COMMANDS,
    **cli_runs.COMMANDS,
    "data": _data,
    "demo": _demo,
}


# -- shared --------------------------------------------------------------------------------------


def _aside(line: str) -> None:
    """A line beside the result, which stands on stdout alone."""
    print(line, file=sys.stderr, flush=True)


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
