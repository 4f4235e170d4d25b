"""Compare several posteriors on the embedded digits, in a few minutes."""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varflow.settings import recipes
from varflow.settings.flags import parse

if TYPE_CHECKING:
    from varflow import evaluation

_POSTERIORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("planar, static", {"flow": "planar"}),
    ("planar, amortized", {"flow": "planar", "amortized": True}),
    ("Householder, amortized", {"flow": "householder", "amortized": True}),
    ("IAF, amortized", {"flow": "iaf", "amortized": True, "length": 4}),
    ("none, 2-D latent", {"latent": 2}),
    ("planar, amortized, 2-D latent", {"latent": 2, "flow": "planar", "amortized": True}),
)


@dataclass(frozen=True)
class Demo:
    """Several posteriors compared on the embedded digits: table, figures, report."""

    out: str = "demo"
    """Folder for the runs and the pictures."""
    epochs: float = 200.0
    """Budget of each fit."""
    seed: int = 0
    """Seed of every fit."""


def main(arguments: list[str]) -> int:
    options = parse(Demo, arguments)
    from varflow.core import ranks

    ranks.stay_alone()
    demo(Path(options.out), options.epochs, options.seed)
    return 0


def demo(out: Path, epochs: float = 200.0, seed: int = 0) -> None:
    """Fit, evaluate and report each posterior; print one table and where the pictures are."""
    from rich.console import Console
    from rich.table import Table

    from varflow import evaluation
    from varflow.core.files import make_folder, write_text
    from varflow.runs import fitting

    console = Console(width=110)
    make_folder(out)
    spec = recipes.find("digits").spec.replace(epochs=epochs, seed=seed)
    rows: list[tuple[str, Path, evaluation.Evaluation, float]] = []
    baseline: dict[int, evaluation.Evaluation] = {}
    for title, settings in _POSTERIORS:
        began = time.perf_counter()
        chosen = spec.replace(**settings)
        name = title.replace(", ", "-").replace(" ", "-").lower()
        console.print(f"fitting: {title}", highlight=False)
        run = fitting.fit(chosen, out=out / name, overwrite=True, quiet=True, recipe="digits")
        result = run.evaluate(samples=500)
        run.report()
        baseline.setdefault(chosen.posterior.latent, result)
        rows.append((title, out / name, result, time.perf_counter() - began))
    columns, cells = [], []
    for title, _, result, seconds in rows:
        latent = recipes.find("digits").spec.posterior.latent if "2-D" not in title else 2
        reference = baseline[latent]
        difference = (
            "" if result is reference else _value(evaluation.paired(result, reference, "log_px"))
        )
        cells.append(
            [
                title,
                _value(result.estimates["elbo"]),
                _value(result.estimates["nll"]),
                difference,
                f"{result.estimates['active_units'].value:.0f}/{latent}",
                f"{seconds:.0f}",
            ]
        )
    columns = ["posterior", "ELBO", "NLL", "log p(x) − none", "active units", "seconds"]
    table = Table(
        *columns,
        title=f"digits, dynamic, 250 test digits, {epochs:g} epochs, seed {seed}; nats, ± standard error",
    )
    for row in cells:
        table.add_row(*row)
    console.print(table)
    index = out / "index.html"
    write_text(
        index, _index(columns, cells, [path.name for _, path, _, _ in rows], str(table.title))
    )
    console.print(f"reports and pictures: {index.resolve()}", highlight=False, soft_wrap=True)


def _value(estimate: evaluation.Estimate) -> str:
    return estimate.figures()


def _index(columns: list[str], cells: list[list[str]], folders: list[str], title: str) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>"
        + f'<td><a href="{html.escape(folder)}/report.html">{html.escape(row[0])}</a></td>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row, folder in zip(cells, folders, strict=True)
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>varflow demo</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:left}</style>"
        f"<h1>Posteriors on the embedded digits</h1><p>{html.escape(title)}</p>"
        f"<table><tr>{head}</tr>{body}</table>"
    )
