"""The tutorials: stored as they should be, and each runs without an error or a warning."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NAMES = (
    "first_vae", "flows_on_energies", "posteriors_compared", "table_with_gaps", "pictures_to_codes", "your_own_parts",
)  # fmt: skip


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return found


def test_these_are_all() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_stored_with_outputs_and_nothing_that_changes_by_itself(name: str) -> None:
    path, notebook = FOLDER / f"{name}.ipynb", read(name)
    assert path.stat().st_size <= 400_000
    first, *rest = notebook["cells"]
    assert first["cell_type"] == "markdown"
    assert "".join(first["source"]).startswith("# ")
    for said in ("**What you will learn.**", "**What you need.**"):
        assert said in "".join(first["source"])
    assert "## Exercises" in "".join(rest[-1]["source"]) or "## Where to go next" in "".join(rest[-1]["source"])
    cells = [cell for cell in rest if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} <= {"stdout"}
    assert not any("execution" in cell["metadata"] for cell in cells)
    assert set(notebook["metadata"]["language_info"]) == {"name", "pygments_lexer"}
    shown = json.dumps(outputs)
    assert not re.search(r"/(home|root|tmp|work|Users)/|seconds|steps/s", shown)
    assert not re.search(r"(src|href)=\\?[\"'](?!data:)", shown)


@pytest.mark.parametrize("name", NAMES)
def test_links_between_pages_lead_somewhere(name: str) -> None:
    text = "\n".join("".join(cell["source"]) for cell in read(name)["cells"] if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (FOLDER / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str) -> None:
    for needed in ("nbclient", "ipykernel", "sklearn", "pandas"):
        pytest.importorskip(needed)
    words = [sys.executable, str(FOLDER / "execute.py"), "--check", name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
