"""What annealed importance sampling moves along: from a density that can be sampled to p(x, z).

    log f_β(z) = (1 − β) log s(z) + β log p(x, z),   0 ≤ β ≤ 1,

with Hamiltonian transitions that leave f_β as it is. Both terms and their gradients are kept from one
transition to the next: a new β is a new mixture of them, so L leapfrog steps cost L gradients, not L + 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from varflow import hmc
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.core.observed import Examples, Observed, parts_of
from varflow.evaluation.memory import SlicedJoint
from varflow.model import LogJoint, Model
from varflow.posteriors.posterior import Conditional

#: Draws of q or of the prior that its moments are taken from, and how many at once.
_MOMENTS, _AT_ONCE = 256, 16

#: Step sizes are drawn within this share of ε, so that no trajectory comes back to its start every time.
_JITTER = 0.2


class GaussianStart:
    """s(z) = N(mean, scale²), for each example.

    Args:
        mean, log_scale: ``[B, D]``.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor) -> None:
        self.mean: Tensor = mean
        self.log_scale: Tensor = log_scale

    def draw(self, chains: int) -> Float[Tensor, "chains batch features"]:
        shape = (chains, *self.mean.shape)
        noise = random.normal(shape, "start", dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.log_scale.exp() * noise

    def slope(self, z: Float[Tensor, "chains batch features"]) -> tuple[Tensor, Tensor]:
        """(log s(z) ``[C, B]``, its gradient)."""
        narrow = (-self.log_scale).exp()
        scaled = (z - self.mean) * narrow
        constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
        value = -0.5 * scaled.square().sum(-1) - self.log_scale.sum(-1) - constant
        return value, -scaled * narrow


class PriorStart:
    """s(z) = p(z) of a prior that is no standard normal."""

    mean: Tensor
    log_scale: Tensor

    def __init__(self, model: Model, x: Examples) -> None:
        self.prior: Any = model.prior
        self.points: int = len(x)
        # c, of a prior p(z|c).
        self._given: tuple[Tensor, ...] = model.read_by_prior(parts_of(x)[1])
        self._slope = hmc.slope(lambda z: self.prior.log_prob(z, *self._given))
        if self._given:
            self.mean, self.log_scale = _moments(self.draw(_MOMENTS))
        else:
            self.mean, self.log_scale = (
                moment.expand(self.points, -1) for moment in _moments(self.prior.sample((_MOMENTS,)))
            )

    def draw(self, chains: int) -> Tensor:
        drawn: Tensor = self.prior.sample((chains, self.points), *self._given)
        return drawn

    def slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self._slope(z)
        assert value is not None
        return value, gradient


Start = GaussianStart | PriorStart


def starts(model: Model, x: Examples, kind: str) -> tuple[Start, Tensor]:
    """The start, and log σ ``[B, D]`` of q(z|x), which says how wide the end of the road is.

    Raises:
        SpecError: latents that are no vector of real numbers.
    """
    if len(model.prior.event_shape) != 1:
        raise SpecError(
            f"model: its latents have shape {model.prior.event_shape}; annealing moves vectors of real numbers, "
            "use importance_sample"
        )
    q = model.infer(x)
    mean, log_scale = q.diagonal or _moments(_draws(model, x, q))
    if kind == "posterior":
        return GaussianStart(mean, log_scale), log_scale
    if model.prior.standard:
        return GaussianStart(torch.zeros_like(mean), torch.zeros_like(mean)), log_scale
    return PriorStart(model, x), log_scale


def _draws(model: Model, x: Examples, q: Conditional) -> Tensor:
    joint = LogJoint(model, x)
    return torch.cat([q.draw(_AT_ONCE, joint).z for _ in range(_MOMENTS // _AT_ONCE)])


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.mean(0), z.std(0).log()


class Densities(NamedTuple):
    """What is known at the positions of all chains: ``[C, B]`` and ``[C, B, D]``.

    Attributes:
        start, start_slope: log s(z) and its gradient.
        joint, joint_slope: log p(x, z) and its gradient.
    """

    start: Tensor
    start_slope: Tensor
    joint: Tensor
    joint_slope: Tensor

    def mixed(self, beta: float) -> tuple[Tensor, Tensor]:
        """log f_β and its gradient."""
        return (
            (1 - beta) * self.start + beta * self.joint,
            (1 - beta) * self.start_slope + beta * self.joint_slope,
        )

    @property
    def log_ratio(self) -> Tensor:
        """log p(x, z) − log s(z) in float64: what log f_β gains for each unit of β."""
        return self.joint.double() - self.start.double()

    def replaced(self, moved: Tensor, other: Densities) -> Densities:
        """``other`` where ``moved``."""
        return Densities(
            *(
                torch.where(moved if one.ndim == moved.ndim else moved[..., None], two, one)
                for one, two in zip(self, other, strict=True)
            )
        )


class GeometricPath:
    """log f_β of B examples.

    Args:
        start: s.
        log_scale: log σ of q(z|x) ``[B, D]``.
        memory: bytes that a gradient may take; positions beyond it are decoded in slices.
    """

    def __init__(
        self,
        model: Model,
        x: Shaped[Tensor, "batch ..."] | Observed,
        start: Start,
        log_scale: Tensor,
        memory: int,
    ) -> None:
        self.x: Examples = x
        self.start: Start = start
        self.log_scale: Tensor = log_scale
        self._joint = SlicedJoint(model, x, memory)

    def at(self, z: Float[Tensor, "chains batch features"]) -> Densities:
        return Densities(*self.start.slope(z), *self._joint.value_and_gradient(z))

    def scale(self, beta: float) -> Float[Tensor, "batch features"]:
        """How wide f_β is along each latent, if s and p(z|x) were Gaussians: precisions mix as densities do."""
        precision = (1 - beta) * (-2 * self.start.log_scale).exp()
        return (precision + beta * (-2 * self.log_scale).exp()).rsqrt()


class Moved(NamedTuple):
    """Positions after a transition, what is known there, and the probability of having moved ``[C, B]``."""

    z: Tensor
    at: Densities
    probability: Tensor


def transition(
    path: GeometricPath,
    z: Float[Tensor, "chains batch features"],
    at: Densities,
    beta: float,
    log_step: Float[Tensor, " batch"],
    leapfrog: int,
) -> Moved:
    """One Hamiltonian transition that leaves f_β as it is: fresh momenta, L leapfrog steps, acceptance.

    The mass of each latent is that of its width (:meth:`GeometricPath.scale`), and each trajectory has a step size of
    its own within 20 % of ε; neither looks at where the chain is.

    Source: Neal 2011, "MCMC using Hamiltonian dynamics", sections 3.2, 3.3 and 4.1.
    """
    options = {"dtype": z.dtype, "device": z.device}
    rho = random.normal(z.shape, "momentum", **options)  # type: ignore[arg-type]
    jitter = random.uniform(z.shape[:2], "step", **options)  # type: ignore[arg-type]
    length = log_step.exp() * (1 + _JITTER * (2 * jitter - 1))
    step = length[..., None] * path.scale(beta)
    last = at

    def slope(position: Tensor) -> tuple[Tensor | None, Tensor]:
        nonlocal last
        if position is not z:
            last = path.at(position)
        return last.mixed(beta)

    before = at.mixed(beta)[0] - 0.5 * rho.square().sum(-1)
    end = hmc.leapfrog(z, rho, slope, step, leapfrog)
    assert end.log_density is not None
    after = end.log_density - 0.5 * end.rho.square().sum(-1)
    accepted = hmc.accept(z, end.z, after - before)
    return Moved(accepted.z, at.replaced(accepted.moved, last), accepted.probability)
