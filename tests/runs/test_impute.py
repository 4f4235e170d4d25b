"""Missing cells of rows filled in by a run: frames, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.cli import main
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.evaluation.gaussian_conditionals import (
    GaussianMixture,
    drawn,
    given_observed,
    means_of,
)

ROWS = 160
FIT: dict[str, Any] = {"latent": 2, "hidden": 16, "steps": 60, "quiet": True}


@pytest.fixture(scope="module")
def frame() -> Any:
    pandas = pytest.importorskip("pandas")
    g = np.random.default_rng(0)
    z = g.standard_normal(ROWS)
    made = pandas.DataFrame(
        {
            "id": np.arange(ROWS) + 5,
            "age": pandas.array(g.poisson(np.exp(3 + 0.3 * z)), dtype="Int64"),
            "dose": (z + 0.3 * g.standard_normal(ROWS)).round(1),
            "pay": np.exp(3 + z + 0.2 * g.standard_normal(ROWS)),
            "sex": np.where(z + 0.5 * g.standard_normal(ROWS) > 0, "m", "f"),
            "city": pandas.Categorical(np.array(["Bonn", "Oslo", "Rome"])[np.clip((z + 1.5).astype(int), 0, 2)]),
            "when": pandas.Timestamp("2020-01-01")
            + pandas.to_timedelta((100 * z).round().astype(int) + 400, unit="D"),
        },
        index=np.arange(ROWS) * 2,
    )
    for name in made.columns[1:]:
        made.loc[g.random(ROWS) < 0.15, name] = None
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, frame: Any) -> vf.Run:
    return vf.fit("table-missing", frame, out=tmp_path_factory.mktemp("runs") / "run", **FIT)


@pytest.fixture(scope="module")
def filled(run: vf.Run, frame: Any) -> Any:
    return run.impute(frame, 100)


def test_a_frame_comes_back_as_it_was_with_no_cell_missing(frame: Any, filled: Any) -> None:
    import pandas

    assert not filled.isna().any().any()
    assert list(filled.columns) == list(frame.columns)
    pandas.testing.assert_series_equal(filled.dtypes, frame.dtypes)
    assert filled.index.equals(frame.index)
    there = ~frame.isna()
    for name in frame.columns:
        # To the bit: what was there is not touched.
        assert list(filled.loc[there[name], name]) == list(frame.loc[there[name], name])
    assert frame.isna().any().any(), "the frame that was given is left alone"
    assert bool((filled["pay"] > 0).all())
    # On the grid of tenths, and whole days.
    assert float((filled["dose"] * 10 - (filled["dose"] * 10).round()).abs().max()) < 1e-9
    assert bool((filled["when"] == filled["when"].dt.normalize()).all())


def test_rows_alone_and_among_others_have_the_same_values(run: vf.Run, frame: Any, filled: Any) -> None:
    import pandas

    pandas.testing.assert_frame_equal(run.impute(frame.iloc[7:12], 100), filled.iloc[7:12])
    again = run.impute(frame.iloc[::-1], 100).iloc[::-1]
    pandas.testing.assert_frame_equal(again, filled)
    one, two = (run.impute(frame, 100, draws=2)[k] for k in (0, 1))
    assert not one.equals(two)
    pandas.testing.assert_frame_equal(run.impute(frame.iloc[7:12], 100, draws=2)[0], one.iloc[7:12])


def test_equal_rows_have_draws_of_their_own(run: vf.Run, frame: Any) -> None:
    import pandas

    row = frame.iloc[[3]].copy()
    row["pay"], row["dose"] = np.nan, np.nan
    many = pandas.concat([row] * 30)
    assert float(np.ptp(run.impute(many, 100)["pay"])) < 1e-6
    found = run.imputations(many, 100, draws=1)
    assert len(found.draws[0, :, 2].unique()) > 20


def test_what_is_said_beside_the_values(run: vf.Run, frame: Any) -> None:
    found = run.imputations(frame, 100, draws=3)
    gone = torch.from_numpy(frame.iloc[:, 1:].isna().to_numpy())
    assert torch.equal(found.missing, gone)
    assert bool((found.spread[gone] >= 0).all())
    assert bool(found.spread[~gone].isnan().all())
    whole = ~gone.any(1)
    assert bool((found.ess[whole] == 1).all())
    assert bool((found.khat[whole] == -torch.inf).all())
    assert bool(((found.ess[~whole] > 0) & (found.ess[~whole] <= 1)).all())
    assert found.draws.shape == (3, ROWS, 6)
    assert torch.equal(found.draws[:, ~gone], found.values[~gone].expand(3, -1))
    assert f"{int(gone.sum())} cells of {int((~whole).sum())} rows filled in" in found.summary()
    loose = run.imputations(frame, 100, rounded=False).values[:, 0][gone[:, 0]]
    assert bool((loose % 1 != 0).all())
    assert bool((run.impute(frame, 100, rounded=False)["age"].to_numpy(float)[gone[:, 0]] % 1 != 0).all())


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_other_frames(run: vf.Run, frame: Any, filled: Any, library: str) -> None:
    polars = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    given = polars.from_pandas(frame)
    given = given if library == "polars" else given.to_arrow()
    found = run.impute(given, 100)
    assert type(found) is type(given)
    assert found.schema == given.schema
    back = found.to_pandas()
    assert list(back["city"]) == list(filled["city"])
    assert list(back["age"]) == list(filled["age"])
    np.testing.assert_allclose(back["pay"], filled["pay"], rtol=1e-5)
    assert list(back["when"]) == list(filled["when"])


def test_arrays_come_back_as_arrays(run: vf.Run, frame: Any) -> None:
    stored = run.dataset.raw("train")[:20]
    for given in (stored, stored.numpy()):
        found = run.impute(given, 100)
        assert type(found) is type(given)
        assert not bool(torch.as_tensor(found).isnan().any())


def test_a_file_keeps_every_cell_as_it_is_written(
    run: vf.Run, frame: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(
        "id;age;dose;pay;sex;city;when\n"
        "1;20;1,50;20,0;m;Oslo;17.02.2021\n"
        "2;;0,10;?;f;;\n"
        "3;31;;40,25;NA;Rome;03.01.2021\n"
    )
    out = tmp_path / "filled.csv"
    with pytest.raises(SystemExit) as code:
        main(["impute", str(run.folder), str(tmp_path / "t.csv"), "--out", str(out), "--samples", "100",
              "--spread", str(tmp_path / "spread.csv")])  # fmt: skip
    assert code.value.code == 0
    said = capsys.readouterr().out
    assert "6 cells of 2 rows filled in, 100 samples each" in said
    head, first, second, third = out.read_text().splitlines()
    assert head == "id;age;dose;pay;sex;city;when"
    assert first == "1;20;1,50;20,0;m;Oslo;2021-02-17", "dates come out in one form"
    cells = second.split(";")
    assert cells[0] == "2"
    assert cells[2] == "0,10"
    assert int(cells[1]) > 0
    assert float(cells[3].replace(",", ".")) > 0
    assert cells[4:6] == ["f", cells[5]]
    assert cells[5] in ("Bonn", "Oslo", "Rome")
    assert len(cells[6]) == 10
    assert third.startswith("3;31;")
    assert ";40,25;" in third
    spread = (tmp_path / "spread.csv").read_text().splitlines()
    assert spread[0] == "row,ess,khat,age spread,dose spread,pay spread,sex spread,city spread,when spread"
    assert spread[1].startswith("0,1.0,-inf,,,")


def test_several_tables_and_other_files(run: vf.Run, frame: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas

    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    for arguments in (
        ["t.csv", "--out", "m.csv", "--draws", "2"], ["t.parquet", "--out", "f.parquet"],
        ["t.csv", "--out", "g.parquet"],
    ):  # fmt: skip
        words = [str(tmp_path / word) if "." in word else word for word in arguments]
        with pytest.raises(SystemExit) as code:
            main(["impute", str(run.folder), *words, "--samples", "50", "--quiet"])
        assert code.value.code == 0
    one, two = (pandas.read_csv(tmp_path / f"m-{k}.csv") for k in (1, 2))
    assert not one.isna().any().any()
    assert not one.equals(two)
    assert one["id"].tolist() == frame["id"].tolist()
    found = pandas.read_parquet(tmp_path / "f.parquet")
    assert not found.isna().any().any()
    assert list(found.columns) == list(frame.columns)
    assert found["city"].dtype == "category"
    assert not pandas.read_parquet(tmp_path / "g.parquet").isna().any().any()


def test_under_a_condition(frame: Any) -> None:
    some = frame.drop(columns=["id"])
    some["sex"] = some["sex"].fillna("f")
    run = vf.fit("table", some, condition=("sex",), **{**FIT, "steps": 200})
    found = run.impute(some, 50)
    assert not found.isna().any().any()
    rest = some.drop(columns=["sex"]).assign(dose=np.nan, age=np.nan, pay=np.nan)
    low, high = (run.impute(rest, 50, given={"sex": sex})["dose"].mean() for sex in ("f", "m"))
    assert low < high


def test_a_gaussian_given_some_of_its_cells() -> None:
    """One Gaussian of three columns: the textbook formula."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    mean, covariance = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64), root @ root.T + torch.eye(3)
    made = GaussianMixture(torch.ones(1, dtype=torch.float64), mean[None], covariance[None])
    x = torch.tensor([[1.5, 0.0, 0.0]], dtype=torch.float64)
    found = given_observed(made, x, torch.tensor([[True, False, False]]))
    wanted = mean + covariance[:, 0] / covariance[0, 0] * (x[0, 0] - mean[0])
    left = covariance - torch.outer(covariance[:, 0], covariance[0]) / covariance[0, 0]
    torch.testing.assert_close(found.means[0, 0], wanted)
    torch.testing.assert_close(found.covariances[0, 0], left)
    one = torch.distributions.Normal(mean[0], covariance[0, 0].sqrt()).log_prob(x[0, 0])
    torch.testing.assert_close(found.log_prob[0], one)
    value, spread = means_of(found, lambda cells: 7 + 2 * cells)
    torch.testing.assert_close(value[0], 7 + 2 * wanted)
    torch.testing.assert_close(spread[0], 2 * left.diagonal().clamp_min(0).sqrt(), atol=1e-7, rtol=1e-7)
    lognormal, _ = means_of(found, torch.exp)
    torch.testing.assert_close(lognormal[0], (wanted + 0.5 * left.diagonal()).exp(), rtol=1e-6, atol=0)
    with random.stream(1):
        draws = drawn(found, 20_000)[:, 0]
    assert float((draws.T.cov() - left).abs().max()) < 6 * (2 / 20_000) ** 0.5 * float(left.max())


