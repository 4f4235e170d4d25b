"""Small models for the tests of this room."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import varflow as vf
from varflow.core.lazy import resolve


def tiny(
    latent: int = 2,
    events: int = 6,
    flow: str | None = None,
    amortized: bool = False,
    seed: int = 0,
) -> vf.Model:
    """A Bernoulli model with one hidden layer, float64, weights large enough to matter."""
    torch.manual_seed(seed)
    factory = None
    if flow is not None:
        factory = partial(resolve(vf.flows.TABLE[flow]), length=2)
    model = vf.Model(
        vf.priors.StandardNormal(latent),
        vf.likelihoods.Bernoulli(vf.networks.MLP(latent, events, hidden=(8,)), events),
        vf.posteriors.Gaussian(latent, vf.networks.MLP(events, hidden=(8,)), factory, amortized),
    ).double()
    with torch.no_grad():
        for parameter in model.likelihood.parameters():
            parameter.mul_(2)
        # Wider than p(z|x), so that weights have a finite variance.
        model.posterior.moments.weight.mul_(0.5)
        model.posterior.moments.bias[latent:] = 0.15
    return model


@pytest.fixture
def binary() -> torch.Tensor:
    torch.manual_seed(1)
    return (torch.rand(300, 6, dtype=torch.float64) < 0.4).double()
