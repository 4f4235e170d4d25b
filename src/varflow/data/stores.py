"""Where rows lie that are not held in memory: a store says what there is, and reads rows when asked for them.

:class:`NpyStore` reads a file of numpy, :class:`ArrayStore` an array that somebody holds. Tables in groups of rows
are read by :mod:`varflow.data.stores_arrow`, examples one by one (pictures, data sets of torch and of Hugging Face)
by :mod:`varflow.data.stores_items`.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from varflow.core.errors import DataError, ShapeError
from varflow.data.permutations import Places

#: Blocks of a file that stand for all of it, and the bytes of each.
BLOCKS, BLOCK = 64, 2**16
#: A row that took longer than so many seconds was not in memory.
_COLD = 2e-5
#: Rows that are read in one go take at most so many bytes.
_GO = 2**21


class Store:
    """Rows that are read as they are needed.

    Attributes:
        name: what messages call it.
        shape: of one row, as it is read.
        dtype: of the values, as they are read.
        groups: rows of each group that is read as a whole; none where single rows can be read.
        columns: heads of the columns of a table; none where they have none.
        classes: names of the labels, where they have some.
        files: name of each row, where rows are files; else none.
        source: the file or folder; "" where it is neither.
        workers: processes that read beside the one that computes, unless told.
        slow: whether each row is decoded by itself.
        cold: whether the last rows had to be fetched from a disk.
    """

    name: str = ""
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = np.dtype(np.float32)
    groups: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    source: str = ""
    workers: int = 0
    slow: bool = False
    cold: bool = False

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all values as they are stored."""
        return len(self) * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, places: Places) -> Any:
        """The rows at ``places`` of the store, in their order: an array or a tensor ``[B, *shape]``.

        Raises:
            DataError: they cannot be read, or the file has changed.
        """
        raise NotImplementedError

    def labels(self, places: Places | None = None) -> NDArray[np.int64] | None:
        """Class numbers of rows, of all without ``places``; None where there are none."""
        return None

    def expect(self, places: Places) -> None:
        """These rows will be read soon."""

    def keep_groups(self, count: int) -> None:
        """So many groups are worth keeping once they are read."""

    def pieces(self) -> Iterator[tuple[int, Any]]:
        """(first row, rows) of all of the store in order, in pieces of some megabytes, each within one group."""
        start = 0
        for rows in self.groups or (len(self),):
            step = rows if self.groups else max(1, _GO // max(self.row_bytes, 1))
            for at in range(start, start + rows, step):
                yield at, self.read(np.arange(at, min(at + step, start + rows)))
            start += rows

    def facts(self) -> dict[str, Any]:
        """What tells this store from others, as plain values: checksums, for the run folder."""
        return {}


class File:
    """A file that is read at any place, by several processes at once, and must not change meanwhile.

    Raises:
        DataError: (from all methods) it cannot be read, or it has changed since it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None
        with self._readable():
            found = path.stat()
        self.size, self._changed = found.st_size, found.st_mtime_ns

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens it for itself.
        return {**vars(self), "_handle": None}

    def _readable(self) -> Any:
        return _Readable(self.path)

    @property
    def descriptor(self) -> int:
        if self._handle is None:
            with self._readable():
                self._handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, self._handle)
        return int(self._handle)

    def check(self) -> None:
        """Whether it is the file that was opened."""
        found = os.fstat(self.descriptor)
        if (found.st_size, found.st_mtime_ns) != (self.size, self._changed):
            raise DataError(
                f"{self.path}: has changed while it was read ({self.size:,} bytes before, {found.st_size:,} now); "
                "leave the file as it is until the fit ends, and fit again"
            )

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` with the bytes from ``offset`` on."""
        done = 0
        with self._readable():
            while done < len(view):
                if hasattr(os, "preadv"):
                    count = os.preadv(self.descriptor, [view[done:]], offset + done)
                else:
                    os.lseek(self.descriptor, offset + done, os.SEEK_SET)
                    found = os.read(self.descriptor, len(view) - done)
                    count = len(found)
                    view[done : done + count] = found
                if not count:
                    raise DataError(f"{self.path}: ends at byte {offset + done:,}, before it should; it is truncated")
                done += count

    def read_rows(self, view: memoryview, width: int, rows: list[int], offsets: list[int]) -> None:
        """Fill rows of ``view``, each ``width`` bytes, with what lies at ``offsets``."""
        if not hasattr(os, "preadv"):
            for row, offset in zip(rows, offsets, strict=True):
                self.read_into(view[row * width : (row + 1) * width], offset)
            return
        handle, read = self.descriptor, os.preadv
        with self._readable():
            for row, offset in zip(rows, offsets, strict=True):
                begin = row * width
                count = read(handle, [view[begin : begin + width]], offset)
                if count < width:
                    self.read_into(view[begin + count : begin + width], offset + count)

    def will_need(self, offset: int, size: int) -> None:
        """Have the system fetch a part that is not in memory yet, without waiting for it."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def fingerprint(self) -> dict[str, Any]:
        """Its size and the MD5 sum of blocks of it that are chosen by its size, of all of it where it is small:
        hashing hundreds of gigabytes takes longer than many fits.
        """
        whole = self.size <= BLOCKS * BLOCK
        starts = list(range(0, self.size, BLOCK))
        if not whole:
            chosen = np.random.default_rng(self.size).choice(len(starts) - 1, BLOCKS - 2, replace=False).tolist()
            # The first block has the head, and the last one shows where the file ends.
            starts = sorted({0, *(place * BLOCK for place in chosen), self.size - BLOCK})
        digest = hashlib.md5(usedforsecurity=False)
        for start in starts:
            block = bytearray(min(BLOCK, self.size - start))
            self.read_into(memoryview(block), start)
            digest.update(block)
        of = f"{len(starts)} blocks of {BLOCK // 1024} KiB chosen by its size"
        how = "" if whole else f": {self.size:,} bytes, {of}"
        return {f"{self.path.name}{how}": {"md5": digest.hexdigest(), "verified": False}}


class _Readable:
    """What the system says of a file, in one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error}); check it") from error


