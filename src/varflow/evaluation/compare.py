"""Two evaluations on the same test points."""

from __future__ import annotations

import math

import numpy as np

from varflow.core.errors import SpecError, unknown
from varflow.evaluation.estimate import Estimate
from varflow.evaluation.evaluation import Evaluation

#: What has to agree before a difference means anything.
_SAME = ("name", "protocol", "split", "event_shape", "seed_eval")


def paired(a: Evaluation, b: Evaluation, name: str = "log_px") -> Estimate:
    """mean_i (a_i − b_i) over the test points, in nats, with the standard error of the pairs.

    Easy and hard pictures are so for both models; the difference point by point is far less noisy than
    the difference of two means.

    Args:
        a, b: evaluations of two models on the same points.
        name: log_px, elbo, log_likelihood or kl; of :func:`varflow.evaluation.inference_gaps` one of its estimates.

    Returns:
        positive where a is larger. Its Monte-Carlo error treats the two sets of samples as independent.

    Raises:
        SpecError: the evaluations differ in data, protocol, split or points.
    """
    known = [key for key in a.per_example if f"{key}_variance" in a.per_example]
    if name not in known:
        raise unknown("name", name, known)
    check_same(a, b)
    points, others = a.per_example["index"], b.per_example["index"]
    if not np.array_equal(points, others):
        raise SpecError(
            f"b: has {len(others)} points, a has {len(points)}; use the same limit for both"
        )
    # Rounding differs between devices, other pictures differ by far more.
    if not np.allclose(a.per_example["x_mean"], b.per_example["x_mean"], rtol=1e-4, atol=1e-4):
        raise SpecError("b: has other values of x than a; evaluate both on the same data set")
    gap = a.per_example[name] - b.per_example[name]
    variance = a.per_example[f"{name}_variance"] + b.per_example[f"{name}_variance"]
    # −log p(x) carries what is known of the weights; the other terms have its samples.
    source = "nll" if "nll" in a.estimates else name
    first, second = a.estimates[source], b.estimates[source]
    count = len(gap)
    error = float(gap.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    monte_carlo = math.sqrt(variance.sum()) / count
    weighted = name == "log_px"
    shares = [e.khat for e in (first, second) if e.khat is not None]
    sizes = [e.ess for e in (first, second) if e.ess is not None]
    return Estimate(
        f"difference in {name}",
        float(gap.mean()),
        error,
        None if math.isnan(monte_carlo) else monte_carlo,
        min(first.samples, second.samples),
        count,
        "nats",
        f"mean of the paired differences, {first.samples} and {second.samples} samples",
        first.protocol,
        first.seed,
        max(shares) if weighted and shares else None,
        min(sizes) if weighted and sizes else None,
    )


def check_same(a: Evaluation, b: Evaluation, names: tuple[str, str] = ("a", "b")) -> None:
    """Refuse evaluations of other data.

    Raises:
        SpecError: data, protocol, split, shape or fixed draw differ; the message calls them by ``names``.
    """
    for key in _SAME:
        one, two = a.data.get(key), b.data.get(key)
        if one != two:
            raise SpecError(
                f"{names[1]}: has {key} {two!r}, {names[0]} has {one!r}; evaluate both on the same points to "
                "compare them"
            )
