"""From a value for each test point to one estimate with its errors, and the points themselves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from varflow import refusals
from varflow.core import random
from varflow.core.errors import SpecError, positive, unknown
from varflow.evaluation.estimate import Estimate
from varflow.model import Model

if TYPE_CHECKING:
    from varflow.data import Dataset


class Source(NamedTuple):
    """What several estimates share: samples for each point, the data under their protocol, the seed."""

    samples: int
    protocol: str
    seed: int

    def mean(
        self,
        name: str,
        values: Tensor,
        variances: Tensor | None,
        how: str,
        unit: str = "nats",
        **more: Any,
    ) -> Estimate:
        """The mean of ``values`` ``[N]``, each with the Monte-Carlo variance ``variances`` ``[N]``.

        Points whose value is undefined make the mean so; ``variances`` of None says that the Monte-Carlo
        error is not known.
        """
        count = len(values)
        error = values.std().item() / math.sqrt(count) if count > 1 else math.nan
        mc = math.nan if variances is None else variances.sum().sqrt().item() / count
        return Estimate(
            name,
            values.mean().item(),
            None if math.isnan(error) else error,
            None if math.isnan(mc) else mc,
            points=count,
            unit=unit,
            estimator=how,
            protocol=self.protocol,
            seed=self.seed,
            **{"samples": self.samples, **more},
        )


def check_points(
    dataset: Dataset, model: Model, split: str, points: int | None, name: str = "limit"
) -> int:
    """How many points of a split to evaluate, all without ``points``.

    Raises:
        SpecError: an unknown split, none or more points than it has, or a model that does not fit the data.
    """
    if split not in dataset.sizes:
        raise unknown("split", split, dataset.sizes)
    size = dataset.sizes[split]
    positive(**{split if points is None else name: size if points is None else points})
    if points is not None and points > size:
        raise SpecError(
            f"{name}: was {points}; {dataset.name} has {size} {split} points, use at most that"
        )
    refusals.check(model, dataset.support, levels=dataset.levels)
    return size if points is None else points


def points_of(
    dataset: Dataset, model: Model, split: str, points: int, seed: int
) -> tuple[Tensor, dict[str, np.ndarray], dict[str, Any]]:
    """The first ``points`` x of a split; what identifies them and the ``data_ladj`` of their preprocessing; and what
    the data set says of itself.

    Raises:
        SpecError: an unknown split, more points than it has, or a model that does not fit the data.
    """
    check_points(dataset, model, split, points, "points")
    with random.stream(seed):
        x, ladj = dataset.batch(split, torch.arange(points))
    about = {**identity(x), "data_ladj": ladj.double().cpu().numpy()}
    return x, about, {**dataset.describe(), "split": split}


def identity(x: Tensor) -> dict[str, np.ndarray]:
    """``index`` and ``x_mean`` ``[N]``: what two evaluations of the same points have in common."""
    means = x.double().flatten(1).mean(1).cpu().numpy()
    return {"index": np.arange(len(x), dtype=np.float64), "x_mean": means}
