"""Pareto k̂: can the average of these importance weights be trusted?

The largest weights are fitted with a generalised Pareto distribution. Its shape k says how many
moments the weights have: below 0.5 the variance is finite; above 0.7 the estimate needs impractically
many samples and log p̂(x) falls short of log p(x).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import NonFiniteError, SpecError

#: Fewer weights than this have no tail to speak of; k̂ is nan.
FEWEST = 25
#: Above this k̂ an importance estimate is unreliable (Vehtari et al. 2024).
UNRELIABLE = 0.7


def tail_length(samples: int) -> int:
    """M = ⌈min(S/5, 3√S)⌉, the number of largest weights that are fitted (Vehtari et al. 2024, section 2)."""
    return math.ceil(min(0.2 * samples, 3 * math.sqrt(samples)))


def pareto_k(
    log_weights: Float[Tensor, "*batch samples"], tolerance: float | Tensor = 1e-12
) -> Float[Tensor, "*batch"]:
    """k̂ of each row of log importance weights.

    Args:
        log_weights: log w in nats, up to a constant; −inf is a weight of zero.
        tolerance: see :func:`tail_k`.

    Returns:
        k̂ in float64: nan for fewer than 25 weights, −inf for constant weights.

    Raises:
        NonFiniteError: a log-weight is NaN or +inf.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling".

    Example:
        >>> import torch
        >>> tail = torch.arange(1, 4001, dtype=torch.float64) / 4001
        >>> round(pareto_k(-0.3 * torch.log(tail)).item(), 1)    # w = u⁻⁰·³ has k = 0.3
        0.3
    """
    if bool((log_weights.isnan() | (log_weights == math.inf)).any()):
        raise NonFiniteError(
            "log_weights: hold NaN or +inf; find the term of log w that is not finite before asking for k̂"
        )
    samples = log_weights.shape[-1]
    if samples < FEWEST:
        return log_weights.new_full(log_weights.shape[:-1], math.nan, dtype=torch.float64)
    top = log_weights.double().topk(tail_length(samples) + 1, dim=-1).values
    return tail_k(top, tolerance)


def tail_k(
    top: Float[Tensor, "*batch tail"], tolerance: float | Tensor = 1e-12
) -> Float[Tensor, "*batch"]:
    """k̂ from the M + 1 largest log-weights in descending order; the last of them is the threshold.

    With the exceedances y₁ ≤ … ≤ y_M over the threshold, the profile of the generalised Pareto
    likelihood in b = −k/σ is averaged over m = 30 + ⌊√M⌋ values,

        k(b) = mean log(1 − b y),   ℓ(b) = M (log(−b/k(b)) − k(b) − 1),
        b̂ = Σ b_j softmax(ℓ)_j,   k̂ = (M k(b̂) + 5)/(M + 10).

    Args:
        top: descending log-weights, ``[..., M + 1]``, float64.
        tolerance: nats (a number, or one for each row); a tail narrower than this is rounding, and
            its weights count as constant.

    Returns:
        k̂ ``[...]``: −inf for constant weights, inf where fewer than five exceedances hold the whole tail
        (also where all weights are zero).

    Source: Zhang and Stephens 2009, "A new and efficient estimation method for the generalized Pareto
    distribution"; the last step, which shrinks k̂ towards ½ with the weight of ten observations, is
    Vehtari et al. 2024, appendix C.

    Cost: m passes over the tail, memory of a few copies of it.
    """
    if top.shape[-1] < 6:
        raise SpecError(
            f"top: holds {top.shape[-1]} weights; a tail needs at least 5 above its threshold"
        )
    largest, threshold = top[..., :1], top[..., -1:]
    # In units of the largest weight: k does not depend on the scale. Through expm1, so that nearly equal
    # weights keep their digits and nothing overflows.
    y = -torch.expm1(threshold - top[..., :-1]) * torch.exp(top[..., :-1] - largest)
    spread = (largest - threshold)[..., 0]
    count = (y > 0).sum(-1, keepdim=True)
    y = torch.where(y > 0, y, 0.0)
    constant = spread <= tolerance
    short = ~constant & (count[..., 0] < 5)
    usable = ~(constant | short)
    y = torch.where(
        usable[..., None], y, torch.linspace(1, 0.5, y.shape[-1], dtype=y.dtype, device=y.device)
    )
    count = torch.where(usable[..., None], count, y.shape[-1])
    k = _zhang_stephens(y, count)[..., 0]
    k = (count[..., 0] * k + 5) / (count[..., 0] + 10)
    return torch.where(constant, -math.inf, torch.where(short, math.inf, k))


def _zhang_stephens(y: Tensor, count: Tensor) -> Tensor:
    """k(b̂) of descending exceedances y ``[..., M]``, of which the first ``count`` ``[..., 1]`` are positive."""
    grid = 30 + math.isqrt(y.shape[-1])
    # The first quartile of the positive exceedances; y descends.
    quartile = y.gather(-1, count - torch.floor(count / 4 + 0.5).long())
    largest = y[..., :1]
    b = torch.cat(
        [
            1 / largest + (1 - math.sqrt(grid / (j - 0.5))) / (3 * quartile)
            for j in range(1, grid + 1)
        ],
        -1,
    )
    # One value of b at a time: [..., M] in memory instead of [..., M, m]. y = 0 adds nothing to the sum.
    k = (
        torch.cat(
            [torch.log1p(-b[..., j, None] * y).sum(-1, keepdim=True) for j in range(grid)], -1
        )
        / count
    )
    # At b = 0 exactly, −b/k(b) is 0/0; its limit is the exponential's rate.
    rate = torch.where(b == 0, count / y.sum(-1, keepdim=True), -b / k)
    profile = count * (torch.log(rate) - k - 1)
    best = (b * torch.softmax(profile, -1)).sum(-1, keepdim=True)
    return torch.log1p(-best * y).sum(-1, keepdim=True) / count
