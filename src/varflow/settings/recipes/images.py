"""Convolutional VAEs of colour pictures, and the same with a learned prior."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

_SOURCE = "henrhoi/vae-pytorch"
_DIFFERS = (
    "the scale of the Gaussian in logit space is learned (--scale 1 is the program's; --likelihood logistics gives "
    "probabilities of the 256 levels instead); the transform's log-determinant counts, so that bits/dim mean what "
    "they say; dequantization noise is fresh at each access; a validation split is held out"
)

_IMAGES = RunSpec().replace(
    network="strided",
    stem=32,
    channels="64-128-256",
    up_channels="128-128-64",
    head=32,
    kernel=3,
    up_kernel=4,
    dense=0,
    normalization="none",
    batch=128,
)

VAE_CIFAR = Recipe(
    "vae-cifar",
    "convolutional VAE of CIFAR-10, 32 latents, 50 epochs (--likelihood, --scale switch p(x|z))",
    _IMAGES.replace(data="cifar10", latent=32, lr=5e-4, epochs=50),
    f"{_SOURCE}, vae.py",
    f"32 latents as in the program's code, its text says 16; {_DIFFERS}",
)

VAE_SVHN = Recipe(
    "vae-svhn",
    "the same of SVHN, 16 latents, 20 epochs",
    _IMAGES.replace(data="svhn", latent=16, lr=1e-3, epochs=20),
    f"{_SOURCE}, vae.py",
    _DIFFERS,
)

VLAE = Recipe(
    "vlae",
    "the same network with an autoregressive prior of 16 latents: one masked step, hidden 512-512, 30 epochs",
    _IMAGES.replace(
        data="cifar10",
        latent=16,
        lr=1e-3,
        epochs=30,
        prior="maf",
        prior_length=1,
        prior_hidden=512,
        prior_layers=2,
    ),
    f"{_SOURCE}, vlae.py; Chen et al. 2017, section 3.2",
    "--prior-length adds steps, in alternating order; degrees of hidden units are spread evenly instead of drawn at "
    f"random; the log-scale of a step is bounded by 3 and starts at 0; {_DIFFERS}",
)
