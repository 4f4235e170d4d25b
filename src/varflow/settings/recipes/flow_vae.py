"""Dense and convolutional VAEs with static or amortized flows, after the flow-VAE scripts (F. Mu, 2019)."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

_SOURCE = "flow-VAE scripts (fmu2/flow-VAE, 2019), after Rezende and Mohamed 2015"
_DIFFERS = (
    "the prior is charged at z_K, not z_0; couplings alternate; pictures are binarized for a Bernoulli "
    "instead of scoring grey values; a validation split is held out; a gaussian likelihood keeps its constants"
)

_DENSE = RunSpec().replace(
    hidden=400, layers=2, latent=20, batch=128, lr=1e-3, steps=10_000
)
_CONV = RunSpec().replace(
    network="conv", base=32, blocks=1, latent=32, batch=128, lr=1e-3, steps=20_000, gain_decay=1e-4
)

DENSE_STATIC = Recipe(
    "dense-static",
    "dense VAE 784-400-400-20, flow parameters shared by all examples, 10,000 updates",
    _DENSE,
    _SOURCE,
    _DIFFERS,
)

DENSE_AMORTIZED = Recipe(
    "dense-amortized",
    "the same with planar parameters computed from the base moments of each example",
    _DENSE.replace(flow="planar", amortized=True, context="moments"),
    _SOURCE,
    _DIFFERS,
)

CONV_STATIC = Recipe(
    "conv-static",
    "residual convolutional VAE, 32 latents, static flow, 20,000 updates",
    _CONV,
    _SOURCE,
    _DIFFERS + "; group normalisation, which couples no examples, instead of batch normalisation; three halvings "
    "of MNIST's 28 pixels where the scripts meant two (--scales 2)",
)

CONV_AMORTIZED = Recipe(
    "conv-amortized",
    "the same with planar parameters computed from each example",
    _CONV.replace(flow="planar", amortized=True),
    _SOURCE,
    CONV_STATIC.differs,
)

DENSE = Recipe(
    "dense",
    "the network of the comparison of posteriors: 784-400-400-40, 16 steps, 60 epochs",
    RunSpec().replace(latent=40, epochs=60).preset(length=16),
    "dense network of flow-VAE with 40 latents, as in Rezende and Mohamed 2015",
    _DIFFERS,
)
