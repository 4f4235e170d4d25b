"""Flags: what was typed, checked before anything is imported or built.

tyro makes the help and the values from dataclasses: those of the commands, and for ``fit`` one that is made of the
settings of the chosen parts. So the choices are read first. Mistakes are found here, where each is one sentence with
the nearest valid choice.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from varflow.core.errors import SpecError, suggestion, unknown
from varflow.core.live import colours
from varflow.core.settings import SEVERAL, alternatives, read
from varflow.settings.roles import ROLES, Chosen, every_name, parts_with
from varflow.settings.spec import RunSpec

#: What the words after a verb are, and a command line that has them.
_POSITIONAL = {
    "run": ("the folder of a run", "runs/planar"),
    "repository": ("where it goes on the hub", "runs/planar owner/name"),
    "data": ("a file or folder of rows or pictures", "runs/planar new.csv"),
    "shell": ("bash, zsh or fish", "bash"),
    "a": ("the first of two pictures or rows", "runs/planar first.png second.png"),
    "b": ("the second of two pictures or rows", "runs/planar first.png second.png"),
}


def parse(kind: type, arguments: list[str], *positional: str) -> Any:
    """An instance of ``kind`` from flags; leading words fill the ``positional`` fields, or ``kind.words``."""
    positional = positional or getattr(kind, "words", ())
    words = 0
    while words < min(len(arguments), len(positional)) and not arguments[words].startswith("-"):
        words += 1
    leading = [
        part
        for name, word in zip(positional, arguments, strict=False)
        for part in (f"--{name}", word)
    ]
    types = types_of(kind)
    flags = spelled_out(leading[: 2 * words] + arguments[words:], types)
    given = check_flags(flags, types)
    if not any(a in ("-h", "--help", *_COMPLETION) for a in flags):
        for name in positional:
            required = next(f for f in fields(kind) if f.name == name)
            if name not in given and required.default is required.default_factory:
                what, example = _POSITIONAL.get(name, _POSITIONAL["run"])
                raise SpecError(f"{name}: missing; give {what}, e.g. varflow {kind.__name__.lower()} {example}")
    tyro = _tyro()
    words_of = "".join(f" {name.upper()}" for name in positional)
    return tyro.cli(kind, prog=f"varflow {kind.__name__.lower()}{words_of}", args=flags)


def parse_with_settings(
    kind: type, verb: str, summary: str, base: RunSpec, recipe: str | None, arguments: list[str]
) -> tuple[Any, dict[str, Any]]:
    """The options of a verb, an instance of ``kind``, and the settings of the parts of ``base`` typed beside them."""
    types = {**spec_types(base), **types_of(kind)}
    arguments = spelled_out(arguments, types)
    given = check_flags(arguments, types, base)
    arguments = gathered(arguments, types)
    from varflow.settings import recipes

    own: list[Any] = [("options", kind, dataclasses.field(default_factory=kind)), *spec_flags(base)]
    whole: Any = dataclasses.make_dataclass(f"{verb.title()}Command", own, frozen=True)
    whole.__doc__ = summary
    flat: Any = _tyro().conf.OmitArgPrefixes
    parsed = _tyro().cli(
        flat[whole],
        prog=f"varflow {verb} {recipe or 'RECIPE'}",
        description=None if recipe else "Recipes: " + ", ".join(recipes.TABLE),
        args=arguments,
    )
    typed = {n: v for role in base.parts for n, v in vars(getattr(parsed, role)).items() if n in given}
    return parsed.options, typed


def types_of(kind: type) -> dict[str, Any]:
    """The options of a verb: name → type."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _tyro() -> Any:
    """tyro, told where colours are wanted."""
    import tyro

    wanted = colours(sys.stdout)
    getattr(tyro, "_experimental_options", {})["ansi_codes"] = wanted
    if hasattr(tyro, "_fmtlib"):
        # By itself it colours what goes to a terminal alone.
        tyro._fmtlib._FORCE_ANSI = wanted
    return tyro


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


def gathered(arguments: list[str], types: dict[str, Any]) -> list[str]:
    """``--column a --column b`` as ``--column a b``, where a setting takes several words."""
    rest: list[str] = []
    several: dict[str, list[str]] = {}
    words = iter(arguments)
    for word in words:
        flag, has_value, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if word.startswith("--") and types.get(name) == SEVERAL:
            several.setdefault(f"--{flag.removeprefix('--')}", []).append(value if has_value else next(words, ""))
        else:
            rest.append(word)
    for flag, values in several.items():
        rest += [flag, *values]
    return rest


