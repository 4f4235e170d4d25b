"""Cells of a table that are removed and predicted: how good imputations are, and whether their spread is right.

Of the cells that are there a share is removed at random. Each method gives for the removed cells a value, and where
it has one p(x_removed|x_rest). Losses are means over cells; their errors take the cells of a row together, as one
draw:

    mean = Σ_r L_r/Σ_r n_r,   se² = Σ_r (L_r − mean·n_r)²/(Σ_r n_r)²,

with L_r the loss of the n_r cells of row r. Differences of two methods are of the same rows and cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from varflow.core import random
from varflow.core.columns import NAMED
from varflow.core.errors import SpecError, positive
from varflow.core.observed import Observed
from varflow.data.columns import Columns
from varflow.evaluation import psis
from varflow.evaluation.estimate import Estimates
from varflow.evaluation.evaluation import Evaluation
from varflow.evaluation.importance import POINTS
from varflow.evaluation.imputing import cell_scores, completions, moments, weighted
from varflow.evaluation.points import OnProgress, check_points, protocol_of
from varflow.model import Model

if TYPE_CHECKING:
    from varflow.data import Dataset

#: Draws behind the rank of a removed cell: 199 make intervals of 50, 80, 90 and 95 % exact.
DRAWS = 199
#: Central intervals whose coverage is counted.
INTERVALS = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Predictions:
    """What a method says of removed cells.

    Attributes:
        value: ``[N, D]`` in the units of the table, codes of values that are named; NaN where there is none.
        log_prob: log p(x_removed|x_rest) ``[N]``, nats, in the units of the table; None where there is none.
        continuous: the same of the continuous cells alone.
        variance: Monte-Carlo variance of ``log_prob``; None where nothing is random.
        rank: ``[N, D]`` in (0, 1): the share of p(x_j|x_rest) below the removed cell, uniform where p is right; NaN
            where there is none.
        spread: ``[N, D]``, the standard deviation of each cell, of codes the probability of all other values.
        khat, ess: of the weights of each row ``[N]``; None where there are none.
    """

    value: Tensor
    log_prob: Tensor | None = None
    continuous: Tensor | None = None
    variance: Tensor | None = None
    rank: Tensor | None = None
    spread: Tensor | None = None
    khat: Tensor | None = None
    ess: Tensor | None = None


@dataclass(frozen=True)
class Removed:
    """Rows of which some cells were removed: stored values, float64 ``[N, D]``.

    Attributes:
        whole: with all cells that there are.
        rest: without the removed ones.
        gone: which were removed.
        preprocessing: kinds of the columns and what was learned of them.
        context: ``[N, C]`` of a model that is conditioned.
        unit: the standard deviation of each column in the training rows, NaN of named values.
    """

    whole: Tensor
    rest: Tensor
    gone: Tensor
    preprocessing: Columns
    context: Tensor | None
    unit: Tensor

    @property
    def numeric(self) -> Tensor:
        """Which columns are numbers ``[D]``."""
        return torch.tensor([column.kind not in NAMED for column in self.preprocessing.columns])

    @property
    def ranked(self) -> Tensor:
        """Which columns have an order, so that intervals have a meaning ``[D]``."""
        return torch.tensor([column.kind not in ("category", "binary") for column in self.preprocessing.columns])


def remove(dataset: Dataset, split: str, share: float, seed: int, limit: int | None = None) -> Removed:
    """Rows of a split with a share of the cells that are there removed at random.

    Args:
        dataset: of a table under the protocol columns.
        split: of it.
        share: of the cells, between 0 and 1.
        seed: which cells.
        limit: the first rows alone.

    Raises:
        SpecError: other data, or a share that is none.
    """
    kept = dataset.preprocessing
    if not isinstance(kept, Columns):
        raise SpecError("removed: only of a table with likelihood=columns; its cells may be missing")
    if not 0 < share < 1:
        raise SpecError(f"removed: was {share}; use a share of the cells, between 0 and 1")
    rows = dataset.sizes[split] if limit is None else min(limit, dataset.sizes[split])
    whole = dataset.raw(split)[:rows].double().cpu()
    with random.stream(seed):
        u = random.uniform(tuple(whole.shape), "removed cells", dtype=torch.float64)
    gone = (u < share) & ~whole.isnan()
    if not bool(gone.any()):
        raise SpecError(f"removed: {share} of {whole.numel()} cells is none of them; use a larger share or more rows")
    context = None
    if dataset.conditions is not None:
        index = torch.arange(rows, device=dataset.device)
        context = dataset.conditions.context(split, index, dataset.dtype)
    train = dataset.raw("train").double().cpu()
    named = [column.kind in NAMED for column in kept.columns]
    unit = torch.tensor(np.nanstd(train.numpy(), 0)).masked_fill(torch.tensor(named), torch.nan)
    return Removed(whole, torch.where(gone, torch.nan, whole), gone, kept, context, unit)


def of_model(
    model: Model,
    table: Removed,
    samples: int = 1000,
    seed: int = 0,
    memory: int = 2**30,
    progress: OnProgress | None = None,
) -> Predictions:
    """What a model says of the removed cells, by S importance samples of q(z|x_rest) (:mod:`.imputing`)."""
    home = next(model.parameters())
    kept = table.preprocessing.to(home.device)
    parts: list[Predictions] = []
    for start in range(0, len(table.whole), POINTS):
        rows = slice(start, start + POINTS)
        whole, rest, gone = (t[rows].to(home.device) for t in (table.whole, table.rest, table.gone))
        context = None if table.context is None else table.context[rows].to(home.device)
        x_rest, _ = kept.encode(rest, None, home.dtype)
        x, ladj = kept.encode_each(whole)
        seen = Observed(x_rest, context, kept.observed(rest))
        keys = [start + number for number in range(len(whole))]
        found = weighted(model, seen, samples, memory, seed, keys)
        said = moments(model, kept, found)
        scores = cell_scores(model, found, x.to(home.dtype), gone)
        moved = torch.where(gone, ladj, 0.0)
        drawn = completions(model, found, DRAWS, seed, keys)
        u = torch.stack([_unit(seed, key, gone.shape[1]) for key in keys]).to(home.device)
        below = (drawn < x).double().sum(0) + u * (1 + (drawn == x).double().sum(0))
        parts.append(
            Predictions(
                said.value, scores.joint + moved.sum(1), scores.continuous + moved.sum(1), scores.variance,
                below / (DRAWS + 1), said.spread, found.khat, found.ess,
            )
        )  # fmt: skip
        if progress is not None:
            progress(min(start + POINTS, len(table.whole)), len(table.whole))
    names = ("value", "log_prob", "continuous", "variance", "rank", "spread", "khat", "ess")
    return Predictions(**{name: torch.cat([getattr(part, name) for part in parts]).double().cpu() for name in names})


def _unit(seed: int, key: int, size: int) -> Tensor:
    with random.stream(seed, key):
        return random.uniform((size,), "rank", dtype=torch.float64)


@dataclass(frozen=True)
class Loss:
    """A loss summed over the cells of each row.

    Attributes:
        total: ``[N]``.
        cells: ``[N]``, how many cells.
        root: whether the square root of the mean is meant.
    """

    total: Tensor
    cells: Tensor
    root: bool = False

    @property
    def value(self) -> float:
        mean = float(self.total.sum() / self.cells.sum())
        return math.sqrt(mean) if self.root else mean

    @property
    def influence(self) -> Tensor:
        """What each row moves the value by ``[N]``, to first order."""
        moved = (self.total - self.total.sum() / self.cells.sum() * self.cells) / self.cells.sum()
        return moved / (2 * self.value) if self.root and self.value > 0 else moved

    @property
    def error(self) -> float:
        """Standard error over rows."""
        return float(self.influence.square().sum().sqrt())

    def less(self, other: Loss) -> tuple[float, float]:
        """This value less another of the same cells, and the error of the difference."""
        return self.value - other.value, float((self.influence - other.influence).square().sum().sqrt())


def losses(table: Removed, said: Predictions) -> dict[str, Loss]:
    """The losses of a method, by name; what it does not say, or no removed cell has, is left out."""
    found: dict[str, Loss] = {}
    rows = table.gone.any(1)
    for name, logs in (("removed_nll", said.log_prob), ("removed_nll_continuous", said.continuous)):
        if logs is not None:
            dense = torch.tensor([column.continuous for column in table.preprocessing.columns])
            asked = rows if name == "removed_nll" else (table.gone & dense).any(1)
            if bool(asked.any()):
                found[name] = Loss(torch.where(asked, -logs, 0.0), asked.double())
    error = torch.where(table.gone, said.value - table.whole, 0.0)
    known = table.gone & ~said.value.isnan()
    squares = torch.where(table.numeric & known, (error / table.unit).square(), 0.0)
    _add(found, "removed_rmse", squares.sum(1), (table.numeric & known).sum(1), root=True)
    right = (error.round() == 0) & known & ~table.numeric
    _add(found, "removed_accuracy", right.sum(1).double(), (known & ~table.numeric).sum(1))
    if said.rank is not None:
        asked = table.gone & table.ranked & ~said.rank.isnan()
        for width in INTERVALS:
            inside = asked & ((said.rank - 0.5).abs() <= width / 2)
            _add(found, f"coverage_{100 * width:g}", inside.sum(1).double(), asked.sum(1))
    for number, column in enumerate(table.preprocessing.columns):
        own = known[:, number]
        if column.kind in NAMED:
            _add(found, f"accuracy of {column.name}", right[:, number].double(), own)
        else:
            _add(found, f"RMSE of {column.name}", torch.where(own, error[:, number].square(), 0.0), own, root=True)
    return found


def _add(found: dict[str, Loss], name: str, total: Tensor, cells: Tensor, root: bool = False) -> None:
    if bool(cells.sum() > 0):
        found[name] = Loss(total, cells.double(), root)


def removed_cells(
    model: Model,
    dataset: Dataset,
    share: float = 0.3,
    split: str = "test",
    samples: int = 1000,
    seed: int = 0,
    memory: int = 2**30,
    limit: int | None = None,
    baselines: Sequence[str] = (),
    progress: OnProgress | None = None,
) -> Evaluation:
    """Remove a share of the cells of a split at random, and predict them from the rest of their rows.

    Args:
        model: with likelihood=columns.
        dataset: a table.
        share: of the cells that are there.
        split: of the data set.
        samples: importance samples for each row.
        seed: of the removed cells and of the samples.
        memory: bytes that decoding may take.
        limit: the first rows alone.
        baselines: of :data:`varflow.evaluation.table_baselines.BASELINES`, on the same cells, and their differences.
        progress: called with (rows done, rows).

    Returns:
        Estimates, in the units of the table unless said otherwise:

        ``removed_nll``: −log p(x_removed|x_rest) of a row, log p(x_removed, x_rest) − log p(x_rest) by the same
        samples; ``removed_nll_continuous`` of its continuous cells alone. ``removed_rmse``: root mean square error of
        numeric cells, each over the standard deviation of its column in training. ``removed_accuracy``: share of
        ordinal, category and binary cells whose most probable value is right. ``coverage_90``: share of cells inside
        of the central interval of 90 %. Then RMSE and accuracy column by column. A baseline's are called
        ``removed_rmse, knn``, and the model's less them ``removed_rmse less knn``.

        ``per_example`` holds the removed cells: row and column, truth, value, rank, spread.

    Raises:
        SpecError: data that are no table of kinds, or a share that is none of its cells.
    """
    positive(samples=samples)
    check_points(dataset, model, split, limit)
    table = remove(dataset, split, share, seed, limit)
    said = of_model(model, table, samples, seed, memory, progress)
    assert said.khat is not None
    assert said.ess is not None
    assert said.variance is not None
    assert said.rank is not None
    assert said.spread is not None
    points = int(table.gone.any(1).sum())
    estimates = Estimates(samples, points, protocol_of(dataset, split), seed)
    own = losses(table, said)
    weak = float((said.khat > psis.UNRELIABLE).double().mean()) if samples >= psis.FEWEST else None
    for name, loss in own.items():
        more: dict[str, Any] = {}
        monte_carlo = None
        if name == "removed_nll":
            more = {"khat": weak, "ess": float(said.ess.mean())}
            monte_carlo = float(said.variance[table.gone.any(1)].sum().sqrt()) / points
        estimates.add(name, loss.value, loss.error, monte_carlo, _how(name, share), _unit_of(name), **more)
    cells_gone = int(table.gone.sum())
    notes = [f"{cells_gone} cells of {points} rows were removed, {100 * share:g} % of those that were there"]
    if weak:
        notes.append(
            f"k̂ > {psis.UNRELIABLE} at {100 * weak:.1f} % of the rows, where values and log p cannot be relied on: "
            "use more samples"
        )
    if baselines:
        from varflow.evaluation import table_baselines

        for name in baselines:
            beside = losses(table, table_baselines.predictions(name, dataset, table, seed))
            for quantity, loss in beside.items():
                if not quantity.startswith("removed_") or quantity not in own:
                    continue
                how = f"of {table_baselines.BASELINES[name]}, on the same cells"
                settings = {"samples": 0, "khat": None, "ess": None}
                unit = _unit_of(quantity)
                estimates.add(f"{quantity}, {name}", loss.value, loss.error, 0.0, how, unit, **settings)
                value, error = own[quantity].less(loss)
                how = "the model's less that, paired row by row"
                estimates.add(f"{quantity} less {name}", value, error, None, how, unit)
    where = table.gone.nonzero()
    at = (where[:, 0], where[:, 1])
    cells = {
        "row": where[:, 0], "column": where[:, 1], "truth": table.whole[at], "value": said.value[at],
        "rank": said.rank[at], "spread": said.spread[at],
    }  # fmt: skip
    about = {**dataset.describe(), "split": f"{split}-removed", "share": share}
    return Evaluation(about, estimates.found, {name: c.double().numpy() for name, c in cells.items()}, {}, notes)


def _how(name: str, share: float) -> str:
    rest = f"given the rest of the row, {100 * share:g} % of the cells removed"
    if name.startswith("removed_nll"):
        which = "continuous cells" if name.endswith("continuous") else "cells"
        return f"−log p of the removed {which} of a row {rest}; in the units of the table, by importance weights"
    if name == "removed_rmse":
        return f"root mean square error of numbers {rest}, over the standard deviation of their column in training"
    if name.startswith("coverage"):
        return f"share of removed numbers in the central interval of {name.partition('_')[2]} % {rest}"
    if name.startswith("RMSE"):
        return f"root mean square error in the units of the column {rest}"
    return f"share of cells whose most probable value is right {rest}"


def _unit_of(name: str) -> str:
    return "nats" if name.startswith("removed_nll") else ""
