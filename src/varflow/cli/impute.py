"""Fill in the missing cells of a table, once or several times."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varflow.cli.common import GivenOptions, at_least_one
from varflow.cli.output import plain
from varflow.core.errors import SpecError
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Impute(GivenOptions):
    """A table with its missing cells filled in: the mean of each given the cells that are there, in the units of the
    table, or its most probable value. What was there stays as it is written. Of a run with likelihood=columns.
    """

    samples: int = 1000
    """Importance samples for each row."""
    draws: int = 0
    """Write so many tables drawn given the cells that are there instead, FILE-1, FILE-2, ...: multiple
    imputations."""
    rounded: bool = True
    """Means of counts and of columns on a grid as the nearest value that the column has."""
    spread: str | None = None
    """File of a table with the spread of each cell that was filled in, and the effective sample size and Pareto k̂ of
    each row."""
    memory: float = 1.0
    """Bound on working memory, GiB."""
    seed: int = 0
    """Seed of the samples."""
    out: str | None = None
    """File of the filled table, .csv, .tsv, .parquet or .npy; without it the table is printed."""


def main(arguments: list[str]) -> int:
    options = parse(Impute, arguments)
    at_least_one("samples", options.samples)
    if options.draws < 0:
        raise SpecError(f"draws: was {options.draws}; use 0 or more")
    if options.draws and options.out is None:
        raise SpecError(f"out: missing; give --out FILE, {options.draws} tables are written beside each other")
    out, spread = options.table_path(options.out), options.table_path(options.spread)
    run = options.open()
    from varflow.runs.impute import imputations

    given = options.read(run)
    with options.progress("rows") as progress:
        found = imputations(
            run,
            given.values,
            options.samples,
            options.draws,
            options.conditions(given),
            options.seed,
            options.rounded,
            int(options.memory * 2**30),
            progress,
        )
    written: str | Path | None = out
    if options.draws and out is not None:
        paths = [out.with_name(f"{out.stem}-{number + 1}{out.suffix}") for number in range(options.draws)]
        files = paths
        for path, values in zip(paths, found.draws, strict=True):
            _write(options, run, path, values, found.missing)
        written = f"{paths[0]} ... {paths[-1].name}"
    else:
        if out is not None or not options.json:
            _write(options, run, out, found.values, found.missing)
        files = [] if out is None else [out]
    if spread is not None:
        names = [column.name for column in run.preprocessing.columns]
        options.write(spread, {given.heading: given.names, **_spread(names, found)})
        files = [*files, spread]
    options.summarize(written, found.summary())
    facts = {"run": options.run, "seed": options.seed, "files": files}
    options.answer(lambda: {**facts, **_facts(run, given.names, found)})
    return 0


def _facts(run: Any, names: Any, found: Any) -> dict[str, Any]:
    """How many cells were filled in, how far the weights can be trusted, and what each cell was filled in with."""
    from varflow.runs.impute import filling

    rows = found.missing.any(1)
    columns = {
        name: plain(cells) for name, (_, cells) in filling(run.preprocessing, found.values, found.missing).items()
    }
    each = []
    for row in rows.nonzero()[:, 0].tolist():
        gone = [(place, name) for place, name in enumerate(columns) if found.missing[row, place]]
        cells = {
            name: {"value": columns[name][row], "spread": float(found.spread[row, place])} for place, name in gone
        }
        each.append({"row": names[row], "ess": found.ess[row], "khat": found.khat[row], "cells": cells})
    ess = {"median": found.ess[rows].median(), "least": found.ess[rows].min()} if each else None
    return {
        "samples": found.samples, "cells": int(found.missing.sum()), "ess": ess, "unreliable": found.unreliable,
        "rows": each,
    }  # fmt: skip


def _write(options: Impute, run: Any, out: Path | None, values: Any, missing: Any) -> None:
    """The table with values in its missing cells; that of a file with all that it held."""
    from varflow.core.files import make_folder, write_text
    from varflow.data import reading
    from varflow.data.filling import fill_frame, fill_text
    from varflow.data.writing import arrow_columns, write_arrow
    from varflow.runs.impute import filling

    kept = run.preprocessing
    path = None if options.data is None else Path(options.data).expanduser()
    suffix = "" if out is None else out.suffix.lower()
    if path is None or suffix == ".npy" or not (reading.is_table(path) and path.is_file()):
        columns = {name: cells for name, (_, cells) in filling(kept, values, missing).items()}
        options.write(out, columns, values.numpy())
    elif reading.is_text(path) and suffix in ("", ".csv", ".tsv"):
        mark = reading.read_table(path, run.spec.get("decimal", "auto"), before=run.decimal).decimal
        delimiter = "\t" if suffix == ".tsv" else ""
        text = fill_text(path, kept.columns, values.numpy(), missing.numpy(), mark, delimiter)
        if out is None:
            sys.stdout.write(text)
        else:
            make_folder(out.parent)
            write_text(out, text)
    elif reading.is_text(path):
        columns = {name: cells for name, (_, cells) in filling(kept, values, missing).items()}
        options.write(out, columns)
    else:
        whole = fill_frame(reading.arrow_of(path), filling(kept, values, missing))
        if out is None:
            options.write(None, arrow_columns(whole))
        else:
            write_arrow(out, whole)


def _spread(names: list[str], found: Any) -> dict[str, Any]:
    """Effective sample size and k̂ of each row, and the spread of each of its cells; empty where it was there."""
    import numpy as np

    each = {
        f"{name} spread": np.ma.MaskedArray(cells.nan_to_num(0.0).numpy(), ~gone.numpy())
        for name, cells, gone in zip(names, found.spread.T, found.missing.T, strict=True)
    }
    return {"ess": found.ess.numpy(), "khat": found.khat.numpy(), **each}
