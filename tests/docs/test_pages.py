"""The pages of the site and the README do what they say: their Python runs, and prints what stands under it."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONCEPTS = sorted((DOCS / "concepts").glob("*.md"))

#: What a reader has time for, and what a test has.
BUDGETS = (
    ("epochs=200", "epochs=2"), ("epochs=100", "epochs=2"), ('warmup="20 epochs"', 'warmup="1 epochs"'),
    ("samples=500", "samples=5"), ("samples=200", "samples=5"),
    ('vf.fit("density", "table.csv",', 'vf.fit("density", "table.csv", steps=20, quiet=True,'),
    ("--epochs 100", "--epochs 2"), ("--samples 200", "--samples 5"), ("--target u1", "--target u1 --steps 20"),
)  # fmt: skip


def blocks(page: Path, *kinds: str) -> list[tuple[str, str]]:
    """Language and text of the blocks of a page; "" is a block without a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [(kind, text) for kind, text in found if kind in kinds]


def short(text: str) -> str:
    for long, few in BUDGETS:
        text = text.replace(long, few)
    return text


def run(code: str, name: str, names: dict[str, Any]) -> str:
    """What a block prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, name, "exec"), names)
    return out.getvalue()


@pytest.mark.parametrize("page", CONCEPTS, ids=lambda page: page.stem)
def test_concepts_run_and_print_what_stands_under_them(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = None
    for kind, text in blocks(page, "python", "text"):
        if kind == "python":
            printed = run(text, page.name, names)
        elif printed is not None:
            assert printed == text
            printed = None
    assert not printed, "a block prints, and nothing stands under it"


def test_the_second_block_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``tests/test_run.py`` runs the first one."""
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(200, 3))
    np.savetxt("table.csv", rows, delimiter=",", header="a,b,c", comments="")
    names: dict[str, Any] = {"new_rows": rows[:5]}
    _, (_, text) = blocks(ROOT / "README.md", "python")
    run(short(f"import varflow as vf\n{text}"), "README.md", names)
    assert names["run"].log_prob(rows[:5]).shape == (5,)


@pytest.mark.parametrize("page", ["index.md", "python.md"])
def test_the_site_shows_the_blocks_of_the_readme(page: str) -> None:
    readme = [text for _, text in blocks(ROOT / "README.md", "python")]
    assert blocks(DOCS / page, "python")
    assert all(text in readme for _, text in blocks(DOCS / page, "python"))


def test_the_python_of_the_first_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = [run(short(text), "start.md", {}) for _, text in blocks(DOCS / "start.md", "python")]
    assert "torch.Size([16, 1, 8, 8])" in printed[0]
    assert printed[0].rstrip().endswith("True")
    assert len((tmp_path / "patients.csv").read_text().splitlines()) == 401


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_first_page_run(tmp_path: Path) -> None:
    """In the order of the page, with few epochs; the table comes from its block of Python."""
    for kind, text in blocks(DOCS / "start.md", "python", ""):
        if kind == "python":
            if "patients.csv" in text:
                subprocess.run([sys.executable, "-c", text], cwd=tmp_path, check=True)
            continue
        for line in short(text).splitlines():
            if line.startswith("varflow "):
                command = [sys.executable, "-m", *line.split()]
                done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}\n{done.stderr}"
    for name in (
        "runs/planar/report.html",
        "comparison/comparison.html",
        "samples.png",
        "reconstructions.png",
        "filled.csv",
    ):
        assert (tmp_path / name).is_file(), name


# -- the README ------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_numbers_of_the_readme_stand_in_the_tables() -> None:
    """Each number of "What it does better" is one of the pages with the results, where its command stands too."""
    section = (ROOT / "README.md").read_text().split("## What it does better")[1].split("## ")[0]
    pages = [DOCS / f"{name}.md" for name in ("densities", "bounds", "speed", "posteriors")]
    pages += (ROOT / "benchmarks" / "results").glob("*.md")
    text = "\n".join(page.read_text() for page in pages)
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| **")]
    numbers = [
        number for row in rows for number in re.findall(r"1/\d+|\d[\d,]*\.\d+|\d,\d{3}", row)
    ]
    assert len(rows) == 6
    assert len(numbers) >= 8
    assert [number for number in numbers if number not in text] == []


def test_links_and_pictures_of_the_readme_can_be_rewritten() -> None:
    """Only [words](path) and ![words](path), from the root: a build step can put an address before them."""
    text = (ROOT / "README.md").read_text()
    assert not re.search(r"<img|<a |<picture|^\[[^\]]+\]: ", text, re.M)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert not target.startswith(("/", ".", "#")), target
