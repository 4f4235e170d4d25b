"""Score new rows or pictures: log p(x) of each, with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from varflow.cli.common import GivenOptions, at_least_one
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Score(GivenOptions):
    """log p(x) of each row in nats, of x in the units of the data: exact for a density, else by importance sampling,
    with its Monte-Carlo error and Pareto k̂.
    """

    samples: int | None = None
    """Importance samples for each row, where log p(x) is not exact; without it 100."""
    anomaly: bool = False
    """Add the share of training rows that are at most as likely as the row: 0 is less likely than all of them."""
    training_rows: int | None = None
    """Score so many training rows for these ranks now, and keep them in the run: the data must be at hand."""
    memory: float = 1.0
    """Bound on working memory, GiB."""
    seed: int = 0
    """Seed of the samples, and of the noise of the preprocessing."""
    out: str | None = None
    """File of the scores, .csv, .tsv, .parquet or .npy; without it they are printed."""


def main(arguments: list[str]) -> int:
    options = parse(Score, arguments)
    if options.samples is not None:
        at_least_one("samples", options.samples)
    out = options.table_path(options.out)
    if options.training_rows is not None:
        at_least_one("training_rows", options.training_rows)
    run = options.open()
    given = options.read(run)
    with options.progress("rows") as progress:
        found = run.scores(
            given.values,
            options.samples,
            options.seed,
            int(options.memory * 2**30),
            options.anomaly,
            options.training_rows,
            progress,
            options.conditions(given),
        )
    columns: dict[str, Any] = {given.heading: given.names, **found.columns()}
    options.write(out, columns)
    mean = float(found.log_prob.mean())
    message = f"{len(found.log_prob)} rows, mean log p(x) {mean:.4g} nats ({found.scored})"
    if found.training_rows:
        message += f"; ranks among {found.training_rows} training rows"
        if found.training_rows < 100:
            message += ", where --training-rows 500 would score more"
    weak = int((found.khat > 0.7).sum())
    if weak:
        message += f"; k̂ above 0.7 in {weak} of them, whose values are too low: use more samples"
    options.summarize(out, message)
    facts = {
        "units": {"log_prob": "nats", "error": "nats"}, "scored": found.scored, "samples": found.samples,
        "seed": options.seed, "training_rows": found.training_rows, "mean": _mean(found), "unreliable": weak,
    }  # fmt: skip
    options.answer_rows(out, columns, **facts)
    return 0


def _mean(found: Any) -> dict[str, Any]:
    """The mean over the rows with its two errors, as estimates have them."""
    rows = len(found.log_prob)
    return {
        "value": float(found.log_prob.mean()),
        "standard_error": float(found.log_prob.std()) / math.sqrt(rows) if rows > 1 else None,
        "monte_carlo_error": float(found.error.square().sum().sqrt()) / rows,
        "points": rows,
        "unit": "nats",
    }
