"""What type checkers read, written from the tables: run it after a change of public names or of settings.

    python tests/typing/generate.py            writes what is out of date
    python tests/typing/generate.py --check    names it, and writes nothing

Public names are imported when they are first used, which no type checker can follow. So beside each table
``_EXPORTS`` stand the same names as imports that only type checkers see. And the keywords of ``fit`` are the settings
of all parts, which stand in the files of the parts; ``settings/keywords.py`` lists them with their types.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, get_args, get_origin

SOURCE = Path(__file__).parents[2] / "src"
sys.path.insert(0, str(SOURCE))

from varflow.core.settings import SEVERAL, OneOf, Setting, alternatives  # noqa: E402
from varflow.settings.recipes import TABLE as RECIPES  # noqa: E402
from varflow.settings.roles import ROLES  # noqa: E402

ATTACH = "__getattr__, __dir__ = attach(__name__, _EXPORTS)"
BLOCK = "if TYPE_CHECKING:\n    # Written by tests/typing/generate.py from _EXPORTS.\n"
KEYWORDS = SOURCE / "varflow" / "settings" / "keywords.py"
#: What can grow when a run goes on; tests compare it with the check of ``resume``.
BUDGETS = ("epochs", "steps", "prior_epochs", "prior_steps")


def texts() -> dict[Path, str]:
    """file → what it should hold."""
    return {**{path: exported(path) for path in rooms()}, KEYWORDS: keywords()}


def rooms() -> list[Path]:
    """The ``__init__.py`` files with a table of exports."""
    return [path for path in sorted(SOURCE.rglob("__init__.py")) if ATTACH in path.read_text()]


def exported(path: Path) -> str:
    """The ``__init__.py`` of a room, with its exports as imports for type checkers."""
    module = ".".join(path.parent.relative_to(SOURCE).parts)
    table: dict[str, str] = vars(import_module(module))["_EXPORTS"]
    text = path.read_text()
    above = text[: text.index(BLOCK) if BLOCK in text else text.index(ATTACH)]
    found = [statement(name, target) for name, target in table.items()]
    lines = sorted({imported for imported, _ in found}, key=_in_order)
    # Only `import name as name` gives a name on; one that is called otherwise is assigned.
    renamed = sorted(line for _, line in found if line)
    body = "".join(f"    {line}\n" for line in [*lines, *([""] if renamed else []), *renamed])
    return f"{above}{BLOCK}{body}else:\n    {ATTACH}\n".replace("    \n", "\n")


def statement(name: str, target: str) -> tuple[str, str]:
    """The import of what ``"module:attribute"`` or ``"module"`` is, and what renames it, if need be."""
    module, _, attribute = target.partition(":")
    if not attribute:
        module, _, attribute = module.rpartition(".")
    if attribute == name:
        return f"from {module} import {name} as {name}", ""
    return f"from {module} import {attribute} as _{attribute}", f"{name} = _{attribute}"


def _in_order(line: str) -> tuple[Any, ...]:
    """As ruff sorts imports: constants, classes, then functions of a module."""
    _, module, _, attribute, *_ = line.split()
    kind = 0 if attribute.isupper() and len(attribute) > 1 else 1 if attribute[0].isupper() else 2
    return module, kind, attribute


def keywords() -> str:
    """The module of the keywords of ``fit``."""
    found = collected()
    fit = {name: kind for name, kind in found.items() if name != "data"}
    budget = {name: found[name] for name in BUDGETS}
    of_fit = "Keywords of :func:`varflow.fit`; which of them a run has follows from its parts."
    parts = (
        '"""The settings of all parts with their types, as keywords. Written by tests/typing/generate.py."""\n\n'
        "from __future__ import annotations\n\n"
        "from typing import Literal, TypedDict\n\n"
        f"RecipeName = {literal(RECIPES, '')}\n",
        typed_dict("Keywords", "TypedDict", of_fit, fit),
        typed_dict("SpecKeywords", "Keywords", "Keywords of :class:`varflow.RunSpec`.", {"data": found["data"]}),
        typed_dict("BudgetKeywords", "TypedDict", "Keywords of :func:`varflow.resume`.", budget),
    )
    return "\n\n".join(parts)


def typed_dict(name: str, base: str, words: str, entries: dict[str, str]) -> str:
    """A class of keywords, none of which has to be given."""
    return f'class {name}({base}, total=False):\n    """{words}"""\n\n' + "".join(
        f"    {entry}: {kind}\n" for entry, kind in entries.items()
    )


def collected() -> dict[str, str]:
    """setting → its type, over all parts that have one of that name."""
    kinds: dict[str, list[Any]] = {}
    for role in ROLES.values():
        if role.table:
            kinds.setdefault(role.name, []).append(Literal[tuple(role.names())])
        for choice in role.names() or [""]:
            for name, setting in role.settings(choice).items():
                kinds.setdefault(name, []).extend(taken(setting))
    return {name: written(options) for name, options in kinds.items()}


def taken(setting: Setting) -> list[Any]:
    """The types that a setting takes."""
    options = list(alternatives(setting.kind))
    if any(limit.takes == "anything" for limit in setting.limits):
        # A duration: a number alone counts epochs.
        options.append(float)
    names = [tuple(limit.names) for limit in setting.limits if isinstance(limit, OneOf)]
    if names and str in options:
        options[options.index(str)] = Literal[names[0]]
    return options


def written(options: list[Any]) -> str:
    """A union as it stands in a file."""
    words = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    plain = [option for option in (bool, int, float, str) if option in options]
    if float in plain and int in plain:
        plain.remove(int)
    kinds = [literal(words)] if words and str not in plain else []
    kinds += [option.__name__ for option in plain]
    kinds += ["tuple[str, ...] | list[str]"] if SEVERAL in options else []
    return " | ".join([*kinds, *(["None"] if type(None) in options else [])])


def literal(words: Iterable[str], indent: str = "    ") -> str:
    """``Literal["a", "b"]``, on several lines where it is long."""
    inside = ", ".join(f'"{word}"' for word in dict.fromkeys(words))
    if len(inside) <= 70:
        return f"Literal[{inside}]"
    rows = wrap(f"{inside},", 110, break_on_hyphens=False)
    return "Literal[\n" + "".join(f"{indent}    {row}\n" for row in rows) + f"{indent}]"


def outdated() -> list[Path]:
    """The files that do not hold what they should."""
    return [p for p, text in texts().items() if not p.exists() or p.read_text() != text]


def main() -> int:
    """Write, or with ``--check`` name, what is out of date."""
    check = "--check" in sys.argv[1:]
    files = texts()
    stale = outdated()
    for path in stale:
        print(f"{path.relative_to(SOURCE.parent)}: {'out of date' if check else 'written'}")
        if not check:
            path.write_text(files[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
