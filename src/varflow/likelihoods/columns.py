"""The likelihood of rows of a table: each column by its kind, cells that are missing left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.distributions import constraints

from varflow.core.columns import Column
from varflow.core.errors import DataError, ShapeError, SpecError, unknown
from varflow.core.form import Form
from varflow.core.settings import settings
from varflow.likelihoods.heads import Binary, Coded, Head, groups
from varflow.likelihoods.likelihood import Likelihood, LikelihoodSettings, batch_dim
from varflow.networks.mlp import Shape

_TAILS = ("auto", "gaussian", "student-t")
_SCALES = ("learned", "decoded")


@settings("Columns")
class ColumnsSettings(LikelihoodSettings):
    real_tails: Annotated[
        Literal["auto", "gaussian", "student-t"],
        "Real columns of a table. auto: Student-t where the training rows have heavy tails, else Gaussian; "
        "gaussian or student-t: all of them.",
    ] = "auto"
    column_scale: Annotated[
        Literal["learned", "decoded"],
        "Scales and dispersions of a table's columns. learned: one number a column; decoded: computed from z.",
    ] = "learned"

    protocol: ClassVar[str] = "columns"

    def options(self, form: Form) -> dict[str, Any]:
        if not form.columns:
            raise SpecError(
                "likelihood: columns is of a table whose columns are each of a kind, and the data are "
                f"{form.support}; use protocol=columns, or likelihood=auto"
            )
        return {"columns": form.columns, "real_tails": self.real_tails, "column_scale": self.column_scale}


class Columns(Likelihood):
    """log p(x|z) = Σⱼ log pⱼ(xⱼ|z) over the cells that are there, each column j by its kind.

    ====================  ==================================================================================
    kind of the column    pⱼ, and the value x of a cell
    ====================  ==================================================================================
    real, date            Gaussian, or Student-t where tails are heavy, of the standardized value
    positive              the same of the standardized logarithm: a log-normal of the value itself
    count                 negative binomial of 0, 1, 2, …
    ordinal               ordered categorical of codes 0 … K − 1: cut points along a line, where z moves
    category              categorical of codes 0 … K − 1
    binary                Bernoulli of codes 0 and 1
    ====================  ==================================================================================

    So the sum is a density in the continuous columns and a probability in the discrete ones. The preprocessing's
    log-determinant makes it one of the table in its own units.

    Args:
        decoder: a network ``[*lead, D] -> [*lead, P]`` with P = ``Columns.decoder_shape(event_shape, columns=...)``.
            Columns of one kind are computed together and lie side by side in its output, in the order of ``heads``.
        event_shape: number of columns.
        columns: what is known of each.
        real_tails: auto: Student-t where ``column.tail`` > 0, its degrees of freedom learned from there on; gaussian:
            nowhere; student-t: for every real column, from 5 on where the tail is not known.
        column_scale: learned: a scale (of counts: a dispersion) for each column; decoded: computed from z, also for
            ordinal columns.

    Attributes:
        heads: of the groups of columns, with the parameters that they learn.
        columns: as given.
        reads: ("mask",).

    Raises:
        SpecError: no columns, another number of them than the event shape has, an unknown kind, or a decoder of
            another ``out_shape``.

    A cell that is missing has no influence on value and gradient, whatever stands in it and whatever the decoder
    says of it. A decoded scale of a column in which one value comes again and again has no upper bound.

    Cost: some ten elementwise passes over the columns of a kind, sixty over counts, whatever their number is.

    Sources: Nazábal, Olmos, Ghahramani and Valera 2020, "Handling incomplete heterogeneous data using VAEs",
    section 3, of which the prior and the dependent decoder are not taken; Mattei and Frellsen 2019, "MIWAE", for
    the sum over observed cells.

    Example:
        >>> import torch
        >>> from varflow.networks import MLP
        >>> columns = [Column("age", "real"), Column("visits", "count"), Column("town", "category", ("a", "b", "c"))]
        >>> likelihood = Columns(MLP(2, Columns.decoder_shape(3, columns=columns)), 3, columns)
        >>> x = torch.tensor([[0.4, 2.0, 1.0], [0.0, 5.0, 0.0]])
        >>> mask = torch.tensor([[True, True, True], [False, True, True]])
        >>> likelihood.log_prob(x, torch.zeros(4, 2, 2), mask).shape
        torch.Size([4, 2])
    """

    support: tuple[str, ...] = ("columns",)
    reads: tuple[str, ...] = ("mask",)
    _refusal = "use protocol=columns, which gives each column its kind, or likelihood=auto"

    _order: Tensor
    _back: Tensor
    _owner: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: int | Sequence[int],
        columns: Sequence[Column] = (),
        real_tails: Literal["auto", "gaussian", "student-t"] = "auto",
        column_scale: Literal["learned", "decoded"] = "learned",
    ) -> None:
        needed = self.decoder_shape(event_shape, columns, real_tails, column_scale)
        super().__init__(decoder, event_shape, out_shape=needed)
        self.columns: tuple[Column, ...] = tuple(columns)
        self.real_tails: str = real_tails
        self.column_scale: str = column_scale
        found = groups(columns, real_tails)
        decoded = column_scale == "decoded"
        self.heads: nn.ModuleList = nn.ModuleList(kind([columns[i] for i in at], decoded) for kind, at in found)
        order = [place for _, places in found for place in places]
        self._in_order = order == sorted(order)
        #: Columns and outputs of each head.
        self._widths: list[int] = [len(places) for _, places in found]
        self._outputs: list[int] = [head.outputs for head in self._each()]
        owner = [places[i] for head, (_, places) in zip(self._each(), found, strict=True) for i in head.owners]
        self.register_buffer("_order", torch.tensor(order), persistent=False)
        self.register_buffer("_back", torch.tensor(order).argsort(), persistent=False)
        self.register_buffer("_owner", torch.tensor(owner), persistent=False)
        #: name of a column → (its head, its place there).
        self._where: dict[str, tuple[int, int]] = {
            columns[place].name: (number, i)
            for number, (_, places) in enumerate(found)
            for i, place in enumerate(places)
        }

    @classmethod
    def decoder_shape(  # type: ignore[override]
        cls,
        event_shape: int | Sequence[int],
        columns: Sequence[Column] = (),
        real_tails: str = "auto",
        column_scale: str = "learned",
    ) -> Shape:
        """(P,), the numbers that all columns need together.

        Raises:
            SpecError: as the constructor.
        """
        if not columns:
            raise SpecError("columns: were none; give what is known of each column, a varflow Column for each")
        shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        if shape != (len(columns),):
            raise SpecError(f"event_shape: was {shape} with {len(columns)} columns; use ({len(columns)},)")
        if real_tails not in _TAILS:
            raise unknown("real_tails", str(real_tails), _TAILS)
        if column_scale not in _SCALES:
            raise unknown("column_scale", str(column_scale), _SCALES)
        decoded = column_scale == "decoded"
        found = groups(columns, real_tails)
        return (sum(len(kind.owners_of([columns[i] for i in at], decoded)) for kind, at in found),)

    def log_prob(
        self,
        x: Shaped[Tensor, "*x_batch_event"],
        z: Float[Tensor, "*lead_latent"],
        mask: Bool[Tensor, "*mask_batch_event"] | None = None,
    ) -> Float[Tensor, "*lead"]:
        """log p of the cells that are there, nats: x and mask ``[*batch, D]``, z ``[*lead, latent]`` → ``[*lead]``.

        Args:
            x: cells in the space of the table above; the value of a missing one is not read.
            z: latents.
            mask: True where a cell is there; without one all are.

        Raises:
            ShapeError: x or a mask that does not end in D cells, or an x that is not floating point.
        """
        return self.log_prob_each(x, z, mask).sum(-1)

    def log_prob_each(
        self,
        x: Shaped[Tensor, "*x_batch_event"],
        z: Float[Tensor, "*lead_latent"],
        mask: Bool[Tensor, "*mask_batch_event"] | None = None,
    ) -> Float[Tensor, "*lead_event"]:
        """log p of single cells, ``[*lead, D]``, nats; 0 for those that are missing. Else as :meth:`log_prob`."""
        self.check_shape(x)
        out = self.decode(z)
        if mask is not None:
            if mask.shape[-1:] != self.event_shape:
                raise ShapeError(f"mask: shape {tuple(mask.shape)}; this Columns needs [..., {self.event_shape[0]}]")
            # Before anything is computed: a NaN in a missing cell, or a head that overflows there, times zero is NaN.
            x = torch.where(mask, x, 0.0)
            out = torch.where(mask.index_select(-1, self._owner), out, 0.0)
        if not self._in_order:
            x = x.index_select(-1, self._order)
        lead = torch.broadcast_shapes(x.shape[:-1], out.shape[:-1])
        cells = x.split(self._widths, -1)
        outs = self._split(out)
        found = [head.log_prob(cell, own) for head, cell, own in zip(self._each(), cells, outs, strict=True)]
        each = self._joined([part.expand(*lead, -1) for part in found])
        return each if mask is None else torch.where(mask, each, 0.0)

    def mean(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        """One number for each cell, ``[*lead, D]``, in the space of x.

        real, date: the mean (of a Student-t: the centre of symmetry, which is the mean where ν > 1). positive: that
        of the standardized logarithm, so the median in the table's own units. count: the mean, seldom whole. ordinal:
        the median code. category, binary: the most probable code.
        """
        return self._joined([head.mean(own) for head, own in self._outs(z)])

    def sample(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        """x ~ p(x|z), ``[*lead, D]``: counts and codes are whole. Not differentiable through discrete cells."""
        along = batch_dim(z)
        return self._joined([head.sample(own, along) for head, own in self._outs(z)])

    def probabilities(self, z: Float[Tensor, "*lead features"], name: str) -> Float[Tensor, "*lead categories"]:
        """P(x = k|z) of every code k of one column, ``[*lead, K]``, in the order of its categories.

        Raises:
            SpecError: no such column, or one that is not ordinal, category or binary.
        """
        number, place = self._find(name)
        head, own = self._outs(z)[number]
        if not isinstance(head, Binary | Coded):
            kind = head.columns[place].kind
            raise SpecError(f"column: '{name}' is {kind} and has no list of values; use distribution(z, '{name}')")
        return head.log_masses(own, place).exp()

    def distribution(
        self, z: Float[Tensor, "*lead features"], name: str | None = None
    ) -> torch.distributions.Distribution:
        """One column as torch has it, batch shape ``[*lead]``; without a name all of them, event shape ``[D]``.

        Raises:
            SpecError: no such column.
        """
        found = self._outs(z)
        if name is not None:
            number, place = self._find(name)
            return found[number][0].distribution(found[number][1], place)
        places = [self._where[column.name] for column in self.columns]
        return Row([found[number][0].distribution(found[number][1], place) for number, place in places])

    def check(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Check shape and values of the cells that are there; this reads the values back.

        Raises:
            ShapeError: as :meth:`log_prob`.
            DataError: a NaN or infinity, or a value that its column does not have, by the column's name.
        """
        self.check_shape(x)
        if mask is not None:
            x = torch.where(mask, x, 0.0)
        bad = ~torch.isfinite(x)
        if bad.any():
            raise DataError(
                f"x: {int(bad.sum())} of {x.numel()} values are NaN or infinite; give a mask of the cells that are "
                "there"
            )
        for head, cells in zip(self._each(), x.index_select(-1, self._order).split(self._widths, -1), strict=True):
            wrong = head.wrong(cells)
            if wrong.any():
                *row, place = (int(i) for i in wrong.nonzero()[0])
                column = head.columns[place]
                found = cells[(*row, place)].item()
                raise DataError(
                    f"x: column '{column.name}' has the value {found:g}; a {column.kind} column takes "
                    f"{head.wanted(place)}"
                )

    def _each(self) -> list[Head]:
        return list(self.heads)  # type: ignore[arg-type]

    def _split(self, out: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = out.split(self._outputs, -1)
        return parts

    def _outs(self, z: Tensor) -> list[tuple[Head, Tensor]]:
        """Each head with what the decoder says to it."""
        return list(zip(self._each(), self._split(self.decode(z)), strict=True))

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The cells of all heads in the order of the columns."""
        joined = parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)
        return joined if self._in_order else joined.index_select(-1, self._back)

    def _find(self, name: str) -> tuple[int, int]:
        if name not in self._where:
            raise unknown("column", str(name), self._where)
        return self._where[name]

    def extra_repr(self) -> str:
        return f"columns={len(self.columns)}, real_tails={self.real_tails}, column_scale={self.column_scale}"


class Row(torch.distributions.Distribution):
    """Independent distributions of the cells of a row, one for each column; event shape ``[D]``."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, cells: Sequence[torch.distributions.Distribution]) -> None:
        self.cells = list(cells)
        super().__init__(self.cells[0].batch_shape, torch.Size([len(self.cells)]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Of codes the mean code."""
        return torch.stack([_moments(cell)[0] for cell in self.cells], -1)

    @property
    def variance(self) -> Tensor:
        return torch.stack([_moments(cell)[1] for cell in self.cells], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        parts = zip(self.cells, value.unbind(-1), strict=True)
        return torch.stack([cell.log_prob(each) for cell, each in parts], -1).sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        drawn = [cell.sample(torch.Size(sample_shape)) for cell in self.cells]
        home = next((d.dtype for d in drawn if d.is_floating_point()), torch.get_default_dtype())
        return torch.stack([each.to(home) for each in drawn], -1)


def _moments(cell: torch.distributions.Distribution) -> tuple[Tensor, Tensor]:
    if not isinstance(cell, torch.distributions.Categorical):
        return cell.mean, cell.variance
    code = torch.arange(cell.probs.shape[-1], dtype=cell.probs.dtype, device=cell.probs.device)
    mean = (cell.probs * code).sum(-1)
    return mean, (cell.probs * (code - mean[..., None]).square()).sum(-1)
