"""Which kind each column of a table is, found or set; and its cells as stored values. No torch here.

Stored values are float64 ``[N, D]``: numbers as they are, of an ordinal, category or binary column the code 0 … K −
1 of the value, of a date the days since 1970-01-01, with a fraction for the time; NaN where a cell is missing.

How a kind is found:

* a column of two values, whatever they are, is **binary**;
* dates are **date**; numbers that are whole and ≥ 0, up to 100,000, are **count**;
* other numbers are **positive** where all are above 0 and a log-normal has a likelihood more than e^7.5 times that
  of a Gaussian and of a Student-t (what chance does in one column of 10⁴), else **real**;
* words are **category**; **ordinal** where an ordered categorical of pandas or an ordered dictionary of Arrow says
  so.

What is left out, with a reason that is said and stored: a column with one value or none, an id (whole numbers that
count the rows, or all of them different under a name such as id; words of which every row has its own), and free
text (more than half of its cells are different). A column of which more than half of the cells are numbers, and not
all, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.core.columns import KINDS, NAMED, Column
from varflow.core.errors import DataError, SpecError, suggestion, unknown
from varflow.data.cells import (
    COUNTED,
    Cells,
    Listed,
    Numbers,
    are_whole,
    as_days,
    as_numbers,
    date_format,
    is_number,
    iso,
    number_text,
    refuse_infinite,
)
from varflow.data.named import LABEL_HEADS
from varflow.data.raw import Raw

#: A count beyond this has a density, as other numbers have: a probability of one number among so many is none to
#: tell.
LARGEST_COUNT = 100_000
#: Whole numbers that float32 tells apart.
_EXACT_COUNT = 2**24
#: The most values of a category.
_MOST = 10_000
#: A column with fewer cells is never free text or an id by the share of different ones.
_TELLING = 20
#: Words of which the first means no.
_NO = ("false", "no", "n", "f", "0", "off", "absent", "negative")
#: log of how much likelier a log-normal must be.
_GAIN = 7.55
#: Cells that are looked at first.
_FIRST = 1000
#: Rows that a fit by iteration looks at.
ROWS = 20_000
#: How a column came, and comes out again: whole numbers, other numbers, truth values, words, dates, dates with a
#: time. Of dates that were written with day and month in an order that was set, the order stands behind it.
FORMS = ("whole", "number", "truth", "text", "day", "time", "day dmy", "day mdy", "time dmy", "time mdy")
_ID = re.compile(r"(^|[_\s.-])(id|ids|uid|uuid|key|index|row|nr|no|number)$|^column 1$|[a-z]I[dD]$", re.IGNORECASE)


@dataclass(frozen=True)
class Wish:
    """What is set by hand of a column: ``age:count``, ``size:ordinal=small|medium|large``, ``when:date=dmy``,
    ``id:drop``.
    """

    name: str
    kind: str
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A table as stored values.

    Attributes:
        columns: name, kind and categories of each column; nothing else of them is known yet.
        values: float64 ``[N, D]``, NaN where missing.
        forms: how each column came (:data:`FORMS`).
        dropped: columns that are left out → why.
        labels: class numbers ``[N]``; None where there are none.
        classes: their names.
        by_hand: columns whose kind was set.
    """

    columns: tuple[Column, ...]
    values: Numbers
    forms: tuple[str, ...]
    dropped: Mapping[str, str]
    labels: Any = None
    classes: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()


