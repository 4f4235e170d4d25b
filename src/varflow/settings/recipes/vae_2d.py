"""VAEs of points in the plane, whose true density is known."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

_PLANE = RunSpec().replace(layers=1, latent=2, lr=1e-3, threads=1)

VAE_2D = Recipe(
    "vae-2d",
    "VAE 2-32-2-32 of a correlated 2-D Gaussian (--data gaussian-1 or gaussian-2), scale from the decoder, 10 epochs",
    _PLANE.replace(data="gaussian-1", hidden=32, scale="decoder", batch=64, epochs=10),
    "henrhoi/vae-pytorch, vae_2d.py",
    "test rows come from a stream of their own instead of being the first training rows; one z for each example, "
    "not the same z fifty times; the objective is the ELBO, not twice the ELBO; log p(x) is set beside the exact one",
)

NF_CLUSTERS = Recipe(
    "nf-clusters",
    "VAE with three amortized planar steps of three clusters in the plane, 128 tanh units, 10,000 full-batch updates",
    _PLANE.replace(
        data="three-clusters",
        hidden=128,
        activation="tanh",
        flow="planar",
        length=3,
        amortized=True,
        batch=999,
        steps=10_000,
        validate_every="100 epochs",
    ),
    "weixsong/NormalizingFlow, nf.py; Rezende and Mohamed 2015",
    "the prior is charged at z_K; log-determinants are taken where each step acts, with their logarithm, for each "
    "example; steps are invertible; a Gaussian with a learned scale instead of a squared error; every point once in "
    "a batch instead of a bootstrap",
)
