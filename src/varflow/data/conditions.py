"""What a model is conditioned on: some columns of a table, or the labels, as a context c of each row.

c is made of these columns as an encoder reads a table (:class:`varflow.networks.ColumnFeatures`): numbers
standardized by the training rows, categories as one number each, 1 at the one that is there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.columns import NAMED, Column
from varflow.core.errors import DataError, ShapeError, SpecError, suggestion
from varflow.data import frames, kinds
from varflow.data.cells import Cells, text_cells
from varflow.data.columns import Columns, shares_of
from varflow.data.named import LABEL_HEADS
from varflow.data.raw import Raw
from varflow.networks.columns import ColumnFeatures

#: What the labels of data are called among the conditions.
LABEL = "label"
#: So many scales from the training rows float32 still tells numbers apart, and squares of them are finite.
FARTHEST = 1e15
#: The class number of an example without a label.
UNLABELLED = -1


class Conditions:
    """Columns that are conditioned on, with what was learned of them, and their values in each split.

    Args:
        preprocessing: what is known of each column.
        values: split → stored values ``[N, columns]``: numbers, codes, days; NaN where missing.
    """

    def __init__(self, preprocessing: Columns, values: Mapping[str, Tensor] | None = None) -> None:
        self.preprocessing = preprocessing
        self.values: dict[str, Tensor] = {split: part.double() for split, part in (values or {}).items()}
        self._features = ColumnFeatures(preprocessing.columns)

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.preprocessing.columns

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def features(self) -> int:
        """C, the numbers of a context."""
        return self._features.features

    def context(self, split: str, index: Tensor, dtype: torch.dtype) -> Float[Tensor, "batch context"]:
        """c of rows ``index`` of ``split``."""
        return self.encode(self.values[split].index_select(0, index), dtype)

    def encode(self, values: Tensor, dtype: torch.dtype) -> Float[Tensor, "batch context"]:
        """c of stored values ``[B, columns]``.

        Raises:
            DataError: a missing cell of a column that had none in training.
        """
        x, _ = self.preprocessing.encode(values, None, torch.float64)
        found: Tensor = self._features(x, self.preprocessing.observed(values))
        return found.to(dtype)

    def check(self, values: Tensor, where: str = "given") -> Tensor:
        """Refuse a missing cell of a column that had none in training, and values that are none of its kind."""
        for number, column in enumerate(self.columns):
            cells = values[:, number].cpu().numpy()
            kinds.check_values(cells, column, where)
            if not (column.missing or column.summed) and bool(np.isnan(cells).any()):
                row = int(np.flatnonzero(np.isnan(cells))[0]) + 1
                raise DataError(
                    f"{where}: '{column.name}' is missing in row {row} (counted from 1), and no training row was "
                    "without it; give a value"
                )
        x, _ = self.preprocessing.encode(values, None, torch.float64)
        far = (x.abs() > FARTHEST) & torch.tensor([column.continuous for column in self.columns])
        if bool(far.any()):
            row, place = (int(index) for index in far.nonzero()[0])
            raise DataError(
                f"{where}: '{self.names[place]}' is {float(values[row, place]):g} in row {row + 1} (counted from 1), "
                f"{float(x[row, place].abs()):.1g} scales away from the training rows; give another value"
            )
        return values

    def having(self, values: Mapping[str, Tensor]) -> Conditions:
        """The same conditions with other values of each split."""
        return Conditions(self.preprocessing, values)

    def first(self, **limits: int | None) -> Conditions:
        """The first rows of each split alone; None leaves all."""
        fewer = copy.copy(self)
        fewer.values = {split: part[: limits.get(split)] for split, part in self.values.items()}
        return fewer

    def to(self, device: torch.device) -> Conditions:
        moved = copy.copy(self)
        moved.preprocessing = self.preprocessing.to(device)
        moved.values = {split: part.to(device) for split, part in self.values.items()}
        moved._features = ColumnFeatures(self.columns).to(device)
        return moved

    def of(self, given: Any, rows: int) -> Tensor:
        """Stored values ``[rows, columns]`` of what a user gives for the conditions.

        Args:
            given: name → a value for all rows or one for each; a frame; or stored values ``[rows, columns]``.
            rows: how many.

        Raises:
            SpecError: a condition that is missing, or none of them.
            DataError: a value that training did not know; ShapeError: another number of rows.
        """
        if isinstance(given, Mapping):
            for name in given:
                if name not in self.names:
                    known = suggestion(str(name), self.names)
                    raise SpecError(f"given: '{name}' is no condition of this run; {known}")
            for name in self.names:
                if name not in given:
                    raise SpecError(f"given: '{name}' is missing; this run is conditioned on {', '.join(self.names)}")
            raw = Raw(tuple(_cells(name, self._labels(name, given[name]), rows) for name in self.names), "given")
            found = torch.from_numpy(self._stored(raw))
        elif frames.is_frame(given):
            found = torch.from_numpy(self._stored(frames.read_frame(given, "given")))
        else:
            found = torch.as_tensor(given).double()
            found = found[:, None] if found.dim() == 1 else found
        if found.dim() != 2 or tuple(found.shape) != (rows, len(self.columns)):
            raise ShapeError(
                f"given: shape {list(found.shape)}, should be [{rows}, {len(self.columns)}]: "
                f"{', '.join(self.names)} of each row"
            )
        return self.check(found)

    def _labels(self, name: str, value: Any) -> Any:
        """What is given for a column, with None for a class number that stands for no label."""
        if self.names != (LABEL,) or isinstance(value, str):
            return value
        if isinstance(value, Tensor | np.ndarray):
            value = value.tolist()
        if isinstance(value, list | tuple):
            return [None if one == UNLABELLED else one for one in value]
        return None if value == UNLABELLED else value

    def _stored(self, raw: Raw) -> Any:
        return kinds.stored(raw, self.columns, self.preprocessing.forms)

    def of_raw(self, raw: Raw) -> Tensor:
        """Stored values of the columns of a table that are the conditions."""
        return self.check(torch.from_numpy(self._stored(raw)), raw.where)

    def of_labels(self, labels: Any) -> Tensor:
        """Stored values of class numbers, where the labels are the condition.

        Raises:
            DataError: a class that training did not know.
        """
        codes = torch.as_tensor(labels)
        size = len(self.columns[0].categories)
        none = (codes >= size) | (codes < UNLABELLED)
        if bool(none.any()):
            raise DataError(f"label: {int(codes[none][0])} is none of the {size} classes of training")
        return self.check(_cells_of(codes))

    @classmethod
    def fit(cls, values: Mapping[str, Tensor], found: kinds.Found, gaps: str = "flag") -> Conditions:
        """What the training rows say of the columns, and what a row without one of them stands for.

        Raises:
            DataError: a column that does not vary; gaps that are to be summed over, and not in one category alone.
        """
        each = zip(found.columns, values["train"].double().cpu().T, strict=True)
        learned = [_learned(column, cells) for column, cells in each]
        if gaps == "sum":
            learned = _summed(learned)
        return cls(Columns("columns", None, tuple(learned), found.forms), values)

    @classmethod
    def of_classes(
        cls, labels: Mapping[str, Tensor], classes: Sequence[str] = (), gaps: str = "flag"
    ) -> Conditions:
        """Class numbers ``[N]`` of each split as one column with a category for each class; −1 is no label.

        Raises:
            DataError: labels that are all the same.
        """
        values = {split: _cells_of(part) for split, part in labels.items()}
        size = int(max(float(part.max()) for part in labels.values())) + 1
        names = tuple(classes) or tuple(str(number) for number in range(size))
        if len(names) < 2:
            raise DataError("condition: all labels are the same; there is nothing to condition on")
        train = values["train"].flatten()
        there = train[~train.isnan()]
        if not len(there):
            raise DataError("condition: no training row has a label; leave condition out")
        missing = (len(train) - len(there)) / len(train)
        column = Column(LABEL, "category", names, missing=missing, shares=shares_of(there, len(names)))
        (column,) = _summed([column]) if gaps == "sum" else [column]
        return cls(Columns("columns", None, (column,), ("text" if classes else "whole",)), values)

    def of_all_labels(self, labels: Mapping[str, Tensor]) -> Conditions:
        """The same conditions of class numbers ``[N]`` of each split."""
        return self.having({split: _cells_of(part) for split, part in labels.items()})


def _learned(column: Column, cells: Tensor) -> Column:
    """A column with location, scale and share of missing cells of the training rows. Nothing is drawn for what is
    given, so it has no grid.
    """
    v = cells[~cells.isnan()]
    missing = (len(cells) - len(v)) / len(cells)
    if not len(v) or bool((v == v[0]).all()):
        raise DataError(
            f"condition: column '{column.name}' does not vary in the training rows; choose another, or leave it out"
        )
    if not column.continuous and column.kind != "count":
        return replace(column, missing=missing, shares=shares_of(v, len(column.categories)))
    v = v.log1p() if column.kind == "count" else v.log() if column.kind == "positive" else v
    scale, loc = torch.std_mean(v, correction=0)
    return replace(column, loc=float(loc), scale=float(scale), missing=missing)


def _cells_of(labels: Tensor) -> Tensor:
    """Class numbers ``[N]`` as cells of a column ``[N, 1]``, NaN where there is none."""
    codes = labels.double().cpu()
    return torch.where(codes == UNLABELLED, torch.nan, codes)[:, None]


def _summed(columns: list[Column]) -> list[Column]:
    """The columns, a row without the one that has gaps standing for the sum over its values.

    Raises:
        DataError: several columns with gaps, or one that is no category.
    """
    gaps = [c for c in columns if c.missing] or [c for c in columns if c.kind in NAMED]
    if len(gaps) != 1 or gaps[0].kind not in NAMED:
        said = ", ".join(f"{c.name} ({c.kind})" for c in gaps) or "none"
        raise DataError(
            f"condition_gaps: was sum, which is over the values of one category, and those with gaps are {said}; "
            "use condition_gaps=flag, or condition on others"
        )
    return [replace(c, kind="category", summed=True) if c is gaps[0] else c for c in columns]


def read_raw(tables: Mapping[str, Raw], column: Sequence[str]) -> tuple[dict[str, Tensor], kinds.Found]:
    """Stored values of the columns that are conditioned on, in each part, and their kinds.

    Args:
        tables: part → these columns alone.
        column: kinds that are set by hand, of these and of other columns.
    """
    first = "train" if "train" in tables else next(iter(tables))
    names = tables[first].names
    wanted = kinds.wishes(column)
    said = [text for text in column if any(text.startswith(f"{name}:") for name in names)]
    # A column that would be taken for labels is a condition here.
    said += [f"{name}:category" for name in names if name not in wanted and name.lower() in LABEL_HEADS]
    for cells in tables[first].columns:
        reason = "" if cells.name in wanted else kinds.left_out(cells)
        if reason:
            raise DataError(f"condition: column '{cells.name}' cannot be conditioned on ({reason}); choose another")
    found = kinds.find_kinds(tables[first], said)
    values = {
        part: found.values if part == first else kinds.stored(raw, found.columns, found.forms)
        for part, raw in tables.items()
    }
    return {part: torch.from_numpy(np.array(held)) for part, held in values.items()}, found


def parted(raw: Raw, names: Sequence[str]) -> tuple[Raw, Raw]:
    """A table without some of its columns, and these.

    Raises:
        SpecError: a column that there is not, or no column left.
    """
    for name in names:
        if name not in raw.names:
            raise SpecError(f"condition: {raw.where} has no column '{name}'; {suggestion(name, raw.names)}")
    rest = tuple(cells for cells in raw.columns if cells.name not in names)
    if not rest:
        raise SpecError(f"condition: {raw.where} has no other columns; leave one to be modelled")
    by_name = {cells.name: cells for cells in raw.columns}
    chosen = replace(raw, columns=tuple(by_name[name] for name in names), labels=None, classes=())
    return replace(raw, columns=rest), chosen


def listed(condition: Sequence[str]) -> tuple[str, ...]:
    """Names, each given by itself or several with commas between them.

    Raises:
        SpecError: a name twice.
    """
    names = tuple(name.strip() for text in condition for name in text.split(",") if name.strip())
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"condition: '{name}' is given twice; give it once")
    return names


def _cells(name: str, value: Any, rows: int) -> Cells:
    """A value for all rows, or one for each, as a column."""
    if hasattr(value, "to_pylist"):
        value = value.to_pylist()
    # A series of any library too.
    several = hasattr(value, "__len__") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0
    values = list(value) if several else [value] * rows
    if len(values) != rows:
        raise ShapeError(
            f"given: '{name}' has {len(values)} values, and there are {rows} rows; give one value, or {rows}"
        )
    values = [one.item() if isinstance(one, Tensor | np.generic) else one for one in values]
    if all((isinstance(one, int | float) and not isinstance(one, bool)) or one is None for one in values):
        numbers = np.array([np.nan if one is None else float(one) for one in values])
        return Cells(name, "number", numbers, whole=bool(np.all(numbers[np.isfinite(numbers)] % 1 == 0)))
    return text_cells(name, ["" if one is None else str(one) for one in values])
