"""varflow: deep latent-variable models and variational inference with normalizing flows.

Everything is imported when it is first used; ``import varflow`` alone does not import torch.
"""

from varflow.core.lazy import attach

__version__ = "0.1.0"

_EXPORTS = {
    "Ensemble": "varflow.ensemble:Ensemble",
    "Model": "varflow.model:Model",
    "Terms": "varflow.model:Terms",
    "Run": "varflow.runs.run:Run",
    "Form": "varflow.core.form:Form",
    "RunSpec": "varflow.settings.spec:RunSpec",
    "build": "varflow.runs.assemble:build",
    "density": "varflow.runs.assemble:density",
    "fit": "varflow.runs.fitting:fit",
    "load": "varflow.runs.loading:load",
    "resume": "varflow.runs.fitting:resume",
    "resume_sweep": "varflow.runs.sweep:resume_sweep",
    "sweep": "varflow.runs.sweep:sweep",
    "refusals": "varflow.refusals",
    "data": "varflow.data",
    "errors": "varflow.core.errors",
    "evaluation": "varflow.evaluation",
    "figures": "varflow.figures",
    "flows": "varflow.flows",
    "interpolation": "varflow.priors.interpolation",
    "likelihoods": "varflow.likelihoods",
    "networks": "varflow.networks",
    "objectives": "varflow.objectives",
    "posteriors": "varflow.posteriors",
    "priors": "varflow.priors",
    "hmc": "varflow.hmc",
    "random": "varflow.core.random",
    "ranks": "varflow.core.ranks",
    "recipes": "varflow.settings.recipes",
    "specs": "varflow.settings.spec",
    "targets": "varflow.targets",
    "trackers": "varflow.runs.trackers",
    "training": "varflow.training",
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
