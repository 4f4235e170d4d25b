"""Many updates of planar fits to an energy in the plane, in one call of compiled code.

One update of one fit, for noise ε ``[S, 2]``, is :func:`loss`, its gradient, clipping, and Adam or RMSprop as torch
defines them:

    z₀ = μ + σ ε,   (z, ladj) = flow(z₀),   log q = log N(ε; 0, I) − Σ log σ − ladj,
    annealed:  E[log q − β log π(z)],       ELBO:  β E[log q − log π(z) − control].

:func:`take` does a block of them and leaves parameters and optimizer where torch would have left them, up to
rounding. No fit touches another, so that threads share the fits, and the numbers do not depend on how many there are.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from varflow import native

#: What a class says that compiled code has.
ENERGIES = {"u1": 1, "u2": 2, "u3": 3, "u4": 4}
KINDS = ("adam", "adamw", "rmsprop")
#: Of each update and fit.
ROWS = ("loss", "kl", "ladj")


class Chain(NamedTuple):
    """A posterior that is planar steps on a Gaussian without an x: the names of its tensors, and the steps' shift.

    ``mean`` and ``log_scale`` are None where the base is N(0, I).
    """

    u: str
    w: str
    b: str
    shift: float
    mean: str | None = None
    log_scale: str | None = None

    @property
    def names(self) -> tuple[str | None, ...]:
        return (self.u, self.w, self.b, self.mean, self.log_scale)

    def within(self, prefix: str) -> Chain:
        """The same chain as a module sees it that holds its own under ``prefix``."""
        steps = (prefix + self.u, prefix + self.w, prefix + self.b)
        return Chain(*steps, self.shift, self.mean and prefix + self.mean, self.log_scale and prefix + self.log_scale)


@dataclass(frozen=True)
class Fits:
    """Fits whose tensors are stacked.

    Attributes:
        tensors: u ``[F, K, 2]``, w ``[F, K, 2]``, b ``[F, K]``, mean and log σ ``[F, 2]`` or None; F may be left out.
        shift: of the planar steps.
        energies: one name of :data:`ENERGIES` each.
    """

    tensors: tuple[Tensor | None, ...]
    shift: float
    energies: tuple[str, ...]

    @staticmethod
    def of(chain: Chain, tensors: Mapping[str, Tensor], energies: Sequence[str]) -> Fits:
        """From the tensors of a module by their names."""
        return Fits(
            tuple(None if name is None else tensors[name] for name in chain.names), chain.shift, tuple(energies)
        )

    @property
    def length(self) -> int:
        """K."""
        b = self.tensors[2]
        assert b is not None
        return b.shape[-1]


class Loss(NamedTuple):
    """An objective that compiled code has; ``control`` as in :class:`varflow.objectives.ELBO`."""

    kind: Literal["annealed", "elbo"]
    control: bool = False


class Update(NamedTuple):
    """An optimizer that compiled code has, in the numbers of torch's.

    RMSprop: ``beta2`` is its smoothing constant alpha, ``beta1`` its momentum. ``clip``: the largest norm of the
    gradient of a fit, which is scaled by clip / (norm + clip_eps); 0 for none.
    """

    kind: Literal["adam", "adamw", "rmsprop"]
    beta1: float
    beta2: float
    eps: float
    weight_decay: float = 0.0
    centered: bool = False
    clip: float = 0.0
    clip_eps: float = 0.0


def declared(part: Any) -> Any:
    """What the class of ``part`` says of its compiled form: the outcome of its method ``compiled``, or None.

    The class has to say it itself. One that inherits it may have changed what is computed.
    """
    method = vars(type(part)).get("compiled")
    return None if method is None else method(part)


def loss(
    push: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, Tensor]],
    log_prob: Callable[[Tensor], Tensor],
    tensors: Sequence[Tensor | None],
    noise: Tensor,
    weight: float,
    objective: Loss,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, for one fit: :data:`ROWS` for ε ``[S, 2]`` and β = ``weight``; ``push`` is the flow."""
    *parameters, mean, log_scale = tensors
    mean = noise.new_zeros(2) if mean is None else mean
    log_scale = noise.new_zeros(2) if log_scale is None else log_scale
    z0 = mean + log_scale.exp() * noise
    z, ladj = push(z0, tuple(x for x in parameters if x is not None))
    log_q = -0.5 * noise.square().sum(-1) - math.log(2 * math.pi) - log_scale.sum() - ladj
    log_p = log_prob(z)
    kl = log_q - log_p
    if objective.kind == "annealed":
        return (log_q - weight * log_p).mean(), kl.mean(), ladj.mean()
    expected = (mean.square() + (2 * log_scale).exp() - 1).sum()
    control = 0.5 * ((z0.square() - noise.square()).sum(-1) - expected)
    return (weight * (kl - control if objective.control else kl)).mean(), kl.mean(), ladj.mean()


