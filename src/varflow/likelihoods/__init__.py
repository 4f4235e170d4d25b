"""Likelihoods p(x|z): ``log_prob(x, z)``, ``mean(z)``, ``sample(z)``, ``distribution(z)``."""

from typing import TYPE_CHECKING

from varflow.core.lazy import attach

#: name in a spec → a callable ``(decoder, event_shape, **options) -> Likelihood``.
TABLE = {
    "bernoulli": "varflow.likelihoods.bernoulli:Bernoulli",
    "gaussian": "varflow.likelihoods.gaussian:Gaussian",
    "student-t": "varflow.likelihoods.student_t:StudentT",
    "logistics": "varflow.likelihoods.logistics:Logistics",
    "categorical": "varflow.likelihoods.categorical:Categorical",
    "columns": "varflow.likelihoods.columns:Columns",
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

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.likelihoods.bernoulli import Bernoulli as Bernoulli
    from varflow.likelihoods.categorical import Categorical as Categorical
    from varflow.likelihoods.columns import Columns as Columns
    from varflow.likelihoods.gaussian import Gaussian as Gaussian
    from varflow.likelihoods.identity import Identity as Identity
    from varflow.likelihoods.likelihood import Likelihood as Likelihood
    from varflow.likelihoods.logistics import Logistics as Logistics
    from varflow.likelihoods.student_t import StudentT as StudentT
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
