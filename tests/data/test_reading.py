"""Files and frames as people have them: every dialect gives the same cells, and what cannot be decided is refused."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
from pathlib import Path

import numpy as np
import pytest

from varflow.core.errors import DataError
from varflow.data import reading
from varflow.data.frames import read_frame
from varflow.data.reading import read_table

ENGINES = ("plain", "arrow")


def read(path: Path, engine: str = "plain", decimal: str = "auto") -> dict[str, object]:
    """Column → its cells as plain values: floats, days, or text; None where missing."""
    if engine == "arrow":
        pytest.importorskip("pyarrow")
    raw = read_table(path, decimal, engine)
    return {column.name: plain(column) for column in raw.columns}


def plain(column: reading.Cells) -> list[object]:
    if column.values is not None:
        return [None if np.isnan(v) else float(v) for v in column.values]
    words = column.words.plain()
    return [None if code < 0 else words[code] for code in column.codes]


def written(folder: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("t.csv", "age,city\n1.5,Bonn\n,Köln\n3,\n", "utf-8"),
        ("t.csv", "age;city\n1,5;Bonn\n;Köln\n3;\n", "utf-8"),
        ("t.csv", "age;city\n1.5;Bonn\n;Köln\n3;\n", "latin-1"),
        ("t.csv", "age|city\n1.5|Bonn\nNA|Köln\n3|null\n", "utf-16"),
        ("t.csv", "age\tcity\r\n1.5\tBonn\r\nn/a\tKöln\r\n3.0\tNone\r\n", "utf-8-sig"),
        ("t.tsv", "age\tcity\n1.5\tBonn\nNaN\tKöln\n3\t?\n", "utf-16-le"),
        ("t.csv", "age,city\r1.5,Bonn\r-,Köln\r3,NULL\r", "utf-8"),
        ("t.csv", '"age","city"\n"1.5","Bonn"\n"","Köln"\n"3",""\n', "utf-8"),
        ("t.csv", 'age,city\n"1,5",Bonn\n,Köln\n3,\n', "cp1252"),
        ("t.csv", "'age','city'\n'1.5','Bonn'\n'','Köln'\n'3',''\n", "utf-8"),
        ("t.csv", "sep=;\nage;city\n1,5;Bonn\n;Köln\n3;\n", "utf-8-sig"),
        ("t.csv", " age , city \n 1.5 , Bonn \n , Köln \n 3 ,\n\n", "utf-8"),
        ("t.csv", 'age, "city"\n1.5, "Bonn"\n, "Köln"\n3, ""\n', "utf-8"),
        ("t.csv", "age,city,\n1.5,Bonn,\n,Köln,\n3,,\n", "utf-8"),
        ("t.txt", "\nage,city\n+1.5e0,Bonn\n,Köln\n3.,\n", "utf-8"),
    ],
)
def test_one_table_in_many_dialects(tmp_path: Path, engine: str, name: str, text: str, encoding: str) -> None:
    found = read(written(tmp_path, text, name, encoding), engine)
    assert {head: found[head] for head in ("age", "city")} == {
        "age": [1.5, None, 3.0],
        "city": ["Bonn", "Köln", None],
    }
    assert set(found) - {"age", "city"} <= {"column 3"}


@pytest.mark.parametrize("engine", ENGINES)
def test_quotes_hold_delimiters_breaks_and_quotes(tmp_path: Path, engine: str) -> None:
    text = 'note,n\n"a, b",1\n"two\nlines",2\n"say ""hi""",3\n'
    assert read(written(tmp_path, text), engine) == {"note": ["a, b", "two\nlines", 'say "hi"'], "n": [1.0, 2.0, 3.0]}
    text = 'note;n\n"say \\"hi\\" now";1\n"b";2\n'
    assert read(written(tmp_path, text), engine)["note"] == ['say "hi" now', "b"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Groups that can be nothing else.
        ('a\n"1,234,567"\n"12,345"\n', [1234567, 12345]),
        ("a;b\n1.234.567;x\n12.345;y\n", [1234567, 12345]),
        ("a;b\n1.234,5;x\n12.345;y\n", [1234.5, 12345]),
        ('a,b\n"1,234.5",x\n"12,345",y\n', [1234.5, 12345]),
        ("a;b\n1 234,5;x\n12 345;y\n", [1234.5, 12345]),
        ("a;b\n1'234.5;x\n12'345;y\n", [1234.5, 12345]),
        ("a;b\n1\u202f234;x\n12\u00a0345,5;y\n", [1234, 12345.5]),
        # A decimal mark that can be nothing else.
        ("a;b\n1,5;x\n1,234;y\n", [1.5, 1.234]),
        ("a;b\n0,123;x\n1,234;y\n", [0.123, 1.234]),
        ("a;b\n1.25;x\n1.234;y\n", [1.25, 1.234]),
        ("a;b\n1234,5;x\n1,234;y\n", [1234.5, 1.234]),
        # The other columns decide.
        ("a;b\n1,234;0,5\n2,345;0,25\n", [1.234, 2.345]),
        ("a;b\n1,234;0.5\n2,345;0.25\n", [1234, 2345]),
        ("a;b\n1.234;0,5\n2.345;0,25\n", [1234, 2345]),
        # What stands beside it in the column decides.
        ('a,b\n"1,234",x\n567,y\n89,z\n', [1234, 567, 89]),
        ("a;b\n1.234;x\n567;y\n89;z\n", [1234, 567, 89]),
        ("a;b\n1,234;x\n5678;y\n", [1.234, 5678]),
        # In a file without semicolons a point stands before decimals.
        ("a,b\n1.234,x\n2.345,y\n", [1.234, 2.345]),
        ("a\tb\n1.234\tx\n2.345\ty\n", [1.234, 2.345]),
        # Signs and exponents.
        ("a,b\n-1.5e-3,x\n+2E4,y\n.5,z\n-7,w\n", [-0.0015, 20000, 0.5, -7]),
    ],
)
def test_decimals_and_thousands(tmp_path: Path, engine: str, text: str, expected: list[float]) -> None:
    assert read(written(tmp_path, text), engine)["a"] == expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("text", "mark", "both"),
    [
        ("a;b\n1,234;x\n2,345;y\n", "comma", {",": [1.234, 2.345], ".": [1234, 2345]}),
        ("a;b\n1.234;x\n2.345;y\n", "point", {".": [1.234, 2.345], ",": [1234, 2345]}),
        ('a,b\n"1,234",x\n"2,345",y\n', "comma", {",": [1.234, 2.345], ".": [1234, 2345]}),
    ],
)
def test_what_nothing_decides_is_refused(
    tmp_path: Path, engine: str, text: str, mark: str, both: dict[str, list[float]]
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(
        DataError, match=rf"t\.csv: column 'a' has 1.234 in row 1 .*the {mark} can stand before decimals or"
    ):
        read(path, engine)
    for decimal, values in both.items():
        assert read(path, engine, decimal)["a"] == values


@pytest.mark.parametrize("engine", ENGINES)
def test_codes_with_zeros_ahead_are_text(tmp_path: Path, engine: str) -> None:
    found = read(written(tmp_path, "zip,n\n01234,0\n99999,10\n"), engine)
    assert found == {"zip": ["01234", "99999"], "n": [0.0, 10.0]}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1,2\n3,4\n", ["x0", "x1"]),
        ("a,b\n3,4\n", ["a", "b"]),
        ("5.1,setosa\n4.9,virginica\n", ["x0", "x1"]),
        (",b\n0,4\n1,5\n", ["column 1", "b"]),
        ("# a,b\n0,4\n1,5\n", ["a", "b"]),
        ("2020-01-01,x\n2020-01-02,y\n", ["x0", "x1"]),
        ("?,x\n1,y\n", ["x0", "x1"]),
        ("name,city\nAnn,Bonn\n", ["name", "city"]),
        ("1.0 2.0\n3.0 4.0\n", ["x0", "x1"]),
        ("na,k,cl\n1.5,2.5,3.5\n4.5,5.5,6.5\n", ["na", "k", "cl"]),
        ("country,1990,1991\nFrance,5.1,5.25\nSpain,6.5,6.2\n", ["country", "1990", "1991"]),
        ("0,1\n0.25,1.5\n0.75,2.0\n", ["0", "1"]),
        (",0,1\n0,0.25,1.5\n1,0.75,2.0\n", ["column 1", "0", "1"]),
        ("0,1\n2,3\n4,5\n", ["x0", "x1"]),
        ("1,2\n2.5,3.5\n4.5,5.5\n", ["x0", "x1"]),
        ("# a b\n1.0 2.0\n3.0 4.0\n", ["a", "b"]),
    ],
)
def test_heads(tmp_path: Path, text: str, names: list[str]) -> None:
    for engine in ENGINES:
        assert list(read(written(tmp_path, text), engine)) == names


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "is empty"),
        (b"a,b\n", "has a head but no rows"),
        (b"a,b\n1,2\n3\n4,5\n", r"row 2 has 1 cell, should have 2 \(rows are counted from 1, without the head\)"),
        (b"a,b\n1,2\n3,4,5\n6,7\n", "row 2 has 3 cells, should have 2"),
        (b"a,b,c\n1,2\n3,4\n", "3 heads over 2 columns"),
        (b"a,a\n1,2\n", "has 2 columns 'a'; give each a name of its own"),
        (b"\xff\xfe\x80", "not a text file"),
        (b"a\0\0\0b\0c\1\2\3", "not a text file"),
        (b'a,b\n1,"2\n3,4\n', 'a " is opened and not closed'),
    ],
)
def test_damaged_files(tmp_path: Path, engine: str, raw: bytes, sentence: str) -> None:
    (tmp_path / "t.csv").write_bytes(raw)
    with pytest.raises(DataError, match=sentence) as caught:
        read(tmp_path / "t.csv", engine)
    assert str(caught.value).startswith(f"{tmp_path / 't.csv'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_column_of_a_file_has_its_say(tmp_path: Path, engine: str) -> None:
    """Numbers that are read in one go say that points stand before decimals, as others do."""
    path = written(tmp_path, "a;b\n1,234;0.12345\n2,345;1.54321\n")
    assert read(path, engine)["a"] == [1234, 2345]


@pytest.mark.parametrize("engine", ENGINES)
def test_long_columns_are_read_by_the_same_rules(tmp_path: Path, engine: str) -> None:
    g = np.random.default_rng(0)
    cells = {
        "real": [f"{v:.9f}" for v in g.standard_normal(1500)],
        "gaps": ["" if i % 7 == 0 else f"{v:.9f}" for i, v in enumerate(g.standard_normal(1500))],
        "na": ["NA" if i % 7 == 0 else f"{v:.2f}" for i, v in enumerate(g.standard_normal(1500))],
        "code": [f"{i % 30:03d}" for i in range(1500)],
        "score": [f"1_{i % 30}" for i in range(1500)],
        "group": [f"{i % 900 + 1}.{i % 999:03d}" for i in range(1500)],
        "whole": [str(i % 50) for i in range(1500)],
    }
    rows = [";".join(row) for row in zip(*cells.values(), strict=True)]
    found = read(written(tmp_path, "\n".join([";".join(cells), *rows])), engine)
    assert found["real"] == [float(cell) for cell in cells["real"]]
    assert found["gaps"] == [float(cell) if cell else None for cell in cells["gaps"]]
    assert found["na"] == [float(cell) if cell != "NA" else None for cell in cells["na"]]
    assert found["code"] == cells["code"]
    assert found["score"] == cells["score"]
    assert found["group"] == [float(cell) for cell in cells["group"]]
    assert found["whole"] == [float(cell) for cell in cells["whole"]]


def test_long_rows_and_old_ends_of_lines_are_cut_alike(tmp_path: Path) -> None:
    """A sample of the file ends within a row."""
    for end in ("\n", "\r\n", "\r"):
        rows = end.join(f"{i}.5;{'x, y ' * 500}{i % 3}" for i in range(150))
        found = read(written(tmp_path, f"a;b{end}{rows}{end}"))
        assert list(found) == ["a", "b"]
        assert found["a"] == [i + 0.5 for i in range(150)]


def test_gzip_is_read(tmp_path: Path) -> None:
    for name in ("t.csv", "t.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"a,b\n1,x\n2,y\n"))
        assert read(tmp_path / name) == {"a": [1.0, 2.0], "b": ["x", "y"]}
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"a,b\tc\n1,5\t2\n2,5\t3\n"))
    assert read(tmp_path / "t.tsv.gz") == {"a,b": [1.5, 2.5], "c": [2.0, 3.0]}


