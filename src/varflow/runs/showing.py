"""What a notebook shows of a run: its data, parts and fit, what is known of its likelihood, and its curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from varflow.core import display
from varflow.core.files import read_json
from varflow.data.columns import Columns
from varflow.data.dataset import Dataset
from varflow.data.kinds import HEADS, overview
from varflow.runs.folder import DATA, read_about
from varflow.settings.spec import RunSpec

if TYPE_CHECKING:
    from varflow.runs.run import Run


def html(run: Run) -> str:
    """The run as HTML."""
    about = {} if run.folder is None else read_about(run.folder)
    title = f"Run in {run.origin or run.folder}" if run.folder else "Run in memory"
    recipe = f"recipe {about['recipe']}" if about.get("recipe") else ""
    changed = run.spec.changes(RunSpec())
    own = f"Given in Python: {', '.join(about['own_parts'])}." if about.get("own_parts") else ""
    return display.block(
        display.heading(title, recipe),
        display.facts({**_data(run), **_parts(run), **_fit(run)}),
        _estimates(run),
        display.curves(_curves(run.metrics), "ELBO, nats"),
        _columns(run),
        display.folded("Settings that differ from the defaults", display.facts(changed), display.note(own))
        if changed
        else "",
    )


def _data(run: Run) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if isinstance(run._dataset, Dataset):
        told = run._dataset.describe()
    elif run.folder is not None and (run.folder / DATA).exists():
        told = read_json(run.folder / DATA)
    if run.infers_target:
        return {"target": told.get("name") or type(run.members()[0].prior).__name__}
    shape = "×".join(map(str, run.form.event_shape))
    found = {"data": ", ".join(filter(None, [told.get("name"), told.get("protocol"), f"of shape {shape}"]))}
    if told.get("sizes"):
        sizes = ", ".join(f"{size:,} {split}" for split, size in told["sizes"].items())
        found["rows"] = sizes
    if run.conditions is not None:
        found["conditioned on"] = ", ".join(run.conditions.names)
    return found


def _parts(run: Run) -> dict[str, Any]:
    model: Any = run.members()[0]
    parts = {
        "target p(z)" if run.infers_target else "prior p(z)": model.prior,
        "likelihood p(x|z)": model.likelihood,
        "posterior": model.posterior,
        "its flow": getattr(model.posterior, "flow", None),
    }
    if model.posterior.observed:
        # Of a density the one part is p(x).
        parts = {"density p(x)": model.prior, "its flow": getattr(model.prior, "flow", None)}
    found: dict[str, Any] = {role: _said(part) for role, part in parts.items() if part is not None}
    count = sum(parameter.numel() for parameter in run.model.parameters())
    found["parameters"] = f"{count:,}"
    if run.model.fits > 1:
        found["fits"] = f"{run.model.fits}, trained together"
    return found


def _said(part: Any) -> str:
    settings = " ".join(part.extra_repr().split())
    return f"{type(part).__name__}({settings})" if settings else type(part).__name__


def _fit(run: Run) -> dict[str, Any]:
    ended = run.outcome
    if not ended:
        return {}
    found = {"fit": f"{ended.get('step', 0):,} updates; {ended.get('reason', '')}".removesuffix("; ")}
    scored = [row for row in run.metrics if row.get("split") == "validation" and isinstance(row.get("elbo"), float)]
    if scored:
        best = max(scored, key=lambda row: row["elbo"])
        found["validation ELBO, best"] = (
            f"{best['elbo']:.2f} nats at step {best['step']:,} (one draw for each example, no error bar)"
        )
    return found


def _columns(run: Run) -> str:
    """What each column of a table was read as, or why it was left out."""
    kept = run.preprocessing
    if not isinstance(kept, Columns):
        return ""
    words = range(len(HEADS) - 1)
    rows = overview(kept.columns, kept.dropped)
    return display.folded("What the columns were read as", display.table(HEADS, rows, words))


def _estimates(run: Run) -> str:
    from varflow.evaluation.evaluation import Evaluation, outdated
    from varflow.report.names import HEADLINES, name_of

    kind = "target" if run.infers_target else "test"
    path = None if run.folder is None else run.folder / "evaluation" / f"{kind}.json"
    if run.folder is None or path is None or not path.exists():
        return display.note("Not evaluated: run.evaluate() estimates its likelihood, with errors.")
    if outdated(run.folder, read_json(path)):
        return display.note("The run has gone on since it was evaluated; run.evaluate() does it again.")
    if not path.with_suffix(".npz").exists():
        return ""
    heads, *rows = Evaluation.load(run.folder, kind).rows()
    shown = [(name_of(name), *cells) for name, *cells in rows if name in HEADLINES]
    return display.table((f"{kind} split" if kind == "test" else kind, *heads[1:]), shown, words=(0, 2))


def _curves(records: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """The ELBO of both splits; the mean over fits where there are several."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in records:
        if "step" in row and "elbo" in row and row.get("split") in ("train", "validation"):
            steps, values = found.setdefault({"train": "training"}.get(row["split"], row["split"]), ([], []))
            steps.append(float(row["step"]))
            values.append(float(np.mean(row["elbo"])))
    return found
