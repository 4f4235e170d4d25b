"""Frames of pandas and polars, Arrow tables and data sets of Hugging Face, to named columns of cells. No torch.

A library is imported where a frame of it was given, and then it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from varflow.core.errors import DataError
from varflow.data.cells import (
    Cells,
    Codes,
    Flags,
    Listed,
    Numbers,
    are_whole,
    arrow_cells,
    text_cells,
)
from varflow.data.raw import Raw, checked, settled

#: Whole numbers beyond this are not all numbers of float64.
_EXACT = 2**53


def is_frame(x: Any) -> bool:
    """Whether x is a frame or a table of some library: of named columns."""
    named = ("__arrow_c_stream__", "__arrow_c_array__", "__dataframe__")
    return from_package(x, "pandas", "datasets") or any(hasattr(x, name) for name in named)


def from_package(x: Any, *packages: str) -> bool:
    """Whether the class of x, or one that it is made of, is of one of these packages."""
    return any(kind.__module__.split(".")[0] in packages for kind in type(x).__mro__)


def read_frame(x: Any, where: str = "x") -> Raw:
    """The columns of a frame of pandas or polars, of an Arrow table, or of a data set of Hugging Face.

    Text is read as that of a file is.

    Raises:
        DataError: a column that holds neither numbers nor text nor dates.
    """
    labels, classes = None, ()
    if from_package(x, "pandas"):
        columns = _of_pandas(x, where)
    elif from_package(x, "polars"):
        if type(x).__name__ == "LazyFrame":
            raise DataError(f"{where}: was a LazyFrame, whose rows are not there yet; give x.collect()")
        columns = _of_polars(x, where)
    else:
        if from_package(x, "datasets"):
            if not hasattr(x, "__len__"):
                kind = type(x).__name__
                raise DataError(f"{where}: was {kind}, which can only be gone through in order; load it whole")
            classed = [name for name, kind in x.features.items() if type(kind).__name__ == "ClassLabel"]
            if classed:
                labels, classes = np.asarray(x[classed[0]]), tuple(x.features[classed[0]].names)
                x = x.remove_columns(classed[:1])
            x = x.with_format("arrow")[:]
        columns = of_arrow(arrow_table(x, where), where)
    return settled(checked(Raw(tuple(columns), where, labels=labels, classes=classes)))


def _of_pandas(x: Any, where: str) -> Iterator[Cells]:
    import pandas
    from pandas.api import types

    if not hasattr(x, "columns"):
        x = x.to_frame("x" if x.name is None else x.name)
    for place, label in enumerate(x.columns):
        name, column = str(label), x.iloc[:, place]
        kind = column.dtype
        if str(kind).endswith("[pyarrow]"):
            yield from _of_arrow_column(name, column, where)
        elif isinstance(kind, pandas.CategoricalDtype):
            words = [str(word).strip() for word in column.cat.categories]
            yield _coded(name, column.cat.codes.to_numpy(np.int64), words, bool(column.cat.ordered))
        elif types.is_bool_dtype(kind):
            values = column.astype("boolean").astype("Float64").to_numpy(np.float64, na_value=np.nan)
            yield Cells(name, "number", values, whole=True, flag=True)
        elif types.is_numeric_dtype(kind) and not types.is_complex_dtype(kind):
            values = column.to_numpy(np.float64, na_value=np.nan)
            whole = types.is_integer_dtype(kind)
            yield _numeric(name, values, whole, where)
        elif types.is_datetime64_any_dtype(kind):
            naive = column.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(kind, "tz", None) else column
            yield _stamps(name, naive.to_numpy("datetime64[us]"))
        elif str(kind) in ("object", "str", "string") or isinstance(kind, pandas.StringDtype):
            yield _objects(name, column, where, lambda held: held.isna().to_numpy())
        else:
            raise _strange(name, kind, where)


def _of_arrow_column(name: str, column: Any, where: str) -> Iterator[Cells]:
    """A column of pandas that is one of Arrow inside."""
    import pyarrow

    yield from of_arrow(pyarrow.table({name: pyarrow.array(column)}), where)


def _objects(name: str, column: Any, where: str, gone: Callable[[Any], Flags]) -> Cells:
    """A column of Python objects: text, numbers, dates; one sort of them beside what is missing."""
    import datetime
    import numbers
    from decimal import Decimal

    import pandas

    missing = gone(column)
    codes, distinct = pandas.factorize(column)
    kinds = {type(value) for value in distinct}
    if all(issubclass(kind, str) for kind in kinds):
        # Text that is missing by its type has the code −1 already.
        found = text_cells(name, [str(value) for value in distinct])
        assert found.codes is not None
        moved = np.append(found.codes, -1)
        return Cells(name, "text", None, moved[np.where(missing, -1, codes)], found.words)
    if all(issubclass(kind, bool | np.bool_) for kind in kinds):
        values = np.append(np.array([float(value) for value in distinct]), np.nan)[np.where(missing, -1, codes)]
        return Cells(name, "number", values, whole=True, flag=True)
    if all(issubclass(kind, numbers.Real | Decimal) for kind in kinds):
        each = np.array([float(value) for value in distinct], np.float64)
        whole = all(issubclass(kind, numbers.Integral) for kind in kinds)
        return _numeric(name, np.append(each, np.nan)[np.where(missing, -1, codes)], whole, where)
    if all(issubclass(kind, datetime.date) for kind in kinds):
        stamps = np.array([np.datetime64(value, "us") for value in distinct] + [np.datetime64("NaT", "us")])
        return _stamps(name, stamps[np.where(missing, -1, codes)])
    said = " and ".join(sorted(kind.__name__ for kind in kinds))
    raise DataError(f"{where}: column '{name}' holds {said}; should be numbers, text or dates, of one sort")


def _of_polars(x: Any, where: str) -> Iterator[Cells]:
    import polars as pl

    if not hasattr(x, "columns"):
        x = x.to_frame()
    for column in x.iter_columns():
        name, kind = column.name, column.dtype
        if kind == pl.Boolean:
            yield Cells(name, "number", column.cast(pl.Float64).fill_null(np.nan).to_numpy(), whole=True, flag=True)
        elif kind.is_numeric():
            values = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
            yield _numeric(name, np.array(values), kind.is_integer(), where)
        elif kind in (pl.Date, pl.Datetime):
            if getattr(kind, "time_zone", None):
                column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            yield _stamps(name, column.cast(pl.Datetime("us")).to_numpy())
        elif kind in (pl.String, pl.Categorical, pl.Enum):
            if kind == pl.Enum:
                words = list(kind.categories)
            else:
                words = column.drop_nulls().unique(maintain_order=True).cast(pl.String).to_list()
            text = column.cast(pl.String)
            codes = text.replace_strict(words, range(len(words)), default=-1, return_dtype=pl.Int64).fill_null(-1)
            if kind == pl.String:
                found = text_cells(name, words)
                assert found.codes is not None
                yield Cells(name, "text", None, np.append(found.codes, -1)[codes.to_numpy()], found.words)
            else:
                yield _coded(name, codes.to_numpy(), words, False)
        elif kind == pl.Null:
            yield Cells(name, "number", np.full(len(column), np.nan))
        else:
            raise _strange(name, kind, where)


def arrow_table(x: Any, where: str) -> Any:
    """Whatever speaks Arrow as an Arrow table.

    Raises:
        DataError: pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"{where}: {type(x).__name__} is read through pyarrow; install it with: pip install 'varflow[table]'"
        ) from error
    if isinstance(x, pyarrow.Table):
        return x
    if isinstance(x, pyarrow.RecordBatch):
        return pyarrow.Table.from_batches([x])
    if hasattr(x, "__arrow_c_stream__") or hasattr(x, "__arrow_c_array__"):
        return pyarrow.table(x)
    from pyarrow.interchange import from_dataframe

    return from_dataframe(x)


