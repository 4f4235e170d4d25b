"""Data sets on the device as bytes, and the protocols that turn them into what a model sees.

Nothing here imports torch: names can be listed and checked at once.
"""

from typing import TYPE_CHECKING

from varflow.core.lazy import attach

#: Data sets with a name → what they are.
SOURCES = {
    "digits": "1,797 grey digits of 8×8 with 17 levels, which come with varflow",
    "mnist": "70,000 grey digits of 28×28 (IDX files)",
    "fashion-mnist": "70,000 grey pictures of clothes, 28×28 (IDX files)",
    "cifar10": "60,000 colour pictures of 32×32 (binary version); a subset is named cifar10-subset",
    "cifar10-subset": "20,000 + 5,000 pictures of CIFAR-10; results on it carry the word subset",
    "svhn": "99,289 colour house numbers of 32×32 (.mat files, varflow[svhn])",
    "gaussian-1": "15,000 points of a correlated 2-D Gaussian around (1, 2), made on the spot",
    "gaussian-2": "15,000 points of another, around (-1, 2), made on the spot",
    "three-clusters": "2,997 labelled points in the plane: a square and two round clusters, made on the spot",
}

#: Protocols → what the model sees. Numbers of two protocols are never comparable.
PROTOCOLS = {
    "auto": "grey pictures: dynamic; colour: logit; values 0 and 1: threshold; tables: none, or table where a column "
    "is rounded",
    "dynamic": "binary: Bernoulli(v/(levels − 1)), drawn anew in each training batch",
    "static": "binary: Larochelle's published files of MNIST",
    "threshold": "binary: v/(levels − 1) > 1/2",
    "logit": "real: logit(0.05 + 0.9·(v + u)/levels) with u uniform",
    "uniform": "in (0, 1): (v + u)/levels with u uniform",
    "levels": "in [0, 1]: v/(levels − 1) as it is, for likelihoods that are probabilities of levels",
    "symmetric": "real, in (−1, 1): 2·(v + u)/levels − 1 with u uniform",
    "grey": "in [0, 1]: v/(levels − 1) as it is; no density, only masses over the levels",
    "none": "real numbers as they are",
    "standardize": "real numbers less their training mean, over their standard deviation",
    "table": "real numbers standardized, where rounded columns have uniform noise of one step and heavy tails are "
    "taken away",
    ""
    ""
    ""
    ""
    "columns": "each column by its kind: numbers standardized, counts, values by their codes, dates; cells may be "
    "missing",
}

_EXPORTS = {
    "Batch": "varflow.data.dataset:Batch",
    "Dataset": "varflow.data.dataset:Dataset",
    "load": "varflow.data.loading:load",
    "from_tensor": "varflow.data.loading:from_tensor",
    "Observed": "varflow.core.observed:Observed",
    "from_codes": "varflow.data.codes:from_codes",
    "download": "varflow.data.fetch:download",
    "overview": "varflow.data.named:overview",
    "DOWNLOADS": "varflow.data.sources:DOWNLOADS",
}

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.core.observed import Observed as Observed
    from varflow.data.codes import from_codes as from_codes
    from varflow.data.dataset import Batch as Batch
    from varflow.data.dataset import Dataset as Dataset
    from varflow.data.fetch import download as download
    from varflow.data.loading import from_tensor as from_tensor
    from varflow.data.loading import load as load
    from varflow.data.named import overview as overview
    from varflow.data.sources import DOWNLOADS as DOWNLOADS
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
