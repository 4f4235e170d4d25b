"""A number with everything that has to stand beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from varflow.core import display
from varflow.core.errors import RunError

#: Errors below this are shown as powers of ten, and no number gets decimals beyond it.
_TINY = 1e-8


def percent(share: float) -> str:
    """A share in two digits.

    >>> percent(0.637), percent(0.0042), percent(0.999)
    ('64 %', '0.42 %', '100 %')
    """
    return f"{float(f'{100 * share:.2g}'):g} %"


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
        elbo = -90.25 ± 0.51 nats (MC ± 0.020; 100 samples, 250 points; mean of log w; digits; seed 0)
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
        parts = [
            f"MC {self.error(self.monte_carlo_error)}; {self.samples} samples, {self.points} points"
        ]
        if self.khat is not None:
            parts.append(f"k̂ > 0.7 at {100 * self.khat:.1f} % of points")
        if self.ess is not None:
            parts.append(f"ESS {percent(self.ess)}")
        parts += [self.estimator, self.protocol, f"seed {self.seed}"]
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name} = {self.figures()}{unit} ({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = {
            "value": f"{self.figures()} {self.unit}".rstrip(),
            "Monte-Carlo error": self.error(self.monte_carlo_error),
            "k̂ > 0.7": "" if self.khat is None else f"{100 * self.khat:.1f} % of points",
            "effective sample size": "" if self.ess is None else f"{percent(self.ess)}",
        }
        how = f"{self.estimator}; {self.protocol}; {self.points} points, {self.samples} samples, seed {self.seed}"
        return display.block(display.heading(self.name), display.facts(rows), display.note(how))

    def figures(self) -> str:
        """``value ± standard error``, to two digits of the error."""
        return f"{self.number()} {self.error(self.standard_error)}"

    def number(self) -> str:
        """The value alone, with the decimals of the first two digits of its error."""
        scale = self.monte_carlo_error if self.standard_error is None else self.standard_error
        return _to_digits(self.value, scale)

    def error(self, error: float | None) -> str:
        """``± error`` to two digits; ``± unknown`` where it is None."""
        if error is None:
            return "± unknown"
        return f"± {error:.1e}" if 0 < error < _TINY else f"± {_to_digits(error, error)}"

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
            raise RunError(
                f"estimate: fields {wrong} are missing or unknown; evaluate the run again"
            )
        plain = dict(values)
        for name in ("value", "standard_error", "monte_carlo_error", "khat", "ess"):
            if isinstance(plain[name], str):
                plain[name] = float(plain[name])
        return Estimate(**plain)


class Estimates:
    """Estimates by name, in the order they were added, that share their samples, points, protocol and seed.

    Args:
        samples, points, protocol, seed: of :class:`Estimate`, where an estimate does not say otherwise.
    """

    def __init__(self, samples: int, points: int, protocol: str, seed: int) -> None:
        self.shared: dict[str, Any] = {"samples": samples, "points": points, "protocol": protocol, "seed": seed}
        self.found: dict[str, Estimate] = {}

    def add(
        self,
        name: str,
        value: float,
        error: float | None,
        monte_carlo: float | None,
        how: str,
        unit: str = "nats",
        **more: Any,
    ) -> None:
        """One estimate; an error that is not finite is not known."""
        error, monte_carlo = (
            None if e is None or not math.isfinite(e) else e for e in (error, monte_carlo)
        )
        settings = {"unit": unit, "estimator": how, **self.shared, **more}
        self.found[name] = Estimate(name, value, error, monte_carlo, **settings)

    def mean(
        self,
        name: str,
        values: Tensor,
        variances: Tensor | None,
        how: str,
        unit: str = "nats",
        **more: Any,
    ) -> None:
        """The mean over the points of ``values`` ``[N]``, each with the Monte-Carlo variance ``variances`` ``[N]``.

        A point whose value is undefined makes the mean so. Without ``variances`` the Monte-Carlo error is not known.
        """
        count = len(values)
        error = values.std().item() / math.sqrt(count) if count > 1 else None
        if error is not None and bool((values == values[0]).all()):
            # Of equal values the spread is known; what is left are rounding errors.
            error = 0.0
        monte_carlo = None if variances is None else variances.sum().sqrt().item() / count
        self.add(name, values.mean().item(), error, monte_carlo, how, unit, **more)


def _to_digits(number: float, error: float | None) -> str:
    """``number`` with the decimals of the first two digits of ``error``."""
    if not error or not math.isfinite(error):
        # Known exactly: a large number keeps the digits after the point too.
        return f"{number:.4f}" if 1e4 <= abs(number) < math.inf else f"{number:.6g}"
    if error < _TINY and abs(number) < 100 * _TINY:
        return f"{number:.2g}"
    return f"{number:.{max(1 - math.floor(math.log10(max(error, _TINY))), 0)}f}"
