"""Posteriors q(z|x). ``q = posterior(x)`` encodes once; q draws, scores, and exposes what is per example."""

from varflow.core.lazy import attach

_EXPORTS = {
    "Draw": "varflow.posteriors.posterior:Draw",
    "Posterior": "varflow.posteriors.posterior:Posterior",
    "Conditional": "varflow.posteriors.posterior:Conditional",
    "Gaussian": "varflow.posteriors.gaussian:Gaussian",
    "Ancestral": "varflow.posteriors.ancestral:Ancestral",
    "Hamiltonian": "varflow.posteriors.hamiltonian:Hamiltonian",
    "DataAsLatents": "varflow.posteriors.data_as_latents:DataAsLatents",
    "CodesAsLatents": "varflow.posteriors.data_as_latents:CodesAsLatents",
    "Quantizer": "varflow.posteriors.quantizer:Quantizer",
}

#: name in a spec → the posterior.
TABLE = {
    "gaussian": "varflow.posteriors.gaussian:Gaussian",
    "quantizer": "varflow.posteriors.quantizer:Quantizer",
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
