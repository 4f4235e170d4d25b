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
        prior_base="gaussians",
        prior_defensive=0.05,
        batch=128,
        lr=1e-3,
        steps=20_000,
        patience="auto",
    ),
    "Papamakarios, Pavlakou and Murray 2017, section 4",
    "no batch normalisation between the layers; the flow starts from a mixture of Gaussians that EM fits first, of "
    "which 5 % stay in the density; early stopping where the validation rows gain no more than their standard error "
    "for the longer of 10 epochs and 1,000 updates",
)
