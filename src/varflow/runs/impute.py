"""Missing cells of rows filled in by a fitted model of a table: once, or several times with what is not known."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varflow.core import display, random
from varflow.core.columns import NAMED, Column
from varflow.core.errors import DataError, ShapeError, SpecError, positive
from varflow.core.observed import Observed
from varflow.data.columns import Columns
from varflow.data.dataset import Dataset
from varflow.data.filling import Filling, fill_frame
from varflow.data.frames import from_package, is_frame, read_frame
from varflow.data.given import given as given_in_python
from varflow.data.given import like
from varflow.data.prepare import plain
from varflow.data.raw import Raw
from varflow.evaluation.estimate import percent
from varflow.evaluation.gaussian_conditionals import (
    GaussianMixture,
    drawn,
    given_observed,
    means_of,
    mixture_of,
)
from varflow.evaluation.importance import POINTS
from varflow.evaluation.imputing import completions, moments, weighted
from varflow.evaluation.psis import UNRELIABLE
from varflow.likelihoods.columns import Columns as ColumnsLikelihood
from varflow.model import Model
from varflow.runs.rows import Progress, answered, count, one_model, pieces

if TYPE_CHECKING:
    from varflow.runs.run import Run

#: Importance samples for each row.
SAMPLES = 1000
#: Numbers in all latents of a block of rows, at most.
_LATENTS = 2**24


@dataclass(frozen=True, repr=False)
class Imputations:
    """What a model says of the missing cells of rows; stored values, float64 on the CPU (:mod:`varflow.data.kinds`).

    Attributes:
        values: ``[N, D]``, every missing cell by one value: the mean of p(x_missing|x_observed) in the units of the
            table, of ordinal, category and binary columns the most probable code.
        missing: ``[N, D]``, which cells were missing.
        spread: ``[N, D]``, the standard deviation of each missing cell given those that are there, in the units of
            the table (days of a date; infinite for a Student-t with ν ≤ 2); of codes the probability that ``values``
            is not the right one. NaN where a cell was there.
        draws: ``[m, N, D]``, m tables drawn from p(x_missing|x_observed).
        ess: ``[N]``, effective sample size of the importance weights over ``samples``; 1 for a row with all cells.
        khat: ``[N]``, Pareto k̂ of the weights: above 0.7 the values of the row cannot be relied on. −∞ for a row
            with all cells, nan where there are too few samples to tell.
        samples: importance samples for each row; 0 where all is in closed form.
        columns: what is known of each column.
    """

    values: Float[Tensor, "rows columns"]
    missing: Bool[Tensor, "rows columns"]
    spread: Float[Tensor, "rows columns"]
    draws: Float[Tensor, "draws rows columns"]
    ess: Float[Tensor, " rows"]
    khat: Float[Tensor, " rows"]
    samples: int
    columns: tuple[Column, ...] = ()

    @property
    def unreliable(self) -> int:
        """Rows with k̂ above 0.7."""
        return int((self.khat > UNRELIABLE).sum())

    def summary(self) -> str:
        """How many cells of how many rows were filled in, and how far the weights can be trusted."""
        rows = self.missing.any(1)
        cells = int(self.missing.sum())
        if not cells:
            return f"{len(rows)} rows, no cell missing"
        if not self.samples:
            return f"{cells} cells of {int(rows.sum())} rows filled in, in closed form"
        ess = self.ess[rows]
        said = (
            f"{cells} cells of {int(rows.sum())} rows filled in, {self.samples} samples each, effective sample size "
            f"{percent(float(ess.median()))} of them (median), {percent(float(ess.min()))} (least)"
        )
        if self.unreliable:
            said += f"; k̂ above 0.7 in {self.unreliable} rows, whose values cannot be relied on: use more samples"
        return said

    def __repr__(self) -> str:
        return f"Imputations({self.summary()})"

    def _repr_html_(self) -> str:
        heads, *rows = self._by_column()
        shown = self.missing.any(1).nonzero()[:_SHOWN, 0].tolist()
        wide = self.missing[shown].any(0).nonzero()[:, 0].tolist()[:_SHOWN] if shown else []
        cells = [[str(i), *(self._cell(i, j) for j in wide), f"{float(self.khat[i]):.2f}"] for i in shown]
        first = [
            display.heading("The first rows with missing cells", "what was filled in is bold, with its spread"),
            display.table(["row", *(self.columns[j].name for j in wide), "k̂"], cells),
        ]
        told = "Spread: standard deviation of a cell given the rest of its row; of a name how often another is right."
        return display.block(
            display.heading("Imputations"), display.table(heads, rows, words=(0, 1)), *(first if wide else []),
            display.note(self.summary(), told),
        )

    def _by_column(self) -> list[list[str]]:
        out = [["column", "kind", "missing cells", "spread, median"]]
        for j, column in enumerate(self.columns):
            gone = self.missing[:, j]
            middle = float(self.spread[gone, j].median()) if bool(gone.any()) else math.nan
            out.append([column.name, column.kind, f"{int(gone.sum()):,}", _spread(column, middle)])
        return out

    def _cell(self, i: int, j: int) -> str:
        column, value = self.columns[j], float(self.values[i, j])
        if not bool(self.missing[i, j]):
            return _word(column, value)
        spread = display.text(_spread(column, float(self.spread[i, j])))
        return display.HTML(f"<strong>{display.text(_word(column, value))}</strong> {spread}")


#: Rows and columns of imputations that a notebook shows.
_SHOWN = 8


def _word(column: Column, value: float) -> str:
    """A stored value as the table has it."""
    if math.isnan(value):
        return "–"
    if column.kind in NAMED:
        return column.categories[round(value)]
    if column.kind == "date":
        return str(np.datetime64(0, "s") + np.timedelta64(round(86400 * value), "s")).removesuffix("T00:00:00")
    return f"{value:.0f}" if column.kind == "count" else f"{value:.5g}"


def _spread(column: Column, spread: float) -> str:
    if math.isnan(spread):
        return ""
    if column.kind in NAMED:
        return f"({100 * spread:.0f} % another)"
    shown = f"{spread:.2g}" if spread < 100 or math.isinf(spread) else f"{spread:.0f}"
    return f"± {shown}" + (" days" if column.kind == "date" else "")


@torch.no_grad()
def imputations(
    run: Run,
    x: Any,
    samples: int = SAMPLES,
    draws: int = 0,
    given: Any = None,
    seed: int = 0,
    rounded: bool = True,
    memory: int = 2**30,
    progress: Progress | None = None,
) -> Imputations:
    """See :meth:`varflow.Run.imputations`."""
    positive(samples=samples)
    if draws < 0:
        raise SpecError(f"draws: was {draws}; use 0 or more tables")
    if (exact := _exact_density(run)) is not None:
        return _of_density(run, exact, x, draws, given, seed, rounded)
    model, kept = model_of_table(run)
    parts, seen_before, total = [], Counter[int](), count(x)
    for start, piece in pieces(run, x, seed, given_for=given):
        stored, size = piece.raw("test"), piece.sizes["test"]
        block = max(min(POINTS, _LATENTS // (samples * max(model.prior.event_shape))), 1)
        for first in range(0, size, block):
            index = torch.arange(first, min(first + block, size))
            parts.append(
                _block(model, kept, piece, index, stored[index], samples, draws, seed, memory, seen_before)
            )
            if progress is not None:
                progress(start + first + len(index), total)
    joined = {
        name: torch.cat([getattr(part, name) for part in parts], 1 if name == "draws" else 0).cpu()
        for name in ("values", "missing", "spread", "draws", "ess", "khat")
    }
    found = Imputations(**joined, samples=samples, columns=kept.columns)
    return _rounded(kept, found) if rounded else found


def model_of_table(run: Run) -> tuple[Model, Columns]:
    """The model and the preprocessing of a run that fills in cells.

    Raises:
        SpecError: any other run.
    """
    model = one_model(run, "impute", "there is no row to fill in")
    if isinstance(model.likelihood, ColumnsLikelihood) and isinstance(run.preprocessing, Columns):
        return model, run.preprocessing
    if model.posterior.observed:
        raise SpecError(
            f"impute: this run is a density of whole rows by {type(model.prior).__name__}, which has no closed form "
            "without some of its cells; fit with likelihood=columns (recipe table), or likelihood=identity and "
            "prior=mixture"
        )
    raise SpecError("impute: this run reads no missing cells; fit with likelihood=columns (recipe table)")


def _block(
    model: Model,
    kept: Columns,
    piece: Dataset,
    index: Tensor,
    stored: Tensor,
    samples: int,
    draws: int,
    seed: int,
    memory: int,
    seen_before: Counter[int],
) -> Imputations:
    """The imputations of some rows."""
    missing = stored.isnan()
    size = len(stored)
    values = stored.double().clone()
    spread = torch.full_like(values, torch.nan)
    drawn = values.expand(draws, *values.shape).clone()
    ess = torch.ones(size, dtype=torch.float64)
    khat = torch.full((size,), -torch.inf, dtype=torch.float64)
    holes = missing.any(1)
    rows = holes.nonzero()[:, 0]
    if len(rows):
        seen = as_seen(kept, piece, index[rows.cpu()], stored[rows])
        keys = row_keys(stored[rows], seen.context)
        found = weighted(model, seen, samples, memory, seed, keys)
        gaps = missing[rows]
        said = moments(model, kept, found, gaps.any(0).nonzero()[:, 0].tolist())
        values[rows] = torch.where(gaps, said.value, stored[rows])
        spread[rows] = torch.where(gaps, said.spread, torch.nan)
        ess[rows.cpu()], khat[rows.cpu()] = found.ess.cpu(), found.khat.cpu()
        if draws:
            # Equal rows have the same samples of z, and draws of their own among them.
            own = [key + (number << 64) for key, number in zip(keys, _numbered(keys, seen_before), strict=True)]
            x = completions(model, found, draws, seed, own)
            drawn[:, rows] = torch.where(gaps, kept.invert(x), stored[rows])
    return Imputations(values, missing, spread, drawn, ess, khat, samples)


def _exact_density(run: Run) -> GaussianMixture | None:
    """The mixture of Gaussians that a run is the density of; None of any other."""
    model = run.model
    if not isinstance(model, Model) or not model.posterior.observed or run.picture or len(run.form.event_shape) != 1:
        return None
    return mixture_of(model.prior)


def _of_density(
    run: Run, exact: GaussianMixture, x: Any, draws: int, given: Any, seed: int, rounded: bool
) -> Imputations:
    """Of a mixture of Gaussians in closed form: nothing is estimated."""
    kept = run.preprocessing
    assert kept is not None
    if given is not None:
        raise SpecError("given: this run is conditioned on nothing; leave it out")
    stored = _numbers(run, x)
    missing, home = stored.isnan(), kept.to(torch.device("cpu"))
    # Each column is prepared by itself, so a missing cell leaves the others as they are.
    seen, _ = home.encode_point(stored.clone(), torch.float64)
    values, spread = stored.clone(), torch.full_like(stored, torch.nan)
    drawn_tables = stored.expand(draws, *stored.shape).clone()
    seen_before: Counter[int] = Counter()
    for start in range(0, len(stored), POINTS):
        rows = slice(start, start + POINTS)
        found = given_observed(exact, seen[rows].nan_to_num(0.0), ~missing[rows])
        mean, scale = means_of(found, home.decode_point)
        if rounded and bool((step := getattr(home, "step", torch.zeros(1)) > 0).any()):
            mean = torch.where(step, home.invert(home.encode_point(mean.clone(), torch.float64)[0]), mean)
        values[rows] = torch.where(missing[rows], mean, stored[rows])
        spread[rows] = torch.where(missing[rows], scale, torch.nan)
        if draws:
            keys = row_keys(stored[rows], None)
            own = [key + (number << 64) for key, number in zip(keys, _numbered(keys, seen_before), strict=True)]
            with random.use(random.ByRow(seed, own)):
                made = home.invert(drawn(found, draws).flatten(0, 1)).reshape(draws, -1, stored.shape[1])
            drawn_tables[:, rows] = torch.where(missing[rows], made, stored[rows])
    ones = torch.ones(len(stored), dtype=torch.float64)
    names = run.columns or [f"x{j}" for j in range(values.shape[1])]
    columns = tuple(Column(name, "real") for name in names)
    return Imputations(values, missing, spread, drawn_tables, ones, torch.full_like(ones, -torch.inf), 0, columns)


def _numbers(run: Run, x: Any) -> Tensor:
    """Rows of numbers with missing cells, their columns in the order of training: float64 ``[N, D]``.

    Raises:
        DataError: text among numbers, a column that is missing or new.
        ShapeError: another number of columns.
    """
    size = run.form.event_shape[0]
    if is_frame(x):
        raw = read_frame(x)
        names = run.columns or raw.names
        columns = {cells.name: cells for cells in raw.columns}
        for name in names:
            if name not in columns:
                raise DataError(f"x: column '{name}' is missing; the model was fitted to {', '.join(names)}")
            if columns[name].values is None:
                raise DataError(f"x: column '{name}' holds text, should be numbers")
        held: list[Any] = [columns[name].values for name in names]
        values = torch.from_numpy(np.stack(held, 1))
    else:
        values = plain(given_in_python(x).values, "all", missing=True).double().cpu()
    if values.dim() != 2 or values.shape[1] != size:
        raise ShapeError(
            f"x: shape {list(values.shape)}, should be [N, {size}], as the data that the model was fitted to"
        )
    return values


def _numbered(keys: list[int], seen_before: Counter[int]) -> list[int]:
    """How many rows with the same key stand before each, in all that was given."""
    out = []
    for key in keys:
        out.append(seen_before[key])
        seen_before[key] += 1
    return out


def as_seen(kept: Columns, piece: Dataset, index: Tensor, stored: Tensor) -> Observed:
    """Rows as the model sees them, with nothing drawn: a rounded cell stands in the middle of its step."""
    conditions = piece.conditions
    context = None if conditions is None else conditions.context("test", index.to(piece.device), piece.dtype)
    return Observed(kept.encode(stored, None, piece.dtype)[0], context, kept.observed(stored))


def row_keys(stored: Tensor, context: Tensor | None) -> list[int]:
    """A number for each row that its values and its context alone decide."""
    values = stored.double() if context is None else torch.cat([stored.double(), context.double()], 1)
    return random.row_keys(values)


def _rounded(kept: Columns, found: Imputations) -> Imputations:
    home = kept.to(torch.device("cpu"))
    return replace(found, values=torch.where(found.missing, home.on_grid(found.values), found.values))


def impute(
    run: Run,
    x: Any,
    samples: int = SAMPLES,
    draws: int = 0,
    given: Any = None,
    seed: int = 0,
    rounded: bool = True,
    progress: Progress | None = None,
) -> Any:
    """See :meth:`varflow.Run.impute`."""
    found = imputations(run, x, samples, draws, given, seed, rounded, progress=progress)
    if draws:
        return [filled(run, x, values, found.missing) for values in found.draws]
    return filled(run, x, found.values, found.missing)


def filled(run: Run, x: Any, values: Tensor, missing: Tensor) -> Any:
    """x with its missing cells taken from ``values``, in the kind that x is; what was there stays as it is."""
    kept = run.preprocessing
    if not isinstance(kept, Columns):
        return _filled_numbers(run, x, values, missing)
    if is_frame(x) and not isinstance(x, Raw) and not from_package(x, "datasets"):
        return fill_frame(x, filling(kept, values, missing))
    if isinstance(x, torch.Tensor) and x.is_floating_point() and x.shape == values.shape:
        return torch.where(missing.to(x.device), values.to(x.device, x.dtype), x)
    if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.shape == tuple(values.shape):
        return np.where(missing.numpy(), values.numpy().astype(x.dtype), x)
    return answered(run, x, values) if is_frame(x) else like(x, values, run.columns)


def _filled_numbers(run: Run, x: Any, values: Tensor, missing: Tensor) -> Any:
    """The same where all columns are numbers."""
    if is_frame(x) and not from_package(x, "datasets"):
        names = run.columns or read_frame(x).names
        cells = {
            name: (gone.numpy(), np.ma.MaskedArray(own.numpy()))
            for name, own, gone in zip(names, values.T, missing.T, strict=True)
        }
        return fill_frame(x, cells)
    return like(x, values)


def filling(kept: Columns, values: Tensor, missing: Tensor) -> Filling:
    """What is filled into each column, as the table has it."""
    table, found = kept.table(values), {}
    for number, column in enumerate(kept.columns):
        gone, cells = missing[:, number].numpy(), table[column.name]
        own = values[:, number].numpy()
        if column.kind not in NAMED and column.kind != "date" and bool((own[gone] % 1 != 0).any()):
            # A mean that was not to be rounded.
            cells = np.ma.MaskedArray(own, np.ma.getmaskarray(cells))
        found[column.name] = (gone, cells)
    return found
