"""Columns of real numbers as a continuous density can have them: rounded ones, and ones with heavy tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import DataError
from varflow.data.protocols import Encoded, Protocol, Standardize, Support, column_name

#: A column is rounded where its numbers lie on a grid and at most this share of them differ. Of a million
#: continuous float32 numbers 95 % and more differ.
_DISTINCT = 0.5
#: The same of whole numbers, which are a grid by themselves.
_DISTINCT_WHOLE = 0.9
#: A value that so many rows share has a probability of its own, and no density.
_SHARE = 0.2
#: Grids that are looked for after that of the smallest difference.
_STEPS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01, 0.005, 0.001, 1e-4)
#: Degrees of freedom that are tried. Above 3 the moments that a standardization needs exist and converge.
_TAILS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
_HEAVIEST = 3.0
#: Twice the gain in log-likelihood over a Gaussian that chance reaches once in 10⁴ columns (χ² with one degree).
_GAIN = 15.1
#: Rows that may tell by themselves that a tail is not heavy, and by how many nats.
_CLEAR, _CLEARLY = 2000, 8.0


@dataclass(frozen=True)
class Table(Protocol):
    """Each column by itself: v → v + (u − ½)·step where it is rounded, then standardized, then without its tails.

    A rounded column has uniform noise of one step of its grid. log p(x) + ladj is the density of the column with that
    noise, in its units: for whole numbers it bounds their log-probability (Theis et al. 2016, eq. 2).

    A column with heavy tails has a Student-t with location m, scale s and ν degrees of freedom fitted to it by
    maximum likelihood. With t = (v − m)/s it becomes y = sign(t) √((ν + 1) log(1 + t²/ν)), whose tails fall as a
    Gaussian's: −y²/2 is the log-density of the Student-t at t but for a constant.
    dy/dt = (ν + 1) |t| / ((ν + t²) |y|), and √((ν + 1)/ν) at 0.
    The inverse is t = sign(y) √(ν expm1(y²/(ν + 1))).

    Attributes:
        loc, scale: m and s of each column; mean and standard deviation where the tail is not heavy.
        step: of the grid of a rounded column; 0 where a column is not rounded.
        origin: a number on that grid.
        tail: ν; 0 where the tail is not heavy.
    """

    support: ClassVar[Support] = "real"
    mass: ClassVar[bool] = False
    purpose: ClassVar[str | None] = "dequantize"
    stored: ClassVar[torch.dtype] = torch.float32
    scored: ClassVar[str] = (
        "density of x in the units of the data, where rounded columns have uniform noise of one step"
    )
    loc: Tensor
    scale: Tensor
    step: Tensor
    origin: Tensor
    tail: Tensor

    @classmethod
    def fit(
        cls, train: Float[Tensor, "rows columns"], names: Sequence[str] = (), sampled: bool = False
    ) -> Protocol:
        """What the training split says of each column; plain standardization where no column is special.

        Args:
            train: its rows.
            names: of the columns, for messages.
            sampled: whether these are some of many rows. Then numbers of few decimals lie on a grid however many of
                them differ, and what a few rows tell of a tail is believed where it is clear.

        Raises:
            DataError: a constant column, or one where many rows share a value and that lies on no grid.
        """
        plain = Standardize.fit(train, names)
        if train.dim() != 2:
            return plain
        columns = train.double().cpu()
        step, origin, tail = (torch.zeros(columns.shape[1], dtype=torch.float64) for _ in range(3))
        loc, scale = plain.loc.cpu().clone(), plain.scale.cpu().clone()
        for number, column in enumerate(columns.T):
            origin[number] = column.min()
            step[number] = step_of(column, column_name(number, names))
            if sampled and not step[number] > 0:
                step[number] = decimals_of(column)
            if step[number] > 0 or (sampled and is_light(column)):
                continue
            found = tail_of(column)
            if found is not None:
                loc[number], scale[number], tail[number] = found
        if not bool((step > 0).any() or (tail > 0).any()):
            return plain
        home = train.device
        return cls("table", None, *(t.to(home) for t in (loc, scale, step, origin, tail)))

    def draw(self, values: Tensor, u: Tensor) -> Tensor:
        return u.to(torch.float32)

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        noise = 0.0 if drawn is None else (drawn.double() - 0.5) * self.step
        t = (values.double() + noise - self.loc) / self.scale
        # ν of a column without a heavy tail is any number: its result is not taken.
        nu = torch.where(self.tail > 0, self.tail, 1.0)
        square = t.square()
        y = t.sign() * ((nu + 1) * torch.log1p(square / nu)).sqrt()
        # (ν + 1) |t| / ((ν + t²) |y|), with |t|/|y| = √(ν/(ν + 1)) at 0.
        centre = square < 1e-16
        ratio = torch.where(centre, (nu / (nu + 1)).sqrt(), t / torch.where(centre, 1.0, y))
        bent = ((nu + 1) / (nu + square) * ratio).log()
        heavy = self.tail > 0
        x = torch.where(heavy, torch.where(centre, t * ((nu + 1) / nu).sqrt(), y), t)
        ladj = torch.where(heavy, bent, 0.0).sum(-1) - self.scale.log().sum()
        return x.to(dtype), ladj.to(dtype)

    def decode_point(self, x: Tensor) -> Tensor:
        return self._unbent(x).to(x.dtype)

    def invert(self, x: Tensor) -> Tensor:
        v = self._unbent(x)
        grid = torch.where(self.step > 0, self.step, 1.0)
        rounded = self.origin + ((v - self.origin) / grid).round() * grid
        return torch.where(self.step > 0, rounded, v).to(x.dtype)

    def _unbent(self, x: Tensor) -> Tensor:
        """The row of x, in float64, rounded columns between their steps."""
        nu = torch.where(self.tail > 0, self.tail, 1.0)
        y = x.double()
        t = y.sign() * (nu * torch.expm1(y.square() / (nu + 1))).sqrt()
        return torch.where(self.tail > 0, t, y) * self.scale + self.loc

    def expected(self, values: Tensor) -> Tensor:
        return self.encode(values, None, torch.float64)[0]

    def to(self, device: torch.device) -> Protocol:
        held = {name: getattr(self, name).to(device) for name in ("loc", "scale", "step", "origin", "tail")}
        return replace(self, **held)

    def treatment(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """Which columns are special: the step of the grid of a rounded one, ν of one with heavy tails."""
        rounded = {column_name(i, names): float(s) for i, s in enumerate(self.step) if s > 0}
        heavy = {column_name(i, names): float(t) for i, t in enumerate(self.tail) if t > 0}
        return {"rounded_columns": rounded, "heavy_tailed_columns": heavy}


def has_rounded_columns(train: Tensor, names: Sequence[str] = ()) -> bool:
    """Whether a table has columns that a continuous density must not have as they are."""
    if train.dim() != 2:
        return False
    columns = train.double().cpu().T
    return any(step_of(column, column_name(number, names)) > 0 for number, column in enumerate(columns))


def step_of(column: Tensor, name: str) -> float:
    """The step of a rounded column's grid, 0 for a continuous column."""
    values, counts = column.unique(return_counts=True)
    if len(values) == 1:
        return 0.0
    whole = bool((values == values.round()).all())
    # A value that is there once is no tie, however few rows there are.
    share = float(counts.max()) / len(column) if counts.max() > 1 else 0.0
    differ = len(values) / len(column)
    if differ > (_DISTINCT_WHOLE if whole else _DISTINCT) and share <= _SHARE:
        return 0.0
    for step in (float(values.diff().min()), *_STEPS):
        places = (values - values[0]) / step
        # Numbers stored as float32 lie beside their grid by 6e-8 of their size.
        slack = 1e-3 + 1e-7 * float(values.abs().max()) / step
        if slack < 0.05 and bool(((places - places.round()).abs() <= slack).all()):
            return step
    if share > _SHARE:
        value = float(values[counts.argmax()])
        raise DataError(
            f"x: {name} has the value {value:g} in {100 * share:.0f} % of the training rows and is on no grid, so it "
            "has no density; drop the column, or insist with protocol=standardize"
        )
    return 0.0


