"""An example of one's own: read, reconstructed, scored among the training rows, and set beside its neighbours."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow.core.errors import DataError, SpecError
from varflow.data.columns import Columns
from varflow.data.given import Given, in_order
from varflow.data.new_rows import rows_of, stored_rows
from varflow.evaluation.psis import UNRELIABLE
from varflow.explore import drawing
from varflow.explore.latent import upright
from varflow.explore.opened import Opened

#: Rows of a file that are answered, and neighbours that are shown.
MOST, NEAREST = 200, 5
#: Fewer training rows than these are told to be few.
_FEW = 100


@dataclass(frozen=True)
class Example:
    """Examples as they are stored.

    Attributes:
        x: ``[N, *event]``.
        given: what they are conditioned on: stored values ``[N, conditions]``, or name → value for all; None where
            nothing is.
        note: what was done to read them, in a sentence, or "".
    """

    x: Tensor
    given: Tensor | dict[str, Any] | None = None
    note: str = ""

    def one(self, number: int) -> Example:
        """A single one of them."""
        given = self.given[number : number + 1] if isinstance(self.given, Tensor) else self.given
        return Example(self.x[number : number + 1], given, self.note)


def from_picture(opened: Opened, pixels: np.ndarray[Any, Any], swap: bool = False) -> Example:
    """A picture of any size as the model's: resized, its colours or grey values as the data have them.

    Args:
        pixels: uint8 ``[H, W]`` or ``[H, W, 3]``.
        swap: light for dark, for ink on paper where the data are light on black.

    Raises:
        SpecError: the run was fitted to rows.
    """
    from PIL import Image

    if not opened.picture:
        raise SpecError("picture: this run was fitted to rows of a table; give a row")
    channels, height, width = opened.run.form.event_shape
    image = Image.fromarray(np.asarray(pixels, np.uint8)).convert("L" if channels == 1 else "RGB")
    told = []
    if image.size != (width, height):
        told.append(f"resized from {image.width} × {image.height} to {width} × {height}")
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if channels == 1 and np.ndim(pixels) == 3 and bool((np.ptp(pixels, axis=-1) > 0).any()):
        told.append("colours turned to grey")
    values = np.asarray(image, np.float64) / 255
    if swap:
        values = 1 - values
        told.append("light and dark swapped")
    values = values[None] if channels == 1 else values.transpose(2, 0, 1)
    kept = opened.run.preprocessing
    assert kept is not None
    if kept.source_levels is None:
        x = torch.from_numpy(values.copy()).to(torch.float32)
    else:
        x = torch.from_numpy((values * kept.top).round()).to(torch.uint8)
    note = f"The picture was {', '.join(told)}." if told else ""
    return Example(x[None], _conditions(opened), note)


def from_text(opened: Opened, text: str, given: Mapping[str, Any] | None = None) -> Example:
    """Rows that somebody typed or pasted: CSV with or without a head.

    Args:
        text: as in a file; an empty cell is a missing one.
        given: conditions that no column holds.

    Raises:
        DataError: not rows of these columns.
        SpecError: the run was fitted to pictures.
    """
    if not text.strip():
        raise DataError(f"row: is empty; give {', '.join(opened.columns)}")
    conditions = [] if opened.run.conditions is None else list(opened.run.conditions.names)
    lines = text.strip().splitlines()
    first = next(csv.reader(io.StringIO(lines[0])))
    if not {cell.strip() for cell in first} & {*opened.columns, *conditions}:
        heads = list(opened.columns)
        heads = [*conditions, *heads] if len(first) == len(conditions) + len(heads) else heads
        head = io.StringIO()
        csv.writer(head, lineterminator="").writerow(heads)
        lines.insert(0, head.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "typed.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            return from_file(opened, path, given)
        except DataError as error:
            # Nobody knows of the file.
            raise DataError(str(error).replace(str(path), "row")) from error


def from_file(opened: Opened, path: str | Path, given: Mapping[str, Any] | None = None) -> Example:
    """The first rows of a table in a file, .csv, .tsv, .parquet or .npy.

    Raises:
        DataError: missing or damaged, or not the columns of training.
        SpecError: the run was fitted to pictures.
    """
    if opened.picture:
        raise SpecError("row: this run was fitted to pictures; give a picture")
    run, kept = opened.run, opened.run.preprocessing
    assert kept is not None
    decimal = run.spec.get("decimal", "auto")
    held = rows_of(str(path), kept=kept, decimal=decimal, before=run.decimal, conditions=run.conditions)
    values = held.values
    if not isinstance(kept, Columns):
        values = in_order(Given(values, columns=held.columns), run.columns)
    x = stored_rows(values[:MOST], kept, run.form.event_shape, False)
    note = f"The first {MOST} of {len(values)} rows." if len(values) > MOST else ""
    if held.context is not None:
        return Example(x, held.context[: len(x)], note)
    return Example(x, _conditions(opened, given), note)


def drawn(opened: Opened, seed: int, given: Mapping[str, Any] | None = None) -> Example:
    """One draw of the model as an example."""
    held = _conditions(opened, given)
    return Example(opened.draw(seed, 1, held), held)


def of_row(opened: Opened, number: int) -> Example:
    """Row ``number`` of the test split, where the data are at hand. Raises SpecError where they are not."""
    x, given = opened.row(number)
    return Example(x, given)


def _conditions(opened: Opened, given: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    return None if opened.run.conditions is None else dict(given or opened.conditions)


@dataclass(frozen=True)
class Answer:
    """What a model says of examples; of each, in nats.

    Attributes:
        log_prob: log p(x) ``[N]``, float64.
        error: its Monte-Carlo standard error; 0 where it is exact.
        khat: Pareto k̂; nan where it is exact.
        rank: share of the training rows that are at most as likely; None where none are kept.
        among: how many training rows that is of.
        samples: importance samples for each; 0 where it is exact.
        scored: of what log_prob is the logarithm.
        again: reconstructions, stored values; None of a density, which keeps all of x.
    """

    log_prob: np.ndarray[Any, Any]
    error: np.ndarray[Any, Any]
    khat: np.ndarray[Any, Any]
    rank: np.ndarray[Any, Any] | None
    among: int
    samples: int
    scored: str
    again: Tensor | None


def answer(opened: Opened, given: Example, samples: int | None = None, seed: int = 0) -> Answer:
    """log p(x) with its error and rank, and the reconstruction.

    Raises:
        DataError, ShapeError, SpecError: as :meth:`varflow.Run.scores`.
    """
    run = opened.run
    found = run.scores(given.x, samples, seed, given=given.given)
    again = None if opened.density else torch.as_tensor(run.reconstruct(given.x, seed=seed, given=given.given))
    rank, held = None, opened.scores
    if held is not None:
        ordered = held.sort().values
        rank = (torch.searchsorted(ordered, found.log_prob, right=True).double() / len(ordered)).numpy()
    return Answer(
        found.log_prob.numpy(), found.error.numpy(), found.khat.numpy(), rank, 0 if held is None else len(held),
        found.samples, found.scored, again,
    )  # fmt: skip


def score_text(opened: Opened, found: Answer, number: int = 0) -> str:
    """log p(x) of one of the examples in words, and its place in a histogram of the training rows."""
    value, error = float(found.log_prob[number]), float(found.error[number])
    exact = "" if not found.samples else f" ± {error:.2g}"
    by = f" ({found.samples} importance samples)" if found.samples else ""
    said = f"log p(x) = {value:.2f}{exact} nats{by}: the {found.scored}.".replace("-", "−", int(value < 0))
    if found.samples and found.khat[number] > UNRELIABLE:
        said += f" k̂ = {found.khat[number]:.2f} is above {UNRELIABLE}: neither value nor error can be relied on."
    if found.rank is None or opened.scores is None:
        return drawing.said(said)
    share = float(found.rank[number])
    place = "less likely than all" if share == 0 else f"at least as likely as {share:.1%}"
    said += f" It is {place} of {found.among:,} training rows (rank {share:.3f})."
    if found.among < _FEW:
        said += " Those are few; varflow score RUN --training-rows 500 scores more where the data are at hand."
    name = f"yours: {value:.1f}".replace("-", "−")
    plot = drawing.histogram(
        opened.scores.numpy(), [(value, 2 * error, name, "#D55E00")], "log p(x) of training rows, nats"
    )
    band = " The band is two standard errors to each side." if error else ""
    return drawing.said(said) + plot + (drawing.said(band.strip()) if band else "")


@dataclass(frozen=True)
class Near:
    """The training rows whose latents are nearest.

    Attributes:
        names: the place of each in the data, or the name of its file.
        distance: in latent space.
        labels: names of their classes; None where there are none.
        x: the rows themselves where the data are at hand, else what their latents decode to; None where neither is.
        themselves: whether x are the rows.
    """

    names: list[str]
    distance: list[float]
    labels: list[str] | None
    x: Tensor | None
    themselves: bool


@torch.no_grad()
def neighbours(opened: Opened, given: Example, k: int = NEAREST) -> Near | None:
    """The k training rows nearest to the first example, by the distance of the centres of q(z|x); None where the
    folder keeps no latents.
    """
    held = opened.latents
    if held is None or not len(held.points):
        return None
    centre = torch.as_tensor(opened.run.embed(given.x[:1], "centre", given=given.given))
    nearest = torch.cdist(centre.flatten(1).double(), held.points).topk(min(k, len(held.points)), largest=False)
    index = nearest.indices[0]
    places = index.tolist() if held.origins is None else [held.origins[i] for i in index.tolist()]
    labels, classes = None, opened.run.classes
    if held.labels is not None:
        numbers = held.labels[index].tolist()
        labels = [classes[n] if n < len(classes) else str(n) for n in numbers]
    rows = _training_rows(opened, places)
    x = rows
    if rows is None and opened.run.conditions is None:
        z = held.points[index].reshape(-1, *centre.shape[1:])
        x = opened.decode(z)
    return Near([str(place) for place in places], nearest.values[0].tolist(), labels, x, rows is not None)


def _training_rows(opened: Opened, places: list[Any]) -> Tensor | None:
    """The rows at these places of the data, where they are at hand."""
    dataset = opened.dataset
    if dataset is None:
        return None
    origins = dataset.origins("train", torch.arange(dataset.sizes["train"]))
    where = {origin: number for number, origin in enumerate(origins)}
    if any(place not in where for place in places):
        return None
    return dataset.raw("train")[torch.tensor([where[place] for place in places])].cpu()


def near_text(opened: Opened, near: Near | None) -> str:
    """Neighbours as pictures with their distances, or as a table."""
    if near is None:
        return ""
    points = "their points in the base of the flow" if opened.density else "the centres of q(z|x)"
    told = f"Nearest training rows, by the distance of {points}"
    if not near.themselves and near.x is not None:
        told += "; the data are not at hand, so each is what its latents decode to"
    names = [f"{name} · {d:.2f}" for name, d in zip(near.names, near.distance, strict=True)]
    if near.labels:
        names = [f"{label} · {name}" for label, name in zip(near.labels, names, strict=True)]
    if near.x is not None and opened.picture:
        body = drawing.strip(opened.shown(near.x), names)
    else:
        columns: dict[str, Any] = {"row": near.names, "distance": [float(f"{d:.3g}") for d in near.distance]}
        if near.labels:
            columns["label"] = near.labels
        if near.x is not None:
            columns |= opened.cells(near.x)
        body = drawing.table(columns)
    return drawing.said(f"{told}.") + body


def shown(opened: Opened, given: Example, found: Answer, number: int = 0) -> str:
    """One of the examples beside its reconstruction."""
    x, note = given.x[number : number + 1], drawing.said(given.note) if given.note else ""
    if opened.picture:
        seen = opened.shown(x)[0]
        pair = [drawing.picture(seen, "as the model is given it")]
        if found.again is not None:
            pair.append(drawing.picture(opened.shown(found.again[number : number + 1])[0], "reconstruction"))
        return f'<div class="vf-pair">{"".join(pair)}</div>{note}'
    cells = opened.cells(x)
    columns: dict[str, Any] = {"given": [values[0] for values in cells.values()]}
    if found.again is not None:
        again = opened.cells(found.again[number : number + 1])
        columns["reconstruction"] = [values[0] for values in again.values()]
    filled = _filled(opened, given.one(number))
    if filled is not None:
        columns["filled in"] = filled
    return (drawing.table(columns, list(cells)) if len(columns) > 1 else upright(cells, "given")) + note


def _filled(opened: Opened, given: Example) -> list[Any] | None:
    """What the missing cells of a row are imputed with; None where none is missing or the model fills in nothing."""
    missing = given.x.isnan()[0] if given.x.is_floating_point() else torch.zeros(1, dtype=torch.bool)
    if not bool(missing.any()):
        return None
    try:
        found = opened.run.imputations(given.x, given=given.given)
    except SpecError:
        return None
    cells = [values[0] for values in opened.cells(found.values).values()]
    return [cell if gone else None for cell, gone in zip(cells, missing.tolist(), strict=True)]


def scores_table(opened: Opened, given: Example, found: Answer) -> str:
    """log p(x) of several rows."""
    columns: dict[str, Any] = {"log p(x), nats": [float(f"{v:.5g}") for v in found.log_prob]}
    if found.samples:
        columns["error"] = [float(f"{v:.2g}") for v in found.error]
    if found.rank is not None:
        columns["rank"] = [float(f"{v:.3f}") for v in found.rank]
    return drawing.table(columns, [f"row {k}" for k in range(len(given.x))])


def translated(a: Opened, b: Opened, x: Tensor) -> Tensor:
    """Stored pictures of one run as another stores them, which may have other levels."""
    kept = b.run.preprocessing
    assert kept is not None
    values = torch.from_numpy(a.shown(x))
    return values.float() if kept.source_levels is None else (values * kept.top).round().to(torch.uint8)


def difference(first: Answer, second: Answer) -> str:
    """log p(x) of one example under two models, and the difference with its error."""
    gap = float(first.log_prob[0] - second.log_prob[0])
    error = math.hypot(float(first.error[0]), float(second.error[0]))
    words = f"Left less right: {gap:+.2f}{f' ± {error:.2g}' if error else ''} nats"
    if first.scored != second.scored:
        return (
            f"The two score different things ({first.scored}; {second.scored}), so their log p(x) are not compared."
        )
    return f"{words}, of this one example; varflow compare sets all test examples side by side."
