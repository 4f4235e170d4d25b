"""The tables of docs/migration: our calls run, and theirs where their library is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

PAGES = sorted(
    page
    for page in (Path(__file__).parents[2] / "docs" / "migration").glob("*.md")
    if page.stem != "index"
)


def setups(page: Path) -> list[tuple[str, str]]:
    """Whose each block of Python is, by its first line, and the block."""
    return re.findall(r"^```python\n# (\w+)\n(.*?)^```$", page.read_text(), re.M | re.S)


def rows(page: Path) -> list[tuple[str, str]]:
    """Their call and ours."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    cells = [re.split(r"(?<!\\)\|", line) for line in lines]
    return [(code(theirs), code(ours)) for _, theirs, ours, *_ in cells]


def code(cell: str) -> str:
    found = re.fullmatch(r"`([^`]+)`", cell.strip())
    assert found, f"no code: {cell}"
    return found[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_our_calls_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = [text for whose, text in setups(page) if whose == "varflow"]
    assert len(rows(page)) >= 12
    for line in [blocks[0], *(ours for _, ours in rows(page)), *blocks[1:]]:
        exec(compile(line, f"{page.name}: {line}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_their_calls_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = page.stem
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__", "library": library}
    # Their warnings are theirs.
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        (setup,) = [text for whose, text in setups(page) if whose == library]
        for line in [setup, *(theirs for theirs, _ in rows(page))]:
            exec(compile(line, f"{page.name}: {line}", "exec"), names)
