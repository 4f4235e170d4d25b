"""docs/own_parts.md does what it says: its blocks run in order, and print what stands under them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "own_parts.md"


def test_the_blocks_run_in_order_and_print_what_stands_under_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A reader runs them in a script or a notebook, whose classes are of __main__.
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    printed = ""
    for (kind, block), after in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "text":
            assert printed == block
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block, f"{PAGE.name}: {block.splitlines()[0]}", "exec"), names)
        printed = out.getvalue()
        assert bool(printed) == (after[0] == "text"), block


@pytest.mark.parametrize("name", ["Poisson", "LaplacePrior"])
def test_a_likelihood_and_a_prior_are_ten_lines(name: str) -> None:
    body = PAGE.read_text().partition(f"class {name}(")[2].partition("```")[0]
    lines = [line for line in body.splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 10
