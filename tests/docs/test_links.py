"""Links between files of the repository point at files and headings that are there."""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys
import unicodedata
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from website import links, reference  # noqa: E402


def pages() -> list[Path]:
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    for folder in ("docs", "benchmarks"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return found


def slug(heading: str) -> str:
    """As GitHub and the site make anchors of headings."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    text = unicodedata.normalize("NFC", text).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    text = "".join(
        part for code, part in links.parts(page.read_text()) if not code or "```" not in part
    )
    return frozenset(slug(heading) for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.M))


def missing(page: Path) -> list[str]:
    wrong = []
    for target in links.targets(page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        there = page if not path else Path(posixpath.normpath(page.parent / path))
        made = (
            path
            and there.is_relative_to(ROOT / "docs")
            and str(there.relative_to(ROOT / "docs")) in MADE
        )
        awaited = path and there.is_relative_to(ROOT / "docs" / "tutorials")
        if made or (awaited and not there.exists()):
            continue
        if not there.exists() or (
            anchor and there.suffix == ".md" and anchor not in anchors(there)
        ):
            wrong.append(target)
    return wrong


#: Pages that only the site has.
MADE = {
    f"reference/{name}.md" for name in ("index", "varflow", "command_line", "recipes", "settings")
} | {f"reference/{room}.md" for rooms in reference.GROUPS.values() for room in rooms}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_at_what_is_there(page: Path) -> None:
    assert missing(page) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n\n[x](#a-b-c) [y](#nowhere) [z](other.md) `[not](code.md)`\n\n```\n[nor](this.md)\n```\n"
    )
    assert missing(page) == ["#nowhere", "other.md"]


def test_links_are_rewritten_outside_of_code() -> None:
    text = "[a](b.md#c) ![p](q.png) `[a](b.md)` [![i](j.png)](k.md) [e](https://x.y)\n```\n[a](b.md)\n```\n"
    moved = links.rewritten(text, lambda target: f"up/{target}")
    assert moved == (
        "[a](up/b.md#c) ![p](up/q.png) `[a](b.md)` [![i](up/j.png)](up/k.md) [e](https://x.y)\n```\n[a](b.md)\n```\n"
    )
    assert links.rewritten("see [the words](gone.md).", lambda target: None) == "see the words."


def test_the_reference_has_every_public_room() -> None:
    """A new room of parts has a page, and the tables of the reference need no torch."""
    rooms = {room for rooms in reference.GROUPS.values() for room in rooms}
    exports = reference._exports()
    public = {name for name, target in exports.items() if ":" not in target}
    assert rooms == public
    code = (
        "import sys; sys.path[:0] = [{!r}, {!r}]\nfrom website import reference\n"
        "reference._settings(); reference._recipes(); reference._index(); reference._room('flows')\n"
        "assert 'torch' not in sys.modules"
    ).format(str(ROOT), str(ROOT / "src"))
    subprocess.run([sys.executable, "-c", code], check=True)
