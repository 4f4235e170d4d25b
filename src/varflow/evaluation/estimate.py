"""A number with everything that has to stand beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from varflow.errors import RunError


@dataclass(frozen=True)
class Estimate:
    """An estimated quantity, its two errors, and how it was obtained.

    Attributes:
        name: what was estimated.
        value: the estimate.
        standard_error: of the value over draws of the test points, sd/√N; None where it is undefined
            (one point).
        monte_carlo_error: standard deviation of the value over repetitions with other random numbers
            and the same points; 0 where nothing is random, None where it cannot be told (one sample).
        samples: latent samples for each point.
        points: test points, N.
        unit: "nats", "bits/dim", "units", "" for a plain number.
        estimator: how, in words.
        protocol: which data under which protocol.
        seed: of the random numbers.
        khat: share of the points with Pareto k̂ > 0.7, where importance weights are averaged.
        ess: mean over the points of the effective sample size divided by ``samples``.

    Example:
        >>> print(Estimate("elbo", -90.25, 0.51, 0.02, 100, 250, "nats", "mean of log w", "digits", 0))
        elbo = -90.250 ± 0.510 nats (MC ± 0.020; 100 samples, 250 points; mean of log w; digits; seed 0)
    """

    name: str
    value: float
    standard_error: float | None
    monte_carlo_error: float | None
    samples: int
    points: int
    unit: str
    estimator: str
    protocol: str
    seed: int
    khat: float | None = None
    ess: float | None = None

    def __str__(self) -> str:
        parts = [f"MC {self._error(self.monte_carlo_error)}; {self.samples} samples, {self.points} points"]
        if self.khat is not None:
            parts.append(f"k̂ > 0.7 at {100 * self.khat:.1f} % of points")
        if self.ess is not None:
            parts.append(f"ESS {100 * self.ess:.2g} %")
        parts += [self.estimator, self.protocol, f"seed {self.seed}"]
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name} = {self.figures()}{unit} ({'; '.join(parts)})"

    def figures(self) -> str:
        """``value ± standard error`` with as many decimals as the smaller error supports."""
        return f"{self._format(self.value)} {self._error(self.standard_error)}"

    def _error(self, error: float | None) -> str:
        return "± unknown" if error is None else f"± {self._format(error)}"

    def _format(self, number: float) -> str:
        errors = [e for e in (self.standard_error, self.monte_carlo_error) if e]
        finite = [e for e in errors if math.isfinite(e)]
        # Two significant digits of the smallest error, within what a reader can use.
        decimals = 4 if not finite else min(max(1 - math.floor(math.log10(min(finite))), 0), 6)
        return f"{number:.{decimals}f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that fit strict JSON: an infinite or undefined number becomes its name."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Estimate:
        """The estimate that :meth:`to_dict` wrote.

        Raises:
            RunError: a field is missing or unknown.
        """
        names = [f.name for f in fields(Estimate)]
        if set(values) != set(names):
            wrong = sorted(set(values) ^ set(names))
            raise RunError(f"estimate: fields {wrong} are missing or unknown; evaluate the run again")
        plain = dict(values)
        for name in ("value", "standard_error", "monte_carlo_error", "khat", "ess"):
            if isinstance(plain[name], str):
                plain[name] = float(plain[name])
        return Estimate(**plain)
