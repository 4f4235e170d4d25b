"""Show the settings of a run or a recipe, as a table or as TOML for --config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from varflow.cli.output import OutputOptions
from varflow.core.errors import RunError, SpecError, suggestion
from varflow.core.files import read_json
from varflow.settings import recipes, toml
from varflow.settings.flags import parse
from varflow.settings.spec import RunSpec


@dataclass(frozen=True)
class Show(OutputOptions):
    """The settings of a run.

    ``varflow show RUN --toml > run.toml`` and ``varflow fit --config run.toml`` make the same run again.
    """

    words: ClassVar[tuple[str, ...]] = ("run",)

    run: str
    """Folder of the run, hf://owner/name on the hub, or the name of a recipe."""
    toml: bool = False
    """Print TOML that --config reads."""
    changed: bool = False
    """Only the settings that differ from the recipe of the run; of a recipe those that differ from the defaults."""


def main(arguments: list[str]) -> int:
    options = parse(Show, arguments)
    if options.toml and options.json:
        raise SpecError("toml: given beside json; choose one of the two")
    from varflow.runs.hub import located

    folder, _ = located(options.run)
    about: dict[str, Any] = {}
    if (folder / "spec.json").exists():
        spec = RunSpec.from_dict(read_json(folder / "spec.json"))
        about = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    elif options.run in recipes.TABLE:
        spec = recipes.find(options.run).spec
    else:
        raise RunError(
            f"run: {folder} holds no run (no spec.json) and is no recipe; {suggestion(options.run, recipes.TABLE)}"
        )
    recipe = about.get("recipe")
    known = isinstance(recipe, str) and recipe in recipes.TABLE
    base = recipes.find(str(recipe)).spec if known else RunSpec()
    changes = spec.changes(base)
    if options.toml:
        print(_toml(spec, changes if options.changed else None, str(recipe) if known else None, about), end="")
        return 0
    if options.json:
        settings = changes if options.changed else spec.to_dict()
        options.answer(
            lambda: {"run": options.run, "recipe": recipe, "spec": settings, "changed": list(changes), "about": about}
        )
        return 0
    rows = [
        (role, name, value, name in changes)
        for role, part in spec.parts.items()
        for name, value in part.values().items()
        if name in changes or not options.changed
    ]
    widths = [max((len(str(row[k])) for row in rows), default=0) for k in (0, 1)]
    options.say(f"{options.run}" + (f": recipe {recipe}" if recipe else ""))
    last = ""
    for role, name, value, changed in rows:
        head = role if role != last else ""
        last = role
        mark = "*" if changed else " "
        options.say(f"{head:<{widths[0]}}  {mark} {name:<{widths[1]}}  {value}")
    if changes:
        options.say(f"* differs from {'the recipe' if known else 'the defaults'}")
    return 0


def _toml(spec: RunSpec, changes: Mapping[str, Any] | None, recipe: str | None, about: Mapping[str, Any]) -> str:
    notes = []
    if about.get("own_parts"):
        notes.append(f"Parts given in Python stood in place of these settings: {', '.join(about['own_parts'])}.")
    if about.get("data_given"):
        notes.append("The data were given in Python; `data` is not what the run was fitted to.")
    if changes is None:
        return toml.write(spec, recipe, notes)
    lines = [f"# {note}" for note in notes]
    lines += [f"{toml.RECIPE} = {toml.plain(recipe)}"] if recipe else []
    return "\n".join([*lines, *(f"{name} = {toml.plain(value)}" for name, value in changes.items())]) + "\n"
