"""Trajectories of Hamiltonian Monte Carlo over the latents of a few examples, for a figure."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from varflow import hmc
from varflow.core import random
from varflow.core.errors import SpecError, positive
from varflow.core.observed import Observed
from varflow.model import LogJoint, Model


class Trajectory(NamedTuple):
    """Trajectories in the landscape of log p(x, z).

    Attributes:
        z: ``[K + 1, B, D]``, positions: a draw of q(z|x), then K leapfrog steps.
        step: ``[B]``, ε of each example.
        acceptance: ``[B]``, the probability min(1, exp(−ΔH)) that HMC would move to the end.
    """

    z: Float[Tensor, "points batch features"]
    step: Float[Tensor, " batch"]
    acceptance: Float[Tensor, " batch"]


@torch.no_grad()
def hmc_trajectory(
    model: Model, x: Shaped[Tensor, "batch ..."] | Observed, steps: int = 15, warmup: int = 16, seed: int = 0
) -> Trajectory:
    """One trajectory of K leapfrog steps from a draw of q(z|x), for each example of x, under log p(x, z).

    The step size of each example is adapted to an acceptance of 0.65 over ``warmup`` trajectories of the same
    length, which HMC accepts or rejects; all start where q(z|x) puts the latents, so a trajectory also shows how
    far q(z|x) is from where p(z|x) is.

    Args:
        model: any with a likelihood and continuous latents.
        x: ``[B, *event]``.
        steps: K.
        warmup: trajectories for the step size.
        seed: of everything random.

    Raises:
        SpecError: no likelihood, or codes for latents.

    Cost: (warmup + 1)(K + 1) gradients of log p(x, z) of B examples. Source: Neal 2011, sections 5.3 and 5.4.
    """
    positive(steps=steps, warmup=warmup)
    if model.likelihood is None or model.posterior.discrete:
        raise SpecError(
            "model: has no decoder of continuous latents; trajectories need log p(x, z) and its gradient"
        )
    joint = LogJoint(model, x)
    slope = hmc.slope(joint)
    with random.stream(seed, 0):
        start = model.infer(x).draw(1, log_joint=joint).z
    z, log_p = start, model.log_joint(start, x)
    state = hmc.start_adapting(torch.full_like(log_p, 0.01))
    for number in range(1, warmup + 1):
        with random.stream(seed, number):
            momentum = _normal(z)
            end, log_ratio = _end(z, log_p, momentum, slope, state.log_step, steps)
            accepted = hmc.accept(z, end.z, log_ratio)
        assert end.log_density is not None
        z, log_p = accepted.z, torch.where(accepted.moved, end.log_density, log_p)
        state = hmc.adapt(state, accepted.probability)
    visited: list[Tensor] = []

    def noting(point: Tensor) -> tuple[Tensor | None, Tensor]:
        visited.append(point)
        return slope(point)

    with random.stream(seed, warmup + 1):
        momentum = _normal(start)
    log_p = model.log_joint(start, x)
    _, log_ratio = _end(start, log_p, momentum, noting, state.log_average, steps)
    probability = torch.where(log_ratio < 0, log_ratio, 0.0).exp()
    return Trajectory(torch.stack(visited)[:, 0], state.log_average.exp()[0], probability[0])


def _end(
    z: Tensor, log_p: Tensor, momentum: Tensor, slope: hmc.Slope, log_step: Tensor, steps: int
) -> tuple[hmc.Phase, Tensor]:
    """Where K steps lead, and the energy that was lost on the way."""
    end = hmc.leapfrog(z, momentum, slope, log_step.exp().unsqueeze(-1), steps)
    assert end.log_density is not None
    kinetic = 0.5 * (momentum.square() - end.rho.square()).sum(-1)
    log_ratio = end.log_density - log_p + kinetic
    return end, torch.where(log_ratio.isnan(), -math.inf, log_ratio)


def _normal(z: Tensor) -> Tensor:
    return random.normal(z.shape, "momentum", dtype=z.dtype, device=z.device)
