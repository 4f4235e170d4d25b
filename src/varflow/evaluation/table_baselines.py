"""What simpler methods say of removed cells, fitted to the same training rows with their missing cells.

``independent``: each column by itself, its other cells are not read. Numbers by their mean; densities and masses by
maximum likelihood (Gaussian, or Student-t where tails are heavy, log-normal, negative binomial by its moments,
frequencies with half a count more).

``mixture``: a mixture of Gaussians with full covariances over the numeric columns (logarithms of positive ones,
log(1 + v) of counts), by EM with the missing cells in the expectations (Ghahramani and Jordan 1994), its number of
components and its ridge chosen by the observed cells of the validation rows. Given the rest of a row it is a mixture
of Gaussians again, so nothing is random.

``knn``, ``iterative``, ``boosting``: scikit-learn's KNNImputer, IterativeImputer (Bayesian ridge regression of each
column on the others, in turns) and histogram gradient boosting of each column on all others, whose missing cells it
reads as such. Numbers are standardized, categories have a number each. They give values and no probabilities.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varflow.core import random
from varflow.core.columns import NAMED, Column
from varflow.core.errors import DataError, unknown
from varflow.core.threads import one_thread
from varflow.data.columns import Columns
from varflow.evaluation.gaussian_conditionals import GaussianMixture, given_observed
from varflow.evaluation.removed import Predictions, Removed

if TYPE_CHECKING:
    from varflow.data import Dataset

#: name → what it is.
BASELINES = {
    "independent": "independent columns",
    "mixture": "a mixture of Gaussians over the numeric columns",
    "knn": "KNNImputer of scikit-learn",
    "iterative": "IterativeImputer of scikit-learn",
    "boosting": "gradient boosting of scikit-learn, column by column",
}
#: Components and weights of the ridge that are tried.
_COMPONENTS, _RIDGES = (1, 2, 3, 5), (1.0, 10.0)
_ITERATIONS, _TOLERANCE = 200, 1e-4
#: Rows that a mixture, and boosting, are fitted to, at most.
_ROWS = 4000


def available() -> tuple[str, ...]:
    """The baselines that can be computed here: those of scikit-learn where it is installed."""
    from importlib.util import find_spec

    return tuple(BASELINES) if find_spec("sklearn") else ("independent", "mixture")


def predictions(name: str, dataset: Dataset, table: Removed, seed: int = 0) -> Predictions:
    """What a baseline says of removed cells.

    Args:
        name: of :data:`BASELINES`.
        dataset: whose training rows it is fitted to, and whose validation rows choose.
        table: rows with removed cells.
        seed: of what is random in it.

    Raises:
        SpecError: an unknown name; DataError: scikit-learn is not installed.
    """
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    train, held = (dataset.raw(split).double().cpu() for split in ("train", "validation"))
    return _METHODS[name](train, held, table, seed)


# -- each column by itself ----------------------------------------------------------------------------


def independent(train: Tensor, held: Tensor, table: Removed, seed: int) -> Predictions:
    """See the module."""
    kept = table.preprocessing
    value, rank, logs = (torch.full_like(table.whole, torch.nan) for _ in range(3))
    x, ladj = kept.encode_each(table.whole)
    x_train, _ = kept.encode_each(train)
    u = torch.rand(table.whole.shape, generator=random.generator(seed, "rank of baselines"), dtype=torch.float64)
    for j, column in enumerate(kept.columns):
        there = ~train[:, j].isnan()
        v, own = train[there, j], table.gone[:, j]
        asked = table.whole[own, j]
        if column.kind in NAMED:
            counts = torch.bincount(v.long(), minlength=len(column.categories)).double()
            shares = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
            value[own, j] = float(shares.argmax())
            logs[own, j] = shares.log()[asked.long()]
        else:
            value[own, j] = v.mean()
            if column.kind == "count":
                logs[own, j] = _count_log_prob(asked, v)
            else:
                logs[own, j] = _density(column, x[own, j], x_train[there, j]) + ladj[own, j]
        if column.kind not in ("category", "binary"):
            ordered = v.sort().values
            low, high = (torch.searchsorted(ordered, asked.contiguous(), right=right) for right in (False, True))
            rank[own, j] = (low + u[own, j] * (high - low + 1)) / (len(v) + 1)
    dense = torch.tensor([column.continuous for column in kept.columns])
    logs = torch.where(table.gone, logs, 0.0)
    return Predictions(value, logs.sum(1), torch.where(dense, logs, 0.0).sum(1), rank=rank)


def _density(column: Column, x: Tensor, train: Tensor) -> Tensor:
    if column.tail:
        return torch.distributions.StudentT(torch.tensor(column.tail, dtype=torch.float64)).log_prob(x)
    return torch.distributions.Normal(train.mean(), train.std(correction=0)).log_prob(x)


def _count_log_prob(v: Tensor, train: Tensor) -> Tensor:
    """Negative binomial with the mean and the variance of the training cells; Poisson where they spread no more."""
    mean, variance = train.mean(), train.var(correction=0)
    if not float(variance) > float(mean) * (1 + 1e-6):
        return torch.distributions.Poisson(mean).log_prob(v)
    size = mean.square() / (variance - mean)
    return torch.distributions.NegativeBinomial(size, probs=1 - mean / variance).log_prob(v)


# -- a mixture of Gaussians with missing cells --------------------------------------------------------


def _em(x: Tensor, there: Tensor, components: int, ridge: float, seed: int) -> GaussianMixture:
    """A mode of the posterior with an inverse Wishart prior of the weight of ``ridge`` rows on the covariances."""
    rows, size = x.shape
    filled = torch.where(there, x, 0.0)
    spread = torch.diag((filled.square().sum(0) / there.sum(0).clamp(min=1)).clamp_min(1e-6))
    scale = spread / components ** (2 / size)
    start = torch.randperm(rows, generator=random.generator(seed, "mixture"))[:components]
    shares = torch.full((components,), 1 / components, dtype=torch.float64)
    made = GaussianMixture(shares, filled[start], scale.repeat(components, 1, 1))
    if components == 1:
        made = made._replace(means=torch.zeros(1, size, dtype=torch.float64))
    before = -math.inf
    for _ in range(_ITERATIONS):
        found = given_observed(made, x, there)
        weight = found.belong.sum(0)
        means = torch.einsum("nk,nkd->kd", found.belong, found.means) / weight[:, None].clamp_min(1e-9)
        d = found.means - means
        scatter = torch.einsum("nk,nkd,nke->kde", found.belong, d, d)
        scatter = scatter + torch.einsum("nk,nkde->kde", found.belong, found.covariances)
        covariances = (scatter + ridge * scale) / (weight + ridge)[:, None, None]
        made = GaussianMixture((weight + 1) / (rows + components), means, 0.5 * (covariances + covariances.mT))
        now = float(found.log_prob.mean())
        if now - before < _TOLERANCE:
            break
        before = now
    return made


def mixture(train: Tensor, held: Tensor, table: Removed, seed: int) -> Predictions:
    """See the module."""
    kept = table.preprocessing
    numeric = [j for j, column in enumerate(kept.columns) if column.kind not in NAMED]
    value, rank = (torch.full_like(table.whole, torch.nan) for _ in range(2))
    if not numeric:
        return Predictions(value)
    columns = [kept.columns[j] for j in numeric]

    def seen(stored: Tensor) -> tuple[Tensor, Tensor]:
        x = kept.encode_each(stored)[0][:, numeric]
        for place, column in enumerate(columns):
            if column.kind == "count":
                x[:, place] = (x[:, place].log1p() - column.loc) / column.scale
        return x, ~stored[:, numeric].isnan()

    with one_thread():
        x, there = (part[:_ROWS] for part in seen(train))
        x_held, there_held = seen(held)
        best, highest = None, -math.inf
        for components in _COMPONENTS:
            if components > 1 and 4 * components > len(x):
                break
            for ridge in _RIDGES:
                made = _em(x, there, components, ridge, seed)
                score = float(given_observed(made, x_held, there_held, False).log_prob.mean())
                if best is None or score > highest:
                    best, highest = made, score
        assert best is not None
        rest, there_rest = seen(table.rest)
        found = given_observed(best, rest, there_rest)
        whole, _ = seen(table.whole)
        gone = table.gone[:, numeric]
        dense = torch.tensor([column.continuous for column in columns])
        both = given_observed(best, torch.where(gone, whole, rest), there_rest | (gone & dense), False).log_prob
    ladj = torch.where(table.gone, kept.encode_each(table.whole)[1], 0.0).sum(1)
    variance = found.covariances.diagonal(dim1=-2, dim2=-1)
    for place, (j, column) in enumerate(zip(numeric, columns, strict=True)):
        mean, wide = found.means[..., place], variance[..., place]
        given = _in_units(column, mean, wide)
        value[:, j] = (found.belong * given).sum(1)
        inside = torch.special.ndtr((whole[:, None, place] - mean) / wide.clamp_min(1e-300).sqrt())
        rank[:, j] = (found.belong * inside).sum(1)
    return Predictions(value, None, both - found.log_prob + ladj, rank=rank)


def _in_units(column: Column, mean: Tensor, variance: Tensor) -> Tensor:
    """The mean in the units of the table of a Gaussian in the space of the mixture."""
    if column.kind in ("positive", "count"):
        raised = torch.exp(column.loc + column.scale * mean + 0.5 * column.scale**2 * variance)
        return raised if column.kind == "positive" else (raised - 1).clamp_min(0.0)
    return column.loc + column.scale * mean


# -- scikit-learn -------------------------------------------------------------------------------------


def _sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise DataError(
            "baselines: knn, iterative and boosting need scikit-learn; install it with: "
            "pip install 'varflow[sklearn]'"
        ) from error


class _Matrix:
    """Rows as scikit-learn reads them: numbers standardized, ordinal and binary codes as they are, a number for each
    value of a category.
    """

    def __init__(self, kept: Columns, train: Tensor) -> None:
        self.columns = kept.columns
        values = train.numpy()
        self.loc, self.scale = np.nanmean(values, 0), np.nanstd(values, 0)
        self.scale = np.where(self.scale > 0, self.scale, 1.0)

    def of(self, stored: Tensor) -> NDArray[np.float64]:
        parts = []
        for j, column in enumerate(self.columns):
            v = stored[:, j].numpy()
            if column.kind == "category":
                each = (v[:, None] == np.arange(len(column.categories))).astype(np.float64)
                parts.append(np.where(np.isnan(v)[:, None], np.nan, each))
            else:
                shift, scale = (0.0, 1.0) if column.kind in NAMED else (self.loc[j], self.scale[j])
                parts.append(((v - shift) / scale)[:, None])
        return np.concatenate(parts, 1)

    def back(self, filled: NDArray[np.float64]) -> Tensor:
        out, place = [], 0
        for j, column in enumerate(self.columns):
            if column.kind == "category":
                size = len(column.categories)
                out.append(filled[:, place : place + size].argmax(1).astype(np.float64))
                place += size
                continue
            v = filled[:, place]
            if column.kind in NAMED:
                out.append(np.clip(np.round(v), 0, len(column.categories) - 1))
            else:
                out.append(self.loc[j] + self.scale[j] * v)
            place += 1
        return torch.from_numpy(np.stack(out, 1))


def _imputer(make: Callable[[int], Any]) -> Any:
    def run(train: Tensor, held: Tensor, table: Removed, seed: int) -> Predictions:
        _sklearn()
        matrix = _Matrix(table.preprocessing, train)
        with warnings.catch_warnings():
            # That it has not converged is a result like any other.
            warnings.simplefilter("ignore")
            imputer = make(seed).fit(matrix.of(train))
            return Predictions(matrix.back(imputer.transform(matrix.of(table.rest))))

    return run


def _knn(seed: int) -> Any:
    from sklearn.impute import KNNImputer

    return KNNImputer(keep_empty_features=True)


def _iterative(seed: int) -> Any:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    return IterativeImputer(random_state=seed, max_iter=20, keep_empty_features=True)


def boosting(train: Tensor, held: Tensor, table: Removed, seed: int) -> Predictions:
    """See the module."""
    _sklearn()
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    columns, fitted = table.preprocessing.columns, train[:_ROWS].numpy()
    named = np.array([column.kind == "category" for column in columns])
    rest, value = table.rest.numpy(), torch.full_like(table.whole, torch.nan)
    for j, column in enumerate(columns):
        own, there = table.gone[:, j].numpy(), ~np.isnan(fitted[:, j])
        if not own.any():
            continue
        others = np.arange(len(columns)) != j
        y = fitted[there, j]
        if (y == y[0]).all() or not others.any():
            value[table.gone[:, j], j] = float(y.mean())
            continue
        part = HistGradientBoostingClassifier if column.kind in NAMED else HistGradientBoostingRegressor
        # A tenth of the rows tells when to stop, where there are enough of them.
        settings = {"random_state": seed, "categorical_features": named[others], "max_iter": 100}
        settings |= {"early_stopping": bool(column.kind not in NAMED and len(y) >= 100), "n_iter_no_change": 5}
        made = part(**settings).fit(fitted[there][:, others], y)
        value[table.gone[:, j], j] = torch.from_numpy(made.predict(rest[own][:, others]).astype(np.float64))
    return Predictions(value)


_METHODS: dict[str, Any] = {
    "independent": independent,
    "mixture": mixture,
    "knn": _imputer(_knn),
    "iterative": _imputer(_iterative),
    "boosting": boosting,
}
