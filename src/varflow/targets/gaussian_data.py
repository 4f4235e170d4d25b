"""The data sets of the Gaussian models, with the truth that made them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import SpecError, positive, unknown
from varflow.core.settings import AtLeast, settings
from varflow.priors.normal import StandardNormal
from varflow.priors.prior import Prior
from varflow.targets.full_covariance import CorrelatedGaussianModel
from varflow.targets.gaussian_model import Batches, GaussianModel
from varflow.targets.target import TargetSettings


@settings("simulate")
class GaussianModelSettings(TargetSettings):
    """One global z behind simulated observations."""

    observations: Annotated[int, "How many observations are simulated.", AtLeast(1)] = 10_000
    noise: Annotated[Literal["diagonal", "full"], "Noise covariance."] = "diagonal"
    correlation: Annotated[
        float, "Correlation of neighbouring dimensions of the noise where it is full."
    ] = 0.9
    batches: Annotated[
        Literal["full", "minibatch", "separate"],
        "All data by sufficient statistics; minibatches whose likelihood is scaled up to the whole; or every batch a "
        "complete data set, each paying its own KL.",
    ] = "full"
    data_seed: Annotated[int, "Seed of the simulated data.", AtLeast(0)] = 0

    def build(self, part: Any) -> Prior:
        return StandardNormal(self.dimensions)

    def likelihood(self, part: Any, block: int) -> nn.Module:
        made: nn.Module = part(
            self.dimensions, self.observations, self.noise, self.batches, block, self.data_seed, self.correlation
        )
        return made

    def facts(self) -> dict[str, Any]:
        names = ("observations", "noise", "correlation", "batches", "data_seed")
        return {name: getattr(self, name) for name in names}


class GaussianData(NamedTuple):
    """x_i = z + Δ + L ε_i for i = 1…N, with one z ~ N(0, I) for all of them; all float64.

    Attributes:
        data: x ``[N, d]``.
        shift: Δ ``[d]``.
        scale: σ ``[d]``, the standard deviations of the noise.
        covariance: Σ = L Lᵀ ``[d, d]``; diag(σ²) without correlation.
        z: ``[d]``.
    """

    data: Tensor
    shift: Tensor
    scale: Tensor
    covariance: Tensor
    z: Tensor


def generate(
    features: int, count: int = 10_000, seed: int = 0, correlation: float = 0.0
) -> GaussianData:
    """A data set of the Hamiltonian VAE's Gaussian experiment.

    With r_j = −(d − 1)/2 … (d − 1)/2 the truth is Δ_j = r_j / 5 and σ_j = 3.6 r_j² / (d − 1)² + 0.1
    (σ = 1 if d = 1). The same seed gives the same z and noise for every correlation.

    Args:
        features: d.
        count: N.
        seed: of z and the noise.
        correlation: c of neighbouring features; Σ_ij = σ_i σ_j c^|i − j|. The condition number of the
            correlations tends to ((1 + |c|) / (1 − |c|))² as d grows.

    Raises:
        SpecError: sizes that are not positive, or |c| ≥ 1: the covariance is singular.

    Source: Caterini, Doucet and Sejdinovic, "Hamiltonian variational auto-encoder" (2018), section
    4.1 and appendix; the correlation is not theirs.
    """
    positive(features=features, count=count)
    if not -1 < correlation < 1:
        raise SpecError(
            f"correlation: was {correlation}; at ±1 the noise covariance is singular, use −1 < c < 1"
        )
    r = torch.arange(features, dtype=torch.float64) - (features - 1) / 2
    shift = r / 5
    scale = 3.6 * r.square() / (features - 1) ** 2 + 0.1 if features > 1 else torch.ones_like(r)
    with random.stream(seed):
        z = random.normal((features,), "data", dtype=torch.float64)
        noise = random.normal((count, features), "data", dtype=torch.float64)
    if correlation:
        # AR(1): each feature is c of the one before it and fresh noise.
        fresh = (1 - correlation**2) ** 0.5
        columns = [noise[:, 0]]
        for j in range(1, features):
            columns.append(correlation * columns[-1] + fresh * noise[:, j])
        noise = torch.stack(columns, 1)
    steps = (r[:, None] - r).abs()
    correlations = torch.where(steps == 0, 1.0, correlation ** steps.clamp(min=1.0))
    covariance = scale[:, None] * scale * correlations
    return GaussianData(z + shift + scale * noise, shift, scale, covariance, z)


def simulate(
    features: int,
    observations: int = 10_000,
    noise: Literal["diagonal", "full"] = "diagonal",
    batches: Batches = "full",
    block: int = 256,
    seed: int = 0,
    correlation: float = 0.9,
) -> GaussianModel | CorrelatedGaussianModel:
    """The Gaussian model of a generated data set, which knows its truth; float64.

    Args:
        features: d.
        observations: N.
        noise: ``"diagonal"``, or ``"full"`` with a full covariance that is learned.
        batches, block: see :class:`~varflow.targets.GaussianModel`.
        seed: of the data.
        correlation: of the data with ``noise="full"``; diagonal noise has none.

    Raises:
        SpecError: an unknown noise, or separate batches with full noise.
    """
    if noise == "diagonal":
        made = generate(features, observations, seed)
        truth = made.shift, made.scale
        return GaussianModel(made.data, batches=batches, block=block, truth=truth)
    if noise != "full":
        raise unknown("noise", str(noise), ["diagonal", "full"])
    if batches == "separate":
        raise SpecError("batches: 'separate' is for diagonal noise; use full or minibatch")
    made = generate(features, observations, seed, correlation)
    truth = made.shift, made.covariance
    return CorrelatedGaussianModel(made.data, batches=batches, truth=truth)
