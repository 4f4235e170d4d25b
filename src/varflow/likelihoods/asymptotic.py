"""Functions of log z that lose their digits where z is large, there by a series in 1/z."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def by_series(
    log_z: Tensor, beyond: float, coefficients: Sequence[float], direct: Callable[[Tensor], Tensor]
) -> Tensor:
    """Σₖ aₖ z^(−2k − 1), k = 0, 1, …, where log z > ``beyond``, and ``direct(log z)`` elsewhere.

    Each of the two is computed where it is not taken too, of a number that harms neither value nor gradient.
    """
    large = log_z > beyond
    inverse = torch.exp(-torch.where(large, log_z, beyond))
    square, series = inverse.square(), torch.zeros_like(inverse)
    for coefficient in reversed(coefficients):
        series = series * square + coefficient
    return torch.where(large, series * inverse, direct(torch.where(large, 0.0, log_z)))
