"""Running sums over the samples of a block of points."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from varflow.core.errors import NonFiniteError
from varflow.evaluation import psis
from varflow.model import Terms

_PARTS = ("log_weight", "log_likelihood", "log_prior", "log_q", "ladj", "kl")


@dataclass(frozen=True)
class Importance:
    """What S samples say of each test point: float64 tensors ``[N]`` on the CPU, in nats.

    Attributes:
        log_px: log p̂(x).
        log_px_variance: of log p̂(x) over repetitions, by the delta method: the relative variance of the
            mean weight. nan for one sample. log p̂(x) is low by about half of it.
        elbo: mean of log w.
        log_likelihood, log_prior, log_q, ladj, kl: means of the terms; kl = log_q − log_prior, ladj is
            the flow's.
        elbo_variance, log_likelihood_variance, kl_variance, ladj_variance: of these means.
        ess: effective sample size over S, (Σw)²/(S Σw²), in [1/S, 1].
        khat: Pareto k̂ of the weights (:func:`varflow.evaluation.pareto_k`); nan below 25 samples.
    """

    log_px: Tensor
    log_px_variance: Tensor
    elbo: Tensor
    elbo_variance: Tensor
    log_likelihood: Tensor
    log_likelihood_variance: Tensor
    log_prior: Tensor
    log_q: Tensor
    ladj: Tensor
    ladj_variance: Tensor
    kl: Tensor
    kl_variance: Tensor
    ess: Tensor
    khat: Tensor

    def shifted(self, ladj: Tensor) -> Importance:
        """The same of the stored values, whose log-densities are those of x plus ``ladj`` ``[N]``."""
        moved = {name: getattr(self, name) + ladj for name in ("log_px", "elbo", "log_likelihood")}
        return replace(self, **moved)

    @staticmethod
    def concatenate(parts: list[Importance]) -> Importance:
        """The results of several batches as one."""
        return Importance(
            **{
                f.name: torch.cat([getattr(part, f.name) for part in parts])
                for f in fields(Importance)
            }
        )


class Sums:
    """Running sums over the samples of one block of points, in float64.

    Args:
        samples: S, how many there will be; it sets how many of the largest weights are kept.
        first: the position of the block's first point, for messages.
    """

    def __init__(self, samples: int, first: int) -> None:
        self.samples, self.first = samples, first
        self.done = 0
        self.tail = psis.tail_length(samples) + 1 if samples >= psis.FEWEST else 0
        self.pending: list[tuple[slice, Tensor]] = []
        self.tolerance = 0.0

    def add(self, terms: Terms, points: slice) -> None:
        parts = torch.stack(
            [
                terms.log_weight.double(),
                terms.log_likelihood.double(),
                terms.log_prior.double(),
                terms.log_q.double(),
                terms.draw.ladj.double(),
                terms.kl.double(),
            ]
        )
        self._refuse(parts, points)
        self.pending.append((points, parts))
        # log w is a sum of rounded terms: differences below this are no property of the weights.
        self.tolerance = 64 * torch.finfo(terms.log_weight.dtype).eps

    def close(self, count: int) -> None:
        """Fold the ``count`` samples that were added into the sums."""
        self.fold(self._joined(), count)

    def _joined(self) -> Tensor:
        """What was added since the last fold, ``[terms, count, points]``."""
        columns: dict[int, list[Tensor]] = {}
        for points, parts in self.pending:
            columns.setdefault(points.start, []).append(parts)
        self.pending = []
        return torch.cat([torch.cat(column, 1) for column in columns.values()], 2)

    def fold(self, parts: Tensor, count: int) -> None:
        """Take in the terms ``[terms, count, points]``, log w first."""
        log_weight = parts[0]
        log_sum, log_squares = log_weight.logsumexp(0), (2 * log_weight).logsumexp(0)
        mean = parts.mean(1)
        squares = (parts - mean[:, None]).square().sum(1)
        if self.done == 0:
            self.log_sum, self.log_squares, self.mean, self.squares = (
                log_sum,
                log_squares,
                mean,
                squares,
            )
            self.top = log_weight.new_empty(log_weight.shape[1], 0)
        else:
            self.log_sum = torch.logaddexp(self.log_sum, log_sum)
            self.log_squares = torch.logaddexp(self.log_squares, log_squares)
            # Chan, Golub and LeVeque 1983: merge two means and sums of squares without cancellation.
            total = self.done + count
            gap = mean - self.mean
            self.mean = self.mean + gap * (count / total)
            self.squares = self.squares + squares + gap.square() * (self.done * count / total)
        if self.tail:
            top = torch.cat([self.top, log_weight.T], 1)
            self.top = top.topk(min(self.tail, top.shape[1]), dim=1).values
        self.done += count

    def result(self) -> Importance:
        samples = self.done
        log_px = self.log_sum - math.log(samples)
        # S Σw²/(Σw)² ≥ 1; where the weights are constant, rounding may fall short of it.
        excess = (math.log(samples) + self.log_squares - 2 * self.log_sum).clamp_min(0.0)
        ess = torch.where(self.log_sum == -math.inf, 0.0, torch.exp(-excess))
        nan = torch.full_like(log_px, math.nan)
        several = samples > 1
        spread = torch.expm1(excess) / (samples - 1) if several else nan
        variance = self.squares / (samples * (samples - 1)) if several else self.squares * math.nan
        if self.tail:
            tolerance = self.tolerance * torch.maximum(log_px.abs(), torch.ones_like(log_px))
            khat = psis.tail_k(self.top, tolerance)
        else:
            khat = nan
        means = dict(zip(_PARTS, self.mean, strict=True))
        variances = dict(zip(_PARTS, variance, strict=True))
        found = {
            "log_px": log_px,
            "log_px_variance": spread,
            "elbo": means["log_weight"],
            "elbo_variance": variances["log_weight"],
            "ess": ess,
            "khat": khat,
            **{name: means[name] for name in _PARTS[1:]},
            **{f"{name}_variance": variances[name] for name in ("log_likelihood", "kl", "ladj")},
        }
        return Importance(**{name: value.cpu() for name, value in found.items()})

    def _refuse(self, parts: Tensor, points: slice) -> None:
        """Raise for the term that makes a weight NaN or infinite.

        The posterior is asked first: a latent that is NaN spoils the other terms too.
        """
        wrong = parts[0].isnan() | (parts[0] == math.inf)
        if not bool(wrong.any()):
            return
        named = {"log_q": -parts[3], "log_prior": parts[2], "log_likelihood": parts[1]}
        for name, part in {**named, "log_weight": parts[0]}.items():
            guilty = part.isnan() | (part == math.inf)
            if bool(guilty.any()):
                value = "NaN" if bool(part[guilty][0].isnan()) else "infinite"
                point = self.first + points.start + int(guilty.any(0).nonzero()[0])
                raise NonFiniteError(
                    f"{name}: was {value} at point {point}; look for a part of the model that "
                    "diverged, or load the last weights that were finite"
                )
