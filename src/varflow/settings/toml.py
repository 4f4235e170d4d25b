"""A run's settings as TOML: what ``varflow show --toml`` writes and ``--config`` reads.

    recipe = "digits"            # optional: what the settings below change
    flow = "planar"              # settings by their names …

    [optimizer]                  # … or under the role that they belong to
    lr = 5e-4
    clip = "None"                # TOML has no null; as on the command line

"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from varflow.core.errors import SpecError, suggestion
from varflow.core.settings import SEVERAL, alternatives
from varflow.settings import recipes
from varflow.settings.roles import ROLES, every_name, parts_with
from varflow.settings.spec import RunSpec

#: Names the recipe that a file changes.
RECIPE = "recipe"


def write(spec: RunSpec, recipe: str | None = None, notes: Sequence[str] = ()) -> str:
    """Every setting of a spec under its role, after the ``recipe`` that it came from; ``notes`` stand above."""
    lines = [f"# {note}" for note in notes]
    lines += [f"{RECIPE} = {plain(recipe)}"] if recipe else []
    for role, part in spec.parts.items():
        if values := part.values():
            lines += ["", f"[{role}]", *(f"{name} = {plain(value)}" for name, value in values.items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def plain(value: Any) -> str:
    """A setting's value as TOML."""
    if value is None:
        return '"None"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(plain, value))}]"
    # A JSON string is a TOML string, but for one control character.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def read(path: str | Path, recipe: str | None = None) -> tuple[RunSpec, str | None]:
    """The spec that a file makes of a recipe, and the name of the recipe.

    Args:
        path: of the file.
        recipe: what its settings change; without it the recipe that the file names, or the defaults.

    Raises:
        SpecError: the file cannot be read, or a setting in it is unknown, given twice, of another role than it stands
            under, or impossible; the sentence names the file.
    """
    values = load(path)
    name = values.pop(RECIPE, None)
    try:
        if name is not None and not isinstance(name, str):
            raise SpecError(f"{RECIPE}: was {name!r}; use the name of a recipe")
        if recipe is not None and name not in (None, recipe):
            raise SpecError(f"{RECIPE}: was '{name}', and {recipe} is given beside it; leave one of the two out")
        name = recipe or name
        begin = RunSpec() if name is None else recipes.find(name).spec
        given, under = flat(values)
        spec = begin.replace(**{n: typed(n, value) for n, value in given.items()})
        for setting, role in under.items():
            if setting not in spec.parts[role].values():
                owner = next(r for r, part in spec.parts.items() if setting in part.values())
                raise SpecError(f"{setting}: stands under [{role}]; move it to [{owner}]")
        spec.validate()
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    return spec, name


def load(path: str | Path) -> dict[str, Any]:
    """The values in a TOML file.

    Raises:
        SpecError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as TOML ({error})") from None


def flat(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(setting → value, setting → the role that it stands under) of a file, flat or in sections."""
    given: dict[str, Any] = {}
    under: dict[str, str] = {}
    for name, value in values.items():
        here = value if isinstance(value, dict) else {name: value}
        if isinstance(value, dict):
            if name not in ROLES:
                raise SpecError(f"[{name}]: unknown section; {suggestion(name, ROLES)}")
            under |= dict.fromkeys(value, name)
        for setting, own in here.items():
            if setting in given:
                raise SpecError(f"{setting}: given twice; give it once")
            if setting not in every_name():
                raise SpecError(f"{setting}: unknown setting; {suggestion(setting, [*every_name(), RECIPE])}")
            if isinstance(own, dict | list) and not (isinstance(own, list) and SEVERAL in kinds(setting)):
                raise SpecError(f"{setting}: was {own!r}; use a single value")
            given[setting] = own
    return given, under


def kinds(name: str) -> set[Any]:
    """The types that a setting of this name takes, in any part that has it; none for a choice of parts."""
    return {
        kind
        for role, choice in parts_with(name)
        if choice or not role.table
        for kind in alternatives(role.settings(choice)[name].kind)
    }


def typed(name: str, value: Any) -> Any:
    """A value of TOML as a setting takes it: no null there, and a whole number may stand for any."""
    taken = kinds(name)
    if value == "None" and type(None) in taken:
        return None
    if type(value) is int and float in taken and int not in taken:
        return float(value)
    return value
