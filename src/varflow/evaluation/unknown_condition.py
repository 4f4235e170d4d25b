"""log p(x) = log Σ_k π_k p(x|k) of points whose condition is not known, from importance samples under each value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from varflow.condition_sum import ConditionSum
from varflow.core.observed import Examples, parts_of
from varflow.evaluation.importance import Importance


def summed(
    total: ConditionSum,
    x: Examples,
    keys: Sequence[int] | None,
    estimate: Callable[[Examples, Sequence[int] | None], Importance],
) -> Importance:
    """What importance samples say of points some of which lack their condition.

    ``estimate`` is of points that have it, and of the keys of their random numbers. Means of terms are under r_k =
    π_k ŵ_k / Σ π ŵ, ŵ_k = exp of the ELBO under k, which gives log Σ_k π_k exp(ELBO_k), a bound below log p(x); the
    effective sample size and Pareto k̂ are those under the value that weighs most.
    """
    context = parts_of(x)[1]
    assert context is not None
    places = total.unknown(context).nonzero()[:, 0]
    first = estimate(total.having(x, 0), keys)
    places, among = places.cpu(), x[places]
    own = None if keys is None else [keys[place] for place in places.tolist()]
    others = [estimate(total.having(among, value), own) for value in range(1, total.size)]
    found = _fold([_at(first, places), *others], total.log_shares.double().cpu()[:, None])
    values = {}
    for field in fields(Importance):
        whole: Tensor = getattr(first, field.name).clone()
        whole[places] = getattr(found, field.name)
        values[field.name] = whole
    return Importance(**values)


def _at(found: Importance, places: Tensor) -> Importance:
    return Importance(**{field.name: getattr(found, field.name)[places] for field in fields(Importance)})


def _fold(parts: list[Importance], log_shares: Tensor) -> Importance:
    """What was found under each value ``[K]``, as of their sum."""

    def each(name: str) -> Tensor:
        return torch.stack([getattr(part, name) for part in parts])

    def weighted(name: str, r: Tensor) -> Tensor:
        # The errors under the values are independent.
        power = 2 if name.endswith("_variance") else 1
        return (r**power * each(name)).sum(0)

    joint = each("log_px") + log_shares
    share, bound = torch.softmax(joint, 0), each("elbo") + log_shares
    log_r = torch.log_softmax(bound, 0)
    r = log_r.exp()
    spread = torch.where(r > 0, r * (log_shares - log_r), 0.0).sum(0)
    values = {field.name: weighted(field.name, r) for field in fields(Importance)}
    values |= {
        "log_px": joint.logsumexp(0),
        "log_px_variance": weighted("log_px_variance", share),
        "elbo": bound.logsumexp(0),
        "log_prior": values["log_prior"] + spread,
        "kl": values["kl"] - spread,
    }
    likeliest = share.argmax(0)[None]
    values |= {name: each(name).gather(0, likeliest)[0] for name in ("ess", "khat")}
    return Importance(**values)
