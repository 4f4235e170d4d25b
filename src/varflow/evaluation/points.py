"""The points that an estimate is of, and what every estimator does with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from varflow import refusals
from varflow.core import random
from varflow.core.errors import NonFiniteError, SpecError, positive, unknown
from varflow.core.observed import Examples
from varflow.model import Model

if TYPE_CHECKING:
    from varflow.data import Dataset

#: Called with (points done, points).
OnProgress = Callable[[int, int], object]


def check_points(
    dataset: Dataset, model: Model, split: str, points: int | None, name: str = "limit"
) -> int:
    """How many points of a split to evaluate; without ``points`` all, of a streamed one as many as are looked at.

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
    return dataset.looked_at(split) if points is None else points


def subset_note(dataset: Dataset, split: str, points: int) -> list[str]:
    """What to say where an estimate is of a part of a streamed split."""
    size = dataset.sizes[split]
    if dataset.resident or points == size:
        return []
    return [
        f"These are {points:,} of {size:,} {split} rows, chosen by a seed: the data are streamed. limit (--limit) "
        "sets another number."
    ]


def points_of(
    dataset: Dataset, model: Model, split: str, points: int, seed: int
) -> tuple[Examples, dict[str, np.ndarray], dict[str, Any]]:
    """The first ``points`` x of a split; what identifies them and the ``data_ladj`` of their preprocessing; and what
    the data set says of itself.

    Raises:
        SpecError: an unknown split, more points than it has, or a model that does not fit the data.
    """
    check_points(dataset, model, split, points, "points")
    with random.stream(seed):
        batch = dataset.batch(split, torch.arange(points))
    if model.condition_sum is not None:
        model.condition_sum.refuse(batch.seen, "points")
    about = {**identity(batch.x), "data_ladj": batch.ladj.double().cpu().numpy()}
    return batch.seen, about, {**dataset.describe(), "split": split}


def protocol_of(dataset: Dataset, split: str) -> str:
    """Which data under which protocol, for :class:`varflow.evaluation.Estimate`."""
    return f"{dataset.name} {split}, {dataset.protocol}"


def identity(x: Tensor) -> dict[str, np.ndarray]:
    """``index`` and ``x_mean`` ``[N]``: what two evaluations of the same points have in common."""
    means = x.double().flatten(1).mean(1).cpu().numpy()
    return {"index": np.arange(len(x), dtype=np.float64), "x_mean": means}


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model in eval mode inside, and in its own mode after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def stage(progress: OnProgress | None, number: int, of: int = 2) -> OnProgress | None:
    """The progress of stage ``number`` of several that go over the same points."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, of * total)


def refuse(
    name: str,
    values: Tensor,
    wrong: Tensor,
    first: int,
    advice: str = "load the last weights that were finite",
) -> None:
    """Raise for the first point at which a term is ``wrong``.

    Args:
        name: of the term.
        values: ``[S, B]``.
        wrong: ``[S, B]``, which values make an estimate meaningless.
        first: the position of the first of these points in its data set.
        advice: what else to do than to look for the part that diverged.

    Raises:
        NonFiniteError: any is wrong; the message names the term and the point.
    """
    if not bool(wrong.any()):
        return
    point = int(wrong.any(0).nonzero()[0])
    at = values[:, point][wrong[:, point]]
    value = "NaN" if bool(at.isnan().any()) else "infinite"
    raise NonFiniteError(
        f"{name}: was {value} at point {first + point}; look for a part of the model that diverged, or {advice}"
    )


def not_a_weight(values: Tensor) -> Tensor:
    """Where the logarithm of a weight is NaN or +∞; −∞ is a weight of zero."""
    return values.isnan() | (values == math.inf)
