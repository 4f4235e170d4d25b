"""The Hamiltonian VAE on binarized MNIST: its authors' protocol, and a comparison with importance weighting."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

_STRIDED = RunSpec().replace(
    data="mnist", network="strided", activation="softplus", normalization="none", latent=64
)

HVAE = Recipe(
    "hvae",
    "the HVAE authors' convolutional network and protocol: 5 leapfrog steps, free tempering, early stopping",
    _STRIDED.replace(
        protocol="dynamic",
        leapfrog=5,
        tempering="free",
        step_shape="dimension",
        step_bound=0.5,
        initial_step=0.2,
        # Every factor 0.9 at the start, so 1/√β₀ = 0.9⁻⁵.
        initial_temperature=0.9**-5,
        optimizer="adamax",
        lr=5e-4,
        eps=1e-7,
        batch=100,
        epochs=2_000,
        patience="100 epochs",
    ),
    "Caterini, Doucet and Sejdinovic 2018, section 4.2; anthonycaterini/hvae-nips",
    "symmetric padding; torch's initial weights and an output bias of 0; Adamax corrects its first moment; "
    "validation pictures are binarized once; tempering=fixed is quadratic in 1/√β, as in the paper, where the "
    "program has 1/β. For another number of leapfrog steps K the start is initial_temperature = 0.9^(-K); "
    "step_shape=both gives each step its own sizes",
)

_SMALL = _STRIDED.replace(
    protocol="threshold",
    train_limit=10_000,
    validation_limit=1_000,
    up="nearest",
    head=16,
    normalization="group",
    batch=256,
    lr=1e-3,
    epochs=40,
)
_SOURCE = "Daniil-Selikhanovych/h-vae, demos/mnist.ipynb"
_DIFFERS = (
    "group normalisation, which couples no examples, in place of batch normalisation, and none of the picture or of "
    "the latents; the last encoder convolution has an activation; 1,000 pictures of a validation split in place of "
    "test pictures"
)

HVAE_MNIST = Recipe(
    "hvae-mnist",
    "HVAE with 15 leapfrog steps and free tempering on 10,000 thresholded pictures, 40 epochs",
    _SMALL.replace(
        leapfrog=15,
        tempering="free",
        step_shape="dimension",
        step_bound=0.5,
        initial_step=5e-3,
        initial_temperature=1.01,
    ),
    _SOURCE,
    _DIFFERS
    + "; the momentum is drawn and not zero, the gradient of log p(x, z) is differentiated through, and all "
    "terms of the bound are there; tempering factors stay below 1 by a sigmoid, from 1.01^(-1/15), not by clamping",
)

IWAE_MNIST = Recipe(
    "iwae-mnist",
    "the same network with a Gaussian posterior and the importance-weighted bound of 40 samples",
    _SMALL.replace(objective="iwae", samples=40),
    _SOURCE,
    _DIFFERS,
)
