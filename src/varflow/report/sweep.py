"""A sweep as files: JSON, Markdown, and one HTML page."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import Any

from varflow.core.files import make_folder, read_metrics, write_json, write_text
from varflow.figures.base import canvas, style
from varflow.figures.curves import overlaid_curves
from varflow.figures.sweeps import progress_of_trials, values_by_setting
from varflow.report.render import Picture, drawn, render

#: Panels in a row.
_ACROSS = 3


def write(sweep: Any, figures: bool = True) -> list[Path]:
    """Write ``sweep.json``, ``sweep.md`` and ``sweep.html`` into the folder of a sweep; return their paths.

    Args:
        sweep: a :class:`varflow.runs.sweep.Sweep`.
        figures: draw how it went, and its value against each setting.

    Raises:
        RunError: a file cannot be written.
    """
    out: Path = sweep.folder
    make_folder(out)
    rows = sweep.rows()
    trials = sweep.ranked()
    links = [None if t.folder is None else os.path.relpath(t.folder, out) for t in trials]
    best = sweep.best
    compared = sweep.comparison
    page = render(
        "sweep.html",
        title=f"Sweep over {sweep.plan.name}",
        lead=f"{sweep.summary()}.",
        best=best.name if best else "",
        test=sweep.test_rows(),
        differences=compared.difference_rows() if compared else [],
        footer=sweep.footer(),
        figures=_figures(sweep) if figures and best else [],
        columns=rows[0],
        rows=[
            {"cells": cells, "best": trial is best, "link": _report(link, out)}
            for cells, trial, link in zip(rows[1:], trials, links, strict=True)
        ],
        space=[(name, _varies(value)) for name, value in sweep.plan.space.items()],
        shared=sweep.shared(),
        command=shlex.join(sweep.plan.command()),
    )
    write_json(out / "sweep.json", sweep.to_dict())
    write_text(out / "sweep.md", sweep.markdown())
    write_text(out / "sweep.html", page)
    return [out / name for name in ("sweep.json", "sweep.md", "sweep.html")]


def _report(link: str | None, out: Path) -> str | None:
    """The page of a trial's own run, where it was drawn."""
    return f"{link}/report.html" if link and (out / link / "report.html").exists() else None


def _varies(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    ends = f"{value['low']:g} … {value['high']:g}"
    return ends + (", in the logarithm" if value.get("log") else "") + (
        f", in steps of {value['step']:g}" if value.get("step") else ""
    )


def _figures(sweep: Any) -> list[Picture]:
    out = []
    valued = [t for t in sweep.trials if t.value is not None and math.isfinite(t.value)]
    ended = [t for t in valued if t.state == "complete"]
    with style():
        figure, axes = canvas(width=7.2, height=3.8)
        numbers, values = [t.number for t in valued], [t.value for t in valued]
        progress_of_trials(numbers, values, [t.state == "complete" for t in valued], axes[0, 0])
        caption = (
            "The validation bound of each trial, nats of x in the units of the data; of a pruned one at its last "
            "validation."
        )
        out.append(drawn(figure, "The sweep", caption))
        names = [name for name in sweep.plan.space if any(name in t.settings for t in ended)]
        if names:
            columns = min(_ACROSS, len(names))
            lines = math.ceil(len(names) / columns)
            figure, axes = canvas(lines, columns, 3.2 * columns, 2.9 * lines)
            panels = axes.flatten()
            for panel, name in zip(panels, names, strict=False):
                axis = sweep.plan.space[name]
                log = isinstance(axis, dict) and bool(axis.get("log"))
                values_by_setting(name, [t.settings for t in ended], [t.value for t in ended], panel, log)
            for panel in panels[:: columns][:lines]:
                panel.set_ylabel("validation bound (nats)")
            for panel in panels[len(names) :]:
                panel.axis("off")
            caption = (
                "The validation bound of the trials that were trained to their end, against each setting that "
                "varies; the best is ringed."
            )
            out.append(drawn(figure, "By setting", caption))
        metrics = {t.name: read_metrics(t.folder) for t in sweep.top if t.folder is not None}
        if any(metrics.values()):
            figure, axes = canvas(width=7.2, height=4.2)
            overlaid_curves(metrics, axes[0, 0])
            caption = "The ELBO on the validation split against the step."
            out.append(drawn(figure, "Learning curves of the best", caption))
    return out
