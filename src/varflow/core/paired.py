"""Two vectors of scores of the same examples, compared example by example."""

from __future__ import annotations

from torch import Tensor


def gain(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Mean and standard error of first − second, ``[V]`` each; the error of a single example is taken to be 0.

        mean_i d_i,   se(d) = √(Σ_i (d_i − d̄)² / (V(V − 1)))
    """
    difference = (first - second).double()
    error = float(difference.std() / len(difference) ** 0.5) if len(difference) > 1 else 0.0
    return float(difference.mean()), error


def is_better(first: Tensor, second: Tensor) -> bool:
    """Whether the gain is larger than its standard error."""
    mean, error = gain(first, second)
    return mean > error
