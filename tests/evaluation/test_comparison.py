"""Runs side by side: paired differences, files, refusals by name, and the commands that lead there."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import varflow as vf
from varflow.cli import main
from varflow.core.errors import RunError, SpecError
from varflow.evaluation import Evaluation
from varflow.figures import bound_by_samples, canvas, overlaid_curves
from varflow.runs.comparison import compare
from varflow.runs.run import Run
from varflow.runs.side_by_side import write
from varflow.settings import recipes

SMALL = {"latent": 2, "hidden": 8, "layers": 1, "steps": 12, "threads": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Three runs: two on dynamic digits, one under another protocol."""
    folder = tmp_path_factory.mktemp("runs")
    base = recipes.find("digits").spec.replace(**SMALL, epochs=None)
    for name, settings in {
        "plain": {},
        "planar": {"flow": "planar", "length": 2},
        "hard": {"protocol": "threshold"},
    }.items():
        run = vf.fit(base.replace(**settings), out=folder / name, quiet=True)
        run.evaluate(samples=20, limit=30)
    return folder


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch):
    monkeypatch.setattr(Run, "report", lambda self: self.folder / "report.html")


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_differences_are_paired(runs):
    found = compare([runs / "plain", runs / "planar"])
    a, b = (Evaluation.load(runs / name).per_example for name in ("plain", "planar"))
    for name in ("log_px", "elbo", "log_likelihood", "kl"):
        difference, gap = found.differences[0][name], b[name] - a[name]
        assert difference.value == pytest.approx(gap.mean())
        assert difference.standard_error == pytest.approx(gap.std(ddof=1) / math.sqrt(30))
        expected = math.sqrt((a[f"{name}_variance"] + b[f"{name}_variance"]).sum()) / 30
        assert difference.monte_carlo_error == pytest.approx(expected)
    assert found.names == ["plain", "planar"]


def test_text_markdown_csv_and_page(runs, tmp_path):
    found = compare([runs / "plain", runs / "planar"])
    lines = found.table().splitlines()
    assert lines[0].split()[:3] == ["run", "−log", "p(x)"]
    assert found.estimates[0]["nll"].figures() in lines[1]
    assert lines[4].startswith("less plain")
    paths = write(found, tmp_path / "out")
    assert [path.name for path in paths] == ["comparison.md", "comparison.csv", "comparison.html"]
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    nll = next(row for row in rows if (row["run"], row["quantity"]) == ("planar", "nll"))
    assert float(nll["value"]) == found.estimates[1]["nll"].value
    assert nll["against"] == ""
    gap = next(row for row in rows if row["against"] == "plain" and row["quantity"] == "elbo")
    assert float(gap["monte_carlo_error"]) == found.differences[0]["elbo"].monte_carlo_error
    page = paths[2].read_text()
    for word in (
        "Learning curves",
        "Samples",
        "Reconstructions",
        "flow: flow",
        "varflow compare",
    ):
        assert word in page
    assert page.count("data:image/png;base64,") == 3
    assert "posterior: latent" not in page
    text = paths[0].read_text()
    assert [line.count("---") for line in text.splitlines() if "---" in line] == [7, 5]
    assert "E log p(x\\|z)" in text
    assert "in brackets the Monte-Carlo error" in text
    write(found, tmp_path / "bare", figures=False)
    assert "data:image" not in (tmp_path / "bare" / "comparison.html").read_text()


@pytest.mark.slow
def test_the_same_runs_give_the_same_page(runs, tmp_path):
    pages = []
    for name in "ab":
        found = compare([runs / "plain", runs / "planar"])
        pages.append(write(found, tmp_path / name)[2].read_bytes())
    assert pages[0] == pages[1]


def test_what_cannot_be_compared_is_refused_by_name(runs, tmp_path):
    with pytest.raises(SpecError, match="hard: has protocol 'threshold', plain has 'dynamic'"):
        compare([runs / "plain", runs / "hard"])
    with pytest.raises(SpecError, match="runs: 1 given; name two or more"):
        compare([runs / "plain"])
    with pytest.raises(SpecError, match="runs: one is given twice"):
        compare([runs / "plain", runs / "plain"])
    with pytest.raises(RunError, match="holds no run"):
        compare([runs / "plain", tmp_path])
    with pytest.raises(
        RunError, match="plain: not evaluated on the validation split; run: varflow evaluate"
    ):
        compare([runs / "plain", runs / "planar"], "validation")
    fewer = tmp_path / "fewer"
    shutil.copytree(runs / "planar", fewer)
    vf.load(fewer).evaluate(samples=20, limit=7)
    with pytest.raises(SpecError, match=r"fewer \(a\) and plain \(b\): b: has 30 points, a has 7"):
        compare([runs / "plain", fewer])


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    shutil.copytree(runs / "planar", tmp_path / "plain")
    found = compare([runs / "plain", tmp_path / "plain"])
    assert found.names == [f"{runs.name}/plain", f"{tmp_path.name}/plain"]


