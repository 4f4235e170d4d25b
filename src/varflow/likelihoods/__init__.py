"""Likelihoods p(x|z): ``log_prob(x, z)``, ``mean(z)``, ``sample(z)``, ``distribution(z)``."""

from varflow.core.lazy import attach

_EXPORTS = {
    "Likelihood": "varflow.likelihoods.likelihood:Likelihood",
    "Bernoulli": "varflow.likelihoods.bernoulli:Bernoulli",
    "Gaussian": "varflow.likelihoods.gaussian:Gaussian",
    "Logistics": "varflow.likelihoods.logistics:Logistics",
    "Categorical": "varflow.likelihoods.categorical:Categorical",
    "Identity": "varflow.likelihoods.identity:Identity",
}

#: name in a spec → a callable ``(decoder, event_shape, **options) -> Likelihood``; "identity" has no decoder.
TABLE = {
    "bernoulli": "varflow.likelihoods.bernoulli:Bernoulli",
    "gaussian": "varflow.likelihoods.gaussian:Gaussian",
    "logistics": "varflow.likelihoods.logistics:Logistics",
    "categorical": "varflow.likelihoods.categorical:Categorical",
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
