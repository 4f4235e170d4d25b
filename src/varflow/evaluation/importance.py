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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from varflow import random
from varflow.errors import NonFiniteError, ShapeError, SpecError
from varflow.evaluation import psis
from varflow.flows.flow import positive
from varflow.model import Model, Terms
from varflow.posteriors.posterior import Conditional, Draw

#: A block of latents; changing either changes the random numbers of every evaluation.
POINTS, SAMPLES = 128, 64

#: Rows (samples × points) decoded at once, however large the memory: more of them fall out of the cache.
ROWS = 4096

#: Copies of the decoder's largest activation that count against the memory: its input, its output,
#: and two temporaries of the activation or of the likelihood.
COPIES = 4

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

    @staticmethod
    def concatenate(parts: list[Importance]) -> Importance:
        """The results of several batches as one."""
        return Importance(
            **{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Importance)}
        )


@torch.no_grad()
def importance_sample(
    model: Model,
    x: Shaped[Tensor, "points *event"],
    samples: int = 1000,
    memory: int = 2**30,
    seed: int = 0,
    first: int = 0,
    progress: Callable[[int, int], object] | None = None,
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

    Raises:
        SpecError: samples or memory is too small.
        NonFiniteError: a term of log w is NaN, or a weight is infinite; the message names the term.

    Cost: one encoder pass for each example, S draws and decoder passes; memory independent of S and N.
    """
    positive(samples=samples)
    if first % POINTS:
        raise SpecError(f"first: was {first}; use a multiple of {POINTS}, the size of a block of points")
    if x.ndim == 0 or len(x) == 0:
        raise ShapeError(f"x: shape {tuple(x.shape)}; give at least one example, [N, *event]")
    training = model.training
    model.eval()
    try:
        parts = []
        for start in range(0, len(x), POINTS):
            block = x[start : start + POINTS]
            parts.append(_block(model, block, samples, memory, seed, first + start))
            if progress is not None:
                progress(start + len(block), len(x))
    finally:
        model.train(training)
    return Importance.concatenate(parts)


def _block(model: Model, x: Tensor, samples: int, memory: int, seed: int, first: int) -> Importance:
    q = model.posterior(x)
    sums = _Sums(samples, first)
    rows = 0
    for number, start in enumerate(range(0, samples, SAMPLES)):
        count = min(SAMPLES, samples - start)
        # One step for each block of latents; 2³² blocks of samples for each block of points.
        with random.stream(seed, (first // POINTS << 32) + number):
            draw = q.draw(count, log_joint=lambda z: model.log_joint(z, x))
        rows = rows or rows_within(memory, model, x, draw)
        for chunk, points in _slices(count, len(x), rows):
            sums.add(model.terms(x[points], samples=0, q=_Drawn(draw, chunk, points)), points)
        sums.close(count)
    return sums.result()


class _Drawn(Conditional):
    """A slice of samples that were already drawn, so that the model's own ``terms`` evaluates it."""

    local = ()

    def __init__(self, draw: Draw, samples: slice, points: slice) -> None:
        self.slice = Draw(*(field[samples, points] for field in draw))

    def draw(self, samples: int = 0, log_joint: Any = None, hold: bool = False) -> Draw:
        return self.slice

    def log_prob(self, z: Tensor) -> Tensor:
        raise SpecError("log_prob: these are samples; ask the posterior itself")


def rows_within(memory: int, model: Model, x: Tensor, draw: Draw) -> int:
    """How many rows (samples × points) fit into ``memory`` bytes of decoding, at most ``ROWS``.

    The largest activation of a row is measured: the likelihood runs on one and on two rows, and each
    module's output may grow in between (weights, which are outputs of parametrizations, do not).
    """
    one, two = (_activations(model, x[:1], draw.z[:1, :1].repeat(n, *[1] * (draw.z.ndim - 1))) for n in (1, 2))
    event = x[0].numel() * x.element_size()
    largest = max([event, *(two[module] - one[module] for module in two)])
    rows = memory // (COPIES * largest)
    if rows < 1:
        raise SpecError(
            f"memory: was {memory} bytes; decoding one latent takes about {COPIES * largest}, "
            "use at least that"
        )
    return min(rows, ROWS)


def _activations(model: Model, x: Tensor, z: Tensor) -> dict[nn.Module, int]:
    """The largest output of each module of the likelihood, in bytes."""
    sizes: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: object, output: object) -> None:
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor):
                size = tensor.numel() * tensor.element_size()
                sizes[module] = max(sizes.get(module, 0), size)

    with ExitStack() as hooks:
        for module in model.likelihood.modules():
            hooks.callback(module.register_forward_hook(note).remove)
        model.likelihood.log_prob(x, z)  # type: ignore[operator]
    return sizes


def _slices(samples: int, points: int, rows: int) -> list[tuple[slice, slice]]:
    """Rectangles of at most ``rows`` entries that tile [samples, points], by points first."""
    width = min(points, rows)
    height = max(rows // width, 1)
    return [
        (slice(s, s + height), slice(p, p + width))
        for p in range(0, points, width)
        for s in range(0, samples, height)
    ]


class _Sums:
    """Running sums over the samples of one block of points, in float64."""

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
        columns: dict[int, list[Tensor]] = {}
        for points, parts in self.pending:
            columns.setdefault(points.start, []).append(parts)
        parts = torch.cat([torch.cat(column, 1) for column in columns.values()], 2)
        self.pending = []
        log_weight = parts[0]
        log_sum, log_squares = log_weight.logsumexp(0), (2 * log_weight).logsumexp(0)
        mean = parts.mean(1)
        squares = (parts - mean[:, None]).square().sum(1)
        if self.done == 0:
            self.log_sum, self.log_squares, self.mean, self.squares = log_sum, log_squares, mean, squares
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
        mean = dict(zip(_PARTS, self.mean, strict=True))
        variances = dict(zip(_PARTS, variance, strict=True))
        return Importance(
            log_px=log_px.cpu(),
            log_px_variance=spread.cpu(),
            elbo=mean["log_weight"].cpu(),
            elbo_variance=variances["log_weight"].cpu(),
            log_likelihood=mean["log_likelihood"].cpu(),
            log_likelihood_variance=variances["log_likelihood"].cpu(),
            log_prior=mean["log_prior"].cpu(),
            log_q=mean["log_q"].cpu(),
            ladj=mean["ladj"].cpu(),
            ladj_variance=variances["ladj"].cpu(),
            kl=mean["kl"].cpu(),
            kl_variance=variances["kl"].cpu(),
            ess=ess.cpu(),
            khat=khat.cpu(),
        )

    def _refuse(self, parts: Tensor, points: slice) -> None:
        """Raise for the first term that makes a weight NaN or infinite."""
        log_weight = parts[0]
        if not bool((log_weight.isnan() | (log_weight == math.inf)).any()):
            return
        for index, (name, sign) in enumerate((("log_likelihood", 1), ("log_prior", 1), ("log_q", -1)), 1):
            wrong = parts[index].isnan() | (sign * parts[index] == math.inf)
            if bool(wrong.any()):
                point = self.first + points.start + int(wrong.any(0).nonzero()[0])
                value = parts[index][wrong][0].item()
                raise NonFiniteError(
                    f"{name}: was {value} at point {point}; look for a diverged part of the model, or "
                    "load the last weights that were finite"
                )
        raise NonFiniteError(f"log_weight: overflowed near point {self.first + points.start}")
