"""Models under a context: p(x|c), against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import varflow as vf
from varflow.core import random
from varflow.core.errors import ShapeError, SpecError
from varflow.core.observed import Observed, joined, observed
from varflow.evaluation.annealing import Annealing, anneal
from varflow.evaluation.importance import importance_sample
from varflow.evaluation.integration import quadrature
from varflow.evaluation.refinement import Refinement, refined_bounds
from varflow.evaluation.sandwich import sandwich_bounds
from varflow.networks.context import ContextEncoder

D, C, X = 2, 3, 4
SCALE = 0.5


class Linear(nn.Module):
    """A decoder or an encoder that is one affine map."""

    def __init__(self, before: int, after: int, generator: torch.Generator) -> None:
        super().__init__()
        self.map = nn.Linear(before, after)
        with torch.no_grad():
            self.map.weight.copy_(torch.randn(after, before, generator=generator) * 0.6)
            self.map.bias.copy_(torch.randn(after, generator=generator) * 0.3)
        self.features, self.in_shape, self.out_shape = after, (before,), (after,)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


def linear_gaussian(conditioned_prior: bool = False, exact: bool = True) -> vf.Model:
    """x = W z + V c + b + σ ε with z ~ N(0, I), or z ~ N(A c + a, diag s²): log p(x|c) in closed form.

    q(z|x, c) has the exact mean, of the model with N(0, I), and the scales of its diagonal; or anything.
    """
    generator = torch.Generator().manual_seed(4)
    decoder = Linear(D + C, X, generator)
    decoder.context_features = C
    likelihood = vf.likelihoods.Gaussian(decoder, X, scale=SCALE)
    prior: vf.priors.Prior = vf.priors.StandardNormal(D)
    if conditioned_prior:
        flow = vf.flows.Affine(D, context_features=C)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        prior = vf.priors.Flow(flow)
    posterior = vf.posteriors.Gaussian(D, ContextEncoder(Linear(X + C, 8, generator), (X,), C))
    model = vf.Model(prior, likelihood, posterior).double()
    if exact:
        w, v, b = parts(model)
        covariance = torch.linalg.inv(torch.eye(D, dtype=torch.float64) + w.T @ w / SCALE**2)
        gain = covariance @ w.T / SCALE**2
        with torch.no_grad():
            encoder = posterior.encoder.network.map
            encoder.weight.zero_()
            encoder.bias.zero_()
            encoder.weight[:D, :X], encoder.weight[:D, X:], encoder.bias[:D] = gain, -gain @ v, -gain @ b
            moments = posterior.moments
            moments.weight.zero_()
            moments.bias.zero_()
            moments.weight[:D, :D] = torch.eye(D)
            # The best that a diagonal q can do has the precisions of the diagonal; for another prior it is wide.
            if not conditioned_prior:
                moments.bias[D:] = -0.5 * torch.linalg.inv(covariance).diagonal().log()
    return model


def parts(model: vf.Model) -> tuple[Tensor, Tensor, Tensor]:
    """W, V and b of the decoder."""
    weight = model.likelihood.decoder.map.weight.detach()
    return weight[:, :D], weight[:, D:], model.likelihood.decoder.map.bias.detach()


def exact_log_prob(model: vf.Model, x: Tensor, c: Tensor) -> Tensor:
    w, v, b = parts(model)
    mean, root = torch.zeros(len(c), D, dtype=torch.float64), torch.eye(D, dtype=torch.float64).expand(len(c), D, D)
    if model.prior.reads:
        at_zero, at_one = (model.prior.decode(torch.full((len(c), D), k, dtype=torch.float64), c) for k in (0.0, 1.0))
        mean, root = at_zero, torch.diag_embed(at_one - at_zero)
    centre = mean @ w.T + c @ v.T + b
    covariance = w @ root @ root.mT @ w.T + SCALE**2 * torch.eye(X, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(centre, covariance).log_prob(x).detach()


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, X, generator=generator, dtype=torch.float64)
    return x, torch.randn(6, C, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("conditioned_prior", [False, True])
def test_importance_samples_find_the_exact_density(rows, conditioned_prior):
    model = linear_gaussian(conditioned_prior)
    x, c = rows
    found = importance_sample(model, observed(x, c), samples=4000)
    exact = exact_log_prob(model, x, c)
    assert bool(((found.log_px - exact).abs() < 5 * found.log_px_variance.sqrt() + 1e-9).all())
    assert bool((found.elbo < exact + 5 * found.elbo_variance.sqrt()).all())
    assert float((exact - exact_log_prob(model, x, c.roll(1, 0))).abs().max()) > 0.1, "c must matter"


def test_quadrature_agrees(rows):
    model = linear_gaussian(conditioned_prior=True)
    x, c = rows
    found = quadrature(model, observed(x, c), nodes=301)
    torch.testing.assert_close(found, exact_log_prob(model, x, c), atol=1e-6, rtol=0)


@pytest.mark.parametrize("conditioned_prior", [False, True])
def test_annealing_from_either_start(rows, conditioned_prior):
    model = linear_gaussian(conditioned_prior)
    x, c = rows
    for start in ("posterior", "prior"):
        settings = Annealing(chains=64, temperatures=40, warmup=60, start=start)
        found = anneal(model, observed(x, c), settings)
        error = found.log_px_variance.sqrt()
        assert bool(((found.log_px - exact_log_prob(model, x, c)).abs() < 5 * error + 1e-6).all())


def test_a_sandwich_holds_the_exact_value(rows):
    model = linear_gaussian(conditioned_prior=True)
    c = rows[1].repeat(5, 1)
    found = sandwich_bounds(model, len(c), Annealing(chains=16, temperatures=40, warmup=60), context=c)
    gap = found.estimates["gap"]
    assert abs(gap.value) < 5 * gap.standard_error + 0.02


def test_refinement_cannot_better_the_best_diagonal_q(rows):
    model = linear_gaussian()
    x, c = rows
    found = refined_bounds(model, observed(x, c), Refinement(steps=50, evaluation=400))
    assert float((found.refined - found.elbo).max()) < 0.02
    wrong = linear_gaussian(exact=False)
    better = refined_bounds(wrong, observed(x, c), Refinement(steps=300, evaluation=400))
    assert bool((better.refined > better.elbo).all())
    assert bool((better.refined < exact_log_prob(wrong, x, c) + 0.05).all())


def test_rows_of_other_contexts_do_not_touch(rows):
    model = linear_gaussian(conditioned_prior=True)
    x, c = rows
    with torch.no_grad(), random.stream(0):
        whole = model.log_joint(torch.zeros(3, len(x), D, dtype=torch.float64), Observed(x, c))
    z = torch.zeros(3, 1, D, dtype=torch.float64)
    each = [model.log_joint(z, row) for row in Observed(x, c).split(1)]
    torch.testing.assert_close(torch.cat(each, 1), whole, atol=1e-12, rtol=1e-12)


def test_samples_have_the_conditional_moments():
    model = linear_gaussian(conditioned_prior=True)
    c = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64).expand(40_000, C)
    with random.stream(3):
        x = model.sample(len(c), context=c)
    w, v, b = parts(model)
    at_zero, at_one = (model.prior.decode(torch.full((1, D), k, dtype=torch.float64), c[:1]) for k in (0.0, 1.0))
    mean = (at_zero @ w.T + c[:1] @ v.T + b)[0].detach()
    covariance = (w * (at_one - at_zero).square()) @ w.T + SCALE**2 * torch.eye(X, dtype=torch.float64)
    error = covariance.diagonal().detach().sqrt() / math.sqrt(len(c))
    assert bool(((x.mean(0) - mean).abs() < 5 * error).all())
    assert bool(((x.var(0) / covariance.diagonal() - 1).abs() < 5 * math.sqrt(2 / len(c))).all())


def test_a_hamiltonian_posterior_follows_the_conditional_gradient(rows):
    model = linear_gaussian()
    wrapped = vf.Model(
        model.prior, model.likelihood, vf.posteriors.Hamiltonian(model.posterior, steps=3).double()
    )
    x, c = rows
    found = importance_sample(wrapped, observed(x, c), samples=2000)
    assert bool(((found.log_px - exact_log_prob(model, x, c)).abs() < 5 * found.log_px_variance.sqrt() + 1e-6).all())


def test_two_layers_under_a_context(rows):
    """p(h₂|c) p(h₁|h₂) p(x|h₁, c): the mean weight of two different posteriors agrees."""
    torch.manual_seed(0)
    top = vf.priors.Flow(vf.flows.Affine(2, context_features=C))
    prior = vf.priors.Ancestral(top, vf.priors.GaussianLayer(2, D, hidden=(8,)))
    decoder = vf.priors.Reads(vf.networks.MLP(D + C, X, hidden=(8,)), D, context_features=C)
    likelihood = vf.likelihoods.Gaussian(decoder, X, scale=1.0)
    x, c = rows
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        bottom = vf.posteriors.Gaussian(D, ContextEncoder(vf.networks.MLP(X + C, hidden=(8,)), (X,), C))
        posterior = vf.posteriors.Ancestral(bottom, vf.priors.GaussianLayer(D, 2, hidden=(8,)))
        model = vf.Model(prior, likelihood, posterior).double()
        found.append(importance_sample(model, observed(x, c), samples=4000))
    error = (found[0].log_px_variance + found[1].log_px_variance).sqrt()
    assert bool(((found[0].log_px - found[1].log_px).abs() < 5 * error).all())


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_pictures_under_a_context(network):
    torch.manual_seed(0)
    shape, pictures = (1, 8, 8), network == "conv"
    in_shape = ContextEncoder.in_shape(shape, C, pictures)
    inner = vf.networks.ConvEncoder(in_shape, base=4) if pictures else vf.networks.MLP(in_shape, hidden=(8,))
    encoder = ContextEncoder(inner, shape, C)
    x, c = torch.rand(5, *shape), torch.randn(5, C)
    out = encoder(x, c)
    assert out.shape == (5, encoder.features)
    assert not torch.equal(out, encoder(x, c + 1))
    with pytest.raises(SpecError, match="context: missing; this encoder reads 3 context features"):
        encoder(x)
    with pytest.raises(ShapeError, match=r"context: shape \[5, 2\]; this encoder reads 3"):
        encoder(x, c[:, :2])


def test_what_is_missing_or_unread_is_refused(rows):
    model = linear_gaussian()
    x, c = rows
    with pytest.raises(SpecError, match=r"context: missing; this model is p\(x\|c\)"):
        model.terms(x)
    with pytest.raises(SpecError, match=r"context: missing; this model is p\(x\|c\)"):
        model.sample(3)
    plain = vf.Model(
        vf.priors.StandardNormal(2),
        vf.likelihoods.Gaussian(vf.networks.MLP(2, X, hidden=(4,)), X),
        vf.posteriors.Gaussian(2, vf.networks.MLP(X, hidden=(4,))),
    )
    with pytest.raises(SpecError, match="context: neither the prior StandardNormal nor the likelihood Gaussian"):
        plain.terms(x.float(), context=c.float())
    with pytest.raises(SpecError, match="mask: the likelihood Gaussian reads none, so no cell of x may be missing"):
        plain.terms(x.float(), mask=torch.ones(6, X, dtype=torch.bool))


def test_examples_are_sliced_and_joined_row_by_row(rows):
    x, c = rows
    seen = Observed(x, c, x > 0)
    again = joined(seen.split(4))
    assert torch.equal(again.x, x)
    assert torch.equal(again.context, c)
    assert torch.equal(again.mask, x > 0)
    assert (len(seen[1:3]), seen.shape, seen.dtype) == (2, x.shape, torch.float64)
    assert observed(x) is x
