"""Settings of a part: a small frozen dataclass that stands in the part's own file.

    @settings("Student")
    class StudentSettings(LikelihoodSettings):
        freedom: Annotated[float, "Degrees of freedom.", Above(0)] = 5.0

        def build(self, part, decoder, form):
            return part(decoder(form.event_shape), form.event_shape, self.freedom)

A field is a setting: its name is the flag and the keyword of ``fit``; ``Annotated`` holds its type, its help and its
limits. The words in the decorator are the parts of the module that the class builds. Everything else (checks, flags,
help, spec.json) follows from these classes.

A part's file imports torch, and help and checks must not wait for it. So where the module is not imported yet,
:func:`read` takes the class statements marked ``@settings`` out of its source and runs them alone, with what the file
imports from ``typing``, ``math`` and ``varflow.core`` and with other settings classes. When the module is imported
later, :func:`settings` gives the same class back, with its methods made anew where torch is at hand. Therefore what a
settings class does before its part is built (``check``, ``roles``, ``shown``) uses nothing but those imports, and no
``super()``.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import (
    Any,
    ClassVar,
    Literal,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from varflow.core.errors import SpecError, unknown
from varflow.core.lazy import resolve

_Kind = TypeVar("_Kind")

#: Where a settings class that is read without its module finds what it uses.
_LIGHT = (
    "typing", "math", "varflow.core.errors", "varflow.core.form", "varflow.core.lazy", "varflow.core.settings",
    "varflow.core.durations",
)  # fmt: skip

#: (module, class) → the one class of that name.
_KNOWN: dict[tuple[str, str], type[Settings]] = {}


class Settings:
    """What every settings class has beside its fields.

    Attributes:
        of: names in its module of the parts that it builds.
        roles: the roles that this choice brings with it (:mod:`varflow.settings.roles`).
        alone: why it brings no others: the end of a sentence that refuses a setting of one of them.
        switch: the setting without which (0) the others mean nothing, where there is such a one.
        read_by_others: settings that parts around this one read too, such as its size.
        either: pairs of settings of which exactly one is set; giving one clears the other.
    """

    of: ClassVar[tuple[str, ...]] = ()
    roles: ClassVar[Any] = ()
    alone: ClassVar[str] = ""
    switch: ClassVar[str] = ""
    read_by_others: ClassVar[tuple[str, ...]] = ()
    either: ClassVar[tuple[tuple[str, str], ...]] = ()

    def shown(self, given: Mapping[str, Any]) -> Iterable[str]:
        """The settings that mean something beside the others and what was chosen before (``given``)."""
        if self.switch and not getattr(self, self.switch):
            return (self.switch,)
        return described(type(self))

    def missing(self, given: Mapping[str, Any]) -> str:
        """Why there is no role that this choice does not bring, or no setting that it does not show."""
        return self.alone

    def check(self, spec: Any) -> None:
        """Refuse what is impossible together; ``spec.get(name, default)`` reads the other parts' settings.

        Raises:
            SpecError: one sentence.
        """

    def build(self, *arguments: Any) -> Any:
        """The part. What it is given stands in the contract of its room; a part of a table comes first."""
        raise NotImplementedError


# -- limits: what they take is a number, a word, or anything at all, whatever its type -----------------


@dataclass(frozen=True)
class AtLeast:
    """value ≥ least."""

    least: float
    takes: ClassVar[str] = "numbers"

    def refuses(self, value: Any) -> str | None:
        return None if value >= self.least else f"use {self.least} or more"


@dataclass(frozen=True)
class Size(AtLeast):
    """A whole number that weights of the model grow with; ``least`` or more."""

    least: float = 1

    def sizes(self, value: int) -> tuple[int, ...]:
        return (value,)


@dataclass(frozen=True)
class Above:
    """value > limit."""

    limit: float
    takes: ClassVar[str] = "numbers"

    def refuses(self, value: Any) -> str | None:
        return None if value > self.limit else f"use a number above {self.limit:g}"


@dataclass(frozen=True)
class Between:
    """low ≤ value < high, or with ``open`` low < value < high."""

    low: float
    high: float
    open: bool = False
    takes: ClassVar[str] = "numbers"

    def refuses(self, value: Any) -> str | None:
        if (self.low < value or (value == self.low and not self.open)) and value < self.high:
            return None
        return f"use a number {'between' if self.open else 'in'} " + (
            f"{self.low:g} and {self.high:g}" if self.open else f"[{self.low:g}, {self.high:g})"
        )


@dataclass(frozen=True)
class Odd:
    """An odd number, ``least`` or more."""

    least: int = 1
    takes: ClassVar[str] = "numbers"

    def refuses(self, value: Any) -> str | None:
        if value % 2 == 1 and value >= self.least:
            return None
        return f"use an odd number, {self.least} or more"


@dataclass(frozen=True)
class OneOf:
    """One of some names."""

    names: Iterable[str]
    takes: ClassVar[str] = "words"

    def refuses(self, value: Any) -> str | None:
        return None if value in self.names else "unknown"


@dataclass(frozen=True)
class Widths:
    """Positive numbers with dashes between them."""

    takes: ClassVar[str] = "words"

    def refuses(self, value: Any) -> str | None:
        if all(part.isdecimal() and int(part) > 0 for part in value.split("-")):
            return None
        return "use positive numbers with dashes between them, e.g. 16-32-32"

    def sizes(self, value: str) -> tuple[int, ...]:
        return widths(value)


def widths(value: str) -> tuple[int, ...]:
    """A setting such as "16-32-32" as numbers."""
    return tuple(map(int, value.split("-")))


# -- what the fields say -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A field of a settings class.

    Attributes:
        name: of the field.
        kind: its type.
        help: a sentence or two.
        limits: what a value of that type has to satisfy.
        default: its value where none is given.
    """

    name: str
    kind: Any
    help: str
    limits: tuple[Any, ...]
    default: Any

    def kept(self, value: Any) -> Any:
        """A value as the setting keeps it: several words as a tuple, however they came."""
        if self.kind != SEVERAL:
            return value
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    def check(self, name: str, value: Any) -> None:
        """Refuse a value of another type or beyond a limit; ``name`` is what the user calls it.

        Raises:
            SpecError: name, value, and what it should be.
        """
        ahead = [limit for limit in self.limits if limit.takes == "anything" and value is not None]
        for limit in ahead:
            self._compare(name, value, limit)
        if ahead:
            return
        check_type(name, value, self.kind)
        for limit in self.limits:
            if limit.takes == ("words" if isinstance(value, str) else "numbers") and value is not None:
                self._compare(name, value, limit)

    @staticmethod
    def _compare(name: str, value: Any, limit: Any) -> None:
        said = limit.refuses(value)
        if said == "unknown":
            raise unknown(name, value, limit.names)
        if said is not None:
            raise SpecError(f"{name}: was {value!r}; {said}")


