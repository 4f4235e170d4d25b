"""Named experiments: a spec with its source and its numbers each. Nothing here imports torch."""

from __future__ import annotations

from varflow.core.errors import unknown
from varflow.core.lazy import resolve
from varflow.settings.recipes.recipe import Recipe

#: name → where the recipe is written down.
TABLE = {
    "dense": "varflow.settings.recipes.flow_vae:DENSE",
    "dense-static": "varflow.settings.recipes.flow_vae:DENSE_STATIC",
    "dense-amortized": "varflow.settings.recipes.flow_vae:DENSE_AMORTIZED",
    "conv-static": "varflow.settings.recipes.flow_vae:CONV_STATIC",
    "conv-amortized": "varflow.settings.recipes.flow_vae:CONV_AMORTIZED",
    "planar-2d": "varflow.settings.recipes.planar_2d:PLANAR_2D",
    "vae-2d": "varflow.settings.recipes.vae_2d:VAE_2D",
    "nf-clusters": "varflow.settings.recipes.vae_2d:NF_CLUSTERS",
    "vae-cifar": "varflow.settings.recipes.images:VAE_CIFAR",
    "vae-svhn": "varflow.settings.recipes.images:VAE_SVHN",
    "vlae": "varflow.settings.recipes.images:VLAE",
    "digits": "varflow.settings.recipes.digits:DIGITS",
    "density": "varflow.settings.recipes.density:DENSITY",
    "table": "varflow.settings.recipes.table:TABLE",
    "table-missing": "varflow.settings.recipes.table:TABLE_MISSING",
    "conditional-density": "varflow.settings.recipes.table:CONDITIONAL_DENSITY",
    "vq-vae": "varflow.settings.recipes.vector_quantized:VQ_VAE",
    "vq-pixelcnn": "varflow.settings.recipes.vector_quantized:VQ_PIXELCNN",
    "vq-gated-pixelcnn": "varflow.settings.recipes.vector_quantized:VQ_GATED_PIXELCNN",
    "energy": "varflow.settings.recipes.energies:ENERGY",
    "energy-paper": "varflow.settings.recipes.energies:ENERGY_PAPER",
    "gaussian-model": "varflow.settings.recipes.gaussian_model:GAUSSIAN_MODEL",
    "hvae": "varflow.settings.recipes.hvae:HVAE",
    "hvae-mnist": "varflow.settings.recipes.hvae:HVAE_MNIST",
    "iwae-mnist": "varflow.settings.recipes.hvae:IWAE_MNIST",
    "iwae": "varflow.settings.recipes.iwae:IWAE",
    "iwae-2": "varflow.settings.recipes.iwae:IWAE_2",
    "gaussian-separate": "varflow.settings.recipes.gaussian_model:GAUSSIAN_SEPARATE",
}


def find(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        SpecError: there is none, with the nearest name.
    """
    if name not in TABLE:
        raise unknown("recipe", name, TABLE)
    recipe: Recipe = resolve(TABLE[name])
    return recipe


def every() -> list[Recipe]:
    """All recipes, in the order of the table."""
    return [find(name) for name in TABLE]
