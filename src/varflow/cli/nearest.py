"""Find the training rows that are nearest in latent space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from varflow.cli.common import GivenOptions, at_least_one
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Nearest(GivenOptions):
    """The nearest training rows of each row, by the Euclidean distance of the centres of q(z|x)."""

    k: int = 5
    """How many."""
    seed: int = 0
    """Seed of the noise of the preprocessing."""
    out: str | None = None
    """File of the neighbours, .csv, .tsv or .parquet; without it they are printed."""


def main(arguments: list[str]) -> int:
    options = parse(Nearest, arguments)
    at_least_one("k", options.k)
    out = options.table_path(options.out)
    run = options.open()
    given = options.read(run)
    found = run.nearest(given.values, options.k, seed=options.seed, given=options.conditions(given))
    rows = len(found.rows)
    columns: dict[str, Any] = {
        given.heading: [name for name in given.names for _ in range(options.k)],
        "rank": [place for _ in range(rows) for place in range(1, options.k + 1)],
        "neighbour": [neighbour for row in found.rows for neighbour in row],
        "distance": found.distance.flatten(),
    }
    if found.label is not None:
        classes, labels = run.classes, found.label.flatten().tolist()
        columns["label"] = [classes[label] for label in labels] if classes else labels
    options.write(out, columns)
    if out:
        options.say(f"{out}: {options.k} neighbours of {rows} rows")
    options.answer_rows(out, columns, k=options.k, seed=options.seed)
    return 0
