"""What a model of a table says of the cells that are missing, given those that are there.

With S samples z_s ~ q(z|x_observed) and self-normalized importance weights of the observed cells

    w_s ∝ p(x_observed|z_s) p(z_s) / q(z_s|x_observed),   Σ_s w_s = 1,

expectations under p(x_missing|x_observed) are Σ_s w_s E[…|z_s], and draws of it are draws of p(x_missing|z_s) with s
drawn by w (sampling-importance-resampling). Both are consistent in S.

Sources: Mattei and Frellsen 2019, "MIWAE", section 3.2 and equation 12; Rubin 1988 for the resampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varflow.core import random
from varflow.core.columns import NAMED, Column
from varflow.core.observed import Observed
from varflow.data.columns import Columns
from varflow.evaluation.importance import Sums, fill
from varflow.evaluation.memory import rows_within, slices
from varflow.evaluation.points import evaluating
from varflow.model import Model, Terms
from varflow.posteriors.posterior import Draw


@dataclass(frozen=True)
class Weighted:
    """Samples of p(z|x_observed) of B rows, as weighted samples of q.

    Attributes:
        seen: the rows, with the mask of what is observed.
        z: ``[S, B, *latent]``.
        log_weight: ``[S, B]``, float64; the weights of a row sum to 1.
        log_px: log p̂(x_observed) ``[B]``, nats, in the space of x.
        ess: effective sample size over S ``[B]``, in [1/S, 1].
        khat: Pareto k̂ ``[B]``; nan below 25 samples.
        rows: so many latents are decoded at once.
    """

    seen: Observed
    z: Tensor
    log_weight: Tensor
    log_px: Tensor
    ess: Tensor
    khat: Tensor
    rows: int

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Rectangles of [samples, rows] that fit into the memory."""
        yield from slices(self.z.shape[0], self.z.shape[1], self.rows)

    def decoder_input(self, model: Model, samples: slice, points: slice) -> Tensor:
        """What the decoder reads of some of the samples."""
        context = self.seen.context
        return model.beside(self.z[samples, points], None if context is None else context[points])


