"""A data set: its splits on the device as stored, and batches of what a model sees."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from varflow.core import errors, random
from varflow.core.columns import Column
from varflow.core.errors import ShapeError, SpecError
from varflow.core.observed import Examples, observed
from varflow.data.columns import Columns
from varflow.data.conditions import Conditions
from varflow.data.permutations import Epoch, Places, clipped
from varflow.data.protocols import Protocol, Support

SPLITS = ("train", "validation", "test")

#: Rows that share a generator in the fixed draws of evaluation.
_ROWS = 1000


class Batch(NamedTuple):
    """What a model sees of ``index``.

    ``x``: [B, *event]. ``ladj``: [B] nats; log p(x) + ladj is of the stored values, in the units of the data
    (:mod:`varflow.data.protocols`); zeros where the protocol has no transform. ``mask``: [B, D], True where a cell is
    there; None where no cell of the data is missing. ``context``: [B, C], what the model is conditioned on; None
    where it is not.
    """

    x: Float[Tensor, "batch ..."]
    ladj: Float[Tensor, " batch"]
    mask: Bool[Tensor, "batch ..."] | None = None
    context: Float[Tensor, "batch context"] | None = None

    @property
    def seen(self) -> Examples:
        """What a model takes: x, with its context and its mask where there are such."""
        return observed(self.x, self.context, self.mask)


def _has_missing(protocol: Protocol, values: Tensor) -> bool:
    return isinstance(protocol, Columns) and bool(values.isnan().any())


class Dataset:
    """Splits train, validation and test under one protocol.

    Stored values lie on the device (uint8 for pictures, [N, C, H, W]); a batch is gathered and
    passed through the protocol there. Training noise (binarization, dequantization, flips) comes
    from the active :mod:`varflow.core.random` stream and is fresh at each access. Validation and test
    use one draw, seeded by ``seed_eval`` and made on the CPU: the same for every run, seed, device
    and dtype.

    Made by :func:`varflow.data.load` and :func:`varflow.data.from_tensor`.

    >>> import torch, varflow.data
    >>> data = varflow.data.from_tensor(torch.randn(100, 3))
    >>> data.sizes, data.support
    ({'train': 80, 'validation': 10, 'test': 10}, 'real')
    >>> data.batch("test", torch.arange(4)).x.shape
    torch.Size([4, 3])
    """

    #: What several processes share of a step: the examples of its batch.
    shared = "batch"
    #: Whether the weights are kept now and then on the way.
    keeps_snapshots = False
    #: Whether the rows lie on the device, where a step gathers them by itself; not where they are read as they come.
    resident = True

    def __init__(
        self,
        name: str,
        protocol: Protocol,
        raw: Mapping[str, Shaped[Tensor, "n ..."]],
        labels: Mapping[str, Int64[Tensor, " n"]] | None = None,
        *,
        picture: bool = False,
        flip: bool = False,
        seed_eval: int = 0,
        facts: Mapping[str, Any] | None = None,
        truth: Any = None,
        places: Mapping[str, Int64[Tensor, " n"]] | None = None,
        files: tuple[str, ...] = (),
        first_row: int = 0,
        equal_noise: bool = False,
        row_noise: bool = False,
    ) -> None:
        self.name = name
        self.seed_eval = seed_eval
        self.flip = flip
        self.picture = picture
        self.device: torch.device = raw["train"].device
        self.dtype: torch.dtype = torch.float32
        self._protocol = protocol
        self._raw = {split: raw[split].contiguous() for split in SPLITS}
        self._labels = dict(labels) if labels else {}
        self._facts = dict(facts or {})
        #: The density that the data were drawn from, where it is known: see :mod:`varflow.data.synthetic`.
        self.truth = truth
        #: Where each row stood in what was given, before it was split; and the file of each, where it has one.
        self._places = dict(places or {split: torch.arange(len(x)) for split, x in self._raw.items()})
        self._files = files
        #: The place of the first row in a longer sequence that is read piece by piece, so that its noise goes on.
        self._first_row = first_row
        #: Whether every row gets the same fixed noise, so that equal rows stay equal.
        self._equal_noise = equal_noise
        #: Whether the fixed noise of a row depends on what it holds instead of where it stands.
        self._row_noise = row_noise
        #: Whether batches come with a mask: all of them or none, so that a step has one form.
        self._masked = any(_has_missing(protocol, x) for x in self._raw.values())
        self._drawn: dict[str, Tensor] = {}
        self._mean: Tensor | None = None
        #: What each row is conditioned on; None where nothing is.
        self.conditions: Conditions | None = None
        #: Where the windows of the training split end, if its order is computed and not drawn
        #: (:mod:`varflow.data.permutations`).
        self.windows: Places | None = None

    @property
    def protocol(self) -> str:
        return self._protocol.name

    @property
    def support(self) -> Support:
        """The values x takes, which decides the likelihoods that fit."""
        return self._protocol.support

    @property
    def levels(self) -> int | None:
        """Values a dimension can take: 2 once binarized, None for real numbers."""
        return self._protocol.levels

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self._raw["train"].shape[1:])

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(values) for split, values in self._raw.items()}

    def __repr__(self) -> str:
        sizes = "/".join(f"{size:,}" for size in self.sizes.values())
        return f"Dataset({self.name}, {self.protocol}, {list(self.event_shape)}, {sizes})"

    def step_rows(self, batch: int) -> int:
        """Training rows in a step, where ``batch`` are asked for."""
        return min(batch, self.sizes["train"])

    def computed_order(self, seed: int, epoch: int) -> Epoch | None:
        """The order of the training rows in an epoch, where it is computed; None where it is drawn."""
        return None if self.windows is None else Epoch(self.windows, seed, epoch)

    def looked_at(self, split: str) -> int:
        """How many rows of a split validation, evaluation and figures look at, unless told: the first so many."""
        return self.sizes[split]

    def few(self, count: int) -> Int64[Tensor, " count"]:
        """Indices of training rows that stand for all of them."""
        return torch.arange(min(count, self.sizes["train"]))

    def read_ahead(self, rows: Callable[[int], Tensor], steps: range) -> None:
        """Rows of the training split that will be asked for; where they lie in memory nothing has to be done."""

    def notes(self) -> list[str]:
        """What is to be said of the data when a fit begins."""
        return []

    def _check(self, split: str) -> None:
        if split not in self._raw:
            raise errors.unknown("split", split, SPLITS)

    def raw(self, split: str) -> Shaped[Tensor, "n ..."]:
        """All stored values of ``split``; not a copy."""
        self._check(split)
        return self._raw[split]

    def stored(self, split: str, index: Int64[Tensor, " batch"]) -> Shaped[Tensor, "batch ..."]:
        """The stored values of rows ``index`` of ``split``, on the device."""
        self._check(split)
        return self._raw[split].index_select(0, index.to(self.device))

    def labels(self, split: str) -> Int64[Tensor, " n"] | None:
        """Class numbers of ``split``, None where there are none."""
        self._check(split)
        return self._labels.get(split)

    def origins(self, split: str, index: Int64[Tensor, " batch"]) -> list[int] | list[str]:
        """Where rows ``index`` of ``split`` come from: the number of each row in the file or tensor that was given,
        counted from 0, or the name of its file in the folder.
        """
        self._check(split)
        places = [int(place) for place in self._places[split][index.cpu()]]
        return [self._files[place] for place in places] if self._files else places

    @property
    def columns(self) -> tuple[str, ...]:
        """The heads of a table's columns; empty where they have none."""
        return tuple(self._facts.get("columns", ()))

    @property
    def column_kinds(self) -> tuple[Column, ...]:
        """What is known of each column of a table under the protocol columns; empty under any other."""
        return self._protocol.columns if isinstance(self._protocol, Columns) else ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels, where they have some."""
        return tuple(self._facts.get("classes", ()))

    def batch(self, split: str, index: Int64[Tensor, " batch"]) -> Batch:
        """Rows ``index`` of ``split`` as the model sees them.

        Raises :class:`SpecError` for an unknown split, :class:`ShapeError` for an index that is
        not one-dimensional int64.
        """
        self._check(split)
        if index.dim() != 1 or index.dtype != torch.int64:
            raise ShapeError(
                f"index: shape {list(index.shape)} of {index.dtype}, should be [B] of torch.int64"
            )
        values = self.stored(split, index)
        drawn = None
        if split == "train":
            if self.flip:
                values = self._flipped(values)
            if (purpose := self._protocol.purpose) is not None:
                u = random.uniform16(
                    values.shape, purpose, dtype=torch.float32, device=self.device, batch_dim=0
                )
                drawn = self._protocol.draw(values, u)
        elif self._protocol.purpose is not None:
            drawn = self._fixed_at(split, index, values)
        mask = self._protocol.observed(values) if self._masked else None
        context = None if self.conditions is None else self.conditions.context(split, index, self.dtype)
        return Batch(*self._protocol.encode(values, drawn, self.dtype), mask, context)

    def _flipped(self, values: Tensor) -> Tensor:
        coin = random.uniform(
            (len(values),), "flip", dtype=torch.float32, device=self.device, batch_dim=0
        )
        # Choosing rows of both versions copies whole rows; torch.where takes six times as long.
        both = torch.cat([values, values.flip(-1)])
        rows = torch.arange(len(values), device=self.device)
        return both.index_select(0, rows + len(values) * (coin < 0.5))

    def _fixed_at(self, split: str, index: Tensor, values: Tensor) -> Tensor:
        """What the noise of rows of a held-out split decides about their ``values``."""
        return self._fixed(split).index_select(0, index.to(self.device))

    def _fixed(self, split: str) -> Tensor:
        if split not in self._drawn and self._equal_noise:
            values = self._raw[split]
            with random.stream(self.seed_eval):
                u = random.uniform(self.event_shape, f"{self._protocol.purpose}/each", dtype=torch.float32)
            self._drawn[split] = self._protocol.draw(values, u.to(self.device).expand(values.shape))
        if split not in self._drawn and self._row_noise:
            values = self._raw[split]
            with random.use(random.ByRow(self.seed_eval, random.row_keys(values.flatten(1)))):
                u = random.uniform(values.shape, f"{self._protocol.purpose}/row", dtype=torch.float32, batch_dim=0)
            self._drawn[split] = self._protocol.draw(values, u.to(self.device))
        if split not in self._drawn:
            values, purpose = self._raw[split], f"{self._protocol.purpose}/{split}"
            drawn = torch.empty(values.shape, dtype=self._protocol.stored, device=self.device)
            for step, rows in enumerate(range(0, len(values), _ROWS)):
                part = values[rows : rows + _ROWS]
                u = self._block_noise(purpose, step)[: len(part)].to(self.device)
                drawn[rows : rows + _ROWS] = self._protocol.draw(part, u)
            self._drawn[split] = drawn
        return self._drawn[split]

    def _block_noise(self, purpose: str, block: int) -> Tensor:
        """The noise of a block of rows, all of it, so that a row's does not depend on the split's end."""
        with random.stream(self.seed_eval, self._first_row // _ROWS + block):
            return random.uniform((_ROWS, *self.event_shape), purpose, dtype=torch.float32)

    def pictures(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch c h w"] | None:
        """x (or a likelihood's mean) as pictures [B, C, H, W] in [0, 1]; None where data are none.

        The inverse of the protocol: dequantized values return to the level of their bin.
        """
        return self.original(x).reshape(-1, *self.event_shape) if self.picture else None

    def original(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The inverse of the protocol: levels over (levels − 1), or real numbers in their units."""
        return self._protocol.invert(x)

    def bits_per_dim(
        self, log_prob: Float[Tensor, "*samples batch"], ladj: Float[Tensor, " batch"]
    ) -> Float[Tensor, "*samples batch"] | None:
        """−(log p(x) + ladj)/(D log 2).

        ``log_prob`` is of x, in nats. A uniform density, or a uniform mass over the levels, scores
        log₂ L exactly. None for real numbers, which have no levels, and for the protocol ``grey``: on
        its points neither a density nor a Bernoulli of grey values is a probability of a picture.
        """
        if self.levels is None or self.support == "grey":
            return None
        return -(log_prob + ladj) / (math.prod(self.event_shape) * math.log(2))

    @property
    def scored(self) -> str:
        """Of what log p(x) + ladj is the logarithm, in words."""
        return self._protocol.scored

    @property
    def preprocessing(self) -> Protocol:
        """The protocol with what it learned from the training split."""
        return self._protocol

    def true_log_prob(
        self, split: str, index: Int64[Tensor, " batch"]
    ) -> Float[Tensor, " batch"] | None:
        """log p*(stored values) of rows ``index``, nats in float64, under the density that the data were drawn from;
        None where it is not known. A model's log p(x) plus the batch's ladj is of the same values.
        """
        if self.truth is None:
            return None
        values = self.stored(split, index).double().cpu().numpy()
        return torch.from_numpy(self.truth.log_prob(values))

    def mean(self) -> Float[Tensor, " *event"]:
        """The mean of x over the training split, of the cells that are there; the expected value where x is drawn."""
        if self._mean is None:
            train = self._raw["train"]
            total = torch.zeros(self.event_shape, dtype=torch.float64, device=self.device)
            for part in train.split(_ROWS):
                total += self._protocol.expected(part).sum(0)
            mean = total / (train.isfinite().sum(0).clamp(min=1) if self._masked else len(train))
            self._mean = (mean + mean.flip(-1)) / 2 if self.flip else mean
        return self._mean.to(self.dtype)

    def first(self, **limits: int | None) -> Dataset:
        """The same data with the first examples of a split alone, e.g. ``first(train=10_000)``; None leaves all.

        Raises:
            SpecError: an unknown split, or more examples than it has.
        """
        given = self._checked_limits(limits)
        if all(given[split] == self.sizes[split] for split in given):
            return self
        fewer = copy.copy(self)
        fewer._raw = {split: x[: given.get(split)] for split, x in self._raw.items()}
        fewer._labels = {split: y[: given.get(split)] for split, y in self._labels.items()}
        fewer._places = {split: place[: given.get(split)] for split, place in self._places.items()}
        fewer._drawn, fewer._mean = {}, None
        if self.conditions is not None:
            fewer.conditions = self.conditions.first(**given)
        if self.windows is not None and "train" in given:
            fewer.windows = clipped(self.windows, given["train"])
        return fewer

    def _checked_limits(self, limits: Mapping[str, int | None]) -> dict[str, int]:
        """Those that are set, checked."""
        given = {split: limit for split, limit in limits.items() if limit is not None}
        for split, limit in given.items():
            self._check(split)
            if not 1 <= limit <= self.sizes[split]:
                raise SpecError(
                    f"{split}_limit: was {limit}; the {split} split of {self.name} has {self.sizes[split]} "
                    "examples, use 1 up to that"
                )
        return given

    def conditioned(self, conditions: Conditions) -> Dataset:
        """The same rows, each conditioned on values of other columns."""
        moved = copy.copy(self)
        moved.conditions = conditions.to(torch.device(self.device))
        return moved

    @property
    def context(self) -> tuple[Column, ...]:
        """The columns that rows are conditioned on."""
        return () if self.conditions is None else self.conditions.columns

    def places(self, split: str) -> Int64[Tensor, " n"]:
        """Where each row of ``split`` stood in what was given."""
        return self._places[split]

    def under(self, preprocessing: Protocol) -> Dataset:
        """The same stored values under a preprocessing that was learned from other ones, e.g. in training."""
        moved = copy.copy(self)
        moved._protocol = preprocessing.to(torch.device(self.device))
        moved._masked = any(_has_missing(preprocessing, x) for x in self._raw.values())
        moved._drawn, moved._mean = {}, None
        return moved

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Dataset:
        """The same data on ``device``, with x in ``dtype`` (float32 or float64)."""
        if dtype not in (None, torch.float32, torch.float64):
            raise SpecError(
                f"dtype: {dtype}, should be torch.float32 or torch.float64; lower precision is a "
                "matter of the model's autocast, not of the data"
            )
        moved = copy.copy(self)
        moved.device = torch.device(device)
        moved.dtype = dtype or self.dtype
        moved._protocol = self._protocol.to(moved.device)
        if self.conditions is not None:
            moved.conditions = self.conditions.to(moved.device)
        moved._raw = {split: x.to(device) for split, x in self._raw.items()}
        moved._labels = {split: y.to(device) for split, y in self._labels.items()}
        moved._drawn = {split: drawn.to(device) for split, drawn in self._drawn.items()}
        moved._mean = None if self._mean is None else self._mean.to(device)
        return moved

    def describe(self) -> dict[str, Any]:
        """Plain values that say which data these are, for the run folder."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "event_shape": list(self.event_shape),
            "support": self.support,
            "levels": self.levels,
            "source_levels": self._protocol.source_levels,
            "sizes": self.sizes,
            "seed_eval": self.seed_eval,
            "flip": self.flip,
            **({} if self.conditions is None else {"condition": list(self.conditions.names)}),
            **self._protocol.treatment(self._facts.get("columns", ())),
            **self._facts,
        }
