"""Estimates of the likelihood with their errors, exact references, and the health of a model."""

from typing import TYPE_CHECKING

from varflow.core.lazy import attach

_EXPORTS = {
    "Aggregate": "varflow.evaluation.health:Aggregate",
    "Annealed": "varflow.evaluation.annealing:Annealed",
    "Annealing": "varflow.evaluation.annealing:Annealing",
    "Estimate": "varflow.evaluation.estimate:Estimate",
    "Evaluation": "varflow.evaluation.evaluation:Evaluation",
    "Importance": "varflow.evaluation.importance:Importance",
    "LinearGaussian": "varflow.evaluation.exact:LinearGaussian",
    "Progress": "varflow.evaluation.progress:Progress",
    "Refinement": "varflow.evaluation.refinement:Refinement",
    "Trajectory": "varflow.evaluation.trajectory:Trajectory",
    "active_units": "varflow.evaluation.health:active_units",
    "aggregated_distance": "varflow.evaluation.health:aggregated_distance",
    "anneal": "varflow.evaluation.annealing:anneal",
    "annealed_likelihood": "varflow.evaluation.sandwich:annealed_likelihood",
    "bound_curve": "varflow.evaluation.curve:bound_curve",
    "divergences": "varflow.evaluation.integration:divergences",
    "evaluate": "varflow.evaluation.marginal_likelihood:evaluate",
    "evaluate_codes": "varflow.evaluation.codes:evaluate_codes",
    "evaluate_target": "varflow.evaluation.targets:evaluate_target",
    "grouped_bounds": "varflow.evaluation.curve:grouped_bounds",
    "hmc_trajectory": "varflow.evaluation.trajectory:hmc_trajectory",
    "importance_sample": "varflow.evaluation.importance:importance_sample",
    "inference_gaps": "varflow.evaluation.gaps:inference_gaps",
    "latents": "varflow.evaluation.health:latents",
    "paired": "varflow.evaluation.evaluation:paired",
    "pareto_k": "varflow.evaluation.psis:pareto_k",
    "removed_cells": "varflow.evaluation.removed:removed_cells",
    "quadrature": "varflow.evaluation.integration:quadrature",
    "refined_bounds": "varflow.evaluation.refinement:refined_bounds",
    "sandwich_bounds": "varflow.evaluation.sandwich:sandwich_bounds",
    "simulate": "varflow.evaluation.sandwich:simulate",
}

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.evaluation.annealing import Annealed as Annealed
    from varflow.evaluation.annealing import Annealing as Annealing
    from varflow.evaluation.annealing import anneal as anneal
    from varflow.evaluation.codes import evaluate_codes as evaluate_codes
    from varflow.evaluation.curve import bound_curve as bound_curve
    from varflow.evaluation.curve import grouped_bounds as grouped_bounds
    from varflow.evaluation.estimate import Estimate as Estimate
    from varflow.evaluation.evaluation import Evaluation as Evaluation
    from varflow.evaluation.evaluation import paired as paired
    from varflow.evaluation.exact import LinearGaussian as LinearGaussian
    from varflow.evaluation.gaps import inference_gaps as inference_gaps
    from varflow.evaluation.health import Aggregate as Aggregate
    from varflow.evaluation.health import active_units as active_units
    from varflow.evaluation.health import aggregated_distance as aggregated_distance
    from varflow.evaluation.health import latents as latents
    from varflow.evaluation.importance import Importance as Importance
    from varflow.evaluation.importance import importance_sample as importance_sample
    from varflow.evaluation.integration import divergences as divergences
    from varflow.evaluation.integration import quadrature as quadrature
    from varflow.evaluation.marginal_likelihood import evaluate as evaluate
    from varflow.evaluation.progress import Progress as Progress
    from varflow.evaluation.psis import pareto_k as pareto_k
    from varflow.evaluation.refinement import Refinement as Refinement
    from varflow.evaluation.refinement import refined_bounds as refined_bounds
    from varflow.evaluation.removed import removed_cells as removed_cells
    from varflow.evaluation.sandwich import annealed_likelihood as annealed_likelihood
    from varflow.evaluation.sandwich import sandwich_bounds as sandwich_bounds
    from varflow.evaluation.sandwich import simulate as simulate
    from varflow.evaluation.targets import evaluate_target as evaluate_target
    from varflow.evaluation.trajectory import Trajectory as Trajectory
    from varflow.evaluation.trajectory import hmc_trajectory as hmc_trajectory
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
