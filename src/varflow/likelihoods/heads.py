"""Heads of a decoder: what columns of one kind have in common, all of them in one operation.

A head stands for d columns of a table and reads ``outputs`` numbers of the decoder's last layer. Its methods take
the columns' values x ``[..., d]`` and those numbers ``[..., outputs]``, and give ``[..., d]``. At outputs of zero it
is near the marginal distribution of its columns, as far as :class:`~varflow.core.columns.Column` tells it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varflow.core import random
from varflow.core.columns import Column
from varflow.core.errors import SpecError, unknown
from varflow.likelihoods import negative_binomial
from varflow.likelihoods.student_t import log_normalizer

#: A count column of the mean 0 starts at this mean instead.
_LEAST_MEAN = 0.01
#: Where counts spread no more than a Poisson variable, their dispersion starts here, so that it has a gradient.
_LEAST_DISPERSION = 0.05
#: Variance of log(1 + k) beyond which the start of a dispersion does not follow.
_MOST_SPREAD = 10.0
#: Degrees of freedom of a Student-t column whose tail is not known.
_FREEDOM = 5.0
#: A group of categorical columns is filled up to its largest; none has less than that divided by this.
_FILL = 4


class Head(nn.Module, ABC):
    """d columns of one kind.

    Args:
        columns: what is known of them.
        decoded: whether scale or dispersion come from the decoder; else each column learns one number.

    Attributes:
        outputs: numbers of the decoder that it reads.
        owners: for each of them the column, 0 … d − 1, that it belongs to.
    """

    def __init__(self, columns: Sequence[Column], decoded: bool) -> None:
        super().__init__()
        self.columns: tuple[Column, ...] = tuple(columns)
        self.decoded = decoded
        self.owners: list[int] = self.owners_of(columns, decoded)
        self.outputs: int = len(self.owners)

    @classmethod
    def owners_of(cls, columns: Sequence[Column], decoded: bool) -> list[int]:
        """The column of each output; a second number for each column follows the first ones of all."""
        return [*range(len(columns))] * (2 if decoded else 1)

    @abstractmethod
    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        """log p of single cells, nats."""

    @abstractmethod
    def mean(self, out: Tensor) -> Tensor:
        """The number that stands for a cell; see :meth:`Columns.mean`."""

    @abstractmethod
    def sample(self, out: Tensor, batch_dim: int | None) -> Tensor:
        """A value of each cell."""

    @abstractmethod
    def distribution(self, out: Tensor, column: int) -> torch.distributions.Distribution:
        """One of its columns as torch has it."""

    def wrong(self, x: Tensor) -> Tensor:
        """Where x is no value of its column; NaN and infinities are looked for elsewhere."""
        return torch.zeros_like(x, dtype=torch.bool)

    def wanted(self, column: int) -> str:
        """The values of one of its columns, for a message."""
        return "finite numbers"


def _draw(kind: str, like: Tensor, batch_dim: int | None) -> Tensor:
    draw = random.normal if kind == "normal" else random.uniform
    return draw(like.shape, "likelihood", dtype=like.dtype, device=like.device, batch_dim=batch_dim)


class Normal(Head):
    """log p = −½ ((x − m)/σ)² − log σ − ½ log 2π; of a standardized logarithm it is a log-normal."""

    def __init__(self, columns: Sequence[Column], decoded: bool) -> None:
        super().__init__(columns, decoded)
        if not decoded:
            self.log_scale = nn.Parameter(torch.zeros(len(columns)))

    def parameters_at(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """(m, log σ)."""
        if self.decoded:
            centre, log_scale = out.chunk(2, -1)
            return centre, log_scale
        return out, self.log_scale

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        centre, log_scale = self.parameters_at(out)
        squares = ((x - centre) * torch.exp(-log_scale)).square()
        return -0.5 * squares - log_scale - 0.5 * math.log(2 * math.pi)

    def mean(self, out: Tensor) -> Tensor:
        return self.parameters_at(out)[0]

    def sample(self, out: Tensor, batch_dim: int | None) -> Tensor:
        centre, log_scale = self.parameters_at(out)
        return centre + log_scale.exp() * _draw("normal", centre, batch_dim)

    def distribution(self, out: Tensor, column: int) -> torch.distributions.Distribution:
        centre, log_scale = torch.broadcast_tensors(*self.parameters_at(out))
        return torch.distributions.Normal(centre[..., column], log_scale[..., column].exp())


class StudentT(Normal):
    """Student-t with ν, σ of each column; ν is learned from ``column.tail`` on, or from 5."""

    def __init__(self, columns: Sequence[Column], decoded: bool) -> None:
        super().__init__(columns, decoded)
        tails = torch.tensor([column.tail or _FREEDOM for column in columns])
        self.log_freedom = nn.Parameter(tails.log())

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        centre, log_scale = self.parameters_at(out)
        freedom = self.log_freedom.exp()
        scaled = (x - centre) * torch.exp(-log_scale)
        tails = 0.5 * (freedom + 1) * torch.log1p(scaled.square() / freedom)
        return log_normalizer(self.log_freedom) - log_scale - tails

    def sample(self, out: Tensor, batch_dim: int | None) -> Tensor:
        """Bailey's polar method, as in :class:`varflow.likelihoods.StudentT`."""
        centre, log_scale = self.parameters_at(out)
        freedom = self.log_freedom.exp()
        first, second = (_draw("uniform", centre, batch_dim) for _ in range(2))
        radius = torch.sqrt(freedom * torch.expm1(-2 / freedom * torch.log1p(-second)))
        return centre + log_scale.exp() * radius * torch.sin(2 * math.pi * first)

    def distribution(self, out: Tensor, column: int) -> torch.distributions.Distribution:
        centre, log_scale = torch.broadcast_tensors(*self.parameters_at(out))
        freedom = self.log_freedom[column].exp()
        return torch.distributions.StudentT(freedom, centre[..., column], log_scale[..., column].exp())


