"""Importance-weighted autoencoders with one and two stochastic layers."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

_SOURCE = "Burda, Grosse and Salakhutdinov 2016 (arXiv:1509.00519), section 5"
_DIFFERS = (
    "torch's initial weights; an output bias of 0 at the start instead of the mean picture; 10,000 training pictures "
    "are held out"
)

IWAE = Recipe(
    "iwae",
    "one stochastic layer of 50 latents, two tanh layers of 200, the importance-weighted bound of 50 samples",
    RunSpec().replace(
        data="mnist",
        protocol="dynamic",
        layers=2,
        hidden=200,
        activation="tanh",
        latent=50,
        objective="iwae",
        samples=50,
        lr=1e-3,
        eps=1e-4,
        decay="stages",
        batch=20,
        epochs=3_280,
        keep="last",
    ),
    _SOURCE,
    _DIFFERS,
)

IWAE_2 = Recipe(
    "iwae-2",
    "two stochastic layers of 100 and 50 latents, with two tanh layers of 100 between them",
    IWAE.spec.replace(latent=100, top_latent=50, top_hidden=100),
    _SOURCE,
    _DIFFERS,
)
