"""Named experiments: a spec with its source and its numbers each. Nothing here imports torch."""

from __future__ import annotations

from varflow._lazy import resolve
from varflow.errors import unknown
from varflow.recipes.recipe import Recipe

#: name → where the recipe is written down.
TABLE = {
    "dense": "varflow.recipes.flow_vae:DENSE",
    "dense-static": "varflow.recipes.flow_vae:DENSE_STATIC",
    "dense-amortized": "varflow.recipes.flow_vae:DENSE_AMORTIZED",
    "conv-static": "varflow.recipes.flow_vae:CONV_STATIC",
    "conv-amortized": "varflow.recipes.flow_vae:CONV_AMORTIZED",
    "planar-2d": "varflow.recipes.planar_2d:PLANAR_2D",
    "vae-2d": "varflow.recipes.vae_2d:VAE_2D",
    "nf-clusters": "varflow.recipes.vae_2d:NF_CLUSTERS",
    "vae-cifar": "varflow.recipes.images:VAE_CIFAR",
    "vae-svhn": "varflow.recipes.images:VAE_SVHN",
    "vlae": "varflow.recipes.images:VLAE",
    "digits": "varflow.recipes.digits:DIGITS",
    "density": "varflow.recipes.density:DENSITY",
    "vq-vae": "varflow.recipes.vector_quantized:VQ_VAE",
    "vq-pixelcnn": "varflow.recipes.vector_quantized:VQ_PIXELCNN",
    "vq-gated-pixelcnn": "varflow.recipes.vector_quantized:VQ_GATED_PIXELCNN",
    "energy": "varflow.recipes.energies:ENERGY",
    "energy-paper": "varflow.recipes.energies:ENERGY_PAPER",
    "gaussian-model": "varflow.recipes.gaussian_model:GAUSSIAN_MODEL",
    "hvae": "varflow.recipes.hvae:HVAE",
    "hvae-mnist": "varflow.recipes.hvae:HVAE_MNIST",
    "iwae-mnist": "varflow.recipes.hvae:IWAE_MNIST",
    "iwae": "varflow.recipes.iwae:IWAE",
    "iwae-2": "varflow.recipes.iwae:IWAE_2",
    "gaussian-separate": "varflow.recipes.gaussian_model:GAUSSIAN_SEPARATE",
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
