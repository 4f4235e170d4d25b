"""Hamiltonian dynamics: the leapfrog map, tempering, acceptance and step sizes, each a small function.

A point z moves with a momentum ρ in the landscape of a log-density log p(z), nats:

    kick   ρ ← ρ + ½ε ∇log p(z),      drift   z ← z + ε ρ,      kick again,      temper   ρ ← α ρ.

Kicks and drifts are shears, so their Jacobian has determinant 1 whatever the density; a temper
multiplies it by α^D. The Hamiltonian posterior learns through this map; annealed importance sampling
adds :func:`accept`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError

#: z ``[..., D]`` → (log p(z) ``[...]`` or None where nobody asks, ∇log p(z) ``[..., D]``).
Slope = Callable[[Tensor], tuple[Tensor | None, Tensor]]


class Phase(NamedTuple):
    """Where a trajectory is.

    Attributes:
        z: ``[..., D]``, the position.
        rho: ``[..., D]``, the momentum.
        log_density: ``[...]``, log p(z) in nats, which the last gradient brought along; None after no
            step, or where the slope does not tell.
    """

    z: Tensor
    rho: Tensor
    log_density: Tensor | None


def slope(log_density: Callable[[Tensor], Tensor]) -> Slope:
    """z → (log p(z), ∇log p(z)) of a callable ``[..., D] -> [...]``; differentiable once more.

    A callable that has a method ``value_and_gradient`` is asked for both: a gradient written in
    forward operations is cheaper to differentiate than the record of a backward pass. Where it has
    none, or answers None, ``torch.func.vjp`` serves, which also works inside ``torch.func.vmap`` and
    under ``torch.no_grad``.

    Raises:
        ShapeError: the log-density of a point is not one number.

    Example:
        >>> import torch
        >>> slope(lambda z: -0.5 * z.square().sum(-1))(torch.tensor([[1.0, 2.0]]))
        (tensor([-2.5000]), tensor([[-1., -2.]]))
    """
    explicit = getattr(log_density, "value_and_gradient", None)

    def at(z: Tensor) -> tuple[Tensor | None, Tensor]:
        if explicit is not None and (found := explicit(z)) is not None:
            return found
        value, pullback = torch.func.vjp(log_density, z)[:2]
        if value.shape != z.shape[:-1]:
            raise ShapeError(
                f"log_joint: gave shape {tuple(value.shape)} for z of shape {tuple(z.shape)}; "
                f"it should be one number a point, {tuple(z.shape[:-1])}: sum over the features only"
            )
        (gradient,) = pullback(torch.ones_like(value))
        return value, gradient

    return at


def leapfrog(
    z: Float[Tensor, "... features"],
    rho: Float[Tensor, "... features"],
    slope: Slope,
    step: float | Tensor | Sequence[Tensor],
    steps: int,
    temper: Sequence[Tensor] | None = None,
) -> Phase:
    """K steps of kick, drift, kick, temper.

    Between a drift and the next one z stands still, so the second kick of a step, the temper and the
    first kick of the next one share a gradient and are one update, ρ ← α_k ρ + ½(α_k ε_k + ε_{k+1})
    ∇log p(z_k): K + 1 gradients, not 2K. None at all for K = 0.

    Untempered, it is its own inverse once the momentum is reversed; log|det| = D Σ_k log α_k.

    Args:
        z: position.
        rho: momentum, of the same shape.
        slope: z → (log p(z), ∇log p(z)), e.g. from :func:`slope`.
        step: ε: one number, or a tensor that broadcasts against z (``[D]``: one for each
            dimension; ``[..., 1]``: for each chain); or a sequence of K of them, one a step.
        steps: K.
        temper: α₁ … α_K, each a tensor that broadcasts against ρ; None for none.

    Raises:
        SpecError: ``step`` or ``temper`` is a sequence of another length than K, or K < 0.

    Cost: K + 1 gradients and 2K + 1 passes over z. Source: Neal 2011, "MCMC using Hamiltonian
    dynamics", eqs. 5.18–5.20; tempering within a trajectory: its section 5.5.7.
    """
    if not isinstance(steps, int) or steps < 0:
        raise SpecError(f"steps: was {steps!r}; use 0, 1, 2, …")
    sizes: list[float | Tensor] = (
        [step] * steps if isinstance(step, (int, float, Tensor)) else [*step]
    )
    for name, given in (("step", sizes), ("temper", temper)):
        if given is not None and len(given) != steps:
            raise SpecError(
                f"{name}: has {len(given)} entries for {steps} steps; give one for each"
            )
    if steps == 0:
        return Phase(z, rho, None)
    value, force = slope(z)
    rho = rho + 0.5 * sizes[0] * force
    for k in range(steps):
        z = z + sizes[k] * rho
        value, force = slope(z)
        kick = sizes[k] if temper is None else temper[k] * sizes[k]
        if k + 1 < steps:
            kick = kick + sizes[k + 1]
        rho = (rho if temper is None else temper[k] * rho) + 0.5 * kick * force
    return Phase(z, rho, value)


def affine_leapfrog(
    z: Float[Tensor, "*batch features"],
    rho: Float[Tensor, "*batch features"],
    gradient: tuple[Float[Tensor, "features"], Float[Tensor, "features"]],
    step: float | Tensor | Sequence[Tensor],
    steps: int,
    temper: Sequence[Tensor] | None = None,
) -> Phase:
    """:func:`leapfrog` where the gradient is b − a ⊙ z: K affine maps, composed before any z is touched.

    For each dimension the trajectory is z_K = A z + B ρ + C, ρ_K = A′ z + B′ ρ + C′. The six
    coefficients are where the K steps take the three starts (z, ρ, b) = (1, 0, 0), (0, 1, 0) and
    (0, 0, b).

    Args:
        gradient: (b, a), each ``[D]``.

    Cost: O(KD), and two affine passes over z, whatever K.
    """
    b, a = gradient
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    push = torch.stack([zero, zero, b])
    unit = leapfrog(
        torch.stack([one, zero, zero]),
        torch.stack([zero, one, zero]),
        lambda each: (None, push - a * each),
        step,
        steps,
        temper,
    )
    ends = [torch.addcmul(x[2] + x[0] * z, x[1], rho) for x in (unit.z, unit.rho)]
    return Phase(ends[0], ends[1], None)


class Accepted(NamedTuple):
    """What :func:`accept` decided.

    Attributes:
        z: ``[..., D]``, the new position.
        moved: ``[...]``, whether it is the proposed one.
        probability: ``[...]``, of having moved: what a step size is adapted by.
    """

    z: Tensor
    moved: Tensor
    probability: Tensor


def accept(
    z: Float[Tensor, "... features"],
    proposed: Float[Tensor, "... features"],
    log_ratio: Float[Tensor, "..."],
    purpose: str = "acceptance",
) -> Accepted:
    """Move to ``proposed`` with probability min(1, exp(log_ratio)), each chain by itself.

    Args:
        log_ratio: log of the target at the proposal over the target here, times that of the
            proposal densities; for a leapfrog proposal the energy that was lost,
            log p(z′) − ½|ρ′|² − log p(z) + ½|ρ|². NaN (a trajectory that left the numbers) stays.
        purpose: of the uniform numbers (:mod:`varflow.core.random`).

    Source: Metropolis et al. 1953; Neal 2011, section 5.3.2.
    """
    uniform = random.uniform(
        log_ratio.shape, purpose, dtype=log_ratio.dtype, device=log_ratio.device
    )
    ratio = torch.where(log_ratio < 0, log_ratio, 0.0).exp()
    probability = torch.where(log_ratio.isnan(), 0.0, ratio)
    moved: Bool[Tensor, "..."] = uniform < probability
    return Accepted(torch.where(moved.unsqueeze(-1), proposed, z), moved, probability)


class StepSize(NamedTuple):
    """Step sizes on their way to an acceptance rate, one for each chain or group of chains.

    Attributes:
        log_step: log ε to use next.
        log_average: log of the averaged ε, to keep when adaptation ends.
        error: running mean of (target − acceptance).
        log_anchor: the value that log ε is drawn to.
        updates: how many there were.
    """

    log_step: Tensor
    log_average: Tensor
    error: Tensor
    log_anchor: Tensor
    updates: int


def start_adapting(step: Tensor) -> StepSize:
    """From ε ``[...]`` > 0; steps ten times as large are tried first, because they cost less."""
    log_step = step.log()
    zero = torch.zeros_like(log_step)
    return StepSize(log_step, log_step, zero, log_step + math.log(10), 0)


def adapt(state: StepSize, acceptance: Tensor, target: float = 0.65) -> StepSize:
    """One update of dual averaging towards a mean acceptance probability of ``target``.

    log ε ← anchor − (√t / γ) · mean error and log ε̄ ← t^{−κ} log ε + (1 − t^{−κ}) log ε̄, the mean
    taken with the first t₀ errors damped; γ = 0.05, t₀ = 10, κ = 0.75. 0.65 is the best rate for
    many independent dimensions (Beskos et al. 2013).

    Source: Hoffman and Gelman 2014, "The No-U-Turn sampler", section 3.2.1, eq. 6.
    """
    updates = state.updates + 1
    share = 1 / (updates + 10)
    error = (1 - share) * state.error + share * (target - acceptance)
    log_step = state.log_anchor - math.sqrt(updates) / 0.05 * error
    weight = updates**-0.75
    average = weight * log_step + (1 - weight) * state.log_average
    return StepSize(log_step, average, error, state.log_anchor, updates)
