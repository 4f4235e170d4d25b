"""From a name, a path or a tensor to a :class:`Dataset`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from varflow import data
from varflow.core import errors
from varflow.core.errors import DataError, ShapeError, SpecError
from varflow.data import kinds, named, own, reading, sources, synthetic
from varflow.data.columns import Columns
from varflow.data.conditions import LABEL, Conditions, listed, parted, read_raw
from varflow.data.dataset import SPLITS, Dataset
from varflow.data.given import Given, given, in_order
from varflow.data.prepare import (
    COLOUR,
    REAL,
    channels_first,
    plain,
    plain_labels,
    three_splits,
    to_levels,
)
from varflow.data.protocols import LEVELS, Identity, Protocol, Standardize
from varflow.data.table import Table, has_rounded_columns

#: What the splits of others are called.
_SPLITS = {"valid": "validation", "val": "validation", "dev": "validation"}


def load(
    name_or_path: str | os.PathLike[str],
    protocol: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    flip: bool | None = None,
    seed_eval: int = 0,
    *,
    levels: int | None = None,
    resize: int | tuple[int, int] | None = None,
    verify: bool = True,
    data_seed: int = 0,
    continuous: bool = False,
    column: Sequence[str] = (),
    decimal: str = "auto",
    kept: Protocol | None = None,
    condition: Sequence[str] = (),
    conditions: Conditions | None = None,
) -> Dataset:
    """A named data set (``varflow.data.SOURCES``), or your own file or folder.

    Own data: ``.npy`` or ``.npz`` (uint8 pictures [N, H, W], [N, H, W, C] or [N, C, H, W], or a
    table [N, D]; .npz keys x and labels, or train, validation, test and y_train …), tables ``.csv``,
    ``.tsv``, ``.txt``, ``.parquet``, ``.feather`` or ``.arrow`` (:mod:`varflow.data.reading`), a folder of pictures.
    Without splits of their own they are permuted with a fixed seed and cut 80/10/10; without validation, it is the
    last tenth of train.

    Args:
        protocol: a name in ``varflow.data.PROTOCOLS``.
        data_dir: folder of the named data sets; else VARFLOW_DATA, else the cache.
        flip: mirror training pictures at random; without it, for CIFAR-10 alone.
        seed_eval: seed of the one draw that validation and test use.
        levels: of own data, see :func:`from_tensor`.
        resize: (height, width) or both at once, for a folder of pictures of several sizes.
        verify: refuse files whose checksum is not the official one.
        data_seed: of data that are simulated.
        continuous: what "auto" chooses has a density: logit for levels, table for real numbers of
            your own.
        column: under the protocol "columns" the kinds of columns that are set by hand, ``"age:count"``
            (:mod:`varflow.data.kinds`); the others are found.
        decimal: "." or ",", where a table does not tell which of them stands before decimals.
        kept: the preprocessing that was learned before, under which a table's cells are read.
        condition: columns of the table that a model is conditioned on, or ``"label"``, the labels of the data.
        conditions: what was learned of these before.

    Raises:
        DataError: missing, damaged or mislabelled files; NaN or infinity in the data.
        SpecError: an unknown name or protocol, or a protocol that does not fit the data.
    """
    _check_protocol(protocol)
    key, names = os.fspath(name_or_path), listed(condition)
    if protocol == "static" and key != "mnist":
        raise SpecError(f"protocol 'static' is for 'mnist' alone, not '{key}'; use 'dynamic'")
    try:
        if key in synthetic.MAKERS:
            arrays = synthetic.MAKERS[key](key, data_seed)
        elif key in named.READERS:
            arrays = _named(key, protocol, data_dir, verify)
        else:
            path = Path(key).expanduser()
            if names and reading.is_table(path) and path.is_file():
                rest, chosen = parted(reading.read_table(path, decimal), names)
                arrays = _of_raw(path.name, {"all": rest}, protocol, column, names, kept)
                arrays.context = {"all": chosen}
            elif protocol == "columns" and reading.is_table(path) and path.is_file():
                arrays = _of_kinds(path.name, {"all": reading.read_table(path, decimal)}, column, kept)
            else:
                arrays = _own(path, resize, decimal)
            arrays.facts["source"] = str(path.resolve())
            if path.is_file():
                checks = sources.Checks(verify=False)
                checks(path, path.read_bytes(), None)
                arrays.facts["checksums"] = checks.found
    except OSError as error:
        raise DataError(f"data '{key}': cannot be read ({error}); check its permissions") from error
    if key in data.SOURCES:
        if levels is not None or resize is not None:
            raise SpecError(f"levels and resize are for your own data; '{key}' has its own")
        levels = arrays.levels
        flip = arrays.name in sources.FLIPS if flip is None else flip
        if protocol == "auto":
            protocol = "logit" if continuous and levels is not None else sources.AUTO[arrays.name]
    if protocol == "columns" and arrays.found is None:
        arrays = _of_arrays(arrays, column, kept)
    _check_columns(column, protocol, names)
    made = _build(arrays, protocol, levels, flip, seed_eval, continuous, kept)
    return _conditioned(made, arrays, names, column, conditions)


def _of_raw(
    name: str,
    tables: Mapping[str, reading.Raw],
    protocol: str,
    column: Sequence[str],
    given_names: Sequence[str],
    kept: Protocol | None,
) -> named.Arrays:
    """What is modelled of tables whose conditions were taken out."""
    own_columns = [text for text in column if not any(text.startswith(f"{n}:") for n in given_names)]
    if protocol == "columns":
        return _of_kinds(name, tables, own_columns, kept)
    values: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    heads: tuple[str, ...] = ()
    for part, raw in tables.items():
        values[part], marks, heads = kinds.numbers_alone(raw)
        if marks is not None:
            labels[part] = marks
    return named.Arrays(name, values, labels, facts={"columns": list(heads)} if heads else {})


def _conditioned(
    made: Dataset,
    arrays: named.Arrays,
    names: Sequence[str],
    column: Sequence[str],
    conditions: Conditions | None,
) -> Dataset:
    """The data set with what its rows are conditioned on."""
    if not names:
        return made
    if not arrays.context and tuple(names) != (LABEL,):
        raise SpecError(
            f"condition: was {', '.join(names)}; these data have no columns by name, use condition={LABEL}"
        )
    if not arrays.context:
        labels = {split: made.labels(split) for split in SPLITS}
        if any(part is None for part in labels.values()):
            raise SpecError(f"condition: was {LABEL}, and {made.name} has no labels; leave it out")
        values = {split: part.double().cpu()[:, None] for split, part in labels.items() if part is not None}
        return made.conditioned(
            conditions.having(values) if conditions else Conditions.of_classes(values, made.classes)
        )
    if conditions is not None:
        parts = {part: conditions.of_raw(raw) for part, raw in arrays.context.items()}
        return made.conditioned(conditions.having(_split_alike(parts, made)))
    parts, found = read_raw(arrays.context, column)
    return made.conditioned(Conditions.fit(_split_alike(parts, made), found))


def _split_alike(parts: Mapping[str, Tensor], made: Dataset) -> dict[str, Tensor]:
    """Rows of what was given, where the rows of the data set went."""
    out = {}
    for split in SPLITS:
        source = "all" if "all" in parts else split if split in parts else "train"
        out[split] = parts[source][made.places(split)]
    return out


def _check_columns(column: Sequence[str], protocol: str, names: Sequence[str] = ()) -> None:
    column = [text for text in column if not any(text.startswith(f"{name}:") for name in names)]
    if column and protocol != "columns":
        raise SpecError(
            f"column: was {', '.join(column)}; kinds of columns are for likelihood=columns (protocol columns), "
            f"and this is protocol {protocol}"
        )


def _of_kinds(
    name: str, tables: Mapping[str, reading.Raw], column: Sequence[str], kept: Protocol | None
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


def _of_arrays(arrays: named.Arrays, column: Sequence[str], kept: Protocol | None) -> named.Arrays:
    """The same of arrays of numbers."""
    heads = tuple(arrays.facts.get("columns", ()))
    tables = {
        part: _matrix(plain(values, part, heads, missing=True), heads) for part, values in arrays.values.items()
    }
    made = _of_kinds(arrays.name, tables, column, kept)
    made.labels, made.facts, made.truth = arrays.labels or made.labels, {**arrays.facts, **made.facts}, arrays.truth
    return made


def _matrix(values: Tensor, heads: Sequence[str] = ()) -> reading.Raw:
    """A matrix as a table, whose columns are named x0, x1, … where they have no names."""
    if values.dim() != 2:
        raise ShapeError(f"x: shape {list(values.shape)}; protocol 'columns' is for a table [N, D]")
    names = heads or [f"x{number}" for number in range(values.shape[1])]
    columns = values.double().cpu().numpy().T
    return reading.of_numbers(dict(zip(names, columns, strict=True)), bool(heads))


def _named(
    name: str, protocol: str, data_dir: str | os.PathLike[str] | None, verify: bool
) -> named.Arrays:
    read = named.static_mnist if protocol == "static" else named.READERS[name]
    return read(sources.data_folder(data_dir), sources.Checks(verify))


def from_tensor(
    x: Any,
    labels: Int64[Tensor, " n"] | Mapping[str, Int64[Tensor, " n"]] | None = None,
    protocol: str = "auto",
    levels: int | None = None,
    *,
    name: str = "tensor",
    flip: bool | None = None,
    seed_eval: int = 0,
    continuous: bool = False,
    columns: Sequence[str] = (),
    column: Sequence[str] = (),
    kept: Protocol | None = None,
    condition: Sequence[str] = (),
    conditions: Conditions | None = None,
    context: Any = None,
) -> Dataset:
    """Your own rows or pictures, or a mapping of splits (train, test and, if you like, validation).

    A tensor, an array, or whatever :func:`varflow.data.given.given` knows: lists, frames of pandas and polars, Arrow
    tables, map-style data sets of torch and of Hugging Face. Frames bring the names of their columns with them.

    uint8 tensors hold levels 0 … ``levels`` − 1 (256 if not given) and, with three or four
    dimensions, are pictures: [N, H, W], [N, C, H, W] or [N, H, W, C] with C = 1 or 3. Floating
    tensors are real numbers, unless ``levels`` is given: then they hold the levels themselves, or
    level/(levels − 1) in [0, 1]. Under dynamic, threshold and grey, floats in [0, 1] are taken as
    they are. Values 0 and 1 alone are binary under "auto"; with ``continuous`` that chooses as in
    :func:`load`. ``columns`` are the names of a table's columns; ``column`` and ``kept`` are as in
    :func:`load`: under the protocol "columns" frames may hold text, dates and missing cells, and arrays NaN.
    ``condition`` names columns of a frame, or "label", that a model is conditioned on; ``context`` holds such columns
    by themselves: a frame, or an array ``[N, columns]``, of which whole numbers can be categories
    (``column=("c0:category",)``).

    Raises:
        DataError: NaN, infinity, values outside the levels, or too few rows.
        SpecError: a protocol that does not fit; ShapeError: labels or shapes that do not.

    >>> import torch, varflow.data
    >>> pictures = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    >>> varflow.data.from_tensor(pictures).describe()["protocol"]
    'logit'
    """
    _check_protocol(protocol)
    if protocol == "static":
        raise SpecError(
            "protocol 'static' is for 'mnist' alone; use 'threshold' for values 0 and 1"
        )
    splits = dict(x) if isinstance(x, Mapping) else {"all": x}
    names, beside = listed(condition), _beside(context)
    if names and beside:
        raise SpecError("condition: given beside context; give one of them")
    frame = ""
    if names and any(reading.is_frame(rows) for rows in splits.values()):
        frame = reading.library(next(iter(splits.values())))
        both = {part: parted(reading.read_frame(rows), names) for part, rows in splits.items()}
        splits = {part: rest for part, (rest, _) in both.items()}
        beside = {_SPLITS.get(part, part): chosen for part, (_, chosen) in both.items()}
    if beside:
        names = next(iter(beside.values())).names
    own_columns = [text for text in column if not any(text.startswith(f"{n}:") for n in names)]
    _check_columns(own_columns, protocol)
    if protocol == "columns":
        found = _tables(name, splits, labels, columns, own_columns, kept)
        found.context = beside
        if frame:
            found.facts["frame"] = frame
        made = _build(found, protocol, levels, flip, seed_eval, True, kept)
        return _conditioned(made, found, names, column, conditions)
    held = {
        _SPLITS.get(part, part): Given(*kinds.numbers_alone(rows)) if isinstance(rows, reading.Raw) else given(rows)
        for part, rows in splits.items()
    }
    heads = tuple(columns) or next(iter(held.values()), Given(None)).columns
    values = {part: in_order(one, heads) for part, one in held.items()}
    if labels is None:
        marks: dict[str, Any] = {part: one.labels for part, one in held.items() if one.labels is not None}
    else:
        marks = dict(labels) if isinstance(labels, Mapping) else {"all": labels}
    classes = next(iter(held.values()), Given(None)).classes
    facts: dict[str, Any] = {"columns": list(heads)} if heads else {}
    if classes:
        facts["classes"] = list(classes)
    arrays = named.Arrays(name, values, marks, facts=facts, context=beside)
    made = _build(arrays, protocol, levels, flip, seed_eval, continuous)
    return _conditioned(made, arrays, names, column, conditions)


def _beside(context: Any) -> dict[str, reading.Raw]:
    """Columns that were given by themselves, by part."""
    if context is None:
        return {}
    found = {}
    for part, rows in (context.items() if isinstance(context, Mapping) else [("all", context)]):
        if reading.is_frame(rows):
            found[_SPLITS.get(part, part)] = reading.read_frame(rows, "context")
            continue
        values = torch.as_tensor(np.asarray(rows)) if not isinstance(rows, Tensor) else rows
        values = values[:, None] if values.dim() == 1 else values
        columns = {f"c{number}": held for number, held in enumerate(values.double().cpu().numpy().T)}
        found[_SPLITS.get(part, part)] = reading.of_numbers(columns, True, "context")
    return found


def _tables(
    name: str,
    splits: Mapping[str, Any],
    labels: Any,
    heads: Sequence[str],
    column: Sequence[str],
    kept: Protocol | None,
) -> named.Arrays:
    """Frames or matrices under the protocol columns."""
    tables, marks, frame = {}, {}, ""
    for split, rows in splits.items():
        part = _SPLITS.get(split, split)
        if isinstance(rows, reading.Raw):
            tables[part] = rows
            continue
        if reading.is_frame(rows):
            tables[part], frame = reading.read_frame(rows), reading.library(rows)
            continue
        held = given(rows)
        tables[part] = _matrix(plain(held.values, part, heads, missing=True), tuple(heads) or held.columns)
        if held.labels is not None:
            marks[part] = held.labels
    made = _of_kinds(name, tables, column, kept)
    if labels is not None:
        marks = dict(labels) if isinstance(labels, Mapping) else {"all": labels}
    made.labels = marks or made.labels
    if frame:
        made.facts["frame"] = frame
    return made


def dataset_of(
    data: Any,
    settings: Any,
    protocol: str,
    continuous: bool,
    kept: Protocol | None = None,
    conditions: Conditions | None = None,
) -> Dataset:
    """The data set of a run.

    Args:
        data: a data set, or a tensor or array of one's own; None for what ``settings`` name.
        settings: the data settings of a spec (:class:`varflow.data.settings.DataSettings`).
        protocol: what "auto" stands for under the likelihood.
        continuous: whether log p(x) is to be a density.
        kept: the preprocessing that a run has learned before. It is never learned again.
        conditions: what a run has learned of its conditions.
    """
    chosen = protocol if settings.protocol == "auto" else settings.protocol
    if isinstance(data, Dataset) and settings.column:
        raise SpecError(
            f"column: was {', '.join(settings.column)}, and the data set is made already; give column to "
            "varflow.data.load or from_tensor"
        )
    if isinstance(data, Dataset) and settings.condition and data.conditions is None:
        raise SpecError(
            f"condition: was {', '.join(settings.condition)}, and the data set is made already; give condition to "
            "varflow.data.load or from_tensor"
        )
    learned = kept is not None and bool(kept.learned())
    shared: dict[str, Any] = {
        "protocol": "none" if learned else chosen, "continuous": continuous, "levels": settings.levels,
        "flip": settings.flip, "column": settings.column, "condition": settings.condition, "conditions": conditions,
    }  # fmt: skip
    if isinstance(kept, Columns):
        # The kinds that were found before, whatever is said of them now.
        shared |= {"protocol": "columns", "column": (), "kept": kept}
    if data is None:
        found = load(
            settings.data,
            data_dir=settings.data_dir,
            resize=settings.resize,
            verify=settings.verify,
            data_seed=settings.data_seed,
            decimal=settings.decimal,
            **shared,
        )
    else:
        found = data if isinstance(data, Dataset) else from_tensor(data, **shared)
    if learned and kept is not None:
        found = found.under(kept)
    return found.first(train=settings.train_limit, validation=settings.validation_limit)


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
    arrays = _own(path, resize, decimal)
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


#: So many scales from the training rows float32 still tells numbers apart, and squares of them are finite.
_FARTHEST = 1e15


def _check_near(values: Tensor, preprocessing: Columns) -> None:
    """Refuse cells that lie so far from the training rows that nothing can be computed of them."""
    x, _ = preprocessing.to(torch.device("cpu")).encode(values.cpu(), None, torch.float64)
    far = (x.abs() > _FARTHEST) & torch.tensor([column.continuous for column in preprocessing.columns])
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
    if isinstance(x, reading.Raw):
        return kinds.stored(x, kept.columns, kept.forms, kept.dropped)
    if reading.is_frame(x):
        return kinds.stored(reading.read_frame(x), kept.columns, kept.forms, kept.dropped)
    return given(x).values


def _own(path: Path, resize: int | tuple[int, int] | None, decimal: str = "auto") -> named.Arrays:
    if path.is_dir() or (own.is_picture(path) and path.exists()):
        size = (resize, resize) if isinstance(resize, int) else resize
        return own.pictures(path, size)
    if resize is not None:
        raise SpecError(f"resize: only for a folder of pictures, and {path} is none")
    if not path.exists():
        if not path.suffix and len(path.parts) == 1:
            raise errors.unknown("data", str(path), data.SOURCES)
        raise DataError(
            f"data: no file or folder {path}; name one, or one of {', '.join(data.SOURCES)}"
        )
    kind, arrays, tables = path.suffix.lower(), (".npy", ".npz"), (*reading.TEXTS, *reading.ARROWS)
    if kind in arrays:
        return own.numpy_file(path)
    if reading.is_table(path):
        return own.table(path, decimal)
    raise DataError(
        f"{path}: suffix '{kind}' is none of {', '.join((*arrays, *tables))}; save it as one of them, or name a "
        "folder of pictures"
    )


def _check_protocol(protocol: str) -> None:
    if protocol not in data.PROTOCOLS:
        raise errors.unknown("protocol", protocol, data.PROTOCOLS)


def _build(
    arrays: named.Arrays,
    protocol: str,
    levels: int | None,
    flip: bool | None,
    seed_eval: int,
    continuous: bool,
    kept: Protocol | None = None,
) -> Dataset:
    names = arrays.facts.get("columns", ())
    table = protocol == "columns"
    values = {part: plain(array, part, names, missing=table) for part, array in arrays.values.items()}
    labels = {
        part: plain_labels(array, len(values[part]))
        for part, array in arrays.labels.items()
        if part in values
    }
    values, labels, places, facts = three_splits(values, labels)
    values, levels = to_levels(values, levels, protocol)
    # Real numbers may have any shape; only levels, or values that a protocol takes as grey, show.
    shows = levels is not None or protocol not in ("auto", *REAL)
    picture = shows and values["train"].dim() in (3, 4)
    if picture:
        values = {part: channels_first(x) for part, x in values.items()}
    if protocol == "auto":
        colour = picture and values["train"].shape[1] == COLOUR
        protocol = _auto(levels, colour, continuous)
        # A Gaussian of whole numbers has no highest density, as any other continuous likelihood.
        if protocol == "none" and has_rounded_columns(values["train"], names):
            protocol = "table"
    if flip and not picture:
        raise SpecError("flip: only pictures can be mirrored, and these are none; leave it out")
    return Dataset(
        arrays.name,
        _columns(arrays.found, values["train"], kept) if table else _protocol(protocol, levels, values, names),
        values,
        labels,
        picture=picture,
        flip=bool(flip),
        seed_eval=seed_eval,
        facts={**facts, **arrays.facts},
        truth=arrays.truth,
        places=places,
        files=arrays.files,
    )


def _auto(levels: int | None, colour: bool, continuous: bool) -> str:
    if continuous:
        return "table" if levels is None else "logit"
    if levels is None:
        return "none"
    if levels == 2:
        return "threshold"
    return "logit" if colour else "dynamic"


def _columns(found: kinds.Found, train: Tensor, kept: Protocol | None) -> Columns:
    if isinstance(kept, Columns):
        return kept
    return Columns.fit(train, found.columns, found.forms, found.dropped)


def _protocol(
    name: str, levels: int | None, values: dict[str, Tensor], names: Sequence[str]
) -> Protocol:
    if name in LEVELS:
        return LEVELS[name](name, levels)
    if name == "standardize":
        return Standardize.fit(values["train"], names)
    if name == "table":
        return Table.fit(values["train"], names)
    return Identity(name, None)