def of_arrow(table: Any, where: str) -> Iterator[Cells]:
    """The columns of an Arrow table."""
    import pyarrow
    import pyarrow.compute as pc
    from pyarrow import types

    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if types.is_dictionary(kind):
            ordered = bool(kind.ordered)
            column = column.unify_dictionaries().combine_chunks()
            column = column.chunk(0) if isinstance(column, pyarrow.ChunkedArray) else column
            # Some write the numbers of values without a sign.
            codes = column.indices.cast(pyarrow.int64()).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
            yield _coded(name, codes, [str(word).strip() for word in column.dictionary.to_pylist()], ordered)
        elif types.is_boolean(kind):
            values = pc.cast(column, pyarrow.int8()).cast(pyarrow.float64()).to_numpy()
            yield Cells(name, "number", values, whole=True, flag=True)
        elif types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
            values = pc.cast(column, pyarrow.float64(), safe=False).to_numpy()
            yield _numeric(name, np.array(values, np.float64), types.is_integer(kind), where)
        elif types.is_date(kind) or types.is_timestamp(kind):
            stamps = pc.cast(column, pyarrow.timestamp("us"), safe=False)
            yield _stamps(name, stamps.to_numpy().astype("datetime64[us]"))
        elif types.is_string(kind) or types.is_large_string(kind) or "string_view" in str(kind):
            yield arrow_cells(name, pc.cast(column, pyarrow.string()))
        elif types.is_null(kind):
            yield Cells(name, "number", np.full(len(column), np.nan))
        else:
            raise _strange(name, kind, where)


def _strange(name: str, kind: Any, where: str) -> DataError:
    return DataError(
        f"{where}: column '{name}' holds {kind}, should be numbers, text or dates; drop it, or turn it into them"
    )


def _coded(name: str, codes: Codes, words: list[str], ordered: bool) -> Cells:
    """Words by their numbers. Those that no cell has go, unless they stand in an order."""
    if not ordered:
        seen = np.bincount(codes[codes >= 0], minlength=len(words)) > 0
        moved = np.append(np.where(seen, np.cumsum(seen) - 1, -1), -1)
        codes, words = moved[codes], [word for word, there in zip(words, seen, strict=True) if there]
    return Cells(name, "word", None, codes, Listed(words), ordered=ordered)


def _numeric(name: str, values: Any, whole: bool, where: str) -> Cells:
    there = values[~np.isnan(values)]
    if whole and there.size and np.abs(there).max() > _EXACT:
        raise DataError(
            f"{where}: column '{name}' holds whole numbers above 2⁵³, which float64 does not tell apart; drop it, or "
            "subtract a constant"
        )
    return Cells(name, "number", values, whole=whole or (there.size > 0 and are_whole(there)))


def _stamps(name: str, stamps: Any) -> Cells:
    missing = np.isnat(stamps)
    micro = stamps.astype("datetime64[us]").astype(np.int64)
    days = np.where(missing, np.nan, micro / 86400e6)
    return Cells(name, "day", days, whole=not bool((days[~missing] % 1).any()))


def library(x: Any) -> str:
    """The library that a frame is of: pandas, polars or pyarrow."""
    return next((name for name in ("pandas", "polars") if from_package(x, name)), "pyarrow")


def of_numbers(columns: Mapping[str, Numbers], named: bool, where: str = "x") -> Raw:
    """Columns of numbers as a table."""
    return checked(
        Raw(tuple(_numeric(name, values, False, where) for name, values in columns.items()), where, named)
    )
