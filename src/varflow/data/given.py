"""What a user holds in Python, as plain values; and answers in the kind that the question came in.

Arrays, tensors, lists of them; frames of pandas, polars and anything else that speaks Arrow; map-style data sets of
torch, their loaders, and data sets of Hugging Face. Nothing is imported for it that the user has not imported before.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from varflow.core.errors import DataError, ShapeError
from varflow.data.frames import arrow_table, from_package
from varflow.data.kinds import ADVICE
from varflow.data.named import LABEL_HEADS

#: What a data set's items may call what they hold.
_VALUE_KEYS = ("x", "image", "img", "pixel_values", "data", "input", "inputs", "features")
_LABEL_KEYS = ("label", "labels", "y", "target", "fine_label", "class")
#: Whole numbers beyond this are not all numbers of float64.
_EXACT = 2**53

_KNOWN = (
    "a tensor or an array, a list of rows or pictures, a DataFrame of pandas or polars, an Arrow table, a torch "
    "Dataset or DataLoader, a Hugging Face dataset, or the name of a file"
)


class Given(NamedTuple):
    """Rows or pictures as plain values.

    Attributes:
        values: array or tensor ``[N, *event]``.
        labels: class numbers ``[N]``, or None.
        columns: heads of the columns of a table; none where they have none.
        classes: names of the classes, where they have some.
    """

    values: Any
    labels: Any = None
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def given(x: Any) -> Given:
    """What x holds.

    A column of a frame that is headed label, labels, class, target or y gives the labels if its values are whole.

    Raises:
        DataError: a kind that is not known, a column that holds no numbers, or one with missing cells.
        ShapeError: rows or pictures of several shapes.
    """
    if isinstance(x, np.ma.MaskedArray):
        if np.ma.is_masked(x):
            raise DataError("x: is a masked array with masked cells; impute or remove such rows")
        x = x.data
    if isinstance(x, Tensor | np.ndarray):
        return Given(x)
    if isinstance(x, DataLoader):
        x = x.dataset
    if isinstance(x, IterableDataset):
        raise DataError(
            f"x: was {type(x).__name__}, which can only be gone through in order; give a map-style torch Dataset, "
            "with __len__ and __getitem__"
        )
    if isinstance(x, TensorDataset):
        return _tensors(x.tensors)
    if from_package(x, "datasets"):
        return _hugging_face(x)
    if isinstance(x, TorchDataset):
        return _items(x)
    if from_package(x, "polars") and type(x).__name__ == "LazyFrame":
        raise DataError("x: was a LazyFrame, whose rows are not there yet; give x.collect()")
    if _is_frame(x):
        return _frame(x)
    if isinstance(x, list | tuple):
        return _list(x)
    if _is_picture(x):
        raise DataError("x: was one picture; give a list of pictures")
    if hasattr(x, "__array__"):
        return Given(np.asarray(x))
    if isinstance(x, str | PurePath):
        raise DataError(
            f"x: was the path '{x}'; read the file first and give its rows or pictures (on the command line the "
            "verbs read files themselves)"
        )
    raise DataError(f"x: was {type(x).__name__}; give {_KNOWN}")


def in_order(held: Given, columns: Sequence[str]) -> Any:
    """The values of rows given to a fitted model, their columns in the order of training.

    Raises:
        DataError: a column of training that is missing, or one that was not there; each with its name.
    """
    if not columns or not held.columns or tuple(columns) == held.columns:
        return held.values
    for name in columns:
        if name not in held.columns:
            raise DataError(
                f"x: column '{name}' is missing; the model was fitted to {', '.join(columns)}"
            )
    for name in held.columns:
        if name not in columns:
            raise DataError(f"x: column '{name}' was not there in training ({', '.join(columns)}); drop it")
    return held.values[:, [held.columns.index(name) for name in columns]]


def like(x: Any, found: Tensor, names: Sequence[str] = ()) -> Any:
    """A result ``[N]`` or ``[N, ...]`` in the kind of x: frames and series keep their index and get ``names``."""
    found = found.detach().cpu()
    if isinstance(x, np.ndarray):
        return found.numpy()
    flat = found.dim() <= 2
    if from_package(x, "pandas") and flat:
        import pandas

        if found.dim() == 1:
            return pandas.Series(found.numpy(), index=x.index, name=names[0] if names else None)
        return pandas.DataFrame(found.numpy(), index=x.index, columns=list(names) or None)
    if from_package(x, "polars") and flat:
        import polars

        if found.dim() == 1:
            return polars.Series(names[0] if names else "", found.numpy())
        return polars.DataFrame(found.numpy(), schema=list(names) or None)
    if from_package(x, "pyarrow") and flat:
        import pyarrow

        if found.dim() == 1:
            return pyarrow.array(found.numpy())
        heads = list(names) or [str(i) for i in range(found.shape[1])]
        columns = [pyarrow.array(column.numpy()) for column in found.T.contiguous()]
        return pyarrow.table(columns, names=heads)
    if isinstance(x, list) and not (x and _is_picture(x[0])):
        return found.tolist() if not x or isinstance(x[0], numbers.Number | list | tuple) else list(found)
    return found


def _is_frame(x: Any) -> bool:
    named = ("__arrow_c_stream__", "__arrow_c_array__", "__dataframe__")
    return from_package(x, "pandas") or any(hasattr(x, name) for name in named)


def _is_picture(x: Any) -> bool:
    return from_package(x, "PIL")


def _tensors(tensors: Sequence[Tensor]) -> Given:
    if not tensors:
        raise DataError("x: the TensorDataset holds no tensors; give it one of rows or pictures")
    labels = tensors[1] if len(tensors) > 1 else None
    whole = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
    return Given(tensors[0], labels if whole else None)


def _items(x: Any) -> Given:
    """The items of a map-style data set, one after the other."""
    try:
        size = len(x)
    except (TypeError, NotImplementedError) as error:
        kind = type(x).__name__
        raise DataError(f"x: {kind} has no length; give a map-style torch Dataset with __len__") from error
    values, labels = [], []
    for number in range(size):
        value, label = example_parts(x[number], number)
        values.append(value)
        labels.append(label)
    whole = all(isinstance(label, numbers.Integral) or _is_whole(label) for label in labels) and labels
    return Given(stacked(values), np.array([int(label) for label in labels]) if whole else None)


def example_parts(item: Any, number: int) -> tuple[Any, Any]:
    """What an item holds, and its label."""
    if isinstance(item, Mapping):
        keys = [key for key in _VALUE_KEYS if key in item]
        if not keys:
            there = ", ".join(map(str, item)) or "nothing"
            raise DataError(f"x: item {number} holds {there}; one of {', '.join(_VALUE_KEYS)} is needed")
        return item[keys[0]], next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, tuple | list) and item and not isinstance(item[0], numbers.Number):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _is_whole(label: Any) -> bool:
    return isinstance(label, Tensor | np.ndarray | np.generic) and np.ndim(label) == 0 and float(label) % 1 == 0


def _list(x: Sequence[Any]) -> Given:
    if not x:
        raise DataError("x: is an empty list; give a row or a picture an example")
    if isinstance(x[0], numbers.Number | np.ndarray | Tensor | list | tuple) or _is_picture(x[0]):
        return Given(stacked(x))
    raise DataError(f"x: was a list of {type(x[0]).__name__}; give a list of rows of numbers or of pictures")


def stacked(values: Sequence[Any]) -> Any:
    """Rows or pictures on top of each other.

    Raises:
        ShapeError: they differ in shape.
        DataError: something that is no number.
    """
    if not values:
        raise DataError("x: holds no examples")
    if all(isinstance(value, Tensor) for value in values):
        arrays: list[Any] = list(values)
    else:
        try:
            arrays = [np.asarray(value) for value in values]
        except (TypeError, ValueError) as error:
            raise DataError(f"x: holds something that is no number ({error}); give rows of numbers") from error
    for number, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise ShapeError(
                f"x: example {number} has shape {list(array.shape)}, example 0 has {list(arrays[0].shape)}; give all "
                "the same"
            )
    return torch.stack(arrays) if isinstance(arrays[0], Tensor) else np.stack(arrays)


def _frame(x: Any) -> Given:
    """The columns of a frame."""
    held = list(_columns(x))
    if not held:
        raise DataError("x: has no columns")
    names = [name for name, _ in held]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"x: has {names.count(name)} columns '{name}'; give each a name of its own")
    if not len(held[0][1]):
        raise DataError("x: has no rows")
    labels = None
    marked = [name for name in names if name.lower() in LABEL_HEADS]
    if len(marked) == 1 and len(held) > 1:
        column = dict(held)[marked[0]]
        if np.all(column % 1 == 0):
            labels = column.astype(np.int64)
            held = [(name, values) for name, values in held if name != marked[0]]
    kind = np.result_type(*(column.dtype for _, column in held))
    kind = np.dtype(np.float32) if kind == np.float32 else np.dtype(np.float64)
    values = np.empty((len(held[0][1]), len(held)), kind)
    for number, (_, column) in enumerate(held):
        values[:, number] = column
    return Given(values, labels, tuple(name for name, _ in held))


def _columns(x: Any) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    if from_package(x, "pandas"):
        if not hasattr(x, "columns"):
            x = x.to_frame("x" if x.name is None else x.name)
        for place, name in enumerate(x.columns):
            column = x.iloc[:, place]
            yield str(name), _numbers(str(name), column.to_numpy(), bool(column.isna().any()), column.dtype)
        return
    if from_package(x, "polars"):
        if not hasattr(x, "columns"):
            x = x.to_frame()
        for column in x.iter_columns():
            missing = bool(column.null_count())
            yield column.name, _numbers(column.name, None if missing else column.to_numpy(), missing, column.dtype)
        return
    for name, column in _arrow_columns(x):
        missing = bool(column.null_count)
        values = None if missing else column.to_numpy(zero_copy_only=False)
        yield name, _numbers(name, values, missing, column.type)


def _arrow_columns(x: Any) -> Iterator[tuple[str, Any]]:
    """The columns of an Arrow table, or of what can become one."""
    table = arrow_table(x, "x")
    import pyarrow

    for name, column in zip(table.column_names, table.columns, strict=True):
        if pyarrow.types.is_dictionary(column.type):
            raise _no_numbers(name, column.type)
        yield name, column.combine_chunks()


def _numbers(name: str, values: Any, missing: bool, kind: Any) -> np.ndarray[Any, Any]:
    """A column as float64, or float32 where it is that.

    Raises:
        DataError: missing cells, something else than numbers, or whole numbers that float64 cannot hold.
    """
    if missing:
        raise DataError(f"x: column '{name}' has missing cells; {ADVICE}, or impute or remove such rows")
    array = np.asarray(values)
    if array.dtype.kind == "O" and all(isinstance(v, numbers.Real | Decimal | np.bool_) for v in array):
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise _no_numbers(name, kind)
    if array.dtype.kind in "iu" and array.size and max(int(array.max()), -int(array.min())) > _EXACT:
        raise DataError(
            f"x: column '{name}' holds whole numbers above 2⁵³, which float64 does not tell apart; drop it, or "
            "subtract a constant"
        )
    return array if array.dtype == np.float32 else array.astype(np.float64)


def _no_numbers(name: str, kind: Any) -> DataError:
    return DataError(f"x: column '{name}' holds {kind}, should be numbers; {ADVICE}, or drop it")


def _hugging_face(x: Any) -> Given:
    """A data set of Hugging Face: one column of pictures or of vectors with labels, or columns of numbers."""
    one, label, rest = hub_columns(x)
    labels, classes = None, ()
    if label:
        labels = np.asarray(x[label])
        classes = tuple(x.features[label].names)
    if one and type(x.features[one]).__name__ == "Image":
        return Given(stacked([shown(picture) for picture in x[one]]), labels, (), classes)
    if one:
        return Given(stacked(list(x[one])), labels, (), classes)
    held = _frame(x.select_columns(rest).with_format("arrow")[:])
    return held._replace(labels=held.labels if labels is None else labels, classes=classes)


def hub_columns(x: Any) -> tuple[str | None, str | None, list[str]]:
    """Of a data set of Hugging Face the column of pictures or of vectors, where there is one; that of class labels;
    and all columns but that of the labels.

    Raises:
        DataError: several columns of pictures or vectors.
    """
    kinds = {name: type(feature).__name__ for name, feature in x.features.items()}
    classed = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    pictures = [name for name, kind in kinds.items() if kind == "Image"]
    lists = ("Sequence", "List", "LargeList", "Array2D", "Array3D")
    vectors = [name for name, kind in kinds.items() if kind in lists]
    if len(pictures) > 1 or len(vectors) > 1 or (pictures and vectors):
        raise DataError(f"x: has several columns of pictures or vectors ({', '.join(pictures + vectors)}); keep one")
    one = next(iter(pictures + vectors), None)
    return one, next(iter(classed), None), [name for name in x.column_names if name not in classed]


def shown(picture: Any) -> Any:
    """A picture as a viewer shows it."""
    from varflow.data.own import as_shown

    return np.asarray(as_shown(picture, "x"))
