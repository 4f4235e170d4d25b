"""Posteriors q(z|x). ``q = posterior(x)`` encodes once; q draws, scores, and exposes what is per example."""

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.posteriors.ancestral import Ancestral as Ancestral
    from varflow.posteriors.data_as_latents import CodesAsLatents as CodesAsLatents
    from varflow.posteriors.data_as_latents import DataAsLatents as DataAsLatents
    from varflow.posteriors.gaussian import Gaussian as Gaussian
    from varflow.posteriors.hamiltonian import Hamiltonian as Hamiltonian
    from varflow.posteriors.posterior import Conditional as Conditional
    from varflow.posteriors.posterior import Draw as Draw
    from varflow.posteriors.posterior import Posterior as Posterior
    from varflow.posteriors.quantizer import Quantizer as Quantizer
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
