"""From a name, a path or a tensor to a :class:`Dataset`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from varflow import data
from varflow.core import errors
from varflow.core.errors import DataError, SpecError
from varflow.data import frames, kinds, named, sources, streamable, synthetic, tables
from varflow.data import reading as reading_tables
from varflow.data.columns import Columns
from varflow.data.conditioning import conditioned, given_beside
from varflow.data.conditions import Conditions, listed, parted
from varflow.data.dataset import Dataset
from varflow.data.given import Given, given, in_order
from varflow.data.own import own_arrays
from varflow.data.prepare import (
    COLOUR,
    REAL,
    channels_first,
    plain,
    plain_labels,
    split_name,
    three_splits,
    to_levels,
)
from varflow.data.protocols import LEVELS, Identity, Protocol, Standardize
from varflow.data.raw import Raw
from varflow.data.stores import Store
from varflow.data.streaming import Reading, streamed
from varflow.data.table import Table, has_rounded_columns


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
    condition_gaps: str = "flag",
    conditions: Conditions | None = None,
    stream: str = "auto",
    permutation: str = "auto",
    workers: int | None = None,
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
        condition_gaps: what a row without its condition stands for: "flag", a value of its own; "sum", all values of
            the one category that has gaps, each by its share.
        conditions: what was learned of these before.
        stream: "always", "never", or "auto": own data of more than 512 MiB, as they are stored, are read as they are
            needed (:class:`varflow.data.streamed.Streamed`). .npy, Parquet, Arrow and folders of pictures can be.
        permutation: of the split and of each epoch, "stored" or "computed"; "auto" computes it where rows are
            streamed.
        workers: processes that read streamed rows beside the one that computes.

    Raises:
        DataError: missing, damaged or mislabelled files; NaN or infinity in the data.
        SpecError: an unknown name or protocol, or a protocol that does not fit the data.
    """
    _check_protocol(protocol)
    key, names = os.fspath(name_or_path), listed(condition)
    if protocol == "static" and key != "mnist":
        raise SpecError(f"protocol 'static' is for 'mnist' alone, not '{key}'; use 'dynamic'")
    reading = Reading(stream, permutation, workers).checked()
    # Before the file is read: what reads numbers alone would refuse a column that was meant to be dropped.
    _check_columns(column, protocol, names)
    if key not in synthetic.MAKERS and key not in named.READERS:
        # A table whose columns are each of a kind, or are conditioned on, is held in memory.
        whole = protocol == "columns" or bool(names)
        store = None if whole else streamable.of_path(Path(key).expanduser(), resize, reading)
        if store is not None:
            return _streamed(store, protocol, levels, flip, seed_eval, continuous, reading)
    streamable.refuse(reading, f"'{key}'" + _whole(protocol, names))
    try:
        if key in synthetic.MAKERS:
            arrays = synthetic.MAKERS[key](key, data_seed)
        elif key in named.READERS:
            arrays = _named(key, protocol, data_dir, verify)
        else:
            path = Path(key).expanduser()
            if names and reading_tables.is_table(path) and path.is_file():
                rest, chosen = parted(reading_tables.read_table(path, decimal), names)
                arrays = tables.of_raw(path.name, {"all": rest}, protocol, column, names, kept)
                arrays.context = {"all": chosen}
            elif protocol == "columns" and reading_tables.is_table(path) and path.is_file():
                arrays = tables.of_kinds(path.name, {"all": reading_tables.read_table(path, decimal)}, column, kept)
            else:
                arrays = own_arrays(path, resize, decimal)
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
        arrays = tables.of_arrays(arrays, column, kept)
    made = _build(arrays, protocol, levels, flip, seed_eval, continuous, kept)
    return conditioned(made, arrays, names, column, conditions, condition_gaps)


def _whole(protocol: str, names: Sequence[str]) -> str:
    return " under likelihood=columns" if protocol == "columns" else " with conditions" if names else ""


