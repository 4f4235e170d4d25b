"""Examples that are read one by one: folders of pictures, and map-style data sets of torch and of Hugging Face."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from varflow.core.errors import DataError, ShapeError
from varflow.data.frames import from_package
from varflow.data.given import example_parts, stacked
from varflow.data.own import as_shown, in_size, picture_paths, size_of
from varflow.data.permutations import Places
from varflow.data.readers import need
from varflow.data.stores import ArrayStore, Store

#: Pictures whose heads are read before a fit begins; of more than these a seeded part.
_HEADS = 20_000
#: Modes of Pillow that are grey as a viewer shows them.
_GREY = ("1", "L", "LA", "La")
_WORKERS = 2


class PictureStore(Store):
    """The pictures of a folder, in the order of their paths, decoded when they are read.

    Whether they are grey or RGB, and of one size, the heads of up to 20,000 of them tell; a picture that is otherwise
    is refused when it comes.

    Args:
        folder: where they lie; subfolders are the labels, where every picture lies in one.
        resize: (height, width) that each is brought to; None leaves them.

    Raises:
        DataError: Pillow is missing, there are no pictures, a damaged one, or several sizes.
    """

    slow = True
    workers = _WORKERS

    def __init__(self, folder: Path, resize: tuple[int, int] | None) -> None:
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise need("pictures", "Pillow", "reading a folder of pictures") from error
        paths, self._skipped = picture_paths(folder)
        self.folder, self.resize = folder, resize
        self.name, self.source = folder.name, str(folder.resolve())
        parts = [path.relative_to(folder).parts for path in paths]
        self.files = tuple("/".join(part) for part in parts)
        self._labels: NDArray[np.int64] | None = None
        if all(len(part) > 1 for part in parts):
            self.classes = tuple(sorted({part[0] for part in parts}))
            number = {name: place for place, name in enumerate(self.classes)}
            self._labels = np.array([number[part[0]] for part in parts], np.int64)
        self._grey = True
        height, width = self._look(paths)
        self.shape = (height, width) if self._grey else (height, width, 3)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.files)

    def _look(self, paths: Sequence[Path]) -> tuple[int, int]:
        """The size of the pictures, and whether they are grey, by their heads."""
        from PIL import Image

        some = paths
        if len(paths) > _HEADS:
            chosen = np.random.default_rng(len(paths)).choice(len(paths), _HEADS, replace=False)
            some = [paths[place] for place in np.sort(chosen)]
        first: tuple[Path, tuple[int, int]] | None = None
        for path in some:
            try:
                with Image.open(path) as picture:
                    turned = picture.getexif().get(0x0112, 1) >= 5
                    size = picture.size[::-1] if turned else picture.size
                    self._grey &= picture.mode in _GREY
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"{path}: damaged picture ({error}); repair or remove it") from error
            first = first or (path, size)
            if size != first[1] and self.resize is None:
                raise DataError(
                    f"{self.folder}: pictures of several sizes, such as {first[0].name} {size_of(first[1])} and "
                    f"{path.name} {size_of(size)}; bring them to one size, or pass resize=32 (--resize 32), in "
                    "Python also resize=(height, width)"
                )
        assert first is not None
        return self.resize or (first[1][1], first[1][0])

    def read(self, places: Places) -> Any:
        out = np.empty((len(places), *self.shape), np.uint8)
        for row, place in enumerate(np.asarray(places).tolist()):
            out[row] = self._decoded(self.folder / self.files[place])
        return out

    def _decoded(self, path: Path) -> Any:
        from PIL import Image

        try:
            with Image.open(path) as picture:
                shown = as_shown(picture, str(path))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: damaged picture ({error}); repair or remove it") from error
        if self._grey and shown.mode != "L":
            raise DataError(
                f"{path}: is in colour, and the pictures whose heads were read are grey; make all of one kind"
            )
        shown = in_size(shown if self._grey else shown.convert("RGB"), self.resize)
        found = np.asarray(shown)
        if found.shape != self.shape:
            raise DataError(
                f"{path}: is {size_of(shown.size)}, the pictures before it are {self.shape[0]}×{self.shape[1]}; "
                "bring all to one size, or pass resize=32 (--resize 32)"
            )
        return found

    def labels(self, places: Places | None = None) -> NDArray[np.int64] | None:
        return self._labels if places is None or self._labels is None else self._labels[places]

    def facts(self) -> dict[str, Any]:
        digest = hashlib.md5(usedforsecurity=False)
        for name in self.files:
            digest.update(f"{name} {(self.folder / name).stat().st_size}\n".encode())
        resize = list(self.resize) if self.resize else None
        checksums = {f"{len(self.files):,} names and sizes": {"md5": digest.hexdigest(), "verified": False}}
        return {
            "source": self.source, "skipped_files": self._skipped, "resize": resize, "checksums": checksums,
        }  # fmt: skip


def picture_store(folder: Path, resize: int | tuple[int, int] | None, told: bool) -> PictureStore | None:
    """The store of a folder of pictures; None where nobody asked for one, and there is something else in it."""
    size = (resize, resize) if isinstance(resize, int) else resize
    try:
        return PictureStore(folder, size)
    except DataError:
        # Held in memory the same is said.
        if told:
            raise
        return None


class ItemStore(Store):
    """A map-style data set of torch, whose items are rows or pictures, with their labels or without.

    Raises:
        DataError, ShapeError: as :func:`varflow.data.given.given` has of its items.
    """

    slow = True
    workers = _WORKERS

    def __init__(self, data: Any, name: str, labels: Any = None) -> None:
        self.data, self.name, self._labels = data, name, labels
        try:
            self._size = len(data)
        except (TypeError, NotImplementedError) as error:
            kind = type(data).__name__
            raise DataError(f"x: {kind} has no length; give a map-style torch Dataset with __len__") from error
        if not self._size:
            raise DataError("x: holds no examples")
        first = self.read(np.arange(1))
        self.shape = tuple(first.shape[1:])
        self.dtype = np.dtype(str(first.dtype).removeprefix("torch."))
        if self._labels is None and example_parts(data[0], 0)[1] is not None:
            # torchvision and others keep the labels beside the items.
            kept = getattr(data, "targets", None)
            self._labels = np.asarray(kept) if kept is not None and len(kept) == self._size else None

    def __len__(self) -> int:
        return self._size

    def read(self, places: Places) -> Any:
        found = [example_parts(self.data[place], place)[0] for place in np.asarray(places).tolist()]
        try:
            return stacked(found)
        except ShapeError as error:
            raise ShapeError(f"{error} (of items {int(places[0])}, …)") from error

    def labels(self, places: Places | None = None) -> NDArray[np.int64] | None:
        if self._labels is None:
            return None
        held = np.asarray(self._labels).astype(np.int64)
        return held if places is None else held[places]


class HubStore(Store):
    """A data set of Hugging Face: one column of pictures or of vectors, or columns of numbers; a column of class
    labels gives the labels.

    Raises:
        DataError: several columns of pictures or vectors, or columns that hold no numbers.
    """

    def __init__(self, data: Any, name: str) -> None:
        from varflow.data.given import hub_columns

        self.data, self.name = data, name
        self._one, self._label, rest = hub_columns(data)
        self.columns = () if self._one else tuple(rest)
        pictures = self._one is not None and type(data.features[self._one]).__name__ == "Image"
        self.slow, self.workers = pictures, _WORKERS if pictures else 0
        self.classes = tuple(data.features[self._label].names) if self._label else ()
        wanted = [self._one] if self._one else list(rest)
        self._values = data.select_columns(wanted)
        if not pictures:
            self._values = self._values.with_format("numpy")
        if not len(data):
            raise DataError("x: has no rows")
        first = self.read(np.arange(1))
        self.shape, self.dtype = tuple(first.shape[1:]), first.dtype

    def __len__(self) -> int:
        return len(self.data)

    def read(self, places: Places) -> Any:
        # One row after the other in the order of the file, where they lie near each other.
        order = np.argsort(places, kind="stable")
        held = self._values[np.asarray(places)[order].tolist()]
        if self._one:
            from varflow.data.given import shown

            column = held[self._one]
            images = type(self.data.features[self._one]).__name__ == "Image"
            found = stacked([shown(picture) for picture in column] if images else list(column))
        else:
            parts = [self._numbers(name, held[name]) for name in self.columns]
            kind = np.float32 if all(part.dtype == np.float32 for part in parts) else np.float64
            found = np.stack([part.astype(kind) for part in parts], 1)
        out = np.empty_like(found)
        out[order] = found
        return out

    def _numbers(self, name: str, column: Any) -> Any:
        array = np.asarray(column)
        if array.dtype.kind not in "biuf":
            raise DataError(
                f"x: column '{name}' holds {self.data.features[name].dtype}, and data that are streamed hold numbers "
                "alone; drop it, or hold them in memory (stream=never)"
            )
        return array

    def labels(self, places: Places | None = None) -> NDArray[np.int64] | None:
        if self._label is None:
            return None
        column = self.data.select_columns([self._label]).with_format("numpy")
        held = column[:] if places is None else column[np.asarray(places).tolist()]
        return np.asarray(held[self._label]).astype(np.int64)

    def facts(self) -> dict[str, Any]:
        # Hugging Face has a fingerprint of what a data set was made from.
        return {"fingerprint": str(self.data._fingerprint)}


def item_store(x: Any, labels: Any, name: str) -> Store | None:
    """The store of a data set of torch or of Hugging Face; None of anything else."""
    if isinstance(x, DataLoader):
        x = x.dataset
    if from_package(x, "datasets") and labels is None and hasattr(x, "select_columns") and hasattr(x, "num_rows"):
        return HubStore(x, name)
    if isinstance(x, TensorDataset) and x.tensors:
        marks = x.tensors[1] if len(x.tensors) > 1 and labels is None else labels
        whole = isinstance(marks, Tensor) and marks.dim() == 1 and not marks.is_floating_point()
        return ArrayStore(x.tensors[0], name, marks if whole or labels is not None else None)
    if isinstance(x, TorchDataset) and not isinstance(x, IterableDataset | TensorDataset):
        return ItemStore(x, name, labels)
    return None
