"""What a run is: the choice of its parts and their settings, plain values only.

Nothing here imports torch, so the command line answers at once. Sizes that follow from the data (picture shapes,
feature counts) are never asked for. A setting stands in the file of the part that it belongs to
(:mod:`varflow.core.settings`), the parts to choose from in the tables of their rooms, and what is chosen at all in
:data:`varflow.settings.roles.ROLES`. The name of a setting is its flag and its keyword of :func:`varflow.fit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from varflow.core.errors import RunError, SpecError, suggestion
from varflow.settings.keywords import SpecKeywords
from varflow.settings.roles import ROLES, Chosen, Role, choose, every_name, parts_with

#: Raised when spec.json changes its form; a spec of another version is refused by name.
SPEC_VERSION = 2

#: What says "without it": such a value is taken, and means nothing, where there is no such part anyway.
_NOTHING = (None, False, 0, "none", "0 steps", "0 epochs", ())


class RunSpec:
    """A whole run. ``spec.<role>`` is what stands in a role, ``spec.<role>.<setting>`` a setting of it.

    A spec does not change; :meth:`replace` gives another one.

    >>> spec = RunSpec().replace(flow="iaf", lr=5e-4)
    >>> spec.flow.length, spec.optimizer.lr, spec.get("latent")
    (8, 0.0005, 20)
    """

    def __init__(self) -> None:
        self._put(choose({}, {}), {})

    def _put(self, parts: dict[str, Chosen], later: Mapping[str, Any]) -> RunSpec:
        self._parts, self._later = parts, dict(later)
        self._values = {name: value for part in parts.values() for name, value in part.values().items()}
        return self

    def replace(self, **settings: Unpack[SpecKeywords]) -> RunSpec:
        """A copy with choices and settings changed by their names, e.g. ``replace(flow="iaf", lr=5e-4)``.

        Where another part is chosen it takes over the values of the settings that it shares with the one before, and
        has its defaults for the rest. Setting ``steps`` clears ``epochs`` and the other way round.

        Raises:
            SpecError: a name that no chosen part has, with the part that it belongs to, or the nearest name.
        """
        given = dict(settings)
        made = RunSpec.__new__(RunSpec)._put(choose(given, {**self._later, **self._values}), self._later)
        for name, value in given.items():
            if value not in _NOTHING or not parts_with(name):
                raise made.refusal(name)
        return made

    def preset(self, **settings: Unpack[SpecKeywords]) -> RunSpec:
        """A copy with these values wherever a part has such a setting: now, or when it is chosen later.

        >>> spec = RunSpec().preset(length=16)
        >>> spec.get("length"), spec.replace(flow="iaf").get("length")
        (None, 16)

        Raises:
            SpecError: a name that no part has, with the nearest one.
        """
        for name in settings:
            if name not in self._values and not parts_with(name):
                raise self.refusal(name)
        later = {**self._later, **settings}
        return RunSpec.__new__(RunSpec)._put(choose(dict(settings), {**later, **self._values}), later)

    def refusal(self, name: str) -> SpecError:
        """Why no chosen part has a setting of this name, in one sentence."""
        owners = parts_with(name)
        if not owners:
            return SpecError(f"{name}: unknown setting; {suggestion(name, every_name())}")
        role, _ = owners[0]
        for at, _ in owners:
            part = self._parts.get(at.name)
            if part is not None and part.settings is not None and name in at.settings(part.choice):
                return SpecError(f"{name}: belongs to {at.what}, and {part.settings.missing(self._values)}")
            if part is not None:
                return SpecError(_of_others(name, at, part, [choice for r, choice in owners if r is at]))
        above: Role = role
        while above.name not in self._parts:
            above = ROLES[str(above.of)]
        lacks = self._parts[above.name].settings
        why = f"there is no {above.name}" if lacks is None else lacks.missing(self._values)
        return SpecError(f"{name}: belongs to {role.what}, and {why}")

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a choice or a setting by its name; ``default`` where no chosen part has it."""
        return self._values.get(name, default)

    def __getattr__(self, role: str) -> Any:
        if role.startswith("_"):
            raise AttributeError(role)
        part = self._parts.get(role)
        if part is None:
            known = f"it has {', '.join(self._parts)}" if role in ROLES else suggestion(role, ROLES)
            raise AttributeError(f"this spec has no {role}; {known}")
        return part if part.role.table else part.settings

    def has(self, role: str) -> bool:
        """Whether something stands in a role."""
        return role in self._parts

    @property
    def parts(self) -> dict[str, Chosen]:
        """role → what stands in it."""
        return dict(self._parts)

    def changes(self, base: RunSpec) -> dict[str, Any]:
        """The fewest settings for which ``base.replace(**settings)`` is this spec."""
        near, changed = base, set[str]()
        while left := [name for name, value in self._values.items() if near._values.get(name, near) != value]:
            # Choices first: they bring settings with them, and leave others behind.
            here = [name for name in left if name in near._values] or left
            changed |= set([name for name in here if name in ROLES] or here)
            near = base.replace(**{name: value for name, value in self._values.items() if name in changed})
        return {name: value for name, value in self._values.items() if name in changed}

    def validate(self) -> None:
        """Check every value against its type and limits, then what goes together.

        Raises:
            SpecError: one sentence with the setting, its value, and what it should be.
        """
        for part in self._parts.values():
            known = part.role.settings(part.choice)
            for name in part.shown:
                known[name].check(name, self._values[name])
        for part in self._parts.values():
            if part.settings is None:
                continue
            for one, other in part.settings.either:
                if self.get(one) is None and self.get(other) is None:
                    raise SpecError(f"{one}: no budget; set {one} or {other}")
                if self.get(one) is not None and self.get(other) is not None:
                    raise SpecError(f"{one}: set together with {other}; give one of the two")
            part.settings.check(self)

    def sizes(self) -> dict[str, int]:
        """The settings that weights of the model grow with; of widths the largest."""
        out = {}
        for part in self._parts.values():
            known = part.role.settings(part.choice)
            for name in part.shown:
                limits = [limit for limit in known[name].limits if hasattr(limit, "sizes")]
                if limits and self._values[name] is not None:
                    out[name] = max(limits[0].sizes(self._values[name]))
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as JSON has them: the version of the format, then role → choice and settings."""
        parts = {
            role: {name: list(value) if isinstance(value, tuple) else value for name, value in part.values().items()}
            for role, part in self._parts.items()
        }
        return {"version": SPEC_VERSION, **parts}

    @staticmethod
    def from_dict(values: Any) -> RunSpec:
        """The spec that :meth:`to_dict` wrote.

        Raises:
            RunError: another version of the format, or a role or setting that does not exist there.
            SpecError: values that cannot be.
        """
        if not isinstance(values, dict):
            raise RunError(f"spec: was {type(values).__name__}; expected a JSON object of settings")
        version = values.get("version")
        if version != SPEC_VERSION:
            raise RunError(
                f"spec: format version {version!r}, this varflow reads version {SPEC_VERSION}; "
                "open the run with the varflow that wrote it, or fit again"
            )
        given: dict[str, Any] = {}
        for role, settings in values.items():
            if role == "version":
                continue
            if not isinstance(settings, dict):
                raise RunError(f"spec: '{role}' is not an object of settings")
            given |= settings
        spec = RunSpec.__new__(RunSpec)._put(choose(dict(given), {}), {})
        for role, settings in values.items():
            if role == "version":
                continue
            if not spec.has(role):
                raise RunError(f"spec: unknown role '{role}'; {suggestion(role, spec.parts)}")
            own = spec.parts[role].values()
            for key in settings:
                if key not in own:
                    raise RunError(f"spec: unknown key '{role}.{key}'; {suggestion(key, own)}")
        spec.validate()
        return spec

    def to_toml(self) -> str:
        """Every setting as TOML, under its role; :meth:`from_toml` and ``varflow fit --config`` read it."""
        from varflow.settings import toml

        return toml.write(self)

    @staticmethod
    def from_toml(path: str | Path) -> RunSpec:
        """The spec in a TOML file: settings by name, flat or under their roles, over the defaults or over the
        ``recipe`` that it names.

        Raises:
            SpecError: the file cannot be read, or a setting in it is unknown or impossible; the sentence names the
                file.
        """
        from varflow.settings import toml

        return toml.read(path)[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunSpec) and self._values == other._values

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        words = ", ".join(f"{name}={value!r}" for name, value in self.changes(RunSpec()).items())
        return f"RunSpec().replace({words})" if words else "RunSpec()"


def _of_others(name: str, role: Role, part: Chosen, owners: list[str]) -> str:
    some = ", ".join(owners[:5]) + (", …" if len(owners) > 5 else "")
    return (
        f"{name}: is a setting of {role.name}={some}, and {role.name}={part.choice} has none; "
        f"choose {'it' if len(owners) == 1 else 'one of them'}, or leave {name} out"
    )
