"""Estimators for scikit-learn: a density by a flow, and a VAE as a transformer.

Both are a fit and its run (:func:`varflow.fit`, :class:`varflow.Run`) behind scikit-learn's verbs, and both make
every result a function of the row alone: a row has the same score and the same latents whatever stands beside it.
Where the preprocessing draws noise (rounded columns are spread by it in training), its middle is taken, and where
log p(x) is estimated by samples, their random numbers follow from the row itself and the seed of the fit.

Fitted weights are used in float64, whatever they were trained in. A pickle holds plain values and arrays: settings,
preprocessing and weights, from which the model is built again.
"""

try:
    from sklearn.utils.validation import validate_data as _needed
except ImportError as error:
    raise ImportError(
        "varflow.sklearn needs scikit-learn 1.6 or newer; install it with: pip install 'varflow[sklearn]'"
    ) from error

from varflow.sklearn.density import FlowDensity as FlowDensity
from varflow.sklearn.transformer import VAETransformer as VAETransformer

del _needed
