"""Density estimation: a normalizing flow, or any other prior, fitted to the data themselves."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

DENSITY = Recipe(
    "density",
    "masked autoregressive flow fitted to a table or an array by maximum likelihood (--prior for others)",
    RunSpec().replace(
        data="digits",
        likelihood="identity",
        prior="maf",
        prior_length=5,
        batch=128,
        lr=1e-3,
        epochs=100,
        patience="auto",
    ),
    "Papamakarios, Pavlakou and Murray 2017, section 4",
    "no batch normalisation between the layers; early stopping after 10 epochs",
)
