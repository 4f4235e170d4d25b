"""Docstrings as mkdocstrings should read them, by an extension of Griffe: roles of Sphinx as links, a row an argument."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([^`]+)`")

_SEVERAL = re.compile(r"^(\s+)((?:\*{0,2}\w+, )+\*{0,2}\w+): (.*)$")


class Roles(griffe.Extension):
    """``:class:`~varflow.Model``` becomes a link where the site has that name, and code where it has not."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self._walk(pkg)

    def _walk(self, obj: griffe.Object) -> None:
        if obj.docstring is not None:
            text = _each(_literal(re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)))
            obj.docstring.value = _ROLE.sub(lambda match: _link(match, obj), text)
        for member in obj.members.values():
            if not member.is_alias:
                self._walk(member)  # type: ignore[arg-type]


def _literal(text: str) -> str:
    """``code`` in the words of a docstring, and nothing between brackets taken for a link of Markdown."""
    # [a][b] outside of code would be a reference to b.
    return "".join(part if code else part.replace("][", "]\\[") for code, part in _code(text))


def _code(text: str) -> list[tuple[bool, str]]:
    parts = re.split(r"(`+[^`]+`+|^ *>>> .*$|^ *\.\.\. .*$)", text, flags=re.M)
    return [(bool(number % 2), part) for number, part in enumerate(parts)]


def _each(text: str) -> str:
    """``a, b: what they are`` in a section of arguments as an entry for each, which is what the parser knows."""
    done: list[str] = []
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        found = _SEVERAL.match(line)
        if not found or not _in_arguments(done):
            done.append(line)
            continue
        indent, names, words = found.groups()
        more = []
        while lines and (
            not lines[0].strip() or len(lines[0]) - len(lines[0].lstrip()) > len(indent)
        ):
            more.append(lines.pop(0))
        for name in names.split(", "):
            done += [f"{indent}{name}: {words}", *more]
    return "\n".join(done)


def _in_arguments(above: list[str]) -> bool:
    heads = [
        line
        for line in above
        if re.match(r"^(Args|Attributes|Raises|Returns|Example|Reference|Source)\w*:", line)
    ]
    return bool(heads) and heads[-1].startswith("Args")


def _link(match: re.Match[str], obj: griffe.Object) -> str:
    short, name = match.groups()
    shown = name.rsplit(".", 1)[-1] if short else name
    full = name
    if not name.startswith("varflow."):
        try:
            full = obj.resolve(name)
        except griffe.NameResolutionError:
            full = f"{obj.path}.{name}"
    return f'<autoref identifier="{full}" optional><code>{shown}</code></autoref>'
