"""The importance-sampled log-likelihood, streamed.

    log p̂(x) = log 1/S Σ_s w_s,   w_s = p(x|z_s) p(z_s) / q(z_s|x),   z_s ~ q(z|x)

(Burda, Grosse and Salakhutdinov 2016, eq. 8; Rezende and Mohamed 2015, appendix). E log p̂ is a lower
bound of log p(x), tighter with every sample; S = 1 is the ELBO.

Latents are drawn in blocks of 128 points × 64 samples, each block with random numbers of its own, so a
result does not depend on how much memory it was computed in. Each block is decoded in slices that fit
the memory, and only running sums and the largest weights are kept: any S fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError, positive
from varflow.core.observed import Examples, Observed, parts_of
from varflow.evaluation import psis
from varflow.evaluation.memory import SlicedJoint, rows_within, slices
from varflow.evaluation.points import OnProgress, evaluating, not_a_weight, refuse
from varflow.model import Model, Terms
from varflow.posteriors.posterior import Conditional, Draw

#: A block of latents; changing either changes the random numbers of every evaluation.
POINTS, SAMPLES = 128, 64

#: The terms that are averaged, log w first.
_TERMS = ("log_weight", "log_likelihood", "log_prior", "log_q", "ladj", "kl")


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
        names = [f.name for f in fields(Importance)]
        return Importance(**{n: torch.cat([getattr(part, n) for part in parts]) for n in names})


@torch.no_grad()
def importance_sample(
    model: Model,
    x: Shaped[Tensor, points * event] | Observed,
    samples: int = 1000,
    memory: int = 2**30,
    seed: int = 0,
    first: int = 0,
    progress: OnProgress | None = None,
    keys: Sequence[int] | None = None,
) -> Importance:
    """Estimate log p(x), the ELBO and its terms for each example of x.

    Args:
        model: evaluated in eval mode; its mode is restored.
        x: ``[N, *event]``, as the data set's protocol gives it.
        samples: S for each example.
        memory: bytes that decoding may take: rows decoded at once × 4 × the largest activation of a
            row, which is measured. The bound does not change the result beyond rounding.
        seed: of the latents; the training stream is left alone.
        first: the position of x[0] in its data set, a multiple of 128, so that a data set that is
            evaluated batch by batch does not use the same random numbers twice.
        progress: called with (points done, points) after each block of points.
        keys: an integer for each x. Its random numbers then depend on that key and the seed alone, and no more on its
            place, so that a row has the same estimate alone and among others.

    Raises:
        SpecError: samples or memory is too small.
        NonFiniteError: a term of log w is NaN, or a weight is infinite; the message names the term.

    Cost: one encoder pass for each example, S draws and decoder passes; memory independent of S and N.
    """
    positive(samples=samples)
    if first % POINTS:
        raise SpecError(
            f"first: was {first}; use a multiple of {POINTS}, the size of a block of points"
        )
    if x.ndim == 0 or len(x) == 0:
        raise ShapeError(f"x: shape {tuple(x.shape)}; give at least one example, [N, *event]")
    total, context = model.condition_sum, parts_of(x)[1]
    if total is not None and context is not None and bool(total.unknown(context).any()):
        from varflow.evaluation.unknown_condition import summed

        def under(known: Examples, own: Sequence[int] | None) -> Importance:
            return importance_sample(model, known, samples, memory, seed, first, keys=own)

        return summed(total, x, keys, under)
    parts = []
    with evaluating(model):
        for start in range(0, len(x), POINTS):
            block = x[start : start + POINTS]
            sums = Sums(samples, first + start)
            own = None if keys is None else keys[start : start + POINTS]
            fill(sums, model, block, memory, seed, own)
            parts.append(sums.result())
            if progress is not None:
                progress(start + len(block), len(x))
    return Importance.concatenate(parts)


def fill(
    sums: Sums, model: Model, x: Examples, memory: int, seed: int, keys: Sequence[int] | None = None
) -> None:
    """Draw and decode the samples that ``sums`` waits for, of a block of at most 128 points."""
    samples, first = sums.samples, sums.first
    q = model.posterior(x)
    joint, rows = SlicedJoint(model, x, memory), 0
    for number, start in enumerate(range(0, samples, SAMPLES)):
        count = min(SAMPLES, samples - start)
        # One step for each block of latents; 2³² blocks of samples for each block of points.
        step = (first // POINTS << 32) + number
        source = random.Stream(seed, step) if keys is None else random.ByRow(seed, keys, number)
        with random.use(source):
            draw = q.draw(count, log_joint=joint)
        rows = rows or rows_within(memory, model, x, draw)
        for chunk, points in slices(count, len(x), rows):
            sums.add(model.terms(x[points], samples=0, q=_Drawn(draw, chunk, points)), points)
        sums.close(count)


def log_mean(
    log_weights: Float[Tensor, "samples points"],
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """log 1/S Σ w and its variance over repetitions, by the delta method; nan for one weight."""
    samples, log_sum = len(log_weights), log_weights.logsumexp(0)
    excess = log_excess(log_sum, (2 * log_weights).logsumexp(0), samples)
    variance = torch.expm1(excess) / (samples - 1) if samples > 1 else excess * math.nan
    return log_sum - math.log(samples), variance


def log_excess(log_sum: Tensor, log_squares: Tensor, samples: int) -> Tensor:
    """log S Σw²/(Σw)² from log Σw and log Σw²: minus the log of the effective share of S weights.

    It is at least 0; where the weights are constant, rounding may fall short of that.
    """
    return (math.log(samples) + log_squares - 2 * log_sum).clamp_min(0.0)


class _Drawn(Conditional):
    """A slice of samples that were already drawn, so that the model's own ``terms`` evaluates it."""

    local = ()

    def __init__(self, draw: Draw, samples: slice, points: slice) -> None:
        z, log_q, z0, ladj = (t[samples, points] for t in draw[:4])
        joint = None if draw.log_joint is None else draw.log_joint[samples, points]
        self.slice = Draw(z, log_q, z0, ladj, log_joint=joint)

    def draw(self, samples: int = 0, log_joint: Any = None, hold: bool = False) -> Draw:
        return self.slice

    def log_prob(self, z: Tensor) -> Tensor:
        raise SpecError("log_prob: these are samples; ask the posterior itself")


