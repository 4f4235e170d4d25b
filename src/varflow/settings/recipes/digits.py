"""A small VAE on the 8×8 digits that ship with scikit-learn: seconds on two cores, no download."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

DIGITS = Recipe(
    "digits",
    "dense VAE on the embedded 8x8 digits, 8 latents, seconds to train",
    RunSpec().replace(
        data="digits",
        hidden=200,
        latent=8,
        batch=64,
        epochs=200,
        lr=2e-3,
        warmup="20 epochs",
        threads=1,
    ),
    "the first thing to try",
)