def wishes(settings: Sequence[str]) -> dict[str, Wish]:
    """What was set by hand, by column.

    Raises:
        SpecError: something else than ``name:kind``, or a column set twice.
    """
    out: dict[str, Wish] = {}
    for text in settings:
        name, colon, rest = text.rpartition(":") if "=" not in text else _split(text)
        kind, _, order = rest.partition("=")
        if not colon or not name:
            raise SpecError(
                f"column: was '{text}'; use name:kind, such as age:count, size:ordinal=small|large, id:drop"
            )
        if kind not in (*KINDS, "drop"):
            raise unknown(f"column: kind of '{name}'", kind, [*KINDS, "drop"])
        if name in out:
            raise SpecError(f"column: '{name}' is set twice; set it once")
        words = tuple(word.strip() for word in order.split("|")) if order else ()
        if words and kind not in (*NAMED, "date"):
            raise SpecError(f"column: was '{text}'; only {', '.join(NAMED)} and date take a '='")
        if kind == "date" and words not in ((), ("dmy",), ("mdy",)):
            raise SpecError(f"column: was '{text}'; use {name}:date=dmy or {name}:date=mdy")
        if len(set(words)) < len(words) or (kind in NAMED and len(words) == 1):
            raise SpecError(f"column: was '{text}'; give two or more different values with | between them")
        if kind == "binary" and len(words) > 2:
            raise SpecError(f"column: was '{text}'; a binary column has two values, use ordinal or category")
        out[name] = Wish(name, kind, words)
    return out


def _split(text: str) -> tuple[str, str, str]:
    """Name and kind where values follow, which may hold colons themselves."""
    found = re.match(rf"^(.*):({'|'.join(KINDS)}|drop|[a-z]+)=(.*)$", text)
    return (found[1], ":", f"{found[2]}={found[3]}") if found else text.rpartition(":")


def find_kinds(raw: Raw, settings: Sequence[str] = ()) -> Found:
    """Kinds and stored values of a table.

    Args:
        raw: the table.
        settings: ``name:kind`` of columns that are set by hand.

    Raises:
        SpecError: a setting of a column that there is not.
        DataError: a column that is none of the kinds, or not of the one it is set to; or nothing is left.
    """
    wanted = wishes(settings)
    for name in wanted:
        if name not in raw.names:
            raise SpecError(f"column: {raw.where} has no column '{name}'; {suggestion(name, raw.names)}")
    raw, labels, classes = without_labels(raw, wanted)
    columns, values, forms, dropped = [], [], [], {}
    for cells in raw.columns:
        wish = wanted.get(cells.name)
        if wish is not None and wish.kind == "drop":
            dropped[cells.name] = "set by hand"
            continue
        refuse_infinite(cells, raw.where)
        if wish is None and (reason := left_out(cells)):
            dropped[cells.name] = reason
            continue
        column, read = _kind(cells, raw.where) if wish is None else _as_wished(cells, wish, raw.where)
        columns.append(column)
        values.append(read)
        forms.append(_form(cells, column, read, wish))
    if not columns:
        said = "; ".join(f"'{name}': {reason}" for name, reason in dropped.items())
        raise DataError(f"{raw.where}: no column is left to model ({said}); give data with columns that vary")
    by_hand = tuple(name for name, wish in wanted.items() if wish.kind != "drop")
    return Found(tuple(columns), np.stack(values, 1), tuple(forms), dropped, labels, classes, by_hand)


def without_labels(raw: Raw, wanted: Mapping[str, Wish]) -> tuple[Raw, Any, tuple[str, ...]]:
    """The table without the one column that gives the labels, the labels, and their names.

    One column headed label, labels, class, target or y gives them if its values are whole and none is missing.
    """
    if raw.labels is not None:
        return raw, raw.labels, raw.classes
    marked = [c for c in raw.columns if c.name.lower() in LABEL_HEADS and c.name not in wanted]
    if len(marked) != 1 or len(raw.columns) < 2 or not raw.named:
        return raw, None, ()
    (cells,) = marked
    if cells.sort != "number" or cells.values is None:
        return raw, None, ()
    if not (np.isfinite(cells.values).all() and are_whole(cells.values)):
        return raw, None, ()
    rest = tuple(column for column in raw.columns if column is not cells)
    return replace(raw, columns=rest), cells.values.astype(np.int64), ()


def _form(cells: Cells, column: Column, values: Numbers, wish: Wish | None) -> str:
    if column.kind == "date":
        timed = bool((values[~np.isnan(values)] % 1).any())
        return " ".join(["time" if timed else "day", *(wish.order if wish is not None else ())])
    if cells.sort == "number":
        return "truth" if cells.flag else "whole" if cells.whole else "number"
    return "number" if column.kind not in NAMED else "text"


