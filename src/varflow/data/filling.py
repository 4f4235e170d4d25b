"""Missing cells of a table filled in: what was there stays as it is, to the digit.

Frames keep their columns, types and index; a file of text keeps its head, its delimiter, and every cell that was
there as it was written. A column of dates that is not written as 2024-03-01 comes out so, all of it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.core.columns import NAMED, Column
from varflow.data import frames, reading
from varflow.data.cells import iso, number_text

#: name of a column → (which cells are filled, all of its cells as the table has them).
Filling = Mapping[str, tuple[NDArray[np.bool_], np.ma.MaskedArray[Any, Any]]]
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?$")


def fill_frame(x: Any, filling: Filling) -> Any:
    """A frame of pandas or polars, or an Arrow table, with some of its cells filled in."""
    library = frames.library(x)
    if library == "pandas":
        return _pandas(x, filling)
    if library == "polars":
        return _polars(x, filling)
    return _arrow(x, filling)


def _words(cells: NDArray[Any]) -> list[str]:
    """Cells as text, for a column of text."""
    if cells.dtype.kind == "M":
        return [str(cell) for cell in np.datetime_as_string(cells)]
    return [number_text(float(c)) if isinstance(c, int | float) else str(c) for c in cells.tolist()]


def _pandas(x: Any, filling: Filling) -> Any:
    import pandas
    from pandas.api import types

    series = not hasattr(x, "columns")
    out = (x.to_frame("x" if x.name is None else x.name) if series else x).copy()
    columns = {}
    for place, label in enumerate(out.columns):
        column = out.iloc[:, place]
        gone, cells = filling.get(str(label), (None, None))
        if gone is not None and cells is not None and gone.any():
            new: Any = np.asarray(cells.data)[gone]
            kind = column.dtype
            if isinstance(kind, pandas.CategoricalDtype):
                names = {str(word).strip(): word for word in kind.categories}
                new = [names[word] for word in _words(new)]
            elif types.is_datetime64_any_dtype(kind):
                stamps = pandas.to_datetime(new)
                new = stamps.tz_localize("UTC").tz_convert(kind.tz) if getattr(kind, "tz", None) else stamps
            elif types.is_string_dtype(kind) and _has_text(column):
                new = _words(new)
            elif new.dtype.kind == "f" and types.is_integer_dtype(kind):
                column = column.astype("Float64")
            column = column.copy()
            column.iloc[np.flatnonzero(gone)] = list(new)
        columns[place] = column
    made = pandas.concat(columns.values(), axis=1)
    made.columns = out.columns
    return made.iloc[:, 0] if series else made


def _has_text(column: Any) -> bool:
    there = column.dropna()
    return not len(there) or all(isinstance(cell, str) for cell in there.head(100))


def _polars(x: Any, filling: Filling) -> Any:
    import polars

    made = []
    for column in x.get_columns():
        gone, cells = filling.get(column.name, (None, None))
        if gone is not None and cells is not None and gone.any():
            data = np.asarray(cells.data)
            if column.dtype in (polars.String, polars.Categorical) or isinstance(column.dtype, polars.Enum):
                new = polars.Series(column.name, _words(data)).cast(column.dtype)
            else:
                if data.dtype == np.dtype("datetime64[s]"):
                    data = data.astype("datetime64[us]")
                new = polars.Series(column.name, data.tolist() if data.dtype.kind == "O" else data)
                if data.dtype.kind == "f" and column.dtype.is_integer():
                    column = column.cast(polars.Float64)
                elif new.dtype != column.dtype and getattr(column.dtype, "time_zone", None):
                    new = new.cast(polars.Datetime("us")).dt.replace_time_zone("UTC")
                    new = new.dt.convert_time_zone(column.dtype.time_zone)
                new = new.cast(column.dtype)
            column = column.zip_with(polars.Series(~gone), new)
        made.append(column)
    return polars.DataFrame(made)


def _arrow(x: Any, filling: Filling) -> Any:
    import pyarrow
    import pyarrow.compute as pc
    from pyarrow import types

    x = frames.arrow_table(x, "x")
    for place, name in enumerate(x.column_names):
        gone, cells = filling.get(name, (None, None))
        if gone is None or cells is None or not gone.any():
            continue
        column, data = x.column(place), np.asarray(cells.data)
        kind = column.type
        plain = kind.value_type if types.is_dictionary(kind) else kind
        textual = types.is_string(plain) or types.is_large_string(plain) or "string_view" in str(plain)
        new = pyarrow.array(_words(data)) if textual else pyarrow.array(data)
        if data.dtype.kind == "f" and types.is_integer(plain) and not textual:
            plain = kind = pyarrow.float64()
        filled = pc.if_else(pyarrow.array(gone), new.cast(plain), column.cast(plain))
        if types.is_dictionary(kind):
            filled = filled.dictionary_encode().cast(kind)
        x = x.set_column(place, pyarrow.field(name, filled.type), filled)
    return x


def fill_text(
    path: Path,
    columns: Sequence[Column],
    stored: NDArray[np.float64],
    gone: NDArray[np.bool_],
    mark: str = "",
    delimiter: str = "",
) -> str:
    """A file of text with some of its cells filled in, as text.

    Args:
        path: the file.
        columns: what is known of the columns that a model has.
        stored: stored values ``[N, D]`` of these columns.
        gone: which cells are filled in ``[N, D]``.
        mark: what stands before decimals in the file; "" where nothing tells.
        delimiter: between the cells; "" for that of the file.
    """
    table = reading.text_table(path)
    places = {name: place for place, name in enumerate(table.names)}
    rows = [list(row) for row in table.rows]
    for number, column in enumerate(columns):
        chosen = np.flatnonzero(gone[:, number])
        # Columns of a file without a head stand in their order.
        place = places.get(column.name, number)
        if not len(chosen):
            continue
        if column.kind == "date" and any(
            not _ISO.match(row[place].strip()) for row, empty in zip(rows, gone[:, number], strict=True) if not empty
        ):
            chosen = np.arange(len(rows))
        for row, text in zip(chosen, _texts(column, stored[chosen, number], mark), strict=True):
            rows[row][place] = text
    # A column by itself has none.
    own = table.dialect.delimiter if table.dialect.delimiter in ("\t", ";", ",", "|") else ","
    written = io.StringIO()
    writer = csv.writer(
        written,
        delimiter=delimiter or own,
        quotechar=table.dialect.quote,
        lineterminator="\n",
    )
    if table.headed:
        writer.writerow(table.names)
    writer.writerows(rows)
    return written.getvalue()


def _texts(column: Column, values: NDArray[np.float64], mark: str) -> list[str]:
    """Stored values as the cells of a file."""
    if column.kind == "date":
        return iso(values)
    if column.kind in NAMED:
        texts = [column.categories[int(code)] for code in values]
    else:
        texts = [number_text(float(value)) for value in values]
    if mark != ",":
        return texts
    return [text.replace(".", ",") if re.fullmatch(r"-?\d*\.\d+([eE].*)?", text) else text for text in texts]
