"""A table whose columns are each of a kind, and whose cells may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varflow.core.columns import NAMED, Column
from varflow.core.errors import DataError
from varflow.data.kinds import FORMS, ROWS, overview
from varflow.data.protocols import Encoded, Protocol, Support, column_name
from varflow.data.table import step_of, tail_of
from varflow.data.writing import table_of

#: Steps of dates: a day, an hour, a minute, a second.
_CLOCK = (1.0, 1 / 24, 1 / 1440, 1 / 86400)
#: Decimals that a grid is looked for in.
_DECIMALS = 9


@dataclass(frozen=True)
class Columns(Protocol):
    """Each cell v by the kind of its column, to x:

    - real, date: x = (v + (u − ½)·step − loc)/scale
    - positive: x = (log(v + (u − ½)·step) − loc)/scale
    - count: x = v; ordinal, category, binary: x = the code of v
    - missing: x = 0.

    u ~ U(0, 1) is the noise of a column that lies on a grid (step > 0), as in :class:`varflow.data.table.Table`.
    ladj = Σ log|dx/dv| over the observed cells of real, date and positive columns: −log scale, and −log scale − log
    v of positive ones. So log p(x) + ladj is of the table in its own units: a density in the continuous columns, a
    probability in the others.

    Stored values are float64 ``[N, D]``: numbers, codes, days since 1970-01-01; NaN where missing.

    Attributes:
        columns: what is known of each column.
        forms: how each came, and comes out again (:data:`varflow.data.kinds.FORMS`).
        dropped: columns that were left out → why.
    """

    support: ClassVar[Support] = "columns"
    mass: ClassVar[bool] = False
    purpose: ClassVar[str | None] = "dequantize"
    stored: ClassVar[torch.dtype] = torch.float32
    scored: ClassVar[str] = (
        "density of the continuous columns, where rounded ones have uniform noise of one step, times the "
        "probability of the others, of the observed cells in the units of the table"
    )
    columns: tuple[Column, ...] = ()
    forms: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    _held: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._held:
            return
        told: dict[str, list[Any]] = {
            "loc": [c.loc if c.continuous else 0.0 for c in self.columns],
            "scale": [c.scale if c.continuous else 1.0 for c in self.columns],
            "step": [c.step for c in self.columns],
            "origin": [c.origin for c in self.columns],
            "tens": [10.0 ** _decimals(c.step, c.origin) if c.step else 0.0 for c in self.columns],
            "clock": [float(round(1 / c.step)) if c.kind == "date" and c.step else 0.0 for c in self.columns],
            "continuous": [c.continuous for c in self.columns],
            "positive": [c.kind == "positive" for c in self.columns],
            "largest": [float(len(c.categories) - 1) if c.kind in NAMED else torch.inf for c in self.columns],
        }
        for name, values in told.items():
            kind = torch.bool if isinstance(values[0], bool) else torch.float64
            self._held[name] = torch.tensor(values, dtype=kind)

    @classmethod
    def fit(
        cls,
        train: Float[Tensor, "rows columns"],
        columns: Sequence[Column],
        forms: Sequence[str],
        dropped: Mapping[str, str] | None = None,
    ) -> Columns:
        """What the training split says of each column: location and scale, grid, tail, share of missing cells.

        Raises:
            DataError: a column that has one value in the training rows, or one that many rows share and is on no
                grid.
        """
        learned = [_learned(column, cells) for column, cells in zip(columns, train.double().cpu().T, strict=True)]
        return cls("columns", None, tuple(learned), tuple(forms), dict(dropped or {})).to(train.device)

    def draw(self, values: Tensor, u: Tensor) -> Tensor:
        return u.to(torch.float32)

    def observed(self, values: Tensor) -> Bool[Tensor, "batch columns"]:
        return ~values.isnan()

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        x, ladj = self.encode_each(values, drawn)
        return x.to(dtype), ladj.sum(-1).to(dtype)

    def encode_each(self, values: Tensor, drawn: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x and log|dx/dv| of single cells, ``[..., D]`` each, in float64; 0 where a cell is missing, and log|dx/dv|
        also where it has no density.
        """
        held, v = self._held, values.double()
        there = ~v.isnan()
        noise = 0.0 if drawn is None else (drawn.double() - 0.5) * held["step"]
        positive = held["positive"]
        # Where nothing is to be taken a logarithm of, of 1: no NaN comes into a gradient.
        moved = torch.where(there, v + noise, 1.0)
        logs = torch.where(positive, moved, 1.0).log()
        x = (torch.where(positive, logs, moved) - held["loc"]) / held["scale"]
        ladj = -(held["scale"].log() + logs)
        return torch.where(there, x, 0.0), torch.where(there, ladj, 0.0)

    def decode_point(self, x: Tensor) -> Tensor:
        held = self._held
        v = x.double() * held["scale"] + held["loc"]
        return torch.where(held["positive"], torch.where(held["positive"], v, 0.0).exp(), v)

    def invert(self, x: Tensor, mask: Bool[Tensor, "*any columns"] | None = None) -> Tensor:
        """The stored values that x stands for, in float64: numbers on their grid, whole counts, codes.

        Args:
            x: ``[..., D]``.
            mask: which cells are there; NaN stands for the others. Without it all are.
        """
        v = self.on_grid(self.decode_point(x))
        return v if mask is None else torch.where(mask, v, torch.nan)

    def on_grid(self, v: Tensor) -> Tensor:
        """Numbers in the units of the table as stored values ``[..., D]``: on the grid of their column, counts whole,
        codes of values that there are.
        """
        held = self._held
        grid = torch.where(held["step"] > 0, held["step"], 1.0)
        rounded = held["origin"] + ((v - held["origin"]) / grid).round() * grid
        # Grids of decimals and of clocks are fractions that a product of the step does not hit to the bit.
        tens, clock = held["tens"], held["clock"]
        fine = torch.where(tens > 0, tens, torch.where(clock > 0, clock, 1.0))
        rounded = torch.where(fine > 1, (rounded * fine).round() / fine, rounded)
        # The lowest step of a positive column is above 0.
        low = torch.where(held["positive"], torch.where(held["step"] > 0, self._lowest(), 0.0), -torch.inf)
        rounded = torch.maximum(rounded, low)
        v = torch.where(held["step"] > 0, rounded, v)
        # A sum with 0 makes 0 of −0.
        whole = (v.round().clamp(min=0) + 0.0).minimum(held["largest"])
        return torch.where(held["continuous"], v, whole)

    def _lowest(self) -> Tensor:
        """The lowest number on the grid of a positive column whose noise stays above 0."""
        step = torch.where(self._held["step"] > 0, self._held["step"], 1.0)
        origin = self._held["origin"]
        low = origin + torch.ceil((step / 2 - origin) / step) * step
        return torch.where(low > step / 2, low, low + step)

    def stored_values(self, x: Tensor) -> Tensor:
        return self.invert(x)

    def stored_means(self, x: Tensor) -> Tensor:
        return self.invert(x)

    def overview(self) -> list[tuple[str, str, str, str]]:
        """A row for each column, those that were left out among them (:func:`varflow.data.kinds.overview`)."""
        return overview(self.columns, self.dropped)

    def table(self, values: Tensor) -> dict[str, Any]:
        """Stored values ``[N, D]`` as the columns of the table: :func:`varflow.data.writing.table_of`."""
        return table_of(values.detach().cpu().numpy(), self.columns, self.forms)

    def expected(self, values: Tensor) -> Tensor:
        return self.encode(values, None, torch.float64)[0]

    def to(self, device: torch.device) -> Columns:
        return replace(self, _held={name: tensor.to(device) for name, tensor in self._held.items()})

    def treatment(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """The kind of each column, those that are rounded or have heavy tails, and what was left out."""
        return {
            "kinds": {c.name: c.kind for c in self.columns},
            "rounded_columns": {c.name: c.step for c in self.columns if c.step > 0},
            "heavy_tailed_columns": {c.name: c.tail for c in self.columns if c.tail > 0},
            "missing_cells": {c.name: c.missing for c in self.columns if c.missing > 0},
            "dropped_columns": dict(self.dropped),
        }

    def flaw(self, event_shape: tuple[int, ...]) -> str | None:
        if len(self.forms) != len(self.columns) or not set(self.forms) <= set(FORMS):
            return f"forms are {', '.join(self.forms)}, not one of each of {len(self.columns)} columns"
        if event_shape != (len(self.columns),):
            return f"there are {len(self.columns)} columns, the data have {list(event_shape)}"
        for column in self.columns:
            numbers = torch.tensor(
                [column.loc, column.scale, column.step, column.origin, column.tail, column.missing]
            )
            if not bool(numbers.isfinite().all()):
                return f"column '{column.name}' holds a NaN or an infinity"
            if column.scale <= 0 or column.step < 0 or column.tail < 0 or not 0 <= column.missing <= 1:
                return (
                    f"column '{column.name}' has scale {column.scale:g}, step {column.step:g}, tail {column.tail:g}"
                )
        return None

    def learned(self) -> dict[str, Any]:
        return {
            "columns": [column.to_json() for column in self.columns],
            "forms": list(self.forms),
            "dropped": dict(self.dropped),
        }

    @classmethod
    def restored(cls, name: str, learned: Mapping[str, Any]) -> Columns:
        columns = tuple(Column.from_json(held) for held in learned["columns"])
        forms, dropped = learned["forms"], learned["dropped"]
        if not columns or not all(isinstance(form, str) for form in forms):
            raise ValueError("columns or forms")
        return cls(name, None, columns, tuple(forms), {str(k): str(v) for k, v in dropped.items()})


def shares_of(codes: Tensor, size: int) -> tuple[float, ...]:
    """The share of each value, counted half a cell more than it was, so that none is ruled out."""
    counts = torch.bincount(codes.long(), minlength=size).double() + 0.5
    return tuple((counts / counts.sum()).tolist())


def _learned(column: Column, cells: Tensor) -> Column:
    """A column with what its training cells say."""
    there = ~cells.isnan()
    v = cells[there]
    missing = (len(cells) - len(v)) / len(cells)
    name = column_name(0, [column.name])
    if not len(v):
        raise DataError(
            f"x: column {name} has no cell in the training rows; drop it ({column.name}:drop), or give more rows"
        )
    if column.kind in NAMED:
        return replace(column, missing=missing, shares=shares_of(v, len(column.categories)))
    if bool((v == v[0]).all()):
        raise DataError(
            f"x: column {name} has one value in the training rows ({float(v[0]):g}), so its scale would be 0; drop "
            f"it ({column.name}:drop), or give more rows"
        )
    if column.kind == "count":
        scale, loc = torch.std_mean(v.log1p(), correction=0)
        return replace(column, loc=float(loc), scale=float(scale), missing=missing)
    step, origin = (_clock(v), 0.0) if column.kind == "date" else _grid(v, name)
    if column.kind == "positive" and float(v.min()) <= step / 2:
        raise DataError(
            f"x: column {name} is set to positive, and its smallest value {float(v.min()):g} is within half a step "
            f"of 0 on its grid of {step:g}; say {column.name}:real"
        )
    tail = 0.0
    if column.kind == "real" and not step:
        # So many rows tell ν, location and scale as well as all of them would.
        found = tail_of(_some(v))
        if found is not None:
            location, width, tail = found
            return replace(column, loc=location, scale=width, tail=tail, missing=missing)
    spread, centre = torch.std_mean(v.log() if column.kind == "positive" else v, correction=0)
    return replace(
        column, loc=float(centre), scale=float(spread), step=step, origin=origin, tail=tail, missing=missing
    )


def _clock(days: Tensor) -> float:
    """The coarsest of a day, an hour, a minute and a second that dates lie on; 0 where they lie on none."""
    for step in _CLOCK:
        places = days * round(1 / step)
        if bool(((places - places.round()).abs() < 1e-4).all()):
            return step
    return 0.0


def _some(v: Tensor) -> Tensor:
    """As many of the cells as it takes to tell what they are like."""
    return v if len(v) <= ROWS else v[torch.randperm(len(v), generator=torch.Generator().manual_seed(0))[:ROWS]]


def _grid(v: Tensor, name: str) -> tuple[float, float]:
    """The step of a rounded column's grid, and a number on it; (0, 0) of a continuous column."""
    few = _some(v)
    fine = few * 10.0**6
    # Of so many cells nearly all differ, and they have more than six decimals: all cells need not be put in order.
    if len(few) < len(v) and len(few.unique()) > 0.99 * len(few) and bool((fine != fine.round()).any()):
        return 0.0, 0.0
    step, origin = step_of(v, name), float(v.min())
    if not step:
        return 0.0, 0.0
    for places in range(_DECIMALS + 1):
        tens = 10.0**places
        scaled = v * tens
        slack = 1e-6 + 1e-7 * float(scaled.abs().max())
        if slack < 0.05 and bool(((scaled - scaled.round()).abs() <= slack).all()):
            # The smallest difference of two decimals is one only up to rounding.
            whole = max(round(step * tens), 1)
            return whole / tens, round(origin * tens) / tens
    return step, origin


def _decimals(step: float, origin: float) -> int:
    """Decimals of the numbers on a grid; −400, whose power of ten is 0, where they have no few."""
    for places in range(_DECIMALS + 1):
        tens = 10.0**places
        if all(
            abs(value * tens - round(value * tens)) < 1e-9 * max(1.0, abs(value * tens)) for value in (step, origin)
        ):
            return places
    return -400
