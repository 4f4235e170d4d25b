"""Likelihoods p(x|z): ``log_prob(x, z)``, ``mean(z)``, ``sample(z)``, ``distribution(z)``."""

from varflow.core.lazy import attach

#: name in a spec → a callable ``(decoder, event_shape, **options) -> Likelihood``.
TABLE = {
    "bernoulli": "varflow.likelihoods.bernoulli:Bernoulli",
    "gaussian": "varflow.likelihoods.gaussian:Gaussian",
    "student-t": "varflow.likelihoods.student_t:StudentT",
    "logistics": "varflow.likelihoods.logistics:Logistics",
    "categorical": "varflow.likelihoods.categorical:Categorical",
}

#: All names in a spec.
CHOICES = {
    "auto": "varflow.likelihoods.auto:AutoSettings",
    "identity": "varflow.likelihoods.identity:Identity",
    **TABLE,
}

_EXPORTS = {
    "Likelihood": "varflow.likelihoods.likelihood:Likelihood",
    "Identity": CHOICES["identity"],
    **{part.partition(":")[2]: part for part in TABLE.values()},
}

__getattr__, __dir__ = attach(__name__, _EXPORTS)
