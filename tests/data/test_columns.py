"""The protocol of tables: values to x and back, its log-determinant, missing cells, and what is stored of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import varflow.data as vd
from varflow.core.errors import DataError, SpecError
from varflow.data import new_rows
from varflow.data.columns import Columns
from varflow.data.protocols import restored
from varflow.data.writing import frame_of, write_table

ROWS = 500


@pytest.fixture(scope="module")
def cells() -> dict[str, list[object]]:
    """A column of each kind, tenths and cents and times among them, with missing cells."""
    g = np.random.default_rng(0)
    stamps = np.datetime64("2021-03-04T00:00:00") + g.integers(0, 10**7, ROWS)
    columns: dict[str, list[object]] = {
        "real": (5 + 3 * g.standard_normal(ROWS)).tolist(),
        "tenths": (g.integers(-80, 80, ROWS) / 10).tolist(),
        "heavy": (7 + 0.01 * g.standard_t(1.5, ROWS)).tolist(),
        "skewed": np.exp(2 + g.standard_normal(ROWS)).tolist(),
        "cents": (np.maximum(np.round(100 * np.exp(-0.5 + 0.4 * g.standard_normal(ROWS))), 1) / 100).tolist(),
        "count": g.poisson(4, ROWS).tolist(),
        "flag": g.integers(0, 2, ROWS).tolist(),
        "size": np.array(["S", "M", "L"])[g.integers(0, 3, ROWS)].tolist(),
        "city": np.array(["Bonn", "Oslo", "Rome"])[g.integers(0, 3, ROWS)].tolist(),
        "day": (np.datetime64("2020-01-01") + g.integers(0, 900, ROWS)).astype(str).tolist(),
        "stamp": np.datetime_as_string(stamps).tolist(),
    }
    for column in columns.values():
        for row in np.flatnonzero(g.random(ROWS) < 0.1):
            column[row] = None
    return columns


KINDS = {
    "real": "real", "tenths": "real", "heavy": "real", "skewed": "positive", "cents": "positive", "count": "count",
    "flag": "binary", "size": "ordinal", "city": "category", "day": "date", "stamp": "date",
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, cells: dict[str, list[object]]) -> Path:
    path = tmp_path_factory.mktemp("table") / "t.csv"
    rows = [",".join("" if c is None else str(c) for c in row) for row in zip(*cells.values(), strict=True)]
    path.write_text("\n".join([",".join(cells), *rows]))
    return path


@pytest.fixture(scope="module")
def data(path: Path) -> vd.Dataset:
    return vd.load(path, "columns", column=("size:ordinal=S|M|L",))


def kept(data: vd.Dataset) -> Columns:
    assert isinstance(data.preprocessing, Columns)
    return data.preprocessing


def test_each_column_is_of_its_kind(data: vd.Dataset) -> None:
    assert (data.support, data.protocol, data.event_shape, data.levels) == ("columns", "columns", (11,), None)
    assert {c.name: c.kind for c in data.column_kinds} == KINDS
    found = {c.name: c for c in data.column_kinds}
    steps = {"tenths": 0.1, "cents": 0.01, "day": 1.0, "stamp": 1 / 86400}
    assert {c.name: c.step for c in data.column_kinds if c.step} == steps
    assert 1 <= found["heavy"].tail <= 2
    assert abs(found["heavy"].loc - 7) < 0.005
    assert found["size"].categories == ("S", "M", "L")
    train = data.raw("train")
    for place, column in enumerate(data.column_kinds):
        v = train[:, place]
        there = v[~v.isnan()]
        assert column.missing == (len(v) - len(there)) / len(v)
        if column.kind in ("real", "date") and not column.tail:
            moments = there
        elif column.kind == "positive":
            moments = there.log()
        elif column.kind == "count":
            moments = there.log1p()
        else:
            continue
        assert column.loc == pytest.approx(float(moments.mean()), rel=1e-12)
        assert column.scale == pytest.approx(float(moments.std(correction=0)), rel=1e-12)


def test_what_is_stored_is_what_the_file_holds(data: vd.Dataset, cells: dict[str, list[object]]) -> None:
    for split in data.sizes:
        rows = data.origins(split, torch.arange(data.sizes[split]))
        raw = data.raw(split)
        for place, column in enumerate(data.column_kinds):
            for row, value in zip(rows, raw[:, place].tolist(), strict=True):
                cell = cells[column.name][row]
                if cell is None:
                    assert math.isnan(value)
                elif column.kind in ("ordinal", "category"):
                    assert column.categories[int(value)] == cell
                elif column.kind == "date":
                    seconds = np.datetime64(cell, "s").astype(int)
                    assert value == seconds / 86400
                else:
                    assert value == cell


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_gives_back_the_stored_values(data: vd.Dataset, dtype: torch.dtype) -> None:
    protocol, v = kept(data), data.raw("train")
    u = torch.rand(v.shape, generator=torch.Generator().manual_seed(0)).clamp(1e-3, 1 - 1e-3)
    x, _ = protocol.encode(v, protocol.draw(v, u), dtype)
    assert bool(x.isfinite().all())
    back = protocol.invert(x, protocol.observed(v))
    assert torch.equal(back.isnan(), v.isnan())
    exact = {"tenths", "cents", "count", "flag", "size", "city", "day"} | (
        {"stamp"} if dtype == torch.float64 else set()
    )
    for place, column in enumerate(data.column_kinds):
        there = ~v[:, place].isnan()
        found, expected = back[there, place], v[there, place]
        if column.name in exact:
            assert torch.equal(found, expected), column.name
        else:
            bound = 1e-12 if dtype == torch.float64 else 1e-5
            torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
    # Without noise too, and nothing rounded.
    x, _ = protocol.encode_point(v, torch.float64)
    there = protocol.observed(v)
    torch.testing.assert_close(protocol.decode_point(x)[there], v[there], rtol=1e-12, atol=1e-12)


def test_ladj_is_the_log_determinant_of_the_observed_cells(data: vd.Dataset) -> None:
    protocol, v = kept(data), data.raw("train")[:20]
    drawn = protocol.draw(v, torch.rand(v.shape, generator=torch.Generator().manual_seed(0)))
    _, ladj = protocol.encode(v, drawn, torch.float64)
    continuous = torch.tensor([column.continuous for column in data.column_kinds])
    for row in range(len(v)):
        jacobian = torch.autograd.functional.jacobian(
            lambda r, row=row: protocol.encode(r[None], drawn[row : row + 1], torch.float64)[0][0], v[row]
        )
        assert float((jacobian - torch.diag(jacobian.diagonal())).abs().max()) == 0
        chosen = continuous & ~v[row].isnan()
        torch.testing.assert_close(ladj[row], jacobian.diagonal()[chosen].log().sum(), rtol=1e-10, atol=1e-10)


def test_a_density_integrates_to_one_in_the_units_of_the_table(data: vd.Dataset) -> None:
    """∫ exp(log N(x(v)) + ladj(v)) dv = 1 for each continuous column, by the trapezoidal rule."""
    protocol = kept(data)
    for place, column in enumerate(data.column_kinds):
        if not column.continuous:
            continue
        t = torch.linspace(-9, 9, 4001, dtype=torch.float64) * column.scale + column.loc
        v = t.exp() if column.kind == "positive" else t
        rows = torch.full((len(v), len(data.column_kinds)), torch.nan, dtype=torch.float64)
        rows[:, place] = v
        x, ladj = protocol.encode_point(rows, torch.float64)
        density = (-0.5 * x[:, place] ** 2 - 0.5 * math.log(2 * math.pi) + ladj).exp()
        assert float(torch.trapezoid(density, v)) == pytest.approx(1, abs=1e-5), column.name


def test_noise_of_a_rounded_column_is_one_step_wide(data: vd.Dataset) -> None:
    protocol = kept(data)
    v = data.raw("train")[:1].nan_to_num(1.0).repeat(1000, 1)
    u = torch.linspace(0, 1 - 2**-24, 1000)[:, None].repeat(1, v.shape[1])
    x, _ = protocol.encode(v, protocol.draw(v, u), torch.float64)
    point = protocol.decode_point(x) - v
    for place, column in enumerate(data.column_kinds):
        wide = float(point[:, place].max() - point[:, place].min())
        assert wide == pytest.approx(column.step, rel=1e-5, abs=1e-8), column.name


def test_batches_say_which_cells_are_there(data: vd.Dataset) -> None:
    for split in data.sizes:
        index = torch.arange(20)
        x, ladj, mask, context = data.batch(split, index)
        assert torch.equal(mask, ~data.raw(split)[index].isnan())
        assert bool((x[~mask] == 0).all())
        assert (x.dtype, ladj.shape, context) == (torch.float32, (20,), None)
    double = data.to("cpu", torch.float64).batch("test", torch.arange(20))
    torch.testing.assert_close(double.x.float(), data.batch("test", torch.arange(20)).x)
    whole = vd.from_tensor(torch.randn(60, 3, dtype=torch.float64), None, "columns")
    assert whole.batch("train", torch.arange(5)).mask is None
    plain = vd.from_tensor(torch.randn(60, 3)).batch("train", torch.arange(5))
    assert (plain.mask, plain.context) == (None, None)


def test_the_mean_is_of_the_cells_that_are_there(data: vd.Dataset) -> None:
    x, _ = kept(data).encode(data.raw("train"), None, torch.float64)
    there = kept(data).observed(data.raw("train"))
    torch.testing.assert_close(data.mean(), ((x * there).sum(0) / there.sum(0)).float())


def test_what_was_learned_is_restored(data: vd.Dataset) -> None:
    held = json.loads(json.dumps(kept(data).learned()))
    again = restored("columns", None, held)
    assert isinstance(again, Columns)
    assert (again.columns, again.forms, again.dropped) == (kept(data).columns, kept(data).forms, kept(data).dropped)
    assert again.flaw((11,)) is None
    v = data.raw("test")
    for one, other in zip(
        again.encode(v, None, torch.float64), kept(data).encode(v, None, torch.float64), strict=True
    ):
        assert torch.equal(one, other)
    for damage in (
        {},
        {"columns": []},
        {"columns": [{"name": "a"}], "forms": [], "dropped": {}},
        {**held, "forms": [1]},
    ):
        with pytest.raises(DataError, match=r"preprocessing: 'columns' cannot be read|columns: cannot be read"):
            restored("columns", None, damage)
    for change, flaw in [
        ({"scale": 0.0}, "scale 0"),
        ({"loc": math.inf}, "an infinity"),
        ({"missing": 2.0}, "has scale"),
    ]:
        wrong = {**held, "columns": [{**held["columns"][0], **change}, *held["columns"][1:]]}
        assert flaw in str(restored("columns", None, wrong).flaw((11,)))
    assert "the data have [3]" in str(again.flaw((3,)))
    assert "not one of each" in str(restored("columns", None, {**held, "forms": ["odd"] * 11}).flaw((11,)))


def test_kinds_that_were_learned_read_the_data_again(path: Path, data: vd.Dataset) -> None:
    again = vd.load(path, "columns", kept=data.preprocessing)
    assert again.column_kinds == data.column_kinds
    for split in data.sizes:
        assert torch.equal(again.raw(split).nan_to_num(-9), data.raw(split).nan_to_num(-9))


def test_description_and_facts_are_plain_values(data: vd.Dataset) -> None:
    facts = json.loads(json.dumps(data.describe()))
    assert facts["kinds"] == KINDS
    assert facts["columns"] == list(KINDS)
    assert facts["rounded_columns"]["tenths"] == 0.1
    assert list(facts["heavy_tailed_columns"]) == ["heavy"]
    assert facts["dropped_columns"] == {}
    assert set(facts["missing_cells"]) == set(KINDS)


# -- from arrays and frames ----------------------------------------------------------------------------


def test_arrays_with_missing_cells_are_tables() -> None:
    x = torch.randn(60, 3, dtype=torch.float64)
    x[3, 1] = torch.nan
    data = vd.from_tensor(x, None, "columns", columns=("a", "b", "c"), column=("a:real",))
    assert [c.name for c in data.column_kinds] == ["a", "b", "c"]
    assert [c.name for c in vd.from_tensor(x.numpy(), None, "columns").column_kinds] == ["x0", "x1", "x2"]
    with pytest.raises(
        DataError, match=r"nan in row 3, .*impute such rows, or use likelihood=columns \(recipe table\)"
    ):
        vd.from_tensor(x)
    with pytest.raises(SpecError, match=r"column: was a:real; kinds of columns are for likelihood=columns"):
        vd.from_tensor(torch.randn(9, 3), None, "none", column=("a:real",))


def test_a_kind_that_nothing_reads_is_refused_before_the_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("day,dose\nmonday,1\nfriday,2\n")
    with pytest.raises(SpecError, match=r"column: was day:drop; .* protocol standardize, which reads a table"):
        vd.load(tmp_path / "t.csv", "standardize", column=("day:drop",))
    with pytest.raises(DataError, match=r"column 'day' holds text \('monday' in row 1;.* or leave the column out"):
        vd.load(tmp_path / "t.csv", "standardize")


def test_splits_share_the_kinds_of_the_training_rows() -> None:
    pandas = pytest.importorskip("pandas")
    g = np.random.default_rng(0)

    def rows(count: int, cities: list[str]) -> object:
        return pandas.DataFrame(
            {"x": g.standard_normal(count), "city": [cities[i % len(cities)] for i in range(count)]}
        )

    data = vd.from_tensor({"train": rows(30, ["a", "b", "c"]), "test": rows(9, ["c"])}, None, "columns")
    assert data.sizes == {"train": 27, "validation": 3, "test": 9}
    assert data.raw("test")[:, 1].tolist() == [2] * 9
    with pytest.raises(DataError, match=r"column 'city' has 'z' in row 1 .*none of its values: a, b, c"):
        vd.from_tensor({"train": rows(30, ["a", "b", "c"]), "test": rows(9, ["z"])}, None, "columns")
    given = vd.from_tensor(
        {"train": rows(30, ["a", "b", "c"]), "test": rows(9, ["z"])},
        None,
        "columns",
        column=("city:category=a|b|c|z",),
    )
    assert given.raw("test")[:, 1].tolist() == [3] * 9


def test_what_the_training_rows_do_not_tell_is_refused() -> None:
    x = np.random.default_rng(0).standard_normal((30, 2))
    last = vd.from_tensor(x).origins("test", torch.arange(3))
    lost = x.copy()
    lost[[row for row in range(30) if row not in last], 1] = np.nan
    with pytest.raises(DataError, match=r"column 'x1' has no cell in the training rows; drop it \(x1:drop\)"):
        vd.from_tensor(lost, None, "columns", column=("x1:real",))
    same = x.copy()
    same[[row for row in range(30) if row not in last], 1] = 0.5
    with pytest.raises(DataError, match=r"column 'x1' has one value in the training rows \(0.5\)"):
        vd.from_tensor(same, None, "columns", column=("x1:real",))
    many = np.where(np.arange(100) % 2, 0.0, np.random.default_rng(0).standard_normal(100))
    with pytest.raises(DataError, match=r"'x0' has the value 0 in .* % of the training rows and is on no grid"):
        vd.from_tensor(np.stack([many, np.arange(100) % 7], 1), None, "columns")
    low = np.random.default_rng(0).integers(1, 40, 200) - 0.75
    with pytest.raises(
        DataError, match=r"'x0' is set to positive, and its smallest value 0.25 is within half a step"
    ):
        vd.from_tensor(np.stack([low, np.arange(200) % 7], 1), None, "columns", column=("x0:positive",))


# -- written out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_that_is_written_is_the_table_that_was_read(tmp_path: Path, data: vd.Dataset, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"again{suffix}"
    for split in ("train", "test"):
        write_table(out, kept(data).table(data.raw(split)))
        again = new_rows.rows_of(str(out), kept=data.preprocessing)
        assert again.columns == tuple(KINDS)
        np.testing.assert_array_equal(again.values, data.raw(split).numpy())


def test_cells_are_written_as_they_were(tmp_path: Path, data: vd.Dataset, cells: dict[str, list[object]]) -> None:
    write_table(tmp_path / "t.csv", kept(data).table(data.raw("test")))
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == ",".join(cells)
    rows = data.origins("test", torch.arange(data.sizes["test"]))
    for line, row in zip(lines[1:], rows, strict=True):
        assert line.split(",") == ["" if column[row] is None else str(column[row]) for column in cells.values()]


def test_frames_have_the_types_of_the_table(data: vd.Dataset) -> None:
    pandas, polars, pyarrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    raw = data.raw("train")
    full = raw[~raw.isnan().any(1)]
    wanted = dict.fromkeys(("real", "tenths", "heavy", "skewed", "cents"), "f") | dict.fromkeys(
        ("count", "flag"), "i"
    )
    for library in ("pandas", "polars", "pyarrow"):
        for values in (full, raw):
            frame = frame_of(library, kept(data).table(values))
            assert list(getattr(frame, "columns", None) if library != "pyarrow" else frame.column_names) == list(
                KINDS
            )
            again = new_rows.table_rows(frame, kept(data))
            np.testing.assert_array_equal(again, values.numpy())
    frame = frame_of("pandas", kept(data).table(full))
    assert {name: frame[name].dtype.kind for name in wanted} == wanted
    assert all(pandas.api.types.is_datetime64_any_dtype(frame[name]) for name in ("day", "stamp"))
    assert set(frame["city"]) == {"Bonn", "Oslo", "Rome"}
    assert frame_of("pandas", kept(data).table(raw))["count"].dtype == "Int64"
    found = frame_of("polars", kept(data).table(raw))
    assert (found["day"].dtype, found["count"].dtype, found["city"].dtype) == (
        polars.Date,
        polars.Int64,
        polars.String,
    )
    table = frame_of("pyarrow", kept(data).table(raw))
    assert table.schema.field("day").type == pyarrow.date32()
    assert table["city"].null_count == int(raw[:, list(KINDS).index("city")].isnan().sum())


def test_draws_are_of_the_table(data: vd.Dataset) -> None:
    """Whatever x is drawn, counts are whole and not below 0, codes are codes, cents are cents above 0."""
    x = 5 * torch.randn(400, len(KINDS), generator=torch.Generator().manual_seed(0))
    v = kept(data).stored_values(x)
    assert v.dtype == torch.float64
    from varflow.data.kinds import check_values

    for place, column in enumerate(data.column_kinds):
        check_values(v[:, place].numpy(), column, "x")
        if column.step and column.kind != "date":
            places = (v[:, place] - column.origin) / column.step
            torch.testing.assert_close(places, places.round(), rtol=1e-9, atol=1e-5)
