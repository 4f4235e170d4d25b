"""Flows fitted to the unnormalised densities of Rezende and Mohamed 2015, section 6.1."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

_SOURCE = "Rezende and Mohamed 2015, section 6.1 and table 1; weixsong/NormalizingFlow"
_DIFFERS = (
    "a quadratic wall beyond |z| = 4 makes the second to fourth energy proper, so that log Z exists and every "
    "result stands beside it; no clipping and no constant inside a logarithm; the flow starts at the identity"
)

_TARGET = RunSpec().replace(
    target="u1",
    flow="planar",
    length=32,
    samples=256,
    objective="annealed",
    keep="last",
)

ENERGY = Recipe(
    "energy",
    "32 planar steps fitted to one of four 2-D energies (--target u1 … u4), 10,000 annealed updates",
    _TARGET.replace(steps=10_000, lr=5e-3, decay="cosine", anneal=1_000),
    _SOURCE,
    _DIFFERS + "; Adam with a cosine decay, a learned base, 50 times fewer updates",
)

ENERGY_PAPER = Recipe(
    "energy-paper",
    "the schedule of the paper: 500,000 updates of batch 100, RMSprop 1e-5 with momentum 0.9",
    _TARGET.replace(
        samples=100,
        steps=500_000,
        optimizer="rmsprop",
        lr=1e-5,
        momentum=0.9,
        anneal=10_000,
        base_moments="fixed",
    ),
    _SOURCE,
    _DIFFERS,
)
