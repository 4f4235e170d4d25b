"""varflow: deep latent-variable models and variational inference with normalizing flows.

Everything is imported when it is first used; ``import varflow`` alone does not import torch.
"""

from typing import TYPE_CHECKING

from varflow.core.lazy import attach

__version__ = "0.2.0"

_EXPORTS = {
    "Ensemble": "varflow.ensemble:Ensemble",
    "Model": "varflow.model:Model",
    "Terms": "varflow.model:Terms",
    "Run": "varflow.runs.run:Run",
    "Form": "varflow.core.form:Form",
    "RunSpec": "varflow.settings.spec:RunSpec",
    "build": "varflow.runs.assemble:build",
    "compare": "varflow.runs.comparison:compare",
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
    "sklearn": "varflow.sklearn",
    "specs": "varflow.settings.spec",
    "targets": "varflow.targets",
    "trackers": "varflow.runs.trackers",
    "training": "varflow.training",
}

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow import data as data
    from varflow import evaluation as evaluation
    from varflow import figures as figures
    from varflow import flows as flows
    from varflow import hmc as hmc
    from varflow import likelihoods as likelihoods
    from varflow import networks as networks
    from varflow import objectives as objectives
    from varflow import posteriors as posteriors
    from varflow import priors as priors
    from varflow import refusals as refusals
    from varflow import sklearn as sklearn
    from varflow import targets as targets
    from varflow import training as training
    from varflow.core import errors as errors
    from varflow.core import random as random
    from varflow.core import ranks as ranks
    from varflow.core.form import Form as Form
    from varflow.ensemble import Ensemble as Ensemble
    from varflow.model import Model as Model
    from varflow.model import Terms as Terms
    from varflow.priors import interpolation as interpolation
    from varflow.runs import trackers as trackers
    from varflow.runs.assemble import build as build
    from varflow.runs.assemble import density as density
    from varflow.runs.comparison import compare as compare
    from varflow.runs.fitting import fit as fit
    from varflow.runs.fitting import resume as resume
    from varflow.runs.loading import load as load
    from varflow.runs.run import Run as Run
    from varflow.runs.sweep import resume_sweep as resume_sweep
    from varflow.runs.sweep import sweep as sweep
    from varflow.settings import recipes as recipes
    from varflow.settings import spec as _spec
    from varflow.settings.spec import RunSpec as RunSpec

    specs = _spec
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
