"""A density by a normalizing flow, fitted by maximum likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import validate_data

from varflow import priors
from varflow.core.errors import DataError, unknown
from varflow.data.protocols import column_name
from varflow.settings import recipes
from varflow.settings.roles import ROLES
from varflow.settings.spec import RunSpec
from varflow.sklearn.estimator import FEWEST, FIXED, FLOATS, Estimator, undisturbed
from varflow.sklearn.rows import Array, exact_log_prob


class FlowDensity(Estimator, DensityMixin, BaseEstimator):
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
    _fixed: ClassVar[tuple[str, ...]] = (*FIXED, "likelihood")

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
        X = validate_data(self, X, dtype=FLOATS, ensure_min_samples=FEWEST)
        self.run_ = self._fit(X, None, self._seed())
        return self

    def score_samples(self, X: Any) -> Array:
        """log p(x) of each row, exact, in nats and in the units of X: float64 ``[n_samples]``."""
        stored = self._stored(self._checked(X))
        with undisturbed(), torch.no_grad():
            return exact_log_prob(self.run_, stored).numpy()

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