def decimals_of(column: Tensor) -> float:
    """The coarsest of some decimal grids that all numbers lie on; 0 where they lie on none."""
    low, high = float(column.min()), float(column.abs().max())
    for step in _STEPS:
        places = (column - low) / step
        slack = 1e-3 + 1e-7 * high / step
        if slack < 0.05 and bool(((places - places.round()).abs() <= slack).all()):
            return step
    return 0.0


def is_light(column: Tensor) -> bool:
    """Whether a few rows tell beyond doubt that ν is above 3: 4 degrees of freedom are e⁸ times as likely as 3."""
    few = column[:_CLEAR]
    if len(few) < _CLEAR or not few.std() > 0:
        return False
    return student(few, 4.0)[0] - student(few, 3.0)[0] > _CLEARLY


def tail_of(column: Tensor) -> tuple[float, float, float] | None:
    """(location, scale, ν) of the Student-t of highest likelihood, where its tail is heavy beyond chance."""
    gaussian = -len(column) * (column.std(correction=0).log().item() + 0.5 * math.log(2 * math.pi * math.e))
    fits = [(*student(column, nu), nu) for nu in _TAILS]
    likelihood, loc, scale, nu = max(fits)
    if nu > _HEAVIEST or 2 * (likelihood - gaussian) < _GAIN:
        return None
    return loc, scale, nu


def student(column: Tensor, nu: float) -> tuple[float, float, float]:
    """(log-likelihood, location, scale) of a Student-t with ν degrees of freedom, by EM (Lange et al. 1989)."""
    loc = column.median()
    scale = (column - loc).abs().median() / 0.6745
    if not scale > 0:
        scale = column.std(correction=0)
    for _ in range(60):
        weight = (nu + 1) / (nu + ((column - loc) / scale).square())
        loc = (weight * column).sum() / weight.sum()
        scale = (weight * (column - loc).square()).mean().sqrt()
    t = (column - loc) / scale
    constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
    each = constant - scale.log() - (nu + 1) / 2 * torch.log1p(t.square() / nu)
    return float(each.sum()), float(loc), float(scale)