def described(kind: type) -> dict[str, Setting]:
    """The fields of a settings class by name."""
    known = _DESCRIBED.get(kind)
    if known is not None:
        return known
    hints = get_type_hints(kind, include_extras=True)
    out = _DESCRIBED[kind] = {}
    for field in dataclasses.fields(kind):
        bare, *notes = get_args(hints[field.name])
        (words,) = (note for note in notes if isinstance(note, str))
        limits = tuple(note for note in notes if note is not words)
        out[field.name] = Setting(field.name, bare, words, limits, field.default)
    return out


_DESCRIBED: dict[type, dict[str, Setting]] = {}


def check_type(name: str, value: Any, kind: Any) -> None:
    """Refuse a value that is not of a type: a class, a Literal, or a union of them.

    Raises:
        SpecError: name, value, and what it should be.
    """
    if kind == SEVERAL:
        if not isinstance(value, tuple) or not all(isinstance(word, str) for word in value):
            raise SpecError(f"{name}: was {value!r}; expected words, such as ('one', 'two')")
        return
    options = alternatives(kind)
    names = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    if isinstance(value, str) and (value in names or str in options):
        return
    if isinstance(value, str) and names:
        raise unknown(name, value, [*names, *("a number" for option in options if option is float)])
    for option in options:
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise SpecError(f"{name}: was {value}; use a finite number")
            return
        if get_origin(option) is Literal or (isinstance(value, bool) and option is not bool):
            continue
        if isinstance(value, option):
            return
    expected = " or ".join(repr(option) for option in names) if names else ""
    classes = [_WORDS.get(option, str(option)) for option in options if get_origin(option) is not Literal]
    wanted = " or ".join(filter(None, (expected, *classes)))
    raise SpecError(f"{name}: was {value!r} ({type(value).__name__}); expected {wanted}")