class _Keeping(Sums):
    """Running sums that keep the samples themselves too."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples, 0)
        self._parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.blocks: list[tuple[Tensor, Tensor]] = []

    def add(self, terms: Terms, points: slice) -> None:
        super().add(terms, points)
        self._parts.setdefault(points.start, []).append((terms.z, terms.log_weight.double()))

    def close(self, count: int) -> None:
        super().close(count)
        columns = [[torch.cat(parts) for parts in zip(*column, strict=True)] for column in self._parts.values()]
        z, log_weight = (torch.cat(parts, 1) for parts in zip(*columns, strict=True))
        self.blocks.append((z, log_weight))
        self._parts = {}


@torch.no_grad()
def weighted(
    model: Model, seen: Observed, samples: int, memory: int = 2**30, seed: int = 0, keys: Sequence[int] | None = None
) -> Weighted:
    """Samples of q(z|x_observed) with their normalized weights.

    Args:
        model: of a table, in evaluation mode.
        seen: rows x ``[B, D]`` with a mask of the cells that are there.
        samples: S.
        memory: bytes that decoding may take.
        seed: of the samples.
        keys: an integer for each row, on which alone its random numbers depend.
    """
    if model.condition_sum is not None:
        model.condition_sum.refuse(seen, "impute")
    sums = _Keeping(samples)
    with evaluating(model):
        fill(sums, model, seen, memory, seed, keys)
        z, log_weight = (torch.cat(parts) for parts in zip(*sums.blocks, strict=True))
        found = sums.result()
        rows = rows_within(memory, model, seen, Draw(z, log_weight, z, log_weight))
    return Weighted(
        seen, z, log_weight - log_weight.logsumexp(0), found.log_px, found.ess, found.khat, rows
    )


@dataclass(frozen=True)
class Moments:
    """p(x_j|x_observed) of each cell in a few numbers, in the units of the table, float64 ``[B, D]``.

    Attributes:
        value: real, date: the mean; positive: the mean of the mixture of log-normals; count: the mean, seldom whole;
            ordinal, category, binary: the most probable code. Of a Student-t with ν ≤ 1 its centre stands for the
            mean.
        spread: the standard deviation (infinite for a Student-t with ν ≤ 2); of codes the probability of all others.
    """

    value: Float[Tensor, "rows columns"]
    spread: Float[Tensor, "rows columns"]


@torch.no_grad()
def moments(
    model: Model, kept: Columns, found: Weighted, columns: Sequence[int] | None = None
) -> Moments:
    """Moments of p(x_j|x_observed), of some of the columns; NaN in the others.

    The mean and variance of p(x_j|z) are exact, so what is left of the Monte-Carlo error is that of z.
    """
    chosen = range(len(kept.columns)) if columns is None else columns
    shape = (found.z.shape[1], len(kept.columns))
    first, second = (torch.zeros(shape, dtype=torch.float64, device=found.z.device) for _ in range(2))
    masses = {
        j: first.new_zeros(shape[0], len(kept.columns[j].categories)) for j in chosen if kept.columns[j].kind in NAMED
    }
    with evaluating(model):
        for samples, points in found.slices():
            weight = found.log_weight[samples, points].exp()
            cells = model.likelihood.distribution(found.decoder_input(model, samples, points)).cells
            for j in chosen:
                if j in masses:
                    masses[j][points] += torch.einsum("sb,sbk->bk", weight, _masses(cells[j]))
                    continue
                mean, square = _two_moments(kept.columns[j], cells[j])
                first[points, j] += (weight * mean).sum(0)
                second[points, j] += (weight * square).sum(0)
    value, spread = first, (second - first.square()).clamp_min(0.0).sqrt()
    for j, mass in masses.items():
        most, code = mass.max(-1)
        value[:, j], spread[:, j] = code.double(), (1 - most).clamp_min(0.0)
    # Numbers near the location of a column keep their digits: it is added last.
    held = [(j, kept.columns[j]) for j in chosen]
    for j, column in held:
        if column.kind in ("real", "date"):
            value[:, j], spread[:, j] = column.loc + column.scale * value[:, j], column.scale * spread[:, j]
        elif column.kind == "positive":
            unit = torch.tensor(column.loc, dtype=torch.float64).exp()
            value[:, j], spread[:, j] = unit * value[:, j], unit * spread[:, j]
    left = [j for j in range(shape[1]) if j not in set(chosen)]
    value[:, left], spread[:, left] = torch.nan, torch.nan
    return Moments(value, spread)


def _masses(cell: torch.distributions.Distribution) -> Tensor:
    """The probability of every code, ``[..., K]``."""
    probs: Tensor = cell.probs.double()  # type: ignore[attr-defined]
    if isinstance(cell, torch.distributions.Bernoulli):
        return torch.stack([1 - probs, probs], -1)
    return probs


def _two_moments(column: Column, cell: torch.distributions.Distribution) -> tuple[Tensor, Tensor]:
    """E and E of the square given z: of x itself, of exp(scale·x) of a positive column."""
    if isinstance(cell, torch.distributions.StudentT):
        centre = cell.loc.double()
        freedom = cell.df.double()
        narrow = torch.where(freedom > 2, freedom / (freedom - 2).clamp_min(1e-12), torch.inf)
        return centre, centre.square() + cell.scale.double().square() * narrow
    mean, variance = cell.mean.double(), cell.variance.double()
    if column.kind != "positive":
        return mean, mean.square() + variance
    log_mean = column.scale * mean
    log_variance = column.scale**2 * variance
    return torch.exp(log_mean + 0.5 * log_variance), torch.exp(2 * log_mean + 2 * log_variance)


@torch.no_grad()
def completions(
    model: Model, found: Weighted, draws: int, seed: int = 0, keys: Sequence[int] | None = None
) -> Float[Tensor, "draws rows columns"]:
    """x ~ p(x|x_observed) by sampling-importance-resampling, in the space of x: ``[draws, B, D]``.

    The observed cells are drawn again too; take them from the rows themselves.

    Args:
        model, found: as in :func:`moments`.
        draws: m for each row.
        seed, keys: as in :func:`weighted`.
    """
    count, rows = found.log_weight.shape
    source: Any = random.Stream(seed) if keys is None else random.ByRow(seed, keys)
    with random.use(source), evaluating(model):
        u = random.uniform((draws, rows), "resampling", dtype=torch.float64, device=found.z.device, batch_dim=1)
        below = found.log_weight.exp().cumsum(0).T.contiguous()
        chosen = torch.searchsorted(below, (u.T * below[:, -1:]).contiguous(), right=True).clamp_max(count - 1).T
        z = found.z[chosen, torch.arange(rows, device=found.z.device)]
        x: Tensor = model.likelihood.sample(model.beside(z, found.seen.context))
    return x


@dataclass(frozen=True)
class CellScores:
    """log p of cells given the observed ones, in the space of x, nats, float64.

    Attributes:
        joint: of all of a row's asked cells together ``[B]``.
        continuous: of its continuous cells together ``[B]``.
        each: of each cell by itself ``[B, D]``; 0 where it was not asked for.
        variance: of ``joint`` over repetitions, by the delta method ``[B]``.
    """

    joint: Tensor
    continuous: Tensor
    each: Tensor
    variance: Tensor


@torch.no_grad()
def cell_scores(
    model: Model, found: Weighted, x: Float[Tensor, "rows columns"], asked: Bool[Tensor, "rows columns"]
) -> CellScores:
    """log p(x_asked|x_observed) = log p(x_asked, x_observed) − log p(x_observed), both by the same samples.

    Args:
        model, found: as in :func:`moments`.
        x: ``[B, D]``, with the values of the asked cells.
        asked: which cells.
    """
    likelihood = model.likelihood
    dense = torch.tensor([column.continuous for column in likelihood.columns], device=x.device)
    rows = found.log_weight.shape[1]
    nothing = torch.full((rows,), -torch.inf, dtype=torch.float64, device=x.device)
    joint, continuous, squares, crossed, own = (nothing.clone() for _ in range(5))
    each = torch.full(tuple(x.shape), -torch.inf, dtype=torch.float64, device=x.device)
    with evaluating(model):
        for samples, points in found.slices():
            z = found.decoder_input(model, samples, points)
            cells = likelihood.log_prob_each(x[points], z, asked[points]).double()
            weight, whole = found.log_weight[samples, points], cells.sum(-1)
            _add(joint, points, weight + whole)
            _add(continuous, points, weight + torch.where(dense, cells, 0.0).sum(-1))
            _add(each, points, weight[..., None] + cells)
            _add(squares, points, 2 * (weight + whole))
            _add(crossed, points, 2 * weight + whole)
            _add(own, points, 2 * weight)
    # The delta method for Σ w p/Σ w: Σ (w p/Σ w p − w)² with Σ w = 1.
    variance = (squares - 2 * joint).exp() - 2 * (crossed - joint).exp() + own.exp()
    return CellScores(joint, continuous, torch.where(asked, each, 0.0), variance.clamp_min(0.0))


def _add(total: Tensor, points: slice, logs: Tensor) -> None:
    total[points] = torch.logaddexp(total[points], logs.logsumexp(0))
