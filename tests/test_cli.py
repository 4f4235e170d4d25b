"""The command line: what a user types, what comes back, and what is said of mistakes."""

import importlib
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from varflow.cli import VERBS, main
from varflow.core.errors import SpecError
from varflow.settings import recipes
from varflow.settings.flags import spec_types
from varflow.settings.roles import every_name

TINY = ["--latent", "2", "--hidden", "8", "--layers", "1", "--threads", "1"]


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_help_is_instant_and_names_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for command in ("recipes", "fit", "evaluate", "sample", "reconstruct", "report", "data", "demo"):
        assert command in out
    assert call(capsys)[0] == 2


def test_every_verb_says_what_it_does_in_one_line(capsys):
    _, out, _ = call(capsys, "--help")
    for name in VERBS:
        summary = importlib.import_module(f"varflow.cli.{name}").__doc__.splitlines()[0]
        assert summary.endswith(".")
        assert f"  {name:<13} {summary.removesuffix('.')}\n" in out


def test_a_reader_that_goes_away_is_no_error():
    words = [sys.executable, "-c", "from varflow.cli import main; main(['fit', 'dense', '--help'])"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_help_and_names_need_no_torch():
    script = (
        "import sys\nfrom varflow.cli import main\n"
        "helps = ['--help'], ['recipes'], ['fit', 'dense', '--help'], ['recipes', 'dense'], ['data', '--help']\n"
        "for words in helps:\n"
        "    try:\n        main(words)\n    except SystemExit as end:\n        assert end.code == 0, words\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 20


def test_help_of_fit_has_every_setting_of_the_chosen_parts_with_the_default_of_the_recipe(capsys):
    code, out, _ = call(capsys, "fit", "planar-2d", "--help")
    assert code == 0
    words = set(re.findall(r"^\W*(--[a-z0-9-]+)", out, re.MULTILINE))
    shown = {"--" + name.replace("_", "-") for name in spec_types(recipes.find("planar-2d").spec)}
    every = {"--" + name.replace("_", "-") for name in every_name()}
    assert shown <= words
    assert not (every - shown) & words
    assert {"--latent", "--length", "--flow"} <= shown
    assert {"--channels", "--observations", "--prior-kernel", "--step-bound"} <= every - shown
    assert "500" in out
    assert "(default: planar)" in " ".join(out.split())
    _, out, _ = call(capsys, "fit", "planar-2d", "--leapfrog", "2", "--network=strided", "--help")
    assert "--step-bound" in out
    assert "--channels" in out
    assert "--hidden" not in out


def test_recipes_are_listed_and_described(capsys):
    _, out, _ = call(capsys, "recipes")
    for name in recipes.TABLE:
        assert name in out
    _, out, _ = call(capsys, "recipes", "planar-2d")
    assert "length=3" in out


@pytest.mark.parametrize("recipe", recipes.every(), ids=lambda r: r.name)
def test_every_recipe_is_a_valid_spec_that_survives_writing(recipe):
    recipe.spec.validate()
    assert type(recipe.spec).from_dict(recipe.spec.to_dict()) == recipe.spec
    assert recipe.summary
    assert recipe.source


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fitt"], "command: unknown 'fitt'; did you mean 'fit'?"),
        (["fit"], "recipe: missing"),
        (["fit", "dens"], "recipe: unknown value 'dens'; did you mean 'dense'?"),
        (["fit", "digits", "--flow", "plannar"], "did you mean 'planar'?"),
        (["fit", "digits", "--flwo", "planar"], "--flwo: unknown setting; did you mean 'flow'?"),
        (["fit", "digits", "--flow", "maf", "--length", "0"], "length: was 0; use 1 or more"),
        (["fit", "digits", "--length", "4"], "length: is a setting of flow="),
        (["fit", "digits", "--length", "4"], "and flow=none has none; choose one of them, or leave length out"),
        (["fit", "digits", "--step-bound", "1"], "without leapfrog steps there is none; set leapfrog"),
        (["fit", "digits", "--observations", "9"], "observations: is a setting of target=gaussian-model"),
        (["fit", "digits", "--classes", "9"], "classes: is a setting of prior=pixelcnn, gated-pixelcnn"),
        (["fit", "digits", "--prior-lr", "0.1"], "prior_lr: belongs to the code prior"),
        (["fit", "digits", "--flow", "maf", "--length", "two"], "--length: was 'two'; use an integer"),
        (["fit", "digits", "--lr", "fast"], "--lr: was 'fast'; use a number"),
        (["fit", "digits", "--lr", "-1"], "lr: was -1.0; use a number above 0"),
        (["fit", "digits", "--lr", "nan"], "lr: was nan; use a finite number"),
        (["fit", "digits", "--network", "cnn"], "--network: unknown value 'cnn'; did you mean 'conv'?"),
        (["fit", "digits", "--optimizer", "adan"], "did you mean 'adam'?"),
        (["fit", "digits", "--protocol", "dynamik"], "did you mean 'dynamic'?"),
        (["fit", "digits", "--flow"], "--flow: needs a value"),
        (["fit", "digits", "--flow", "iaf", "--flow", "maf"], "--flow: given twice"),
        (["fit", "digits", "planar"], "'planar': not expected here"),
        (["fit", "digits", "--steps", "3", "--epochs", "3"], "give one of the two"),
        (["fit", "digits", "--base-moments", "fixed"], "leaves nothing that depends on x"),
        (["fit", "digits", "--protocol", "grey", "--likelihood", "bernoulli"], "grey"),
        (["fit", "digits", "--scale", "-2", "--likelihood", "gaussian"], "scale: was -2"),
        (["fit", "digits", "--latent", "1", "--flow", "nice", "--length", "4"], "needs at least 2"),
        (["fit", "digits", "--device", "gpu"], "device: unknown device 'gpu'"),
        (["fit", "digits", "--data", "/nowhere.npy"], "/nowhere.npy"),
        (["fit", "mnist-data", "--data", "mnits"], "recipe: unknown value"),
        (["fit", "digits", "--data", "mnits"], "mnits"),
        (["fit", "--resume", "/nowhere"], "holds no run"),
        (["fit", "digits", "--resume", "/nowhere"], "resume: given beside a recipe"),
        (["fit", "--resume", "/nowhere", "--latent", "3"], "latent: a resumed run keeps its settings; only --epochs"),
        (["fit", "--resume", "/nowhere", "--flow=iaf"], "flow: a resumed run keeps its settings"),
        (["fit", "--resume", "/nowhere", "--out", "x"], "out: a resumed run keeps its settings"),
        (["fit", "--resume", "/nowhere", "--prior-epochs", "3"], "holds no run"),
        (["fit", "dense", "--target", "u1", "--prior", "vamp"], "prior: belongs to p(z), and a target"),
        (["fit", "digits", "--flwo", "planar"], "--flwo: unknown setting; did you mean 'flow'?\n"),
        (
            ["fit", "digits", "--free-bits", "0.1", "--prior", "maf", "--out", "run"],
            "free_bits: need a closed form for each latent, which the prior Flow has not",
        ),
        (
            ["fit", "digits", "--free-bits", "0.1", "--top-latent", "2", "--out", "run"],
            "free_bits: need a closed form for each latent, which the posterior Ancestral has not",
        ),
        (["fit", "density", "--flow", "planar"], "flow: belongs to q(z|x), and with likelihood=identity"),
        (["fit", "density", "--leapfrog", "2"], "leapfrog: belongs to the Hamiltonian posterior, and with"),
        (
            ["fit", "digits", "--leapfrog", "2", "--tempering", "free", "--initial-temperature", "1"],
            "initial_temperature: was 1.0; use a number above 1, or tempering=none",
        ),
        (["evaluate"], "run: missing"),
        (["evaluate", "/nowhere"], "holds no run"),
        (["evaluate", "/nowhere", "--samples", "many"], "--samples: was 'many'; use an integer"),
        (["evaluate", "/nowhere", "--split", "tst"], "did you mean 'test'?"),
        (["evaluate", "/nowhere", "--memory", "nan"], "memory: was nan"),
        (["evaluate", "/nowhere", "--threads", "0"], "threads: was 0"),
        (["fit", "digits", "--no-flow"], "--no-flow: unknown setting"),
        (["fit", "digits", "--amortized=False"], "use --amortized or --no-amortized"),
        (["fit", "digits", "--optimizer", "sgd", "--nesterov"], "nesterov: needs momentum"),
        (["recipes", "dens"], "did you mean 'dense'?"),
        (["data", "download"], "name: missing"),
        (["data", "download", "imagenet"], "unknown value 'imagenet'"),
        (["data", "lst"], "did you mean 'list'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence_with_code_2(capsys, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert code == 2
    assert sentence in err
    assert err.startswith("varflow: ")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "protocol"), [("table.csv", "standardize"), ("levels.npy", "logit")]
)
def test_the_density_recipe_takes_own_data(capsys, tmp_path, name, protocol):
    path, out = tmp_path / name, tmp_path / "run"
    if path.suffix == ".csv":
        rows = np.random.default_rng(0).normal(50.0, 10.0, (200, 3))
        np.savetxt(path, rows, delimiter=",", header="a,b,c", comments="")
    else:
        np.save(path, np.random.default_rng(0).integers(0, 256, (200, 3)).astype(np.uint8))
    words = ["--steps", "3", "--threads", "1", "--quiet", "--no-report", "--out", str(out)]
    code, _, err = call(capsys, "fit", "density", "--data", str(path), *words)
    assert code == 0, err
    assert json.loads((out / "data.json").read_text())["protocol"] == protocol


@pytest.mark.slow
def test_the_whole_way_of_a_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--flow", "planar", "--length", "2", "--amortized", "--steps", "40", "--out", "run"]
    code, out, err = call(capsys, "fit", "digits", *TINY, *flags)
    assert code == 0, err
    assert "40 steps" in out
    assert (tmp_path / "run" / "report.html").exists()
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    code, out, err = call(capsys, "evaluate", "run", "--samples", "50", "--limit", "40", "--threads", "1")
    assert code == 0, err
    for word in ("elbo", "nll", "active_units", "±"):
        assert word in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "bits_per_dim" in page or "bits/dim" in page
    code, out, _ = call(capsys, "sample", "run", "--count", "9")
    assert code == 0
    sheet = tmp_path / "run" / "figures" / "sample.png"
    assert sheet.exists()
    before = sheet.read_bytes()
    call(capsys, "sample", "run", "--count", "9")
    assert sheet.read_bytes() == before
    call(capsys, "sample", "run", "--count", "9", "--seed", "1")
    assert sheet.read_bytes() != before
    assert call(capsys, "reconstruct", "run", "--count", "6", "--out", "pairs")[0] == 0
    assert (tmp_path / "pairs.png").exists()
    assert (tmp_path / "pairs.npy").exists()
    assert call(capsys, "report", "run")[0] == 0
    code, _, err = call(capsys, "reconstruct", "run", "--count", "100000")
    assert code == 2
    assert "has 250" in err
    code, _, err = call(capsys, "fit", "digits", *TINY, "--steps", "5", "--out", "run")
    assert code == 2
    assert "already holds a run" in err


@pytest.mark.slow
def test_estimates_of_weights_that_a_run_no_longer_has_are_told(capsys, tmp_path):
    run, other, words = (
        str(tmp_path / "run"),
        str(tmp_path / "other"),
        ["--samples", "2", "--limit", "5"],
    )
    for folder in (run, other):
        words_of_fit = ["--lr", "0.02", "--epochs", "1", "--keep", "last", "--no-report"]
        assert call(capsys, "fit", "digits", *TINY, *words_of_fit, "--out", folder)[0] == 0
        assert call(capsys, "evaluate", folder, *words, "--threads", "1")[0] == 0
    page = tmp_path / "run" / "report.html"
    assert "has gone on since" not in page.read_text()

    assert call(capsys, "fit", "--resume", run, "--epochs", "2", "--quiet")[0] == 0
    assert "has gone on since" in page.read_text()
    code, _, err = call(capsys, "compare", run, other, "--out", str(tmp_path / "out"))
    assert code == 2
    assert f"has gone on since it was evaluated; run: varflow evaluate {run}" in err

    assert call(capsys, "evaluate", run, *words, "--threads", "1")[0] == 0
    assert "has gone on since" not in page.read_text()


def test_a_temperature_of_one_is_none(capsys, tmp_path):
    words = ["--leapfrog", "1", "--tempering", "none", "--initial-temperature", "1", "--steps", "1"]
    code, _, err = call(
        capsys, "fit", "digits", *TINY, *words, "--no-report", "--out", str(tmp_path / "run")
    )
    assert code == 0, err


def test_what_is_exact_is_not_annealed(capsys, tmp_path):
    run = str(tmp_path / "run")
    words = ["--steps", "1", "--threads", "1", "--quiet", "--no-report", "--out", run]
    assert call(capsys, "fit", "density", "--data", "gaussian-1", *words)[0] == 0
    for command in ("anneal", "gaps", "curve"):
        code, _, err = call(capsys, command, run)
        assert code == 2
        assert "run: its log p(x) is exact, without latents; use varflow evaluate" in err


@pytest.mark.parametrize(
    ("recipe", "budget"), [("dense-static", "--epochs"), ("digits", "--steps")]
)
def test_either_budget_replaces_that_of_the_recipe(capsys, tmp_path, recipe, budget):
    words = ["fit", recipe, "--data", "digits", *TINY, budget, "1", "--no-report", "--out", str(tmp_path / "run")]
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert ("10 steps" if budget == "--epochs" else "1 steps") in out


@pytest.mark.slow
def test_every_flow_fits_with_one_flag(capsys, tmp_path):
    from varflow import flows

    for name in flows.TABLE:
        for sharing in ("--amortized", "--no-amortized"):
            out = str(tmp_path / f"{name}{sharing}")
            flags = ["--flow", name, sharing, "--length", "2", "--steps", "2", "--no-report"]
            code, _, err = call(capsys, "fit", "digits", *TINY, *flags, "--out", out)
            assert code == 0, (name, sharing, err)


@pytest.mark.parametrize(
    ("words", "flip"),
    [
        (["--flip"], True),
        (["--no-flip"], False),
        (["--flip", "True"], True),
        (["--flip", "False"], False),
        (["--flip=True"], True),
        (["--flip", "None"], None),
        ([], None),
    ],
)
def test_a_switch_that_may_be_left_open_has_both_forms(monkeypatch, capsys, words, flip):
    from varflow.runs import fitting

    seen = []

    def catch(spec, **options):
        seen.append(spec)
        raise SpecError("seen")

    monkeypatch.setattr(fitting, "fit", catch)
    for command in (["fit", "digits", *words], ["fit", "digits", *words, "--latent", "3"]):
        _, _, err = call(capsys, *command)
        assert err == "varflow: seen\n"
    assert [spec.data.flip for spec in seen] == [flip, flip]
    assert [spec.posterior.latent for spec in seen][1] == 3


@pytest.mark.slow
def test_what_reads_a_run_takes_device_and_data_folder(capsys, tmp_path):
    run, words = str(tmp_path / "run"), ["--steps", "2", "--no-report"]
    assert call(capsys, "fit", "digits", *TINY, *words, "--out", run)[0] == 0
    for command in ("sample", "reconstruct", "report"):
        code, _, err = call(capsys, command, run, "--device", "gpu")
        assert code == 2
        assert "device: unknown device 'gpu'" in err
        assert call(capsys, command, run, "--device", "cpu", "--data-dir", str(tmp_path))[0] == 0
    # The folder is where the data are looked for.
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    spec["data"]["data"] = "mnist"
    (tmp_path / "run" / "spec.json").write_text(json.dumps(spec))
    # What was learned of the data is in the run, so samples need no data.
    assert call(capsys, "sample", run, "--data-dir", str(tmp_path / "moved"))[0] == 0
    for command in ("reconstruct", "report"):
        code, _, err = call(capsys, command, run, "--data-dir", str(tmp_path / "moved"))
        assert code == 2
        assert f"not found under {tmp_path / 'moved'}" in err


def test_data_are_listed_and_checked(capsys):
    code, out, _ = call(capsys, "data")
    assert code == 0
    assert "digits" in out
    code, out, _ = call(capsys, "data", "check", "digits")
    assert code == 0
    assert "1297" in out
    assert out.splitlines()[-1] == "verified: every file has its official MD5 sum"


@pytest.mark.parametrize(
    "module", ["varflow", "varflow.cli", "varflow.settings.spec", "varflow.settings.recipes"]
)
def test_imports_are_light(module):
    script = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'tyro', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_the_convolutional_recipe_fits_svhn_files(capsys, tmp_path):
    numpy = pytest.importorskip("numpy")
    scipy_io = pytest.importorskip("scipy.io")
    rng = numpy.random.default_rng(0)
    for name, count in (("train", 60), ("test", 20)):
        pictures = rng.integers(0, 256, size=(32, 32, 3, count), dtype=numpy.uint8)
        labels = rng.integers(1, 11, size=(count, 1), dtype=numpy.uint8)
        (tmp_path / "svhn").mkdir(exist_ok=True)
        scipy_io.savemat(tmp_path / "svhn" / f"{name}_32x32.mat", {"X": pictures, "y": labels})
    small = ["--base", "4", "--scales", "2", "--batch", "9", "--latent", "4", "--threads", "1", "--quiet"]
    where = ["--data", "svhn", "--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    code, _, err = call(capsys, "fit", "conv-static", *small, *where, "--steps", "12")
    assert code == 2
    assert "MD5" in err
    code, _, err = call(capsys, "fit", "conv-static", *small, *where, "--steps", "12", "--no-verify")
    assert code == 0, err
    code, out, err = call(capsys, "evaluate", str(tmp_path / "run"), "--samples", "30", "--threads", "1")
    assert code == 0, err
    assert "bits_per_dim" in out
    assert "svhn test, logit; 20 points" in out


@pytest.mark.slow
def test_quiet_says_nothing_but_errors(capsys, tmp_path):
    run = str(tmp_path / "run")
    code, out, err = call(capsys, "fit", "digits", *TINY, "--steps", "2", "--quiet", "--out", run)
    assert (code, out, err) == (0, "", "")
    assert (tmp_path / "run" / "report.html").exists()
    assert call(capsys, "evaluate", run, "--samples", "5", "--limit", "10", "--quiet")[:2] == (0, "")
    code, _, err = call(capsys, "fit", "digits", *TINY, "--quiet", "--out", run)
    assert code == 2
    assert "already holds a run" in err


@pytest.mark.parametrize("verb", [("fit", "dense"), ("evaluate",)])
def test_a_shell_gets_its_completion(verb):
    done = subprocess.run(
        [sys.executable, "-m", "varflow", *verb, "--tyro-print-completion", "bash"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout
