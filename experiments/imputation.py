"""Removed cells of tables: `fit table-missing` as it comes beside simpler methods, on the same rows and cells.

    python -m experiments.imputation fit                     (an hour and a half; goes on where it was stopped)
    python -m experiments.imputation fit iris wine --shares 0.3 --seeds 0 1
    python -m experiments.imputation table                   (prints the tables of docs/tables.md)
    python -m experiments.imputation table --into docs/tables.md

wine, breast_cancer, diabetes and iris of scikit-learn (their measurements, without the class), and two tables made
here with dates, counts, categories and skewed numbers. For each seed the rows are split at random, 70 % to train,
10 % to validate, 20 % to test; of all three 10, 30 or 50 % of the cells are removed at random, and those of the test
rows are predicted from the rest of their rows. Every method is fitted to the same training rows with their missing
cells. Errors are over the test rows of all seeds together, differences of the same rows and cells. Needs
scikit-learn and pandas: pip install 'varflow[sklearn]' pandas.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn import datasets

import varflow as vf
from varflow.core.files import write_json, write_text
from varflow.evaluation.removed import Loss, losses, of_model, remove
from varflow.evaluation.table_baselines import BASELINES, predictions

SHARES, SEEDS = (0.1, 0.3, 0.5), (0, 1, 2, 3, 4)
#: What is kept of each case.
KEPT = ("removed_rmse", "removed_accuracy", "removed_nll", "removed_nll_continuous")
METHODS = {"varflow": "varflow", **dict.fromkeys(BASELINES, "")}
NAMES = {
    "varflow": "varflow", "independent": "column alone", "mixture": "mixture", "knn": "KNN", "iterative": "iterative",
    "boosting": "boosting",
}  # fmt: skip


def of_sklearn(name: str, **settings: bool) -> Callable[[], pd.DataFrame]:
    return lambda: getattr(datasets, f"load_{name}")(as_frame=True, **settings).data


def clinic() -> pd.DataFrame:
    """Patients: one severity behind counts, doses, pay, dates and categories, linear but for the links."""
    g = np.random.default_rng(11)
    n = 1000
    severity, wealth = g.standard_normal(n), g.standard_normal(n)
    day = np.round(400 + 120 * severity + 30 * g.standard_normal(n)).astype(int)
    size = np.clip(np.digitize(severity + 0.5 * g.standard_normal(n), [-0.7, 0.7]), 0, 2)
    town = (np.stack([wealth, 0.5 * severity, -wealth], 1) * 1.5 + g.gumbel(size=(n, 3))).argmax(1)
    return pd.DataFrame(
        {
            "age": g.poisson(np.exp(3.6 + 0.25 * severity)),
            "visits": g.negative_binomial(3, 3 / (3 + np.exp(0.5 + 0.8 * severity))),
            "dose": np.round(5 + 2 * severity + 0.6 * g.standard_normal(n), 2),
            "pressure": 120 + 12 * severity - 5 * wealth + 6 * g.standard_normal(n),
            "pay": np.exp(8 + 0.7 * wealth + 0.2 * g.standard_normal(n)),
            "since": pd.Timestamp("2019-06-01") + pd.to_timedelta(day, unit="D"),
            "insured": np.where(wealth + 0.7 * g.standard_normal(n) > 0, "yes", "no"),
            "size": np.array(["small", "medium", "large"])[size],
            "town": np.array(["Bergen", "Oslo", "Tromso"])[town],
        }
    )


def shop() -> pd.DataFrame:
    """Orders: a product decides price, weight and quantity, nothing is linear, some of it waves with the season."""
    g = np.random.default_rng(12)
    n = 1500
    product = g.choice(5, n, p=[0.35, 0.25, 0.2, 0.15, 0.05])
    day = g.integers(0, 730, n)
    season = np.sin(2 * np.pi * day / 365.25)
    quantity = 1 + g.poisson(np.array([0.5, 2, 6, 1, 12])[product] * np.exp(0.5 * season))
    each = np.array([90.0, 25, 4, 220, 1.5])[product] * np.exp(0.15 * g.standard_normal(n))
    weight = np.array([2.0, 0.4, 0.1, 9, 0.02])[product] * quantity * np.exp(0.1 * g.standard_normal(n))
    express = g.random(n) < 1 / (1 + np.exp(-(2 - np.abs(weight - 6))))
    temperature = 10 - 12 * np.cos(2 * np.pi * day / 365.25) + 3 * g.standard_t(4, n)
    liked = 4.6 - 1.2 * (weight > 8) - 0.8 * express + 0.7 * g.standard_normal(n)
    return pd.DataFrame(
        {
            "product": np.array(["lamp", "book", "candle", "chair", "card"])[product],
            "day": pd.Timestamp("2022-01-01") + pd.to_timedelta(day, unit="D"),
            "quantity": quantity,
            "paid": np.round(each * quantity * np.where(quantity > 5, 0.9, 1.0), 2),
            "weight": weight,
            "express": np.where(express, "yes", "no"),
            "temperature": temperature,
            "stars": np.clip(np.round(liked), 1, 5).astype(int),
        }
    )


#: name → the whole table, and kinds that are set by hand.
DATA: dict[str, tuple[Callable[[], pd.DataFrame], tuple[str, ...]]] = {
    "iris": (of_sklearn("iris"), ()),
    "wine": (of_sklearn("wine"), ()),
    "diabetes": (of_sklearn("diabetes", scaled=False), ()),
    "breast_cancer": (of_sklearn("breast_cancer"), ()),
    "clinic": (clinic, ("size:ordinal=small|medium|large",)),
    "shop": (shop, ("stars:ordinal=1|2|3|4|5",)),
}


def case(name: str, share: float, seed: int) -> dict[str, Any]:
    """Losses of the test rows under each method."""
    make, said = DATA[name]
    frame = make()
    frame.columns = [re.sub(r"[^A-Za-z0-9]+", "_", str(head)) for head in frame.columns]
    # The kinds are those of the whole table, as one would know them.
    found = vf.data.from_tensor(frame, protocol="columns", column=said).column_kinds
    known = {text.partition(":")[0] for text in said}
    column = (*said, *(f"{c.name}:{c.kind}" for c in found if c.name not in known))
    frame = frame[[c.name for c in found]]
    g = np.random.default_rng((seed, round(100 * share)))
    order, rows = g.permutation(len(frame)), len(frame)
    train, validation, test = np.split(order, [round(0.7 * rows), round(0.8 * rows)])
    parts = {}
    for split, chosen in {"train": train, "validation": validation, "test": test}.items():
        part = frame.iloc[chosen].reset_index(drop=True)
        # The test rows lose theirs later, so that what was there is known.
        parts[split] = part if split == "test" else part.mask(g.random(part.shape) < share)
    begun = time.perf_counter()
    run = vf.fit("table-missing", parts, column=column, seed=seed, threads=1, quiet=True)
    seconds = time.perf_counter() - begun
    table = remove(run.dataset, "test", share, seed)
    methods: dict[str, Any] = {"varflow": of_model(run.model, table, 1000, seed)}
    for baseline in BASELINES:
        methods[baseline] = predictions(baseline, run.dataset, table, seed)
    kept = {
        method: {
            quantity: {"total": loss.total.tolist(), "cells": loss.cells.tolist()}
            for quantity, loss in losses(table, one).items()
            if quantity in KEPT or quantity.startswith("coverage")
        }
        for method, one in methods.items()
    }
    khat = float((methods["varflow"].khat > 0.7).double().mean())
    about = {"rows": rows, "columns": len(found), "steps": run.outcome["step"], "seconds": seconds, "khat": khat}
    return {**about, "losses": kept}


def fit(options: argparse.Namespace) -> None:
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.data or DATA:
            for share in options.shares:
                path = folder / f"{name}-{share:g}-{seed}.json"
                if path.exists():
                    continue
                begun = time.perf_counter()
                write_json(path, case(name, share, seed))
                print(f"{path}: {time.perf_counter() - begun:.0f} s", flush=True)


def joined(cases: list[dict[str, Any]], method: str, quantity: str) -> Loss | None:
    """A loss over the rows of all seeds."""
    parts = [one["losses"].get(method, {}).get(quantity) for one in cases]
    if any(part is None for part in parts):
        return None
    total, cells = (
        torch.tensor([v for part in parts for v in part[key]], dtype=torch.float64) for key in ("total", "cells")
    )
    return Loss(total, cells, root=quantity == "removed_rmse")


def tables(folder: Path) -> str:
    """What was run, as tables."""
    held: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for name in DATA:
        for share in SHARES:
            found = [folder / f"{name}-{share:g}-{seed}.json" for seed in SEEDS]
            cases = [json.loads(path.read_text()) for path in found if path.exists()]
            if cases:
                held[name, share] = cases
    texts = [
        (
            "removed_rmse",
            "Root mean square error of removed numbers, each over the standard deviation of its column in training; "
            "lower is better",
        ),
        ("removed_accuracy", "Share of removed named values that are right; higher is better"),
        ("removed_nll", "−log p of the removed cells of a row given the rest, nats in the units of the table"),
        ("removed_nll_continuous", "The same of the continuous cells alone"),
    ]
    out = []
    for quantity, title in texts:
        methods = [m for m in METHODS if any(joined(c, m, quantity) is not None for c in held.values())]
        heads = ["data", "removed", "seeds", *(NAMES[m] for m in methods), "varflow less the best other"]
        lines = [f"{title}.", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        better, worse, rows = 0, 0, 0
        for (name, share), cases in held.items():
            found = {m: joined(cases, m, quantity) for m in methods}
            ours = found["varflow"]
            others = {m: loss for m, loss in found.items() if loss is not None and m != "varflow"}
            if ours is None or not others:
                continue
            sign = -1 if quantity == "removed_accuracy" else 1
            best = min(others, key=lambda m: sign * others[m].value)
            gap, error = ours.less(others[best])
            rows += 1
            better += sign * gap < -2 * error
            worse += sign * gap > 2 * error
            cells = [_shown(found[m], bold=m == min(
                [m for m in methods if found[m] is not None], key=lambda m: sign * found[m].value  # type: ignore[union-attr]
            )) for m in methods]  # fmt: skip
            digits = _digits(error)
            lines.append(
                f"| {name} | {share:.0%} | {len(cases)} | {' | '.join(cells)} | {gap:+.{digits}f} ± "
                f"{error:.{digits}f} ({NAMES[best]}) |"
            )
        said = f"Against the best other method varflow is better in {better} of {rows} lines and worse in {worse}"
        lines += ["", f"{said}, by more than two errors."]
        out.append("\n".join(lines))
    coverage = ["Share of removed numbers inside of the model's central intervals.", ""]
    widths = ("50", "80", "90", "95")
    coverage += [f"| data | removed | {' | '.join(f'{w} %' for w in widths)} | k̂ > 0.7 | updates | s a fit |",
                 "|" + "---|" * 9]  # fmt: skip
    for (name, share), cases in held.items():
        each = [_shown(joined(cases, "varflow", f"coverage_{w}")) for w in widths]
        khat, steps, seconds = (float(np.mean([one[key] for one in cases])) for key in ("khat", "steps", "seconds"))
        coverage.append(f"| {name} | {share:.0%} | {' | '.join(each)} | {khat:.1%} | {steps:,.0f} | {seconds:.0f} |")
    return "\n\n".join([*out, "\n".join(coverage)])


def _digits(error: float) -> int:
    return int(np.clip(1 - np.floor(np.log10(max(error, 1e-6))), 0, 4))


def _shown(loss: Loss | None, bold: bool = False) -> str:
    if loss is None:
        return "–"
    digits = _digits(loss.error)
    text = f"{loss.value:.{digits}f} ± {loss.error:.{digits}f}"
    return f"**{text}**" if bold else text


def table(options: argparse.Namespace) -> None:
    text = tables(Path(options.out))
    if options.into is None:
        print(text)
        return
    path, begin, end = Path(options.into), "<!-- experiments/imputation.py table -->", "<!-- until here -->"
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    write_text(path, f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
    print(f"{path}: written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for verb, run in (("fit", fit), ("table", table)):
        own = verbs.add_parser(verb)
        own.set_defaults(run=run)
        own.add_argument("--out", default="runs/imputation")
        if verb == "fit":
            own.add_argument("data", nargs="*", help=", ".join(DATA))
            own.add_argument("--shares", type=float, nargs="+", default=SHARES)
            own.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
        else:
            own.add_argument("--into", help="a Markdown file whose table is replaced")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    options.run(options)


if __name__ == "__main__":
    main()
