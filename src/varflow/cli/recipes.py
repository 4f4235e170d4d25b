"""List the named experiments, or show one with its settings."""

from __future__ import annotations

from varflow.settings import recipes


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(
            "usage: varflow recipes [NAME]\n\nThe named experiments; with NAME, one with its settings."
        )
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
