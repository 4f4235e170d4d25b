"""Tables in groups of rows that are each read as a whole: Parquet by row groups, Arrow by record batches."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.core.errors import DataError
from varflow.data.named import LABEL_HEADS
from varflow.data.permutations import Places
from varflow.data.readers import need
from varflow.data.stores import File, Store

#: A group takes at most so many bytes once it is read.
_LARGEST = 2**30
_PARQUET = ".parquet"


class NoNumbers(DataError):
    """A table that has columns of something else than numbers."""


class GroupStore(Store):
    """The rows of a Parquet, Feather or Arrow file of numbers.

    A column headed label, labels, class, target or y gives the labels if its values are whole by their type.

    Raises:
        DataError: pyarrow is missing, the file is damaged, a column holds no numbers, or a group is too large to be
            read as a whole.
    """

    def __init__(self, path: Path) -> None:
        self.file, self.path = File(path), path
        self.name, self.source = path.name, str(path.resolve())
        self._reader: Any = None
        self._held: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        self._most = 2
        schema = self._open().schema_arrow if path.suffix.lower() == _PARQUET else self._open().schema
        marked = [name for name in schema.names if name.lower() in LABEL_HEADS and _is_whole(schema.field(name).type)]
        self._label = marked[0] if len(marked) == 1 and len(schema.names) > 1 else None
        self.columns = tuple(name for name in schema.names if name != self._label)
        kinds = {_numbers_type(path, name, schema.field(name).type) for name in self.columns}
        if len(set(schema.names)) < len(schema.names):
            raise DataError(f"{path}: has several columns of one name; give each a name of its own")
        self.shape = (len(self.columns),)
        self.dtype = np.dtype(np.float32) if kinds == {"float32"} else np.dtype(np.float64)
        self.groups = tuple(self._sizes())
        self._size = sum(self.groups)
        if not self._size:
            raise DataError(f"{path}: has a head but no rows")
        largest = max(self.groups) * self.row_bytes
        if largest > _LARGEST:
            raise DataError(
                f"{path}: has a group of {max(self.groups):,} rows, {largest / 2**30:.1f} GiB; write it again with "
                "smaller ones, e.g. row_group_size=100_000"
            )
        self._ends = np.cumsum(self.groups)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_reader": None, "_held": OrderedDict()}

    def __len__(self) -> int:
        return self._size

    def keep_groups(self, count: int) -> None:
        self._most = count

    def _open(self) -> Any:
        if self._reader is None:
            try:
                import pyarrow
                import pyarrow.ipc
                import pyarrow.parquet as parquet
            except ImportError as error:
                raise need("table", "pyarrow", "reading Parquet and Arrow files") from error
            try:
                if self.path.suffix.lower() == _PARQUET:
                    self._reader = parquet.ParquetFile(self.path, memory_map=False)
                else:
                    self._reader = pyarrow.ipc.open_file(pyarrow.OSFile(str(self.path)))
            except (OSError, pyarrow.ArrowException) as error:
                first = str(error).partition("\n")[0]
                raise DataError(f"{self.path}: cannot be read ({first})") from error
        return self._reader

    def _sizes(self) -> list[int]:
        """Rows of each group."""
        reader = self._open()
        if self.path.suffix.lower() == _PARQUET:
            groups = reader.metadata
            return [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
        return [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]

    def _group(self, number: int) -> tuple[Any, Any]:
        """Values ``[rows, columns]`` and labels of a group; the last that were read are kept."""
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        self.file.check()
        reader, wanted = self._open(), [*self.columns, *([self._label] if self._label else [])]
        try:
            if self.path.suffix.lower() == _PARQUET:
                table = reader.read_row_group(number, columns=wanted, use_threads=False)
            else:
                table = reader.get_batch(number)
            if table.num_rows != self.groups[number]:
                raise DataError(f"{self.path}: group {number} has {table.num_rows} rows now; it was changed")
            values = np.empty((table.num_rows, len(self.columns)), self.dtype)
            for place, name in enumerate(self.columns):
                values[:, place] = _column(table.column(name))
            labels = None
            if self._label:
                if table.column(self._label).null_count:
                    raise DataError(f"{self.path}: column '{self._label}' has missing cells; drop it, or fill them")
                labels = _column(table.column(self._label)).astype(np.int64)
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            first = str(error).partition("\n")[0]
            raise DataError(f"{self.path}: group {number} cannot be read ({first})") from error
        self._held[number] = values, labels
        while len(self._held) > self._most:
            self._held.popitem(last=False)
        return values, labels

    def read(self, places: Places) -> Any:
        places = np.asarray(places)
        out = np.empty((len(places), *self.shape), self.dtype)
        number = np.searchsorted(self._ends, places, side="right")
        for group in np.unique(number):
            here = number == group
            first = self._ends[group] - self.groups[group]
            out[here] = self._group(int(group))[0][places[here] - first]
        return out

    def labels(self, places: Places | None = None) -> NDArray[np.int64] | None:
        if self._label is None:
            return None
        reader = self._open()
        if places is None and self.path.suffix.lower() == _PARQUET:
            # A column by itself is read without the others.
            return np.asarray(_column(reader.read(columns=[self._label]).column(0))).astype(np.int64)
        wanted = np.arange(self._size) if places is None else places
        number, out = np.searchsorted(self._ends, wanted, side="right"), np.empty(len(wanted), np.int64)
        for group in np.unique(number):
            here = number == group
            out[here] = self._group(int(group))[1][wanted[here] - (self._ends[group] - self.groups[group])]
        return out

    def facts(self) -> dict[str, Any]:
        return {"source": self.source, "checksums": self.file.fingerprint()}


def group_store(path: Path, told: bool) -> GroupStore | None:
    """The store of a table; None where it holds something else than numbers and nobody asked for a store.

    Raises:
        DataError: it cannot be read; or, where one was asked for, a column that holds no numbers.
    """
    try:
        return GroupStore(path)
    except DataError:
        # Held in memory it is read by other rules, which say what is wrong.
        if told:
            raise
        return None


def _is_whole(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind))


def _numbers_type(path: Path, name: str, kind: Any) -> str:
    """Whether a column is float32 or something that float64 holds.

    Raises:
        NoNumbers: it is neither.
    """
    import pyarrow

    types = pyarrow.types
    if types.is_float32(kind):
        return "float32"
    if types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind):
        return "float64"
    raise NoNumbers(
        f"{path}: column '{name}' holds {kind}, and a table that is streamed holds numbers alone; drop the column or "
        "write its values as numbers, or hold the table in memory (stream=never), where likelihood=columns reads it"
    )


def _column(column: Any) -> Any:
    """A column as numbers, NaN where a cell is missing."""
    import pyarrow
    from pyarrow import compute

    if pyarrow.types.is_decimal(column.type) or pyarrow.types.is_boolean(column.type):
        column = compute.cast(column, pyarrow.float64(), safe=False)
    return column.to_numpy() if hasattr(column, "chunks") else column.to_numpy(zero_copy_only=False)
