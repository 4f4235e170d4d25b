"""Pages of the reference: public names by room, verbs of the command line, recipes, settings of all parts.

Everything is read from the tables that the library itself works with, so nothing has to be listed a second time; what
stands under a name is its docstring, which mkdocstrings reads from the source.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

SOURCE = Path(__file__).resolve().parents[1] / "src"

#: Groups of rooms as a user thinks of them: title → public names of varflow, in the order of the navigation.
GROUPS = {
    "Parts": (
        "priors",
        "likelihoods",
        "posteriors",
        "flows",
        "networks",
        "targets",
        "interpolation",
    ),
    "Inference": ("objectives", "hmc", "refusals"),
    "Data and training": ("data", "training", "trackers"),
    "Evaluation": ("evaluation", "figures", "sklearn"),
    "Basics": ("errors", "random", "ranks", "specs", "recipes"),
}


def navigation() -> list[Any]:
    """The pages behind reference/index.md, for the navigation."""
    return [
        {"varflow": "reference/varflow.md"},
        {"Command line": "reference/command_line.md"},
        {"Recipes": "reference/recipes.md"},
        {"Settings": "reference/settings.md"},
        *(
            {group: [{f"varflow.{room}": f"reference/{room}.md"} for room in rooms]}
            for group, rooms in GROUPS.items()
        ),
    ]


@cache
def pages() -> dict[str, str]:
    """page → its Markdown."""
    found = {
        "reference/index.md": _index(),
        "reference/varflow.md": _top(),
        "reference/command_line.md": _command_line(),
        "reference/recipes.md": _recipes(),
        "reference/settings.md": _settings(),
    }
    for rooms in GROUPS.values():
        found |= {f"reference/{room}.md": _room(room) for room in rooms}
    return found


def _exports() -> dict[str, str]:
    table: dict[str, str] = vars(import_module("varflow"))["_EXPORTS"]
    return table


def _names(room: str) -> list[str] | None:
    """Public names of a room with a table of exports; None where the whole module is public."""
    target = _exports()[room]
    path = SOURCE.joinpath(*target.split("."))
    if not (path / "__init__.py").is_file():
        return None
    table = vars(import_module(target)).get("_EXPORTS")
    # Constants are described where they are used.
    return None if table is None else [name for name in table if not name.isupper()]


def _top() -> str:
    exports = _exports()
    names = [name for name in exports if ":" in exports[name]]
    verbs = [name for name in names if name[0].islower()]
    classes = [name for name in names if name[0].isupper()]
    described = "\n\n".join(f"::: varflow.{name}" for name in [*verbs, *classes])
    return f"# varflow\n\n`import varflow as vf` imports nothing else until a name is used.\n\n{described}\n"


def _room(room: str) -> str:
    target = _exports()[room]
    names = _names(room)
    head = f"---\ntitle: varflow.{room}\n---\n\n# varflow.{room}\n\n"
    module = f"::: {target}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
    if names is None:
        return head + module
    about = f"{module}      members: false\n"
    return head + "\n\n".join([about, *(f"::: {target}.{name}" for name in names)]) + "\n"


def _index() -> str:
    lines = [
        "# Reference",
        "",
        "Every public name, with what its docstring says. Shapes stand in brackets: `[S, B, D]` is samples, batch, "
        "features. "
        "Densities are in nats, of x in the units of the data unless it says otherwise.",
        "",
        "| page | what is there |",
        "|---|---|",
        "| [varflow](varflow.md) | `fit`, `load`, `resume`, `sweep`, `Run`, `Model` and the rest of the top |",
        "| [Command line](command_line.md) | each verb with its options |",
        "| [Recipes](recipes.md) | the named experiments, where each comes from and what differs |",
        "| [Settings](settings.md) | every setting of every part, with its limits and its default |",
    ]
    for rooms in GROUPS.values():
        for room in rooms:
            summary = (_docstring(_exports()[room])).partition("\n\n")[0].replace("\n", " ")
            lines.append(f"| [varflow.{room}]({room}.md) | {_plain(summary)} |")
    return "\n".join(lines) + "\n"


def _docstring(module: str) -> str:
    path = SOURCE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _plain(text: str) -> str:
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`").replace("|", r"\|")


# -- command line ----------------------------------------------------------------------------------


def _command_line() -> str:
    from varflow.cli import VERBS

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        texts = list(pool.map(_help, VERBS))
    parts = [
        "# Command line",
        "",
        "What `varflow VERB --help` prints. `varflow fit RECIPE --help` lists the settings of the parts that the "
        "recipe chose, with its values; all of them are on the page of [settings](settings.md).",
        "",
    ]
    for verb, text in zip(VERBS, texts, strict=True):
        parts += [f"## varflow {verb}", "", "```text", text.rstrip(), "```", ""]
    return "\n".join(parts)


def _help(verb: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "NO_COLOR": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "varflow", verb, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"varflow {verb} --help: {done.stderr.strip()}")
    return done.stdout


def _recipes() -> str:
    from varflow.settings import recipes

    lines = [
        "# Recipes",
        "",
        "A recipe is a name for a choice of parts and their settings. `varflow recipes NAME` prints all of its "
        "settings, and each of them can be overridden: `varflow fit dense --flow planar --length 8`.",
        "",
        "| recipe | what it is | source | what differs |",
        "|---|---|---|---|",
    ]
    for recipe in recipes.every():
        cells = [f"`{recipe.name}`", recipe.summary, recipe.source, recipe.differs or "nothing"]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


# -- settings --------------------------------------------------------------------------------------


def _settings() -> str:
    from varflow.settings.roles import ROLES

    lines = [
        "# Settings",
        "",
        "A run is a choice of parts and their settings. Each has one name: the keyword of `vf.fit(length=8)`, the "
        "flag `--length 8`, with hyphens for underscores, and the key in `spec.json`. A setting of a part that is not "
        "chosen is refused.",
    ]
    for role in ROLES.values():
        lines += ["", f"## {role.name}", "", *filter(None, [role.help]), ""]
        choices = [choice for choice in role.names() if choice != "none"]
        settings: dict[str, Any] = {}
        of: dict[str, list[str]] = {}
        for choice in choices or [""]:
            for name, setting in role.settings(choice).items():
                settings.setdefault(name, setting)
                of.setdefault(name, []).append(choice)
        if choices:
            names = " ".join(f"`{name}`" for name in role.names())
            lines += [f"Choices: {names}. Default: `{role.default}`.", ""]
        if settings:
            lines += ["| setting | type | default | of | what it is |", "|---|---|---|---|---|"]
        for name, setting in settings.items():
            own = "all" if len(of[name]) == len(choices) else ", ".join(of[name])
            default = role.defaults.get(name.removeprefix(role.prefix), setting.default)
            shown = " ".join(default) if isinstance(default, tuple) else str(default)
            limits = [f"{limit}." for limit in map(_limit, setting.limits) if limit]
            cells = [
                f"`{name}`",
                _kind(setting.kind),
                f"`{shown}`" if shown else "",
                own,
                " ".join([setting.help, *limits]),
            ]
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        alternatives = [one for one in get_args(kind) if get_origin(one) not in (tuple, list)]
        return ", ".join(_kind(one) for one in alternatives) or "several texts"
    words = {
        int: "whole number",
        float: "number",
        bool: "yes or no",
        str: "text",
        type(None): "`None`",
    }
    return words.get(kind, "several texts")


def _limit(limit: Any) -> str:
    match vars(limit):
        case {"least": least}:
            return f"{least:g} or more"
        case {"limit": least}:
            return f"Above {least:g}"
        case {"low": low, "high": high}:
            return f"From {low:g} to {high:g}"
    return ""


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
