"""The space of a sweep: which settings vary, and over what.

    flow = ["none", "planar", "iaf"]                     # choices
    length = {low = 2, high = 8}                         # whole numbers, as the setting takes them
    lr = {low = 1e-4, high = 1e-2, log = true}           # real numbers, drawn evenly in the logarithm
    hidden = {low = 64, high = 256, step = 64}

A setting that belongs to a choice (``length`` to a flow) varies in the trials that have it, and means nothing in the
others. Nothing here imports torch or the engine of the sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from varflow.core.errors import SpecError, suggestion, unknown
from varflow.settings import toml
from varflow.settings.roles import ROLES, every_name, parts_with
from varflow.settings.spec import RunSpec

#: Settings of the data that leave the examples that are scored, and their units, as they are.
_SAME_POINTS = ("flip", "train_limit")


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: tuple[Any, ...]

    def plain(self) -> Any:
        """As in the file."""
        return ["None" if value is None else value for value in self.values]


@dataclass(frozen=True)
class Range:
    """low ≤ value ≤ high.

    Attributes:
        whole: whole numbers.
        log: drawn evenly in the logarithm.
        step: between two values, counted from ``low``.
    """

    low: float
    high: float
    whole: bool
    log: bool = False
    step: float | None = None

    def plain(self) -> Any:
        """As in the file."""
        return {name: v for name, v in asdict(self).items() if name != "whole" and v not in (None, False)}


#: Gives the value of a setting in a trial.
Draw = Callable[[str, "Choices | Range"], Any]


class Space:
    """Settings and what they vary over, checked against the settings of a spec.

    Attributes:
        axes: setting → its choices or its range, in the order of the file.
    """

    def __init__(self, axes: Mapping[str, Choices | Range]) -> None:
        self.axes = dict(axes)
        choices = [name for name in ROLES if name in self.axes]
        #: Choices first: they bring settings with them, and leave others behind.
        self._order = [*choices, *(name for name in self.axes if name not in choices)]

    def spec(self, base: RunSpec, draw: Draw) -> tuple[RunSpec, dict[str, Any]]:
        """A spec of the space, and the settings that were drawn for it: those that its parts have.

        Raises:
            SpecError: values that cannot be.
        """
        spec, drawn = base, dict[str, Any]()
        while True:
            known = {name for part in spec.parts.values() for name in part.values()}
            name = next((n for n in self._order if n in known and n not in drawn), None)
            if name is None:
                return spec, drawn
            drawn[name] = draw(name, self.axes[name])
            spec = spec.replace(**{name: drawn[name]})

    def grid(self, base: RunSpec) -> Iterator[dict[str, Any]]:
        """The settings of every spec of the space, where it is finite; combinations that cannot be are among them.

        Raises:
            SpecError: a range of real numbers, which has no end.
        """
        for name, axis in self.axes.items():
            if isinstance(axis, Range) and not axis.whole and axis.step is None:
                raise SpecError(
                    f"{name}: a grid needs choices, and a range of real numbers has none; give step or a list"
                )
        yield from self._below(base, {})

    def _below(self, base: RunSpec, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        class Open(Exception):
            pass

        def draw(name: str, axis: Choices | Range) -> Any:
            if name not in given:
                raise Open(name)
            return given[name]

        try:
            self.spec(base, draw)
        except Open as left:
            name = str(left)
            for value in values(self.axes[name]):
                yield from self._below(base, {**given, name: value})
            return
        except SpecError:
            pass
        yield given

    def plain(self) -> dict[str, Any]:
        """As in the file."""
        return {name: axis.plain() for name, axis in self.axes.items()}


def values(axis: Choices | Range) -> list[Any]:
    """All values of choices, or of a range with steps."""
    if isinstance(axis, Choices):
        return list(axis.values)
    step = axis.step or 1
    count = math.floor((axis.high - axis.low) / step * (1 + 1e-12)) + 1
    found = [axis.low + k * step for k in range(count)]
    return [int(value) for value in found] if axis.whole else found


def read(space: str | Path | Mapping[str, Any], base: RunSpec) -> Space:
    """The space in a TOML file or a mapping, for the settings of ``base``.

    Raises:
        SpecError: an unknown setting, a value that it does not take, a range that is none, or a setting that would
            change what is scored; the sentence names the file.
    """
    given = toml.load(space) if isinstance(space, str | Path) else dict(space)
    where = f"{space}: " if isinstance(space, str | Path) else "space: "
    try:
        if not given:
            raise SpecError('it is empty; name a setting and what it varies over, e.g. flow = ["none", "planar"]')
        axes = {name: _axis(name, value) for name, value in given.items()}
        for name in axes:
            _check_scored(name, axes, base)
        found = Space(axes)
        _check_reached(found, base)
    except SpecError as error:
        raise SpecError(f"{where}{error}") from None
    return found


def _axis(name: str, value: Any) -> Choices | Range:
    if name not in every_name():
        raise SpecError(f"{name}: unknown setting; {suggestion(name, every_name())}")
    if isinstance(value, Mapping):
        axis: Choices | Range = _range(name, value)
        ends = _ends(axis)
    elif isinstance(value, list | tuple):
        if not value:
            raise SpecError(f"{name}: no choices; give one or more")
        ends = tuple(toml.typed(name, one) for one in value)
        for one in ends:
            if not isinstance(one, str | int | float | bool | None):
                raise SpecError(f"{name}: holds {one!r}; give single values")
        if len(set(map(repr, ends))) < len(ends):
            raise SpecError(f"{name}: a choice is given twice; give each once")
        axis = Choices(ends)
    else:
        raise SpecError(f"{name}: was {value!r}; give choices [a, b, …] or a range {{low = …, high = …}}")
    for one in ends:
        _check_value(name, one)
    return axis


def _range(name: str, value: Mapping[str, Any]) -> Range:
    fields = ("low", "high", "log", "step")
    for key in value:
        if key not in fields:
            raise SpecError(f"{name}: unknown key '{key}' of a range; {suggestion(key, fields)}")
    for key in ("low", "high"):
        if key not in value:
            raise SpecError(f"{name}: a range without {key}; give low and high")
    low, high, step, log = (value.get(key) for key in ("low", "high", "step", "log"))
    for key, number in (("low", low), ("high", high), ("step", step)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise SpecError(f"{name}: {key} was {number!r}; use a number")
    if not isinstance(log, bool | None):
        raise SpecError(f"{name}: log was {log!r}; use true or false")
    kinds = toml.kinds(name)
    if not kinds & {int, float}:
        raise SpecError(f"{name}: is no number; give choices [a, b, …]")
    assert low is not None
    assert high is not None
    whole = float not in kinds
    if not low < high:
        raise SpecError(f"{name}: the range goes from {low} to {high}; low has to be below high")
    if whole and not all(isinstance(number, int | None) for number in (low, high, step)):
        raise SpecError(f"{name}: takes whole numbers; give low, high and step as such")
    if step is not None and step <= 0:
        raise SpecError(f"{name}: step was {step}; use a number above 0")
    if log and step is not None:
        raise SpecError(f"{name}: log is given beside step; leave one of the two out")
    if log and low <= 0:
        raise SpecError(f"{name}: low was {low}; a range in the logarithm starts above 0")
    return Range(low, high, whole, bool(log), step)


def _check_value(name: str, value: Any) -> None:
    """Refuse a value that no part's setting of this name takes."""
    refused: SpecError | None = None
    for role, choice in parts_with(name):
        if not choice and role.table:
            if value not in role.names():
                raise unknown(name, str(value), role.names())
            return
        try:
            role.settings(choice)[name].check(name, value)
            return
        except SpecError as error:
            refused = refused or error
    if refused is not None:
        raise refused


