"""A VAE with a 2-D latent and three amortized planar steps, after the post "VAE with Planar Flows"."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

PLANAR_2D = Recipe(
    "planar-2d",
    "2-D latent, one hidden layer of 500, three planar steps amortized on the encoder's features",
    RunSpec().replace(
        layers=1,
        hidden=500,
        latent=2,
        flow="planar",
        length=3,
        amortized=True,
        batch=100,
        lr=1e-3,
        weight_decay=1e-5,
        epochs=100,
    ),
    "blog post 'Variational Autoencoder with Planar Flows'; Rezende and Mohamed 2015, eq. 10",
    "every step acts on the last one's output; log q0 keeps its factor one half; the decoder sees z_K alone; "
    "pictures are binarized for the Bernoulli; test bounds sample z instead of using the mean",
)
