"""The importance-weighted bound against its number of samples, from one set of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import SpecError, positive
from varflow.core.observed import Examples
from varflow.evaluation.chunks import Chunks
from varflow.evaluation.estimate import Estimates
from varflow.evaluation.evaluation import Evaluation
from varflow.evaluation.importance import POINTS, Sums, fill, log_mean
from varflow.evaluation.points import OnProgress, evaluating, points_of, protocol_of, subset_note
from varflow.model import Model

if TYPE_CHECKING:
    from varflow.data import Dataset

#: The kind of the chunks that an interrupted curve goes on from.
CURVE = "curve"


def grouped_bounds(
    log_weights: Float[Tensor, "samples points"], counts: Sequence[int]
) -> tuple[Float[Tensor, "counts points"], Float[Tensor, "counts points"]]:
    """L_k = E log 1/k Σ w and its Monte-Carlo variance, for each k.

    The S weights fall into ⌊S/k⌋ groups of k, whose bounds are independent and unbiased for L_k: the estimate
    is their mean, its variance their spread. One group alone has the delta-method variance of a log-mean.

    Args:
        log_weights: independent log w.
        counts: each k between 1 and S.

    Source: Burda, Grosse and Salakhutdinov 2016, eq. 8.

    Example:
        >>> import torch
        >>> grouped_bounds(torch.tensor([[0.0], [0.0], [1.0], [1.0]]), [1, 2])[0].flatten().tolist()
        [0.5, 0.5]
    """
    samples = len(log_weights)
    values, variances = [], []
    for k in counts:
        if not 1 <= k <= samples:
            raise SpecError(f"counts: has {k}; use numbers from 1 to the {samples} samples")
        groups = samples // k
        grouped = log_weights[: groups * k].unflatten(0, (groups, k))
        each = grouped.logsumexp(1) - math.log(k)
        values.append(each.mean(0))
        variances.append(each.var(0) / groups if groups > 1 else log_mean(grouped[0])[1])
    return torch.stack(values), torch.stack(variances)


class _Kept(Sums):
    """Keeps log w beside the sums."""

    def __init__(self, samples: int, first: int) -> None:
        super().__init__(samples, first)
        self.kept: list[Tensor] = []

    def fold(self, parts: Tensor, count: int) -> None:
        self.kept.append(parts[0])
        super().fold(parts, count)


@torch.no_grad()
def bound_curve(
    model: Model,
    dataset: Dataset,
    split: str = "test",
    samples: int = 1000,
    points: int | None = None,
    counts: Sequence[int] | None = None,
    memory: int = 2**30,
    seed: int = 0,
    progress: OnProgress | None = None,
    folder: Path | str | None = None,
) -> Evaluation:
    """L_1 = ELBO ≤ L_10 ≤ L_100 ≤ … ≤ log p(x) on a split, each with its errors.

    The weights are those of :func:`varflow.evaluation.evaluate` with the same seed and samples, so the ends of
    the curve are its ELBO and its −nll.

    Args:
        samples: S, the weights of each point.
        points: the first so many; all without it.
        counts: the k of the curve; 1, 10, 100, … and S without it.
        memory, seed, progress: of :func:`varflow.evaluation.importance_sample`.
        folder: finished blocks of 128 points are kept there; interrupted, the same call goes on.

    Returns:
        ``bound_k`` for each k, nats. Kept as ``{split}-curve``.

    Raises:
        SpecError: an unknown split, more points than it has, or a k beyond S.
        NonFiniteError: a term of log w is NaN.

    Cost: points × samples draws and decoder passes, and 1 KiB of memory for each sample beyond the bound.
    """
    positive(samples=samples)
    points = (dataset.looked_at(split) if split in dataset.sizes else 1) if points is None else points
    x, about, data = points_of(dataset, model, split, points, seed)
    counts = list(counts or sorted({10**e for e in range(len(str(samples)))} | {samples}))
    chunks = Chunks(folder, CURVE)

    def bounds(block: Examples, start: int) -> dict[str, Tensor]:
        sums = _Kept(samples, start)
        fill(sums, model, block, memory, seed)
        found = grouped_bounds(torch.cat(sums.kept), counts)
        return dict(zip(("values", "variances"), found, strict=True))

    parts = []
    with evaluating(model):
        for start in range(0, points, POINTS):
            block = x[start : start + POINTS]
            asked = {"samples": samples, "counts": counts, "seed": seed, "first": start}
            compute = partial(bounds, block, start)
            kept = chunks.get(model, {"x": block}, ("values", "variances"), compute, **asked)
            parts.append((kept["values"].cpu(), kept["variances"].cpu()))
            if progress is not None:
                progress(min(start + POINTS, points), points)
    values, variances = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
    values = values + torch.from_numpy(about["data_ladj"])
    estimates = Estimates(samples, points, protocol_of(dataset, split), seed)
    arrays = dict(about)
    for k, value, variance in zip(counts, values, variances, strict=True):
        groups = samples // k
        how = f"mean over {groups} {'group' if groups == 1 else 'groups'} of log of the mean of {k} weights; "
        estimates.mean(f"bound_{k}", value, variance, how + dataset.scored)
        arrays[f"bound_{k}"] = value.numpy()
        arrays[f"bound_{k}_variance"] = variance.numpy()
    notes = subset_note(dataset, split, points)
    return Evaluation({**data, "split": f"{split}-curve"}, estimates.found, arrays, notes=notes)