class NpyStore(Store):
    """The rows of a .npy file, read one by one from their places in it.

    Nothing is mapped into memory: mapped pages would count as memory of the process, all of a file in the end.

    Raises:
        DataError: it is no array of numbers, lies column by column, or is shorter than it says.
    """

    def __init__(self, path: Path) -> None:
        self.file = File(path)
        self.name, self.source = path.name, str(path.resolve())
        shape, fortran, dtype, self.offset = _head(path)
        if fortran and len(shape) > 1 and min(shape) > 1:
            raise DataError(
                f"{path}: lies column by column (Fortran order), so that no row can be read by itself; save "
                "numpy.ascontiguousarray of it"
            )
        self._set(shape, dtype)
        if self.file.size < self.offset + self.nbytes:
            raise DataError(
                f"{path}: {self.file.size:,} bytes, should be {self.offset + self.nbytes:,} for shape "
                f"{list(shape)}; the file is truncated, write it again"
            )

    def _set(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise DataError(f"x: dtype {dtype}, should be numbers (uint8 levels or floats)")
        if not shape:
            raise ShapeError(f"x: {dtype} [], should be real numbers, a row an example")
        self._size, self.shape, self.dtype = shape[0], tuple(shape[1:]), dtype
        if not self.nbytes:
            raise DataError(f"x: shape {list(shape)} holds no data")

    def __len__(self) -> int:
        return self._size

    def read(self, places: Places) -> Any:
        self.file.check()
        width, count = self.row_bytes, len(places)
        out = np.empty((count, width), np.uint8)
        view = memoryview(out.reshape(-1).data)
        if count and int(places[-1]) - int(places[0]) == count - 1 and bool((np.diff(places) == 1).all()):
            self.file.read_into(view, self.offset + int(places[0]) * width)
        else:
            if self.cold:
                self.expect(places)
            begun = time.perf_counter()
            # In the order of the file: rows of one page come one after the other.
            order = np.argsort(places)
            starts = self.offset + np.asarray(places)[order] * width
            self.file.read_rows(view, width, order.tolist(), starts.tolist())
            self.cold = time.perf_counter() - begun > _COLD * count
        return out.view(self.dtype).reshape(count, *self.shape)

    def expect(self, places: Places) -> None:
        if self.cold:
            for place in np.sort(places).tolist():
                self.file.will_need(self.offset + place * self.row_bytes, self.row_bytes)

    def facts(self) -> dict[str, Any]:
        return {"source": self.source, "checksums": self.file.fingerprint()}


def _head(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether it lies by columns, dtype, where the rows begin) of a .npy file."""
    try:
        with open(path, "rb") as file:
            head = io.BytesIO(file.read(2**16))
            version = np.lib.format.read_magic(head)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(head)
            return shape, fortran, dtype, head.tell()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check it") from error
    except Exception as error:  # numpy raises what damaged bytes lead it to
        what = str(error).split(". ")[0]
        raise DataError(
            f"{path}: cannot be read as a numpy file ({what}); save plain numbers, not objects"
        ) from error


def of_memmap(x: Any) -> NpyStore | None:
    """The rows of a memory-mapped array, read from its file; None where it does not lie there row by row."""
    base, mapped = x, getattr(x, "_mmap", None)
    if mapped is None or not x.flags.c_contiguous or not x.ndim or x.filename is None:
        return None
    while isinstance(base.base, np.memmap):
        base = base.base
    store = NpyStore.__new__(NpyStore)
    store.file = File(Path(x.filename))
    store.name, store.source = Path(x.filename).name, str(Path(x.filename).resolve())
    # A view has the offset of what it is a view of: where it begins is told by its address.
    begin, first = (int(array.__array_interface__["data"][0]) for array in (x, base))
    store.offset = int(base.offset) + begin - first
    store._set(tuple(x.shape), x.dtype)
    return store


class ArrayStore(Store):
    """The rows of an array or a tensor that somebody holds in memory: of it only the rows of a batch are copied."""

    def __init__(self, x: Any, name: str = "tensor", labels: Any = None) -> None:
        self.x, self.name = x, name
        self.shape = tuple(x.shape[1:])
        self.dtype = np.dtype(str(x.dtype).removeprefix("torch.")) if isinstance(x, Tensor) else x.dtype
        self._labels = labels
        if not len(x) or not self.nbytes:
            raise DataError(f"x: shape {list(x.shape)} holds no data")

    def __len__(self) -> int:
        return len(self.x)

    def read(self, places: Places) -> Any:
        if isinstance(self.x, Tensor):
            import torch

            return self.x.detach()[torch.from_numpy(np.asarray(places)).to(self.x.device)]
        return self.x[places]

    def labels(self, places: Places | None = None) -> NDArray[np.int64] | None:
        if self._labels is None:
            return None
        held = np.asarray(self._labels)
        return held if places is None else held[places]
