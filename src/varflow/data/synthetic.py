"""Data in the plane, made on the spot, with the density they were drawn from. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varflow.data.named import Arrays

Points = NDArray[np.float64]

#: Rows of each split of the Gaussian sets; the program that they come from has no validation split.
GAUSSIAN_SIZES = {"train": 10_000, "validation": 2_500, "test": 2_500}
#: Rows of each of the three clusters, in every split.
CLUSTER_SIZE = 333


@dataclass(frozen=True)
class Truth:
    """The density that data were drawn from.

    Attributes:
        log_prob: x ``[N, D]`` → log p*(x) ``[N]``, nats.
        entropy: −E log p*(x), nats, where it has a closed form: no model has a smaller expected −log p(x).
    """

    log_prob: Callable[[Points], Points]
    entropy: float | None = None


def rotated_gaussian(centre: tuple[float, float], scales: tuple[float, float]) -> Truth:
    """N(m, Rᵀ diag(s²) R) with R a rotation by 45°: entropy 1 + log 2π + log s₁s₂."""
    shift, spread = np.array(centre), np.array(scales)
    constant = math.log(2 * math.pi) + math.log(scales[0] * scales[1])

    def log_prob(x: Points) -> Points:
        white = (x - shift) @ _ROTATION.T / spread
        found: Points = -0.5 * np.square(white).sum(-1) - constant
        return found

    return Truth(log_prob, 1 + constant)


_ROTATION = math.sqrt(0.5) * np.array([[1.0, 1.0], [-1.0, 1.0]])

#: name → m and s of x = m + (s ⊙ n) R, n ~ N(0, I).
_GAUSSIANS = {"gaussian-1": ((1.0, 2.0), (5.0, 1.0)), "gaussian-2": ((-1.0, 2.0), (1.0, 5.0))}


def gaussian(name: str, seed: int) -> Arrays:
    """One of the two correlated Gaussians of henrhoi/vae-pytorch: 10,000 rows, and 2,500 each to validate and test.

    Splits are drawn from streams of their own; in that program the test rows are the first of the training rows.
    """
    centre, scales = _GAUSSIANS[name]
    first = 3 * list(_GAUSSIANS).index(name)
    values = {}
    for stream, (split, size) in enumerate(GAUSSIAN_SIZES.items(), start=first):
        noise = _rows(seed, stream).standard_normal((size, 2))
        values[split] = np.array(centre) + (np.array(scales) * noise) @ _ROTATION
    return _arrays(name, seed, values, {}, rotated_gaussian(centre, scales))


def three_clusters(name: str, seed: int) -> Arrays:
    """U(−6, −2)², N(0, I/2) and N((5, −5), I/2), 333 rows of each, labelled: the data of weixsong's ``nf.py``."""
    values, labels = {}, {}
    for stream, split in enumerate(GAUSSIAN_SIZES):
        rows = _rows(seed, stream)
        square = rows.uniform(-6.0, -2.0, (CLUSTER_SIZE, 2))
        middle, corner = math.sqrt(0.5) * rows.standard_normal((2, CLUSTER_SIZE, 2))
        order = rows.permutation(3 * CLUSTER_SIZE)
        values[split] = np.concatenate([square, middle, corner + np.array([5.0, -5.0])])[order]
        labels[split] = np.repeat(np.arange(3), CLUSTER_SIZE)[order]
    return _arrays(name, seed, values, labels, Truth(_clusters))


def _clusters(x: Points) -> Points:
    inside = ((x >= -6) & (x <= -2)).all(-1)
    with np.errstate(divide="ignore"):
        parts = [np.log(inside / 16.0)]
    parts += [-np.square(x - at).sum(-1) - math.log(math.pi) for at in ((0.0, 0.0), (5.0, -5.0))]
    found: Points = np.logaddexp.reduce(parts, axis=0) - math.log(3)
    return found


def _rows(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])


def _arrays(
    name: str,
    seed: int,
    values: dict[str, Points],
    labels: dict[str, NDArray[np.int64]],
    truth: Truth,
) -> Arrays:
    facts = {"source": "simulated", "data_seed": seed, "split": "three streams of their own"}
    return Arrays(name, dict(values), dict(labels), None, facts, truth)


#: name → what makes it from (name, seed).
MAKERS: dict[str, Callable[[str, int], Arrays]] = {
    "gaussian-1": gaussian,
    "gaussian-2": gaussian,
    "three-clusters": three_clusters,
}
