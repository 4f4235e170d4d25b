"""Mixtures of Gaussians given some of their cells, in closed form.

With o the observed and m the missing cells of a row,

    p(x_o) = Σₖ πₖ N(x_o; mₖₒ, Σₖₒₒ),   rₖ = πₖ N(x_o; …)/p(x_o),
    p(x_m|x_o) = Σₖ rₖ N(x_m; mₖₘ + Σₖₘₒ Σₖₒₒ⁻¹ (x_o − mₖₒ), Σₖₘₘ − Σₖₘₒ Σₖₒₒ⁻¹ Σₖₒₘ).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from varflow.core import random
from varflow.priors.gaussians import Gaussians
from varflow.priors.mixture import Mixture
from varflow.priors.normal import StandardNormal

#: Nodes of the quadrature of a mean.
_NODES = 64


class GaussianMixture(NamedTuple):
    """p(x) = Σₖ πₖ N(x; mₖ, Σₖ): π ``[K]``, m ``[K, D]``, Σ ``[K, D, D]``."""

    shares: Tensor
    means: Tensor
    covariances: Tensor


class Given(NamedTuple):
    """A mixture given the observed cells of rows: log p of these ``[N]``, responsibilities ``[N, K]``, conditional
    means ``[N, K, D]`` and covariances ``[N, K, D, D]``, which are the cells themselves and 0 where they are there.
    """

    log_prob: Tensor
    belong: Tensor
    means: Tensor
    covariances: Tensor


def given_observed(made: GaussianMixture, x: Tensor, there: Tensor, cells_too: bool = True) -> Given:
    """A mixture given the cells of x ``[N, D]`` that are there, exact; without ``cells_too`` log p alone.

    Cost: a Cholesky factor of D² numbers for each row and component.
    """
    m = there.double()
    parts, means, covariances = [], [], []
    for share, mean, covariance in zip(*made, strict=True):
        outer = m[:, :, None] * m[:, None, :]
        factor = torch.linalg.cholesky(covariance * outer + torch.diag_embed(1 - m))
        d = torch.where(there, x - mean, 0.0)
        solved = torch.cholesky_solve(d[..., None], factor)[..., 0]
        ladj = -factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        parts.append(share.log() + ladj - 0.5 * (d * solved).sum(-1) - 0.5 * m.sum(-1) * math.log(2 * math.pi))
        if cells_too:
            across = covariance * m[:, None, :]
            means.append(torch.where(there, x, mean + (across @ solved[..., None])[..., 0]))
            left = covariance - across @ torch.cholesky_solve(across.mT, factor)
            covariances.append(left * (1 - m)[:, :, None] * (1 - m)[:, None, :])
    logs = torch.stack(parts, 1)
    total = logs.logsumexp(1)
    belong = (logs - total[:, None]).exp()
    if not cells_too:
        return Given(total, belong, belong, belong)
    return Given(total, belong, torch.stack(means, 1), torch.stack(covariances, 1))


def mixture_of(prior: nn.Module) -> GaussianMixture | None:
    """A prior as a mixture of Gaussians, in float64 on the CPU; None where it is none."""
    if isinstance(prior, StandardNormal):
        size = prior.event_shape[0]
        one = torch.ones(1, dtype=torch.float64)
        return GaussianMixture(one, one.new_zeros(1, size), torch.eye(size, dtype=torch.float64)[None])
    if isinstance(prior, Mixture):
        shares, scales = prior.logits.detach().double().softmax(0), prior.log_scales.detach().double().exp()
        means = prior.means.detach().double()
        return GaussianMixture(shares.cpu(), means.cpu(), torch.diag_embed(scales.square()).cpu())
    if isinstance(prior, Gaussians):
        count = prior.components
        factor = torch.linalg.inv(prior.whitening[:count].double().cpu())
        shares, means = prior.log_weights[:count].double().exp().cpu(), prior.means[:count].double().cpu()
        return GaussianMixture(shares, means, factor @ factor.mT)
    return None


def means_of(found: Given, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of v = change(x) of every cell ``[N, D]``, v a function of each cell by itself: by
    Gauss–Hermite quadrature, which is exact where it is affine.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    scale = found.covariances.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    first, second = (torch.zeros_like(found.means[:, 0]) for _ in range(2))
    # About the middle, so that no digits are lost in the square.
    middle = change((found.belong[..., None] * found.means).sum(1))
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        shape = found.means.shape
        v = change((found.means + node * scale).flatten(0, 1)).reshape(shape) - middle[:, None]
        first += weight * (found.belong[..., None] * v).sum(1)
        second += weight * (found.belong[..., None] * v.square()).sum(1)
    return middle + first, (second - first.square()).clamp_min(0.0).sqrt()


def drawn(found: Given, draws: int) -> Tensor:
    """x ~ p(x|x_o), ``[draws, N, D]``; the observed cells are themselves."""
    rows, components, size = found.means.shape
    u = random.uniform((draws, rows), "resampling", dtype=torch.float64, batch_dim=1)
    below = found.belong.cumsum(1).contiguous()
    chosen = torch.searchsorted(below, (u.T * below[:, -1:]).contiguous(), right=True).clamp_max(components - 1).T
    noise = random.normal((draws, rows, size), "imputation", dtype=torch.float64, batch_dim=1)
    # A covariance of 0 has the root 0; eigenvalues below 0 are rounding.
    values, vectors = torch.linalg.eigh(found.covariances)
    root = vectors * values.clamp_min(0.0).sqrt()[..., None, :]
    at = torch.arange(rows)
    return found.means[at, chosen] + (root[at, chosen] @ noise[..., None])[..., 0]
