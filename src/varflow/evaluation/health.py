"""What the latents of a model do: which are used, and whether the aggregated posterior is the prior."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError, positive
from varflow.core.observed import Examples
from varflow.evaluation.importance import POINTS
from varflow.evaluation.memory import SlicedJoint
from varflow.evaluation.points import evaluating
from varflow.model import Model
from varflow.priors.prior import Prior

#: A latent is active when the variance over data of its posterior mean is above this (Burda et al. 2016).
ACTIVE = 0.01


@dataclass(frozen=True)
class Latents:
    """The posterior of each test point, in float64.

    Attributes:
        mean: E_q[z] ``[N, D]``: exact for a Gaussian, the mean of ``samples`` draws under a flow.
        variance: Var_q[z] ``[N, D]``, likewise.
        noise: variance of ``mean`` itself ``[N, D]``; 0 where it is exact.
        draw: one z ~ q(z|x) for each point ``[N, D]``.
        kl: KL(q(z_d|x) ‖ p(z_d)) ``[N, D]`` in nats, where posterior and prior are diagonal Gaussians;
            else None.
        samples: draws behind a mean; 0 where it is exact.
    """

    mean: Tensor
    variance: Tensor
    noise: Tensor
    draw: Tensor
    kl: Tensor | None
    samples: int


@torch.no_grad()
def latents(
    model: Model,
    batches: Iterable[Examples],
    samples: int = 50,
    seed: int = 0,
    memory: int = 2**30,
) -> Latents:
    """Moments of q(z|x) over a data set, given as batches ``[B, *event]``.

    ``memory`` bounds the bytes that a posterior takes which follows the gradient of log p(x, z).

    Raises:
        SpecError: fewer than two samples.

    Cost: one encoder pass and ``samples`` draws for each point; nothing is decoded.
    """
    positive(samples=samples)
    if samples < 2:
        raise SpecError("samples: was 1; a variance needs at least 2")
    means, variances, draws = [], [], []
    kls: list[Tensor | None] = []
    exact = True
    with evaluating(model):
        for number, x in enumerate(part for batch in batches for part in batch.split(POINTS)):
            q = model.infer(x)
            exact = q.diagonal is not None
            # Negative steps: not the random numbers of importance_sample with the same seed.
            joint = SlicedJoint(model, x, memory)
            with random.stream(seed, -1 - number):
                z = q.draw(1 if exact else samples, log_joint=joint).z
            z = z.double().flatten(2)
            draws.append(z[0])
            if q.diagonal is None:
                means.append(z.mean(0))
                variances.append(z.var(0))
                continue
            mean, log_scale = (moment.double() for moment in q.diagonal)
            means.append(mean)
            variances.append((2 * log_scale).exp())
            groups = q.kl_groups(model.prior)
            kls.append(None if groups is None else groups[0].double())
    variance = torch.cat(variances)
    noise = torch.zeros_like(variance) if exact else variance / samples
    known = [kl for kl in kls if kl is not None]
    kl = torch.cat(known) if known else None
    return Latents(torch.cat(means), variance, noise, torch.cat(draws), kl, 0 if exact else samples)


@dataclass(frozen=True)
class ActiveUnits:
    """How many latents carry information on x.

    Attributes:
        activity: Var over data of E_q[z_d] ``[D]``, unbiased: what sampling adds to it is taken off.
        standard_error: of the activity over test points ``[D]``.
        monte_carlo_error: of the activity, from sampled means ``[D]``.
        count: latents whose activity is above 0.01.
        uncertain, uncertain_monte_carlo: standard deviation of the count that follows from each of
            the two errors, where activities are independent and normal.
    """

    activity: Tensor
    standard_error: Tensor
    monte_carlo_error: Tensor
    count: int
    uncertain: float
    uncertain_monte_carlo: float


def active_units(found: Latents, threshold: float = ACTIVE) -> ActiveUnits:
    """A_d = Var_x(E_q(z|x)[z_d]); a latent is active where A_d > 0.01.

    Under a flow the mean is estimated from samples, and Var_x of it is too large by the mean of
    Var_q[z_d]/S, which is subtracted.

    Raises:
        ShapeError: fewer than two points.

    Source: Burda, Grosse and Salakhutdinov 2016, section 5.2. The correction is ours.
    """
    points = len(found.mean)
    if points < 2:
        raise ShapeError("found: holds one point; the variance over data needs at least two")
    gap = found.mean - found.mean.mean(0)
    biased = gap.square().sum(0) / (points - 1)
    activity = biased - found.noise.mean(0)
    fourth = gap.square().square().mean(0)
    error = ((fourth - gap.square().mean(0).square()).clamp_min(0.0) / points).sqrt()
    noise = (4 * gap.square() * found.noise + 2 * found.noise.square()).sum(0).sqrt() / points
    return ActiveUnits(
        activity,
        error,
        noise,
        int((activity > threshold).sum()),
        _count_error(activity - threshold, error),
        _count_error(activity - threshold, noise),
    )


def _count_error(margin: Tensor, error: Tensor) -> float:
    """sd of a count of {margin > 0} where each margin has a normal error."""
    # No error: a probability of 0 or 1, without the 0/0 of a margin of 0.
    ratio = torch.where(error > 0, margin / torch.where(error > 0, error, 1.0), math.inf)
    p = torch.special.ndtr(ratio)
    return float((p * (1 - p)).sum().sqrt())


@dataclass(frozen=True)
class Aggregate:
    """The aggregated posterior q(z) = mean over x of q(z|x), held against the prior.

    Attributes:
        distance: energy distance 2E‖Z − P‖ − E‖Z − Z′‖ − E‖P − P′‖, unbiased: about 0, and sometimes
            below, where q(z) is the prior.
        standard_error: of the distance over test points, to first order.
        monte_carlo_error: of the distance over draws of the prior, to first order, and the noise.
        noise_mean, noise: mean and standard deviation of the same statistic between two samples of
            the prior; a distance within two of the noise is none.
        points: N, also the size of the prior samples.
        repetitions: pairs of prior samples behind the noise.
        mean, scale: of q(z) ``[D]``.
        prior_mean, prior_scale: of the prior sample ``[D]``.
    """

    distance: float
    standard_error: float
    monte_carlo_error: float
    noise_mean: float
    noise: float
    points: int
    repetitions: int
    mean: Tensor
    scale: Tensor
    prior_mean: Tensor
    prior_scale: Tensor


@torch.no_grad()
def aggregated_distance(
    draws: Shaped[Tensor, "points latent"],
    prior: Prior | Any,
    seed: int = 0,
    repetitions: int = 10,
    limit: int = 4096,
    memory: int = 2**28,
    context: Tensor | None = None,
) -> Aggregate:
    """The energy distance of q(z) from p(z), from one z ~ q(z|x) for each test point.

    It is 0 only for equal distributions, in any number of dimensions and for any prior that can be
    sampled, and needs no density of q(z).

    Args:
        draws: ``[N, D]``.
        prior: sampled N times, and 2·repetitions·N times for the noise.
        seed: of the prior samples.
        repetitions: pairs behind the noise level, at least 2.
        limit: more points than this are left out; the cost grows with the square.
        memory: bytes of the largest block of distances.
        context: c ``[N, C]`` of the points, for a prior p(z|c); its samples are then of the mean of these.

    Raises:
        ShapeError: fewer than two points.
        SpecError: fewer than two repetitions.

    Source: Székely and Rizzo 2013, "Energy statistics"; the U-statistic.

    Cost: 3 (repetitions + 1) N² D / 2 multiplications, in float64.
    """
    if repetitions < 2:
        raise SpecError(f"repetitions: was {repetitions}; the noise level needs at least 2")
    if len(draws) < 2:
        raise ShapeError(f"draws: shape {tuple(draws.shape)}; a distance needs at least two points")
    z = draws[:limit].double()

    given = () if context is None else (context[: len(z)],)

    def reference(step: int) -> Tensor:
        with random.stream(seed, step):
            drawn: Tensor = prior.sample((len(z),), *given)
            return drawn.double().flatten(1).to(z.device)

    p = reference(0)
    distance, gz, gp = _energy(z, p, memory)
    noises = torch.tensor(
        [
            _energy(reference(2 * r + 1), reference(2 * r + 2), memory)[0]
            for r in range(repetitions)
        ],
        dtype=torch.float64,
    )
    noise = noises.std().item()
    return Aggregate(
        distance,
        2 * gz.std().item() / math.sqrt(len(z)),
        math.hypot(2 * gp.std().item() / math.sqrt(len(p)), noise),
        noises.mean().item(),
        noise,
        len(z),
        repetitions,
        z.mean(0),
        z.std(0),
        p.mean(0),
        p.std(0),
    )


def _energy(a: Tensor, b: Tensor, memory: int) -> tuple[float, Tensor, Tensor]:
    """The unbiased energy distance, and the influence of each row of a and of b on half of it."""
    between, across = _row_sums(a, b, memory)
    within_a, _ = _row_sums(a, a, memory)
    within_b, _ = _row_sums(b, b, memory)
    n, m = len(a), len(b)
    ga = between / m - within_a / (n - 1)
    gb = across / n - within_b / (m - 1)
    return (ga.mean() + gb.mean()).item(), ga, gb


def _row_sums(
    a: Shaped[Tensor, "n d"], b: Shaped[Tensor, "m d"], memory: int
) -> tuple[Tensor, Tensor]:
    """Σ_j ‖a_i − b_j‖ for each i and Σ_i for each j; where b is a, the distance to itself counts 0."""
    rows = max(memory // (3 * 8 * len(b)), 1)
    sums, across = [], a.new_zeros(len(b))
    for start in range(0, len(a), rows):
        block = torch.cdist(a[start : start + rows], b, compute_mode="use_mm_for_euclid_dist")
        if b is a:
            # The matrix form leaves √rounding where it should be exactly 0.
            block.diagonal(start).fill_(0.0)
        sums.append(block.sum(1))
        across += block.sum(0)
    return torch.cat(sums), across
