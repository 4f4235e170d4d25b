"""Files of tables, to named columns of cells: CSV in any common dialect, Parquet, Arrow. No torch.

How a file of text is read, which decision depends on what:

* **Encoding**: what the byte-order mark says; else UTF-16 where every second byte is zero; else UTF-8; else
  Windows-1252, or Latin-1 where that has no such byte.
* **Delimiter**: of tab, semicolon, bar and comma the one that cuts the first 200 rows into equally many cells, more
  than one; of several such the one that leaves most cells numbers. A file .tsv has tabs. Blanks, where nothing else
  cuts. A first line ``sep=;`` says it.
* **Quotes**: ``"`` around cells with delimiters or line breaks in them, a doubled one (or ``\\"``) for itself; ``'``
  where the file has no ``"``.
* **Head**: the first row, where none of its cells is a number, a date or missing; the cells at its ends may be empty.
  Numbers in it are names where each is one more than the one before, and none of their columns is whole; NA is one
  where another name stands over numbers.
* **Missing**: an empty cell, NA, N/A, NaN, null, None, ``?``, ``-``, in small letters or large. Blanks around a cell
  do not count.
* **Decimals**: a point or a comma, whichever makes numbers of all cells of a column. ``1,234`` alone can be both;
  then the other columns of the file decide, then the whole numbers beside it in its column (1234 says that commas
  group nothing; two of at most three digits say that they do, if the delimiter is no semicolon). In a file that
  semicolons do not cut, a point stands before decimals. What nothing decides is refused.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from varflow.core.errors import DataError
from varflow.data.cells import (
    COUNTED,
    MISSING,
    Listed,
    arrow_cells,
    date_format,
    is_number,
    listed_numbers,
    plain_numbers,
    text_cells,
)
from varflow.data.frames import of_arrow
from varflow.data.raw import Raw, checked, settled
from varflow.data.readers import content, need

#: Suffixes of tables.
TEXTS = (".csv", ".tsv", ".txt")
ARROWS = (".parquet", ".feather", ".arrow")
#: A file of so many bytes goes through pyarrow, where it is installed.
_LARGE = 2**20
_SAMPLE_BYTES, _SAMPLE_ROWS = 2**18, 200
#: Columns with more cells are tried as numbers first.
_MANY = 1000
_DELIMITERS = ("\t", ";", "|", ",")
#: Cuts nothing: the separator of units of ASCII.
_NOWHERE = "\x1f"


# -- files --------------------------------------------------------------------------------------------


def suffix_of(path: Path) -> str:
    """The suffix that says how a file is read: .csv of t.csv and of t.csv.gz."""
    inner = Path(path.stem).suffix.lower()
    return inner if path.suffix.lower() == ".gz" and inner in TEXTS else path.suffix.lower()


def is_table(path: Path) -> bool:
    """Whether a file is a table by its suffix."""
    return suffix_of(path) in (*TEXTS, *ARROWS)


def is_text(path: Path) -> bool:
    """Whether a file is a table of text by its suffix."""
    return suffix_of(path) in TEXTS


def read_table(path: Path, decimal: str = "auto", engine: str = "auto", before: str = "") -> Raw:
    """The columns of a file.

    Args:
        path: .csv, .tsv, .txt, .parquet, .feather or .arrow.
        decimal: "." or ",", where the file does not decide which of them stands before decimals.
        engine: how text is cut into cells: "plain", "arrow", or by the size of the file.
        before: what stood before decimals in another file of the kind; it decides what nothing in this one does.

    Raises:
        DataError: it cannot be read, or its cells contradict each other.
    """
    if suffix_of(path) in ARROWS:
        return checked(_arrow_file(path))
    return settled(checked(_text_file(path, engine)), decimal, before)


class Dialect(NamedTuple):
    """How a text is cut into cells.

    Attributes:
        delimiter: a character; "" for any number of blanks.
        quote: around cells.
        escape: before a quote inside of quotes; None where it is doubled.
        blanks: whether a quote can come after a blank.
        strict: whether a quote that is not closed, or closed within a cell, is refused.
    """

    delimiter: str
    quote: str = '"'
    escape: str | None = None
    blanks: bool = False
    strict: bool = False

    def rows(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """The rows of a text that hold anything."""
        if not self.delimiter:
            yield from (cells for line in lines if (cells := line.split()))
            return
        found = csv.reader(
            lines, delimiter=self.delimiter, quotechar=self.quote, escapechar=self.escape,
            doublequote=self.escape is None, skipinitialspace=self.blanks, strict=self.strict,
        )  # fmt: skip
        yield from (cells for cells in found if len(cells) > 1 or (cells and cells[0].strip()))


def decoded(raw: bytes, where: str) -> str:
    """The text of a file.

    Raises:
        DataError: bytes that are no text.
    """
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings: tuple[str, ...] = ("utf-16",)
    elif raw.startswith(b"\xef\xbb\xbf"):
        encodings = ("utf-8-sig",)
    else:
        odd, even = raw[1:1000:2], raw[0:1000:2]
        wide = "utf-16-le" if odd and not any(odd) else "utf-16-be" if even and not any(even) else ""
        encodings = (wide,) if wide else ("utf-8", "cp1252", "latin-1")
    for encoding in encodings:
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            failed = error
            continue
        if "\0" in text[:10_000]:
            raise DataError(f"{where}: not a text file (it holds zero bytes)")
        return text
    raise DataError(f"{where}: not a text file ({failed})")


def sniffed(sample: str, suffix: str = ".csv", cut: bool = False) -> Dialect:
    """The dialect of a text, by its first rows; the last of them may be ``cut``."""
    quote = '"'
    if '"' not in sample and re.search(r"(^|[\t;|,])'[^'\n]*'($|[\t;|,])", sample, re.MULTILINE):
        quote = "'"
    escape = "\\" if re.search(rf"\\{quote}(?![\s\t;|,]|$)", sample) else None
    best: tuple[Any, ...] = ()
    chosen = Dialect("\t" if suffix == ".tsv" else ",", quote, escape)
    for delimiter in ("\t",) if suffix == ".tsv" else _DELIMITERS:
        blanks = re.search(rf"{re.escape(delimiter)} +{quote}", sample) is not None
        dialect = Dialect(delimiter, quote, escape, blanks)
        try:
            rows = _some(dialect.rows(io.StringIO(sample, newline="")), cut)
        except csv.Error:
            continue
        counts = Counter(map(len, rows))
        size, agree = counts.most_common(1)[0] if counts else (0, 0)
        if size < 2:
            continue
        cells = [cell.strip() for row in rows for cell in row]
        numbers = sum(_is_plain(cell) for cell in cells) / len(cells)
        score = (agree / len(rows) > 0.999, agree / len(rows) > 0.5, round(numbers, 3), size)
        if score > best:
            best, chosen = score, dialect
    # A column by itself, with commas before its decimals.
    lines = [line.strip() for line in sample.splitlines()[:_SAMPLE_ROWS] if line.strip()]
    alone = best and not best[0] and not any(mark in lines[0] for mark in _DELIMITERS)
    if alone and all(_is_plain(line) for line in lines[1:]):
        return Dialect(_NOWHERE, quote, escape)
    if not best and suffix != ".tsv":
        rows = _some((line.split() for line in sample.splitlines() if line.strip()), cut)
        sizes = {len(row) for row in rows[1:]}
        if len(sizes) == 1 and sizes != {1} and all(_is_plain(cell) for row in rows[1:] for cell in row):
            return Dialect("")
    return chosen


def _some(rows: Iterator[list[str]], cut: bool) -> list[list[str]]:
    """The first rows; without the last of a text that is ``cut`` off in it."""
    found = list(islice(rows, _SAMPLE_ROWS))
    return found[:-1] if cut and 1 < len(found) < _SAMPLE_ROWS else found


_PLAIN = re.compile(r"[+-]?(\d+([.,]\d*)*|[.,]\d+)([eE][+-]?\d+)?$")


def _is_plain(cell: str) -> bool:
    """Whether a cell is a number or missing, as far as one cell can tell."""
    return _PLAIN.match(cell) is not None or cell.lower() in MISSING


def _is_head(row: Sequence[str], body: Sequence[Sequence[str]]) -> bool:
    """Whether a first row is the head: nothing in it is a number, a date or missing; the cells at its ends may be
    empty. Some rows of the body are looked at where there are numbers.
    """
    cells = [cell.strip() for cell in row]
    words = Listed([cell for cell in cells if cell])
    if not len(words):
        return False
    if any(cell.lower() in MISSING for cell in (*words.plain(), *cells[1:-1])) and not _over_numbers(cells, body):
        return False
    held = is_number(words, ".") | is_number(words, ",")
    if held.any():
        return _numbers_columns(cells, body)
    return not any(date_format(Listed([cell])) for cell in words.plain())


def _over_numbers(cells: Sequence[str], body: Sequence[Sequence[str]]) -> bool:
    """Whether a word in a first row stands over numbers, as a name does: then NA beside it is one too."""
    for place, cell in enumerate(cells):
        below = [row[place].strip() for row in body if place < len(row)]
        if cell and not _is_plain(cell) and below and all(map(_is_plain, below)):
            return True
    return False


def _numbers_columns(cells: Sequence[str], body: Sequence[Sequence[str]]) -> bool:
    """Whether numbers in a first row are the names of columns, such as years, or those that pandas writes: whole
    numbers of which each is one more than the one before, over columns of which none is whole.
    """
    places = [place for place, cell in enumerate(cells) if cell.isdecimal()]
    numbers = [int(cells[place]) for place in places]
    others = [cell for place, cell in enumerate(cells) if place not in places]
    if len(numbers) < 2 or any(_is_plain(cell) for cell in others if cell):
        return False
    if not (numbers[0] == 0 or len(numbers) > 2 or any(others)):
        return False
    over = [{row[place].strip() for row in body if place < len(row)} for place in places]
    broken = all(any(re.search(r"\d[.,]\d", cell) for cell in column) for column in over)
    return broken and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _text_file(path: Path, engine: str) -> Raw:
    text, sample, dialect = _text_of(path)
    large = len(text) > _LARGE if engine == "auto" else engine == "arrow"
    if large and dialect.delimiter and not dialect.blanks:
        found = _by_arrow(path, text, sample, dialect)
        if found is not None:
            return found
    return _by_lines(path, text, dialect)


def _text_of(path: Path) -> tuple[str, str, Dialect]:
    """The text of a table, its beginning, and how it is cut."""
    text = decoded(content(path), str(path))
    begin, delimiter = 0, None
    if said := re.match(r"sep=(.)\r?\n", text):
        begin, delimiter = said.end(), said[1]
    sample = text[begin : begin + _SAMPLE_BYTES]
    if not sample.strip():
        raise DataError(f"{path}: is empty; should hold a row of numbers or words an example")
    dialect = sniffed(sample, suffix_of(path), len(text) > begin + _SAMPLE_BYTES)
    if delimiter is not None:
        dialect = dialect._replace(delimiter=delimiter)
    return text[begin:] if begin else text, sample, dialect


def _heads(rows: Sequence[list[str]]) -> tuple[list[str], bool]:
    """The names of the columns, and whether the first row holds them."""
    first, *body = rows[:_SAMPLE_ROWS]
    if not _is_head(first, body):
        return [f"x{number}" for number in range(len(first))], False
    names = [cell.strip() or f"column {number + 1}" for number, cell in enumerate(first)]
    # What numpy writes above a table.
    names[0] = names[0].removeprefix("# ")
    return names, True


class TextTable(NamedTuple):
    """The cells of a file as they are written.

    Attributes:
        names: of the columns.
        headed: whether the first row of the file holds them.
        rows: the cells of each other row.
        dialect: how they were cut.
    """

    names: list[str]
    headed: bool
    rows: list[list[str]]
    dialect: Dialect


def text_table(path: Path) -> TextTable:
    """The cells of a file of text, nothing read into them.

    Raises:
        DataError: as :func:`read_table`.
    """
    text, _, dialect = _text_of(path)
    return _cut(path, text, dialect)


def _by_lines(path: Path, text: str, dialect: Dialect) -> Raw:
    """Cells by Python's own reader."""
    names, headed, body, _ = _cut(path, text, dialect)
    many = len(body) > _MANY
    columns = [
        (listed_numbers(name, column) if many else None) or text_cells(name, column)
        for name, column in zip(names, zip(*body, strict=True), strict=True)
    ]
    return Raw(tuple(columns), str(path), headed, dialect.delimiter or " ")


