"""A comparison as files: Markdown, CSV, and one HTML page with the figures of all runs side by side."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from varflow.core.files import make_folder, read_json, read_metrics, write_text
from varflow.evaluation.estimate import Estimate
from varflow.evaluation.evaluation import Evaluation
from varflow.figures.base import Array, canvas, style
from varflow.figures.curves import bound_by_samples, overlaid_curves
from varflow.figures.pictures import image_grid
from varflow.report.forest import forests
from varflow.report.render import Picture, drawn, flat, plain, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Panels in a row.
_ACROSS = 3


class Sheet(NamedTuple):
    """Pictures of all runs: a panel each, by name."""

    title: str
    caption: str
    panels: Mapping[str, Array]


def write(
    comparison: Any, out: Path, figures: bool = True, sheets: Sequence[Sheet] = ()
) -> list[Path]:
    """Write ``comparison.md``, ``comparison.csv`` and ``comparison.html``; return their paths.

    Each appears whole or not at all. The page needs nothing else: pictures are inside.

    Args:
        comparison: a :class:`varflow.runs.comparison.Comparison`.
        out: the folder.
        figures: draw the learning curves, the bounds and the sheets.
        sheets: pictures that the runs' models made.

    Raises:
        RunError: a file of a run cannot be read, or one of the three cannot be written.
    """
    make_folder(out)
    names, folders = comparison.names, comparison.folders
    page = render(
        "comparison.html",
        title=f"{len(names)} runs compared",
        lead=f"Protocol of the data: {comparison.protocol}.",
        names=names,
        forests=_forests(comparison),
        rows=_with_units(comparison.rows(), comparison.estimates),
        differences=_with_units(comparison.difference_rows(), comparison.differences),
        notes=comparison.notes,
        figures=_figures(comparison, sheets) if figures else [],
        settings=_settings(folders),
        command=shlex.join(["varflow", "compare", *map(str, folders)]),
    )
    texts = {
        "comparison.md": comparison.markdown(),
        "comparison.csv": comparison.csv(),
        "comparison.html": page,
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def _forests(comparison: Any) -> list[Any]:
    """The paired differences as plots; their words are those of the table."""
    heads, *rows = comparison.difference_rows()
    quantities = list(comparison.differences[0])
    words = {
        (row[0], quantity): cell for row in rows for quantity, cell in zip(quantities, row[1:], strict=True)
    }
    titles = dict(zip(quantities, heads[1:], strict=True))
    return forests(comparison.names[0], comparison.names[1:], comparison.differences, titles, words)


def _with_units(rows: list[list[str]], found: Sequence[Mapping[str, Estimate]]) -> list[list[str]]:
    """The table of a comparison, its heading with the unit of each column where all runs share it."""
    units = [{estimates[name].unit for estimates in found} for name in found[0]]
    named = [
        f"{title} ({unit.pop()})" if len(unit) == 1 and unit != {""} and unit != {title} else title
        for title, unit in zip(rows[0][1:], units, strict=True)
    ]
    return [["run", *named], *rows[1:]]


def _figures(comparison: Any, sheets: Sequence[Sheet]) -> list[Picture]:
    names, out = comparison.names, []
    with style():
        metrics = dict(zip(names, map(read_metrics, comparison.folders), strict=True))
        if any("elbo" in row for rows in metrics.values() for row in rows):
            figure, axes = canvas(width=7.2, height=4.2)
            overlaid_curves(metrics, axes[0, 0])
            caption = "The ELBO on the validation split against the step, of the training steps where there is none."
            out.append(drawn(figure, "Learning curves", caption))
        if comparison.curves:
            figure, axes = canvas(width=7.2, height=4.2)
            bound_by_samples(dict(zip(names, map(_curve, comparison.curves), strict=True)), axes[0, 0])  # fmt: skip
            caption = "Bars: Monte-Carlo errors. At k = 1 the ELBO; the limit is log p(x), whatever q(z|x) is."
            out.append(drawn(figure, "The bound against the number of samples", caption))
        out += [drawn(_panels(sheet.panels), sheet.title, sheet.caption) for sheet in sheets]
    return out


def _panels(pictures: Mapping[str, Array]) -> Figure:
    columns = min(_ACROSS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure, axes = canvas(rows, columns, 3.2 * columns, 3.5 * rows)
    panels = axes.flatten()
    for panel, (name, images) in zip(panels, pictures.items(), strict=False):
        image_grid(images, panel).set_title(name, fontsize=9)
    for panel in panels[len(pictures) :]:
        panel.axis("off")
    return figure


def _curve(found: Evaluation) -> tuple[list[float], list[float], list[float]]:
    estimates = [
        (float(name.partition("_")[2]), e.value, e.monte_carlo_error)
        for name, e in found.estimates.items()
    ]
    counts, values, errors = zip(*estimates, strict=True)
    return list(counts), list(values), [math.nan if e is None else e for e in errors]


def _settings(folders: Sequence[Path]) -> list[list[str]]:
    """The settings in which the runs differ, and how each fit ended."""
    specs = [
        {name: value for name, value in flat(read_json(folder / "spec.json")) if "." in name}
        for folder in folders
    ]
    names = list(dict.fromkeys(name for spec in specs for name in spec))
    rows = [
        [name.replace(".", ": ", 1), *(plain(spec.get(name)) for spec in specs)] for name in names
    ]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    outcomes = [read_json(folder / "run.json").get("outcome") or {} for folder in folders]
    rows += [
        [f"outcome: {key}", *(plain(outcome.get(key)) for outcome in outcomes)]
        for key in ("step", "seconds", "reason")
        if any(key in outcome for outcome in outcomes)
    ]
    return rows
