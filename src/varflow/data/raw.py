"""A table as it was given: named columns of cells, of which text has still to be read. No torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from varflow.core.errors import DataError, SpecError
from varflow.data.cells import COUNTED, Cells, as_numbers, decimal_marks, grouping, undecided


@dataclass(frozen=True)
class Raw:
    """A table as it was given.

    Attributes:
        columns: its columns.
        where: what errors begin with: the file, or "x".
        named: whether the names of the columns were given.
        delimiter: of a file of text; "" of anything else.
        labels: class numbers, of data sets that have them beside their columns.
        classes: their names.
        decimal: what stands before decimals, where cells tell.
    """

    columns: tuple[Cells, ...]
    where: str
    named: bool = True
    delimiter: str = ""
    labels: Any = None
    classes: tuple[str, ...] = ()
    decimal: str = ""

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


def checked(raw: Raw) -> Raw:
    """The table, where it has columns with names of their own, and rows.

    Raises:
        DataError: it has not.
    """
    if not raw.columns:
        raise DataError(f"{raw.where}: has no columns")
    for name, count in Counter(raw.names).items():
        if count > 1:
            raise DataError(f"{raw.where}: has {count} columns '{name}'; give each a name of its own")
    if not len(raw):
        raise DataError(f"{raw.where}: has {'a head but ' if raw.delimiter else ''}no rows")
    return raw


def settled(raw: Raw, decimal: str = "auto", before: str = "") -> Raw:
    """Columns of text whose every cell is a number as numbers, by the rules of
    :mod:`varflow.data.reading`; others stay text.

    Raises:
        DataError: a mark that can be one of decimals or of thousands, and nothing decides.
    """
    if decimal not in ("auto", ".", ","):
        raise SpecError(f"decimal: was '{decimal}'; use auto, . or ,")
    texts = [column for column in raw.columns if column.sort == "text"]
    read = {column.name: decimal_marks(column) for column in texts}
    said = {"." for point, comma in read.values() if point and not comma}
    said |= {"," for point, comma in read.values() if comma and not point}
    if raw.delimiter and any(column.sort == "number" and not column.whole for column in raw.columns):
        # What was read in one go had points.
        said.add(".")
    out = []
    for column in raw.columns:
        if column.sort == "text":
            point, comma = read[column.name]
            if point and comma:
                mark = decimal if decimal != "auto" else _mark(column, said, raw, before)
            else:
                mark = "." if point else "," if comma else ""
            if mark:
                column = as_numbers(column, mark)
        out.append(column)
    return replace(raw, columns=tuple(out), decimal=next(iter(said)) if len(said) == 1 and raw.delimiter else "")


def _mark(column: Cells, said: set[str], raw: Raw, before: str) -> str:
    """What stands before the decimals of a column that a point and a comma both fit."""
    found = undecided(column)
    if found is None:
        return "."
    mark, row = found
    other = "," if mark == "." else "."
    if len(said) == 1:
        return next(iter(said))
    if mark == "." and raw.delimiter != ";":
        return "."
    groups = grouping(column)
    if groups is False:
        return mark
    if groups is True and (mark == ".") == (raw.delimiter == ";"):
        return other
    if before:
        return before
    what = "the comma" if mark == "," else "the point"
    raise DataError(
        f"{raw.where}: column '{column.name}' has {column.shown(row)} in row {row + 1} ({COUNTED}): {what} can stand "
        "before decimals or before thousands, and nothing in the file tells; say decimal=',' or decimal='.' "
        "(--decimal)"
    )
