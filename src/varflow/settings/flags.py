"""Flags: what was typed, checked before anything is imported or built.

tyro makes the help and the values from the dataclasses; mistakes are found here, where each is one
sentence with the nearest valid choice.
"""

from __future__ import annotations

from dataclasses import fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from varflow.core.errors import SpecError, suggestion, unknown


def parse(kind: type, arguments: list[str], *positional: str) -> Any:
    """An instance of ``kind`` from flags; leading words fill the ``positional`` fields."""
    words = 0
    while words < min(len(arguments), len(positional)) and not arguments[words].startswith("-"):
        words += 1
    leading = [
        part
        for name, word in zip(positional, arguments, strict=False)
        for part in (f"--{name}", word)
    ]
    types = get_type_hints(kind)
    flags = spelled_out(leading[: 2 * words] + arguments[words:], types)
    given = check_flags(flags, types)
    if not any(a in ("-h", "--help") for a in flags):
        for name in positional:
            required = next(f for f in fields(kind) if f.name == name)
            if name not in given and required.default is required.default_factory:
                raise SpecError(
                    f"{name}: missing; give the folder of a run, e.g. varflow {kind.__name__.lower()} runs/planar"
                )
    import tyro

    words_of = "".join(f" {name.upper()}" for name in positional)
    return tyro.cli(kind, prog=f"varflow {kind.__name__.lower()}{words_of}", args=flags)


def spelled_out(arguments: list[str], types: dict[str, Any]) -> list[str]:
    """``--flip`` and ``--no-flip`` as ``--flip True`` and ``--flip False``, where a setting may also be left open."""
    out = []
    for word, after in zip(arguments, [*arguments[1:], "--"], strict=False):
        flag = word.removeprefix("--").replace("-", "_")
        name = flag.removeprefix("no_")
        open_switch = word.startswith("--") and "=" not in word and _is_open_switch(types.get(name))
        if open_switch and name != flag:
            out += [f"--{word.removeprefix('--no-')}", "False"]
        elif open_switch and after.startswith("--"):
            out += [word, "True"]
        else:
            out.append(word)
    return out


def _is_open_switch(kind: Any) -> bool:
    return isinstance(kind, UnionType) and {bool, type(None)} == set(get_args(kind))


def check_flags(arguments: list[str], types: dict[str, Any]) -> set[str]:
    """The settings named on a command line, each with a value that fits its type.

    tyro reports the same mistakes in a box of several lines; here they are one sentence.
    """
    if any(a in ("-h", "--help") for a in arguments):
        return set()
    given = set()
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if not word.startswith("--"):
            raise SpecError(f"'{word}': not expected here; settings are given as --name value")
        flag, has_value, value = word[2:].partition("=")
        name = flag.replace("-", "_")
        plain = name.removeprefix("no_") if name.startswith("no_") and name not in types else name
        if plain not in types or (plain != name and types[plain] is not bool):
            known = [n.replace("_", "-") for n in types]
            raise SpecError(f"--{flag}: unknown setting; {suggestion(flag, known)}")
        if plain in given:
            raise SpecError(f"--{flag}: given twice; give it once")
        given.add(plain)
        if types[plain] is bool:
            if has_value:
                raise SpecError(f"--{flag}: takes no value; use --{plain} or --no-{plain}")
            continue
        if not has_value:
            if position >= len(arguments) or arguments[position].startswith("--"):
                raise SpecError(f"--{flag}: needs a value")
            value = arguments[position]
            position += 1
        _check_value(flag, value, types[plain])
    return given


def _check_value(flag: str, value: str, kind: Any) -> None:
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if type(None) in options and value == "None":
        return
    literals = [c for option in options if get_origin(option) is Literal for c in get_args(option)]
    if literals:
        if value not in literals:
            raise unknown(f"--{flag}", value, literals)
        return
    if bool in options and value not in ("True", "False"):
        raise unknown(f"--{flag}", value, ["True", "False"])
    for number, words in ((int, "an integer"), (float, "a number")):
        if number in options:
            try:
                number(value)
            except ValueError:
                raise SpecError(f"--{flag}: was '{value}'; use {words}") from None