#: The type of a setting of several words, whose flag can be given more than once.
SEVERAL = tuple[str, ...]
_WORDS = {int: "int", float: "float", str: "str", bool: "bool", type(None): "nothing"}


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union; of any other type itself."""
    if kind == SEVERAL:
        return (kind,)
    return get_args(kind) if get_origin(kind) is not Literal and get_args(kind) else (kind,)


# -- classes and their modules -----------------------------------------------------------------------


@overload
def settings(kind: type[_Kind], /) -> type[_Kind]: ...


@overload
def settings(*of: str) -> Callable[[type[_Kind]], type[_Kind]]: ...


@dataclass_transform(frozen_default=True)
def settings(*of: Any) -> Any:
    """Make a class a settings class: ``@settings`` alone, or with the names of the parts that it builds."""
    if len(of) == 1 and isinstance(of[0], type):
        return _one(of[0], ())
    return lambda kind: _one(kind, of)


def _one(kind: type, of: tuple[str, ...]) -> type:
    key = kind.__module__, kind.__qualname__
    if key not in _KNOWN:
        kind.of = of  # type: ignore[attr-defined]
        _KNOWN[key] = dataclass(frozen=True)(kind)
        return kind
    # Read before without its module: its methods now see what the module imports.
    for name, value in vars(kind).items():
        if not name.startswith("__") and (callable(value) or isinstance(value, property | classmethod)):
            setattr(_KNOWN[key], name, value)
    return _KNOWN[key]


@cache
def read(target: str) -> type[Settings] | None:
    """The settings class of the part ``"module:name"``, or of that name itself; None where the part has none.

    The module is not imported for it.
    """
    module, _, name = target.partition(":")
    for kind in _in(module).values():
        if name == kind.__name__ or name in kind.of:
            return kind
    return None


def names_in(table: str) -> dict[str, str]:
    """The table ``"module:attribute"`` of a room, name → part.

    It is taken out of the source of a module that is not imported and no package: such a one may import torch.
    """
    module, _, attribute = table.partition(":")
    if module in sys.modules or _is_room(module):
        return dict(resolve(table))
    return _literal(module, attribute)


@cache
def _literal(module: str, attribute: str) -> dict[str, str]:
    for node in _source(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == attribute:
            return dict(ast.literal_eval(node.value))
    raise LookupError(f"{module}: no {attribute}")


def _source(module: str) -> ast.Module:
    found = importlib.util.find_spec(module)
    assert found is not None, module
    return ast.parse(found.loader.get_source(module))  # type: ignore[union-attr]


def _in(module: str) -> dict[str, type[Settings]]:
    if module not in sys.modules:
        _run(module)
    return {name: kind for (where, name), kind in list(_KNOWN.items()) if where == module}


@cache
def _run(module: str) -> dict[str, Any]:
    """Run the settings classes in the source of a module that is not imported; the names that came of it."""
    body = _source(module).body
    classes = [n for n in body if isinstance(n, ast.ClassDef) and any(map(_marks, n.decorator_list))]
    fields = [part for n in classes for part in (*n.bases, *n.body) if not isinstance(part, ast.FunctionDef)]
    used = {name.id for part in fields for name in ast.walk(part) if isinstance(name, ast.Name)}
    names: dict[str, Any] = {"__name__": module}
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module not in _LIGHT:
            wanted = used & {alias.name for alias in node.names}
            names |= {name: _found(str(node.module), name) for name in wanted}
        elif node in classes or _is_light(node):
            _execute(node, names)
    return names


def _is_light(node: ast.stmt) -> bool:
    """An import of what is always at hand, or the name of a Literal."""
    if isinstance(node, ast.Import):
        return all(alias.name in _LIGHT for alias in node.names)
    if isinstance(node, ast.Assign):
        return ast.unparse(node.value).startswith("Literal[")
    return isinstance(node, ast.ImportFrom)


def _found(module: str, name: str) -> Any:
    """What a settings class uses of another file: a settings class, a Literal, or a table of a room."""
    return getattr(import_module(module), name) if module in sys.modules or _is_room(module) else _run(module)[name]


def _is_room(module: str) -> bool:
    found = importlib.util.find_spec(module)
    return found is not None and found.submodule_search_locations is not None


def _execute(node: ast.stmt, names: dict[str, Any]) -> None:
    # Annotations of fields are evaluated here, whatever the module says; those of methods may name what is not there.
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef):
            inner.returns = None
        elif isinstance(inner, ast.arg):
            inner.annotation = None
    exec(compile(ast.Module([node], []), names["__name__"], "exec", dont_inherit=True), names)


def _marks(mark: ast.expr) -> bool:
    name = mark.func if isinstance(mark, ast.Call) else mark
    return isinstance(name, ast.Name) and name.id == "settings"
