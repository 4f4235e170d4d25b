"""The commands that read a run and draw from it: sample, reconstruct, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varflow.core.errors import SpecError
from varflow.settings.flags import parse


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


def sample(arguments: list[str]) -> int:
    options = parse(Sample, arguments, "run")
    run = open_run(options.run, options.device, data_dir=options.data_dir)
    at_least_one("count", options.count)
    from varflow.core import random

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


def reconstruct(arguments: list[str]) -> int:
    options = parse(Reconstruct, arguments, "run")
    run = open_run(options.run, options.device, data_dir=options.data_dir)
    at_least_one("count", options.count)
    import torch

    from varflow.core import random

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


def report(arguments: list[str]) -> int:
    options = parse(Report, arguments, "run")
    print(open_run(options.run, options.device, data_dir=options.data_dir).report())
    return 0


COMMANDS = {"sample": sample, "reconstruct": reconstruct, "report": report}


def open_run(
    folder: str, device: str = "cpu", threads: int | None = None, data_dir: str | None = None
) -> Any:
    """The run in a folder, its model on the device that is asked for."""
    from varflow.runs.run import load
    from varflow.training.engine import Engine
    from varflow.training.settings import TrainingSettings

    engine = Engine.start(TrainingSettings(device=device, threads=threads))
    run = load(folder, device=engine.device)
    if data_dir is not None:
        run.spec = run.spec.replace(data_dir=data_dir)
    return run


def at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise SpecError(f"{name}: was {value}; use 1 or more")


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

    from varflow.core.files import make_folder, write_atomically

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
    from varflow.core.files import make_folder, write_atomically

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
