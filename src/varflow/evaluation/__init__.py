"""Estimates of the likelihood with their errors, exact references, and the health of a model."""

from varflow._lazy import attach

_EXPORTS = {
    "Aggregate": "varflow.evaluation.health:Aggregate",
    "Estimate": "varflow.evaluation.estimate:Estimate",
    "Evaluation": "varflow.evaluation.evaluation:Evaluation",
    "Importance": "varflow.evaluation.sums:Importance",
    "LinearGaussian": "varflow.evaluation.exact:LinearGaussian",
    "Progress": "varflow.evaluation.progress:Progress",
    "active_units": "varflow.evaluation.health:active_units",
    "aggregated_distance": "varflow.evaluation.health:aggregated_distance",
    "divergences": "varflow.evaluation.plane:divergences",
    "evaluate": "varflow.evaluation.estimation:evaluate",
    "evaluate_target": "varflow.evaluation.targets:evaluate_target",
    "importance_sample": "varflow.evaluation.importance:importance_sample",
    "latents": "varflow.evaluation.health:latents",
    "paired": "varflow.evaluation.compare:paired",
    "pareto_k": "varflow.evaluation.psis:pareto_k",
    "quadrature": "varflow.evaluation.exact:quadrature",
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