def _streamed(
    store: Store,
    protocol: str,
    levels: int | None,
    flip: bool | None,
    seed_eval: int,
    continuous: bool,
    reading: Reading,
) -> Dataset:
    def build(sample: Tensor, some: bool) -> Dataset:
        facts = {"columns": list(store.columns)} if store.columns else {}
        parts = {"train": sample, "validation": sample[:1], "test": sample[:1]}
        return _build(
            named.Arrays(store.name, parts, facts=facts), protocol, levels, flip, seed_eval, continuous, sampled=some
        )

    return streamed(store, build, seed_eval, reading)


def _check_columns(column: Sequence[str], protocol: str, names: Sequence[str] = ()) -> None:
    column = [text for text in column if not any(text.startswith(f"{name}:") for name in names)]
    if column and protocol != "columns":
        raise SpecError(
            f"column: was {', '.join(column)}; kinds of columns are for likelihood=columns (protocol columns), "
            f"and this is protocol {protocol}, which reads a table of numbers: leave other columns out of the data"
        )


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
    condition_gaps: str = "flag",
    conditions: Conditions | None = None,
    context: Any = None,
    stream: str = "auto",
    permutation: str = "auto",
    workers: int | None = None,
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
    ``condition`` names columns of a frame, or "label" (-1 where an example has none), that a model is conditioned on,
    and ``condition_gaps`` is as in :func:`load`; ``context`` holds such columns
    by themselves: a frame, or an array ``[N, columns]``, of which whole numbers can be categories
    (``column=("c0:category",)``). ``stream``, ``permutation`` and ``workers`` are as in :func:`load`: arrays,
    memory-mapped ones too, and map-style data sets of torch and of Hugging Face can be streamed.

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
    reading = Reading(stream, permutation, workers).checked()
    if protocol != "columns" and not condition and context is None and not isinstance(x, Mapping):
        store = streamable.of_python(x, labels, name, reading)
        if store is not None:
            _check_columns(column, protocol)
            if columns and not store.columns:
                store.columns = tuple(columns)
            return _streamed(store, protocol, levels, flip, seed_eval, continuous, reading)
    streamable.refuse(reading, f"{name} ({type(x).__name__})" + _whole(protocol, listed(condition)))
    splits = dict(x) if isinstance(x, Mapping) else {"all": x}
    names, beside = listed(condition), given_beside(context)
    if names and beside:
        raise SpecError("condition: given beside context; give one of them")
    frame = ""
    if names and any(frames.is_frame(rows) for rows in splits.values()):
        frame = frames.library(next(iter(splits.values())))
        both = {part: parted(frames.read_frame(rows), names) for part, rows in splits.items()}
        splits = {part: rest for part, (rest, _) in both.items()}
        beside = {split_name(part): chosen for part, (_, chosen) in both.items()}
    if beside:
        names = next(iter(beside.values())).names
    own_columns = [text for text in column if not any(text.startswith(f"{n}:") for n in names)]
    _check_columns(own_columns, protocol)
    if protocol == "columns":
        found = tables.of_frames(name, splits, labels, columns, own_columns, kept)
        found.context = beside
        if frame:
            found.facts["frame"] = frame
        made = _build(found, protocol, levels, flip, seed_eval, True, kept)
        return conditioned(made, found, names, column, conditions, condition_gaps)
    held = {
        split_name(part): Given(*kinds.numbers_alone(rows)) if isinstance(rows, Raw) else given(rows)
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
    return conditioned(made, arrays, names, column, conditions, condition_gaps)


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
        "condition_gaps": settings.condition_gaps,
        "stream": settings.stream, "permutation": settings.permutation, "workers": settings.workers,
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
    sampled: bool = False,
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
        _columns(arrays.found, values["train"], kept)
        if table
        else _protocol(protocol, levels, values, names, sampled),
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
    name: str, levels: int | None, values: dict[str, Tensor], names: Sequence[str], sampled: bool = False
) -> Protocol:
    if name in LEVELS:
        return LEVELS[name](name, levels)
    if name == "standardize":
        return Standardize.fit(values["train"], names)
    if name == "table":
        return Table.fit(values["train"], names, sampled)
    return Identity(name, None)
