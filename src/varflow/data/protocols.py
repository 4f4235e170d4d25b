"""Protocols: how stored values v become what a model sees, x, and back.

Stored values are levels 0 … L − 1 (uint8), or real numbers. A protocol with a ``purpose`` needs
uniform noise: ``draw(v, u)`` keeps what the noise decides, in a form small enough to be stored for
a whole split, and ``encode(v, drawn)`` gives x and ladj (nats), so that log p(x) + ladj is of what is stored, in the
units of the data: ladj = log|dx/dv| of real numbers, log|dx/d(v + u)| of dequantized levels, whose bins are one
wide, and 0 where log p(x) is a mass. So a fresh draw and a fixed one pass through the same lines.

Levels at or below 256; noise is drawn in float32 whatever the dtype of x, so that runs in float32
and float64 see the same data. Training draws 16 bits a value (:func:`varflow.core.random.uniform16`), the
fixed draws of validation and test 24.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from varflow.core.errors import DataError
from varflow.core.lazy import resolve

Support = Literal["binary", "grey", "levels", "unit", "real", "codes", "columns"]
Encoded = tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]

#: Dequantization noise is (k + 1/2)/GRID, k = 0 … GRID − 1: x lies strictly inside its bin, and far
#: enough from the edges for float32 to find the bin again through the logit and back. Plain float32
#: noise rounds up to the next level once in 2¹⁷ draws. A midpoint rule on this grid
#: replaces the mean over a bin, with an error of f″/(24 GRID²) for f smooth in units of bins.
GRID = 2**12

#: α of the logit transform.
ALPHA = 0.1


@dataclass(frozen=True)
class Protocol:
    """The contract; ``source_levels`` is the L of stored levels, None for real numbers."""

    name: str
    source_levels: int | None
    support: ClassVar[Support]
    #: Which random numbers it draws, None where it draws none.
    purpose: ClassVar[str | None] = None
    #: How a fixed draw is stored.
    stored: ClassVar[torch.dtype] = torch.uint8
    #: Whether log p(x) is a mass over ``levels`` values rather than a density.
    mass: ClassVar[bool] = True
    #: Of what log p(x) + ladj is the logarithm.
    scored: ClassVar[str] = "probability of the levels"

    @property
    def levels(self) -> int | None:
        """Values a dimension can take, for bits per dimension; None for a continuum."""
        return self.source_levels

    @property
    def top(self) -> int:
        return 1 if self.source_levels is None else self.source_levels - 1

    def draw(
        self, values: Shaped[Tensor, "batch ..."], u: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """What the uniform noise ``u`` decides about ``values``."""
        raise NotImplementedError(f"protocol '{self.name}' draws nothing")

    def encode(
        self, values: Shaped[Tensor, "batch ..."], drawn: Tensor | None, dtype: torch.dtype
    ) -> Encoded:
        """x and ladj of ``values``, given what was drawn for them."""
        raise NotImplementedError

    def observed(self, values: Shaped[Tensor, "batch ..."]) -> Bool[Tensor, "batch ..."] | None:
        """Which cells are there; None of data that have no missing ones."""
        return None

    def invert(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """What x stands for: a picture in [0, 1], or stored real numbers."""
        return x.clamp(0, 1)

    def expected(self, values: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """E[x | values] in float64."""
        return self.encode(values, None, torch.float64)[0]

    def encode_point(self, values: Float[Tensor, "batch ..."], dtype: torch.dtype) -> Encoded:
        """x and ladj of real numbers taken as they are, with no noise drawn: dequantized levels v + u in [0, L), rows
        of a table. Differentiable; :meth:`decode_point` is its inverse.
        """
        return self.encode(values, None, dtype)

    def decode_point(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """The inverse of :meth:`encode_point`: what x stands for, with nothing rounded."""
        return self.invert(x)

    def to(self, device: torch.device) -> Protocol:
        return self

    def treatment(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """What it does to single columns, for :meth:`Dataset.describe`."""
        return {}

    def stored_values(self, x: Tensor) -> Tensor:
        """What x stands for, as the data are stored: real numbers, or levels 0 … L − 1 as uint8."""
        found = self.invert(x)
        if self.source_levels is None:
            return found
        return (found * self.top).round().to(torch.uint8)

    def stored_means(self, x: Tensor) -> Tensor:
        """What a mean of x stands for, in the units of the stored data: real numbers; of 256 levels the nearest, as
        uint8; of fewer levels their mean, which is no level itself.
        """
        found = self.invert(x)
        if self.source_levels is None:
            return found
        scaled = found * self.top
        return scaled.round().to(torch.uint8) if self.source_levels == 256 else scaled

    def mean_levels(self, x: Tensor) -> Tensor:
        """What a mean of x stands for in levels, as real numbers in [0, L − 1]: rounded, it is a level."""
        return self.invert(x) * self.top

    def flaw(self, event_shape: tuple[int, ...]) -> str | None:
        """What is wrong with what was learned, for events of a shape; None where it can be."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and tuple(value.shape) != event_shape:
                return f"{field.name} has shape {list(value.shape)}, the data have {list(event_shape)}"
            if isinstance(value, Tensor) and not bool(value.isfinite().all()):
                return f"{field.name} holds a NaN or an infinity"
            if field.name == "scale" and not bool((value > 0).all()):
                return "scale is not positive"
        return None

    def learned(self) -> dict[str, Any]:
        """What was learned from the training split, as plain values; nothing, for most protocols."""
        held = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value.tolist() for name, value in held if isinstance(value, Tensor)}

    @classmethod
    def restored(cls, name: str, learned: Mapping[str, Any]) -> Protocol:
        """The protocol with what :meth:`learned` told of it.

        Raises:
            TypeError, ValueError, KeyError: values that are not what it learns.
        """
        return cls(name, None, **{key: torch.tensor(value, dtype=torch.float64) for key, value in learned.items()})


