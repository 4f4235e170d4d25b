"""Which kind a column is: found, set, or left out with a reason; and new rows under the kinds of training."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from varflow.core.columns import Column
from varflow.core.errors import DataError, SpecError
from varflow.data.cells import iso
from varflow.data.frames import of_numbers as table
from varflow.data.frames import read_frame
from varflow.data.kinds import (
    FORMS,
    find_kinds,
    numbers_alone,
    overview,
    stored,
    table_lines,
    wishes,
)
from varflow.data.raw import Raw
from varflow.data.reading import read_table

ROWS = 200


def numbers(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def text(folder: Path, columns: dict[str, object], name: str = "t.csv") -> Raw:
    """A table of text that is written and read."""
    rows = ["|".join(columns), *("|".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    (folder / name).write_text("\n".join(rows))
    return read_table(folder / name)


def kinds(raw: Raw, *settings: str) -> dict[str, str]:
    return {column.name: column.kind for column in find_kinds(raw, settings).columns}


def test_every_kind_is_found(tmp_path: Path) -> None:
    g = numbers()
    raw = text(
        tmp_path,
        {
            "real": g.standard_normal(ROWS),
            "money": np.exp(g.standard_normal(ROWS)),
            "height": 170 + 10 * g.standard_normal(ROWS),
            "visits": g.poisson(3, ROWS),
            "balance": g.poisson(3, ROWS) - 3,
            "flag": g.integers(0, 2, ROWS),
            "sex": np.array(["m", "f"])[g.integers(0, 2, ROWS)],
            "city": np.array(["Rome", "Bonn", "Oslo"])[g.integers(0, 3, ROWS)],
            "when": [f"2020-{i % 12 + 1:02d}-{i % 28 + 1:02d}" for i in range(ROWS)],
            "zip": np.array(["01234", "04711", "99999"])[g.integers(0, 3, ROWS)],
        },
    )
    assert kinds(raw) == {
        "real": "real", "money": "positive", "height": "real", "visits": "count", "balance": "real", "flag": "binary",
        "sex": "binary", "city": "category", "when": "date", "zip": "category",
    }  # fmt: skip
    found = {column.name: column for column in find_kinds(raw).columns}
    assert found["sex"].categories == ("f", "m")
    assert found["flag"].categories == ("0", "1")
    assert found["city"].categories == ("Bonn", "Oslo", "Rome")
    assert set(find_kinds(raw).forms) <= set(FORMS)


def test_no_means_the_first_of_two(tmp_path: Path) -> None:
    for words in (("yes", "no"), ("true", "false"), ("Y", "N"), ("on", "off"), ("positive", "negative")):
        (column,) = find_kinds(text(tmp_path, {"a": [*words, *words], "b": ["x"] * 4})).columns
        assert column.categories == words[::-1]


@pytest.mark.parametrize("seed", range(5))
def test_a_log_normal_is_told_from_a_gaussian_and_from_heavy_tails(seed: int) -> None:
    g = numbers(seed)
    columns = {
        "lognormal": np.exp(0.7 * g.standard_normal(ROWS)),
        "money": 1000 * np.exp(1.5 * g.standard_normal(ROWS)),
        "gaussian": 100 + 10 * g.standard_normal(ROWS),
        "heavy": 1000 + g.standard_t(1.5, ROWS),
        "crossing": np.exp(g.standard_normal(ROWS)) - 0.1,
    }
    columns["crossing"][0] = -0.05
    found = kinds(table(columns, True))
    assert found == {
        "lognormal": "positive", "money": "positive", "gaussian": "real", "heavy": "real", "crossing": "real",
    }  # fmt: skip


def test_a_count_has_an_end() -> None:
    g = numbers()
    found = kinds(
        table({"few": g.poisson(5, ROWS) * 1.0, "many": np.round(1e6 + 1e5 * g.standard_normal(ROWS))}, True)
    )
    assert found == {"few": "count", "many": "real"}


def test_missing_cells_are_missing_in_every_kind(tmp_path: Path) -> None:
    cells = {
        "real": ["1.5", "", "-2.25", "3.125", "0.5"],
        "count": ["1", "2", "NA", "3", "7"],
        "binary": ["a", "b", "?", "a", "b"],
        "category": ["u", "v", "null", "w", "u"],
        "date": ["2020-01-01", "nan", "2020-01-03", "2020-01-02", "-"],
    }
    found = find_kinds(text(tmp_path, cells))
    assert {c.name: c.kind for c in found.columns} == {name: name for name in cells}
    expected = {
        "real": [1.5, np.nan, -2.25, 3.125, 0.5],
        "count": [1, 2, np.nan, 3, 7],
        "binary": [0, 1, np.nan, 0, 1],
        "category": [0, 1, np.nan, 2, 0],
        "date": [18262, np.nan, 18264, 18263, np.nan],
    }
    for place, column in enumerate(found.columns):
        np.testing.assert_array_equal(found.values[:, place], expected[column.name])


# -- by hand -------------------------------------------------------------------------------------------


def test_kinds_are_set_by_hand(tmp_path: Path) -> None:
    raw = text(
        tmp_path,
        {
            "size": ["small", "large", "medium", "small"],
            "grade": [3, 1, 2, 10],
            "code": [7, 8, 9, 7],
            "note": ["p", "q", "r", "s"],
            "a:b": [1.5, 2.5, 3.5, 4.5],
        },
    )
    settings = ("size:ordinal=small|medium|large", "grade:ordinal", "code:category", "note:drop", "a:b:positive")
    found = find_kinds(raw, settings)
    by_name = {column.name: column for column in found.columns}
    assert by_name["size"].categories == ("small", "medium", "large")
    assert by_name["grade"].categories == ("1", "2", "3", "10")
    assert by_name["code"].categories == ("7", "8", "9")
    assert by_name["a:b"].kind == "positive"
    assert found.dropped == {"note": "set by hand"}
    np.testing.assert_array_equal(found.values[:, 0], [0, 2, 1, 0])
    np.testing.assert_array_equal(found.values[:, 1], [2, 0, 1, 3])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["age"], "column: was 'age'; use name:kind"),
        ([":count"], "column: was ':count'; use name:kind"),
        (["age:counts"], "column: kind of 'age': unknown value 'counts'; did you mean 'count'?"),
        (["age:count", "age:real"], "column: 'age' is set twice"),
        (["age:count=1|2"], "only ordinal, category, binary and date take"),
        (["age:ordinal=a|a"], "give two or more different values"),
        (["age:binary=a|b|c"], "a binary column has two values"),
        (["age:date=ymd"], "use age:date=dmy or age:date=mdy"),
    ],
)
def test_wrong_settings_are_one_sentence(settings: list[str], sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        wishes(settings)
    assert sentence in str(caught.value)


def test_what_a_column_cannot_be_is_refused(tmp_path: Path) -> None:
    raw = text(
        tmp_path,
        {
            "word": ["u", "v", "w", "u"], "real": [1.5, -2.5, 3.5, 0.0], "whole": [1, 2, 3, 5], "same": [1, 1, 1, 1],
            "gone": ["", "NA", "", ""], "day": ["2020-01-01", "2020-01-02", "2020-01-05", ""],
        },
    )  # fmt: skip
    for setting, sentence in [
        ("age:count", "has no column 'age'; did you mean"),
        (
            "word:count",
            "column 'word' has 'u' in row 1 (rows are counted from 1, without the head), which is no number, and is",
        ),
        (
            "real:count",
            "column 'real' has 1.5 in row 1 (rows are counted from 1, without the head), which is no count",
        ),
        ("real:positive", "column 'real' has -2.5 in row 2"),
        ("word:ordinal", "give it, word:ordinal=u|v|w"),
        ("word:ordinal=u|v", "column 'word' has 'w' in row 3"),
        ("word:binary", "is set to binary and has 3 values (u, v, w)"),
        ("same:count", "column 'same' is set to count, and is constant (1)"),
        ("same:category", "column 'same' is set to category and has one value (1)"),
        ("gone:real", "column 'gone' is set to real, and every cell is missing"),
        ("word:date", "column 'word' holds no dates ('u' in row 1"),
        ("whole:date", "column 'whole' holds numbers ('1' in row 1"),
    ]:
        with pytest.raises((DataError, SpecError)) as caught:
            find_kinds(raw, [setting])
        assert sentence in str(caught.value), str(caught.value)
        assert "t.csv" in str(caught.value)


# -- what is left out ----------------------------------------------------------------------------------


def test_what_says_nothing_is_left_out_with_a_reason(tmp_path: Path) -> None:
    raw = text(
        tmp_path,
        {
            "row": range(40), "customer_id": [(7919 * i) % 1009 for i in range(40)], "constant": [3] * 40,
            "empty": ["NA"] * 40, "name": [f"n{i}x" for i in range(40)], "note": [f"t{i % 25}y" for i in range(40)],
            "x": numbers().standard_normal(40),
        },
    )  # fmt: skip
    found = find_kinds(raw)
    assert [column.name for column in found.columns] == ["x"]
    assert found.dropped == {
        "row": "an id: its whole numbers are all different",
        "customer_id": "an id: its whole numbers are all different",
        "constant": "constant (3)",
        "empty": "every cell is missing",
        "name": "an id: every row has a value of its own",
        "note": "free text: 25 different values in 40 rows",
    }
    # By hand they are what one says.
    assert kinds(raw, "customer_id:real", "note:category")["customer_id"] == "real"
    with pytest.raises(DataError, match=r"no column is left to model \('a': constant \(1\)\)"):
        find_kinds(table({"a": np.ones(5)}, True))


def test_a_few_words_among_numbers_are_refused(tmp_path: Path) -> None:
    raw = text(tmp_path, {"age": [1, 2, "abc", 4], "b": [1.5, 2.5, 3.5, 5.5]})
    with pytest.raises(DataError) as caught:
        find_kinds(raw)
    assert (
        "column 'age' has 'abc' in row 3 (rows are counted from 1, without the head), which is no number as the 3 "
        "other"
        in str(caught.value)
    )
    assert kinds(raw, "age:category")["age"] == "category"


def test_labels_are_no_column(tmp_path: Path) -> None:
    cells = {"a": numbers().standard_normal(9), "Class": [0, 1, 2] * 3}
    found = find_kinds(text(tmp_path, cells))
    assert [column.name for column in found.columns] == ["a"]
    np.testing.assert_array_equal(found.labels, [0, 1, 2] * 3)
    # Set by hand, or with missing cells, it is a column like any other.
    assert kinds(text(tmp_path, cells), "Class:category") == {"a": "real", "Class": "category"}
    cells["Class"][4] = ""
    assert kinds(text(tmp_path, cells)) == {"a": "real", "Class": "count"}


# -- dates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "days"),
    [
        (["2020-02-29", "1969-12-31", "2000-1-1"], ["2020-02-29", "1969-12-31", "2000-01-01"]),
        (["2020/02/29", "1969/12/31", "2000/01/01"], ["2020-02-29", "1969-12-31", "2000-01-01"]),
        (["29.02.2020", "31.12.1969", "1.1.2000"], ["2020-02-29", "1969-12-31", "2000-01-01"]),
        (["29/02/2020", "31/12/1969", "01/01/2000"], ["2020-02-29", "1969-12-31", "2000-01-01"]),
        (["02/29/2020", "12/31/1969", "01/02/2000"], ["2020-02-29", "1969-12-31", "2000-01-02"]),
        (["29-02-2020", "31-12-1969", "01-01-2000"], ["2020-02-29", "1969-12-31", "2000-01-01"]),
        (["29 Feb 2020", "31 December 1969", "1 jan 2000"], ["2020-02-29", "1969-12-31", "2000-01-01"]),
        (["Feb 29, 2020", "December 31 1969", "Jan. 1, 2000"], ["2020-02-29", "1969-12-31", "2000-01-01"]),
        (
            ["2020-02-29T06:30", "2020-02-29 06:30:15", "2020-02-29T06:30:15Z"],
            ["2020-02-29T06:30:00", "2020-02-29T06:30:15", "2020-02-29T06:30:15"],
        ),
        (
            ["2020-02-29T01:00+02:00", "2020-02-29T23:00-0200", "2020-02-29T00:00Z"],
            ["2020-02-28T23:00:00", "2020-03-01T01:00:00", "2020-02-29T00:00:00"],
        ),
    ],
)
@pytest.mark.parametrize("engine", ["plain", "arrow"])
def test_dates_of_the_common_formats(tmp_path: Path, engine: str, cells: list[str], days: list[str]) -> None:
    if engine == "arrow":
        pytest.importorskip("pyarrow")
    (tmp_path / "t.csv").write_text("when;x\n" + "".join(f"{cell};{i % 2}\n" for i, cell in enumerate(cells)))
    found = find_kinds(read_table(tmp_path / "t.csv", engine=engine), ["when:date"])
    assert found.columns[0].kind == "date"
    assert iso(found.values[:, 0]) == days


def test_days_are_counted_as_datetime_counts_them() -> None:
    g = numbers()
    stamps = [datetime.date.fromordinal(int(d)) for d in g.integers(1, 3_000_000, 500)]
    raw = _words("when", [stamp.isoformat() for stamp in stamps])
    found = find_kinds(raw)
    assert found.values[:, 0].tolist() == [float((s - datetime.date(1970, 1, 1)).days) for s in stamps]
    assert iso(found.values[:, 0]) == [stamp.isoformat() for stamp in stamps]


def _words(name: str, cells: list[str]) -> Raw:
    from varflow.data.cells import text_cells

    return Raw((text_cells(name, cells), text_cells("x", ["a", "b"] * (len(cells) // 2))), "x")


def test_dates_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    for cells, sentence in [
        (["03/04/2020", "05/06/2020", "07/08/2020"], "none tells whether the day or the month comes first"),
        (["2020-01-01", "02.01.2020", "2020-01-03"], "has dates of several formats ('2020-01-01' in row 1"),
        (["2020-01-01", "2020-02-30", "2020-01-03"], "has a date that there is not ('2020-02-30' in row 2"),
        (["2020-13-01", "2020-02-03", "2020-01-03"], "has a date that there is not ('2020-13-01' in row 1"),
    ]:
        with pytest.raises(DataError) as caught:
            find_kinds(text(tmp_path, {"when": cells, "x": [1.5, 2.5, 3.25]}))
        assert f"column 'when' {sentence}" in str(caught.value) or sentence in str(caught.value)
    raw = text(tmp_path, {"when": ["03/04/2020", "05/06/2020", "07/08/2020"], "x": [1.5, 2.5, 3.25]})
    for order, first in (("dmy", "2020-04-03"), ("mdy", "2020-03-04")):
        found = find_kinds(raw, [f"when:date={order}"])
        assert iso(found.values[:1, 0]) == [first]
        assert found.forms[0] == f"day {order}"
        # New rows are read in the same order.
        again = stored(raw, found.columns, found.forms)
        np.testing.assert_array_equal(again, found.values)


# -- new rows ------------------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path: Path) -> tuple[tuple[Column, ...], tuple[str, ...], dict[str, str]]:
    cells = {
        "id": range(30), "age": [20 + i % 7 for i in range(30)], "dose": numbers().standard_normal(30),
        "sex": ["m", "f", "f"] * 10, "ward": [1, 2, 3] * 10, "when": [f"2020-01-{i % 28 + 1:02d}" for i in range(30)],
    }  # fmt: skip
    found = find_kinds(text(tmp_path, cells), ["ward:category"])
    return found.columns, found.forms, dict(found.dropped)


def test_new_rows_are_read_by_the_names_of_their_columns(tmp_path: Path, training: tuple) -> None:
    columns, forms, dropped = training
    expected = [[25, 0.5, 1, 1, 18262], [21, np.nan, 0, np.nan, 18263]]
    same = {
        "when": ["2020-01-01", "2020-01-02"],
        "ward": ["2", ""],
        "sex": ["m", "f"],
        "dose": [0.5, "NA"],
        "age": [25, 21],
    }
    for extra in ({}, {"id": ["a", "b"]}, {"label": [0, 1]}):
        np.testing.assert_array_equal(stored(text(tmp_path, same | extra), columns, forms, dropped), expected)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "sex": pandas.Categorical(["m", "f"]), "when": pandas.to_datetime(["2020-01-01", "2020-01-02"]),
            "ward": [2.0, None], "age": [25, 21], "dose": [0.5, None],
        }
    )  # fmt: skip
    np.testing.assert_array_equal(stored(read_frame(frame), columns, forms, dropped), expected)
    # A column of which nothing is known is given with empty cells.
    gone = stored(read_frame(frame.assign(age=None)), columns, forms, dropped)
    assert np.isnan(gone[:, 0]).all()


def test_new_rows_that_do_not_fit_are_refused_by_name(tmp_path: Path, training: tuple) -> None:
    columns, forms, dropped = training
    good = {
        "age": [25, 21],
        "dose": [0.5, 1.5],
        "sex": ["m", "f"],
        "ward": [1, 2],
        "when": ["2020-01-01", "2020-01-02"],
    }
    for change, sentence in [
        (
            {"age": None},
            "column 'age' is missing; the model was fitted to age, dose, sex, ward, when. Add it, with empty",
        ),
        ({"new": [1, 2]}, "column 'new' was not there in training"),
        (
            {"sex": ["m", "x"]},
            "column 'sex' has 'x' in row 2 (rows are counted from 1, without the head), which is none of its",
        ),
        ({"ward": [1, 9]}, "column 'ward' has '9' in row 2"),
        (
            {"age": [1, "old"]},
            "column 'age' has 'old' in row 2 (rows are counted from 1, without the head), which is no number",
        ),
        ({"age": [1, -2]}, "column 'age' has -2 in row 2"),
        ({"age": [1, 2.5]}, "column 'age' has 2.5 in row 2"),
        ({"when": ["2020-01-01", "soon"]}, "column 'when' holds no dates ('soon' in row 2"),
        ({"when": [1.5, 2.5]}, "column 'when' holds numbers ('1.5' in row 1"),
    ]:
        cells = {name: column for name, column in (good | change).items() if column is not None}
        with pytest.raises(DataError) as caught:
            stored(text(tmp_path, cells), columns, forms, dropped)
        assert sentence in str(caught.value), str(caught.value)
        assert str(caught.value).startswith(str(tmp_path / "t.csv"))
        assert "\n" not in str(caught.value)


def test_a_table_of_numbers_names_the_column_that_is_none(tmp_path: Path) -> None:
    for cells, sentence in [
        (
            {"a": [1, ""], "b": [1, 2]},
            "column 'a' has missing cells (row 2; rows are counted from 1, without the head); likelihood=columns",
        ),
        (
            {"a": [1, 2], "b": ["u", "v"]},
            "column 'b' holds text ('u' in row 1; rows are counted from 1, without the head)",
        ),
        ({"a": [1, 2], "b": ["2020-01-01", "2020-01-02"]}, "column 'b' holds text ('2020-01-01' in row 1"),
        ({"a": [1, 2, "x"], "b": [1, 2, 3]}, "column 'a' has 'x' in row 3"),
    ]:
        with pytest.raises(DataError) as caught:
            numbers_alone(text(tmp_path, cells))
        assert sentence in str(caught.value), str(caught.value)


def test_what_was_found_is_a_line_for_each_column() -> None:
    columns = (
        Column("age", "count", loc=np.log1p(30.0), scale=0.5, missing=0.125),
        Column("city", "category", tuple(f"c{i}" for i in range(9))),
        Column("size", "ordinal", ("small", "large")),
        Column("pay", "positive", loc=np.log(2000.0), scale=np.log(2.0), step=0.01),
        Column("when", "date", loc=18262.3, scale=10, step=1),
        Column("x", "real", loc=1.5, scale=2, tail=1.5),
    )
    lines = table_lines(overview(columns, {"id": "an id: every row has a value of its own"}))
    assert lines == [
        "column  kind      what it holds                            missing",
        "age     count     about 30                                 12.5%",
        "city    category  c0, c1, c2, c3, c4, c5 and 3 more",
        "size    ordinal   small < large",
        "pay     positive  2000, times or over 2, in steps of 0.01",
        "when    date      2020-01-01 ± 10 days",
        "x       real      1.5 ± 2, heavy tails (ν = 1.5)",
        "id      left out  an id: every row has a value of its own",
    ]


@pytest.mark.parametrize("through", ["numbers", "text"])
def test_infinite_numbers_are_refused_where_they_are_used(through: str) -> None:
    cells = [1.5, float("inf"), 2.5, -1.0] if through == "numbers" else ["1.5", "inf", "2.5", "-1.0"]
    columns = {"h": cells, "a": [0.3, 1.4, -2.5, 1.1]}
    raw = read_frame(pytest.importorskip("pandas").DataFrame(columns))
    with pytest.raises(DataError, match=r"column 'h' has inf in row 2 .*leave the column out \(h:drop\)"):
        find_kinds(raw)
    with pytest.raises(DataError, match="column 'h' has inf in row 2"):
        numbers_alone(raw)
    found = find_kinds(raw, ("h:drop",))
    assert [column.name for column in found.columns] == ["a"]
    assert found.dropped == {"h": "set by hand"}
