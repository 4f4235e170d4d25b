"""How far a Hamiltonian posterior stays from a Gaussian one, in closed form.

On p(z | x) = N(μ, diag 1/a) leapfrog and tempering are linear in each dimension, so that the gap
log p(x) − ELBO is a sum of second moments. It tests the sampler and says what the family can reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import ShapeError, SpecError


class BestGap(NamedTuple):
    """The smallest gap over step sizes and temperature.

    Attributes:
        gap: nats.
        steps: ε ``[d]``, the same for each of the K steps.
        temperature: T = 1/√β₀.
        tempering: α ``[K]``.
    """

    gap: float
    steps: Tensor
    temperature: float
    tempering: Tensor


def hamiltonian_gap(
    precision: Float[Tensor, "features"],
    mean: Float[Tensor, "features"] | float,
    steps: Float[Tensor, "..."],
    tempering: Sequence[float] | Float[Tensor, "steps"] = (),
    base_mean: Float[Tensor, "features"] | float = 0.0,
    base_scale: Float[Tensor, "features"] | float = 1.0,
) -> Float[Tensor, ""]:
    """log p(x) − ELBO of K tempered leapfrog steps towards N(μ, diag 1/a), nats.

    z₀ ~ N(m, s²), ρ₀ = T γ₀ with γ₀ ~ N(0, I) and T = 1/Π α_k; for each k one leapfrog step of size ε_k
    on U(z) = ½ a (z − μ)², then ρ ← α_k ρ. With y = z − μ the whole map is linear, so that

        gap = Σ_j ½ a E y_K² + ½ E ρ_K² − 1 − ½ log a − log s.

    Args:
        precision: a ``[d]``, positive; n/σ² + 1 for the Gaussian model.
        mean: μ ``[d]``.
        steps: ε ``[K, d]``, or ``[K]`` or ``[K, 1]`` for the same in each dimension.
        tempering: α ``[K]``; () for none.
        base_mean, base_scale: m and s of q₀.

    Differentiable in all of its tensors; K = 0 is KL(q₀ ‖ p). Cost: O(K d).

    Raises:
        ShapeError: steps or tempering of another length.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> hamiltonian_gap(one, 0.0, torch.zeros(0, 1)).item()  # q₀ is the posterior already
    0.0
    """
    count = steps.shape[0]
    steps = steps.unsqueeze(-1) if steps.ndim == 1 else steps
    if steps.ndim != 2 or steps.shape[1] not in (1, precision.shape[-1]):
        raise ShapeError(
            f"steps: shape {tuple(steps.shape)}; use [K, {precision.shape[-1]}] or [K]"
        )
    alpha = torch.as_tensor(tempering, dtype=precision.dtype, device=precision.device)
    alpha = alpha if len(alpha) else torch.ones_like(steps[:, 0], dtype=precision.dtype)
    if alpha.shape != (count,):
        raise ShapeError(f"tempering: shape {tuple(alpha.shape)}; {count} steps need [{count}]")
    start = torch.as_tensor(base_scale, dtype=precision.dtype, device=precision.device)
    offset = torch.as_tensor(base_mean - mean, dtype=precision.dtype, device=precision.device)
    return _each(precision, offset, start, steps.unbind(), alpha).sum()


def _each(
    a: Tensor, offset: Tensor, scale: Tensor, steps: Sequence[Tensor], alpha: Tensor
) -> Tensor:
    """The gap of each dimension by itself, ``[..., d]``; everything broadcasts."""
    # Two trajectories span all of them: from (y, ρ) = (1, 0) and from (0, 1).
    position = torch.stack([torch.ones_like(a), torch.zeros_like(a)])
    momentum = position.flip(0)
    for size, factor in zip(steps, alpha, strict=True):
        momentum = momentum - 0.5 * size * a * position
        position = position + size * momentum
        momentum = factor * (momentum - 0.5 * size * a * position)
    # E y₀² and E ρ₀².
    spread = scale.square() + offset.square(), alpha.prod().pow(-2)
    energy = position[0].square() * spread[0] + position[1].square() * spread[1]
    kinetic = momentum[0].square() * spread[0] + momentum[1].square() * spread[1]
    return 0.5 * (a * energy + kinetic) - 1 - 0.5 * a.log() - scale.log()


def quadratic_tempering(temperature: float | Tensor, steps: int) -> Tensor:
    """α ``[K]`` of the paper's fixed schedule: T_k = 1 + (T − 1)(1 − k²/K²), α_k = T_k / T_{k−1}.

    (The same as 1/√β_k = (1 − 1/√β₀) k²/K² + 1/√β₀ with T = 1/√β₀.)
    """
    temperature = torch.as_tensor(temperature, dtype=torch.float64)
    k = torch.arange(steps + 1, dtype=temperature.dtype) / max(steps, 1)
    levels = 1 + (temperature - 1) * (1 - k.square())
    return levels[1:] / levels[:-1]


def best_hamiltonian_gap(
    precision: Float[Tensor, "features"],
    mean: Float[Tensor, "features"] | float,
    steps: int = 1,
    tempered: bool = True,
) -> BestGap:
    """The smallest :func:`hamiltonian_gap` over ε (per dimension, equal for all steps) and T.

    q₀ is N(0, I), as in the paper; the tempering follows its quadratic schedule. First a grid over
    ε √a, of which each dimension takes its best, and over T; then L-BFGS from there.

    Raises:
        SpecError: fewer than one step, or a precision that is not positive.
    """
    if steps < 1:
        raise SpecError(f"steps: was {steps}; without a step there is nothing to choose")
    if not (precision > 0).all():
        raise SpecError("precision: has an entry that is not positive; use n/σ² + 1")
    a = precision.detach().double()
    mu, one = torch.as_tensor(mean).to(a).expand_as(a), torch.ones_like(a)
    log_t = torch.linspace(0, math.log(100), 80).double() if tempered else torch.zeros(1).double()
    relative = torch.logspace(-4, math.log10(1.99), 300, dtype=torch.float64)
    candidates = relative[:, None] / a.sqrt()
    best = (math.inf, 0.0, candidates[0])
    for value in log_t.exp().tolist():
        alpha = quadratic_tempering(value, steps)
        each = _each(a.expand_as(candidates), mu, one, [candidates] * steps, alpha)
        gap, index = each.min(0)
        if gap.sum() < best[0]:
            best = (gap.sum().item(), value, candidates[index, torch.arange(len(a))])
    log_step = best[2].log().requires_grad_()
    # log T ≥ 0 is not enforced: T < 1 is a temperature too.
    log_temperature = torch.tensor(math.log(best[1]), dtype=torch.float64, requires_grad=tempered)
    leaves = [log_step, log_temperature] if tempered else [log_step]

    def gap_now() -> Tensor:
        alpha = quadratic_tempering(log_temperature.exp(), steps)
        return hamiltonian_gap(a, mu, log_step.exp().expand(steps, -1), alpha)

    optimizer = torch.optim.LBFGS(
        leaves,
        max_iter=500,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = gap_now()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        temperature = log_temperature.exp().item()
        return BestGap(
            gap_now().item(), log_step.exp(), temperature, quadratic_tempering(temperature, steps)
        )
