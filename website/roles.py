"""Docstrings as mkdocstrings should read them: roles of Sphinx as links, by an extension of Griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([^`]+)`")


class Roles(griffe.Extension):
    """``:class:`~varflow.Model``` becomes a link where the site has that name, and code where it has not."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self._walk(pkg)

    def _walk(self, obj: griffe.Object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda match: _link(match, obj), obj.docstring.value)
        for member in obj.members.values():
            if not member.is_alias:
                self._walk(member)  # type: ignore[arg-type]


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
