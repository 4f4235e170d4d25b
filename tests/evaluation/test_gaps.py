"""The inference gap taken apart, where its parts are known, and for every posterior."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import varflow as vf
from varflow.core.errors import NonFiniteError, SpecError
from varflow.evaluation import Annealing, LinearGaussian, Refinement, inference_gaps, refined_bounds
from varflow.evaluation.refinement import refine

from .conftest import tiny

SHORT = Annealing(chains=16, temperatures=20, leapfrog=2, warmup=20)
FEW = Refinement(steps=120, samples=8, evaluation=400)


def linear(weight: torch.Tensor, scale: float = 0.5):
    """p(x|z) = N(Wz, σ²I) with an encoder whose means and scales are off, and the exact answers."""
    events, latent = weight.shape
    exact = LinearGaussian(weight, torch.zeros(events).double(), scale)
    decoder, encoder = vf.networks.MLP(latent, events, hidden=()), nn.Identity()
    encoder.features = events
    model = vf.Model(
        vf.priors.StandardNormal(latent),
        vf.likelihoods.Gaussian(decoder, events, scale=scale),
        vf.posteriors.Gaussian(latent, encoder),
    ).double()
    (layer,) = (m for m in decoder.modules() if isinstance(m, nn.Linear))
    _, covariance = exact.posterior(torch.zeros(1, events).double())
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_()
        wrong = 0.8 * covariance @ weight.T / scale**2
        model.posterior.moments.weight.copy_(torch.cat([wrong, torch.zeros_like(wrong)]))
        model.posterior.moments.bias.copy_(torch.tensor([0.1] * latent + [-0.4] * latent))
    return model, exact


def gaussian_kl(model: vf.Model, exact: LinearGaussian, x: torch.Tensor) -> torch.Tensor:
    """KL(q(z|x) ‖ p(z|x)) in closed form."""
    with torch.no_grad():
        q = model.posterior(x)
    mean, covariance = exact.posterior(x)
    precision = torch.linalg.inv(covariance)
    gap, variance = q.mean - mean, (2 * q.log_scale).exp()
    trace = (precision.diagonal() * variance).sum(-1)
    square = ((gap @ precision) * gap).sum(-1)
    return 0.5 * (trace + square - gap.shape[-1] + covariance.logdet() - variance.log().sum(-1))


def data(exact: LinearGaussian, count: int = 400):
    torch.manual_seed(5)
    latent = torch.randn(count, exact.weight.shape[1], dtype=torch.float64)
    noise = exact.scale * torch.randn(count, len(exact.bias), dtype=torch.float64)
    return vf.data.from_tensor(latent @ exact.weight.T + noise, name="linear")


@pytest.mark.parametrize("orthogonal", [True, False])
def test_a_linear_gaussian_model_has_known_gaps(orthogonal):
    torch.manual_seed(2)
    weight = torch.tensor([[1.0, 1.0], [1.0, 0.6], [0.5, 1.0], [0.0, 0.4]]).double()
    if orthogonal:
        weight = torch.linalg.qr(weight).Q * torch.tensor([1.5, 0.7]).double()
    model, exact = linear(weight)
    x = (
        exact.scale * torch.randn(30, 4, dtype=torch.float64)
        + torch.randn(30, 2).double() @ weight.T
    )
    # The best diagonal q has the mean of p(z|x) and the inverse diagonal of its precision.
    _, covariance = exact.posterior(x)
    best = 0.5 * (torch.linalg.inv(covariance).diagonal().log().sum() + covariance.logdet())
    assert best.item() == pytest.approx(0, abs=1e-12) if orthogonal else best > 0.1
    found = refined_bounds(model, x, Refinement(steps=400, samples=8, evaluation=2000))
    log_px = exact.log_prob(x)
    inference = gaussian_kl(model, exact, x)
    assert inference.mean() > 0.2
    sides = (
        (log_px - found.elbo, inference, found.elbo_variance),
        (log_px - found.refined, best.expand(30), found.refined_variance),
        (found.refined - found.elbo, inference - best, found.gain_variance),
    )
    for value, truth, variance in sides:
        error = variance.sum().sqrt() / 30
        assert abs((value - truth).mean()) < 4 * error + 1e-4
    if orthogonal:
        # With the exact posterior the weights are constant.
        assert (log_px - found.refined).abs().max() < 1e-3
        assert found.refined_variance.max() < 1e-4


def test_the_decomposition_of_a_data_set_sums_to_the_exact_gap():
    torch.manual_seed(2)
    model, exact = linear(torch.randn(4, 2, dtype=torch.float64))
    dataset = data(exact).to("cpu", torch.float64)
    x = dataset.batch("test", torch.arange(20)).x
    found = inference_gaps(model, dataset, points=20, settings=FEW, annealing=SHORT)
    each = found.per_example
    np.testing.assert_allclose(
        each["inference_gap"], each["approximation_gap"] + each["amortization_gap"], atol=1e-12
    )
    truth = gaussian_kl(model, exact, x).mean().item()
    gap = found.estimates["inference_gap"]
    assert abs(gap.value - truth) < 4 * gap.monte_carlo_error
    log_px = found.estimates["log_px"]
    assert abs(log_px.value - exact.log_prob(x).mean().item()) < 4 * log_px.monte_carlo_error
    larger = max(found.estimates[f"log_px_{how}"].value for how in ("annealed", "importance"))
    assert log_px.value == larger
    chosen = "annealing" if larger == found.estimates["log_px_annealed"].value else "importance"
    assert log_px.estimator.startswith(chosen)


def everyone() -> dict[str, vf.Model]:
    torch.manual_seed(0)
    plain = tiny(3)
    bottom = vf.posteriors.Gaussian(2, vf.networks.MLP(6, hidden=(8,)))
    layer = vf.priors.GaussianLayer(2, 1, hidden=(4,))
    models = {
        "gaussian": plain,
        "hamiltonian": vf.Model(
            plain.prior, plain.likelihood, vf.posteriors.Hamiltonian(plain.posterior, 2)
        ).double(),
        "ancestral": vf.Model(
            plain.prior, plain.likelihood, vf.posteriors.Ancestral(bottom, layer)
        ).double(),
    }
    for flow in ("planar", "radial", "householder", "sylvester", "iaf", "coupling"):
        if flow in vf.flows.TABLE:
            models[f"{flow}, amortized"] = tiny(3, flow=flow, amortized=True)
            models[f"{flow}, static"] = tiny(3, flow=flow)
    return models


@pytest.mark.parametrize("name", everyone())
def test_every_posterior_is_refined_and_its_parameters_stand_still(binary, name):
    model, x = everyone()[name], binary[:6]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    found = refined_bounds(model, x, Refinement(steps=30, samples=4, evaluation=200))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    gain = found.refined - found.elbo
    assert gain.mean() > 4 * found.gain_variance.sum().sqrt() / 6
    # Common random numbers: the difference is known better than its terms.
    assert found.gain_variance.sum() < (found.elbo_variance + found.refined_variance).sum()


def test_what_gets_worse_is_not_kept(binary):
    model, x = tiny(), binary[:5]
    wild = Refinement(steps=3, samples=1, lr=9.0, evaluation=100)
    with torch.no_grad():
        initial = model.posterior(x).local
    for kept, old in zip(refine(model, x, wild, 0, 0), initial, strict=True):
        assert torch.equal(kept, old)
    found = refined_bounds(model, x, wild)
    assert torch.equal(found.refined, found.elbo)
    assert (found.gain_variance == 0).all()


def test_examples_are_refined_each_by_itself(binary):
    model = tiny()
    settings = Refinement(steps=40, samples=8, evaluation=50)
    local = refine(model, binary[:3], settings, 0, 0)
    moved = binary[:3].clone()
    moved[2] = 1 - moved[2]
    again = refine(model, moved, settings, 0, 0)
    for one, two in zip(local, again, strict=True):
        torch.testing.assert_close(one[:2], two[:2], rtol=0, atol=1e-12)
        assert not torch.equal(one[2], two[2])


def test_an_interrupted_refinement_goes_on(binary, tmp_path):
    model, settings = tiny(), Refinement(steps=5, samples=2, evaluation=10, chunk=4)

    def interrupt(done, total):
        if done == 8:
            raise KeyboardInterrupt

    whole = refined_bounds(model, binary[:10], settings)
    with pytest.raises(KeyboardInterrupt):
        refined_bounds(model, binary[:10], settings, folder=tmp_path, progress=interrupt)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("refined-*.npz")}
    assert len(kept) == 2
    resumed = refined_bounds(model, binary[:10], settings, folder=tmp_path)
    for one, two in zip(whole, resumed, strict=True):
        assert torch.equal(one, two)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


NETWORKS = "the networks of the {} flow are the same for all examples"
OF_ITS_OWN = "the {} flow has parameters of its own"
LAYER, STEPS = "q of the upper layer given the one below", "step sizes and tempering are"


def dressed(inner: vf.posteriors.Posterior, layers: bool = False, **hamiltonian) -> vf.Model:
    """A model whose posterior is ``inner``, perhaps under a second layer, perhaps under leapfrog steps."""
    latent = 2
    if layers:
        inner, latent = vf.posteriors.Ancestral(inner, vf.priors.GaussianLayer(2, 1, hidden=(4,))), 3
    if hamiltonian:
        inner = vf.posteriors.Hamiltonian(inner, **hamiltonian)
    likelihood = vf.likelihoods.Bernoulli(vf.networks.MLP(latent, 6, hidden=(8,)), 6)
    return vf.Model(vf.priors.StandardNormal(latent), likelihood, inner).double()


@pytest.mark.parametrize(
    ("flow", "amortized", "options", "notes"),
    [
        (None, False, {}, []),
        ("planar", False, {}, [OF_ITS_OWN.format("Planar")]),
        ("planar", True, {}, []),
        ("radial", True, {}, []),
        ("householder", True, {}, []),
        ("iaf", False, {}, [OF_ITS_OWN.format("InverseAutoregressive")]),
        ("iaf", True, {}, [NETWORKS.format("InverseAutoregressive")]),
        ("coupling", True, {}, [NETWORKS.format("AffineCoupling")]),
        (None, False, {"layers": True}, [LAYER]),
        ("iaf", True, {"layers": True}, [NETWORKS.format("InverseAutoregressive"), LAYER]),
        (None, False, {"steps": 1}, [STEPS]),
        ("planar", False, {"steps": 1}, [OF_ITS_OWN.format("Planar"), STEPS]),
        (None, False, {"layers": True, "steps": 1}, [LAYER, STEPS]),
        (
            None,
            False,
            {"steps": 1, "flow": partial(vf.flows.Planar, length=1)},
            ["step sizes, tempering and the flow of positions and momenta are"],
        ),
    ],
)
def test_what_stands_still_is_said(flow, amortized, options, notes):
    torch.manual_seed(1)
    rows = (torch.rand(60, 6) < 0.5).to(torch.uint8)
    dataset = vf.data.from_tensor(rows, levels=2, name="bits").to("cpu", torch.float64)
    model = dressed(tiny(flow=flow, amortized=amortized).posterior, **options)
    found = inference_gaps(
        model,
        dataset,
        points=2,
        settings=Refinement(2, 2, 0.01, 10),
        annealing=Annealing(2, 2, 1, warmup=2),
    )
    assert len(found.notes) == len(notes)
    for note, beginning in zip(found.notes, notes, strict=True):
        assert note.startswith(beginning)


def test_bad_settings_and_nan_are_refused(binary):
    with pytest.raises(SpecError, match="steps: was 0"):
        Refinement(steps=0)
    with pytest.raises(SpecError, match="lr: was nan"):
        Refinement(lr=math.nan)
    model = tiny()
    inner = model.likelihood.log_prob
    model.likelihood.log_prob = lambda x, z: torch.where(x[:, 0] == 7, math.nan, inner(x, z))
    x = binary[:5].clone()
    x[3, 0] = 7
    with pytest.raises(NonFiniteError, match="elbo: was NaN at point 3"):
        refined_bounds(model, x, Refinement(steps=2, evaluation=10))
