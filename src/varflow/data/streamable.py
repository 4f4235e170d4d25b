"""Which data can be read as they are needed: from a path, or from what somebody holds in Python, to a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from varflow.core.errors import SpecError
from varflow.data import reading as tables
from varflow.data.own import is_picture
from varflow.data.stores import ArrayStore, NpyStore, Store, of_memmap
from varflow.data.streaming import ABOVE, Reading

#: What can be streamed, for messages.
CAN = ".npy, .parquet, .feather, .arrow and folders of pictures can"


def of_path(path: Path, resize: int | tuple[int, int] | None, how: Reading) -> Store | None:
    """The store of one's own file or folder, where it is to be streamed or to have a computed order; else None.

    Raises:
        DataError: it cannot be read.
    """
    told = how.stream == "always" or how.computed
    if not path.exists() or (how.stream == "never" and not told):
        return None
    if path.is_file() and path.suffix.lower() == ".npy":
        if path.stat().st_size <= ABOVE and not told:
            return None
        return _large(None if _is_gzip(path) else NpyStore(path), how)
    if path.is_file() and path.suffix.lower() in tables.ARROWS:
        from varflow.data.stores_arrow import group_store

        return _large(group_store(path, told), how)
    if path.is_dir() and not is_picture(path):
        from varflow.data.stores_items import picture_store

        return _large(picture_store(path, resize, told), how)
    return None


def of_python(x: Any, labels: Any, name: str, how: Reading) -> Store | None:
    """The store of an array, a tensor or a map-style data set, where it is to be streamed; else None."""
    told = how.stream == "always" or how.computed
    if how.stream == "never" and not told:
        return None
    if isinstance(x, np.memmap) and labels is None and (found := of_memmap(x)) is not None:
        return _large(found, how)
    if isinstance(x, np.ndarray | Tensor) and not isinstance(x, np.ma.MaskedArray) and x.ndim:
        small = x.size * x.itemsize if isinstance(x, np.ndarray) else x.numel() * x.element_size()
        if x.ndim == 1:
            x = x[:, None]
        # What lies on a GPU stays there.
        stays = isinstance(x, Tensor) and x.device.type != "cpu" and not told
        return None if stays or (small <= ABOVE and not told) else _large(ArrayStore(x, name, labels), how)
    from varflow.data.stores_items import item_store

    return _large(item_store(x, labels, name), how)


def refuse(how: Reading, name: str) -> None:
    """Refuse what was asked for of data that have to be held in memory.

    Raises:
        SpecError: they are to be streamed, or to have a computed order.
    """
    if how.stream == "always":
        raise SpecError(f"stream: was always, and {name} cannot be read as it is needed; {CAN}")
    if how.computed:
        raise SpecError(f"permutation: was computed, and {name} cannot be read as it is needed; {CAN}")


def _large(store: Store | None, how: Reading) -> Store | None:
    if store is None:
        return None
    return store if how.computed or how.wants(store.nbytes) else None


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"
