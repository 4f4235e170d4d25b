"""How the site is made: notebooks as pages, nothing from other hosts, docstrings as they are read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def test_a_notebook_becomes_a_page_with_its_outputs(tmp_path: Path) -> None:
    pytest.importorskip("latex2mathml")
    from website import notebooks

    printed = {"output_type": "stream", "text": ["10 %\r100 %\n", "\x1b[31mred\x1b[0m\n"]}
    table = {"output_type": "execute_result", "data": {"text/html": "<b>x</b>", "text/plain": "x"}}
    picture = {
        "output_type": "display_data",
        "data": {"image/png": "iVBO\nRw0K", "text/plain": "<Figure>"},
    }
    cells = [
        {
            "cell_type": "markdown",
            "source": "# Title\n\nSee [that](../using.md), `$x$`, 5 $ and $$\\log w = a_1$$",
        },
        {"cell_type": "code", "source": ["print(1)\n", "x"], "outputs": [printed, table, picture]},
        {
            "cell_type": "code",
            "source": "hidden",
            "outputs": [],
            "metadata": {"tags": ["remove_input"]},
        },
    ]
    path = tmp_path / "some.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    page, outputs = notebooks.convert(path)
    assert page.startswith("# Title")
    assert '<a href="some.ipynb" download>' in page
    assert "[that](../using.md), `$x$`, 5 $ and" in page
    assert "```python\nprint(1)\nx\n```" in page
    assert "100 %\nred\n" in page
    assert "10 %\n" not in page.replace("100 %\n", "")
    assert "hidden" not in page
    found = list(outputs.values())
    assert [all(mark in page for mark in outputs), len(found)] == [True, 3]
    assert "<math" in found[0]
    assert 'log</mi><mspace width="0.17em">' in found[0]
    assert "<b>x</b>" in found[1]
    assert 'src="data:image/png;base64,iVBORw0K" alt="&lt;Figure&gt;"' in found[2]


def test_a_page_that_loads_from_another_host_is_refused() -> None:
    pytest.importorskip("mkdocs")
    from website import hooks

    own = (
        '<link rel="canonical" href="https://site.org/a"><script src="assets/a.js"></script><a href="https://x.org">'
        '<img src="data:image/png;base64,//ab/cd"><style>a { background: url(b.png) }</style>'
    )
    assert hooks.loaded_from_elsewhere(own) == []
    other = (
        '<script async src="https://cdn.org/a.js"></script><link rel=stylesheet href="//fonts.org/css">'
        '<img alt="" src=http://x.org/a.png><style>@import "https://y.org/b.css";</style>'
    )
    assert hooks.loaded_from_elsewhere(other) == [
        "//fonts.org/css", "http://x.org/a.png", "https://cdn.org/a.js", "https://y.org/b.css",
    ]  # fmt: skip


def test_pages_and_sections_that_are_not_there_leave_the_navigation() -> None:
    pytest.importorskip("mkdocs")
    from website import hooks

    nav = [
        {"Home": "index.md"},
        {"Guides": ["using.md", {"Gone": "tutorials/gone.md"}]},
        {"Found": []},
        {"Empty": []},
    ]
    assert hooks._filled(nav, {"Found": ["a.md"]}) == [
        {"Home": "index.md"}, {"Guides": ["using.md"]}, {"Found": ["a.md"]},
    ]  # fmt: skip


def test_docstrings_are_read_as_they_are_written() -> None:
    griffe = pytest.importorskip("griffe")
    from website import roles

    text = "First.\n\nArgs:\n    a, b: both,\n        explained.\n    c: one.\n\nRaises:\n    A, B: as there.\n"
    assert roles._each(text) == (
        "First.\n\nArgs:\n    a: both,\n        explained.\n    b: both,\n        explained.\n    c: one.\n\n"
        "Raises:\n    A, B: as there."
    )
    with griffe.temporary_visited_module(
        'class A:\n    """See :class:`~varflow.Model` and :meth:`b`."""\n'
    ) as module:
        roles.Roles().on_package(pkg=module)
        value = module["A"].docstring.value
    assert 'identifier="varflow.Model" optional><code>Model</code>' in value
    assert ".A.b" in value
