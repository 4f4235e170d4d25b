"""What the Gaussian models know of their data, and the closed forms made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from varflow.core.errors import DataError, ShapeError, SpecError

LOG_2PI = math.log(2 * math.pi)


class Statistics(NamedTuple):
    """What a likelihood of Gaussian noise needs to know of n rows.

    Attributes:
        count: n ``[]`` (``[K]`` for K blocks).
        mean: x̄ ``[d]``.
        scatter: S = Σᵢ (xᵢ − x̄)², ``[d]``, each dimension by itself.
        weight: what the log-likelihood is multiplied by: N/n for a minibatch, else 1.
    """

    count: Tensor  # type: ignore[assignment]
    mean: Tensor
    scatter: Tensor
    weight: Tensor | float = 1.0


def row_by_row(rows: Tensor, shift: Tensor, covariance: Tensor, z: Tensor) -> Tensor:
    """Σᵢ log N(xᵢ; z + Δ, Σ), ``[..., d]`` → ``[...]``, nats: the formula that both models stand for.

    Their ``log_prob`` gives the same numbers from the statistics of the rows, whatever N is. Cost: O(N d²) per z.
    """
    noise = MultivariateNormal(z.unsqueeze(-2) + shift, covariance)
    return noise.log_prob(rows).sum(-1)


def best_variance(count: Tensor, scatter: Tensor) -> Tensor:
    """σ̂² that maximises −½ [(n − 1) log σ² + log(σ² + n) + S / σ²], element by element.

    The positive root of n σ⁴ + (n (n − 1) − S) σ² − n S = 0, in the form that does not cancel.
    """
    linear = count * (count - 1) - scatter
    root = (linear.square() + 4 * count.square() * scatter).sqrt()
    positive_linear = linear > 0
    small = 2 * count * scatter / torch.where(positive_linear, linear + root, 1.0)
    return torch.where(positive_linear, small, (root - linear) / (2 * count))


def statistics_of(rows: Tensor) -> Statistics:
    """Of rows ``[n, d]``, in float64."""
    rows = rows.double()
    mean = rows.mean(0)
    count = torch.tensor(float(len(rows)), dtype=rows.dtype, device=rows.device)
    return Statistics(count, mean, (rows - mean).square().sum(0))


def evidence(statistics: Statistics, shift: Tensor, variance: Tensor) -> Tensor:
    """log p of each dimension ``[..., d]``, for counts ``[...]`` and means ``[..., d]``."""
    count, mean, scatter, _ = statistics
    n = count.unsqueeze(-1)
    total = variance + n
    fit = scatter / variance + n * (mean - shift).square() / total
    return -0.5 * (n * LOG_2PI + (n - 1) * variance.log() + total.log() + fit)


def ecme(parts: Statistics, steps: int = 200) -> tuple[Tensor, Tensor]:
    """Δ exactly, given σ²; then one EM step for σ². It gains a factor of about n each time."""
    n, total = parts.count[:, None], parts.count.sum()
    variance = parts.scatter.sum(0) / total
    shift = parts.mean.mean(0)
    for _ in range(steps):
        weight = n / (variance + n)
        shift = (weight * parts.mean).sum(0) / weight.sum(0)
        offset = (parts.mean - shift) * (1 - weight)
        within = parts.scatter + n * (offset.square() + variance / (variance + n))
        variance = within.sum(0) / total
    return shift, variance


def check_table(data: Tensor) -> None:
    """Refuse data that are not a finite floating-point table ``[N, d]``."""
    if not isinstance(data, Tensor) or data.ndim != 2 or not data.is_floating_point():
        found = f"{data.dtype} of shape {tuple(data.shape)}" if isinstance(data, Tensor) else data
        raise ShapeError(f"data: was {found}; use a floating-point tensor [count, features]")
    if not data.numel():
        raise DataError(f"data: shape {tuple(data.shape)} is empty; use one row or more")
    bad = ~data.isfinite().all(1)
    if bad.any():
        raise DataError(f"data: {int(bad.sum())} rows hold a NaN or infinity; remove those rows")


def start(name: str, value: float | Tensor, data: Tensor) -> Tensor:
    """A parameter's start ``[d]`` from a number or ``[d]``."""
    shape = data.shape[1:]
    tensor = torch.as_tensor(value, dtype=data.dtype, device=data.device).detach()
    if tensor.shape not in ((), shape):
        raise ShapeError(f"{name}: shape {tuple(tensor.shape)}; use a number or [{shape[0]}]")
    return tensor.expand(shape).clone()


def check_index(x: Tensor, batches: str) -> None:
    """Refuse an x that is not what ``batches`` says."""
    if batches == "full":
        raise SpecError("x: given, but batches='full' keeps no rows; build it with batches='minibatch'")
    if x.is_floating_point() or x.ndim != 1 or not x.shape[0]:
        raise ShapeError(f"x: was {x.dtype} of shape {tuple(x.shape)}; use whole numbers [n]")
    if batches == "separate" and x.shape[0] != 1:
        raise ShapeError(f"x: shape {tuple(x.shape)}; one block at a time, use [1]")


def check_scatter(statistics: Statistics) -> None:
    """Refuse data that are constant in a dimension, up to rounding."""
    count, mean, scatter, _ = statistics
    flat = scatter <= 4 * count * (torch.finfo(scatter.dtype).eps * mean).square()
    if flat.any():
        where: Sequence[int] = flat.nonzero().flatten().tolist()
        raise SpecError(
            f"data: are constant in dimension {where[0]}, so the noise covariance is singular and the "
            "likelihood unbounded; remove that dimension"
        )
