"""The map in CONTRIBUTING.md is true: every room is on it, and imports point to lower floors alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "varflow"


def floors() -> dict[str, int]:
    """room → the row of the map that it is on."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## The rooms")[2]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return {
        room: number
        for number, row in enumerate(rows)
        for room in re.findall(r"`(\w+)`", row.split("|")[1])
    }


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(node: ast.AST) -> Iterator[str]:
    """The rooms that a module imports when it is imported itself."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and child.module == "varflow":
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and (child.module or "").startswith("varflow."):
            yield str(child.module).split(".")[1]
        elif isinstance(child, ast.Import):
            yield from (a.name.split(".")[1] for a in child.names if a.name.startswith("varflow."))
        yield from imports(child)


def test_every_room_is_on_the_map() -> None:
    there = {room(path) for path in SOURCE.rglob("*.py")}
    assert set(floors()) == there


def test_imports_point_down() -> None:
    floor = floors()
    upwards = {
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in SOURCE.rglob("*.py")
        for name in imports(ast.parse(path.read_text()))
        if floor[name] > floor[room(path)]
    }
    assert not upwards
