"""The commands that question a run beyond ``varflow evaluate``, and the one that sets runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varflow.cli.runs import open_run
from varflow.core.errors import SpecError
from varflow.settings.flags import parse


@dataclass(frozen=True)
class Anneal:
    """log p(x) of test examples by annealed importance sampling, which does not need a good q(z|x).

    Beside it the same chains on data simulated from the model, where log p(x) is bounded from both sides: how
    far the estimate can be off. Interrupted, the same command goes on and ends in the same numbers.
    """

    run: str
    """Folder of the run."""
    split: Literal["test", "validation"] = "test"
    """The split."""
    points: int = 200
    """The first examples of the split."""
    simulated: int = 200
    """Examples simulated from the model for the bounds from both sides; 0 for none."""
    chains: int = 16
    """Chains for each example."""
    temperatures: int = 1000
    """Temperatures between the start and p(x, z)."""
    leapfrog: int = 5
    """Leapfrog steps between two temperatures."""
    schedule: Literal["sigmoidal", "geometric", "linear"] = "sigmoidal"
    """How the temperatures are spaced."""
    start: Literal["posterior", "prior"] = "posterior"
    """Where chains start: a Gaussian with the moments of q(z|x), or p(z)."""
    acceptance: float = 0.65
    """Acceptance rate that step sizes are adapted to in the warm-up."""
    memory: float = 1.0
    """Bound on working memory, GiB."""
    seed: int = 0
    """Seed of the chains."""
    device: str = "cpu"
    """cpu, cuda, cuda:0, ..."""
    threads: int | None = None
    """CPU threads; without it torch's choice."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""


@dataclass(frozen=True)
class Gaps:
    """log p(x) − ELBO taken apart: approximation gap (the family's) and amortization gap (the encoder's).

    q(z|x) is refined for each example; log p(x) is annealed as by `varflow anneal`, whose chains are used again.
    """

    run: str
    """Folder of the run."""
    split: Literal["test", "validation"] = "test"
    """The split."""
    points: int = 200
    """The first examples of the split."""
    steps: int = 500
    """Steps of Adam on each example's own tensors."""
    samples: int = 16
    """Latents for each example and step."""
    lr: float = 0.03
    """Step size of Adam at the start."""
    elbo_samples: int = 1000
    """Samples of the ELBOs before and after."""
    chains: int = 16
    """Chains for each example."""
    temperatures: int = 1000
    """Temperatures between the start and p(x, z)."""
    leapfrog: int = 5
    """Leapfrog steps between two temperatures."""
    start: Literal["posterior", "prior"] = "posterior"
    """Where chains start: a Gaussian with the moments of q(z|x), or p(z)."""
    memory: float = 1.0
    """Bound on the working memory of annealing, GiB."""
    seed: int = 0
    """Seed of all samples."""
    device: str = "cpu"
    """cpu, cuda, cuda:0, ..."""
    threads: int | None = None
    """CPU threads; without it torch's choice."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""


@dataclass(frozen=True)
class Curve:
    """The importance-weighted bound for 1, 10, 100, ... samples, from one set of weights."""

    run: str
    """Folder of the run."""
    split: Literal["test", "validation"] = "test"
    """The split."""
    samples: int = 1000
    """Weights of each example."""
    limit: int | None = None
    """The first examples of the split alone."""
    memory: float = 1.0
    """Bound on working memory, GiB."""
    seed: int = 0
    """Seed of the weights."""
    device: str = "cpu"
    """cpu, cuda, cuda:0, ..."""
    threads: int | None = None
    """CPU threads; without it torch's choice."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""


