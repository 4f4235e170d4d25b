"""Cells of a table as they were given: text that has still to be read, numbers, days, words. No torch here.

Text is kept as its distinct values and a code for each cell. The distinct values are a list, or an Arrow array where
a file was read through Arrow: then no cell becomes a Python object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from varflow.core.errors import DataError

Numbers = NDArray[np.float64]
Codes = NDArray[np.int64]
Flags = NDArray[np.bool_]

#: Text that stands for a missing cell, in small letters.
MISSING = frozenset({"", "na", "n/a", "n.a.", "#n/a", "nan", "null", "none", "?", "-", "<na>", "nat"})
#: What errors say of the number of a row.
COUNTED = "rows are counted from 1, without the head"

_MISSING = r"(?i)^(|na|n/a|n\.a\.|#n/a|nan|null|none|\?|-|<na>|nat)$"
#: What can stand between groups of three digits beside a comma or a point.
_GAPS = " '’\u00a0\u202f"
_WHOLE = r"^[+-]?\d+$"
_CODE = r"^0\d+$"
_INFINITE = r"(?i)^[+-]?inf(inity)?$"
_LONG = r"^[+-]?\d{4,}$"
_SMALL = r"^[+-]?[1-9]\d{0,2}$"

#: ISO dates with or without a time, then days and months in either order.
_TIME = r"(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?\s*(Z|[+-]\d{2}:?\d{2})?)?$"
_DATES = {
    "ymd-": r"^(\d{4})-(\d{1,2})-(\d{1,2})" + _TIME,
    "ymd/": r"^(\d{4})/(\d{1,2})/(\d{1,2})" + _TIME,
    "ymd.": r"^(\d{4})\.(\d{1,2})\.(\d{1,2})" + _TIME,
    "dmy.": r"^(\d{1,2})\.(\d{1,2})\.(\d{4})" + _TIME,
    "dmy/": r"^(\d{1,2})/(\d{1,2})/(\d{4})" + _TIME,
    "dmy-": r"^(\d{1,2})-(\d{1,2})-(\d{4})" + _TIME,
    "d b y": r"^(\d{1,2})[ -]([A-Za-z]{3,9})\.?[ -](\d{4})" + _TIME,
    "b d y": r"^([A-Za-z]{3,9})\.? (\d{1,2}),? (\d{4})" + _TIME,
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
#: Formats whose first number can be a day or a month.
_EITHER = ("dmy/", "dmy-")


class Words(Protocol):
    """The distinct values of a column of text."""

    def __len__(self) -> int: ...

    def matches(self, pattern: str) -> Flags:
        """Which of them a pattern fits."""
        ...

    def groups(self, pattern: str) -> list[Words]:
        """What the groups of a pattern that fits all of them hold; nothing where a group does not take part."""
        ...

    def numbers(self, mark: str) -> Numbers:
        """The numbers that they are, ``mark`` before the decimals; nothing is checked."""
        ...

    def chosen(self, index: Codes) -> Words:
        """Some of them."""
        ...

    def plain(self) -> list[str]:
        """All of them."""
        ...


class Listed:
    """Distinct values as a list."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def __len__(self) -> int:
        return len(self.words)

    def matches(self, pattern: str) -> Flags:
        find = re.compile(pattern).search
        return np.array([find(word) is not None for word in self.words], bool)

    def groups(self, pattern: str) -> list[Words]:
        find = re.compile(pattern)
        found = [[part or "" for part in hit.groups()] for word in self.words if (hit := find.search(word))]
        return [Listed(part) for part in zip(*found, strict=True)] or [Listed([])] * find.groups

    def numbers(self, mark: str) -> Numbers:
        gone = dict.fromkeys(map(ord, _GAPS + ("," if mark == "." else ".")))
        table = {**gone, ord(mark): "."}
        return np.array([float(word.translate(table)) for word in self.words], np.float64)

    def chosen(self, index: Codes) -> Words:
        return Listed([self.words[i] for i in index])

    def plain(self) -> list[str]:
        return self.words