def _dimensions(x: Tensor) -> int:
    """Numbers of one example."""
    return math.prod(x.shape[1:])


def _no_ladj(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0])


class Binary(Protocol):
    support: ClassVar[Support] = "binary"
    scored = "probability of the binary values"

    @property
    def levels(self) -> int | None:
        return 2


class Dynamic(Binary):
    """x ~ Bernoulli(v/(L − 1)) (Salakhutdinov & Murray 2008).

    P(x = 1) is right to 2⁻¹⁷ = 7.6e-6 in training (16 bits of noise, at under half the time of 24) and to
    2⁻²⁴ in the fixed draws; exactly 0 and 1 at the ends.
    """

    purpose: ClassVar[str | None] = "binarize"

    def draw(self, values: Tensor, u: Tensor) -> Tensor:
        # Between equal dtypes, into a tensor of that dtype: half the time of a comparison that promotes.
        scaled = u * self.top
        return torch.lt(scaled, values.to(scaled.dtype), out=scaled)

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        assert drawn is not None
        x = drawn.to(dtype)
        return x, _no_ladj(x)

    def expected(self, values: Tensor) -> Tensor:
        return values.double() / self.top


class Threshold(Binary):
    """x = 1 where v/(L − 1) > 1/2. Values that are 0 and 1 already pass unchanged."""

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        # In whole numbers v > (L − 1)/2 and v > ⌊(L − 1)/2⌋ are the same, and four times as fast.
        half = 0.5 if self.source_levels is None else self.top // 2
        x = (values > half).to(dtype)
        return x, _no_ladj(x)


class Grey(Protocol):
    """x = v/(L − 1) for a pseudo-likelihood. A density of x means nothing (the levels are points), nor does a
    Bernoulli of grey values; :class:`Levels` are the same numbers for a likelihood that has a meaning there.
    """

    support: ClassVar[Support] = "grey"
    scored: ClassVar[str] = "pseudo-likelihood of the grey values"

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        x = values.to(dtype) / self.top
        return x, _no_ladj(x)


