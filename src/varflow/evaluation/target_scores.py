"""One fit against its exact answers: numbers, each with its Monte-Carlo error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core import random
from varflow.core.errors import NonFiniteError, SpecError
from varflow.evaluation import psis
from varflow.evaluation.exact import Reference, reference
from varflow.model import Model

#: Most samples, and most numbers, in a block of draws; a change changes the random numbers.
_SAMPLES, _NUMBERS = 1 << 14, 1 << 20
#: Steps of the random streams of one fit; draws of p stand in the second half.
_STREAMS = 1 << 32
#: Of a sum of log-densities in float64, relative.
_ROUNDING = 16 * torch.finfo(torch.float64).eps


class Score(NamedTuple):
    """A number about one fit.

    Attributes:
        value: may be infinite.
        error: its Monte-Carlo error, one standard deviation; 0 where nothing is random, NaN where it
            cannot be told.
        unit: of both.
        how: the estimator in words.
    """

    value: float
    error: float
    unit: str
    how: str


class Scores(NamedTuple):
    """All that was measured of one fit.

    Attributes:
        numbers: name → score.
        khat: Pareto k̂ of the weights π/q of the samples of q; NaN where there are too few.
        mode_shares: ``[M]``, the share of q's samples in each mode, or None.
        notes: what was left out, and why.
    """

    numbers: dict[str, Score]
    khat: float
    mode_shares: Tensor | None
    notes: list[str]


@torch.no_grad()
def score(model: Model, samples: int, seed: int, fit: int) -> Scores:
    """Measure one fit from ``samples`` draws of q and as many of p.

    Args:
        model: whose q does not read x.
        samples: S.
        seed: of all draws; each fit has streams of its own.
        fit: its number, for the streams and for messages.

    Raises:
        NonFiniteError: a log-weight is NaN or +∞.
    """
    blocks = _blocks(model)
    if blocks:
        return _separate(model, blocks, samples, seed, fit)
    exact = reference(model)
    extended = model.posterior.uses_gradient
    numbers: dict[str, Score] = {}
    notes: list[str] = []
    space = " on the extended space of positions and momenta" if extended else ""
    log_weight, moments = _draw_q(model, exact, samples, seed, fit)
    numbers.update(_reverse(log_weight, exact.log_normalizer, space))
    numbers.update(moments.scores(exact))
    try:
        numbers.update(_forward(model, exact, samples, seed, fit))
    except SpecError as error:
        notes.append(f"kl_p_q, eubo, ess_forward: left out; {error}")
    if exact.sample is None or exact.log_normalizer is None:
        what = "exact samples" if exact.log_normalizer is not None else "log Z"
        notes.append(f"kl_p_q, eubo, ess_forward: left out; {what} of the target are not known")
    if exact.log_normalizer is None:
        notes.append("kl_q_p, log_z_error: left out; log Z of the target is not known")
    if extended:
        notes.append(
            "kl_q_p, ess_reverse: of position and momentum together, which is never less than the KL of "
            "the positions alone"
        )
    return Scores(numbers, float(psis.pareto_k(log_weight)), moments.mode_shares, notes)


def _blocks(model: Model) -> int:
    """How many data sets of its own the likelihood has; 0 for a single one."""
    likelihood: Any = model.likelihood
    if getattr(likelihood, "batches", None) != "separate":
        return 0
    return int(likelihood.blocks)


def _separate(model: Model, blocks: int, samples: int, seed: int, fit: int) -> Scores:
    """Each block is a data set with a z of its own; their bounds and evidences are added."""
    each = max(2, samples // blocks)
    home = _home(model).device
    elbo = variance = evidence = 0.0
    for block in range(blocks):
        x = torch.tensor([block], device=home)
        exact = reference(model, x)
        with random.stream(seed, _STREAMS * fit + block):
            log_weight = _finite(model.terms(x, each).log_weight, fit)
        elbo += log_weight.mean().item()
        variance += log_weight.var().item() / each
        evidence += exact.log_normalizer or 0.0
    error = math.sqrt(variance)
    how = f"sum over {blocks} blocks that count as data sets of their own, {each} samples each, of "
    numbers = {
        "elbo": Score(elbo, error, "nats", how + "the mean of log π − log q"),
        "kl_q_p": Score(evidence - elbo, error, "nats", how + "log p(block) − ELBO"),
    }
    note = "batches=separate: bounds and evidences are sums over the blocks, not of the data as a whole"
    return Scores(numbers, math.nan, None, [note])


# -- samples of q ----------------------------------------------------------------------------------


class _Moments:
    """Sums over samples of q, for its mean, covariance and modes; float64."""

    def __init__(self, exact: Reference) -> None:
        self.exact, self.count = exact, 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0
        self.fourth = 0.0
        self.modes: Tensor | float = 0.0
        self.mode_squares: Tensor | float = 0.0

    def add(self, z: Tensor) -> None:
        self.count += len(z)
        if self.exact.mean is not None:
            offset = z.double() - self.exact.mean.double()
            self.first = self.first + offset.sum(0)
            self.second = self.second + offset.T @ offset
            self.fourth += offset.square().sum(-1).square().sum().item()
        if self.exact.mode_probabilities is not None:
            shares = self.exact.mode_probabilities(z).double()
            self.modes = self.modes + shares.sum(0)
            self.mode_squares = self.mode_squares + shares.T @ shares

    @property
    def mode_shares(self) -> Tensor | None:
        return self.modes / self.count if isinstance(self.modes, Tensor) else None

    def scores(self, exact: Reference) -> Iterator[tuple[str, Score]]:
        if isinstance(self.first, Tensor) and isinstance(self.second, Tensor):
            offset = self.first / self.count
            covariance = self.second / self.count - offset[:, None] * offset
            noise = math.sqrt(covariance.trace().item() / self.count)
            how = "‖E_q z − E_p z‖; the error is the size of the noise in E_q z"
            yield "mean_error", Score(offset.norm().item(), noise, "", how)
            if exact.covariance is not None:
                gap = (covariance - exact.covariance.double()).norm().item()
                spread = self.fourth / self.count - covariance.square().sum().item()
                noise = math.sqrt(max(spread, 0.0) / self.count)
                how = "Frobenius norm of Cov_q − Cov_p; the error is the size of the noise in Cov_q"
                yield "covariance_error", Score(gap, noise, "", how)
        if isinstance(self.modes, Tensor) and isinstance(self.mode_squares, Tensor):
            yield from _coverage(self.modes, self.mode_squares, self.count, exact.mode_weights)


def _coverage(
    sums: Tensor, squares: Tensor, count: int, weights: Tensor | None
) -> Iterator[tuple[str, Score]]:
    shares = sums / count
    spread = squares / count - shares[:, None] * shares
    modes = len(shares)
    if modes < 2:
        return

    def error(slope: Tensor) -> float:
        # To first order, and the second order that is left where the slope is 0.
        slope = torch.where(shares > 0, slope, 0.0)
        first = (slope @ spread @ slope).clamp_min(0).item() / count
        second = (modes - 1) / (2 * count * math.log(modes))
        return math.sqrt(first + second**2)

    entropy = -torch.xlogy(shares, shares).sum().item() / math.log(modes)
    slope = -(shares.log() + 1) / math.log(modes)
    how = f"entropy of the shares of q's samples in the {modes} modes over log {modes}: 0 is one mode, 1 all alike"
    if weights is not None:
        weights = weights.double()
        exact = -torch.xlogy(weights, weights).sum().item() / math.log(modes)
        how += f"; the target itself has {exact:.6g}"
    yield "mode_coverage", Score(entropy, error(slope), "", how)
    if weights is not None:
        middle = 0.5 * (shares + weights)
        parts = torch.xlogy(shares, shares / middle) + torch.xlogy(weights, weights / middle)
        value = 0.5 * parts.sum().item() / math.log(2)
        slope = 0.5 * (shares / middle).log() / math.log(2)
        how = "Jensen-Shannon divergence of these shares from the target's, in bits: 0 is right, 1 the most"
        yield "mode_divergence", Score(max(value, 0.0), error(slope), "bits", how)


def _draw_q(
    model: Model, exact: Reference, samples: int, seed: int, fit: int
) -> tuple[Tensor, _Moments]:
    q = model.infer()
    moments, parts = _Moments(exact), []
    for stream, count in _cut(samples, model.prior.event_shape[0]):
        with random.stream(seed, _STREAMS * fit + stream):
            terms = model.terms(None, count, q=q)
        parts.append(_finite(terms.log_weight, fit))
        moments.add(terms.z)
    return torch.cat(parts), moments


def _reverse(
    log_weight: Float[Tensor, " samples"], log_normalizer: float | None, space: str
) -> Iterator[tuple[str, Score]]:
    """What π/q at samples of q tells."""
    count = len(log_weight)
    elbo, error = _mean(log_weight)
    yield "elbo", Score(elbo, error, "nats", f"mean of log π − log q over samples of q{space}")
    log_z = torch.logsumexp(log_weight, 0).item() - math.log(count)
    ess, ess_error, relative = _ess(log_weight)
    if log_normalizer is None:
        how = "log of the mean of π/q over samples of q"
        yield "log_z", Score(log_z, relative, "nats", how)
    else:
        how = f"log Z − ELBO{space}"
        yield "kl_q_p", Score(log_normalizer - elbo, error, "nats", how)
        how = "log of the mean of π/q over samples of q, less the exact log Z"
        yield "log_z_error", Score(log_z - log_normalizer, relative, "nats", how)
    how = "(Σw)² / (S Σw²) of the weights π/q of samples of q"
    yield "ess_reverse", Score(ess, ess_error, "", how)


def _ess(log_weight: Tensor) -> tuple[float, float, float]:
    """Effective share of the samples, its error, and the relative error of the mean weight."""
    count = len(log_weight)
    top = log_weight.max()
    if top == -math.inf:
        return 0.0, math.nan, math.nan
    w = (log_weight - top).exp()
    first, second = w.mean(), w.square().mean()
    ess = (first.square() / second).item()
    influence = ess * (2 * w / first - w.square() / second)
    relative = w.std() / first
    return ess, influence.std().item() / math.sqrt(count), relative.item() / math.sqrt(count)


# -- samples of p ----------------------------------------------------------------------------------


def _forward(
    model: Model, exact: Reference, samples: int, seed: int, fit: int
) -> Iterator[tuple[str, Score]]:
    """What π/q at exact samples of p tells."""
    if exact.sample is None or exact.log_normalizer is None:
        return
    q = model.infer()
    parts = []
    for stream, count in _cut(samples, model.prior.event_shape[0]):
        with random.stream(seed, _STREAMS * fit + _STREAMS // 2 + stream):
            z = exact.sample(count).to(_home(model).dtype)
        parts.append(_finite(model.log_joint(z) - q.log_prob(z), fit, "p", math.nan))
    log_ratio = torch.cat(parts)
    eubo, error = _mean(log_ratio)
    how = "mean of log π − log q over exact samples of p: an upper bound of log Z"
    yield "eubo", Score(eubo, error, "nats", how)
    kl = Score(eubo - exact.log_normalizer, error, "nats", "EUBO − log Z")
    yield "kl_p_q", kl
    log_mean = torch.logsumexp(log_ratio, 0).item() - math.log(len(log_ratio))
    ess = math.exp(min(exact.log_normalizer - log_mean, 0.0)) if log_mean < math.inf else 0.0
    w = (log_ratio - log_ratio.max()).exp()
    spread = (w.std() / w.mean()).item() / math.sqrt(len(w))
    how = (
        "1 over the mean of p/q over exact samples of p; an unseen part of p would make it smaller"
    )
    yield "ess_forward", Score(ess, ess * spread, "", how)


# -- shared ------------------------------------------------------------------------------------------


def _cut(samples: int, features: int) -> Iterator[tuple[int, int]]:
    """(number, size) of the blocks of draws."""
    size = max(1, min(_SAMPLES, _NUMBERS // features))
    for stream, start in enumerate(range(0, samples, size)):
        yield stream, min(size, samples - start)


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error, with the rounding of the terms that cancel in it; (±∞, NaN) where a value
    is infinite.
    """
    mean = values.mean().item()
    rounding = _ROUNDING * max(abs(mean), 1.0)
    return mean, math.hypot((values.std() / math.sqrt(len(values))).item(), rounding)


def _finite(log_weight: Tensor, fit: int, whose: str = "q", forbidden: float = math.inf) -> Tensor:
    """log π − log q in float64; NaN is refused, and +∞ at a sample of q."""
    values = log_weight.double()
    wrong = values.isnan() | (values == forbidden)
    if bool(wrong.any()):
        what = "NaN" if bool(values[wrong][0].isnan()) else "+∞"
        raise NonFiniteError(
            f"log π − log q: was {what} at {int(wrong.sum())} of {len(values)} samples of {whose} in fit {fit}; "
            "look for the part of that fit that diverged, or evaluate the others: run.members()"
        )
    return values


def _home(model: Model) -> Tensor:
    return next(itertools.chain(model.parameters(), model.buffers()))
