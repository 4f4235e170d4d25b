"""Priors p(z): ``log_prob(z, context=None)``, ``sample(shape)``, ``event_shape``."""

from varflow._lazy import attach

_EXPORTS = {
    "Prior": "varflow.priors.prior:Prior",
    "StandardNormal": "varflow.priors.normal:StandardNormal",
}

#: name in a spec → a callable ``(features) -> Prior``.
TABLE = {"normal": "varflow.priors.normal:StandardNormal"}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