def test_a_density_by_a_mixture_is_in_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 20 + 3 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    run = vf.fit("density", x, prior="mixture", components=3, steps=5, quiet=True)
    prior = run.model.prior
    row = x[:1].clone()
    row[0, 1:] = torch.nan
    learned = run.preprocessing.learned()
    loc, scale = (torch.as_tensor(learned[key]).double() for key in ("loc", "scale"))
    with torch.no_grad():
        z = ((x[0, 0] - loc[0]) / scale[0]).float()
        logs = torch.distributions.Normal(prior.means[:, 0], prior.log_scales[:, 0].exp()).log_prob(z)
        belong = (prior.logits.log_softmax(0) + logs).softmax(0)
        mean = (belong[:, None] * prior.means).sum(0).double()
    found = run.imputations(row, draws=5)
    torch.testing.assert_close(found.values[0, 1:], (loc + scale * mean)[1:], rtol=1e-5, atol=1e-4)
    assert (found.samples, tuple(found.draws.shape)) == (0, (5, 1, 3))
    assert "2 cells of 1 rows filled in, in closed form" in found.summary()
    filled = run.impute(row.numpy())
    assert isinstance(filled, np.ndarray)
    assert filled[0, 0] == float(row[0, 0])
    torch.testing.assert_close(run.impute(row), torch.from_numpy(filled))


