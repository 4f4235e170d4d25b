"""Estimators for scikit-learn: a density by a flow, and a VAE as a transformer.

Both are a fit and its run (:func:`varflow.fit`, :class:`varflow.Run`) behind scikit-learn's verbs, and both make
every result a function of the row alone: a row has the same score and the same latents whatever stands beside it.
Where the preprocessing draws noise (rounded columns are spread by it in training), its middle is taken, and where
log p(x) is estimated by samples, their random numbers follow from the row itself and the seed of the fit.

Fitted weights are used in float64, whatever they were trained in. A pickle holds plain values and arrays: settings,
preprocessing and weights, from which the model is built again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

try:
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        DensityMixin,
        TransformerMixin,
    )
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "varflow.sklearn needs scikit-learn 1.6 or newer; install it with: pip install 'varflow[sklearn]'"
    ) from error

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varflow import priors
from varflow.core import random
from varflow.core.errors import DataError, ShapeError, SpecError, unknown
from varflow.core.form import Form
from varflow.data.loading import from_tensor
from varflow.data.protocols import Protocol, column_name, restored
from varflow.data.table import Table
from varflow.evaluation.importance import POINTS, importance_sample
from varflow.model import Model
from varflow.runs.assemble import build
from varflow.runs.fitting import fit
from varflow.runs.loading import assign_weights
from varflow.runs.run import Run
from varflow.settings import recipes
from varflow.settings.roles import ROLES
from varflow.settings.spec import RunSpec

Array = NDArray[Any]

_FLOATS = (np.float64, np.float32)
#: Rows whose exact density, or whose latents, are computed at once.
_BLOCK = 1024
#: Samples of q(z|x) behind a posterior mean that has no closed form.
_DRAWS = 100
#: At least two rows to learn from and one to validate on.
_FEWEST = 3
#: Settings that stand for what the estimator is, or for X.
_FIXED = (
    "data", "data_dir", "data_seed", "resize", "verify", "flip", "target", "fits", "train_limit", "validation_limit",
)  # fmt: skip

# The random numbers of a fit are those of the process (varflow.core.random.use), so fits in threads take turns.
_turn = threading.RLock()


class _Estimator:
    """What the estimators share: from X and parameters to a fitted run, its rows, and its pickle."""

    #: setting → the constructor parameter that gives it.
    _given: ClassVar[Mapping[str, str]]
    #: Settings that cannot be others.
    _fixed: ClassVar[tuple[str, ...]] = _FIXED
    # Parameters of both.
    validation_fraction: float
    settings: dict[str, Any] | None
    random_state: Any
    verbose: bool
    # What a fit leaves.
    run_: Run
    n_iter_: int
    n_features_in_: int

    def _spec(self, X: Array, train: Array, seed: int) -> RunSpec:
        """The settings of a fit to the rows ``train`` of X."""
        raise NotImplementedError

    def _replaced(self, base: RunSpec, seed: int, **values: Any) -> RunSpec:
        """``base`` with the values of parameters, and with ``settings``; None among the values leaves it as it is.

        Raises:
            SpecError: an unknown or impossible setting, or one that is a parameter.
        """
        if self.settings is not None and not isinstance(self.settings, Mapping):
            raise SpecError(
                f"settings: was {type(self.settings).__name__}; use a dict of settings by their names, e.g. "
                "{'weight_decay': 1e-4}"
            )
        more = dict(self.settings or {})
        for name in more:
            if name in self._given:
                own = self._given[name]
                raise SpecError(f"settings: '{name}' is the parameter {own}; give {type(self).__name__}({own}=...)")
            if name in self._fixed:
                raise SpecError(f"settings: '{name}' cannot be chosen for {type(self).__name__}; leave it out")
        shared = {name: getattr(self, name) for name in ("batch", "lr", "steps", "patience", "device")}
        values |= {name: value for name, value in shared.items() if value is not None or name == "patience"}
        values = {name: _plain(value) for name, value in values.items()}
        spec = base.replace(**values, **{name: _plain(value) for name, value in more.items()}, seed=seed)
        spec.validate()
        return spec

    def _fit(self, X: Array, kept: Array | None, seed: int) -> Run:
        """The run fitted to the columns ``kept`` of X; a share of the rows validates."""
        train, held = self._split(len(X), seed)
        rows = X if kept is None else X[:, kept]
        spec = self._spec(rows, train, seed)
        names = self._column_names(kept)
        chosen = spec.likelihood.protocol if spec.data.protocol == "auto" else spec.data.protocol
        # Every split must hold a row; the test split is not looked at.
        splits: Any = {"train": rows[train], "validation": rows[held], "test": rows[held]}
        with _undisturbed():
            dataset = from_tensor(
                splits,
                protocol=chosen,
                levels=spec.data.levels,
                continuous=spec.likelihood.continuous,
                columns=names,
                name="X",
            )
            run = fit(spec, dataset, quiet=not self.verbose)
        told = run.outcome.get("signal")
        if told is not None:
            # The fit ended after its step; what the signal was meant for is the caller.
            signal.raise_signal(told)
            raise KeyboardInterrupt
        assert run.preprocessing is not None
        top = run.preprocessing.source_levels and run.preprocessing.top
        # Levels may be given as fractions of the highest one; how they were in the fit holds for all rows.
        self._levels_in_one = float(top) if top and float(rows.max()) <= 1 else 1.0
        self.n_iter_ = int(run.outcome["step"])
        model = _model(run).double().eval()
        # Without the data: a fitted estimator does not keep its X.
        return Run(run.spec, model, run.form, None, run.metrics, run.outcome, preprocessing=run.preprocessing)

    def _column_names(self, kept: Array | None = None) -> list[str]:
        """What messages call the columns of X, or those of them that are kept; none where numbers are enough."""
        names = getattr(self, "feature_names_in_", None)
        if names is None and (kept is None or kept.all()):
            return []
        every = [f"column {i}" for i in range(self.n_features_in_)] if names is None else [str(n) for n in names]
        return every if kept is None else [name for name, is_kept in zip(every, kept, strict=True) if is_kept]

    def _split(self, rows: int, seed: int) -> tuple[Array, Array]:
        """Training and validation rows, at random by the seed."""
        share = self.validation_fraction
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 < float(share) < 1:
            raise SpecError(f"validation_fraction: was {share!r}; use a number between 0 and 1")
        held = min(max(1, round(float(share) * rows)), rows - 2)
        order = torch.randperm(rows, generator=random.generator(seed, "split")).numpy()
        return np.sort(order[held:]), np.sort(order[:held])

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _checked(self, X: Any) -> Array:
        """X of a fitted estimator, numbers as those that it was fitted to."""
        check_is_fitted(self)
        checked: Array = validate_data(self, X, reset=False, dtype=_FLOATS)
        return checked

    def _stored(self, X: Array) -> Tensor:
        """Rows as the data of the run are stored: real numbers, or levels."""
        kept = self.run_.preprocessing
        assert kept is not None
        values = _doubles(X)
        if kept.source_levels is None:
            return values
        levels = (values * self._levels_in_one).round()
        off = (levels - values * self._levels_in_one).abs() > 1e-3
        off |= (levels < 0) | (levels > kept.top)
        if bool(off.any()):
            kind = f"the levels 0 … {kept.top}" + (f" over {kept.top}" if self._levels_in_one > 1 else "")
            raise DataError(f"X: holds {float(values[off][0]):g}, and the estimator was fitted to {kind}; give those")
        return levels.to(torch.uint8)

    def _in_units(self, x: Tensor, mean: bool = False) -> Array:
        """What x of the model stands for in the units of X; a mean is not rounded to what rows hold."""
        kept = self.run_.preprocessing
        assert kept is not None
        if not mean:
            found = kept.stored_values(x).double()
        else:
            if isinstance(kept, Table):
                kept = replace(kept, step=torch.zeros_like(kept.step))
            found = kept.invert(x) * (1 if kept.source_levels is None else kept.top)
        numbers: Array = (found / self._levels_in_one).cpu().numpy()
        return numbers

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Array:
        """Rows drawn from p(x), in the units of X.

        Args:
            n_samples: how many.
            random_state: of the draws; that of the estimator unless given, so that an integer there gives the same
                rows in every call.

        Returns:
            ``[n_samples, n_features]``. Columns that were rounded to a grid in X are so again.
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or isinstance(n_samples, bool) or n_samples < 1:
            raise SpecError(f"n_samples: was {n_samples!r}; use a positive integer")
        chosen = self.random_state if random_state is None else random_state
        seed = int(check_random_state(chosen).randint(2**31 - 1))
        with _undisturbed(), random.stream(seed):
            x = _model(self.run_).sample(int(n_samples))
        return self._in_units(x)

    def score_samples(self, X: Any) -> Array:
        """log p(x) of each row."""
        raise NotImplementedError

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of :meth:`score_samples`: nats a row, in the units of X; higher is better.

        A mean, not a sum, so that folds of different size compare (as ``GaussianMixture`` does; ``KernelDensity``
        sums).
        """
        return float(np.mean(self.score_samples(X)))

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        if "run_" in state:
            state = {**state, "run_": _packed(state["run_"])}
        return dict(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "run_" in state:
            state = {**state, "run_": _unpacked(state["run_"])}
        super().__setstate__(state)  # type: ignore[misc]


class FlowDensity(_Estimator, DensityMixin, BaseEstimator):
    """A density by a normalizing flow, fitted by maximum likelihood; log p(x) is exact.

    x = f(e),  e ~ a mixture of Gaussians that EM fits first,  log p(x) = log p(e) + log|det ∂f⁻¹/∂x|,

    and log|det| of the standardization belongs to it, so that densities are of X as it is given: no scaler is needed
    before it (one in a pipeline changes the units). The recipe is ``density`` of :func:`varflow.fit`. Columns that
    are rounded to a grid are spread by uniform noise of one step in training, and columns with heavy tails are
    straightened first (``protocol="table"``).

    Parameters
    ----------
    flow : str, default="maf"
        The family of f: maf, iaf, coupling, nice, spline (needs zuko), planar, radial, sylvester or triangular.
    length : int, default=5
        Steps of the flow.
    hidden : int, default=None
        Units of each hidden layer of the networks in the steps, where the family has some; None for its default.
    base : {"gaussians", "normal"}, default="gaussians"
        The density of e: the mixture, or N(0, I).
    defensive : float, default=0.05
        Share of the base itself in p(x), so that no row falls into a hole of the flow.
    protocol : {"table", "standardize", "none"}, default="table"
        What is done to the columns first. "standardize" leaves rounded and heavy-tailed columns as they are.
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
        Share of the rows that early stopping looks at, and that f is not fitted to.
    device : str, default="cpu"
        cpu, cuda, cuda:1, or auto.
    settings : dict, default=None
        Any other setting of :func:`varflow.fit` by its name, e.g. ``{"weight_decay": 1e-4}``.
    random_state : int, RandomState instance or None, default=None
        Seed of the split, the initial weights and the order of rows.
    verbose : bool, default=False
        Show progress.

    Attributes
    ----------
    run_ : varflow.Run
        The run: its model, its metrics, its verbs; without the data.
    n_iter_ : int
        Updates that were made.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, where X had strings for them.

    Examples
    --------
    >>> import numpy as np
    >>> from varflow.sklearn import FlowDensity
    >>> X = np.random.RandomState(0).normal(5.0, 2.0, size=(200, 2))
    >>> density = FlowDensity(steps=20, random_state=0).fit(X)
    >>> density.score_samples(X[:3]).shape, density.sample(4).shape
    ((3,), (4, 2))
    """

    _given: ClassVar[Mapping[str, str]] = {
        "prior": "flow", "prior_length": "length", "prior_hidden": "hidden", "prior_base": "base",
        "prior_defensive": "defensive", "seed": "random_state",
        **{name: name for name in ("protocol", "batch", "lr", "steps", "patience", "device")},
    }  # fmt: skip
    _fixed: ClassVar[tuple[str, ...]] = (*_FIXED, "likelihood")

    def __init__(
        self,
        flow: str = "maf",
        *,
        length: int = 5,
        hidden: int | None = None,
        base: str = "gaussians",
        defensive: float = 0.05,
        protocol: str = "table",
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
        self.flow = flow
        self.length = length
        self.hidden = hidden
        self.base = base
        self.defensive = defensive
        self.protocol = protocol
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
        """Fit the density to the rows of X ``[n_samples, n_features]``; y is not used.

        Raises:
            ValueError: X is no table of finite numbers with at least three rows, or a parameter is impossible.
            DataError: a column without a density: constant, or with one value in many rows and on no grid.
        """
        X = validate_data(self, X, dtype=_FLOATS, ensure_min_samples=_FEWEST)
        self.run_ = self._fit(X, None, self._seed())
        return self

    def score_samples(self, X: Any) -> Array:
        """log p(x) of each row, exact, in nats and in the units of X: float64 ``[n_samples]``."""
        stored = self._stored(self._checked(X))
        with _undisturbed(), torch.no_grad():
            return _exact_log_prob(self.run_, stored).numpy()

    def _spec(self, X: Array, train: Array, seed: int) -> RunSpec:
        known = _flow_priors()
        if self.flow not in known:
            raise unknown("flow", str(self.flow), known)
        if self.protocol != "none":
            _refuse_constant(X[train], self._column_names())
        own = {
            "prior": self.flow, "prior_length": self.length, "prior_base": self.base,
            "prior_defensive": self.defensive, "protocol": self.protocol,
        }  # fmt: skip
        if self.hidden is not None:
            own["prior_hidden"] = self.hidden
        return self._replaced(recipes.find("density").spec, seed, **own)


class VAETransformer(_Estimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
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
        X = validate_data(self, X, dtype=_FLOATS, ensure_min_samples=_FEWEST)
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
        with _undisturbed(), torch.no_grad():
            return _posterior_means(self.run_, stored).numpy().astype(X.dtype)

    def inverse_transform(self, Z: Any) -> Array:
        """The likelihood's mean for each z ``[n_samples, latent]``, in the units of X and the dtype of Z.

        Of Bernoulli columns it is the probability of a one. Of columns whose heavy tails were straightened it is the
        median, of all others the mean; rounded columns are not rounded again.
        """
        check_is_fitted(self)
        Z = check_array(Z, dtype=_FLOATS, input_name="Z")
        if Z.shape[1] != self._n_features_out:
            raise ShapeError(f"Z: shape {list(Z.shape)}; should be [n_samples, {self._n_features_out}], one z a row")
        home = _home(self.run_)
        with _undisturbed(), torch.no_grad():
            parts = [_model(self.run_).decode(z, mean=True) for z in _doubles(Z).to(home).split(_BLOCK)]
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
        with _undisturbed():
            return _sampled_log_prob(self.run_, stored, int(number)).numpy()

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Array:
        return self._whole(super().sample(n_samples, random_state))

    sample.__doc__ = _Estimator.sample.__doc__

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(_model(self.run_).prior.event_shape[-1])

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


# -- what is asked of a run ------------------------------------------------------------------------


def _model(run: Run) -> Model:
    assert isinstance(run.model, Model)
    return run.model


def _home(run: Run) -> torch.device:
    """Where the model is."""
    return next(run.model.parameters()).device


def _seen(run: Run, stored: Tensor) -> tuple[Tensor, Tensor]:
    """x as the model sees stored rows, and ladj ``[N]``; noise of the preprocessing at its middle."""
    kept = run.preprocessing
    assert kept is not None
    stored = stored.to(_home(run))
    middle = torch.full(stored.shape, 0.5, device=stored.device)
    drawn = None if kept.purpose is None else kept.draw(stored, middle)
    return kept.encode(stored, drawn, torch.float64)


def _exact_log_prob(run: Run, stored: Tensor) -> Tensor:
    """log p of stored rows ``[N]`` of a density, in their units; nats."""
    model, parts = _model(run), []
    for block in stored.split(_BLOCK):
        x, ladj = _seen(run, block)
        parts.append((model.terms(x, 1).log_weight[0] + ladj).cpu())
    return torch.cat(parts)


def _sampled_log_prob(run: Run, stored: Tensor, samples: int) -> Tensor:
    """The same by importance sampling; the random numbers of a row follow from the row."""
    model, seed, parts = _model(run), run.spec.training.seed, []
    for block in stored.split(POINTS):
        x, ladj = _seen(run, block)
        found = importance_sample(model, x, samples, seed=seed, keys=random.row_keys(block))
        parts.append(found.log_px + ladj.cpu())
    return torch.cat(parts)


def _posterior_means(run: Run, stored: Tensor) -> Tensor:
    """E_q z of stored rows ``[N, D]``."""
    model, parts = _model(run), []
    for block in stored.split(POINTS):
        x, _ = _seen(run, block)
        q = model.infer(x)
        if q.diagonal is not None:
            mean = q.diagonal[0]
        else:
            # One key for all rows: the same noise everywhere.
            with random.use(random.ByRow(run.spec.training.seed, [0] * len(x))):
                mean = model.encode(x, _DRAWS).z.mean(0)
        parts.append(mean.cpu())
    return torch.cat(parts)


# -- a run as plain values -------------------------------------------------------------------------


def _packed(run: Run) -> dict[str, Any]:
    """Settings, preprocessing and weights as plain values and arrays."""
    kept = run.preprocessing
    assert kept is not None
    single = run.spec.training.precision != "float64"
    weights = {}
    for name, tensor in run.model.state_dict().items():
        # What was trained in float32 is a float32 number still.
        small = tensor.float() if single and tensor.dtype == torch.float64 else tensor.clone()
        weights[name] = small.cpu().numpy()
    return {
        "spec": run.spec.to_dict(),
        "form": {"event_shape": list(run.form.event_shape), "support": run.form.support, "levels": run.form.levels},
        "preprocessing": {"protocol": kept.name, "levels": kept.source_levels, "learned": kept.learned()},
        "weights": weights,
        "metrics": run.metrics,
        "outcome": run.outcome,
    }


def _unpacked(values: dict[str, Any]) -> Run:
    """The run of :func:`_packed`, its model built again.

    Raises:
        RunError: settings of another version of varflow, or weights that do not fit them.
    """
    spec = RunSpec.from_dict(values["spec"])
    form = Form(tuple(values["form"]["event_shape"]), values["form"]["support"], values["form"]["levels"])
    # First: in float32 the weights of a fit in float64 would lose half their digits.
    model = build(spec, form).double()
    weights = {name: torch.tensor(array) for name, array in values["weights"].items()}
    assign_weights(model, weights, Path("the pickled estimator"))
    device = spec.training.device
    if device != "cpu":
        device = "cuda" if device == "auto" else device
        device = device if torch.cuda.is_available() else "cpu"
    facts = values["preprocessing"]
    kept: Protocol = restored(facts["protocol"], facts["levels"], facts["learned"]).to(torch.device(device))
    return Run(spec, model.to(device).eval(), form, None, values["metrics"], values["outcome"], preprocessing=kept)


# -- small things ----------------------------------------------------------------------------------


@contextmanager
def _undisturbed() -> Iterator[None]:
    """One thread at a time, which afterwards treats denormal numbers as it did before."""
    with _turn:
        # By its bits: a compiler that flushes would make 5e-324 a zero.
        smallest = np.array([1]).view(np.float64)
        flushed = not bool((smallest * 1.0).view(np.int64).any())
        try:
            yield
        finally:
            torch.set_flush_denormal(flushed)


def _doubles(rows: Array) -> Tensor:
    """A copy, from any order in memory."""
    return torch.from_numpy(np.array(rows, dtype=np.float64, order="C"))


def _plain(value: Any) -> Any:
    """A number of numpy's, as searches draw them, as one of Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _flow_priors() -> list[str]:
    """The priors that are flows."""
    role = ROLES["prior"]
    return [name for name in priors.TABLE if "prior_length" in role.settings(name)]


def _refuse_constant(X: Array, names: Sequence[str]) -> None:
    """Raises :class:`DataError` for the first column that has no density because it is constant."""
    constant = (X[0] == X).all(0)
    if not constant.any():
        return
    column = int(constant.argmax())
    name = column_name(column, names)
    raise DataError(
        f"X: {name} is constant in the training rows ({float(X[0, column]):g}), so it has no density; drop it, e.g. "
        "by sklearn.feature_selection.VarianceThreshold() before FlowDensity"
    )
