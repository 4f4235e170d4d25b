"""Names that are imported when they are first used.

A room of parts keeps one table, name → ``"module:attribute"``. The table is plain text, so a command
line can list and check names without importing torch; the part itself is imported on first access.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def resolve(target: str) -> Any:
    """The object that ``"package.module:attribute"`` (or ``"package.module"``) names."""
    module, _, attribute = target.partition(":")
    loaded = import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def attach(
    room: str, exports: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a package whose public names are in ``exports``."""

    def __getattr__(name: str) -> Any:
        if name in exports:
            return resolve(exports[name])
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted(exports)

    return __getattr__, __dir__