def test_refusals(run: vf.Run, frame: Any, tmp_path: Path) -> None:
    density = vf.fit("density", torch.randn(60, 2), steps=2, quiet=True)
    with pytest.raises(SpecError, match="impute: this run is a density of whole rows by Flow, which has no"):
        density.impute(torch.randn(3, 2))
    latent = vf.fit("digits", steps=1, quiet=True, hidden=8)
    with pytest.raises(SpecError, match=r"impute: this run reads no missing cells; fit with likelihood=columns"):
        latent.impute(torch.zeros(2, 1, 8, 8))
    with pytest.raises(SpecError, match="draws: was -1"):
        run.impute(frame, draws=-1)
    with pytest.raises(SpecError, match="samples"):
        run.impute(frame, 0)


@pytest.mark.slow
def test_removed_cells_and_figures_in_the_report(run: vf.Run) -> None:
    run.evaluate(samples=30)
    found = run.removed_cells(0.3, samples=100, baselines=("independent", "mixture"))
    page = Path(run.report()).read_text()
    for text in (
        "Cells removed and predicted from the rest of their rows", "RMSE of pay", "accuracy of city",
        "RMSE of removed numbers, standardized less mixture", "Calibration of imputations", "Missing cells",
        "Columns",
    ):  # fmt: skip
        assert text in page, text
    drawn = {path.name for path in (Path(run.folder) / "figures").glob("*.png")}
    assert {"marginals.png", "table_pairs.png", "missing.png", "imputed.png", "calibration.png"} <= drawn
    again = vf.evaluation.Evaluation.load(run.folder, "test-removed")
    assert again.estimates == found.estimates
