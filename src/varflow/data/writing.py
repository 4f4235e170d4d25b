"""Results as files: a row an example, in the kind that the suffix of the file names."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from varflow.core.errors import SpecError
from varflow.core.files import make_folder, write_atomically, write_text
from varflow.data.readers import need

#: What can be written, by suffix.
TABLES = (".csv", ".tsv", ".parquet", ".npy")


def write_table(path: Path, columns: Mapping[str, Sequence[Any]], values: Any = None) -> None:
    """Columns of equal length as .csv, .tsv or .parquet; as .npy ``values``, or the columns side by side.

    Numbers are written with as many digits as it takes to read them back.

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
    writer.writerows(zip(*(_array(column).tolist() for column in columns.values()), strict=True))


def _parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise need("table", "pyarrow", "writing .parquet") from error
    table = pyarrow.table({name: pyarrow.array(_array(column)) for name, column in columns.items()})
    write_atomically(path, lambda file: parquet.write_table(table, file))


def _array(column: Sequence[Any]) -> np.ndarray[Any, Any]:
    return np.asarray(column)
