"""What the verbs share: the options of a run, the run itself, files of examples."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varflow.core.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every verb that reads a run."""

    run: str
    """Folder of the run."""
    device: str = "cpu"
    """cpu, cuda, cuda:0, ..."""
    threads: int | None = None
    """CPU threads; without it torch's choice."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""
    quiet: bool = False
    """Print nothing but errors."""

    def open(self) -> Any:
        """The run, its model on the device that is asked for."""
        from varflow.runs.loading import load
        from varflow.training.engine import Engine
        from varflow.training.settings import TrainingSettings

        engine = Engine.start(TrainingSettings(device=self.device, threads=self.threads))
        run = load(self.run, device=engine.device)
        if self.data_dir is not None:
            run.spec = run.spec.replace(data_dir=self.data_dir)
        return run

    @property
    def say(self) -> Callable[[object], None]:
        """Prints a result, unless nothing is to be printed."""
        return printer(self.quiet)

    def progress(self) -> AbstractContextManager[Callable[[int, int], None] | None]:
        """A bar on standard error for what takes long, unless nothing is to be printed."""
        from varflow.evaluation import Progress

        return nullcontext() if self.quiet else Progress()


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(RunOptions):
    """Options of every verb that estimates something of a run's examples."""

    split: Literal["test", "validation"] = "test"
    """The split."""
    memory: float = 1.0
    """Bound on working memory, GiB."""
    seed: int = 0
    """Seed of all samples."""

    @property
    def common(self) -> dict[str, int]:
        """What every estimate is given."""
        return {"memory": int(self.memory * 2**30), "seed": self.seed}

    def open(self) -> Any:
        """The run, once the bound on memory is known to make sense."""
        if not 0 < self.memory < 2**20:
            raise SpecError(f"memory: was {self.memory}; use gibibytes, above 0")
        return super().open()

    def open_latents(self) -> Any:
        """A run whose latents are uncertain, so that there is something to anneal, refine or average over."""
        run = self.open()
        if run.infers_target:
            raise SpecError("run: was fitted to a target, which has no data; use varflow evaluate")

        if run.model.posterior.observed:
            raise SpecError("run: its log p(x) is exact, without latents; use varflow evaluate")
        if run.model.posterior.discrete:
            raise SpecError(
                "run: its latents are codes, one for each x for sure, so there is nothing to anneal, refine or "
                "average over; use varflow evaluate"
            )
        return run

    def finish(self, run: Any, found: Any) -> None:
        """Keep an evaluation in the run, show it, and write the report again."""
        found.save(run.folder)
        self.say(found.table())
        self.say(f"report: {run.report()}")


@dataclass(frozen=True, kw_only=True)
class AnnealingOptions(EstimateOptions):
    """Options of the verbs that anneal log p(x)."""

    points: int = 200
    """The first examples of the split."""
    chains: int = 16
    """Chains for each example."""
    temperatures: int = 1000
    """Temperatures between the start and p(x, z)."""
    leapfrog: int = 5
    """Leapfrog steps between two temperatures."""
    start: Literal["posterior", "prior"] = "posterior"
    """Where chains start: a Gaussian with the moments of q(z|x), or p(z)."""

    def annealing(self, **more: Any) -> Any:
        """The settings of annealed importance sampling."""
        from varflow.evaluation import Annealing

        return Annealing(self.chains, self.temperatures, self.leapfrog, start=self.start, **more)


def printer(quiet: bool) -> Callable[[object], None]:
    """``print``, or what prints nothing."""
    return (lambda line: None) if quiet else print


def at_least_one(name: str, value: int) -> None:
    """Raise :class:`SpecError` for a number that is not positive."""
    if value < 1:
        raise SpecError(f"{name}: was {value}; use 1 or more")


def beside() -> bool:
    """Whether torchrun started this process beside the one that speaks."""
    return "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"


def config_file(arguments: list[str]) -> str | None:
    """The file after --config; its settings are the defaults of the flags, so it is read before them."""
    for word, after in zip(arguments, [*arguments[1:], "--"], strict=False):
        flag, has_value, value = word.partition("=")
        if flag == "--config" and (has_value or not after.startswith("--")):
            return value if has_value else after
    return None


def write_examples(run: Any, target: Path, x: Any, originals: Any = None) -> list[Path]:
    """The numbers as .npy, and a sheet of pictures where they are pictures."""
    import io

    import numpy as np

    from varflow import figures
    from varflow.core.files import make_folder, write_atomically

    make_folder(target.parent)
    numbers = target.with_name(target.name + ".npy")
    blob = io.BytesIO()
    kept = run.preprocessing
    # Rows in the units of the data; pictures as the model sees them, and the sheet as they look.
    raw = x if kept is None or run.picture else kept.invert(x)
    np.save(blob, raw.cpu().numpy())
    write_atomically(numbers, lambda file: file.write(blob.getvalue()))
    if not run.picture:
        return [numbers]

    def shown(values: Any) -> Any:
        return kept.invert(values).reshape(-1, *run.form.event_shape)

    pictures = shown(x)
    sheet = target.with_name(target.name + ".png")
    with figures.style():
        figure, axes = figures.canvas(width=8.0, height=8.0)
        if originals is None:
            figures.image_grid(pictures, axes[0, 0])
        else:
            figures.reconstructions(shown(originals), pictures, axes[0, 0])
        figures.save(figure, sheet)
    return [numbers, sheet]
