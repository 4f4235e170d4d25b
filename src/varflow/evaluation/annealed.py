"""What annealed importance sampling is told, and what it says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import SpecError, positive, unknown

Schedule = Literal["sigmoidal", "geometric", "linear"]
StartName = Literal["posterior", "prior"]


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
        sign = -1 if self.backwards else 1
        chains = len(self.log_weights)
        return sign * ((sign * self.log_weights).logsumexp(0) - math.log(chains))

    @property
    def log_px_variance(self) -> Float[Tensor, " points"]:
        """Of ``log_px`` over repetitions, by the delta method; nan for one chain."""
        chains = len(self.log_weights)
        if chains == 1:
            return torch.full_like(self.log_weights[0], math.nan)
        return torch.expm1(self._excess) / (chains - 1)

    @property
    def ess(self) -> Float[Tensor, " points"]:
        """Effective chains over C, in [1/C, 1]."""
        return torch.exp(-self._excess)

    @property
    def _excess(self) -> Tensor:
        """log C Σw²/(Σw)², at least 0."""
        logs = -self.log_weights if self.backwards else self.log_weights
        one, two = logs.logsumexp(0), (2 * logs).logsumexp(0)
        excess = math.log(len(logs)) + two - 2 * one
        # Weights of zero alone: as far from even as weights can be.
        excess = torch.where(one == -math.inf, math.log(len(logs)), excess)
        return torch.where(excess > 0, excess, 0.0)

    @staticmethod
    def concatenate(parts: list[Annealed]) -> Annealed:
        """The results of several chunks as one."""
        joined = {
            name: torch.cat([getattr(part, name) for part in parts], -1)
            for name in ("log_weights", "acceptance", "steps")
        }
        return Annealed(**joined, backwards=parts[0].backwards)
