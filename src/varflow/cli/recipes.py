"""List the named experiments, or show one with its settings."""

from __future__ import annotations

from varflow.cli.output import write_document
from varflow.core.errors import SpecError
from varflow.settings import recipes


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(
            "usage: varflow recipes [NAME] [--json]\n\nThe named experiments; with NAME, one with its settings. "
            "--json: as one JSON document."
        )
        return 0
    rest = [word for word in arguments if word != "--json"]
    if len(rest) > 1 or (rest and rest[0].startswith("-")):
        raise SpecError(f"'{rest[-1]}': not expected here; use varflow recipes, or varflow recipes NAME")
    if len(rest) < len(arguments):
        found = [recipes.find(name) for name in rest] or recipes.every()
        facts = [
            {"name": r.name, "summary": r.summary, "source": r.source, "differs": r.differs, "spec": r.spec.to_dict()}
            for r in found
        ]
        write_document(facts[0] if rest else {"recipes": facts})
        return 0
    if arguments:
        recipe = recipes.find(arguments[0])
        print(
            f"{recipe.name}: {recipe.summary}\nsource: {recipe.source}\ndiffers: {recipe.differs or 'nothing'}"
        )
        for role, part in recipe.spec.parts.items():
            print(f"{role}: " + ", ".join(f"{k}={v}" for k, v in part.values().items()))
        return 0
    width = max(len(name) for name in recipes.TABLE)
    for recipe in recipes.every():
        print(f"{recipe.name:<{width}}  {recipe.summary}")
    return 0
