"""Annealed importance sampling: log p(x) through a thousand small steps instead of one large one.

Chains start in s(z), which can be sampled, and move towards p(x, z) along f_β (:mod:`.transitions`):

    log w = Σ_t (β_{t+1} − β_t) [log p(x, z_t) − log s(z_t)],   z_0 ~ s,   z_t moved by a transition of f_{β_t}.

E w = p(x) exactly (Neal 2001, eq. 12; the transitions need not have converged), so that the log of the mean
weight is a lower bound of log p(x) in expectation, and one that does not lean on q(z|x) being good (Wu, Burda,
Salakhutdinov and Grosse 2017). Run backwards from an exact posterior sample, which data simulated from the
model come with, the same chains give an upper bound (Grosse, Ghahramani and Adams 2015):
:func:`varflow.evaluation.sandwich_bounds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError, positive, unknown
from varflow.core.observed import Examples, Observed
from varflow.evaluation.chunks import Chunks
from varflow.evaluation.importance import log_excess, log_mean
from varflow.evaluation.points import OnProgress, evaluating, not_a_weight, refuse
from varflow.evaluation.transitions import Densities, GeometricPath, starts, transition
from varflow.model import Model

Schedule = Literal["sigmoidal", "geometric", "linear"]
StartName = Literal["posterior", "prior"]

#: Temperatures at which step sizes are found; between them log ε is interpolated.
_KNOTS = 10
#: Chains of the warm-up.
_SCOUTS = 4


@dataclass(frozen=True)
class Annealing:
    """Settings of annealed importance sampling.

    Attributes:
        chains: C for each example.
        temperatures: T; with one, the chains are plain importance samples of the start.
        leapfrog: steps of each transition.
        schedule: β_t for t = 0 … T. ``sigmoidal``: (σ(δ(2t/T − 1)) − σ(−δ)) / (σ(δ) − σ(−δ)) with δ = 4 (Wu et
            al. 2017), slow at both ends; ``geometric``: (10^{3t/T} − 1)/(10³ − 1), slow at the start;
            ``linear``: t/T.
        start: ``posterior``: a Gaussian with the mean and the standard deviations of q(z|x), which is q itself
            where that is a diagonal Gaussian, and otherwise has the moments of 256 draws; ``prior``: p(z).
        acceptance: the rate that step sizes are adapted to, for each example, in a warm-up with chains of
            its own; they are then frozen, because a step size that follows the chains would bias the weights.
        warmup: transitions of the warm-up, over the whole road.
        chunk: examples moved together; changing it changes the random numbers.
    """

    chains: int = 16
    temperatures: int = 1000
    leapfrog: int = 5
    schedule: Schedule = "sigmoidal"
    start: StartName = "posterior"
    acceptance: float = 0.65
    warmup: int = 300
    chunk: int = 20

    def __post_init__(self) -> None:
        sizes = ("chains", "temperatures", "leapfrog", "warmup", "chunk")
        positive(**{name: getattr(self, name) for name in sizes})
        if self.schedule not in get_args(Schedule):
            raise unknown("schedule", str(self.schedule), get_args(Schedule))
        if self.start not in get_args(StartName):
            raise unknown("start", str(self.start), get_args(StartName))
        if not 0 < self.acceptance < 1:
            raise SpecError(f"acceptance: was {self.acceptance}; use a rate between 0 and 1")

    def describe(self) -> str:
        """The settings in words, for the estimates that come from them."""
        return (
            f"{self.chains} chains over {self.temperatures} temperatures ({self.schedule}) from the {self.start}, "
            f"{self.leapfrog} leapfrog steps each"
        )

    @property
    def betas(self) -> list[float]:
        """β_0 = 0 < … < β_T = 1.

        >>> Annealing(temperatures=4, schedule="linear").betas
        [0.0, 0.25, 0.5, 0.75, 1.0]
        """
        count = self.temperatures
        t = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        if self.schedule == "sigmoidal":
            t = torch.sigmoid(4 * (2 * t - 1))
        elif self.schedule == "geometric":
            t = torch.expm1(math.log(1e3) * t)
        t = (t - t[0]) / (t[-1] - t[0])
        return [float(beta) for beta in t]


@dataclass(frozen=True)
class Annealed:
    """What the chains say of each example: float64 tensors on the CPU, nats.

    Attributes:
        log_weights: log w of each chain, ``[C, N]``.
        acceptance: mean probability of acceptance, ``[N]``; nan where no transition was needed.
        steps: step sizes at the knots of the schedule, in units of each latent's width, ``[K, N]``.
        backwards: whether the chains started in p(z|x) and their mean of 1/w is unbiased for 1/p(x).
    """

    log_weights: Tensor
    acceptance: Tensor
    steps: Tensor
    backwards: bool = False

    @property
    def log_px(self) -> Float[Tensor, " points"]:
        """A lower bound of log p(x) in expectation: log mean w. Backwards an upper bound, −log mean 1/w."""
        return self._sign * log_mean(self._sign * self.log_weights)[0]

    @property
    def log_px_variance(self) -> Float[Tensor, " points"]:
        """Of ``log_px`` over repetitions, by the delta method; nan for one chain."""
        return log_mean(self._sign * self.log_weights)[1]

    @property
    def ess(self) -> Float[Tensor, " points"]:
        """Effective chains over C, in [1/C, 1]."""
        logs = self._sign * self.log_weights
        log_sum = logs.logsumexp(0)
        excess = log_excess(log_sum, (2 * logs).logsumexp(0), len(logs))
        # Weights of zero alone: as far from even as weights can be.
        return torch.where(log_sum == -math.inf, 1 / len(logs), torch.exp(-excess))

    @property
    def _sign(self) -> int:
        return -1 if self.backwards else 1

    @staticmethod
    def concatenate(parts: list[Annealed]) -> Annealed:
        """The results of several chunks as one."""
        joined = {
            name: torch.cat([getattr(part, name) for part in parts], -1)
            for name in ("log_weights", "acceptance", "steps")
        }
        return Annealed(**joined, backwards=parts[0].backwards)


@torch.no_grad()
def anneal(
    model: Model,
    x: Shaped[Tensor, "points *event"] | Observed,
    settings: Annealing | None = None,
    memory: int = 2**30,
    seed: int = 0,
    exact: Float[Tensor, "points features"] | None = None,
    folder: Path | str | None = None,
    progress: OnProgress | None = None,
) -> Annealed:
    """Estimate log p(x) of each example by annealed importance sampling.

    Args:
        model: with any prior over vectors, likelihood and posterior; in eval mode meanwhile.
        x: ``[N, *event]``, as the data set's protocol gives it.
        settings: see :class:`Annealing`.
        memory: bytes that decoding with a gradient may take; it does not change the result beyond rounding.
        seed: of all chains; the training stream is left alone.
        exact: z ~ p(z|x), one for each example: the chains run backwards from there. Simulated data have
            it: z ~ p(z), x ~ p(x|z).
        folder: keeps ``ais-*.npz``, a file for each finished chunk; the same call finds them again and
            gives the same numbers.
        progress: called with (points done, points).

    Raises:
        SpecError: latents that are no vectors, a model without likelihood, or too little memory.
        ShapeError: no examples, or ``exact`` of another length.
        NonFiniteError: log p(x, z) or a weight is NaN; the message names the example.

    Cost: N × C × (T − 1) × L gradients of log p(x, z), and a twelfth of that or less for the warm-up at the
    default settings. Differs from Wu et al. 2017: the default start is q(z|x), step sizes are found
    beforehand and frozen, ε varies by 20 % between trajectories, and the mass matrix is q's.
    """
    settings = settings or Annealing()
    if model.likelihood is None:
        raise SpecError("model: has no likelihood; use evaluate_target for a target")
    if x.ndim == 0 or len(x) == 0:
        raise ShapeError(f"x: shape {tuple(x.shape)}; give at least one example, [N, *event]")
    if exact is not None and exact.shape != (len(x), *model.prior.event_shape):
        raise ShapeError(
            f"exact: shape {tuple(exact.shape)}; give one latent for each example, "
            f"{(len(x), *model.prior.event_shape)}"
        )
    chunks, parts = Chunks(folder, "ais"), []
    with evaluating(model):
        for start in range(0, len(x), settings.chunk):
            stop = min(start + settings.chunk, len(x))
            ends = None if exact is None else exact[start:stop]
            chunk = _Chunk(model, settings, memory, seed, start)
            found = chunks.get(
                model,
                {"x": x[start:stop], "exact": ends},
                ("log_weights", "acceptance", "steps"),
                partial(chunk.run, x[start:stop], ends, _within(progress, start, stop, len(x))),
                annealing=asdict(settings),
                seed=seed,
                start=start,
            )
            parts.append(Annealed(**found, backwards=exact is not None))
            if progress is not None:
                progress(stop, len(x))
    return Annealed.concatenate(parts)


def _within(
    progress: OnProgress | None, start: int, stop: int, total: int
) -> Callable[[float], object]:
    """Share of a chunk → points done."""
    if progress is None:
        return lambda share: None
    return lambda share: progress(start + int(share * (stop - start)), total)


@dataclass(frozen=True)
class _Chunk:
    """The chains of one chunk of examples, whose first one is ``first``."""

    model: Model
    settings: Annealing
    memory: int
    seed: int
    first: int

    def run(
        self, x: Examples, exact: Tensor | None, told: Callable[[float], object]
    ) -> dict[str, Tensor]:
        settings, number = self.settings, self.first // self.settings.chunk
        purpose = "annealing" if exact is None else "annealing/backwards"
        # Backwards too, the warm-up is the forward one: the same transitions, whichever way they are used.
        with random.stream(random.derive(self.seed, "annealing/warmup", 0), number):
            start, log_scale = starts(self.model, x, settings.start)
            path = GeometricPath(self.model, x, start, log_scale, self.memory)
            knots, log_steps = self._warm_up(path)
        with random.stream(random.derive(self.seed, purpose, 0), number):
            z = start.draw(settings.chains)
            if exact is not None:
                z = exact.expand(settings.chains, *exact.shape)
            log_weights, acceptance = self._move(path, z, knots, log_steps, exact is not None, told)
        refuse("log_weight", log_weights, not_a_weight(log_weights), self.first)
        found = {"log_weights": log_weights, "acceptance": acceptance, "steps": log_steps.exp()}
        return {name: value.double().cpu() for name, value in found.items()}

    def _warm_up(self, path: GeometricPath) -> tuple[list[int], Tensor]:
        """(t of the knots, log ε ``[K, B]``), by log ε ← log ε + (acceptance − target)/√n at each knot in turn.

        The later half is averaged (Robbins and Monro 1951; Andrieu and Thoms 2008, section 4.2.2). Dual averaging
        swings too far in so few transitions, and across the ε beyond which leapfrog steps are unstable.
        """
        betas, last = self.settings.betas, self.settings.temperatures - 1
        knots = sorted({round(1 + k * (last - 1) / (_KNOTS - 1)) for k in range(_KNOTS)} - {0})
        knots = knots if last > 0 else []
        z = path.start.draw(min(_SCOUTS, self.settings.chains))
        at = self._checked(path.at(z))
        log_step = z.new_zeros(len(path.x))
        found = [log_step.new_zeros(0, len(path.x))]
        turns = -(-self.settings.warmup // max(len(knots), 1))
        for knot in knots:
            late = []
            for turn in range(1, turns + 1):
                z, at, probability = transition(
                    path, z, at, betas[knot], log_step, self.settings.leapfrog
                )
                excess = probability.mean(0) - self.settings.acceptance
                log_step = log_step + excess / math.sqrt(turn)
                if turn > turns // 2:
                    late.append(log_step)
            log_step = torch.stack(late).mean(0)
            found.append(log_step[None])
        return knots, torch.cat(found)

    def _move(
        self,
        path: GeometricPath,
        z: Tensor,
        knots: list[int],
        log_steps: Tensor,
        backwards: bool,
        told: Callable[[float], object],
    ) -> tuple[Tensor, Tensor]:
        """(log w ``[C, B]``, mean acceptance ``[B]``)."""
        betas, count = self.settings.betas, self.settings.temperatures
        at = self._checked(path.at(z))
        rise = betas[-1] - betas[-2] if backwards else betas[1] - betas[0]
        log_weights = rise * at.log_ratio
        total = torch.zeros_like(log_weights[0])
        for done, t in enumerate(reversed(range(1, count)) if backwards else range(1, count)):
            log_step = _interpolate(t, knots, log_steps)
            z, at, probability = transition(path, z, at, betas[t], log_step, self.settings.leapfrog)
            rise = betas[t] - betas[t - 1] if backwards else betas[t + 1] - betas[t]
            log_weights = log_weights + rise * at.log_ratio
            total = total + probability.mean(0)
            told((done + 1) / count)
        return log_weights, total / (count - 1) if count > 1 else total * math.nan

    def _checked(self, at: Densities) -> Densities:
        for name, values in (("log_start", at.start), ("log_joint", at.joint)):
            refuse(name, values, not_a_weight(values), self.first)
        return at


def _interpolate(t: int, knots: list[int], values: Tensor) -> Tensor:
    """``values`` ``[K, B]`` at the knots, linearly between them."""
    right = next(k for k, knot in enumerate(knots) if knot >= t)
    if right == 0 or knots[right] == t:
        return values[right]
    share = (t - knots[right - 1]) / (knots[right] - knots[right - 1])
    return torch.lerp(values[right - 1], values[right], share)
