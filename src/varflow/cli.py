"""The command line: a thin face over the library.

Commands are looked up here and their flags come from the dataclasses; torch is imported only by the
command that needs it, so help is instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from varflow import cli_evaluation
from varflow.errors import SpecError, VarflowError, suggestion, unknown
from varflow.flags import check_flags, parse, spelled_out
from varflow.specs import RunSpec, group_names, setting_types

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
class FitCommand:
    """Train a recipe; every setting has the recipe's value unless given."""

    run: Fit
    spec: RunSpec


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
class Sample:
    """Draw from p(x): pictures as a PNG sheet, and the numbers as .npy. Of a fit to a target: z from q(z)."""

    run: str
    """Folder of the run."""
    count: int = 64
    """How many."""
    mean: bool = False
    """The likelihood's mean for each z instead of a draw from it."""
    temperature: float | None = None
    """Prior over codes: divides the logits; below 1 the likely becomes likelier."""
    top_k: int | None = None
    """Prior over codes: draw among so many likeliest codes of a position."""
    label: int | None = None
    """Prior over codes with classes: the class of all draws; without it classes are drawn too."""
    seed: int = 0
    """Seed of the draws."""
    out: str | None = None
    """File name without ending; without it RUN/figures/sample."""
    device: str = "cpu"
    """cpu, cuda, cuda:0, ..."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""


@dataclass(frozen=True)
class Reconstruct:
    """Examples beside their reconstructions through one draw of q(z|x)."""

    run: str
    """Folder of the run."""
    count: int = 32
    """How many."""
    split: Literal["test", "validation", "train"] = "test"
    """The split."""
    seed: int = 0
    """Seed of the draws."""
    out: str | None = None
    """File name without ending; without it RUN/figures/reconstruct."""
    device: str = "cpu"
    """cpu, cuda, cuda:0, ..."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""


@dataclass(frozen=True)
class Report:
    """Every figure and a self-contained report.html."""

    run: str
    """Folder of the run."""
    device: str = "cpu"
    """cpu, cuda, cuda:0, ..."""
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


# -- commands ----------------------------------------------------------------------------------


def _recipes(arguments: list[str]) -> int:
    from varflow import recipes

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
        for group, values in recipe.spec.to_dict().items():
            if isinstance(values, dict):
                print(f"{group}: " + ", ".join(f"{k}={v}" for k, v in values.items()))
        return 0
    width = max(len(name) for name in recipes.TABLE)
    for recipe in recipes.every():
        print(f"{recipe.name:<{width}}  {recipe.summary}")
    return 0


def _fit(arguments: list[str]) -> int:
    from varflow import recipes

    name = None
    if arguments and not arguments[0].startswith("-"):
        name, arguments = arguments[0], arguments[1:]
    asks_help = any(a in ("-h", "--help") for a in arguments)
    default = recipes.find(name).spec if name else RunSpec()
    types = {**setting_types(), **get_type_hints(Fit)}
    arguments = spelled_out(arguments, types)
    given = check_flags(arguments, types)
    if "steps" in given and "epochs" not in given:
        default = default.replace(steps=1)
    if "epochs" in given and "steps" not in given:
        default = default.replace(epochs=1.0)
    if "prior_steps" in given and "prior_epochs" not in given:
        default = default.replace(prior_steps=1)
    if "prior_epochs" in given and "prior_steps" not in given:
        default = default.replace(prior_epochs=1.0)

    import tyro

    parsed = tyro.cli(
        tyro.conf.OmitArgPrefixes[FitCommand],
        prog=f"varflow fit {name or 'RECIPE'}",
        description=None if name else "Recipes: " + ", ".join(recipes.TABLE),
        args=arguments,
        default=FitCommand(Fit(), default),
    )
    command, spec = parsed.run, parsed.spec
    if not asks_help and name is None and command.resume is None:
        raise SpecError(f"recipe: missing; {suggestion('', recipes.TABLE)}, or --resume RUN")
    from varflow import fitting

    if command.resume is not None:
        if name is not None:
            raise SpecError("resume: given beside a recipe; a run knows its own settings")
        budget = {key: spec.get(key) for key in fitting.BUDGETS if key in given}
        for key in sorted(given - set(budget) - {"resume", "quiet", "report"}):
            raise SpecError(
                f"{key}: a resumed run keeps its settings; only --epochs or --steps, --prior-epochs or "
                "--prior-steps can grow"
            )
        run = fitting.resume(command.resume, quiet=command.quiet, **budget)
    else:
        spec.validate()
        beside = sorted(given & set(group_names("data")))
        if beside and spec.target.target != "none":
            raise SpecError(
                f"{beside[0]}: given beside the target {spec.target.target}, which has no data; "
                "leave one of the two out"
            )
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
    run = _open(options.run, options.device, options.threads, options.data_dir)
    from varflow.evaluation import Progress

    more = {}
    if options.grid is not None:
        if not run.infers_target:
            raise SpecError(f"grid: was {options.grid}; it is for targets, leave it out")
        more["grid"] = options.grid
    if options.samples is not None:
        _at_least_one("samples", options.samples)
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


