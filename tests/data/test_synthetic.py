"""Simulated data: their moments, their exact densities, and that no row is in two splits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.data import synthetic

names = pytest.mark.parametrize("name", synthetic.MAKERS)
GAUSSIANS = {"gaussian-1": ([1.0, 2.0], (5.0, 1.0)), "gaussian-2": ([-1.0, 2.0], (1.0, 5.0))}


def covariance(scales):
    turn = math.sqrt(0.5) * torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    return turn.T @ torch.diag(torch.tensor(scales, dtype=torch.float64) ** 2) @ turn


@names
def test_splits_share_no_row_and_follow_the_seed(name):
    data, again, other = vf.data.load(name), vf.data.load(name), vf.data.load(name, data_seed=1)
    rows = torch.cat([data.raw(split) for split in data.sizes])
    assert len(rows.unique(dim=0)) == len(rows)
    sizes = (999, 999, 999) if name == "three-clusters" else (10_000, 2_500, 2_500)
    assert tuple(data.sizes.values()) == sizes
    for split in data.sizes:
        assert torch.equal(data.raw(split), again.raw(split))
        assert not torch.equal(data.raw(split), other.raw(split))
    assert data.describe()["data_seed"] == 0
    assert (data.support, data.protocol, data.event_shape) == ("real", "none", (2,))


@pytest.mark.parametrize("name", GAUSSIANS)
def test_gaussians_have_their_moments_and_density(name):
    centre, scales = GAUSSIANS[name]
    data = vf.data.load(name)
    exact = torch.distributions.MultivariateNormal(
        torch.tensor(centre, dtype=torch.float64), covariance(scales)
    )
    x = data.raw("train").double()
    torch.testing.assert_close(
        data.true_log_prob("train", torch.arange(len(x))), exact.log_prob(x), rtol=0, atol=1e-10
    )
    assert data.truth.entropy == pytest.approx(exact.entropy().item(), rel=1e-12)
    white = torch.linalg.solve_triangular(exact.scale_tril, (x - exact.mean).T, upper=False)
    assert (white.mean(1) * math.sqrt(len(x))).abs().max() < 4
    second = white @ white.T / len(x) - torch.eye(2, dtype=torch.float64)
    assert (second * math.sqrt(len(x) / 2)).abs().max() < 4


def test_three_clusters_are_as_stated():
    data = vf.data.load("three-clusters")
    x, label = data.raw("train").double(), data.labels("train")
    assert label.bincount().tolist() == [333] * 3
    assert bool(((x[label == 0] >= -6) & (x[label == 0] <= -2)).all())
    for k, centre, variance in ((0, (-4, -4), 16 / 12), (1, (0, 0), 0.5), (2, (5, -5), 0.5)):
        mean = x[label == k].mean(0) - torch.tensor(centre)
        assert mean.abs().max() < 4 * math.sqrt(variance / 333)
        assert abs(float(x[label == k].var(0).mean()) / variance - 1) < 4 / math.sqrt(333)


@names
def test_densities_integrate_to_one(name):
    """Midpoints on a grid aligned with the square's edges; the rest is smooth and far inside."""
    axis = np.arange(-30, 30, 0.125) + 0.0625
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    truth = vf.data.load(name).truth
    log_prob = truth.log_prob(grid)
    mass = np.exp(log_prob) * 0.125**2
    assert mass.sum() == pytest.approx(1, abs=1e-4)
    if truth.entropy is not None:
        entropy = -(mass * log_prob).sum()
        assert entropy == pytest.approx(truth.entropy, abs=2e-3)


def test_evaluation_sets_the_exact_likelihood_beside_the_estimate():
    """A model that is the truth has KL 0 on every point, also under a protocol that rescales."""
    from varflow import density

    centre, scales = GAUSSIANS["gaussian-1"]
    root = torch.linalg.cholesky(covariance(scales))
    for protocol in ("none", "standardize"):
        data = vf.data.load("gaussian-1", protocol).to("cpu", torch.float64)
        prior = vf.priors.flow_prior(2, "triangular", length=1).double()
        model = density(prior, 2)
        x = data.batch("test", torch.arange(4))
        loc, by = torch.tensor(centre, dtype=torch.float64), root
        if protocol == "standardize":
            part = data._protocol
            loc, by = (loc - part.loc) / part.scale, root / part.scale[:, None]
        exact = torch.distributions.MultivariateNormal(loc, scale_tril=by)
        prior.log_prob = exact.log_prob  # type: ignore[method-assign]
        prior.sample = lambda shape, exact=exact: exact.sample(shape)  # type: ignore[method-assign]
        found = vf.evaluation.evaluate(model, data, samples=2)
        assert abs(found.estimates["kl_true"].value) < 1e-9
        assert found.estimates["nll_expected"].value == pytest.approx(data.truth.entropy)
        true = found.estimates["nll_true"]
        assert abs(true.value - data.truth.entropy) < 4 * true.standard_error
        assert x.x.shape == (4, 2)


@pytest.mark.slow
def test_a_vae_cannot_beat_the_truth(tmp_path):
    run = vf.fit("vae-2d", epochs=2, quiet=True, out=tmp_path / "run", data_seed=3)
    found = run.evaluate(samples=50)
    gap = found.estimates["kl_true"]
    assert gap.value > -4 * gap.standard_error
    text = found.table()
    assert "nll_expected         4.44731" in text
    run.report()
    names = [p.stem for p in (tmp_path / "run" / "figures").glob("*.png")]
    assert "plane" in names
    assert "pairs" not in names
    assert "KL(p*‖p)" in (tmp_path / "run" / "report.html").read_text()
    again = vf.load(tmp_path / "run")
    assert again.dataset.describe()["data_seed"] == 3
