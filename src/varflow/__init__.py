"""varflow: deep latent-variable models and variational inference with normalizing flows.

Everything is imported when it is first used; ``import varflow`` alone does not import torch.
"""

from varflow._lazy import attach

__version__ = "0.1.0"

_EXPORTS = {
    "Ensemble": "varflow.ensemble:Ensemble",
    "Model": "varflow.model:Model",
    "Terms": "varflow.model:Terms",
    "Run": "varflow.run:Run",
    "RunSpec": "varflow.specs:RunSpec",
    "build": "varflow.building:build",
    "density": "varflow.building:density",
    "fit": "varflow.fitting:fit",
    "load": "varflow.run:load",
    "resume": "varflow.fitting:resume",
    "combinations": "varflow.combinations",
    "data": "varflow.data",
    "errors": "varflow.errors",
    "evaluation": "varflow.evaluation",
    "figures": "varflow.figures",
    "flows": "varflow.flows",
    "interpolation": "varflow.interpolation",
    "likelihoods": "varflow.likelihoods",
    "networks": "varflow.networks",
    "objectives": "varflow.objectives",
    "posteriors": "varflow.posteriors",
    "priors": "varflow.priors",
    "hmc": "varflow.hmc",
    "random": "varflow.random",
    "ranks": "varflow.ranks",
    "recipes": "varflow.recipes",
    "specs": "varflow.specs",
    "targets": "varflow.targets",
    "training": "varflow.training",
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
