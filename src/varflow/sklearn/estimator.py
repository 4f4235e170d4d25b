"""What the estimators share: from X and parameters to a fitted run, its rows, and its pickle."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from varflow.core import random
from varflow.core.errors import DataError, SpecError
from varflow.data.loading import from_tensor
from varflow.data.table import Table
from varflow.runs.fitting import fit
from varflow.runs.run import Run
from varflow.settings.spec import RunSpec
from varflow.sklearn.packing import packed, unpacked
from varflow.sklearn.rows import Array, doubles, model_of

FLOATS = (np.float64, np.float32)
#: At least two rows to learn from and one to validate on.
FEWEST = 3
#: Settings that stand for what the estimator is, or for X.
FIXED = (
    "data", "data_dir", "data_seed", "resize", "verify", "flip", "target", "fits", "train_limit", "validation_limit",
)  # fmt: skip

# The random numbers of a fit are those of the process (varflow.core.random.use), so fits in threads take turns.
_turn = threading.RLock()


class Estimator:
    """What the estimators share: from X and parameters to a fitted run, its rows, and its pickle."""

    #: setting → the constructor parameter that gives it.
    _given: ClassVar[Mapping[str, str]]
    #: Settings that cannot be others.
    _fixed: ClassVar[tuple[str, ...]] = FIXED
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
        with undisturbed():
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
        model = model_of(run).double().eval()
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
        checked: Array = validate_data(self, X, reset=False, dtype=FLOATS)
        return checked

    def _stored(self, X: Array) -> Tensor:
        """Rows as the data of the run are stored: real numbers, or levels."""
        kept = self.run_.preprocessing
        assert kept is not None
        values = doubles(X)
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
        with undisturbed(), random.stream(seed):
            x = model_of(self.run_).sample(int(n_samples))
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
            state = {**state, "run_": packed(state["run_"])}
        return dict(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "run_" in state:
            state = {**state, "run_": unpacked(state["run_"])}
        super().__setstate__(state)  # type: ignore[misc]


@contextmanager
def undisturbed() -> Iterator[None]:
    """One thread at a time, which afterwards treats denormal numbers as it did before."""
    with _turn:
        # By its bits: a compiler that flushes would make 5e-324 a zero.
        smallest = np.array([1]).view(np.float64)
        flushed = not bool((smallest * 1.0).view(np.int64).any())
        try:
            yield
        finally:
            torch.set_flush_denormal(flushed)


def _plain(value: Any) -> Any:
    """A number of numpy's, as searches draw them, as one of Python's."""
    return value.item() if isinstance(value, np.generic) else value