def _is_open_switch(kind: Any) -> bool:
    return kind is not None and {bool, type(None)} == set(alternatives(kind))


def check_flags(
    arguments: list[str],
    types: dict[str, Any],
    spec: RunSpec | None = None,
) -> set[str]:
    """The settings named on a command line, each with a value that fits its type.

    tyro reports the same mistakes in a box of several lines; here they are one sentence.

    Args:
        arguments: what was typed.
        types: setting → its type.
        spec: whose settings they are; it knows what to say of a setting of other parts.
    """
    if any(a in ("-h", "--help") for a in arguments):
        return set()
    given = set()
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if word in _COMPLETION:
            # tyro's own: it writes a completion script for a shell.
            return set()
        if not word.startswith("--"):
            raise SpecError(f"'{word}': not expected here; settings are given as --name value")
        flag, has_value, value = word[2:].partition("=")
        name = flag.replace("-", "_")
        plain = name.removeprefix("no_") if name.startswith("no_") and name not in types else name
        if plain not in types or (plain != name and types[plain] is not bool):
            if spec is not None and parts_with(name):
                raise spec.refusal(name)
            names = [*types, *(every_name() if spec is not None else [])]
            known = [n.replace("_", "-") for n in names]
            raise SpecError(f"--{flag}: unknown setting; {suggestion(flag, known)}")
        if plain in given and types[plain] != SEVERAL:
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


_COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


def _check_value(flag: str, value: str, kind: Any) -> None:
    options = alternatives(kind)
    if type(None) in options and value == "None":
        return
    literals = [c for option in options if get_origin(option) is Literal for c in get_args(option)]
    if literals:
        if value in literals or (float in options and _is_number(value)):
            return
        raise unknown(f"--{flag}", value, [*literals, *(["a number"] if float in options else [])])
    if bool in options and value not in ("True", "False"):
        raise unknown(f"--{flag}", value, ["True", "False"])
    for number, words in ((int, "an integer"), (float, "a number")):
        if number in options:
            try:
                number(value)
            except ValueError:
                raise SpecError(f"--{flag}: was '{value}'; use {words}") from None


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


# -- the flags of a spec -----------------------------------------------------------------------------


def with_choices(spec: RunSpec, arguments: list[str]) -> RunSpec:
    """``spec`` with the parts that a command line chooses, and the numbers that bring parts with them.

    Raises:
        SpecError: a name that its table has not.
    """
    chosen: dict[str, Any] = {}
    kinds = [read(role.shared) for role in ROLES.values() if not role.table]
    switches = {kind.switch for kind in kinds if kind is not None and kind.switch}
    for word, after in zip(arguments, [*arguments[1:], "--"], strict=False):
        flag, has_value, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        value = value if has_value else after
        if not word.startswith("--") or value.startswith("--"):
            continue
        if name in ROLES and ROLES[name].table:
            if value not in ROLES[name].names():
                raise unknown(flag, value, ROLES[name].names())
            chosen[name] = value
        elif name in switches and value.isdecimal():
            chosen[name] = int(value)
    return spec.replace(**chosen)


def spec_types(spec: RunSpec) -> dict[str, Any]:
    """setting → its type, of the chosen parts and of the choices."""
    out: dict[str, Any] = {}
    for part in spec.parts.values():
        if part.role.table:
            out[part.role.name] = Literal[tuple(part.role.names())]
        known = part.role.settings(part.choice)
        out |= {name: known[name].kind for name in part.shown}
    return out


def spec_flags(spec: RunSpec) -> list[tuple[str, Any, Any]]:
    """A field for each role, as :func:`dataclasses.make_dataclass` takes them: a dataclass of its flags."""
    return [
        (name, group, dataclasses.field(default_factory=group))
        for name, part in spec.parts.items()
        for group in [_group(name, part)]
    ]


def _group(name: str, part: Chosen) -> type:
    from tyro.conf import arg

    def flag(setting: str, kind: Any, words: str, value: Any) -> tuple[str, Any, Any]:
        return (setting, Annotated[kind, arg(help=words)], dataclasses.field(default=value))

    known, values = part.role.settings(part.choice), part.values()
    choice = [flag(part.role.name, Literal[tuple(part.role.names())], part.role.help, part.choice)]
    own = [flag(n, known[n].kind, known[n].help, values[n]) for n in part.shown]
    made = dataclasses.make_dataclass(name, [*(choice if part.role.table else []), *own], frozen=True)
    made.__doc__ = None
    return made