class InArrow:
    """Distinct values as an Arrow array of strings."""

    def __init__(self, words: Any) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def matches(self, pattern: str) -> Flags:
        import pyarrow.compute as pc

        return np.asarray(pc.match_substring_regex(self.words, pattern).to_numpy(zero_copy_only=False), bool)

    def groups(self, pattern: str) -> list[Words]:
        import pyarrow.compute as pc

        size = re.compile(pattern).groups
        named, number = "", 0
        for piece in re.split(r"(\\.|\[[^]]*\]|\(\?:|\()", pattern):
            number += piece == "("
            named += f"(?P<g{number}>" if piece == "(" else piece
        found = pc.extract_regex(self.words, named)
        return [InArrow(pc.struct_field(found, f"g{i + 1}")) for i in range(size)]

    def numbers(self, mark: str) -> Numbers:
        import pyarrow
        import pyarrow.compute as pc

        words = self.words
        # Of an exponent too: 1e+5 and 1e5 are the same.
        pattern = f"[{_GAPS}+{',' if mark == '.' else '.'}]"
        if pc.any(pc.match_substring_regex(words, pattern)).as_py():
            words = pc.replace_substring_regex(words, pattern, "")
        if mark == ",":
            words = pc.replace_substring(words, ",", ".")
        found: Numbers = pc.cast(words, pyarrow.float64()).to_numpy(zero_copy_only=False)
        return found

    def chosen(self, index: Codes) -> Words:
        import pyarrow

        return InArrow(self.words.take(pyarrow.array(index)))

    def plain(self) -> list[str]:
        found: list[str] = self.words.to_pylist()
        return found


@dataclass(frozen=True)
class Cells:
    """A column as it was given.

    Attributes:
        name: its head.
        sort: what its cells are: "number", "day" (days since 1970-01-01), "word", or "text", which has still to be
            read.
        values: numbers or days ``[N]``, NaN where missing; None of words.
        codes: of words and text, the number of each cell's value ``[N]``; −1 where missing.
        words: the distinct values, of words and text; of numbers that were read from text the text too.
        whole: whether these are whole numbers by their type or by how they are written.
        flag: whether these are truth values by their type.
        ordered: whether the words stand in an order that means something.
    """

    name: str
    sort: str
    values: Numbers | None = None
    codes: Codes | None = None
    words: Words | None = None
    whole: bool = False
    flag: bool = False
    ordered: bool = False

    def __len__(self) -> int:
        held = self.codes if self.values is None else self.values
        assert held is not None
        return len(held)

    @property
    def missing(self) -> Flags:
        """Which cells are missing."""
        if self.values is not None:
            return np.isnan(self.values)
        assert self.codes is not None
        return self.codes < 0

    def shown(self, row: int) -> str:
        """A cell as text."""
        if self.words is not None and self.codes is not None:
            return self.words.chosen(self.codes[row : row + 1]).plain()[0]
        assert self.values is not None
        if self.sort == "day":
            return iso(self.values[row : row + 1])[0]
        return number_text(self.values[row])

    def as_words(self) -> Cells:
        """Its cells as words: numbers as they are written shortest, so that 1, 1.0 and 1.00 are the same."""
        if self.sort in ("word", "text"):
            return replace(self, sort="word")
        assert self.values is not None
        distinct, codes = np.unique(self.values, return_inverse=True)
        there = ~np.isnan(distinct)
        if self.flag:
            words = ["True" if value else "False" for value in distinct[there]]
        elif self.sort == "day":
            words = iso(distinct[there])
        else:
            words = [number_text(value) for value in distinct[there]]
        codes = np.where(np.isnan(self.values), -1, codes)
        return Cells(self.name, "word", None, codes.astype(np.int64), Listed(words))

    def rows(self, chosen: Any) -> Cells:
        """Some of its rows."""
        values = None if self.values is None else self.values[chosen]
        return replace(self, values=values, codes=None if self.codes is None else self.codes[chosen])


def number_text(value: float) -> str:
    """A number as it is written shortest."""
    value = float(value)
    if not np.isfinite(value):
        return repr(value)
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def text_cells(name: str, cells: Iterable[str]) -> Cells:
    """Cells of text, blanks around them taken off, and those that stand for a missing one found."""
    known: dict[str, int] = {}
    codes = np.array([known.setdefault(cell.strip(), len(known)) for cell in cells], np.int64)
    return _without_missing(name, codes, Listed(list(known)))


