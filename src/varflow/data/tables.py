"""Tables as arrays of a data set: stored values by the kinds of their columns, or numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from varflow.core.errors import ShapeError
from varflow.data import frames, kinds, named
from varflow.data.columns import Columns
from varflow.data.given import given
from varflow.data.prepare import plain, split_name
from varflow.data.protocols import Protocol
from varflow.data.raw import Raw


def of_raw(
    name: str,
    tables: Mapping[str, Raw],
    protocol: str,
    column: Sequence[str],
    given_names: Sequence[str],
    kept: Protocol | None,
) -> named.Arrays:
    """What is modelled of tables whose conditions were taken out."""
    own_columns = [text for text in column if not any(text.startswith(f"{n}:") for n in given_names)]
    if protocol == "columns":
        return of_kinds(name, tables, own_columns, kept)
    values: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    heads: tuple[str, ...] = ()
    for part, raw in tables.items():
        values[part], marks, heads = kinds.numbers_alone(raw)
        if marks is not None:
            labels[part] = marks
    return named.Arrays(name, values, labels, facts={"columns": list(heads)} if heads else {})


def of_kinds(
    name: str, tables: Mapping[str, Raw], column: Sequence[str], kept: Protocol | None
) -> named.Arrays:
    """Stored values of tables by the kinds of their columns: of new ones, or those that were learned before.

    Kinds and values of a category are those of the whole table, or of the split "train" where it is given apart.
    """
    first = next(iter(tables)) if "train" not in tables else "train"
    if isinstance(kept, Columns):
        values = {part: kinds.stored(raw, kept.columns, kept.forms, kept.dropped) for part, raw in tables.items()}
        found = kinds.Found(kept.columns, values[first], kept.forms, kept.dropped)
    else:
        found = kinds.find_kinds(tables[first], column)
        values = {
            part: found.values if part == first else kinds.stored(raw, found.columns, found.forms, found.dropped)
            for part, raw in tables.items()
        }
    labels, classes = {}, found.classes
    for part, raw in tables.items():
        _, marks, classes = kinds.without_labels(raw, kinds.wishes(column))
        if marks is not None:
            labels[part] = marks
    facts: dict[str, Any] = {"columns": [c.name for c in found.columns]}
    if tables[first].decimal:
        facts["decimal"] = tables[first].decimal
    if classes:
        facts["classes"] = list(classes)
    return named.Arrays(name, values, labels, facts=facts, found=found)


def of_arrays(arrays: named.Arrays, column: Sequence[str], kept: Protocol | None) -> named.Arrays:
    """The same of arrays of numbers."""
    heads = tuple(arrays.facts.get("columns", ()))
    tables = {
        part: _matrix(plain(values, part, heads, missing=True), heads) for part, values in arrays.values.items()
    }
    made = of_kinds(arrays.name, tables, column, kept)
    made.labels, made.facts, made.truth = arrays.labels or made.labels, {**arrays.facts, **made.facts}, arrays.truth
    return made


def of_frames(
    name: str,
    splits: Mapping[str, Any],
    labels: Any,
    heads: Sequence[str],
    column: Sequence[str],
    kept: Protocol | None,
) -> named.Arrays:
    """Frames or matrices under the protocol columns."""
    tables: dict[str, Raw] = {}
    marks: dict[str, Any] = {}
    frame = ""
    for split, rows in splits.items():
        part = split_name(split)
        if isinstance(rows, Raw):
            tables[part] = rows
            continue
        if frames.is_frame(rows):
            tables[part], frame = frames.read_frame(rows), frames.library(rows)
            continue
        held = given(rows)
        tables[part] = _matrix(plain(held.values, part, heads, missing=True), tuple(heads) or held.columns)
        if held.labels is not None:
            marks[part] = held.labels
    made = of_kinds(name, tables, column, kept)
    if labels is not None:
        marks = dict(labels) if isinstance(labels, Mapping) else {"all": labels}
    made.labels = marks or made.labels
    if frame:
        made.facts["frame"] = frame
    return made


def _matrix(values: Tensor, heads: Sequence[str] = ()) -> Raw:
    """A matrix as a table, whose columns are named x0, x1, … where they have no names."""
    if values.dim() != 2:
        raise ShapeError(f"x: shape {list(values.shape)}; protocol 'columns' is for a table [N, D]")
    names = heads or [f"x{number}" for number in range(values.shape[1])]
    columns = values.double().cpu().numpy().T
    return frames.of_numbers(dict(zip(names, columns, strict=True)), bool(heads))