class Counts(Head):
    """Negative binomial with log μ = log μ₀ + s·out, where s is the scale of log(1 + k) and μ₀ about the mean of k.

    μ₀ and the first dispersion are those of a k whose log(1 + k) is Gaussian with the column's loc and scale.
    """

    start: Tensor
    unit: Tensor
    log_start: Tensor

    def __init__(self, columns: Sequence[Column], decoded: bool) -> None:
        super().__init__(columns, decoded)
        for column in columns:
            if not column.scale > 0:
                raise SpecError(f"scale of column '{column.name}': was {column.scale}; use a positive number")
        starts = [_start(column) for column in columns]
        self.register_buffer("start", torch.tensor([mean for mean, _ in starts]), persistent=False)
        self.register_buffer("unit", torch.tensor([column.scale for column in columns]), persistent=False)
        dispersion = torch.tensor([dispersion for _, dispersion in starts])
        if decoded:
            self.register_buffer("log_start", dispersion, persistent=False)
        else:
            self.log_dispersion = nn.Parameter(dispersion)

    def parameters_at(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """(log μ, log α)."""
        if self.decoded:
            mean, dispersion = out.chunk(2, -1)
            return self.start + self.unit * mean, self.log_start + dispersion
        return self.start + self.unit * out, self.log_dispersion

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        return negative_binomial.log_prob(x, *self.parameters_at(out))

    def mean(self, out: Tensor) -> Tensor:
        return self.parameters_at(out)[0].exp()

    def sample(self, out: Tensor, batch_dim: int | None) -> Tensor:
        return negative_binomial.sample(*self.parameters_at(out), batch_dim)

    def distribution(self, out: Tensor, column: int) -> torch.distributions.Distribution:
        log_mean, log_dispersion = torch.broadcast_tensors(*self.parameters_at(out))
        return negative_binomial.NegativeBinomial(log_mean[..., column], log_dispersion[..., column])

    def wrong(self, x: Tensor) -> Tensor:
        return (x < 0) | (x != x.round())

    def wanted(self, column: int) -> str:
        return "whole numbers from 0 on"


def _start(column: Column) -> tuple[float, float]:
    """(log μ₀, log α₀) by the moments of exp(loc + scale·ε) − 1."""
    spread = min(column.scale**2, _MOST_SPREAD)
    log_raised = max(column.loc + 0.5 * spread, math.log1p(_LEAST_MEAN))
    log_mean = log_raised + math.log(-math.expm1(-log_raised))
    # variance/mean² − 1/mean, of a variance (exp s² − 1) exp(2 log_raised).
    dispersion = math.expm1(spread) * math.exp(2 * (log_raised - log_mean)) - math.exp(-log_mean)
    return log_mean, math.log(max(dispersion, _LEAST_DISPERSION))


class Binary(Head):
    """log p = x l − log(1 + exp l) with a logit l, which starts at the shares of the training rows, where known."""

    start: Tensor

    def __init__(self, columns: Sequence[Column], decoded: bool) -> None:
        super().__init__(columns, decoded)
        starts = [math.log(c.shares[1] / c.shares[0]) if c.shares else 0.0 for c in columns]
        self.register_buffer("start", torch.tensor(starts), persistent=False)

    @classmethod
    def owners_of(cls, columns: Sequence[Column], decoded: bool) -> list[int]:
        return [*range(len(columns))]

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        out = out + self.start
        return x * out - F.softplus(out, threshold=40.0)

    def mean(self, out: Tensor) -> Tensor:
        return (out + self.start > 0).to(out.dtype)

    def sample(self, out: Tensor, batch_dim: int | None) -> Tensor:
        return (_draw("uniform", out, batch_dim) < torch.sigmoid(out + self.start)).to(out.dtype)

    def distribution(self, out: Tensor, column: int) -> torch.distributions.Distribution:
        return torch.distributions.Bernoulli(logits=out[..., column] + self.start[column])

    def log_masses(self, out: Tensor, column: int) -> Tensor:
        """log p of 0 and of 1, ``[..., 2]``."""
        logit = out[..., column] + self.start[column]
        return F.logsigmoid(torch.stack([-logit, logit], -1))

    def wrong(self, x: Tensor) -> Tensor:
        return (x != 0) & (x != 1)

    def wanted(self, column: int) -> str:
        return "0 and 1"


class Coded(Head):
    """Columns whose values are codes 0 … K − 1."""

    #: The last code of each column, ``[d]``.
    top: Tensor

    def __init__(self, columns: Sequence[Column], decoded: bool) -> None:
        super().__init__(columns, decoded)
        self.sizes: list[int] = [len(column.categories) for column in columns]
        self.register_buffer("top", torch.tensor(self.sizes) - 1, persistent=False)

    @abstractmethod
    def log_masses(self, out: Tensor, column: int) -> Tensor:
        """log p of every code of one column, ``[..., K]``."""

    def distribution(self, out: Tensor, column: int) -> torch.distributions.Distribution:
        # torch's own check of the logits fails where a batch is empty.
        return torch.distributions.Categorical(logits=self.log_masses(out, column), validate_args=False)

    def wrong(self, x: Tensor) -> Tensor:
        return (x < 0) | (x > self.top) | (x != x.round())

    def wanted(self, column: int) -> str:
        return f"codes 0 to {self.sizes[column] - 1}"


class Categories(Coded):
    """log p(k) = lₖ − log Σⱼ exp lⱼ with K logits, which start at the shares of the training rows, where known.

    Columns of fewer categories are filled up with −∞.
    """

    start: Tensor

    place: Tensor
    filler: Tensor
    first: Tensor

    def __init__(self, columns: Sequence[Column], decoded: bool) -> None:
        super().__init__(columns, decoded)
        widest, first, places, fillers = max(self.sizes), [], [], []
        before = 0
        for size in self.sizes:
            first.append(before)
            places.append([before + min(k, size - 1) for k in range(widest)])
            fillers.append([k >= size for k in range(widest)])
            before += size
        self.register_buffer("first", torch.tensor(first), persistent=False)
        self.register_buffer("place", torch.tensor(places).flatten(), persistent=False)
        self.register_buffer("filler", torch.tensor(fillers), persistent=False)
        known = [c.shares or (1.0,) * len(c.categories) for c in columns]
        self.register_buffer("start", torch.tensor([math.log(p) for own in known for p in own]), persistent=False)
        self._full = min(self.sizes) == widest

    @classmethod
    def owners_of(cls, columns: Sequence[Column], decoded: bool) -> list[int]:
        return [i for i, column in enumerate(columns) for _ in column.categories]

    def _logits(self, out: Tensor) -> Tensor:
        """``[..., d, K]``."""
        shape = tuple(self.filler.shape)
        out = out + self.start
        if self._full:
            return out.unflatten(-1, shape)
        logits = out.index_select(-1, self.place).unflatten(-1, shape)
        return torch.where(self.filler, -math.inf, logits)

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        place = x.round().long() + self.first
        lead = torch.broadcast_shapes(place.shape[:-1], out.shape[:-1])
        chosen = (out + self.start).expand(*lead, -1).gather(-1, place.expand(*lead, -1))
        return chosen - self._logits(out).logsumexp(-1)

    def mean(self, out: Tensor) -> Tensor:
        return self._logits(out).argmax(-1).to(out.dtype)

    def sample(self, out: Tensor, batch_dim: int | None) -> Tensor:
        below = self._logits(out).softmax(-1).cumsum(-1)[..., :-1]
        u = _draw("uniform", out[..., : len(self.sizes)], batch_dim)
        # Rounding can leave the sum short of u, which then belongs to the last category.
        return (u[..., None] > below).sum(-1).minimum(self.top).to(out.dtype)

    def log_masses(self, out: Tensor, column: int) -> Tensor:
        return self._logits(out)[..., column, : self.sizes[column]].log_softmax(-1)


def _cuts(shares: Sequence[float]) -> list[float]:
    """The cut points that give codes these shares at f = 0: the logits of their cumulative sums."""
    below = list(accumulate(shares))
    return [math.log(p / (below[-1] - p)) for p in below[:-1]]


class Ordered(Coded):
    """P(x ≤ k) = σ((cₖ₊₁ − f)/s) with cut points c₁ < … < c_{K−1} of each column and a location f from the decoder.

    The gaps between cut points are exp g, and with w = (cₖ₊₁ − cₖ)/s an inner code has

        log p(k) = log σ((cₖ₊₁ − f)/s) + log σ((f − cₖ)/s) + log(1 − exp(−w)),

    no difference of close numbers at any width. The cut points start where codes have the shares of the training
    rows, or are all as likely where these are not known. s is 1, or decoded.

    Source: McCullagh 1980, "Regression models for ordinal data", section 2.
    """

    known: Tensor
    gap_place: Tensor
    rows: Tensor

    def __init__(self, columns: Sequence[Column], decoded: bool) -> None:
        super().__init__(columns, decoded)
        cuts = [_cuts(column.shares or (1 / size,) * size) for column, size in zip(columns, self.sizes, strict=True)]
        widest = max(1, *map(len, cuts))
        known: list[list[bool]] = []
        place: list[list[int]] = []
        gaps: list[float] = []
        for own in cuts:
            known.append([k < len(own) for k in range(widest)])
            # The gap below the k-th cut point, k = 1, …; what has none reads any.
            count = max(len(own) - 1, 0)
            place.append([len(gaps) + k if k < count else 0 for k in range(widest - 1)])
            gaps += [math.log(b - a) for a, b in pairwise(own)]
        self.first_cut = nn.Parameter(torch.tensor([own[0] if own else 0.0 for own in cuts]))
        self.log_gap = nn.Parameter(torch.tensor(gaps))
        self.register_buffer("known", torch.tensor(known), persistent=False)
        self.register_buffer("gap_place", torch.tensor(place, dtype=torch.long), persistent=False)
        self.register_buffer("rows", torch.arange(len(columns)), persistent=False)

    def parameters_at(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """(f, log s); None for s = 1."""
        if self.decoded:
            location, log_scale = out.chunk(2, -1)
            return location, log_scale
        return out, None

    def cuts(self) -> tuple[Tensor, Tensor]:
        """(c ``[d, K − 1]``, g ``[d, K − 2]``); what a column does not have repeats its last c, and any g."""
        if not len(self.log_gap):
            return self.first_cut[:, None].expand(self.known.shape), self.first_cut.new_zeros(len(self.sizes), 0)
        log_gap = self.log_gap[self.gap_place]
        gap = torch.where(self.known[:, 1:], log_gap.exp(), 0.0)
        start = self.first_cut[:, None]
        return torch.cat([start, start + gap.cumsum(-1)], -1), log_gap

    def _log_mass(self, code: Tensor, rows: Tensor | int, location: Tensor, log_scale: Tensor | None) -> Tensor:
        cut, log_gap = self.cuts()
        last = cut.shape[-1] - 1
        upper = cut[rows, code.clamp(max=last)] - location
        lower = location - cut[rows, (code - 1).clamp(min=0)]
        if log_scale is not None:
            upper, lower = upper * torch.exp(-log_scale), lower * torch.exp(-log_scale)
        is_first, is_last = code == 0, code == self.top[rows]
        found = torch.where(is_last, 0.0, F.logsigmoid(upper)) + torch.where(is_first, 0.0, F.logsigmoid(lower))
        if not last:
            return found
        width = log_gap[rows, (code - 1).clamp(min=0, max=last - 1)]
        if log_scale is not None:
            width = width - log_scale
        inner = ~(is_first | is_last)
        return found + torch.where(inner, _log1mexp(torch.where(inner, width, 0.0)), 0.0)

    def log_prob(self, x: Tensor, out: Tensor) -> Tensor:
        return self._log_mass(x.round().long(), self.rows, *self.parameters_at(out))

    def mean(self, out: Tensor) -> Tensor:
        """The median: the number of cut points below the location."""
        return self._below(self.parameters_at(out)[0])

    def sample(self, out: Tensor, batch_dim: int | None) -> Tensor:
        location, log_scale = self.parameters_at(out)
        noise = torch.logit(_draw("uniform", location, batch_dim))
        return self._below(location + (noise if log_scale is None else noise * log_scale.exp()))

    def _below(self, value: Tensor) -> Tensor:
        return ((self.cuts()[0] < value[..., None]) & self.known).sum(-1).to(value.dtype)

    def log_masses(self, out: Tensor, column: int) -> Tensor:
        location, log_scale = self.parameters_at(out)
        code = torch.arange(self.sizes[column], device=out.device)
        scale = None if log_scale is None else log_scale[..., column, None]
        return self._log_mass(code, column, location[..., column, None], scale)


def _log1mexp(log_w: Tensor) -> Tensor:
    """log(1 − exp(−w)), w = exp log_w; near 0 it is log w − w/2 + w²/24."""
    small = log_w < math.log(1e-3)
    tiny = torch.where(small, log_w, 0.0).exp()
    w = torch.where(small, 1.0, log_w.exp())
    return torch.where(small, log_w - tiny * (0.5 - tiny / 24), torch.log(-torch.expm1(-w)))


#: kind of a column → its head; heavy tails and the sizes of categories split them further.
HEADS: dict[str, type[Head]] = {
    "real": Normal,
    "positive": Normal,
    "date": Normal,
    "count": Counts,
    "binary": Binary,
    "category": Categories,
    "ordinal": Ordered,
}


def groups(columns: Sequence[Column], tails: str) -> list[tuple[type[Head], list[int]]]:
    """The heads of a table, each with the places of its columns.

    Args:
        columns: of the table.
        tails: "auto", "gaussian" or "student-t": which continuous columns are Student-t.

    Raises:
        SpecError: a column of a kind that has no head.
    """
    order: list[type[Head]] = [Normal, StudentT, Counts, Binary, Ordered, Categories]
    found: dict[type[Head], list[int]] = {kind: [] for kind in order}
    for place, column in enumerate(columns):
        if column.kind not in HEADS:
            raise unknown(f"kind of column '{column.name}'", column.kind, HEADS)
        kind = HEADS[column.kind]
        heavy = column.tail > 0 if tails == "auto" else tails == "student-t" and column.kind == "real"
        found[StudentT if kind is Normal and heavy else kind].append(place)
    out = [(kind, places) for kind, places in found.items() if places and kind is not Categories]
    left = sorted(found[Categories], key=lambda place: -len(columns[place].categories))
    while left:
        least = len(columns[left[0]].categories) / _FILL
        alike = [place for place in left if len(columns[place].categories) >= least]
        out.append((Categories, sorted(alike)))
        left = left[len(alike) :]
    return out
