"""A variational autoencoder: rows to the means of q(z|x) and back."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from varflow.core.errors import DataError, ShapeError, SpecError
from varflow.settings.roles import ROLES
from varflow.settings.spec import RunSpec
from varflow.sklearn.estimator import FEWEST, FLOATS, Estimator, undisturbed
from varflow.sklearn.rows import (
    BLOCK,
    Array,
    device_of,
    doubles,
    model_of,
    posterior_means,
    sampled_log_prob,
)


class VAETransformer(Estimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A variational autoencoder: rows to the means of q(z|x) and back.

    It maximises E_q log p(x|z) + log p(z) − log q(z|x). Rows of zeros and ones alone have a Bernoulli likelihood; all
    others are standardized, rounded columns spread by uniform noise of one step in training and heavy tails
    straightened, under a Gaussian with a learned scale for each column.

    Columns that are constant in the training rows are left out of the model: ``inverse_transform`` and ``sample`` put
    their value back, and ``score_samples`` is the density of the other columns, whatever those hold.

    Parameters
    ----------
    latent : int, default=8
        Latent features, the columns of the result.
    flow : str, default="none"
        The flow behind the Gaussian of q(z|x): none, planar, radial, householder, sylvester, nice, additive,
        coupling, iaf, maf, affine, triangular or spline (needs zuko).
    length : int, default=8
        Steps of the flow, where there is one.
    amortized : bool, default=False
        Whether its parameters are computed from x.
    hidden : int, default=200
        Units of each hidden layer of encoder and decoder.
    layers : int, default=2
        Hidden layers of each.
    likelihood : str, default="auto"
        p(x|z): bernoulli, gaussian, student-t; or logistics and categorical with ``settings={"levels": ...}``.
    protocol : str, default="auto"
        What is done to the columns first: table, standardize, none, or for zeros and ones threshold.
    importance_samples : int, default=1000
        Samples of q(z|x) behind each log p(x) of ``score_samples`` and ``score``.
    batch : int, default=128
        Rows in an update, at most the training rows.
    lr : float, default=1e-3
        Learning rate of Adam.
    steps : int, default=20_000
        Updates, at most. None leaves it to ``settings={"epochs": ...}``.
    patience : str, default="auto"
        How long to go on without a better validation bound, e.g. "1000 steps"; "auto" is the longer of 10 epochs and
        1000 updates, None never stops early.
    validation_fraction : float, default=0.1
        Share of the rows that early stopping looks at, and that the model is not fitted to.
    device : str, default="cpu"
        cpu, cuda, cuda:1, or auto.
    settings : dict, default=None
        Any other setting of :func:`varflow.fit` by its name, e.g. ``{"prior": "maf", "warmup": "10 epochs"}``.
    random_state : int, RandomState instance or None, default=None
        Seed of the split, the initial weights, the order of rows, and all samples.
    verbose : bool, default=False
        Show progress.

    Attributes
    ----------
    run_ : varflow.Run
        The run: its model, its metrics, its verbs; over the columns that are not constant, and without the data.
    n_iter_ : int
        Updates that were made.
    constant_features_ : ndarray of shape (n_features_in_,)
        The value of each column that is left out; nan for all others.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, where X had strings for them.

    Examples
    --------
    >>> import numpy as np
    >>> from varflow.sklearn import VAETransformer
    >>> X = np.random.RandomState(0).normal(size=(200, 4))
    >>> vae = VAETransformer(latent=2, hidden=16, steps=20, random_state=0).fit(X)
    >>> Z = vae.transform(X)
    >>> Z.shape, vae.inverse_transform(Z).shape, vae.score_samples(X[:3]).shape
    ((200, 2), (200, 4), (3,))
    """

    _given: ClassVar[Mapping[str, str]] = {
        "seed": "random_state",
        **{
            name: name
            for name in (
                "latent", "flow", "length", "amortized", "hidden", "layers", "likelihood", "protocol", "batch", "lr",
                "steps", "patience", "device",
            )
        },
    }  # fmt: skip

    def __init__(
        self,
        latent: int = 8,
        *,
        flow: str = "none",
        length: int = 8,
        amortized: bool = False,
        hidden: int = 200,
        layers: int = 2,
        likelihood: str = "auto",
        protocol: str = "auto",
        importance_samples: int = 1000,
        batch: int = 128,
        lr: float = 1e-3,
        steps: int | None = 20_000,
        patience: str | None = "auto",
        validation_fraction: float = 0.1,
        device: str = "cpu",
        settings: dict[str, Any] | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.latent = latent
        self.flow = flow
        self.length = length
        self.amortized = amortized
        self.hidden = hidden
        self.layers = layers
        self.likelihood = likelihood
        self.protocol = protocol
        self.importance_samples = importance_samples
        self.batch = batch
        self.lr = lr
        self.steps = steps
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.device = device
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the model to the rows of X ``[n_samples, n_features]``; y is not used.

        Raises:
            ValueError: X is no table of finite numbers with at least three rows, or a parameter is impossible.
            DataError: all columns are constant, or one has one value in many rows and lies on no grid.
        """
        X = validate_data(self, X, dtype=FLOATS, ensure_min_samples=FEWEST)
        seed = self._seed()
        train, _ = self._split(len(X), seed)
        first = X[train[0]].astype(np.float64)
        constant = (X[train] == X[train[0]]).all(0)
        if constant.all():
            raise DataError(
                "X: every column is constant in the training rows, so nothing can be learned; give rows that differ"
            )
        self.constant_features_ = np.where(constant, first, np.nan)
        self.run_ = self._fit(X, ~constant, seed)
        return self

    def transform(self, X: Any) -> Array:
        """The means of q(z|x) ``[n_samples, latent]``, in the dtype of X.

        Exact for a Gaussian. Under a flow they are means of 100 draws, whose base noise is the same for all rows, so
        that the map from rows to latents is smooth and has nothing random in it.
        """
        X = self._checked(X)
        stored = self._stored(X[:, self._kept])
        with undisturbed(), torch.no_grad():
            return posterior_means(self.run_, stored).numpy().astype(X.dtype)

    def inverse_transform(self, Z: Any) -> Array:
        """The likelihood's mean for each z ``[n_samples, latent]``, in the units of X and the dtype of Z.

        Of Bernoulli columns it is the probability of a one. Of columns whose heavy tails were straightened it is the
        median, of all others the mean; rounded columns are not rounded again.
        """
        check_is_fitted(self)
        Z = check_array(Z, dtype=FLOATS, input_name="Z")
        if Z.shape[1] != self._n_features_out:
            raise ShapeError(f"Z: shape {list(Z.shape)}; should be [n_samples, {self._n_features_out}], one z a row")
        home = device_of(self.run_)
        with undisturbed(), torch.no_grad():
            parts = [model_of(self.run_).decode(z, mean=True) for z in doubles(Z).to(home).split(BLOCK)]
            return self._whole(self._in_units(torch.cat(parts), mean=True)).astype(Z.dtype)

    def score_samples(self, X: Any, samples: int | None = None) -> Array:
        """log p(x) of each row by importance sampling, in nats and in the units of X: float64 ``[n_samples]``.

            log p(x) ≈ log 1/S Σ p(x|z_s) p(z_s)/q(z_s|x),  z_s ~ q(z|x),

        which is log p(x) from below in expectation, and closer with every sample.

        Args:
            X: rows.
            samples: S; ``importance_samples`` of the estimator unless given.
        """
        X = self._checked(X)
        stored = self._stored(X[:, self._kept])
        number = self.importance_samples if samples is None else samples
        if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
            name = "importance_samples" if samples is None else "samples"
            raise SpecError(f"{name}: was {number!r}; use a positive integer")
        with undisturbed():
            return sampled_log_prob(self.run_, stored, int(number)).numpy()

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Array:
        return self._whole(super().sample(n_samples, random_state))

    sample.__doc__ = Estimator.sample.__doc__

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(model_of(self.run_).prior.event_shape[-1])

    @property
    def _kept(self) -> Array:
        """Which columns the model is over."""
        return np.isnan(self.constant_features_)

    def _whole(self, kept: Array) -> Array:
        """Rows of all columns, from those of the model."""
        rows = np.tile(self.constant_features_, (len(kept), 1))
        rows[:, self._kept] = kept
        return rows

    def _spec(self, X: Array, train: Array, seed: int) -> RunSpec:
        if self.likelihood == "identity":
            raise SpecError("likelihood: identity has no latents; use FlowDensity for a density of x itself")
        own = {
            name: getattr(self, name) for name in ("latent", "flow", "amortized", "hidden", "layers", "likelihood")
        }
        # A length where there is no flow is no mistake: a search goes over both.
        if "length" in ROLES["flow"].settings(self.flow):
            own["length"] = self.length
        base = RunSpec().preset(scale="per-dimension")
        return self._replaced(base, seed, protocol=self._protocol(X), **own)

    def _protocol(self, X: Array) -> str:
        """What is done to the columns where that is left open."""
        if self.protocol != "auto" or "levels" in (self.settings or {}):
            return str(self.protocol)
        binary = self.likelihood in ("auto", "bernoulli") and bool(((X == 0) | (X == 1)).all())
        if binary:
            return "threshold"
        kind: Any = ROLES["likelihood"].kind(self.likelihood)
        return "table" if kind.protocol == "auto" else "auto"