def _sample(arguments: list[str]) -> int:
    options = parse(Sample, arguments, "run")
    run = _open(options.run, options.device, data_dir=options.data_dir)
    _at_least_one("count", options.count)
    from varflow import random

    if run.infers_target and options.mean:
        raise SpecError("mean: a target has no likelihood to take the mean of; leave it out")
    target = Path(options.out) if options.out else run.folder / "figures" / "sample"
    chosen = {n: getattr(options, n) for n in ("temperature", "top_k", "label")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    with random.stream(options.seed):
        if run.infers_target:
            _no_codes(chosen)
            x = _positions(run, options.count)
        elif run.model.posterior.discrete:
            x, written = _coded(run, options.count, options.mean, chosen, target)
            print(written)
        else:
            _no_codes(chosen)
            x = run.model.sample(options.count, mean=options.mean)
    for path in _write_examples(run, target, x, None):
        print(path)
    return 0


def _reconstruct(arguments: list[str]) -> int:
    options = parse(Reconstruct, arguments, "run")
    run = _open(options.run, options.device, data_dir=options.data_dir)
    _at_least_one("count", options.count)
    import torch

    from varflow import random

    if run.infers_target:
        raise SpecError(
            "run: was fitted to a target, which has no data; varflow sample draws from q(z)"
        )
    size = run.dataset.sizes[options.split]
    if options.count > size:
        raise SpecError(
            f"count: was {options.count}, the {options.split} split has {size}; use at most that"
        )
    with random.stream(options.seed):
        x = run.dataset.batch(options.split, torch.arange(options.count)).x
        again = run.model.reconstruct(x)
    target = Path(options.out) if options.out else run.folder / "figures" / "reconstruct"
    for path in _write_examples(run, target, again, x):
        print(path)
    return 0


def _report(arguments: list[str]) -> int:
    options = parse(Report, arguments, "run")
    print(_open(options.run, options.device, data_dir=options.data_dir).report())
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
    from varflow import ranks
    from varflow.demo import demo

    ranks.stay_alone()
    demo(Path(options.out), options.epochs, options.seed)
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "recipes": _recipes,
    "fit": _fit,
    "evaluate": _evaluate,
    **cli_evaluation.COMMANDS,
    "sample": _sample,
    "reconstruct": _reconstruct,
    "report": _report,
    "data": _data,
    "demo": _demo,
}


# -- shared --------------------------------------------------------------------------------------


def _open(
    folder: str, device: str = "cpu", threads: int | None = None, data_dir: str | None = None
) -> Any:
    from varflow.run import load
    from varflow.specs import TrainingSpec
    from varflow.training.engine import Engine

    engine = Engine.start(TrainingSpec(device=device, threads=threads))
    run = load(folder, device=engine.device)
    if data_dir is not None:
        run.spec = run.spec.replace(data_dir=data_dir)
    return run


