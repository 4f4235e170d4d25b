"""Results as files: a row an example, in the kind that the suffix of the file names."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from varflow.core.columns import NAMED, Column
from varflow.core.errors import DataError, SpecError
from varflow.core.files import make_folder, write_atomically, write_text
from varflow.data.cells import Listed, Numbers, as_datetime, is_number
from varflow.data.readers import need

#: What can be written, by suffix.
TABLES = (".csv", ".tsv", ".parquet", ".npy")


def write_table(path: Path, columns: Mapping[str, Any], values: Any = None) -> None:
    """Columns of equal length as .csv, .tsv or .parquet; as .npy ``values``, or the columns side by side.

    Numbers are written with as many digits as it takes to read them back, dates as 2024-03-01, a masked cell as an
    empty one, in .parquet as a null.

    Raises:
        SpecError: another suffix.
        DataError: .parquet without pyarrow.
        RunError: the file cannot be written.
    """
    check_suffix(path)
    make_folder(path.parent)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        array = np.column_stack([_array(column) for column in columns.values()]) if values is None else values
        write_atomically(path, lambda file: np.save(file, array))
    elif suffix == ".parquet":
        _parquet(path, columns)
    else:
        text = io.StringIO()
        print_table(text, columns, "\t" if suffix == ".tsv" else ",")
        write_text(path, text.getvalue())


def check_suffix(path: Path) -> None:
    """Raise :class:`SpecError` where no table can be written under this name."""
    if path.suffix.lower() not in TABLES:
        raise SpecError(f"out: {path} has the suffix '{path.suffix}'; use one of {', '.join(TABLES)}")


def print_table(file: IO[str], columns: Mapping[str, Sequence[Any]], delimiter: str = ",") -> None:
    """Columns as text with a head."""
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(_cells(_array(column)) for column in columns.values()), strict=True))


def _parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    try:
        import pyarrow
    except ImportError as error:
        raise need("table", "pyarrow", "writing .parquet") from error
    write_arrow(path, pyarrow.table({name: arrow_array(_array(column)) for name, column in columns.items()}))


def write_arrow(path: Path, table: Any) -> None:
    """An Arrow table as .csv, .tsv or .parquet.

    Raises:
        SpecError, RunError: as :func:`write_table`.
    """
    if path.suffix.lower() != ".parquet":
        return write_table(path, arrow_columns(table))
    from pyarrow import parquet

    make_folder(path.parent)
    write_atomically(path, lambda file: parquet.write_table(table, file))


def arrow_columns(table: Any) -> dict[str, np.ma.MaskedArray[Any, Any]]:
    """The columns of an Arrow table as plain values, nulls masked."""
    found = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        cells = column.to_pylist()
        found[name] = np.ma.MaskedArray(np.array([*cells, None], object)[:-1], [cell is None for cell in cells])
    return found


def arrow_array(column: np.ndarray[Any, Any]) -> Any:
    """A column as an Arrow array, masked cells as nulls."""
    import pyarrow

    if isinstance(column, np.ma.MaskedArray):
        return pyarrow.array(column.data, mask=np.ma.getmaskarray(column), from_pandas=False)
    return pyarrow.array(column)


def _array(column: Sequence[Any]) -> np.ndarray[Any, Any]:
    return column if isinstance(column, np.ndarray) else np.asarray(column)


def _cells(column: np.ndarray[Any, Any]) -> list[Any]:
    """Cells as :mod:`csv` writes them."""
    masked = isinstance(column, np.ma.MaskedArray)
    plain: np.ndarray[Any, Any] = np.asarray(column.data) if masked else column
    if plain.dtype.kind == "M":
        plain = np.datetime_as_string(plain)
    cells = plain.tolist()
    if not masked:
        return list(cells)
    return ["" if gone else cell for cell, gone in zip(cells, np.ma.getmaskarray(column).tolist(), strict=True)]


# -- stored values as the table was -------------------------------------------------------------------


def table_of(
    values: np.ndarray[Any, Any], columns: Sequence[Column], forms: Sequence[str]
) -> dict[str, np.ma.MaskedArray[Any, Any]]:
    """Stored values ``[N, D]`` (:mod:`varflow.data.kinds`) as the columns of the table that they are of.

    Counts and other whole numbers are int64, other numbers float64, values of a category text, dates datetime64;
    missing cells are masked.
    """
    each = zip(columns, forms, np.asarray(values, np.float64).T, strict=True)
    return {column.name: _column(column, form, cells) for column, form, cells in each}


def _column(column: Column, form: str, values: np.ndarray[Any, Any]) -> np.ma.MaskedArray[Any, Any]:
    gone = np.isnan(values)
    filled: Numbers = np.where(gone, 0, values).astype(np.float64)
    found: np.ndarray[Any, Any]
    if column.kind in NAMED:
        found = _named(column, form)[filled.astype(np.int64)]
    elif column.kind == "date":
        # The time of day of a column that has none is no matter of rounding.
        found = as_datetime(np.rint(filled) if form.startswith("day") else filled)
        if form.startswith("time") and found.dtype == np.dtype("datetime64[D]"):
            found = found.astype("datetime64[s]")
    elif column.kind == "count" or form == "whole":
        found = np.round(filled).astype(np.int64)
    else:
        found = filled
    return np.ma.MaskedArray(found, gone)


def _named(column: Column, form: str) -> np.ndarray[Any, Any]:
    """The values of a column by their codes, as they came."""
    names = column.categories
    if form == "truth" and set(names) <= {"True", "False"}:
        return np.array([name == "True" for name in names])
    if form in ("whole", "number") and is_number(Listed(names), ".").all():
        numbers = np.array([float(name) for name in names])
        return numbers.astype(np.int64) if form == "whole" else numbers
    return np.array(names, object)


def frame_of(library: str, columns: Mapping[str, np.ma.MaskedArray[Any, Any]], index: Any = None) -> Any:
    """Columns as a DataFrame of pandas or polars, or as an Arrow table.

    Args:
        library: pandas, polars or pyarrow.
        columns: of equal length.
        index: of a DataFrame of pandas.

    Raises:
        DataError: the library is not installed.
    """
    try:
        if library == "pandas":
            return _pandas(columns, index)
        if library == "polars":
            import polars

            return polars.DataFrame({name: _polars(column) for name, column in columns.items()})
        import pyarrow
    except ImportError as error:
        raise DataError(f"a frame of {library} needs {library}; install it with: pip install {library}") from error
    return pyarrow.table({name: arrow_array(column) for name, column in columns.items()})


def _pandas(columns: Mapping[str, np.ma.MaskedArray[Any, Any]], index: Any) -> Any:
    import pandas

    found = {}
    for name, column in columns.items():
        data, gone = column.data, np.ma.getmaskarray(column)
        series = pandas.Series(data, index=index)
        if gone.any():
            kind = {"i": "Int64", "b": "boolean"}.get(data.dtype.kind)
            series = (series.astype(kind) if kind else series).mask(pandas.Series(gone, index=index))
        found[name] = series
    return pandas.DataFrame(found, index=index)


def _polars(column: np.ma.MaskedArray[Any, Any]) -> Any:
    import polars

    data, gone = column.data, np.ma.getmaskarray(column)
    if data.dtype == np.dtype("datetime64[s]"):
        data = data.astype("datetime64[us]")
    held = polars.Series(data.tolist() if data.dtype.kind == "O" else data)
    if not gone.any():
        return held
    return polars.select(polars.when(polars.Series(~gone)).then(held)).to_series()
