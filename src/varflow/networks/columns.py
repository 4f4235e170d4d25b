"""Rows of a table as numbers that a network reads: each column by its kind, and which cells are there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from varflow.core.columns import KINDS, Column
from varflow.core.errors import ShapeError, SpecError, unknown
from varflow.networks.context import needed
from varflow.networks.sizes import output_features


class ColumnFeatures(nn.Module):
    """Rows x ``[..., D]`` of a table → features ``[..., F]``, without parameters.

    ======================  ====================================================================
    kind of the column      its features
    ======================  ====================================================================
    real, positive, date    x, which is standardized
    count                   (log(1 + x) − loc)/scale
    binary                  x, 0 or 1
    category                K numbers, 1 at the code
    ordinal                 K − 1 numbers, the j-th of them 1 where the code is j or more
    ======================  ====================================================================

    All of them are 0 in a cell that is missing. For each column that can be missing (``column.missing`` > 0), unless
    it is summed over, a number follows that is 1 where the cell is there; so a missing real cell is told from one at
    the mean. Real columns without missing cells are passed on as they are, F = D.

    Args:
        columns: what is known of the D columns, in their order.

    Attributes:
        features: F. First come the columns that are one number, as they are and then the counts, then the categories,
            then the ordinal columns, then what is there.

    Raises:
        SpecError: no columns, an unknown kind, or counts whose scale is not positive.
        ShapeError: x or a mask that does not end in D cells, or an x that is not floating point.

    Example:
        >>> columns = [Column("age", "real", missing=0.1), Column("grade", "ordinal", ("low", "middle", "high"))]
        >>> features = ColumnFeatures(columns)
        >>> features(torch.tensor([[0.3, 1.0], [0.0, 2.0]]), torch.tensor([[True, True], [False, True]]))
        tensor([[0.3000, 1.0000, 0.0000, 1.0000],
                [0.0000, 1.0000, 1.0000, 0.0000]])
    """

    # What the buffers are: torch types them as tensors or modules.
    _numbers: Tensor
    _counts: Tensor
    _loc: Tensor
    _scale: Tensor
    _category: Tensor
    _category_code: Tensor
    _ordinal: Tensor
    _ordinal_code: Tensor
    _home: Tensor
    _flagged: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        if not columns:
            raise SpecError("columns: were none; give one Column or more")
        for column in columns:
            if column.kind not in KINDS:
                raise unknown(f"kind of column '{column.name}'", column.kind, KINDS)
            if column.kind == "count" and not column.scale > 0:
                raise SpecError(f"scale of column '{column.name}': was {column.scale}; use a positive number")
        self.columns: tuple[Column, ...] = tuple(columns)
        numbers, counts = ([i for i, c in enumerate(columns) if c.kind in kinds] for kinds in (_NUMBERS, ("count",)))
        category = [(i, k) for i, c in enumerate(columns) if c.kind == "category" for k in range(len(c.categories))]
        ordinal = [(i, k) for i, c in enumerate(columns) if c.kind == "ordinal" for k in range(1, len(c.categories))]
        flagged = [i for i, c in enumerate(columns) if c.missing > 0 and not c.summed]
        places = [i for i, _ in category], [i for i, _ in ordinal]
        self._keep("numbers", numbers)
        self._keep("counts", counts)
        self._keep("category", places[0])
        self._keep("ordinal", places[1])
        self._keep("flagged", flagged)
        # The column that each feature comes from.
        self._keep("home", [*numbers, *counts, *places[0], *places[1]])
        for name, values in (
            ("loc", [columns[i].loc for i in counts]),
            ("scale", [columns[i].scale for i in counts]),
            ("category_code", [float(k) for _, k in category]),
            ("ordinal_code", [float(k) for _, k in ordinal]),
        ):
            self.register_buffer(f"_{name}", torch.tensor(values), persistent=False)
        self.features: int = len(self._home) + len(flagged)
        self._plain = numbers == list(range(len(columns))) and not flagged

    def start(self, name: str) -> int:
        """The place of the first feature of a column."""
        place = next(i for i, column in enumerate(self.columns) if column.name == name)
        return int((self._home == place).nonzero()[0])

    def _keep(self, name: str, places: list[int]) -> None:
        self.register_buffer(f"_{name}", torch.tensor(places, dtype=torch.long), persistent=False)

    def forward(
        self, x: Shaped[Tensor, "*batch columns"], mask: Bool[Tensor, "*batch columns"] | None = None
    ) -> Tensor:
        """``[*batch, D]`` → ``[*batch, F]``; without a mask all cells are there. Missing cells are not read."""
        self._check(x, mask)
        if mask is not None:
            # Before anything is computed: what stands in a missing cell may be NaN.
            x = torch.where(mask, x, 0.0)
        if self._plain:
            return x
        parts = [x.index_select(-1, self._numbers)]
        if len(self._counts):
            parts.append((x.index_select(-1, self._counts).log1p() - self._loc) / self._scale)
        if len(self._category):
            parts.append((x.index_select(-1, self._category) == self._category_code).to(x.dtype))
        if len(self._ordinal):
            parts.append((x.index_select(-1, self._ordinal) >= self._ordinal_code).to(x.dtype))
        found = torch.cat(parts, -1)
        if mask is not None:
            found = torch.where(mask.index_select(-1, self._home), found, 0.0)
        if not len(self._flagged):
            return found
        there = found.new_ones(1) if mask is None else mask.index_select(-1, self._flagged).to(found.dtype)
        return torch.cat([found, there.expand(*found.shape[:-1], len(self._flagged))], -1)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        if not x.is_floating_point():
            raise ShapeError(f"x: was {x.dtype}; ColumnFeatures needs floating point, e.g. x.float()")
        for name, given in (("x", x), ("mask", mask)):
            if given is not None and given.shape[-1:] != (len(self.columns),):
                raise ShapeError(
                    f"{name}: shape {tuple(given.shape)}; these ColumnFeatures need [..., {len(self.columns)}]"
                )

    def extra_repr(self) -> str:
        return f"columns={len(self.columns)}, features={self.features}"


#: Kinds that are one number as they stand.
_NUMBERS = ("real", "positive", "date", "binary")


class TableEncoder(nn.Module):
    """An encoder of rows with missing cells: :class:`ColumnFeatures`, then a network.

    Args:
        features: of the columns.
        network: any network ``[B, F + C] -> [B, H]`` with F = ``features.features``.
        context_features: C, of a context that the network reads after the features; 0 without one.

    Attributes:
        features: H, the size of what comes out.
        reads_mask: True; a posterior calls ``encoder(x, mask)``.
        couples_examples: whether the network lets examples of a batch touch each other.

    Raises:
        SpecError: a network whose size cannot be found (:func:`varflow.networks.output_features`).

    Example:
        >>> from varflow.networks import MLP
        >>> columns = ColumnFeatures([Column("age", "real", missing=0.1), Column("sex", "category", ("f", "m"))])
        >>> encoder = TableEncoder(columns, MLP(columns.features, hidden=(8,)))
        >>> encoder(torch.zeros(5, 2), torch.tensor([True, False]).expand(5, 2)).shape
        torch.Size([5, 8])
    """

    reads_mask = True

    def __init__(self, features: ColumnFeatures, network: nn.Module, context_features: int = 0) -> None:
        super().__init__()
        self.cells: ColumnFeatures = features
        self.network = network
        self.context_features: int = context_features
        self.features: int = output_features(network, (features.features + context_features,))
        self.couples_examples: bool = bool(getattr(network, "couples_examples", False))

    def forward(
        self,
        x: Shaped[Tensor, "*batch columns"],
        mask: Bool[Tensor, "*batch columns"] | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """``[B, D]``, and which of its cells are there → ``[B, H]``; without a mask all are there.

        Raises:
            SpecError: a context is missing.
        """
        read = self.cells(x, mask)
        if self.context_features:
            read = torch.cat([read, needed(context, self.context_features).to(read.dtype)], -1)
        out: Tensor = self.network(read)
        return out
