"""Go from one picture or row to another through latent space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from varflow.cli.common import RunOptions, at_least_one, conditions_of, rows_for, write_examples
from varflow.core.errors import SpecError
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Interpolate(RunOptions):
    """The decoded way between two examples, both ends included: pictures as a PNG sheet, rows as a table."""

    words: ClassVar[tuple[str, ...]] = ("run", "a", "b")

    a: str
    """The first: a picture file, or the number of a row (counted from 0)."""
    b: str
    """The second."""
    data: str | None = None
    """File, folder or named data set whose rows are numbered; without it the test split of the run's own data."""
    steps: int = 10
    """Points on the way."""
    way: Literal["auto", "straight", "sphere", "base"] = "auto"
    """Straight in z, along the sphere, or along the sphere of the base of a flow prior. auto: the base if it can."""
    seed: int = 0
    """Seed of the noise of the preprocessing."""
    given: str | None = None
    """What all points are conditioned on: dose=3,sex=f."""
    out: str | None = None
    """File: .png, .npy, .csv or .parquet; without it RUN/figures/interpolate."""


def main(arguments: list[str]) -> int:
    options = parse(Interpolate, arguments)
    at_least_one("steps", options.steps)
    target = options.target(options.out, "interpolate")
    run = options.open()
    first, second = (_end(options, run, name) for name in ("a", "b"))
    way = None if options.way == "auto" else options.way
    given = conditions_of(options.given)
    path = run.interpolate(first, second, options.steps, way, options.seed, given)
    files = write_examples(run, target, path, columns=options.steps)
    for written in files:
        options.say(written)
    facts = {"run": options.run, "a": options.a, "b": options.b, "steps": options.steps, "way": options.way}
    options.answer(lambda: {**facts, "files": files})
    return 0


def _end(options: Any, run: Any, name: str) -> Any:
    text = getattr(options, name)
    if not text.isdigit():
        return rows_for(run, text, "test").values[0]
    values = rows_for(run, options.data, "test", options.data_dir).values
    if int(text) >= len(values):
        raise SpecError(f"{name}: was {text}; there are {len(values)} rows, use 0 to {len(values) - 1}")
    return values[int(text)]
