"""What mkdocs is told beside mkdocs.yml: it calls the functions here whose names begin with ``on_``.

Pages that lie elsewhere in the repository (the tables of ``benchmarks/results``, CONTRIBUTING.md), notebooks and the
reference become pages of the site, and links are written as they are in the repository: what works there works on the
site. Nothing here imports torch, and nothing reads the network.
"""

from __future__ import annotations

import posixpath
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "src"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from website import links, notebooks, reference  # noqa: E402

#: Pages that lie outside of docs/: page of the site → file of the repository.
OUTSIDE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks/index.md": "benchmarks/README.md",
}

#: Page of the site → what comes out of a notebook beside its text, by the place where it stands in the page.
_outputs: dict[str, dict[str, str]] = {}


def outside() -> dict[str, str]:
    """All of OUTSIDE, with the tables of the benchmarks."""
    tables = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    return OUTSIDE | {
        f"benchmarks/{path.name}": f"benchmarks/results/{path.name}" for path in tables
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put what is found in folders into the navigation, and take the addresses of the project from pyproject.toml."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    config.repo_url = config.repo_url or urls.get("Repository") or urls.get("Source")
    config.site_url = config.site_url or urls.get("Documentation")
    found = {
        "Benchmarks": [page for page in outside() if page.startswith("benchmarks/")],
        "Reference": ["reference/index.md", *reference.navigation()],
    }
    config.nav = _filled(config.nav or [], found)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for page, source in outside().items():
        files.append(_page(config, page, abs_src_path=str(ROOT / source)))
    for page, text in reference.pages().items():
        files.append(_page(config, page, content=text))
    for path in _notebooks():
        page = f"tutorials/{path.stem}.md"
        text, _outputs[page] = notebooks.convert(path)
        files.append(_page(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    source = _source(page.file.src_uri)
    if source is None:
        return markdown
    pages = {_source(file.src_uri): file.src_uri for file in files}

    def moved(target: str) -> str | None:
        path, mark, anchor = target.partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if there not in pages:
            if there.startswith("docs/tutorials/") or posixpath.relpath(there, "docs") in AWAITED:
                return None
            if there.startswith("..") or not (ROOT / there).is_file():
                return target
            if config.repo_url:
                return f"{config.repo_url.rstrip('/')}/blob/main/{there}{mark}{anchor}"
            copy = f"files/{posixpath.basename(there)}"
            if files.get_file_from_path(copy) is None:
                files.append(_page(config, copy, abs_src_path=str(ROOT / there)))
            return _relative(copy, page.file.src_uri)
        return _relative(pages[there], page.file.src_uri) + mark + anchor

    return links.rewritten(markdown, moved)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Put the outputs of a notebook where they belong."""
    for place, output in _outputs.get(page.file.src_uri, {}).items():
        html = html.replace(place, output)
    return html


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that would load anything from another host."""
    if foreign := loaded_from_elsewhere(output):
        raise PluginError(
            f"{page.file.src_uri}: loads {', '.join(foreign)}; keep it in docs/assets"
        )
    return output


def loaded_from_elsewhere(page: str) -> list[str]:
    """Scripts, styles, fonts, pictures and frames that a page asks other hosts for."""
    tags = re.findall(r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*>", page)
    # Where a page stands (canonical) and its neighbours are told, not loaded.
    loading = [
        tag
        for tag in tags
        if not re.search(r"rel=\"?(?:canonical|prev|next|alternate|edit)\b", tag)
    ]
    found = [url for tag in loading for url in _ASKED.findall(tag)]
    for style in re.findall(r"<style.*?</style>", page, re.S):
        found += _STYLED.findall(style)
    return sorted(set(found))


_ASKED = re.compile(r"\b(?:src|href|srcset|poster|data)\s*=\s*[\"']?((?:https?:)?//[^\s\"'>]+)")
_STYLED = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\s\"')]+)")


def _notebooks() -> list[Path]:
    return sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def _page(config: MkDocsConfig, name: str, **where: Any) -> File:
    return File.generated(config, name, inclusion=InclusionLevel.INCLUDED, **where)


def _source(page: str) -> str | None:
    """The file of the repository that a page was made of; None where there is none."""
    if page in (there := outside()):
        return there[page]
    notebook = f"docs/{page.removesuffix('.md')}.ipynb"
    if page.startswith("tutorials/") and (ROOT / notebook).is_file():
        return notebook
    return f"docs/{page}" if (ROOT / "docs" / page).is_file() else None


def _relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def _filled(nav: Any, found: dict[str, list[Any]]) -> Any:
    """The navigation with the lists that were found, and without sections and pages that are not there."""
    if isinstance(nav, str):
        awaited = nav in AWAITED or nav.startswith("tutorials/")
        return None if awaited and _source(nav) is None else nav
    if isinstance(nav, dict):
        ((title, below),) = nav.items()
        below = found[title] if title in found and not below else _filled(below, found)
        return {title: below} if below else None
    return [kept for item in nav if (kept := _filled(item, found))]


#: Pages that others write; their places in the navigation are ready.
AWAITED = {"streaming.md", "explorer.md", "experiments.md", "findings.md"}
