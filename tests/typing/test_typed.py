"""Type checkers see every public name with its type: right snippets pass, wrong ones are refused line by line."""

from __future__ import annotations

import getpass
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import generate
import pytest

import varflow as vf
from varflow.runs import fitting

HERE = Path(__file__).parent
#: file → line → the rules that were broken there.
Found = dict[str, dict[int, set[str]]]


def test_the_imports_and_the_keywords_are_those_of_the_tables() -> None:
    assert not generate.outdated(), "run: python tests/typing/generate.py"
    assert generate.BUDGETS == fitting.BUDGETS


def test_what_is_not_exported_is_no_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        vf.fitt  # noqa: B018


def test_type_checking_imports_leave_torch_out() -> None:
    code = "import sys, varflow, varflow.settings.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment()).returncode == 0


def environment() -> dict[str, str]:
    source = str(Path(vf.__file__).parents[1])
    return {**os.environ, "MYPYPATH": source, "PYTHONPATH": source, "NO_COLOR": "1"}


def mypy(*files: Path) -> str:
    """What ``mypy --strict`` says of files."""
    pytest.importorskip("mypy")
    # The first run reads torch, which takes 20 s; later ones read this cache.
    cache = Path(tempfile.gettempdir()) / f"varflow-mypy-{getpass.getuser()}"
    options = ["--config-file=", "--strict", "--follow-imports=silent", "--no-error-summary", "--no-pretty"]
    command = [sys.executable, "-m", "mypy", *options, f"--cache-dir={cache}", *(path.name for path in files)]
    said = subprocess.run(
        command, capture_output=True, text=True, cwd=files[0].parent, env=environment(), check=False
    )
    assert said.returncode in (0, 1), said.stdout + said.stderr
    return said.stdout


@pytest.mark.slow
def test_every_public_name_has_a_type(tmp_path: Path) -> None:
    modules = [room.parent.relative_to(generate.SOURCE).parts for room in generate.rooms()]
    names = [(".".join(parts), name) for parts in modules for name in exports(".".join(parts))]
    lines = [f"reveal_type({module}.{name})" for module, name in names]
    imports = [f"import {module}" for module in dict(names)]
    (tmp_path / "every.py").write_text("\n".join([*imports, *lines]) + "\n")
    said = mypy(tmp_path / "every.py")
    assert ": error: " not in said
    revealed = re.findall(r'note: Revealed type is "(.*)"$', said, re.M)
    assert len(revealed) == len(names)
    untyped = [name for (_, name), kind in zip(names, revealed, strict=True) if kind == "Any"]
    assert untyped == []


def exports(module: str) -> dict[str, str]:
    table: dict[str, str] = vars(importlib.import_module(module))["_EXPORTS"]
    return table


def by_mypy() -> Found:
    said = mypy(HERE / "right.py", HERE / "wrong.py")
    found: Found = defaultdict(lambda: defaultdict(set))
    for name, line, rule in re.findall(r"^(\w+\.py):(\d+): error: .*\[([\w-]+)\]$", said, re.M):
        found[name][int(line)].add(rule)
    return found


def by_pyright() -> Found:
    pytest.importorskip("pyright")
    files = [str(HERE / "right.py"), str(HERE / "wrong.py")]
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", *files]
    said = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=environment(), check=False)
    if not said.stdout.startswith("{"):
        pytest.skip(f"pyright does not start here: {said.stderr[-200:]}")
    found: Found = defaultdict(lambda: defaultdict(set))
    for mistake in json.loads(said.stdout)["generalDiagnostics"]:
        if mistake["severity"] == "error":
            line = mistake["range"]["start"]["line"] + 1
            found[Path(mistake["file"]).name][line].add(mistake["rule"])
    return found


def expected(checker: str) -> dict[int, set[str]]:
    """line of wrong.py → the rule that it names."""
    lines = (HERE / "wrong.py").read_text().splitlines()
    marks = {number: re.search(rf"# .*{checker}: ([\w, -]+)", line) for number, line in enumerate(lines, 1)}
    return {number: set(mark[1].split(", ")) for number, mark in marks.items() if mark}


@pytest.mark.slow
@pytest.mark.parametrize("check", [by_mypy, by_pyright])
def test_right_snippets_pass_and_wrong_ones_are_refused(check: object) -> None:
    assert callable(check)
    found = check()
    assert dict(found["right.py"]) == {}
    assert dict(found["wrong.py"]) == expected(check.__name__.removeprefix("by_"))


def test_right_snippets_run(tmp_path: Path) -> None:
    import right

    right.a_recipe(tmp_path / "run")
    assert right.a_recipe_whose_name_is_a_variable("digits").get("flow") == "iaf"
    right.parts_of_ones_own()
    right.a_target()
    assert "length" in right.data_and_errors()
