"""Settings as TOML: what a spec writes, what --config reads, and what is said of mistakes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import varflow as vf
from varflow import RunSpec
from varflow.cli import main
from varflow.core.errors import SpecError
from varflow.core.files import read_json
from varflow.settings import recipes

TINY = ["--latent", "2", "--hidden", "8", "--layers", "1", "--threads", "1", "--no-report", "--quiet"]


def call(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def spec_of(folder) -> RunSpec:
    return RunSpec.from_dict(read_json(folder / "spec.json"))


@pytest.mark.parametrize("recipe", recipes.every(), ids=lambda r: r.name)
def test_a_spec_survives_toml(tmp_path, recipe):
    path = tmp_path / "run.toml"
    path.write_text(recipe.spec.to_toml())
    assert RunSpec.from_toml(path) == recipe.spec


def test_values_survive_toml_as_they_are(tmp_path):
    spec = RunSpec().replace(data_dir='C:\\data "x"\t\x7fé', lr=1e-7, clip=3.0, steps=7, verify=False, flip=True)
    path = tmp_path / "run.toml"
    path.write_text(spec.to_toml(), encoding="utf-8")
    read = RunSpec.from_toml(path)
    assert read == spec
    for name in ("data_dir", "lr", "clip", "steps", "epochs", "verify", "flip"):
        assert type(read.get(name)) is type(spec.get(name)), name


def test_flat_and_in_sections_and_over_a_recipe(tmp_path):
    flat, sections = tmp_path / "flat.toml", tmp_path / "sections.toml"
    flat.write_text('recipe = "digits"\nflow = "planar"\nlength = 3\nlr = 1\nsteps = 9\nclip = "None"\n')
    sections.write_text(
        'recipe = "digits"\n[flow]\nflow = "planar"\nlength = 3\n[optimizer]\nlr = 1.0\n[training]\nsteps = 9\n'
    )
    expected = recipes.find("digits").spec.replace(flow="planar", length=3, lr=1.0, steps=9)
    assert RunSpec.from_toml(flat) == RunSpec.from_toml(sections) == expected
    assert isinstance(RunSpec.from_toml(flat).get("lr"), float)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('flwo = "iaf"', "flwo: unknown setting; did you mean 'flow'?"),
        ('flow = "iaff"', "flow: unknown value 'iaff'; did you mean 'iaf'?"),
        ("length = 3", "length: is a setting of flow="),
        ('lr = "fast"', "lr: was 'fast' (str); expected float"),
        ("lr = -1", "lr: was -1.0; use a number above 0"),
        ("lr = [1, 2]", "lr: was [1, 2]; use a single value"),
        ("lr = ", "cannot be read as TOML"),
        ("[optimiser]\nlr = 1e-3", "[optimiser]: unknown section; did you mean 'optimizer'?"),
        ("[optimizer]\nlatent = 2", "latent: stands under [optimizer]; move it to [posterior]"),
        ("lr = 1e-3\n[optimizer]\nlr = 1e-3", "lr: given twice; give it once"),
        ('recipe = "dens"', "recipe: unknown value 'dens'; did you mean 'dense'?"),
        ("recipe = 3", "recipe: was 3; use the name of a recipe"),
        ("steps = 3\nepochs = 3", "give one of the two"),
        ('latent = "None"', "latent: was 'None' (str); expected int"),
    ],
)
def test_mistakes_are_one_sentence_with_the_file(tmp_path, text, sentence):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        RunSpec.from_toml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)
    with pytest.raises(SpecError, match="there is no such file"):
        RunSpec.from_toml(tmp_path / "none.toml")


def test_a_run_shown_as_toml_is_the_same_run_again(tmp_path, capsys):
    settings = {"flow": "planar", "length": 2, "latent": 2, "hidden": 8, "steps": 6, "patience": "5 epochs"}
    first = vf.fit("digits", out=tmp_path / "first", quiet=True, **settings)
    for options in ([], ["--changed"]):
        code, out, _ = call(capsys, "show", first.folder, "--toml", *options)
        assert code == 0
        assert out.startswith('recipe = "digits"')
        path = tmp_path / "run.toml"
        path.write_text(out)
        assert RunSpec.from_toml(path) == first.spec
    folder = tmp_path / "again"
    assert call(capsys, "fit", "--config", path, "--out", folder, "--no-report", "--quiet")[0] == 0
    assert spec_of(folder) == first.spec
    assert (folder / "model.safetensors").read_bytes() == (first.folder / "model.safetensors").read_bytes()
    assert read_json(folder / "run.json")["recipe"] == "digits"


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text('flow = "planar"\nlength = 3\nlr = 0.01\nsteps = 50\n')
    words = [*TINY, f"--config={path}", "--length", "4", "--steps", "3", "--out", tmp_path / "run"]
    assert call(capsys, "fit", "digits", *words)[0] == 0
    spec = spec_of(tmp_path / "run")
    assert [spec.get(name) for name in ("flow", "length", "lr", "steps", "batch")] == ["planar", 4, 0.01, 3, 64]
    # A choice on the command line leaves the file's settings of the other choice behind, as for a recipe's.
    words = [*TINY, "--config", path, "--flow", "none", "--steps", "2", "--out", tmp_path / "none"]
    assert call(capsys, "fit", "digits", *words)[0] == 0
    assert spec_of(tmp_path / "none").get("flow") == "none"
    _, out, _ = call(capsys, "fit", "digits", "--config", path, "--help")
    assert "(default: 0.01)" in " ".join(out.split())


def test_config_on_the_command_line_is_refused_where_it_cannot_be(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text('recipe = "dense"\n')
    assert "recipe: was 'dense', and digits is given beside it" in call(capsys, "fit", "digits", "--config", path)[2]
    assert "a resumed run keeps its settings" in call(capsys, "fit", "--resume", "x", "--config", path)[2]
    assert "--config: needs a value" in call(capsys, "fit", "--config")[2]
    assert "or --config FILE" in call(capsys, "fit")[2]


def test_the_settings_of_a_run_are_a_table(tmp_path, capsys):
    vf.fit("digits", out=tmp_path / "run", quiet=True, latent=2, hidden=8, steps=3)
    code, out, _ = call(capsys, "show", tmp_path / "run")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{tmp_path / 'run'}: recipe digits"
    rows = [line.split() for line in lines]
    assert ["posterior", "posterior", "gaussian"] in rows
    assert ["*", "latent", "2"] in rows
    assert ["batch", "64"] in [row[-2:] for row in rows]
    assert lines[-1] == "* differs from the recipe"
    _, changed, _ = call(capsys, "show", tmp_path / "run", "--changed")
    names = {line.split("*")[1].split()[0] for line in changed.splitlines()[1:-1]}
    assert names == {"latent", "hidden", "steps", "epochs"}
    _, recipe, _ = call(capsys, "show", "digits", "--changed", "--toml")
    path = tmp_path / "recipe.toml"
    path.write_text(recipe)
    assert RunSpec.from_toml(path) == recipes.find("digits").spec
    assert "did you mean 'digits'?" in call(capsys, "show", "digts")[2]
    assert "run: missing" in call(capsys, "show")[2]


def test_show_and_config_need_no_torch(tmp_path):
    script = (
        "import sys\nfrom varflow.cli import main\n"
        "for words in (['show', 'digits', '--toml'], ['show', '--help'], ['fit', 'digits', '--help']):\n"
        "    try:\n        main(words)\n    except SystemExit as end:\n        assert end.code == 0, words\n"
        "import varflow\nvarflow.RunSpec().to_toml()\n"
        "heavy = {'torch', 'mlflow', 'wandb', 'trackio', 'optuna', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