def _distinct(cells: Cells) -> int:
    if cells.sort == "number" or cells.sort == "day":
        assert cells.values is not None
        return len(np.unique(cells.values[~np.isnan(cells.values)]))
    assert cells.codes is not None
    return len(np.unique(cells.codes[cells.codes >= 0]))


def _few(cells: Cells) -> int:
    """How many values there are, of a column that has one or two; of any other three."""
    if cells.sort in ("number", "day"):
        assert cells.values is not None
        # The first cells tell of nearly every column that there are more.
        first = cells.values[:_FIRST]
        if len(np.unique(first[~np.isnan(first)])) > 2:
            return 3
    return min(_distinct(cells), 3)


def left_out(cells: Cells) -> str:
    """Why a column says nothing that a model could learn; "" where it says something."""
    there = ~cells.missing
    rows = int(there.sum())
    if not rows:
        return "every cell is missing"
    if _few(cells) == 1:
        return f"constant ({cells.shown(int(np.flatnonzero(there)[0]))})"
    if cells.sort == "number":
        assert cells.values is not None
        v = cells.values[there]
        if rows == len(cells) and cells.whole and rows > 2:
            counts = bool((np.diff(v) == 1).all())
            if counts or (_ID.search(cells.name) and _distinct(cells) == rows):
                return "an id: its whole numbers are all different"
        return ""
    distinct = _distinct(cells)
    if cells.sort == "text" and cells.words is not None and _numbers_among(cells):
        return ""
    words = cells.sort == "word" or (cells.sort == "text" and not date_format(_words(cells)))
    if words and rows >= _TELLING and distinct == rows:
        return "an id: every row has a value of its own"
    if words and rows >= _TELLING and 2 * distinct > rows:
        return f"free text: {distinct} different values in {rows} rows"
    return ""


def _words(cells: Cells) -> Any:
    assert cells.words is not None
    return cells.words


def _numbers_among(cells: Cells) -> bool:
    """Whether more than half of the cells of a column of text are numbers."""
    assert cells.codes is not None
    words = _words(cells)
    hit = np.append(is_number(words, ".") | is_number(words, ","), False)[cells.codes]
    # Codes such as 007 are words.
    return bool(2 * hit.sum() > (cells.codes >= 0).sum()) and not words.matches(r"^0\d+$").any()


def _kind(cells: Cells, where: str) -> tuple[Column, Numbers]:
    """The kind that a column is, and its values."""
    if cells.sort == "text":
        if date_format(_words(cells)):
            days = as_days(cells, where)
            return (Column(cells.name, "date"), _held(days)) if _few(days) > 2 else _coded(days, "binary", where)
        if _numbers_among(cells):
            raise _no_number(cells, where)
    if cells.ordered:
        return _coded(cells, "ordinal", where)
    if _few(cells) == 2:
        return _coded(cells, "binary", where)
    if cells.sort == "day":
        return Column(cells.name, "date"), _held(cells)
    if cells.sort == "number":
        v = _held(cells)
        there = v[~np.isnan(v)]
        if not (there % 1).any() and there.min() >= 0 and there.max() <= LARGEST_COUNT:
            return Column(cells.name, "count"), v
        return Column(cells.name, "positive" if _is_skewed(there) else "real"), v
    return _coded(cells, "category", where)


def _held(cells: Cells) -> Numbers:
    assert cells.values is not None
    return cells.values


def _as_wished(cells: Cells, wish: Wish, where: str) -> tuple[Column, Numbers]:
    """A column of the kind that it is set to."""
    if not (~cells.missing).any():
        raise DataError(f"{where}: column '{cells.name}' is set to {wish.kind}, and every cell is missing; drop it")
    if wish.kind in NAMED:
        return _coded(cells, wish.kind, where, wish.order)
    column = Column(cells.name, wish.kind)
    values = _values(cells, column, where, wish.order[0] if wish.order else "")
    if _few(replace(cells, sort="number", values=values)) == 1:
        raise DataError(
            f"{where}: column '{cells.name}' is set to {wish.kind}, and is constant ({cells.shown(0)}), so there is "
            f"nothing to learn; say {cells.name}:drop"
        )
    return column, values


def _coded(cells: Cells, kind: str, where: str, order: tuple[str, ...] = ()) -> tuple[Column, Numbers]:
    """A column of a few values, by their numbers."""
    numeric = cells.sort in ("number", "day")
    named = cells.as_words()
    assert named.codes is not None
    seen = np.unique(named.codes[named.codes >= 0])
    there = f"{where}: column '{cells.name}'"
    if len(seen) > _MOST:
        raise DataError(f"{there} has {len(seen)} values, too many for the kind {kind}; drop it or group them")
    words = _words(named).plain()
    if order:
        wanted = order
    elif kind == "ordinal" and not (cells.ordered or numeric):
        raise DataError(
            f"{there} is set to ordinal, and its words have no order of their own; give it, "
            f"{cells.name}:ordinal={'|'.join(words[code] for code in seen[:4])}"
        )
    elif cells.ordered or numeric:
        # All of an order, those that no cell has too; numbers and dates stand in theirs.
        wanted = tuple(words)
    else:
        wanted = tuple(sorted(words[code] for code in seen))
    if kind == "binary" and len(wanted) != 2:
        raise DataError(
            f"{there} is set to binary and has {len(wanted)} values ({', '.join(wanted[:4])}); use category"
        )
    if len(wanted) < 2:
        raise DataError(f"{there} is set to {kind} and has one value ({wanted[0]}); say {cells.name}:drop")
    if kind == "binary" and not order and wanted[1].lower() in _NO and wanted[0].lower() not in _NO:
        wanted = wanted[::-1]
    column = Column(cells.name, kind, wanted)
    return column, _codes(named, column, where)


def _codes(named: Cells, column: Column, where: str) -> Numbers:
    """The number of each cell's value among those that a column has.

    Raises:
        DataError: a value that is none of them.
    """
    assert named.codes is not None
    words = _words(named).plain()
    places = {word: code for code, word in enumerate(column.categories)}
    moved = np.array([places.get(word, -1) for word in words] + [np.nan], np.float64)
    values: Numbers = moved[named.codes]
    if (values < 0).any():
        row = int(np.flatnonzero(values < 0)[0])
        known = ", ".join(column.categories[:10]) + (", …" if len(column.categories) > 10 else "")
        raise DataError(
            f"{where}: column '{column.name}' has '{named.shown(row)}' in row {row + 1} ({COUNTED}), which is none "
            f"of its values: {known}; correct or empty that cell, or fit to data that have it"
        )
    return values


def _no_number(cells: Cells, where: str, kind: str = "") -> DataError:
    """What to say of a cell that is no number in a column of numbers, or in one of a kind that is known."""
    assert cells.codes is not None
    words = _words(cells)
    good = is_number(words, ".")
    if good.sum() < is_number(words, ",").sum():
        good = is_number(words, ",")
    hit = np.append(~good, False)[cells.codes]
    row = int(np.flatnonzero(hit)[0])
    rest = int((cells.codes >= 0).sum() - hit.sum())
    begin = (
        f"{where}: column '{cells.name}' has '{cells.shown(row)}' in row {row + 1} ({COUNTED}), which is no number"
    )
    if kind:
        return DataError(f"{begin}, and is of kind {kind}; correct or empty that cell")
    return DataError(
        f"{begin} as the {rest} other cells are; correct or empty that cell, or set the kind: {cells.name}:category"
    )