def _cut(path: Path, text: str, dialect: Dialect) -> TextTable:
    csv.field_size_limit(2**31 - 1)
    try:
        rows = list(dialect._replace(strict=True).rows(io.StringIO(text, newline="")))
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise DataError(
                f"{path}: a {dialect.quote} is opened and not closed before the file ends; close it"
            ) from error
        try:
            rows = list(dialect.rows(io.StringIO(text, newline="")))
        except csv.Error as failed:
            raise DataError(f"{path}: cannot be cut into cells ({failed})") from failed
    if not rows:
        raise DataError(f"{path}: is empty; should hold a row of numbers or words an example")
    if not dialect.delimiter and rows[0][0] == "#":
        # What numpy writes before a head.
        del rows[0][0]
    names, headed = _heads(rows)
    body = rows[1:] if headed else rows
    if not body:
        raise DataError(f"{path}: has a head but no rows")
    sizes = Counter(map(len, body))
    size = sizes.most_common(1)[0][0]
    if headed and len(names) != size and sizes[size] > len(body) / 2:
        # A delimiter at the end of every line makes a column without a name.
        if len(names) == size - 1 and all(not row[-1].strip() for row in body if len(row) == size):
            body = [row[:-1] if len(row) == size else row for row in body]
            size -= 1
        else:
            raise DataError(f"{path}: {len(names)} heads over {size} columns")
    size = len(names)
    for number, row in enumerate(body):
        if len(row) != size:
            cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
            raise DataError(f"{path}: row {number + 1} has {cells}, should have {size} ({COUNTED})")
    return TextTable(names, headed, body, dialect)


