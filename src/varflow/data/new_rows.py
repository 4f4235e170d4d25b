"""Rows and pictures for a fitted model: read, put in the order of training, and checked against its preprocessing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from varflow import data
from varflow.core.errors import DataError, ShapeError
from varflow.data import frames, kinds, reading
from varflow.data.columns import Columns
from varflow.data.conditions import FARTHEST, LABEL, Conditions, parted
from varflow.data.given import given
from varflow.data.loading import load
from varflow.data.own import own_arrays
from varflow.data.prepare import channels_first, plain, to_levels
from varflow.data.protocols import Protocol
from varflow.data.raw import Raw


class NamedRows(NamedTuple):
    """Rows or pictures of a file, folder or named data set, for a fitted model.

    Attributes:
        values: ``[N, *event]``, as they are stored.
        names: what to call each: the number of its row, counted from 0, or its file.
        files: whether they are files of their own.
        columns: heads of the columns of a table; none where they have none.
        context: stored values of what a model is conditioned on; None where it is not, or they are not there.
    """

    values: Any
    names: Sequence[int] | Sequence[str]
    files: bool
    columns: tuple[str, ...] = ()
    context: Tensor | None = None

    @property
    def heading(self) -> str:
        """What the names are."""
        return "file" if self.files else "row"


def rows_of(
    name_or_path: str,
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    resize: int | tuple[int, int] | None = None,
    kept: Protocol | None = None,
    decimal: str = "auto",
    before: str = "",
    conditions: Conditions | None = None,
) -> NamedRows:
    """The rows of one's own file or folder, all of them, or those of a split of a named data set; of a table under
    ``kept`` its stored values, the columns in the order of training. ``before`` is what stood before decimals in
    training.

    Raises:
        DataError: missing or damaged files, or a file with splits of its own.
        SpecError: an unknown name.
    """
    if name_or_path in data.SOURCES:
        found = load(name_or_path, data_dir=data_dir)
        rows = NamedRows(found.raw(split), found.origins(split, torch.arange(found.sizes[split])), False)
        return rows._replace(context=_of_labels(conditions, found.labels(split)))
    path, context = Path(name_or_path).expanduser(), None
    raw = None
    if (isinstance(kept, Columns) or conditions is not None) and reading.is_table(path) and path.is_file():
        raw = reading.read_table(path, decimal, before=before)
        there = [name for name in conditions.names if name in raw.names] if conditions is not None else []
        if conditions is not None and there:
            raw, chosen = parted(raw, there)
            context = conditions.of_raw(chosen) if len(there) == len(conditions.names) else None
    if raw is not None and not isinstance(kept, Columns):
        values, _, heads = kinds.numbers_alone(raw)
        return NamedRows(values, range(len(values)), False, heads, context)
    if raw is not None and isinstance(kept, Columns):
        held = kinds.stored(raw, kept.columns, kept.forms, kept.dropped)
        return NamedRows(held, range(len(held)), False, tuple(c.name for c in kept.columns), context)
    arrays = own_arrays(path, resize, decimal)
    if set(arrays.values) != {"all"}:
        raise DataError(
            f"{path}: holds the splits {', '.join(arrays.values)}; give a file of rows alone"
        )
    values = arrays.values["all"]
    heads = tuple(arrays.facts.get("columns", ()))
    context = _of_labels(conditions, arrays.labels.get("all"))
    return NamedRows(values, arrays.files or range(len(values)), bool(arrays.files), heads, context)


def _of_labels(conditions: Conditions | None, labels: Any) -> Tensor | None:
    """What rows are conditioned on, where that is their labels."""
    if conditions is None or conditions.names != (LABEL,) or labels is None:
        return None
    return conditions.of_labels(labels)


def stored_rows(
    x: Any, preprocessing: Protocol, event_shape: tuple[int, ...], picture: bool
) -> Tensor:
    """Rows or pictures given to a fitted model, as its data are stored: ``[N, *event_shape]``.

    Raises:
        DataError: a NaN or an infinity, or values that are not the levels of the training data.
        ShapeError: another shape than the training data.
    """
    table = isinstance(preprocessing, Columns)
    values = plain(x, "all", missing=table)
    if preprocessing.source_levels is not None:
        values = to_levels({"train": values}, preprocessing.source_levels, preprocessing.name)[0]["train"]
    if picture and values.dim() in (3, 4):
        values = channels_first(values)
    if tuple(values.shape[1:]) != event_shape:
        raise ShapeError(
            f"x: shape {list(values.shape)}, should be [N, {', '.join(map(str, event_shape))}], as the data that the "
            "model was fitted to"
        )
    if isinstance(preprocessing, Columns):
        values = values.double()
        for column, cells in zip(preprocessing.columns, values.cpu().numpy().T, strict=True):
            kinds.check_values(cells, column, "x")
        _check_near(values, preprocessing)
    return values


def _check_near(values: Tensor, preprocessing: Columns) -> None:
    """Refuse cells that lie so far from the training rows that nothing can be computed of them."""
    x, _ = preprocessing.to(torch.device("cpu")).encode(values.cpu(), None, torch.float64)
    far = (x.abs() > FARTHEST) & torch.tensor([column.continuous for column in preprocessing.columns])
    if not bool(far.any()):
        return
    row, place = (int(index) for index in far.nonzero()[0])
    column = preprocessing.columns[place]
    raise DataError(
        f"x: column '{column.name}' has {float(values[row, place]):g} in row {row + 1} (counted from 1), "
        f"{float(x[row, place].abs()):.1g} scales away from the training rows; correct or empty that cell"
    )


def table_rows(x: Any, kept: Columns) -> Any:
    """Rows given to a model of a table, as its stored values: of a frame by the names of its columns, else numbers.

    Raises:
        DataError: a column that is missing or new, a new category, text among numbers.
    """
    if isinstance(x, Raw):
        return kinds.stored(x, kept.columns, kept.forms, kept.dropped)
    if frames.is_frame(x):
        return kinds.stored(frames.read_frame(x), kept.columns, kept.forms, kept.dropped)
    return given(x).values
