"""Runs on tables whose columns are each of a kind: new rows in any order and library, and what comes out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import varflow as vf
from varflow.cli.common import rows_for, write_examples
from varflow.core import random
from varflow.core.columns import Column
from varflow.core.errors import DataError, RunError, SpecError
from varflow.likelihoods import Likelihood

ROWS = 120
KINDS = {"age": "count", "dose": "real", "pay": "positive", "sex": "binary", "city": "category", "when": "date"}


class Gaussian(Likelihood):
    """A stand-in that takes every column as a number; the likelihood of tables is tested in its own place."""

    reads = ("mask",)

    def __init__(self) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.decoder, self.event_shape, self.support = nn.Linear(2, len(KINDS)), (len(KINDS),), ("columns",)

    def distribution(self, z: Tensor) -> Any:
        raise NotImplementedError

    def log_prob(self, x: Tensor, z: Tensor, mask: Tensor | None = None) -> Tensor:
        each = -0.5 * ((x - self.decoder(z)).square() + math.log(2 * math.pi))
        return (each if mask is None else each * mask).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def sample(self, z: Tensor) -> Tensor:
        mean = self.decoder(z)
        return mean + 3 * random.normal(mean.shape, "x", dtype=mean.dtype, device=mean.device)


def columns() -> dict[str, list[Any]]:
    g = np.random.default_rng(0)
    made: dict[str, list[Any]] = {
        "id": list(range(ROWS)),
        "age": g.poisson(30, ROWS).tolist(),
        "dose": g.standard_normal(ROWS).round(6).tolist(),
        "pay": np.exp(3 + g.standard_normal(ROWS)).tolist(),
        "sex": np.array(["m", "f"])[g.integers(0, 2, ROWS)].tolist(),
        "city": np.array(["Bonn", "Oslo", "Rome"])[g.integers(0, 3, ROWS)].tolist(),
        "when": (np.datetime64("2020-01-01") + g.integers(0, 900, ROWS)).astype(str).tolist(),
    }
    for name in ("dose", "city"):
        for row in range(3, ROWS, 11):
            made[name][row] = None
    return made


@pytest.fixture(scope="module")
def frame() -> Any:
    return pytest.importorskip("pandas").DataFrame(columns())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, frame: Any) -> vf.Run:
    folder = tmp_path_factory.mktemp("runs")
    frame.to_csv(folder / "t.csv", index=False)
    return fitted(str(folder / "t.csv"), out=folder / "run")


def fitted(data: Any, **more: Any) -> vf.Run:
    settings = {"latent": 2, "hidden": 8, "steps": 4, "quiet": True, "protocol": "columns", **more}
    return vf.fit("digits", data, parts={"likelihood": Gaussian()}, **settings)


@pytest.fixture(scope="module")
def alone(run: vf.Run) -> vf.Run:
    """The run from its folder, without the data."""
    (Path(run.folder).parent / "t.csv").rename(Path(run.folder).parent / "gone.csv")
    return vf.load(run.folder, parts={"likelihood": Gaussian()})


def test_the_form_of_the_data_has_the_columns(run: vf.Run, alone: vf.Run) -> None:
    assert {c.name: c.kind for c in run.form.columns} == KINDS
    assert alone.form == run.form
    assert alone.columns == tuple(KINDS)
    sex = run.form.columns[3]
    assert sex == Column("sex", "binary", ("f", "m"), missing=0.0, shares=sex.shares)
    assert sum(sex.shares) == pytest.approx(1)


def test_what_was_found_is_said_aloud(frame: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(frame, quiet=False)
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    assert any(line.split()[:2] == ["age", "count"] for line in lines)
    assert any(line.startswith("id") and "left out" in line and "an id" in line for line in lines)
    fitted(frame)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_what_was_found_is_in_the_report_and_the_card(run: vf.Run) -> None:
    page = run.report().read_text()
    card = (Path(run.folder) / "README.md").read_text()
    for text in (page, card):
        assert "left out" in text
        assert "an id: its whole numbers are all different" in text
        assert "Bonn, Oslo, Rome" in text
    facts = json.loads((Path(run.folder) / "data.json").read_text())
    assert facts["kinds"] == KINDS
    assert facts["dropped_columns"] == {"id": "an id: its whole numbers are all different"}


def test_rows_of_every_library_and_order_score_the_same(alone: vf.Run, frame: Any, tmp_path: Path) -> None:
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    part = frame.iloc[:20]
    expected = alone.log_prob(part)
    assert isinstance(expected, pandas.Series)
    turned = part[part.columns[::-1]].drop(columns="id")
    np.testing.assert_array_equal(alone.log_prob(turned), expected)
    np.testing.assert_array_equal(alone.log_prob(turned.assign(when=pandas.to_datetime(turned["when"]))), expected)
    found = alone.log_prob(polars.from_pandas(part))
    assert isinstance(found, polars.Series)
    np.testing.assert_array_equal(found.to_numpy(), expected)
    np.testing.assert_array_equal(alone.log_prob(pyarrow.Table.from_pandas(part)).to_numpy(), expected)
    turned.to_csv(tmp_path / "t.csv", index=False, sep=";", decimal=",", na_rep="NA")
    turned.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        given = rows_for(alone, str(tmp_path / name), "test")
        assert given.columns == tuple(KINDS)
        np.testing.assert_array_equal(alone.scores(given.values).log_prob, expected)
    # Stored values are rows too.
    np.testing.assert_array_equal(alone.log_prob(torch.as_tensor(given.values)).numpy(), expected)


def test_rows_that_do_not_fit_are_one_sentence_for_every_verb(alone: vf.Run, frame: Any, tmp_path: Path) -> None:
    part = frame.iloc[:5]
    for bad, sentence in [
        (part.drop(columns="age"), "column 'age' is missing"),
        (part.assign(new=1), "column 'new' was not there in training"),
        (part.assign(city="Paris"), "column 'city' has 'Paris' in row 1"),
        (part.assign(age="old"), "column 'age' has 'old' in row 1"),
        (part.assign(pay=-1.0), "column 'pay' has -1 in row 1"),
    ]:
        bad.to_csv(tmp_path / "bad.csv", index=False)
        for verb in (
            lambda bad=bad: alone.log_prob(bad),
            lambda bad=bad: alone.embed(bad),
            lambda bad=bad: alone.reconstruct(bad),
            lambda bad=bad: alone.nearest(bad),
            lambda: rows_for(alone, str(tmp_path / "bad.csv"), "test"),
        ):
            with pytest.raises(DataError) as caught:
                verb()
            assert sentence in str(caught.value)
            assert "\n" not in str(caught.value)
    # A column of which nothing is known has empty cells.
    assert bool(np.isfinite(alone.log_prob(part.assign(age=None))).all())
    with pytest.raises(DataError, match=r"column 'sex' has 7 in row 1 .*no code 0 … 1"):
        alone.log_prob(torch.full((2, 6), 7.0))


def test_verbs_answer_in_the_kind_of_the_question(alone: vf.Run, frame: Any) -> None:
    part = frame.iloc[5:12]
    again = alone.reconstruct(part)
    assert list(again.columns) == list(KINDS)
    assert list(again.index) == list(part.index)
    assert again["age"].dtype == np.int64
    assert set(again["city"]) <= {"Bonn", "Oslo", "Rome"}
    assert again["when"].dtype.kind == "M"
    polars = pytest.importorskip("polars")
    assert isinstance(alone.reconstruct(polars.from_pandas(part)), polars.DataFrame)
    way = alone.interpolate(part.iloc[0], part.iloc[[1]], steps=4)
    assert len(way) == 4
    assert len(alone.nearest(part, k=3).rows) == 7
    assert alone.embed(part).shape == (7, 2)


def test_draws_come_as_the_data_came(run: vf.Run, frame: Any, tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    x = run.sample(30)
    assert (x.dtype, tuple(x.shape)) == (torch.float64, (30, 6))
    table = run.frame(x)
    assert list(table.columns) == list(KINDS)
    assert table["age"].dtype == np.int64
    assert int(table["age"].min()) >= 0
    assert list(fitted(frame).sample(3).columns) == list(KINDS)
    drawn = fitted(polars.from_pandas(frame), out=tmp_path / "polars").sample(3)
    assert isinstance(drawn, polars.DataFrame)
    again = vf.load(tmp_path / "polars", parts={"likelihood": Gaussian()}).sample(3)
    assert again.equals(drawn)
    stored = vf.load(tmp_path / "polars", parts={"likelihood": Gaussian()}).sample(3, stored=True)
    assert isinstance(stored, Tensor)
    with pytest.raises(SpecError, match="library: unknown value 'numpy'"):
        run.frame(x, "numpy")


def test_rows_are_written_as_the_table_was(run: vf.Run, alone: vf.Run, tmp_path: Path) -> None:
    x = run.sample(25)
    for suffix in (".csv", ".tsv", ".parquet"):
        (path,) = write_examples(run, tmp_path / f"drawn{suffix}", x)
        np.testing.assert_array_equal(rows_for(alone, str(path), "test").values, x.numpy())
    head, first, *_ = (tmp_path / "drawn.csv").read_text().splitlines()
    assert head == ",".join(KINDS)
    age, _, _, sex, city, when = first.split(",")
    assert age.isdecimal()
    assert sex in ("f", "m")
    assert city in ("Bonn", "Oslo", "Rome")
    assert np.datetime64(when) > np.datetime64("2000-01-01")


def test_new_files_have_the_decimals_of_training_where_they_do_not_tell(frame: Any, tmp_path: Path) -> None:
    frame.to_csv(tmp_path / "t.csv", index=False, sep=";", decimal=",")
    run = fitted(str(tmp_path / "t.csv"), out=tmp_path / "run")
    assert run.decimal == ","
    (tmp_path / "new.csv").write_text("age;dose;pay;sex;city;when\n31;1,125;2,125;m;Rome;2020-01-02\n")
    given = rows_for(vf.load(tmp_path / "run", parts={"likelihood": Gaussian()}), str(tmp_path / "new.csv"), "test")
    np.testing.assert_array_equal(given.values, [[31, 1.125, 2.125, 1, 2, 18263]])
    # What a file says of itself goes first.
    (tmp_path / "new.csv").write_text("age;dose;pay;sex;city;when\n31;1.25;2,125;m;Rome;2020-01-02\n")
    given = rows_for(run, str(tmp_path / "new.csv"), "test")
    np.testing.assert_array_equal(given.values, [[31, 1.25, 2125, 1, 2, 18263]])


def test_a_data_set_that_is_made_keeps_its_kinds(frame: Any) -> None:
    data = vf.data.from_tensor(frame, None, "columns")
    assert fitted(data).form.columns == data.column_kinds
    with pytest.raises(SpecError, match="column: was age:real, and the data set is made already"):
        fitted(data, column=("age:real",))


def test_a_damaged_folder_is_one_sentence(run: vf.Run, tmp_path: Path) -> None:
    copied = run.copy(tmp_path / "copy").folder if not run.spec.get("never") else run.folder
    path = Path(copied) / "preprocessing.json"
    facts = json.loads(path.read_text())
    for change in (
        {"columns": 3},
        {"columns": [{"name": "a"}]},
        {"forms": ["odd"] * 6},
        {"columns": facts["learned"]["columns"][:3]},
    ):
        path.write_text(json.dumps({**facts, "learned": {**facts["learned"], **change}}))
        with pytest.raises(RunError, match=r"preprocessing\.json"):
            vf.load(copied, parts={"likelihood": Gaussian()})


def test_a_run_goes_on_with_the_kinds_it_has(tmp_path: Path, frame: Any) -> None:
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    settings = {"column": ("age:real", "id:drop"), "out": tmp_path / "run"}
    first = fitted(str(path), **settings)
    assert first.form.columns[0].kind == "real"
    again = vf.resume(tmp_path / "run", steps=6, quiet=True, parts={"likelihood": Gaussian()})
    assert again.form == first.form
    whole = fitted(str(path), column=("age:real", "id:drop"), steps=6)
    x = SimpleNamespace(a=again.sample(5), b=whole.sample(5))
    torch.testing.assert_close(x.a, x.b)
    frame.assign(city="Paris").to_csv(path, index=False)
    with pytest.raises(DataError, match="column 'city' has 'Paris'"):
        vf.resume(tmp_path / "run", steps=8, quiet=True, parts={"likelihood": Gaussian()})


def code_of(words: list[str]) -> Any:
    """The exit code of a command line."""
    from varflow.cli import main

    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


def test_the_command_line_reads_and_writes_tables(
    run: vf.Run, frame: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from varflow.runs import loading

    opened = loading.load
    monkeypatch.setattr(loading, "load", lambda folder, **more: opened(folder, {"likelihood": Gaussian()}, **more))
    part = frame.iloc[:6][["when", "city", "sex", "pay", "dose", "age"]]
    part.to_csv(tmp_path / "new.csv", index=False, sep=";", decimal=",")
    folder, new = str(run.folder), str(tmp_path / "new.csv")
    assert code_of(["score", folder, new, "--out", str(tmp_path / "scores.csv"), "--quiet"]) == 0
    scores = np.loadtxt(tmp_path / "scores.csv", delimiter=",", skiprows=1)[:, 1]
    np.testing.assert_array_equal(scores, run.log_prob(part))
    for words in (["embed", folder, new], ["nearest", folder, new], ["reconstruct", folder, new], ["sample", folder]):
        out = tmp_path / f"{words[0]}.csv"
        assert code_of([*words, "--out", str(out), "--quiet"]) == 0
    for name, rows in (("sample", 64), ("reconstruct", 6)):
        assert rows_for(run, str(tmp_path / f"{name}.csv"), "test").values.shape == (rows, 6)
    capsys.readouterr()
    part.assign(city="Paris").to_csv(tmp_path / "bad.csv", index=False)
    for verb in ("score", "embed", "nearest", "reconstruct"):
        assert code_of([verb, folder, str(tmp_path / "bad.csv")]) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        assert "bad.csv: column 'city' has 'Paris' in row 1 (rows are counted from 1, without the head)" in said


def test_the_command_line_says_what_reads_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1.5,2.5\n,3.5\n")
    for more in ([], ["--column", "a:real"]):
        assert code_of(["fit", "density", "--data", str(tmp_path / "t.csv"), "--steps", "1", *more]) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        assert "likelihood=columns" in said
    assert code_of(["fit", "density", "--data", str(tmp_path / "t.csv"), "--column", "a:reel"]) == 2
    assert "likelihood=columns" in capsys.readouterr().err