class Sums:
    """Running sums over the samples of one block of points, in float64.

    Args:
        samples: S, how many there will be; it sets how many of the largest weights are kept.
        first: the position of the block's first point, for messages.
    """

    log_sum: Tensor
    log_squares: Tensor
    mean: Tensor
    squares: Tensor
    top: Tensor

    def __init__(self, samples: int, first: int) -> None:
        self.samples: int = samples
        self.first: int = first
        self.done: int = 0
        self.tail: int = psis.tail_length(samples) + 1 if samples >= psis.FEWEST else 0
        self.pending: list[tuple[slice, Tensor]] = []
        self.tolerance: float = 0.0

    def add(self, terms: Terms, points: slice) -> None:
        found = [terms.draw.ladj if name == "ladj" else getattr(terms, name) for name in _TERMS]
        parts = torch.stack([term.double() for term in found])
        self._refuse(parts, self.first + points.start)
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
            self.log_sum, self.log_squares = log_sum, log_squares
            self.mean, self.squares = mean, squares
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
        excess = log_excess(self.log_sum, self.log_squares, samples)
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
        means = dict(zip(_TERMS, self.mean, strict=True))
        variances = dict(zip(_TERMS, variance, strict=True))
        found = {
            "log_px": log_px,
            "log_px_variance": spread,
            "elbo": means["log_weight"],
            "elbo_variance": variances["log_weight"],
            "ess": ess,
            "khat": khat,
            **{name: means[name] for name in _TERMS[1:]},
            **{f"{name}_variance": variances[name] for name in ("log_likelihood", "kl", "ladj")},
        }
        return Importance(**{name: value.cpu() for name, value in found.items()})

    def _refuse(self, parts: Tensor, first: int) -> None:
        """Raise for the term that makes a weight NaN or infinite.

        The posterior is asked first: a latent that is NaN spoils the other terms too.
        """
        if not bool(not_a_weight(parts[0]).any()):
            return
        log_weight, log_likelihood, log_prior, log_q = parts[:4]
        named = {"log_q": -log_q, "log_prior": log_prior, "log_likelihood": log_likelihood}
        for name, part in {**named, "log_weight": log_weight}.items():
            refuse(name, part, not_a_weight(part), first)