@pytest.mark.slow
def test_the_way_from_runs_to_gaps_side_by_side(runs, tmp_path, capsys):
    for name in ("plain", "planar"):
        shutil.copytree(runs / name, tmp_path / name)
        here = tmp_path / name
        few = ("--threads", 1, "--chains", 3, "--temperatures", 4, "--leapfrog", 1, "--points", 6)
        code, out, err = call(capsys, "anneal", here, *few, "--simulated", 5)
        assert code == 0, err
        assert "acceptance" in out
        assert "on data simulated from the model" in out
        assert "upper − lower on the same points" in out
        kept = len(list((here / "evaluation").glob("ais-*.npz")))
        assert kept == 3
        # The chains of the gaps differ in nothing but what anneal alone can choose: they are found again.
        more = ("--steps", 3, "--samples", 2, "--elbo-samples", 20)
        code, out, err = call(capsys, "gaps", here, *few, *more)
        assert code == 0, err
        assert "amortization_gap" in out
        assert len(list((here / "evaluation").glob("ais-*.npz"))) == kept
        code, out, err = call(capsys, "curve", here, "--samples", 12, "--limit", 9, "--threads", 1)
        assert code == 0, err
        assert "bound_10" in out
    both = (tmp_path / "plain", tmp_path / "planar")
    code, out, err = call(capsys, "compare", *both, "--out", tmp_path / "out")
    assert code == 0, err
    for word in ("amortization gap", "−log p(x), annealed", "less plain", "comparison.html"):
        assert word in out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "The bound against the number of samples" in page
    # Other points than the first run's: said, and left out.
    again = (*few[:-1], 4)
    assert call(capsys, "gaps", both[1], *again, *more)[0] == 0
    code, out, _ = call(capsys, "compare", *both, "--out", tmp_path / "out", "--no-figures")
    assert code == 0
    assert "note: test-gaps is left out: planar (a) and plain (b): b: has 6 points, a has 4" in out
    assert "amortization gap" not in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["compare"], "runs: 0 given; name two or more"),
        (["compare", "/nowhere", "/nothing"], "holds no run"),
        (["compare", "/nowhere", "/nothing", "--splt", "test"], "did you mean 'split'?"),
        (["anneal"], "run: missing"),
        (["anneal", "/nowhere"], "holds no run"),
        (["anneal", "/nowhere", "--chains", "many"], "--chains: was 'many'; use an integer"),
        (["anneal", "/nowhere", "--memory", "0"], "memory: was 0.0; use gibibytes"),
        (["gaps", "/nowhere", "--start", "q"], "--start: unknown value 'q'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(capsys, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_settings_of_a_run_are_checked_before_anything_runs(runs, capsys):
    code, _, err = call(capsys, "anneal", runs / "plain", "--simulated", -1, "--threads", 1)
    assert code == 2
    assert "simulated: was -1" in err
    code, _, err = call(capsys, "anneal", runs / "plain", "--points", 1000, "--threads", 1)
    assert code == 2
    assert "points: was 1000; digits has 250 test points" in err
    code, _, err = call(capsys, "gaps", runs / "plain", "--lr", -1, "--threads", 1)
    assert code == 2
    assert "lr: was -1.0" in err


def test_curves_are_drawn_over_one_another():
    rows = [{"step": s, "split": "validation", "elbo": -100.0 / s} for s in (1, 2, 3)]
    training = [{"step": s, "split": "train", "elbo": -5.0} for s in (1, 2)]
    axes = overlaid_curves({"a": rows, "b": training, "c": []}, canvas()[1][0, 0])
    drawn = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(drawn["a"].get_ydata(), [-100.0, -50.0, -100 / 3])
    np.testing.assert_array_equal(drawn["b"].get_xdata(), [1, 2])
    with pytest.raises(vf.errors.DataError, match="none has a row"):
        overlaid_curves({"a": []}, canvas()[1][0, 0])


def test_bounds_are_drawn_with_their_errors():
    axes = bound_by_samples({"a": ([1, 10], [-3.0, -2.5], [0.1, math.nan])}, canvas()[1][0, 0])
    assert axes.get_xscale() == "log"
    (container,) = axes.containers
    np.testing.assert_array_equal(container[0].get_ydata(), [-3.0, -2.5])
    with pytest.raises(vf.errors.ShapeError, match="curves: is empty"):
        bound_by_samples({}, canvas()[1][0, 0])
    with pytest.raises(vf.errors.ShapeError, match="values"):
        bound_by_samples({"a": ([1, 10], [-3.0], [0.1, 0.2])}, canvas()[1][0, 0])


def test_numbers_of_samples_and_seeds_that_differ_are_said(runs, tmp_path):
    shutil.copytree(runs / "planar", tmp_path / "more")
    vf.load(tmp_path / "more").evaluate(samples=35, limit=30, seed=4)
    (first, *_) = compare([runs / "plain", runs / "planar"]).footer()
    assert "; 30 points, 20 samples each, seed 0; " in first
    (first, *_) = compare([runs / "plain", tmp_path / "more"]).footer()
    assert (
        "; 30 points, 20, 35 (in the order of the runs) samples each, seed 0, 4 (in the order of the runs); "
        in first
    )


@pytest.mark.parametrize(
    ("kind", "command"), [("", "evaluate"), ("-annealed", "anneal"), ("-gaps", "gaps"), ("-curve", "curve")]
)
def test_an_outdated_result_names_the_command_that_makes_it(runs, tmp_path, kind, command):
    shutil.copytree(runs / "plain", tmp_path / "run")
    folder = tmp_path / "run" / "evaluation"
    values = json.loads((folder / "test.json").read_text()) | {"weights": "of another time"}
    (folder / f"test{kind}.json").write_text(json.dumps(values))
    words = f"{tmp_path / 'run'}: has gone on since it was evaluated; "
    words += f"run: varflow {command} {tmp_path / 'run'} --split test"
    with pytest.raises(RunError, match=f"^{re.escape(words)}$"):
        compare([tmp_path / "run", runs / "planar"])