def _aside(line: str) -> None:
    """A line beside the result, which stands on stdout alone."""
    print(line, file=sys.stderr, flush=True)


def _no_codes(chosen: dict[str, Any]) -> None:
    for name, value in chosen.items():
        raise SpecError(f"{name}: was {value}; it is for priors over codes, and this run has none")


def _coded(
    run: Any, count: int, mean: bool, chosen: dict[str, Any], target: Path
) -> tuple[Any, Path]:
    """x, and the file with its codes and the log p(codes) recorded while they were drawn."""
    import io

    import numpy as np
    import torch

    from varflow.files import make_folder, write_atomically

    prior, options = run.model.prior, dict(chosen)
    if not hasattr(prior, "sample_and_log_prob"):
        _no_codes(chosen)
        z = prior.sample((count,))
        log_prob = prior.log_prob(z)
    else:
        if "label" in options:
            label = options.pop("label")
            if not 0 <= label < (prior.classes or 0):
                known = f"0 to {prior.classes - 1}" if prior.classes else "none: it has no classes"
                raise SpecError(f"label: was {label}; the labels of this prior are {known}")
            home = next(run.model.parameters()).device
            options["labels"] = torch.full((count,), label, device=home)
        z, log_prob = prior.sample_and_log_prob((count,), **options)
    x = run.model.decode(z, mean)
    make_folder(target.parent)
    path = target.with_name(target.name + "-codes.npz")
    blob = io.BytesIO()
    np.savez(blob, codes=z.cpu().numpy(), log_prob=log_prob.cpu().numpy())
    write_atomically(path, lambda file: file.write(blob.getvalue()))
    return x, path


def _subject(spec: RunSpec) -> str:
    """What is modelled or inferred, for the name of a folder."""
    target = spec.target
    if target.target == "none":
        return Path(spec.data.data).stem
    return target.target + ("" if target.dimensions == 2 else f"-{target.dimensions}d")


def _flow_name(spec: RunSpec) -> str:
    posterior = spec.posterior
    if posterior.posterior == "quantizer":
        return f"{spec.quantizer.codes}codes-{spec.prior.prior}"
    moved = f"-top{posterior.top_latent}" if posterior.top_latent else ""
    moved += f"-leapfrog{posterior.leapfrog}" if posterior.leapfrog else ""
    if posterior.flow == "none":
        return "none" + moved
    seen = "-amortized" if posterior.amortized else ""
    return f"{posterior.flow}{posterior.length}{seen}{moved}"


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise SpecError(f"{name}: was {value}; use 1 or more")


def _positions(run: Any, count: int) -> Any:
    """z ~ q(z): ``[count, D]``, or ``[fits, count, D]`` where several fits were trained together."""
    import torch

    z = torch.stack([member.encode(None, count).z for member in run.members()])
    return z if len(z) > 1 else z[0]


def _write_examples(run: Any, target: Path, x: Any, originals: Any) -> list[Path]:
    """The numbers as .npy, and a sheet of pictures where they are pictures."""
    import io

    import numpy as np

    from varflow import figures
    from varflow.files import make_folder, write_atomically

    make_folder(target.parent)
    numbers = target.with_name(target.name + ".npy")
    blob = io.BytesIO()
    np.save(blob, x.cpu().numpy())
    write_atomically(numbers, lambda file: file.write(blob.getvalue()))
    pictures = run.dataset.pictures(x)
    if pictures is None:
        return [numbers]
    sheet = target.with_name(target.name + ".png")
    with figures.style():
        figure, axes = figures.canvas(width=8.0, height=8.0)
        if originals is None:
            figures.image_grid(pictures, axes[0, 0])
        else:
            figures.reconstructions(run.dataset.pictures(originals), pictures, axes[0, 0])
        figures.save(figure, sheet)
    return [numbers, sheet]
