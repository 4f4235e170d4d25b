"""What is known of a table's columns, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from varflow.core.errors import DataError, SpecError, unknown

#: What a column's values are.
KINDS = ("real", "positive", "count", "ordinal", "category", "binary", "date")
#: Kinds whose values have a density; the others have a probability.
CONTINUOUS = ("real", "positive", "date")
#: Kinds whose values are a few names.
NAMED = ("ordinal", "category", "binary")


@dataclass(frozen=True)
class Column:
    """A column of a table, with what was learned of it from the training rows.

    Attributes:
        name: its head.
        kind: one of :data:`KINDS`.
        categories: the values of an ordinal (in their order), category or binary column, as text; the number of each
            is its code.
        loc: location of v (real, date), of log v (positive), of log(1 + v) (count).
        scale: scale of the same.
        step: of the grid of a rounded continuous column, which has uniform noise of one step; 0 where it has none.
        origin: a number on that grid.
        tail: ν of the Student-t that fits a real column with heavy tails; 0 where they are not heavy.
        missing: the share of training cells that are missing.
        shares: of the values among the training cells of an ordinal, category or binary column, each counted half a
            cell more than it was; empty where they are not known.
        summed: of a category that is conditioned on: whether a row without it stands for the sum over all values.
    """

    name: str
    kind: str
    categories: tuple[str, ...] = ()
    loc: float = 0.0
    scale: float = 1.0
    step: float = 0.0
    origin: float = 0.0
    tail: float = 0.0
    missing: float = 0.0
    shares: tuple[float, ...] = ()
    summed: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown(f"kind of column '{self.name}'", self.kind, KINDS)
        if (self.kind in NAMED) != bool(self.categories):
            said = "none" if not self.categories else ", ".join(self.categories)
            raise SpecError(
                f"categories of column '{self.name}': were {said}; a column of kind {self.kind} "
                f"{'needs them' if self.kind in NAMED else 'has none'}"
            )

        if self.shares and len(self.shares) != len(self.categories):
            size = len(self.categories)
            raise SpecError(f"shares of '{self.name}': were {len(self.shares)} of {size} values; give one each")

    @property
    def continuous(self) -> bool:
        """Whether its values have a density."""
        return self.kind in CONTINUOUS

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "categories": list(self.categories), "shares": list(self.shares)}

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Column:
        """The column that :meth:`to_json` told of.

        Raises:
            DataError: something that is none.
        """
        try:
            values = {**held, "categories": tuple(str(name) for name in held["categories"])}
            values["shares"] = tuple(float(share) for share in held.get("shares", ()))
            return cls(**values)
        except (TypeError, KeyError, ValueError, SpecError) as error:
            raise DataError(f"columns: cannot be read ({error}); restore the file or fit again") from error
