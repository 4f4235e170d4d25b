"""One global z behind a data set of Gaussian observations: the first experiment of the Hamiltonian VAE paper."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

_SOURCE = "Caterini, Doucet and Sejdinovic 2018, section 4.1; Daniil-Selikhanovych/h-vae"

_MODEL = RunSpec().replace(
    target="gaussian-model",
    dimensions=25,
    observations=10_000,
    batch=256,
    samples=10,
    precision="float64",
    keep="last",
    control=False,
)

GAUSSIAN_MODEL = Recipe(
    "gaussian-model",
    "z ~ N(0, I), x_i ~ N(z + Δ, diag σ²), all data by sufficient statistics; learns Δ and σ",
    _MODEL.replace(steps=5_000, samples=32, lr=0.03, decay="cosine"),
    _SOURCE,
    "one KL for the whole data set; centred float64 statistics; Adam with a decaying step instead of RMSprop, and 32 "
    "samples for 10",
)

GAUSSIAN_SEPARATE = Recipe(
    "gaussian-separate",
    "the same with the program's own objective: every batch of 256 a complete data set with a KL of its own",
    _MODEL.replace(batches="separate", epochs=2_000, optimizer="rmsprop", lr=1e-3),
    _SOURCE,
    "blocks come in a new order each epoch; the factor ½ of the quadratic term and the sign of d/2 are right",
)