class Levels(Grey):
    """x = v/(L − 1), under a likelihood that is a probability of the L levels: no noise, no ladj, and bits per
    dimension of the data themselves.
    """

    support: ClassVar[Support] = "levels"
    scored = "probability of the levels"


class Uniform(Protocol):
    """x = (v + u)/L with u ~ U(0, 1): a density of x bounds the mass of v from below
    (Theis et al. 2016, eq. 2).
    """

    support: ClassVar[Support] = "unit"
    purpose: ClassVar[str | None] = "dequantize"
    stored: ClassVar[torch.dtype] = torch.int16
    mass = False
    scored: ClassVar[str] = (
        "density of the dequantized levels in bins one wide, which bounds the probability of the levels"
    )

    @property
    def bins(self) -> int:
        assert self.source_levels is not None
        return self.source_levels

    def draw(self, values: Tensor, u: Tensor) -> Tensor:
        return (u * GRID).floor_()

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        assert drawn is not None
        x = values.to(dtype).mul_(GRID).add_(drawn).add_(0.5).div_(self.bins * GRID)
        return x, x.new_full((x.shape[0],), -_dimensions(x) * math.log(self.bins))

    def encode_point(self, values: Tensor, dtype: torch.dtype) -> Encoded:
        # A copy, because encode works in place; noise of (−1/2 + 1/2)/GRID is none.
        return self.encode(values.to(dtype, copy=True), values.new_full((), -0.5), dtype)

    def decode_point(self, x: Tensor) -> Tensor:
        return x * self.bins

    def invert(self, x: Tensor) -> Tensor:
        level = (x * self.bins).floor().clamp(0, self.bins - 1)
        return level / self.top

    def mean_levels(self, x: Tensor) -> Tensor:
        # v + u less the mean of u, so that rounding finds the bin that the floor of v + u is.
        return (self.decode_point(x) - 0.5).clamp(0, self.bins - 1)

    def expected(self, values: Tensor) -> Tensor:
        return (values.double() + 0.5) / self.bins


class Symmetric(Uniform):
    """x = 2 (v + u)/L − 1, in (−1, 1); log|dx/d(v + u)| = log 2/L a dimension."""

    support: ClassVar[Support] = "real"

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        x, ladj = super().encode(values, drawn, dtype)
        return x.mul_(2).sub_(1), ladj + _dimensions(x) * math.log(2)

    def decode_point(self, x: Tensor) -> Tensor:
        return super().decode_point((x + 1) / 2)

    def invert(self, x: Tensor) -> Tensor:
        return super().invert((x + 1) / 2)

    def expected(self, values: Tensor) -> Tensor:
        return 2 * super().expected(values) - 1


class Logit(Uniform):
    """y = logit(p), p = α/2 + (1 − α)(v + u)/L, α = 0.1 (Dinh et al. 2017, sec. 4.1, whose
    α is half of this one).

    log|dy/d(v + u)| = log (1 − α)/L + softplus(y) + softplus(−y) = log (1 − α)/L − log p − log(1 − p) a
    dimension; p stays within [α/2, 1 − α/2], so both logarithms are safe.
    """

    support: ClassVar[Support] = "real"

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        x, ladj = super().encode(values, drawn, dtype)
        p = x.mul_(1 - ALPHA).add_(ALPHA / 2)
        log_p, log_q = p.log(), torch.log1p(-p)
        ladj = ladj + _dimensions(p) * math.log1p(-ALPHA) - (log_p + log_q).flatten(1).sum(1)
        return log_p.sub_(log_q), ladj

    def decode_point(self, x: Tensor) -> Tensor:
        return super().decode_point((torch.sigmoid(x) - ALPHA / 2) / (1 - ALPHA))

    def invert(self, x: Tensor) -> Tensor:
        return super().invert((torch.sigmoid(x) - ALPHA / 2) / (1 - ALPHA))

    def expected(self, values: Tensor) -> Tensor:
        # ∫ logit(p) dp = p log p + (1 − p) log(1 − p) over each bin, divided by its width.
        edges = torch.linspace(ALPHA / 2, 1 - ALPHA / 2, self.bins + 1, dtype=torch.float64)
        integral = edges * edges.log() + (1 - edges) * (1 - edges).log()
        table = (integral.diff() / edges.diff()).to(values.device)
        return table.index_select(0, values.flatten().int()).view(values.shape)


