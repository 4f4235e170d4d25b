"""What a shell offers behind a word of the command line."""

import os
import shutil
import subprocess
import sys

import pytest

from varflow.cli import VERBS, main
from varflow.cli.completion import answer, candidates
from varflow.settings import recipes
from varflow.settings.flags import spec_types


def values(*words: str) -> list[str]:
    return [one.value for one in candidates(list(words))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Runs, a sweep and files, by their names alone."""
    for name in ("runs/a", "runs/b c", "other/deep/d"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "spec.json").touch()
    for name in ("empty", "s", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "s" / "plan.json").touch()
    for name in ("rows.csv", "set.toml", ".secret"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_verbs_recipes_and_settings():
    assert set(VERBS) < set(values(""))
    assert values("ev") == ["evaluate"]
    assert values("fit", "") == list(recipes.TABLE)
    assert values("fit", "vq-p") == ["vq-pixelcnn"]
    assert values("recipes", "planar") == ["planar-2d"]
    assert values("nonsense", "") == []


def test_the_flags_of_fit_are_those_of_the_parts_that_are_chosen():
    def flags(*words: str) -> set[str]:
        return {one.removeprefix("--").removeprefix("no-").replace("-", "_") for one in values("fit", *words, "--")}

    plain = flags("digits")
    assert set(spec_types(recipes.find("digits").spec)) <= plain
    assert "length" not in plain
    assert {"length", "amortized"} <= flags("digits", "--flow", "planar")
    assert "length" in flags("digits", "--flow=planar")
    assert "step_bound" in flags("digits", "--leapfrog", "2")
    assert "latent" not in flags("density")
    # A mistake before is for the verb to name; what is offered is that of the recipe.
    assert "latent" in flags("digits", "--flow", "plannar")


def test_the_parts_that_a_file_of_settings_chooses(folder):
    (folder / "set.toml").write_text('recipe = "digits"\nflow = "iaf"\n')
    assert "--length" in values("fit", "--config", "set.toml", "--le")
    (folder / "set.toml").write_text("flow = [")
    assert values("fit", "--config", "set.toml", "--le") == []


def test_what_was_given_is_not_offered_again():
    assert "--latent" not in values("fit", "digits", "--latent", "3", "--la")
    # A setting that takes several words is.
    assert values("fit", "table", "--column", "a:count", "--column") == ["--column", "--column-scale"]


def test_a_switch_is_offered_as_it_changes_something():
    assert values("fit", "digits", "--no-rep") == ["--no-report"]
    assert values("fit", "digits", "--rep") == []
    assert values("fit", "digits", "--over") == ["--overwrite"]
    assert values("fit", "digits", "--overwrite", "--qu") == ["--quiet"]


def test_values_of_a_setting():
    assert values("fit", "digits", "--flow", "pl") == ["planar"]
    assert values("fit", "digits", "--flow=pl") == ["--flow=planar"]
    assert values("evaluate", "run", "--split", "") == ["auto", "test", "validation", "train"]
    assert values("evaluate", "run", "--device", "") == ["cpu", "cuda"]
    assert values("fit", "digits", "--track", "ml") == ["mlflow"]
    assert values("fit", "digits", "--latent", "") == []
    assert values("data", "do") == ["download"]
    assert "digits" not in values("data", "download", "")
    assert "digits" in values("data", "check", "")
    assert values("completion", "") == ["bash", "zsh", "fish"]


def test_runs_and_the_folders_that_lead_to_them(folder):
    assert values("evaluate", "") == ["other/", "runs/"]
    assert values("evaluate", "runs/") == ["runs/a", "runs/b c"]
    assert values("evaluate", "other/") == ["other/deep/"]
    assert values("evaluate", f"{folder}/ru") == [f"{folder}/runs/"]
    assert values("fit", "--resume", "runs/") == ["runs/a", "runs/b c"]
    assert values("sweep", "--resume", "") == ["s"]
    assert values("compare", "runs/a", "runs/") == ["runs/b c"]
    assert "digits" in values("show", "d")
    assert values("evaluate", "nowhere/x") == []


def test_a_run_is_followed_by_rows_and_then_by_flags(folder):
    found = values("score", "runs/a", "")
    assert {"digits", "rows.csv", "runs/"} <= set(found)
    assert ".secret" not in found
    assert values("score", "runs/a", ".se") == [".secret"]
    assert values("score", "runs/a", "rows.csv", "--sa") == ["--samples"]
    assert "--samples" in values("score", "runs/a", "rows.csv", "")
    assert "--run" not in values("score", "runs/a", "--r")
    # Nothing but flags may follow a flag.
    assert values("score", "runs/a", "--anomaly", "rows") == []


def test_every_verb_and_flag_says_what_it_is():
    for verb in VERBS:
        if verb == "recipes":
            continue
        told = {one.value: one.help for one in candidates([verb, "--"])}
        assert told["--help"]
        assert all(told[flag] for flag in told), (verb, told)
        assert all(len(text) <= 70 and "\n" not in text for text in told.values())


def test_a_shell_gets_a_line_a_word(capsys):
    assert answer(["zsh", "2", "varflow", "fit", "digi"]) == 0
    assert capsys.readouterr().out == "digits\tdense VAE on the embedded 8x8 digits, 8 latents, seconds to train\n"
    assert answer(["fish", "3", "varflow", "fit", "digits", "--flow=ia"]) == 0
    assert capsys.readouterr().out == "--flow=iaf\n"
    # The words behind the cursor are none of it.
    assert answer(["zsh", "1", "varflow", "eval", "--split", "test"]) == 0
    assert capsys.readouterr().out.startswith("evaluate\t")


def test_the_shell_has_to_be_one_that_is_known(capsys):
    missing, unknown = "shell: missing; give bash, zsh or fish", "unknown value 'csh'"
    for words, sentence in ((["completion"], missing), (["completion", "csh"], unknown)):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        assert sentence in capsys.readouterr().err


def test_torch_is_not_imported(folder):
    script = (
        "import sys\nfrom varflow.cli import main\nfrom varflow.cli.completion import candidates\n"
        "for line in 'fit digits --flow planar --', 'score runs/a ', 'data check ':\n"
        "    assert candidates(line.split(' '))\n"
        "print([name for name in ('torch', 'numpy', 'matplotlib', 'tyro') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture
def varflow_on_path(folder, monkeypatch):
    (folder / ".bin").mkdir()
    program = folder / ".bin" / "varflow"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m varflow "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return folder


#: As the shell itself calls it: the words, and the place of the last.
_TRY = """
eval "$(varflow completion bash)"
[ "$(complete -p varflow)" = "complete -F _varflow varflow" ] || exit 1
try() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    _varflow
    (IFS='|'; echo "${COMPREPLY[*]}")
}
try varflow fi
try varflow fit digits --flow = pl
try varflow fit digits --flow =
try varflow evaluate 'runs/b\\ '
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes(varflow_on_path):
    done = subprocess.run(["bash", "--norc", "-c", _TRY], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    verb, flow, flows, run = done.stdout.splitlines()
    # bash splits at the equals sign and replaces what stands behind it; what it reads is quoted.
    assert (verb, flow, run) == ("fit", "planar", r"runs/b\ c")
    assert flows.startswith("none|planar|radial|")


#: A person at a terminal, as a program: a shell, what sets it up, and pairs of keys and what they make.
_PERSON = """
import os, pty, re, select, sys
words, sets, *pairs = sys.argv[1:]
process, terminal = pty.fork()
if process == 0:
    os.execvp(words.split()[0], words.split())

def until(expected):
    seen = ""
    while expected not in re.sub(r"\\x1b[^a-zA-Z]*[a-zA-Z]|\\x07", "", seen):
        ready, _, _ = select.select([terminal], [], [], 20)
        if not ready:
            sys.exit(f"{expected!r} is not in {seen!r}")
        seen += os.read(terminal, 65536).decode(errors="replace")

os.write(terminal, f"{sets}; echo re''ady\\n".encode())
until("ready")
for keys, expected in zip(pairs[::2], pairs[1::2]):
    os.write(terminal, keys.encode())
    until(expected)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "sets"),
    [
        ("bash --norc -i", 'eval "$(varflow completion bash)"'),
        ("zsh -f -i", 'autoload -U compinit; compinit -u; eval "$(varflow completion zsh)"'),
        ("fish --no-config -i", "varflow completion fish | source"),
    ],
)
def test_a_key_pressed_in_a_shell(shell, sets, varflow_on_path):
    pytest.importorskip("pty")
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"there is no {shell.split()[0]} here")
    keys = ["varflow fit digits --flow=ia\t", "--flow=iaf ", "\x15varflow evaluate runs/b\t", r"runs/b\ c "]
    done = subprocess.run(
        [sys.executable, "-c", _PERSON, shell, sets, *keys], capture_output=True, text=True,
        env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
