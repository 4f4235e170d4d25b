"""Values from anywhere, made into three splits of levels or real numbers, checked on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow.core import random
from varflow.core.errors import DataError, ShapeError, SpecError
from varflow.data.dataset import SPLITS
from varflow.data.protocols import LEVELS, column_name

#: Seed of the 80/10/10 permutation of data that come without splits.
SPLIT_SEED = 0

#: Protocols of real numbers.
REAL = ("none", "standardize", "table", "columns")

#: Channels of a colour picture.
COLOUR = 3


#: What the splits of others are called.
_SPLITS = {"valid": "validation", "val": "validation", "dev": "validation"}


def split_name(name: str) -> str:
    """train, validation or test, however others call it."""
    return _SPLITS.get(name, name)


def numbers(array: Any, split: str) -> Tensor:
    """A tensor of uint8 or floats, at least two-dimensional, not empty."""
    if isinstance(array, np.ndarray) and (
        array.dtype.kind not in "biuf" or array.dtype.itemsize > 8
    ):
        raise DataError(f"x: dtype {array.dtype}, should be numbers (uint8 levels or floats)")
    if isinstance(array, np.ndarray):
        # torch has no unsigned integers of more than 8 bits; a copy, as files are read-only.
        wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
        array = np.array(
            array, dtype=np.float64 if wide else array.dtype.newbyteorder("="), order="C"
        )
    try:
        x = torch.as_tensor(array).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"x: was {type(array).__name__}, should be a tensor or an array of numbers, a row an example"
        ) from error
    where = "" if split == "all" else f" of split {split}"
    if x.dtype == torch.bool:
        x = x.to(torch.uint8)
    if x.is_complex() or x.dim() == 0:
        raise ShapeError(
            f"x{where}: {x.dtype} {list(x.shape)}, should be real numbers, a row an example"
        )
    if x.numel() == 0:
        raise DataError(f"x{where}: shape {list(x.shape)} holds no data")
    if x.dim() == 1:
        x = x[:, None]
    if x.dtype == torch.uint8:
        return x
    if not x.is_floating_point():
        if x.dim() > 2:
            raise DataError(
                f"x{where}: {x.dtype} {list(x.shape)}, should be uint8 for pictures or floats for "
                "real numbers; convert it with x.to(torch.uint8)"
            )
        x = x.double()
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def plain(array: Any, split: str, names: Sequence[str] = (), missing: bool = False) -> Tensor:
    """:func:`numbers` that are finite; with ``missing`` NaN is a missing cell."""
    x = numbers(array, split)
    if not x.is_floating_point():
        return x
    where = "" if split == "all" else f" of split {split}"
    finite = x.flatten(1).isfinite()
    if missing:
        finite |= x.flatten(1).isnan()
    if not bool(finite.all()):
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise DataError(
            f"x{where}: {float(x.flatten(1)[row, column])} in row {row}, {column_name(column, names)}; remove or "
            f"impute such rows{_reads_missing(x, row, column)}"
        )
    return x


def _reads_missing(x: Tensor, row: int, column: int) -> str:
    table = x.dim() == 2 and bool(x[row, column].isnan())
    return ", or use likelihood=columns (recipe table), which reads missing cells of a table" if table else ""


def plain_labels(array: Any, rows: int) -> Tensor:
    """Labels as int64 [rows]."""
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biu":
        raise DataError(f"labels: dtype {array.dtype}, should be integers (class numbers from 0)")
    labels = torch.as_tensor(array)
    if labels.is_floating_point() or labels.shape != (rows,):
        raise ShapeError(
            f"labels: {labels.dtype} {list(labels.shape)}, should be integers [{rows}], "
            "one a row of x"
        )
    return labels.to(torch.int64)


def three_splits(
    values: dict[str, Tensor], labels: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Three splits of values and labels, by a seeded permutation where the data have none; the place that each row
    had in what was given; and facts.
    """
    facts: dict[str, Any] = {}
    places = {split: torch.arange(len(x)) for split, x in values.items()}
    if "train" in values and "test" in values:
        facts["split"] = "as given"
        if "validation" not in values:
            cut = len(values["train"]) - max(1, len(values["train"]) // 10)
            facts["split"] = "train and test as given; validation: the last tenth of train"
            for held in (values, labels, places):
                if "train" in held:
                    held["train"], held["validation"] = held["train"][:cut], held["train"][cut:]
    else:
        whole = "train" if "train" in values else "all"
        if whole not in values or "validation" in values or "test" in values:
            raise DataError(
                f"x: has the splits {', '.join(values)}; should have train and test "
                "(and validation), or be one tensor"
            )
        n = len(values[whole])
        tenth = max(1, n // 10)
        # A negative start would wrap around.
        ends = (max(n - 2 * tenth, 0), max(n - tenth, 0), n)
        order = torch.randperm(n, generator=random.generator(SPLIT_SEED, "split"))
        places = dict(zip(SPLITS, order.tensor_split(ends[:2]), strict=True))
        values, labels = (
            {s: held[whole][i.to(held[whole].device)] for s, i in places.items() if whole in held}
            for held in (values, labels)
        )
        facts = {"split": "80/10/10 of a seeded permutation", "split_seed": SPLIT_SEED}
    if not all(len(values[split]) for split in SPLITS):
        sizes = "/".join(str(len(values[split])) for split in SPLITS)
        raise DataError(f"x: {sizes} rows to train/validate/test; give at least 3 rows")
    shapes = {tuple(x.shape[1:]) for x in values.values()}
    dtypes = {x.dtype for x in values.values()}
    if len(shapes) > 1 or len(dtypes) > 1:
        raise ShapeError(
            f"x: the splits hold {' and '.join(map(str, [*shapes, *dtypes]))}; "
            "should be of one shape and dtype"
        )
    return {split: values[split] for split in SPLITS}, labels, places, facts


def to_levels(
    values: dict[str, Tensor], levels: int | None, protocol: str
) -> tuple[dict[str, Tensor], int | None]:
    """Values as uint8 and L where they are levels, as they are and None where they are not."""
    if levels is not None and not 2 <= levels <= 256:
        raise SpecError(f"levels: {levels}, should be 2 … 256 (data are stored as bytes)")
    if levels is not None and protocol in REAL:
        raise SpecError(
            f"levels: {levels}, but protocol '{protocol}' is for real numbers; leave levels out"
        )
    low = min(float(x.min()) for x in values.values())
    high = max(float(x.max()) for x in values.values())
    if values["train"].dtype == torch.uint8:
        if protocol in REAL:
            raise SpecError(
                f"protocol '{protocol}' is for real numbers, and x holds levels (uint8); "
                f"choose one of {', '.join(LEVELS)}, or pass floats"
            )
        levels = levels or (2 if high <= 1 else 256)
        if high >= levels:
            raise DataError(f"x: holds level {int(high)}, should be below levels={levels}")
        return values, levels
    binary = low >= 0 and high == 1 and all(bool((x % 1 == 0).all()) for x in values.values())
    if levels is None and binary and protocol not in REAL:
        levels = 2
    if levels is None:
        if protocol in ("logit", "uniform", "levels"):
            raise SpecError(
                f"protocol '{protocol}' needs levels, and x holds real numbers; choose 'none' or 'standardize', or "
                "pass levels= if they are levels"
            )
        if protocol in LEVELS and not 0 <= low <= high <= 1:
            raise DataError(
                f"x: values {low:g} … {high:g}, should be within [0, 1] for protocol '{protocol}'; "
                "pass levels=, rescale, or choose 'none' or 'standardize'"
            )
        return values, None
    scale = 1 if high > 1 else levels - 1
    bytes_ = {split: (x * scale).round() for split, x in values.items()}
    worst = max(float((bytes_[split] - x * scale).abs().max()) for split, x in values.items())
    if low < 0 or high * scale > levels - 1 or worst > 1e-3:
        raise DataError(
            f"x: values {low:g} … {high:g} are not the {levels} levels 0 … {levels - 1}, nor those "
            f"over {levels - 1}; check levels, or leave it out for real numbers"
        )
    return {split: x.to(torch.uint8) for split, x in bytes_.items()}, levels


def channels_first(x: Tensor) -> Tensor:
    """[N, C, H, W] of pictures [N, H, W], [N, H, W, C] or [N, C, H, W]."""
    if x.dim() == 3:
        return x[:, None]
    if x.shape[1] in (1, COLOUR):
        return x
    if x.shape[3] in (1, COLOUR):
        return x.permute(0, 3, 1, 2)
    raise ShapeError(
        f"x: pictures of shape {list(x.shape)}, should be [N, H, W], or [N, C, H, W] or "
        "[N, H, W, C] with C = 1 or 3"
    )
