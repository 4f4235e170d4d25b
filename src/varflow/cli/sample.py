"""Draw pictures or rows from a run's model, in the units of its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varflow.cli.common import (
    RunOptions,
    at_least_one,
    conditions_of,
    named_columns,
    write_examples,
    write_pictures,
)
from varflow.cli.output import records
from varflow.core.errors import SpecError
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Sample(RunOptions):
    """Draw from p(x): rows as a table with the heads of the data, pictures as a PNG sheet or single files, and all
    numbers as .npy. Of a fit to a target: z from q(z).
    """

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
    given: str | None = None
    """What all draws are conditioned on: dose=3,sex=f."""
    seed: int = 0
    """Seed of the draws."""
    out: str | None = None
    """File, .png, .npy, .csv, .tsv or .parquet; without a suffix all that apply. Without it RUN/figures/sample."""
    pictures: str | None = None
    """Folder for single pictures, each a PNG file."""


def main(arguments: list[str]) -> int:
    options = parse(Sample, arguments)
    at_least_one("count", options.count)
    # Codes go beside single pictures where nothing else is asked for.
    aside = None if options.pictures is None else str(Path(options.pictures) / "sample")
    target = options.target(options.out or aside, "sample")
    run = options.open()
    from varflow.core import random

    if run.infers_target and options.mean:
        raise SpecError("mean: a target has no likelihood to take the mean of; leave it out")
    coded: list[Path] = []
    chosen = {n: getattr(options, n) for n in ("temperature", "top_k", "label")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if options.pictures is not None and not run.picture:
        raise SpecError("pictures: this run was fitted to rows, which are no pictures; leave it out")
    if not run.infers_target and run.model.posterior.discrete:
        with options.progress("positions") as progress, random.stream(options.seed):
            x, written = _coded(run, options.count, options.mean, chosen, target, progress)
        options.say(written)
        coded = [written]
    else:
        _no_codes(chosen)
        x = run.sample(options.count, options.seed, options.mean, True, conditions_of(options.given))
    files: list[Path] = []
    if options.pictures is not None:
        files = write_pictures(Path(options.pictures), x, run.preprocessing.top)
        options.say(f"{options.pictures}: {len(files)} pictures")
    if options.pictures is None or options.out:
        for path in write_examples(run, target, x):
            options.say(path)
            files.append(path)
    options.answer(lambda: _document(options, run, x, files + coded))
    return 0


def _document(options: Sample, run: Any, x: Any, files: list[Path]) -> dict[str, Any]:
    """The draws, rows by the names of their columns; pictures are in their files."""
    rows: Any = None
    if not run.picture:
        rows = records(named_columns(run, x)) if x.ndim == 2 else x
    facts = {"run": options.run, "count": options.count, "seed": options.seed, "mean": options.mean}
    return {**facts, "shape": x.shape, "files": files, "rows": rows}


def _no_codes(chosen: dict[str, Any]) -> None:
    for name, value in chosen.items():
        raise SpecError(f"{name}: was {value}; it is for priors over codes, and this run has none")


def _coded(
    run: Any, count: int, mean: bool, chosen: dict[str, Any], target: Path, progress: Any
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
        z, log_prob = prior.sample_and_log_prob((count,), **options, progress=progress)
    drawn = run.model.decode(z, mean)
    x = run.preprocessing.stored_means(drawn) if mean else run.preprocessing.stored_values(drawn)
    make_folder(target.parent)
    path = target.with_name(target.name + "-codes.npz")
    blob = io.BytesIO()
    np.savez(blob, codes=z.cpu().numpy(), log_prob=log_prob.cpu().numpy())
    write_atomically(path, lambda file: file.write(blob.getvalue()))
    return x, path