@dataclass(frozen=True)
class Compare:
    """varflow compare RUN RUN ...: the same test examples in pairs, each run less the first.

    Prints a table and writes comparison.md, .csv and .html with the figures side by side. The runs have been
    evaluated before, on the same data under the same protocol.
    """

    split: Literal["test", "validation"] = "test"
    """The split they were evaluated on."""
    out: str = "comparison"
    """Folder for the files."""
    figures: bool = True
    """Draw samples, reconstructions and curves side by side."""
    seed: int = 0
    """Seed of the samples in the figures."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""


def anneal(arguments: list[str]) -> int:
    options = parse(Anneal, arguments, "run")
    run = _open(options)
    from varflow import evaluation

    settings = _annealing(options, acceptance=options.acceptance, schedule=options.schedule)
    if options.simulated < 0:
        raise SpecError(f"simulated: was {options.simulated}; use 0 or more")
    common = {**_common(options), "folder": run.folder / "evaluation"}
    with evaluation.Progress() as progress:
        found = evaluation.annealed_likelihood(
            run.model, run.dataset, options.split, options.points, settings, progress=progress, **common
        )  # fmt: skip
    found.save(run.folder)
    print(found.table())
    if options.simulated:
        with evaluation.Progress() as progress:
            beside = evaluation.sandwich_bounds(
                run.model, options.simulated, settings, progress=progress, data=run.dataset.describe(), **common
            )  # fmt: skip
        beside.save(run.folder)
        print(f"\non data simulated from the model, log p(x) from both sides:\n{beside.table()}")
    print(f"report: {run.report()}")
    return 0


def gaps(arguments: list[str]) -> int:
    options = parse(Gaps, arguments, "run")
    run = _open(options)
    from varflow import evaluation

    refinement = evaluation.Refinement(
        options.steps, options.samples, options.lr, options.elbo_samples
    )
    with evaluation.Progress() as progress:
        found = evaluation.inference_gaps(
            run.model,
            run.dataset,
            options.split,
            options.points,
            refinement,
            _annealing(options),
            progress=progress,
            folder=run.folder / "evaluation",
            **_common(options),
        )
    return _done(found, run)


def curve(arguments: list[str]) -> int:
    options = parse(Curve, arguments, "run")
    run = _open(options)
    from varflow import evaluation
    from varflow.evaluation.chunks import Chunks
    from varflow.evaluation.curve import CURVE

    with evaluation.Progress() as progress:
        found = evaluation.bound_curve(
            run.model,
            run.dataset,
            options.split,
            options.samples,
            options.limit,
            progress=progress,
            folder=run.folder / "evaluation",
            **_common(options),
        )
    code = _done(found, run)
    Chunks(run.folder / "evaluation", CURVE).clear()
    return code


def compare(arguments: list[str]) -> int:
    words = 0
    while words < len(arguments) and not arguments[words].startswith("-"):
        words += 1
    folders, options = arguments[:words], parse(Compare, arguments[words:])
    from varflow.report.comparison import write
    from varflow.runs.comparison import compare as compared

    found = compared(folders, options.split)
    print(found.table())
    out = Path(options.out)
    for path in write(found, out, options.figures, options.seed, options.data_dir):
        print(path)
    return 0


COMMANDS = {"anneal": anneal, "gaps": gaps, "curve": curve, "compare": compare}


def _open(options: Any) -> Any:
    if not 0 < options.memory < 2**20:
        raise SpecError(f"memory: was {options.memory}; use gibibytes, above 0")
    run = open_run(options.run, options.device, options.threads, options.data_dir)
    if run.infers_target:
        raise SpecError("run: was fitted to a target, which has no data; use varflow evaluate")
    from varflow.posteriors import Observed

    if isinstance(run.model.posterior, Observed):
        raise SpecError("run: its log p(x) is exact, without latents; use varflow evaluate")
    if run.model.posterior.discrete:
        raise SpecError(
            "run: its latents are codes, one for each x for sure, so there is nothing to anneal, refine or average "
            "over; use varflow evaluate"
        )
    return run


def _annealing(options: Any, **more: Any) -> Any:
    from varflow.evaluation import Annealing

    return Annealing(
        options.chains, options.temperatures, options.leapfrog, start=options.start, **more
    )


def _common(options: Any) -> dict[str, Any]:
    return {"memory": int(options.memory * 2**30), "seed": options.seed}


def _done(found: Any, run: Any) -> int:
    found.save(run.folder)
    print(found.table())
    print(f"report: {run.report()}")
    return 0