def _values(cells: Cells, column: Column, where: str, order: str = "") -> Numbers:
    """The stored values of a column of numbers or dates.

    Raises:
        DataError: text, or a number that the kind cannot have.
    """
    if cells.sort == "text" and column.kind == "date":
        cells = as_days(cells, where, order)
    elif cells.sort == "text":
        words = _words(cells)
        if len(words):
            good = is_number(words, ".")
            if not good.all():
                raise _no_number(cells, where, column.kind)
        cells = as_numbers(cells, ".")
    wanted = "day" if column.kind == "date" else "number"
    if cells.sort != wanted and (~cells.missing).any():
        what = {"word": "words", "day": "dates", "number": "numbers"}[cells.sort]
        row = int(np.flatnonzero(~cells.missing)[0])
        needed = "dates" if wanted == "day" else "numbers"
        raise DataError(
            f"{where}: column '{column.name}' holds {what} ('{cells.shown(row)}' in row {row + 1}; {COUNTED}), and "
            f"is of kind {column.kind}; give {needed}"
        )
    values = np.full(len(cells), np.nan) if cells.values is None else cells.values
    check_values(values, column, where)
    return values


def check_values(values: Numbers, column: Column, where: str) -> None:
    """Refuse numbers that a column of this kind cannot have.

    Raises:
        DataError: the first such cell.
    """
    there = ~np.isnan(values)
    if np.isinf(values).any():
        wrong, what = np.isinf(values), "no finite number"
    elif column.kind == "count":
        wrong, what = there & ((values < 0) | (values % 1 != 0) | (values > _EXACT_COUNT)), "no count, 0, 1, 2, …"
    elif column.kind == "positive":
        # The noise of a rounded column reaches half a step down.
        wrong, what = there & ~(values > column.step / 2), "not above 0"
        if column.step:
            what = f"not above {column.step / 2:g}, half a step of its grid"
    elif column.kind in NAMED:
        size = len(column.categories)
        wrong, what = there & ~np.isin(values, np.arange(size)), f"no code 0 … {size - 1} of its values"
    else:
        wrong, what = np.isinf(values), "no finite number"
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{where}: column '{column.name}' has {number_text(values[row])} in row {row + 1} ({COUNTED}), which is "
            f"{what}, and is of kind {column.kind}; correct or empty that cell"
        )


def _is_skewed(values: NDArray[np.float64]) -> bool:
    """Whether numbers above 0 are log-normal rather than Gaussian or Student-t, beyond chance."""
    if not values.min() > 0:
        return False
    if len(values) > ROWS:
        values = values[np.random.default_rng(0).permutation(len(values))[:ROWS]]
    logs = np.log(values)
    if not (logs.std() > 0 and values.std() > 0):
        return False
    n, ahead = len(values), 0.5 * math.log(2 * math.pi * math.e)
    lognormal = -n * (math.log(logs.std()) + ahead) - logs.sum()
    gaussian = -n * (math.log(values.std()) + ahead)
    if not lognormal - gaussian > _GAIN:
        return False
    import torch

    from varflow.data.table import student

    tails = (student(torch.from_numpy(values), nu)[0] for nu in (1.0, 2.0, 3.0))
    return bool(lognormal - max(tails) > _GAIN)


# -- rows for a fitted model --------------------------------------------------------------------------


def stored(raw: Raw, columns: Sequence[Column], forms: Sequence[str], dropped: Iterable[str] = ()) -> Numbers:
    """The stored values of new rows, their columns in the order of training: ``[N, D]``.

    Columns that training left out may be there or not; so may one that gives labels.

    Raises:
        DataError: a column that is missing or new, a new category, or text among numbers; with the name of the
            column.
    """
    held = {cells.name: cells for cells in raw.columns}
    names = [column.name for column in columns]
    if not raw.named:
        if len(held) != len(names):
            raise DataError(
                f"{raw.where}: has {len(held)} columns without names; the model was fitted to {', '.join(names)}"
            )
        held = dict(zip(names, (replace(c, name=n) for c, n in zip(raw.columns, names, strict=True)), strict=True))
    for name in names:
        if name not in held:
            raise DataError(
                f"{raw.where}: column '{name}' is missing; the model was fitted to {', '.join(names)}. Add it, with "
                "empty cells if nothing is known of it"
            )
    for name in held:
        if name not in names and name not in dropped and name.lower() not in LABEL_HEADS:
            raise DataError(f"{raw.where}: column '{name}' was not there in training ({', '.join(names)}); drop it")
    found = []
    for column, form in zip(columns, forms, strict=True):
        cells = held[column.name]
        if column.kind in NAMED:
            named = _like_training(cells, column, form, raw.where).as_words()
            found.append(_codes(named, column, raw.where))
        else:
            found.append(_values(cells, column, raw.where, form.partition(" ")[2]))
    return np.stack(found, 1)