def arrow_cells(name: str, column: Any) -> Cells:
    """The same of an Arrow array of strings, without a Python object for each."""
    import pyarrow
    import pyarrow.compute as pc

    encoded = column.dictionary_encode()
    if isinstance(encoded, pyarrow.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
        if isinstance(encoded, pyarrow.ChunkedArray):
            encoded = encoded.chunk(0)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    words = encoded.dictionary
    trimmed = pc.utf8_trim_whitespace(words)
    if pc.all(pc.equal(trimmed, words)).as_py() is False:
        again = trimmed.dictionary_encode()
        moved = again.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        codes, words = np.where(codes < 0, -1, moved[codes]), again.dictionary
    return _without_missing(name, codes, InArrow(words))


def plain_numbers(name: str, column: Any) -> Cells | None:
    """An Arrow array of strings as numbers, in one go; None where that says something else than the rules for text,
    or where they have to be asked.
    """
    import pyarrow
    import pyarrow.compute as pc

    try:
        values = pc.cast(column, pyarrow.float64()).to_numpy()
    except pyarrow.ArrowInvalid:
        return None
    pointed = pc.any(pc.match_substring(column, ".")).as_py()
    coded = pc.any(pc.starts_with(column, "0")).as_py() and pc.any(pc.match_substring_regex(column, _CODE)).as_py()
    return _at_once(name, np.array(values), bool(pointed), bool(coded))


def listed_numbers(name: str, cells: Sequence[str]) -> Cells | None:
    """The same of a list of strings."""
    try:
        values = np.array([float(cell) if cell else np.nan for cell in cells], np.float64)
    except ValueError:
        return None
    text = "\n".join(cells)
    # Python takes 1_000 for a number.
    return None if "_" in text else _at_once(name, values, "." in text, re.search(r"(^|\n)\s*0\d", text) is not None)


def _at_once(name: str, values: Numbers, pointed: bool, coded: bool) -> Cells | None:
    """Numbers that were made of text without a look at it, some of them ``pointed``, some ``coded`` as 007 is."""
    there = values[~np.isnan(values)]
    if coded or not there.size or np.isinf(there).any():
        return None
    if pointed:
        # With more than three decimals somewhere no point groups thousands; 1.234 alone has to be looked at.
        scaled = there * 1000
        if not (np.abs(scaled - np.round(scaled)) > 1e-6 * np.maximum(1, np.abs(scaled))).any():
            return None
    return Cells(name, "number", values, whole=not (there % 1).any())


def _without_missing(name: str, codes: Codes, words: Words) -> Cells:
    gone = words.matches(_MISSING)
    if gone.any():
        moved = np.append(np.where(gone, -1, np.cumsum(~gone) - 1), -1)
        codes, words = moved[codes], words.chosen(np.flatnonzero(~gone))
    return Cells(name, "text", None, codes, words)


# -- numbers ------------------------------------------------------------------------------------------


def _patterns(mark: str) -> tuple[str, str]:
    """Numbers with ``mark`` before their decimals: plain ones, and ones in groups of three digits."""
    point, other = re.escape(mark), re.escape("," if mark == "." else ".")
    plain = rf"^[+-]?(\d+({point}\d*)?|{point}\d+)([eE][+-]?\d+)?$"
    grouped = "|".join(
        rf"^[+-]?[1-9]\d{{0,2}}({gap}\d{{3}})+({point}\d*)?$" for gap in (other, " ", "['’]", "\u00a0", "\u202f")
    )
    return plain, grouped


def is_number(words: Words, mark: str) -> Flags:
    """Which words are numbers with ``mark`` before their decimals."""
    plain, grouped = _patterns(mark)
    found = words.matches(plain)
    # Most columns have no groups at all.
    return found if found.all() else found | words.matches(grouped) | words.matches(_INFINITE)


def decimal_marks(cells: Cells) -> tuple[bool, bool]:
    """Whether all cells are numbers with a point before their decimals, and with a comma; neither of text.

    A column with codes such as 007 holds no numbers.
    """
    assert cells.words is not None
    if not len(cells.words) or cells.words.matches(_CODE).any():
        return False, False
    return bool(is_number(cells.words, ".").all()), bool(is_number(cells.words, ",").all())


def undecided(cells: Cells) -> tuple[str, int] | None:
    """The mark that can be one of decimals or one of thousands in a column that both readings fit, and the first cell
    with it; None where there is none.
    """
    assert cells.words is not None
    assert cells.codes is not None
    for mark in ",.":
        has = cells.words.matches(rf"^[+-]?[1-9]\d{{0,2}}{re.escape(mark)}\d{{3}}$")
        if has.any():
            return mark, int(np.flatnonzero(np.append(has, False)[cells.codes])[0])
    return None


def grouping(cells: Cells) -> bool | None:
    """Of a column whose mark is undecided: whether the whole numbers without it say that it groups thousands.

    A number of four digits or more without it says no; two and more different ones of at most three digits say yes.
    None where nothing is said.
    """
    assert cells.words is not None
    if cells.words.matches(_LONG).any():
        return False
    return True if int(cells.words.matches(_SMALL).sum()) >= 2 else None


def as_numbers(cells: Cells, mark: str) -> Cells:
    """Text whose every cell is a number."""
    assert cells.words is not None
    assert cells.codes is not None
    distinct = cells.words.numbers(mark)
    values = np.append(distinct, np.nan)[cells.codes]
    whole = bool(cells.words.matches(_WHOLE).all()) or are_whole(distinct)
    return replace(cells, sort="number", values=values, whole=whole)


def are_whole(values: Numbers) -> bool:
    """Whether all of the numbers that are finite are whole."""
    return not (values[np.isfinite(values)] % 1).any()


def refuse_infinite(cells: Cells, where: str) -> None:
    """Refuse an infinite number. Columns that are left out may have some, so this is asked when a column is used.

    Raises:
        DataError: names the first.
    """
    if cells.values is not None and (infinite := np.isinf(cells.values)).any():
        row = int(np.flatnonzero(infinite)[0])
        raise DataError(
            f"{where}: column '{cells.name}' has {cells.shown(row)} in row {row + 1} ({COUNTED}); empty that cell, "
            f"or leave the column out ({cells.name}:drop)"
        )


# -- dates --------------------------------------------------------------------------------------------


def date_format(words: Words) -> list[str]:
    """The formats of dates in which some of the words are written; of none where some are no dates."""
    if not len(words):
        return []
    left, found = np.ones(len(words), bool), []
    for name, pattern in _DATES.items():
        hit = words.matches(pattern)
        if hit.any():
            found.append(name)
            left &= ~hit
            if not left.any():
                return found
    return []


def as_days(cells: Cells, where: str, order: str = "") -> Cells:
    """Text whose every cell is a date of one format: days since 1970-01-01, in UTC where a zone is named.

    Args:
        cells: of text.
        where: what errors begin with.
        order: "dmy" or "mdy", where a column of 03/04/2020 does not tell.

    Raises:
        DataError: several formats, an order of day and month that cannot be told, or a day that there is not.
    """
    assert cells.words is not None
    assert cells.codes is not None
    found = date_format(cells.words)
    named = f"{where}: column '{cells.name}'"
    if not found:
        raise DataError(f"{named} holds no dates{_first(cells, _no_date(cells.words))}; write them as 2024-03-01")
    if len(found) > 1:
        cases = [_first(cells, cells.words.matches(_DATES[name])) for name in found[:2]]
        raise DataError(
            f"{named} has dates of several formats ({' and '.join(case.strip(' ()') for case in cases)}); write all "
            "in one, best as 2024-03-01"
        )
    name = found[0]
    first, second, third, *times = cells.words.groups(_DATES[name])
    if name.startswith("ymd"):
        year, month, day = _whole(first), _whole(second), _whole(third)
    elif name in ("d b y", "b d y"):
        texts = (second if name == "d b y" else first).plain()
        year, day = _whole(third), _whole(first if name == "d b y" else second)
        month = np.array([_month(text) for text in texts], np.int64)
    else:
        year, day, month = _whole(third), _whole(first), _whole(second)
        if name in _EITHER and order != "dmy":
            days_first, months_first = bool((day > 12).any()), bool((month > 12).any())
            if order == "mdy" or (months_first and not days_first):
                day, month = month, day
            elif not days_first:
                raise DataError(
                    f"{named} has dates such as {cells.words.chosen(np.array([0])).plain()[0]}, and none tells "
                    f"whether the day or the month comes first; say column={cells.name}:date=dmy or =mdy "
                    f"(--column '{cells.name}:date=dmy'), or write 2024-03-01"
                )
    hour, minute, second_, fraction, zone = times
    h, m, s = (_whole(part, empty=True) for part in (hour, minute, second_))
    wrong = (
        (month < 1) | (month > 12) | (day < 1) | (day > _month_length(year, month)) | (h > 23) | (m > 59) | (s > 60)
    )
    if wrong.any():
        raise DataError(f"{named} has a date that there is not{_first(cells, wrong)}; correct or empty that cell")
    days, seconds = _days(year, month, day), (h * 60 + m) * 60 + s - _offset(zone)
    # One division of whole numbers: the nearest double, which the inverse of the preprocessing finds again.
    micro = (days * 86400 + seconds) * 1_000_000 + np.round(_fraction(fraction) * 1e6).astype(np.int64)
    values = np.append(micro / 86400e6, np.nan)[cells.codes]
    return replace(cells, sort="day", values=values, whole=not hour.matches(r"\d").any())


def _no_date(words: Words) -> Flags:
    out = np.ones(len(words), bool)
    for pattern in _DATES.values():
        out &= ~words.matches(pattern)
    return out


def _first(cells: Cells, hit: Flags) -> str:
    """``" ('abc' in row 3)"``: the first cell whose word is hit."""
    assert cells.codes is not None
    rows = np.flatnonzero(np.append(hit, False)[cells.codes])
    return f" ('{cells.shown(int(rows[0]))}' in row {int(rows[0]) + 1}; {COUNTED})" if len(rows) else ""


def _whole(words: Words, empty: bool = False) -> Codes:
    if not empty:
        return words.numbers(".").astype(np.int64)
    there = words.matches(r"\d")
    out = np.zeros(len(words), np.int64)
    if there.any():
        out[there] = words.chosen(np.flatnonzero(there)).numbers(".").astype(np.int64)
    return out


def _fraction(words: Words) -> Numbers:
    out = np.zeros(len(words))
    there = np.flatnonzero(words.matches(r"\d"))
    if len(there):
        digits = words.chosen(there)
        length = np.zeros(len(there))
        for size in range(1, 10):
            length[digits.matches(rf"^\d{{{size}}}$")] = size
        out[there] = digits.numbers(".") / 10.0**length
    return out


def _offset(words: Words) -> Codes:
    """Seconds that a zone is ahead of UTC."""
    out = np.zeros(len(words), np.int64)
    there = np.flatnonzero(words.matches(r"\d"))
    if len(there):
        sign, hours, minutes = words.chosen(there).groups(r"^([+-])(\d{2}):?(\d{2})$")
        ahead = (_whole(hours) * 60 + _whole(minutes)) * 60
        out[there] = np.where(sign.matches("-"), -ahead, ahead)
    return out


def _month(text: str) -> int:
    short = text.lower()[:3]
    return _MONTHS.index(short) + 1 if short in _MONTHS else 0


def _days(year: Codes, month: Codes, day: Codes) -> Codes:
    """Days since 1970-01-01 of a date in the Gregorian calendar."""
    months = (year - 1970) * 12 + month - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    found: Codes = first + day - 1
    return found


def _month_length(year: Codes, month: Codes) -> Codes:
    inside = np.clip(month, 1, 12)
    one = np.ones_like(year)
    return _days(year, inside + 1, one) - _days(year, inside, one)


def iso(days: Numbers) -> list[str]:
    """Days since 1970-01-01 as 2024-03-01, with a time where one of them is no midnight; "" where missing."""
    stamps = as_datetime(days)
    texts = np.datetime_as_string(stamps)
    return ["" if text == "NaT" else text for text in texts.tolist()]


def as_datetime(days: Numbers) -> NDArray[np.datetime64]:
    """Days since 1970-01-01 as datetime64 of days, seconds or microseconds, whichever holds them."""
    there = days[~np.isnan(days)]
    if not (there % 1).any():
        unit, size = "D", 1.0
    else:
        # A double holds the days of today to 3e-7 s.
        seconds = there * 86400
        unit, size = ("s", 86400.0) if np.abs(seconds - np.round(seconds)).max() < 1e-4 else ("us", 86400e6)
    whole = np.round(np.where(np.isnan(days), 0, days) * size).astype(np.int64).astype(f"datetime64[{unit}]")
    whole[np.isnan(days)] = np.datetime64("NaT")
    return whole
