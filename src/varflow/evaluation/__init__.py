"""Estimates of the likelihood with their errors, exact references, and the health of a model."""

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
    "quadrature": "varflow.evaluation.integration:quadrature",
    "refined_bounds": "varflow.evaluation.refinement:refined_bounds",
    "sandwich_bounds": "varflow.evaluation.sandwich:sandwich_bounds",
    "simulate": "varflow.evaluation.sandwich:simulate",
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