def take(
    groups: Sequence[Fits],
    noise: Sequence[Tensor],
    weights: Sequence[float],
    rates: Sequence[float],
    objective: Loss,
    update: Update,
    states: Sequence[Sequence[Sequence[Tensor | None]]],
    taken: int,
    pool: ThreadPoolExecutor | None = None,
    parts: int = 1,
) -> Tensor:
    """Take the updates, in place; returns :data:`ROWS` of each, float64 ``[steps, fits, 3]``.

    Args:
        groups: the fits.
        noise: ε of each group, ``[steps, F, S, 2]``.
        weights, rates: β and the learning rate of each update.
        objective, update: what is minimised, and how.
        states: of each group, of each of its five tensors, three of the optimizer: Adam's two moments; RMSprop's
            mean square, momentum and mean; None for those that there are not.
        taken: updates before these, for Adam's corrections.
        pool: runs the fits in ``parts`` parts.
    """
    dtype = noise[0].dtype
    function = native.calls_in_use().function("planar_fit", dtype)
    steps, fits = len(weights), sum(len(group.energies) for group in groups)
    rows = torch.empty(steps, fits, len(ROWS), dtype=torch.float64)
    each_weight, each_rate = (torch.tensor(values, dtype=torch.float64) for values in (weights, rates))
    jobs: list[Callable[[], int]] = []
    before = 0
    for group, epsilon, kept in zip(groups, noise, states, strict=True):
        count, samples = len(group.energies), epsilon.shape[-2]
        share = -(-count // parts)
        for first in range(0, count, share):
            energies = [ENERGIES[name] for name in group.energies[first : first + share]]
            job = partial(
                function,
                *(len(energies), samples, group.length, steps, group.shift),
                (ctypes.c_int * len(energies))(*energies),
                *(_at(epsilon, first * samples * 2), count * samples * 2),
                *(each_weight.data_ptr(), each_rate.data_ptr(), taken),
                *(int(objective.kind == "annealed"), int(objective.control)),
                *(KINDS.index(update.kind), update.beta1, update.beta2, update.eps, update.weight_decay),
                *(int(update.centered), update.clip, update.clip_eps),
                _addresses([_fit(tensor, first, count) for tensor in group.tensors]),
                _addresses([_fit(tensor, first, count) for three in kept for tensor in three]),
                *(_at(rows, (before + first) * len(ROWS)), fits * len(ROWS)),
            )
            jobs.append(job)
        before += count
    failed = [job() for job in jobs] if pool is None else list(pool.map(lambda job: job(), jobs))
    if any(failed):
        raise MemoryError("planar_fit: no memory to work in")
    return rows


def _at(x: Tensor, numbers: int) -> int:
    return x.data_ptr() + numbers * x.element_size()


def _fit(x: Tensor | None, index: int, count: int) -> int | None:
    return None if x is None else _at(x, index * (x.numel() // count))


def _addresses(values: Sequence[int | None]) -> Any:
    return (ctypes.c_void_p * len(values))(*values)