def _check_scored(name: str, axes: Mapping[str, Any], base: RunSpec) -> None:
    """Refuse what trials could not be compared over: other data, or another bound."""
    role, _ = parts_with(name)[0]
    if role.name == "target" or (role.name == "data" and name not in _SAME_POINTS):
        raise SpecError(
            f"{name}: changes the examples that are scored, so trials could not be compared; leave it out"
        )
    bounds = {base.get("objective"), *(getattr(axes.get("objective"), "values", ()))}
    if "iwae" in bounds and ((name == "objective" and len(bounds) > 1) or name == "samples"):
        raise SpecError(
            f"{name}: changes which bound is scored, for the importance-weighted one grows with its samples; sweep "
            "each by itself, and compare the best by varflow compare"
        )


def _check_reached(space: Space, base: RunSpec) -> None:
    """Refuse a setting that no spec of the space has."""
    # Of settings that are no choice of a part one value will do: one that brings others with it, where 0 does not.
    one = {
        name: axis if name in ROLES else Choices((next((v for v in reversed(_ends(axis)) if v), _ends(axis)[0]),))
        for name, axis in space.axes.items()
    }
    finite = Space(one)
    met: set[str] = set()
    for drawn in finite.grid(base):
        met |= set(drawn)
        if len(met) == len(space.axes):
            return
    name = next(name for name in space.axes if name not in met)
    raise base.refusal(name)


def _ends(axis: Choices | Range) -> tuple[Any, ...]:
    return axis.values if isinstance(axis, Choices) else (axis.low, axis.high)
