"""Links in Markdown, outside of code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

#: [words](target), with an optional title; one level of brackets in the words.
_LINK = re.compile(
    r"(!?\[(?:[^\[\]]|\[[^\]]*\](?:\([^)]*\))?)*\]\()([^()\s]+)((?:\s+\"[^\"]*\")?\))"
)
_CODE = re.compile(r"(`+)(?:.+?)\1", re.S)


def rewritten(text: str, moved: Callable[[str], str | None]) -> str:
    """The text with the relative targets of its links as ``moved`` has them; None leaves the words without a link."""

    def change(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        inner = _LINK.sub(change, before)
        if "://" in target or target.startswith(("#", "mailto:")):
            return f"{inner}{target}{after}"
        found = moved(target)
        return f"{inner}{found}{after}" if found is not None else before.lstrip("!")[1:-2]

    return "".join(part if code else _LINK.sub(change, part) for code, part in parts(text))


def targets(text: str) -> Iterator[str]:
    """The targets of the links of a text."""
    for code, part in parts(text):
        if not code:
            for match in _LINK.finditer(part):
                yield match[2]
                yield from (inner[2] for inner in _LINK.finditer(match[1]))


def parts(text: str, spans: bool = False) -> Iterator[tuple[bool, str]]:
    """The text in pieces, and of each whether it is code: blocks of it, and what could be mistaken for a link; with
    ``spans`` everything between backticks, which can stand in the words of a link.
    """
    fence = ""
    block: list[str] = []
    for line in text.splitlines(keepends=True):
        opened = re.match(r"\s*(```+|~~~+)", line)
        if (not fence and opened) or (fence and line.strip() == fence):
            if fence:
                yield True, "".join([*block, line])
                block, fence = [], ""
            else:
                yield from _spans("".join(block), spans)
                block, fence = [line], opened[1] if opened else ""
            continue
        block.append(line)
    yield from [(True, "".join(block))] if fence else _spans("".join(block), spans)


def _spans(text: str, every: bool) -> Iterator[tuple[bool, str]]:
    """The same of text without fences."""
    at = 0
    for match in _CODE.finditer(text):
        if every or "](" in match[0]:
            yield False, text[at : match.start()]
            yield True, match[0]
            at = match.end()
    yield False, text[at:]