# -- what is written is read back ----------------------------------------------------------------------

_WORDS = ("red", "blue", "a, b", "semi;colon", "tab\there", "bar|", 'quo"te', "two\nlines", "Zürich", "x y", "it's")


def random_table(seed: int) -> dict[str, list[object]]:
    """Columns of every sort, with missing cells."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(2, 40))

    def holes(cells: list[object]) -> list[object]:
        gone = rng.random(rows) < rng.choice([0, 0.3])
        gone[int(rng.integers(rows))] = False
        return [None if missing else cell for cell, missing in zip(cells, gone, strict=True)]

    columns: dict[str, list[object]] = {}
    for number in range(int(rng.integers(1, 6))):
        sort = rng.choice(["real", "whole", "word", "day"])
        if sort == "real":
            # Of full precision: no mark of decimals is one of thousands.
            cells: list[object] = (rng.standard_normal(rows) * 10.0 ** rng.integers(-3, 6)).tolist()
        elif sort == "whole":
            cells = [float(v) for v in rng.integers(-50, 10 ** int(rng.integers(1, 8)), rows)]
        elif sort == "day":
            cells = [datetime.date(2000, 1, 1) + datetime.timedelta(int(d)) for d in rng.integers(0, 9000, rows)]
        else:
            cells = [_WORDS[i] for i in rng.integers(0, len(_WORDS), rows)]
        columns[f"{sort} {number}"] = holes(cells)
    return columns


def as_read(cells: list[object]) -> list[object]:
    """Cells as a text file has them: dates are text until their column is known to be one of dates."""
    return [cell.isoformat() if isinstance(cell, datetime.date) else cell for cell in cells]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(30))
def test_random_tables_in_random_dialects_by_csv(tmp_path: Path, engine: str, seed: int) -> None:
    columns, rng = random_table(seed), np.random.default_rng(1000 + seed)
    delimiter = rng.choice([",", ";", "\t", "|"])
    decimal = "," if delimiter != "," and rng.random() < 0.5 else "."
    quoting = csv.QUOTE_ALL if rng.random() < 0.3 else csv.QUOTE_MINIMAL
    missing = rng.choice(["", "NA", "NaN", "null", "?", "N/A"])
    text = io.StringIO()
    writer = csv.writer(
        text, delimiter=str(delimiter), quoting=quoting, lineterminator=str(rng.choice(["\n", "\r\n"]))
    )
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        cells = [missing if c is None else repr(c).replace(".", decimal) if isinstance(c, float) else c for c in row]
        # A row of one empty cell would be a blank line.
        writer.writerow(["NA"] if cells == [""] else cells)
    encoding = str(rng.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    path = written(tmp_path, text.getvalue(), "t.csv", encoding)
    found = read(path, engine)
    assert list(found) == list(columns)
    for name, cells in columns.items():
        assert found[name] == as_read(cells), name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(8))
def test_random_tables_by_other_writers(tmp_path: Path, engine: str, seed: int) -> None:
    pandas, polars, pyarrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    from pyarrow import csv as arrow_csv
    from pyarrow import feather, parquet

    columns = random_table(seed)
    frame, table = pandas.DataFrame(columns), pyarrow.table(columns)
    alone = len(columns) == 1
    frame.to_csv(tmp_path / "pandas.csv", index=False, sep=";", decimal=",", na_rep="NA")
    polars.DataFrame(columns).write_csv(tmp_path / "polars.csv", separator="\t", null_value="NA" if alone else "")
    arrow_csv.write_csv(table, tmp_path / "arrow.csv")
    parquet.write_table(table, tmp_path / "t.parquet")
    feather.write_feather(table, tmp_path / "t.feather")
    texts = ["pandas.csv", "polars.csv"] + ([] if alone else ["arrow.csv"])
    for name in texts:
        found = read(tmp_path / name, engine)
        assert found == {head: as_read(cells) for head, cells in columns.items()}, name
    for raw in (read_table(tmp_path / "t.parquet"), read_table(tmp_path / "t.feather"), read_frame(table)):
        for column in raw.columns:
            expected = columns[column.name]
            if column.name.startswith("day"):
                epoch = datetime.date(1970, 1, 1)
                expected = [None if day is None else float((day - epoch).days) for day in expected]
            assert plain(column) == expected
    for made in (frame, polars.DataFrame(columns)):
        for column in read_frame(made).columns:
            assert [cell is None for cell in plain(column)] == [cell is None for cell in columns[column.name]]
            if not column.name.startswith("day"):
                assert plain(column) == columns[column.name]


def test_both_engines_agree_on_what_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b,c\n1,1.0,1.25\n2,2.0,2.5\n")
    for engine in ENGINES:
        if engine == "arrow":
            pytest.importorskip("pyarrow")
        assert [column.whole for column in read_table(path, engine=engine).columns] == [True, True, False]


# -- frames --------------------------------------------------------------------------------------------


def test_frames_of_every_library_hold_the_same(tmp_path: Path) -> None:
    pandas, polars, pyarrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    day = datetime.date(2020, 2, 29)
    stamp = datetime.datetime(2020, 2, 29, 6)
    columns = {
        "real": [1.5, None, -2.0],
        "whole": [1, 2, None],
        "flag": [True, None, False],
        "word": ["a", None, "?"],
        "digits": ["1", "2.5", None],
        "day": [day, None, day],
        "stamp": [stamp, stamp, None],
    }
    epoch = (day - datetime.date(1970, 1, 1)).days
    expected = {
        "real": [1.5, None, -2.0],
        "whole": [1.0, 2.0, None],
        "flag": [1.0, None, 0.0],
        "word": ["a", None, None],
        "digits": [1.0, 2.5, None],
        "day": [float(epoch), None, float(epoch)],
        "stamp": [epoch + 0.25, epoch + 0.25, None],
    }
    table = pyarrow.table(columns)
    frames = [
        table,
        polars.DataFrame(columns),
        pandas.DataFrame(columns),
        table.to_pandas(types_mapper=pandas.ArrowDtype),
    ]
    frames.append(polars.DataFrame(columns).with_columns(polars.col("word").cast(polars.Categorical)))
    frames.append(pandas.DataFrame(columns).convert_dtypes())
    for frame in frames:
        found = {column.name: plain(column) for column in read_frame(frame).columns}
        if "polars" in str(type(frame)) and frame["word"].dtype == polars.Categorical:
            # A category is what its type says, a question mark too.
            assert found.pop("word") == ["a", None, "?"]
            found["word"] = expected["word"]
        assert found == expected, type(frame)


def test_an_ordered_categorical_has_an_order() -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    sizes = pandas.Categorical(["small", "large", None], ["small", "medium", "large"], ordered=True)
    for frame in (pandas.DataFrame({"size": sizes}), pyarrow.table({"size": pyarrow.array(sizes)})):
        (column,) = read_frame(frame).columns
        assert column.ordered
        assert column.words.plain() == ["small", "medium", "large"]
        assert plain(column) == ["small", "large", None]
    loose = pandas.DataFrame({"size": pandas.Categorical(["b", "a"], ["b", "c", "a"])})
    (column,) = read_frame(loose).columns
    assert (column.ordered, column.words.plain()) == (False, ["b", "a"])


def test_an_enum_and_data_sets_of_hugging_face_are_tables() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"e": polars.Series(["x", "z", None], dtype=polars.Enum(["z", "y", "x"]))})
    (column,) = read_frame(frame).columns
    assert (plain(column), column.words.plain(), column.ordered) == (["x", "z", None], ["z", "x"], False)
    datasets = pytest.importorskip("datasets")
    cells = {"a": [1.5, None, 2.5], "s": ["u", "v", None], "y": [0, 1, 0]}
    label = datasets.ClassLabel(names=["n", "p"])
    features = {"a": datasets.Value("float64"), "s": datasets.Value("string"), "y": label}
    raw = read_frame(datasets.Dataset.from_dict(cells, features=datasets.Features(features)))
    assert {column.name: plain(column) for column in raw.columns} == {"a": cells["a"], "s": cells["s"]}
    assert (raw.labels.tolist(), raw.classes) == ([0, 1, 0], ("n", "p"))


def test_what_no_cell_can_be_is_refused() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for frame, sentence in [
        (pandas.DataFrame({"a": ["x", 1, 2.5]}), "x: column 'a' holds float and int and str; should be"),
        (pandas.DataFrame({"a": [1j, 2j]}), "x: column 'a' holds complex128"),
        (pandas.DataFrame({"a": [2**60, 1]}), "x: column 'a' holds whole numbers above 2⁵³"),
        (polars.DataFrame({"a": [[1], [2]]}), "x: column 'a' holds List"),
        (polars.LazyFrame({"a": [1.0]}), "x: was a LazyFrame"),
        (pandas.DataFrame([[1.0, 2.0]], columns=["a", "a"]), "x: has 2 columns 'a'"),
        (pandas.DataFrame({"a": []}), "x: has no rows"),
        (pandas.DataFrame(index=range(3)), "x: has no columns"),
    ]:
        with pytest.raises(DataError) as caught:
            read_frame(frame)
        assert str(caught.value).startswith(sentence), str(caught.value)
