"""Two evaluations on the same test points."""

from __future__ import annotations

import math

import numpy as np

from varflow.errors import SpecError, unknown
from varflow.evaluation.estimate import Estimate
from varflow.evaluation.evaluation import Evaluation

#: What has to agree before a difference means anything.
_SAME = ("name", "protocol", "split", "event_shape", "seed_eval")

#: The values that can be compared, with the array of their Monte-Carlo variances.
_VARIANCES = {
    "log_px": "log_px_variance",
    "elbo": "elbo_variance",
    "log_likelihood": "log_likelihood_variance",
    "kl": "kl_variance",
}


def paired(a: Evaluation, b: Evaluation, name: str = "log_px") -> Estimate:
    """mean_i (a_i − b_i) over the test points, in nats, with the standard error of the pairs.

    Easy and hard pictures are so for both models; the difference point by point is far less noisy than
    the difference of two means.

    Args:
        a, b: evaluations of two models on the same points.
        name: log_px, elbo, log_likelihood or kl.

    Returns:
        positive where a is larger. Its Monte-Carlo error treats the two sets of samples as independent.

    Raises:
        SpecError: the evaluations differ in data, protocol, split or points.
    """
    if name not in _VARIANCES:
        raise unknown("name", name, _VARIANCES)
    for key in _SAME:
        one, two = a.data.get(key), b.data.get(key)
        if one != two:
            raise SpecError(
                f"b: has {key} {two!r}, a has {one!r}; evaluate both on the same points to compare them"
            )
    points, others = a.per_example["index"], b.per_example["index"]
    if not np.array_equal(points, others):
        raise SpecError(
            f"b: has {len(others)} points, a has {len(points)}; use the same limit for both"
        )
    # Rounding differs between devices, other pictures differ by far more.
    if not np.allclose(a.per_example["x_mean"], b.per_example["x_mean"], rtol=1e-4, atol=1e-4):
        raise SpecError("b: has other values of x than a; evaluate both on the same data set")
    gap = a.per_example[name] - b.per_example[name]
    variance = a.per_example[_VARIANCES[name]] + b.per_example[_VARIANCES[name]]
    first, second = a.estimates["nll"], b.estimates["nll"]
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