class Identity(Protocol):
    """x = v, real numbers."""

    support: ClassVar[Support] = "real"
    mass = False
    scored = "density of x in the units of the data"

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        x = values.to(dtype)
        return x, _no_ladj(x)

    def invert(self, x: Tensor) -> Tensor:
        return x


class Codes(Protocol):
    """x = v, integers: grids of codes, whose log-probability is a mass."""

    support: ClassVar[Support] = "codes"
    scored = "probability of the codes"

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        return values.long(), torch.zeros(values.shape[0], dtype=dtype, device=values.device)

    def invert(self, x: Tensor) -> Tensor:
        return x


def column_name(number: int, names: Sequence[str] = ()) -> str:
    """What a message calls a column: its head in the file, or its place."""
    return f"'{names[number]}'" if number < len(names) else f"column {number} (counted from 0)"


@dataclass(frozen=True)
class Standardize(Protocol):
    """x = (v − m)/s with the mean and standard deviation of the training split;
    ladj = −Σ log s is the same for all examples, and log p(v) = log p(x) + ladj.
    """

    support: ClassVar[Support] = "real"
    mass: ClassVar[bool] = False
    scored: ClassVar[str] = "density of x in the units of the data"
    loc: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, train: Float[Tensor, "batch ..."], names: Sequence[str] = ()) -> Standardize:
        """Raises :class:`DataError` where a column is constant."""
        scale, loc = torch.std_mean(train.double(), 0, correction=0)
        # A constant column leaves rounding errors of its mean, not an exact zero.
        spread = train.amax(0) - train.amin(0)
        if not bool((spread > 0).all()):
            column = int((spread.flatten() == 0).nonzero()[0])
            raise DataError(
                f"protocol 'standardize': {column_name(column, names)} of the training split is constant "
                f"({float(train.flatten(1)[0, column]):g}), its scale would be 0; "
                "drop the column or choose protocol 'none'"
            )
        return cls("standardize", None, loc, scale)

    def encode(self, values: Tensor, drawn: Tensor | None, dtype: torch.dtype) -> Encoded:
        x = ((values.double() - self.loc) / self.scale).to(dtype)
        return x, (-self.scale.log().sum()).to(dtype).repeat(x.shape[0])

    def invert(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype) + self.loc.to(x.dtype)

    def to(self, device: torch.device) -> Protocol:
        return replace(self, loc=self.loc.to(device), scale=self.scale.to(device))


def restored(name: str, levels: int | None, learned: Mapping[str, Any]) -> Protocol:
    """The preprocessing of that name with what :meth:`Protocol.learned` told of it.

    Raises:
        DataError: numbers that are not what this protocol learns.
    """
    if name not in LEARNING:
        if name in LEVELS:
            return LEVELS[name](name, levels)
        return Codes(name, levels) if name == "codes" else Identity(name, None)
    try:
        made: Protocol = resolve(LEARNING[name]).restored(name, learned)
        return made
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"preprocessing: '{name}' cannot be read from the run ({error}); restore the file or fit again"
        ) from error


#: name → class, for protocols that learn from the training split.
LEARNING = {
    "standardize": "varflow.data.protocols:Standardize",
    "table": "varflow.data.table:Table",
    "columns": "varflow.data.columns:Columns",
}

#: name → class, for stored levels (and real numbers within [0, 1] where L may be None).
LEVELS: dict[str, type[Protocol]] = {
    "dynamic": Dynamic,
    "threshold": Threshold,
    "static": Threshold,
    "logit": Logit,
    "uniform": Uniform,
    "symmetric": Symmetric,
    "grey": Grey,
    "levels": Levels,
}
