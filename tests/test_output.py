"""What a verb says and where: one JSON document, a reader that goes away, a full disk, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.cli import VERBS, main, output
from varflow.cli.output import OutputError, plain, records
from varflow.core.files import read_json
from varflow.evaluation import Evaluation, Progress
from varflow.runs.run import Run

SMALL = {"latent": 2, "hidden": 8, "layers": 1, "steps": 4, "threads": 1, "quiet": True}
TABLE = "weight,colour,count\n" + "".join(
    f"{50 + 7 * (n % 11) + n / 8},{'red' if n % 3 else 'blue'},{n % 5}\n" for n in range(120)
)
GAPS = "weight,colour,count\n61.5,,2\n,red,\n70,blue,1\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two fits to pictures and one to a table, and rows of it with gaps."""
    home = tmp_path_factory.mktemp("runs")
    (home / "table.csv").write_text(TABLE)
    (home / "gaps.csv").write_text(GAPS)
    vf.fit("digits", **SMALL, out=home / "a")
    vf.fit("digits", **SMALL, seed=1, out=home / "b")
    vf.fit("table", str(home / "table.csv"), **SMALL, column=("count:count",), out=home / "t")
    return home


@pytest.fixture
def call(home, capsys, monkeypatch):
    """Calls a verb beside the runs: code, standard output, standard error. Nothing is drawn."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(Run, "report", lambda run, figures="all": run.folder / "report.html")

    def called(*words: str):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(words)
        return end.value.code, *capsys.readouterr()

    return called


@pytest.fixture
def document(call):
    """The one document that a verb prints."""

    def asked(*words: str):
        code, out, err = call(*words, "--json")
        assert code == 0, err
        assert out.count("\n") == 1

        def refuse(name):
            raise AssertionError(f"{name} is no JSON")

        return json.loads(out, parse_constant=refuse)

    return asked


def test_estimates_are_those_of_the_file_in_the_run(document, home):
    words = ("--samples", "20", "--limit", "30")
    found = document("evaluate", "a", *words, "--split", "validation")
    kept = read_json(home / "a" / "evaluation" / "validation.json")
    assert {name: found[name] for name in kept} == kept
    assert set(found) - set(kept) == {"run", "report", "removed"}
    assert found["run"] == "a"
    loaded = Evaluation.load(home / "a", "validation").estimates["elbo"]
    assert found["estimates"]["elbo"]["value"] == loaded.value
    assert found["estimates"]["elbo"]["unit"] == "nats"
    assert found["estimates"]["elbo"]["standard_error"] == loaded.standard_error


@pytest.mark.slow
def test_an_evaluation_with_removed_cells_holds_both(document, home):
    found = document("evaluate", "t", "--samples", "20", "--removed", "0.3")
    assert found["removed"]["estimates"] == read_json(home / "t" / "evaluation" / "test-removed.json")["estimates"]


@pytest.mark.slow
def test_annealing_holds_what_was_simulated_too(document, home):
    few = ("--points", "3", "--chains", "2", "--temperatures", "5")
    found = document("anneal", "a", *few, "--simulated", "3")
    assert found["estimates"] == read_json(home / "a" / "evaluation" / "test-annealed.json")["estimates"]
    assert found["simulated"]["data"]["split"] != found["data"]["split"]
    assert document("anneal", "a", *few, "--simulated", "0")["simulated"] is None
    found = document("gaps", "a", *few, "--steps", "3", "--elbo-samples", "5")
    assert "approximation_gap" in found["estimates"]
    found = document("curve", "a", "--samples", "10", "--limit", "5")
    assert found["estimates"] == read_json(home / "a" / "evaluation" / "test-curve.json")["estimates"]


def test_a_comparison_in_numbers(document, call, home):
    for run in ("a", "b"):
        assert call("evaluate", run, "--samples", "5", "--limit", "20", "--quiet")[0] == 0
    found = document("compare", "a", "b", "--no-figures")
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    (pair,) = found["differences"]
    assert (pair["run"], pair["against"]) == ("b", "a")
    assert {"value", "standard_error", "monte_carlo_error", "unit"} <= set(pair["estimates"]["log_px"])
    kept = read_json(home / "a" / "evaluation" / "test.json")["estimates"]
    assert found["runs"][0]["estimates"]["elbo"] == kept["elbo"]
    assert "comparison/comparison.csv" in found["files"]


def test_scores_row_by_row_in_full_precision(document, call, home):
    found = document("score", "a", "--samples", "3")
    run = vf.load(home / "a")
    scores = run.scores(run.dataset.raw("test"), samples=3)
    assert [row["log_prob"] for row in found["rows"]] == scores.log_prob.tolist()
    assert found["units"] == {"log_prob": "nats", "error": "nats"}
    assert found["mean"]["points"] == len(found["rows"]) == 250
    assert found["mean"]["value"] == pytest.approx(float(scores.log_prob.mean()), rel=1e-12)
    # Of three samples no k̂ can be told.
    assert {row["khat"] for row in found["rows"]} == {"nan"}
    assert "rows, mean log p(x)" in call("score", "a", "--samples", "3", "--json")[2]
    assert call("score", "a", "--samples", "3", "--json", "--quiet")[2] == ""
    found = document("score", "a", "--samples", "3", "--out", "scores.csv")
    assert found["file"] == "scores.csv"
    assert "rows" not in found


def test_latents_neighbours_and_draws(document, home):
    found = document("embed", "a")
    assert found["shape"] == [2]
    z = vf.load(home / "a").embed(vf.load(home / "a").dataset.raw("test"))
    assert torch.equal(torch.tensor([row["z"] for row in found["rows"]]), z)
    found = document("nearest", "a", "--k", "2")
    assert [row["rank"] for row in found["rows"][:2]] == [1, 2]
    assert found["rows"][0]["distance"] <= found["rows"][1]["distance"]
    found = document("sample", "t", "--count", "3")
    assert [sorted(row) for row in found["rows"]] == [["colour", "count", "weight"]] * 3
    assert {row["colour"] for row in found["rows"]} <= {"red", "blue"}
    assert found["files"] == ["t/figures/sample.npy", "t/figures/sample.csv"]
    assert document("sample", "a", "--count", "4")["rows"] is None


def test_cells_that_were_filled_in_with_their_spread(document, call, home):
    found = document("impute", "t", "gaps.csv", "--samples", "20")
    assert found["cells"] == 3
    assert [sorted(row["cells"]) for row in found["rows"]] == [["colour"], ["count", "weight"]]
    assert found["rows"][0]["cells"]["colour"]["value"] in ("red", "blue")
    assert 0 <= found["rows"][0]["cells"]["colour"]["spread"] <= 1
    assert 0 < found["ess"]["least"] <= found["ess"]["median"] <= 1
    again = document("impute", "t", "gaps.csv", "--samples", "20", "--out", "filled.csv")
    assert again["files"] == ["filled.csv"]
    assert again["rows"] == found["rows"]
    assert "," in (home / "filled.csv").read_text().splitlines()[1]
    # Without the wish the table itself is on standard output, and the words about it are not.
    code, out, err = call("impute", "t", "gaps.csv", "--samples", "20")
    assert (code, out.splitlines()[0]) == (0, "weight,colour,count")
    assert "cells of" in err


def test_settings_recipes_and_data(document, call, home):
    found = document("show", "a")
    assert found["spec"] == read_json(home / "a" / "spec.json")
    assert {"latent", "steps"} <= set(found["changed"])
    assert document("show", "a", "--changed")["spec"]["latent"] == 2
    assert "given beside json" in call("show", "a", "--toml", "--json")[2]
    found = document("recipes")
    assert [recipe["name"] for recipe in found["recipes"]] == list(vf.recipes.TABLE)
    assert document("recipes", "digits")["spec"] == vf.recipes.find("digits").spec.to_dict()
    found = document("data")
    assert {"name": "gaussian-1", "here": True}.items() <= found["data"][6].items()
    assert document("data", "check", "digits")["verification"].startswith("verified")


@pytest.mark.parametrize(
    "words",
    [
        "evaluate a --samples 5 --limit 9 --split validation",
        "curve a --samples 5 --limit 9 --split validation",
        "score a --samples 3 --out scores.csv",
        "embed a --out z.npy",
        "impute t gaps.csv --samples 9 --out filled.csv",
        "sample a --count 4",
        pytest.param("anneal a --points 3 --chains 2 --temperatures 5 --simulated 3", marks=pytest.mark.slow),
        "show a",
        "data",
    ],
)
def test_quiet_leaves_nothing_but_the_document(call, monkeypatch, words):
    # A line at every occasion, were it not for the wish.
    monkeypatch.setattr(Progress.__init__, "__defaults__", ("points", False, None, 0.0))
    code, out, err = call(*words.split(), "--quiet", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)
    assert call(*words.split(), "--quiet") == (0, "", "")


def test_progress_is_told_on_standard_error(call, monkeypatch):
    monkeypatch.setattr(Progress.__init__, "__defaults__", ("points", False, None, 0.0))
    _, out, err = call("score", "a", "--samples", "3", "--out", "scores.csv")
    assert "250/250 rows  in 0:0" in err
    assert out.startswith("scores.csv: 250 rows")


def test_files_that_were_written(document):
    assert document("reconstruct", "a", "--count", "4")["files"][0].startswith("a/figures/reconstruct")
    assert document("interpolate", "a", "0", "3", "--steps", "3")["steps"] == 3
    assert document("report", "a")["report"] == "a/report.html"


def test_the_end_of_a_fit(document, home):
    words = ["--latent", "2", "--hidden", "8", "--steps", "3", "--threads", "1", "--overwrite"]
    found = document("fit", "digits", *words, "--out", "c")
    kept = read_json(home / "c" / "run.json")
    assert {name: found[name] for name in kept} == kept
    assert found["outcome"]["step"] == 3
    assert found["last"]["train"]["step"] == 3
    assert found["report"] == "c/report.html"
    assert document("fit", "--resume", "c", "--steps", "5", "--no-report")["report"] is None


@pytest.mark.slow
def test_a_sweep_in_numbers(document, home):
    pytest.importorskip("optuna")
    (home / "space.toml").write_text('flow = ["none", "planar"]\n')
    words = ["--latent", "2", "--hidden", "8", "--steps", "3", "--threads", "1", "--trials", "2", "--no-figures"]
    found = document("sweep", "digits", "--space", "space.toml", *words, "--test-samples", "3", "--out", "s")
    kept = read_json(home / "s" / "sweep.json")
    assert {name: found[name] for name in kept} == kept
    assert (found["sweep"], found["signal"]) == ("s", None)


def test_what_goes_wrong_leaves_standard_output_empty(call):
    code, out, err = call("evaluate", "nowhere", "--json")
    assert (code, out) == (2, "")
    assert err.startswith("varflow: ")
    assert len(err.splitlines()) == 1
    assert "usage" in call("evaluate", "--help", "--json")[1]


def test_every_verb_with_an_answer_takes_both_switches(call):
    numbers = {"evaluate", "anneal", "gaps", "curve", "compare", "score", "embed", "nearest", "impute", "sample"}
    files = {"reconstruct", "interpolate", "export", "report", "push"}
    for verb in {"recipes", "fit", "sweep", "show", "data", *numbers, *files}:
        _, out, _ = call(verb, "digits" if verb in ("fit", "sweep") else "--help", "--help")
        assert "--json" in out, verb
        assert verb == "recipes" or "--quiet" in out, verb


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        (-np.inf, "-inf"),
        (np.float32(0.1), 0.10000000149011612),
        (0.1 + 0.2, 0.30000000000000004),
        (torch.tensor([1.5, torch.inf]), [1.5, "inf"]),
        (np.ma.MaskedArray([1, 2], [False, True]), [1, None]),
        (np.array(["2024-03-01", "2024-03-02"], "M8[D]"), ["2024-03-01", "2024-03-02"]),
        (np.ma.MaskedArray(np.array(["2024-03-01T10:00:00"], "M8[s]"), [True]), [None]),
        (np.array([True]), [True]),
        ({"a": (1, None)}, {"a": [1, None]}),
    ],
    ids=str,
)
def test_values_of_json(value, expected):
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_columns_as_rows():
    columns = {"name": ["a", "b"], "x": torch.tensor([1.0, 2.0]), "day": np.array(["2024-03-01"] * 2, "M8[D]")}
    assert records(columns)[1] == {"name": "b", "x": 2.0, "day": "2024-03-01"}
    with pytest.raises(TypeError, match="object is no value of JSON"):
        plain(object())


# -- readers that go away, disks that are full ------------------------------------------------------------


def shell(line: str, **more) -> subprocess.CompletedProcess:
    environment = {**os.environ, "VARFLOW": f"{sys.executable} -m varflow", **more}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["recipes"], ["recipes", "--json"], ["data", "--help"], ["recips"]], ids=" ".join)
def test_a_reader_that_goes_away_ends_a_verb_in_silence(words, unbuffered):
    both = words == ["recips"]
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-m", "varflow", *words], stdout=writes, stderr=writes if both else subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writes)
    assert done.returncode == (2 if both else 141)
    assert not done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("words", "unbuffered"), [("recipes", ""), ("recipes --json", "1"), ("data --help", "")]
)
def test_a_full_disk_is_one_sentence(words, unbuffered):
    done = shell(f"$VARFLOW {words} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert done.stderr.startswith("varflow: standard output: could not be written (")
    assert len(done.stderr.splitlines()) == 1


def test_without_standard_output_or_error_nothing_breaks():
    done = shell("$VARFLOW recipes >&-; echo $?; $VARFLOW recips 2>&-; echo $?; $VARFLOW recips 2>/dev/full; echo $?")
    assert done.stdout.split() == ["0", "2", "2"]
    assert done.stderr == ""


def test_other_encodings_replace_what_they_lack():
    done = shell("$VARFLOW fit digits --help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "log w" in done.stdout or "--latent" in done.stdout


def test_an_error_of_another_file_is_not_taken_for_one_of_standard_output(monkeypatch, capsys):
    def fails(arguments):
        print("some words")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varflow.cli.recipes.main", fails)
    with pytest.raises(OSError, match="No space left") as error:
        main(["recipes"])
    assert not isinstance(error.value, OutputError)
    assert capsys.readouterr().out == "some words\n"


# -- Ctrl-C ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_is_one_line_and_130_in_every_verb(verb, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"varflow.cli.{verb}.main", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as end:
            main([verb, "x"])
        # A second one is not heard while the process ends.
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("varflow: interrupted")
    assert len(err.splitlines()) == 1
    assert ("goes on where it stopped" in err) == (verb in ("evaluate", "anneal", "gaps", "curve"))


@pytest.mark.slow
def test_ctrl_c_while_a_run_is_scored(home):
    words = [sys.executable, "-m", "varflow", "score", "a", "--samples", "200000", "--threads", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home) as process:
        time.sleep(6)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "varflow: interrupted\n")


def test_documents_end_with_their_verb():
    with output.documented(True):
        assert sys.stdout is sys.stderr
    assert output._apart is None
