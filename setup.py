"""What pyproject.toml cannot say: the README with links that work on a package page, and the project's addresses.

Both follow from ``[tool.varflow]`` in pyproject.toml. While no repository is named there, the README stays as it is.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent

#: Where Markdown and HTML name another file.
_LINK = re.compile(r"""(?P<before>\]\(|\b(?:src|href|srcset)=["'])(?P<target>[^)"'\s]+)""")
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")


def places(version: str) -> dict[str, str]:
    """Of ``[tool.varflow]``, for this version; without a repository nothing."""
    held = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["varflow"]
    repository = held["repository"].rstrip("/")
    if not repository:
        return {}
    known = {"repository": repository, "version": version, "path": "{path}"}
    return {"repository": repository, **{name: held[name].format(**known) for name in ("page", "file")}}


def version() -> str:
    """As varflow says it, without importing varflow."""
    text = (ROOT / "src" / "varflow" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    return found[1]


def relative_links(text: str) -> list[str]:
    """The files that a page names, outside of its blocks of code."""
    prose = re.sub(r"^(```+|~~~+).*?^\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [m["target"] for m in _LINK.finditer(prose) if _is_relative(m["target"])]


def absolute(text: str, place: Mapping[str, str]) -> str:
    """``text`` with its relative links made absolute: pictures to the file itself, all else to its page."""
    if not place:
        return text

    def moved(link: re.Match[str]) -> str:
        target = link["target"]
        if not _is_relative(target):
            return link[0]
        path, mark, section = target.removeprefix("./").partition("#")
        kind = "file" if path.lower().endswith(_PICTURES) else "page"
        return link["before"] + place[kind].format(path=path) + mark + section

    # Blocks of code stay as they are.
    parts = re.split(r"(^(?:```+|~~~+).*?^(?:```+|~~~+)\s*$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else _LINK.sub(moved, part) for number, part in enumerate(parts))


def urls(place: Mapping[str, str]) -> dict[str, str]:
    """What the package page lists beside the text."""
    if not place:
        return {}
    return {
        "Source": place["repository"],
        "Documentation": place["page"].format(path="docs"),
        "Changelog": place["page"].format(path="CHANGELOG.md"),
        "Issues": f"{place['repository']}/issues",
    }


def _is_relative(target: str) -> bool:
    return not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//|/|#", target)


if __name__ == "__main__":
    from setuptools import setup

    told = places(version())
    setup(
        long_description=absolute((ROOT / "README.md").read_text(encoding="utf-8"), told),
        long_description_content_type="text/markdown",
        project_urls=urls(told),
    )