def _like_training(cells: Cells, column: Column, form: str, where: str) -> Cells:
    """Cells as the values of a column are written."""
    if form == "truth" and cells.sort == "number":
        return replace(cells, flag=True)
    if form == "text" and cells.sort == "number" and cells.words is not None:
        # Among words a number is as it was written.
        words = Listed(column.categories)
        return cells if is_number(words, ".").all() else replace(cells, sort="text")
    if cells.sort == "text" and date_format(_words(cells)) and date_format(Listed(column.categories)):
        return as_days(cells, where)
    return cells


def numbers_alone(raw: Raw) -> tuple[Numbers, Any, tuple[str, ...]]:
    """A table that is read as numbers: values ``[N, D]``, labels, and the names of the columns.

    Raises:
        DataError: missing cells, text or dates; with the name of the column and what reads it.
    """
    raw, labels, _ = without_labels(raw, {})
    out = []
    for cells in raw.columns:
        if cells.sort != "number":
            row = int(np.flatnonzero(~cells.missing)[0]) if (~cells.missing).any() else 0
            what = "dates" if cells.sort == "day" else "text"
            shown = f" ('{cells.shown(row)}' in row {row + 1}; {COUNTED})" if (~cells.missing).any() else ""
            if cells.sort == "text" and _numbers_among(cells):
                raise _no_number(cells, raw.where)
            if (~cells.missing).any():
                raise DataError(
                    f"{raw.where}: column '{cells.name}' holds {what}{shown}, should be numbers; {ADVICE}, or leave "
                    "the column out"
                )
        if cells.missing.any():
            row = int(np.flatnonzero(cells.missing)[0])
            raise DataError(
                f"{raw.where}: column '{cells.name}' has missing cells (row {row + 1}; {COUNTED}); {ADVICE}, or "
                "impute or remove such rows"
            )
        refuse_infinite(cells, raw.where)
        out.append(_held(cells))
    return np.stack(out, 1), labels, raw.names if raw.named else ()


#: What reads what a table of numbers must not have.
ADVICE = "likelihood=columns (recipe table) reads it"


# -- what was found, for people -----------------------------------------------------------------------

#: The heads of :func:`overview`.
HEADS = ("column", "kind", "what it holds", "missing")
#: Values of a column that are named; the rest are counted.
_NAMED = 6


def overview(columns: Sequence[Column], dropped: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """A row for each column, under :data:`HEADS`: those that are modelled, then those that are left out."""
    found = [(c.name, c.kind, _holds(c), f"{c.missing:.1%}" if c.missing else "") for c in columns]
    return [*found, *((name, "left out", reason, "") for name, reason in dropped.items())]


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under :data:`HEADS` as lines of text, their cells below each other."""
    whole = [HEADS, *rows]
    widths = [max(len(row[place]) for row in whole) for place in range(len(HEADS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in whole]


def _holds(column: Column) -> str:
    """What the training cells of a column are like, in a few words."""
    if column.kind in NAMED:
        some = column.categories[:_NAMED]
        between = " < " if column.kind == "ordinal" else ", "
        rest = len(column.categories) - len(some)
        return between.join(some) + (f" and {rest} more" if rest else "")
    if column.kind == "count":
        return f"about {math.expm1(column.loc):.3g}"
    if column.kind == "positive":
        said = f"{math.exp(column.loc):.4g}, times or over {math.exp(column.scale):.3g}"
    elif column.kind == "date":
        (day,) = iso(np.round(np.array([column.loc])))
        said = f"{day} ± {column.scale:.4g} days"
    else:
        said = f"{column.loc:.4g} ± {column.scale:.4g}"
    if column.step and column.kind != "date":
        said += f", in steps of {column.step:g}"
    return said + (f", heavy tails (ν = {column.tail:g})" if column.tail else "")