def _by_arrow(path: Path, text: str, sample: str, dialect: Dialect) -> Raw | None:
    """The same cells through Arrow; None where it is not installed or the file is not regular."""
    try:
        import pyarrow
        from pyarrow import csv as arrow_csv
    except ImportError:
        return None
    lines = io.StringIO(sample, newline="")
    reader = csv.reader(lines, delimiter=dialect.delimiter, quotechar=dialect.quote)
    try:
        first = next(reader)
        rows = [first, *_some(dialect.rows(lines), True)]
    except (csv.Error, StopIteration):
        return None
    # A head over several lines, or blank lines above it.
    if reader.line_num != 1 or not any(cell.strip() for cell in first):
        return None
    names, headed = _heads(rows)
    keys = [str(number) for number in range(len(names))]
    quoted = dialect.quote in text
    if quoted and dialect.escape is None and text.count(dialect.quote) % 2:
        # A quote that is not closed, which Arrow takes as it is.
        return None
    try:
        table = arrow_csv.read_csv(
            pyarrow.py_buffer(text.encode()),
            arrow_csv.ReadOptions(column_names=keys, skip_rows=int(headed), block_size=2**24),
            arrow_csv.ParseOptions(
                delimiter=dialect.delimiter, quote_char=dialect.quote if quoted else False,
                double_quote=dialect.escape is None, escape_char=dialect.escape or False, newlines_in_values=quoted,
            ),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(keys, pyarrow.string()), strings_can_be_null=True,
                null_values=sorted({"NaN", *(form(w) for w in MISSING for form in (str, str.upper, str.title))}),
            ),
        )  # fmt: skip
    except pyarrow.ArrowException:
        # The reader of lines finds the row that is wrong, and says so.
        return None
    if not table.num_rows:
        return None
    columns = [
        plain_numbers(name, table.column(key)) or arrow_cells(name, table.column(key))
        for name, key in zip(names, keys, strict=True)
    ]
    return Raw(tuple(columns), str(path), headed, dialect.delimiter)


def _arrow_file(path: Path) -> Raw:
    return settled(Raw(tuple(of_arrow(arrow_of(path), str(path))), str(path)))


def arrow_of(path: Path) -> Any:
    """A .parquet, .feather or .arrow file as an Arrow table.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be read.
    """
    try:
        import pyarrow
        from pyarrow import feather, parquet
    except ImportError as error:
        raise need("table", "pyarrow", f"reading {path.suffix}") from error
    try:
        read = parquet.read_table if path.suffix.lower() == ".parquet" else feather.read_table
        return read(path)
    except (OSError, pyarrow.ArrowException) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: cannot be read as {path.suffix} ({what})") from error
