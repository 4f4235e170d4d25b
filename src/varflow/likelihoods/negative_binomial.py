"""The negative binomial of counts k = 0, 1, 2, … with mean μ and dispersion α: variance μ + α μ².

    log p(k) = log Γ(k + r) − log Γ(r) − log k! + k log(αμ) − (k + r) log(1 + αμ),   r = 1/α.

Poisson as α → 0, geometric at α = 1. It is a Poisson whose rate is a gamma variable of mean μ and variance α μ².
Everything here takes log μ and log α, which may be any real numbers.

Written as it stands the sum is a difference of numbers of the size k log k, and nothing is left of it where k is
large or α small. So it is computed as a saddle point, as the programs for its tables do. With Stirling's error
δ(z) = log Γ(z + 1) − (z + ½) log z + z − ½ log 2π:

1. for k > 0, replacing each Γ by δ:
   log p = −½ log(2πk) − ½ log(1 + αk) + δ(k + r) − δ(r) − δ(k) − Δ,
   Δ = k log(k/μ) − (k + r) log((1 + αk)/(1 + αμ)) ≥ 0, which is 0 at μ = k;
2. with d = log(k/μ), m = min(k, r)/(k + r) ≤ ½, and e = −d where k ≤ r, e = d elsewhere:
   Δ = min(k, r) · [log(1 + m (exp e − 1))/m − e];
3. for k = 0: log p = −log(1 + αμ)/α.

Sources: Loader 2000, "Fast and accurate computation of binomial probabilities", for 1; 2 is derived here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from varflow.core import random
from varflow.likelihoods.asymptotic import by_series

#: δ(z) = Σⱼ cⱼ z^(1 − 2j) for large z; at z ≥ 10 the next term is below 1e-16.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_LARGE = math.log(10.0)
#: Proposals of a gamma variable, of which the first accepted counts; each is with 95 % or more.
_ROUNDS = 12
#: Halvings that find the quantile of a Poisson variable, in a window of 2⁵ numbers.
_HALVINGS = 5


def log_prob(count: Tensor, log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """log p(k) in nats, elementwise; differentiable in log μ and log α any number of times.

    Its error is that of rounding log μ: about √k times it near the mean. Some sixty elementwise passes.
    """
    some = count > 0
    k = torch.where(some, count, 1.0)
    log_k = k.log()
    log_ratio = log_k + log_dispersion
    few = log_ratio <= 0
    # Branches that are not taken are given harmless numbers, so that no 0·∞ comes back as a gradient.
    least = torch.where(few, k, torch.exp(-torch.where(few, 0.0, log_dispersion)))
    log_least = torch.where(few, log_k, -log_dispersion)
    logit = torch.where(few, log_ratio, -log_ratio)
    log_share, log_rest = F.logsigmoid(logit), F.logsigmoid(-logit)
    distance = torch.where(few, log_mean - log_k, log_k - log_mean)

    # exp e − 1 = exp(max(e, 0)) times what is between −1 and 1.
    up = distance > 0
    rise = torch.where(up, distance, 0.0)
    bounded = torch.where(some, torch.where(up, -1.0, 1.0) * torch.expm1(torch.where(up, -distance, distance)), 1.0)
    log_odds = log_mean + log_dispersion
    log_moved = torch.where(some, log_share + rise, log_odds)
    far = log_moved > 0
    moved = bounded * torch.exp(torch.where(far, 0.0, log_moved))
    size = bounded * torch.exp(torch.where(far, 0.0, torch.where(some, log_least + rise, log_mean)))
    near = size * _log1p_over(moved)
    # Beyond m exp e = 1 the logarithm is taken of the sum (1 − m) + m exp e, whose parts may not fit.
    total = count + torch.exp(-torch.where(far, log_dispersion, 0.0))
    beyond = total * (log_moved + _softplus(torch.where(some, log_rest, 0.0) - log_moved))
    deviance = torch.where(far, beyond, near) - torch.where(some, least * distance, 0.0)

    wide = _softplus(log_ratio)
    curvature = 0.5 * (math.log(2 * math.pi) + log_k + wide)
    corrections = (
        stirling_error(wide - log_dispersion) - stirling_error(-log_dispersion) - stirling_error(log_k)
    )
    return torch.where(some, corrections - curvature, 0.0) - deviance


def sample(log_mean: Tensor, log_dispersion: Tensor, batch_dim: int | None) -> Tensor:
    """k ~ p(k), elementwise: a gamma variable by Marsaglia and Tsang 2000, then the quantile of a Poisson variable.

    ``batch_dim`` is the dimension that ranks share. Computed in float64, returned in the dtype of log μ.
    """
    mean, dispersion = torch.broadcast_tensors(log_mean.double(), log_dispersion.double())

    def uniform(*rounds: int) -> Tensor:
        along = batch_dim if batch_dim is None else batch_dim + len(rounds)
        found = random.uniform(
            (*rounds, *mean.shape), "likelihood", dtype=torch.float64, device=mean.device, batch_dim=along
        )
        # The middle of the first of the 2⁵³ cells, which stands for it instead of 0.
        return found.clamp(min=2.0**-54)

    rate = torch.exp(mean + dispersion + _log_gamma(dispersion, uniform, batch_dim))
    return poisson_quantile(uniform(), rate).to(log_mean.dtype)


def _log_gamma(log_dispersion: Tensor, uniform: Any, batch_dim: int | None) -> Tensor:
    """log G of a gamma variable of shape r = 1/α: one of shape r + 1, times U^α."""
    x = random.normal(
        (_ROUNDS, *log_dispersion.shape),
        "likelihood",
        dtype=torch.float64,
        device=log_dispersion.device,
        batch_dim=batch_dim if batch_dim is None else batch_dim + 1,
    )
    alpha = log_dispersion.exp()
    log_d = torch.log1p(2 / 3 * alpha) - log_dispersion
    d = log_d.exp()
    root = 1 + x / (3 * d.sqrt())
    log_v = 3 * root.clamp(min=0).log()
    accepted = (root > 0) & (uniform(_ROUNDS).log() < 0.5 * x.square() + d * (1 - log_v.exp() + log_v))
    first = accepted.to(torch.uint8).argmax(0, keepdim=True)
    # Where none is, one time in 10¹⁶ or where α is below 10⁻³⁰⁰, the mode stands for it.
    chosen = torch.where(accepted.gather(0, first), log_v.gather(0, first), 0.0)[0]
    return log_d + chosen + alpha * uniform().log()


def poisson_quantile(share: Tensor, rate: Tensor) -> Tensor:
    """The smallest k with P(K ≤ k) ≥ ``share`` of a Poisson variable; float64.

    From a mean of 4 on it lies within 16 of its Cornish–Fisher expansion

        λ + z√λ + (z² − 1)/6 + (z − z³)/(72√λ),   Φ(z) = share,

    below within 31, for every share from 2⁻⁵⁴ to 1 − 2⁻⁵³. There a few halvings find it, by P(K ≤ k) = Q(k + 1, λ).
    From a mean of 200 on torch's Q loses digits beyond 4.5 standard deviations, where one number in 10⁵ lies; that
    one is the expansion, which is then off by one at most.
    """
    width = 2**_HALVINGS
    z = torch.special.ndtri(share)
    root = rate.sqrt()
    about = rate + z * root + (z.square() - 1) / 6
    about = torch.where(rate < 4, 0.0, about + (z - z**3) / (72 * root)).round()
    low = torch.where(rate < 4, -1.0, (about - width // 2).clamp(min=-1.0))
    high = low + width
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        enough = torch.special.gammaincc(middle + 1, rate) >= share
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.where((rate > 200) & (z.abs() > 4.4), about, high)


def stirling_error(log_z: Tensor) -> Tensor:
    """δ(z) = log Γ(z + 1) − (z + ½) log z + z − ½ log 2π, for z > 0 by its logarithm."""

    def direct(log_small: Tensor) -> Tensor:
        small = log_small.exp()
        return torch.lgamma(small + 1) - (small + 0.5) * log_small + small - 0.5 * math.log(2 * math.pi)

    return by_series(log_z, _LARGE, _STIRLING, direct)


def _log1p_over(t: Tensor) -> Tensor:
    """log(1 + t)/t, which is 1 at t = 0."""
    tiny = t.abs() < torch.finfo(t.dtype).eps ** (1 / 3)
    safe = torch.where(tiny, 1.0, t)
    return torch.where(tiny, 1 - t * (0.5 - t / 3), safe.log1p() / safe)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp x); torch's own threshold of 20 is off by 2e-9."""
    return F.softplus(x, threshold=40.0)


class NegativeBinomial(torch.distributions.Distribution):
    """The distribution of this module by log μ and log α.

    torch's own has r and log(αμ), and loses its digits where r is large.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_dispersion: Tensor) -> None:
        self.log_mean, self.log_dispersion = torch.broadcast_tensors(log_mean, log_dispersion)
        super().__init__(self.log_mean.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean + torch.exp(2 * self.log_mean + self.log_dispersion)

    def log_prob(self, value: Tensor) -> Tensor:
        return log_prob(value, self.log_mean, self.log_dispersion)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = torch.Size(sample_shape) + self.batch_shape
        return sample(self.log_mean.expand(shape), self.log_dispersion.expand(shape), None)
