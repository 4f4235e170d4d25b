"""Objectives against integrals: p(z) = N(0, 1), p(x|z) = N(w z, s²), q(z) = N(m, e^{2l}), one observed x."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import varflow as vf
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.objectives import ELBO, AnnealedELBO, ImportanceWeighted

pytestmark = pytest.mark.usefixtures("float64")

X, W, S, M, L = 0.8, 0.9, 0.7, 0.25, -0.2


class Observation(nn.Module):
    """p(x|z) with the learned weight w; x is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(W))

    def log_prob(self, x: object, z: Tensor) -> Tensor:
        mean = self.w * z.squeeze(-1)
        return -0.5 * ((X - mean) / S) ** 2 - math.log(S) - 0.5 * math.log(2 * math.pi)


def model(flow: object = None) -> vf.Model:
    posterior = vf.posteriors.Gaussian(1, flow=flow)
    with torch.no_grad():
        posterior.mean.fill_(M)
        posterior.log_scale.fill_(L)
    return vf.Model(vf.priors.StandardNormal(1), Observation(), posterior)


def log_weight(epsilon: np.ndarray, w: float = W, m: float = M, l: float = L) -> np.ndarray:
    z = m + math.exp(l) * epsilon
    log_normal = -0.5 * math.log(2 * math.pi)
    log_p = -0.5 * ((X - w * z) / S) ** 2 - math.log(S) - 0.5 * z**2 + 2 * log_normal
    return log_p - (-0.5 * epsilon**2 - l + log_normal)


def bound(samples: int, **at: float) -> float:
    """L_K by Gauss–Hermite quadrature over all K base samples."""
    nodes, weights = np.polynomial.hermite_e.hermegauss({1: 60, 2: 60, 5: 14}[samples])
    weights = weights / weights.sum()
    each = log_weight(nodes, **at)
    total = 0.0
    for index in itertools.product(range(len(nodes)), repeat=samples - 1):
        first = np.array([each[i] for i in index])
        mass = math.prod(weights[i] for i in index)
        joint = np.logaddexp(each, np.logaddexp.reduce(first)) if samples > 1 else each
        total += mass * float(weights @ (joint - math.log(samples)))
    return total


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_the_bound_is_the_integral(samples: int) -> None:
    count = 40_000
    posterior = model().posterior()
    with random.stream(7):
        draw = posterior.draw(samples * count)
    log_w = torch.from_numpy(log_weight(((draw.z.squeeze(-1) - M) / math.exp(L)).detach().numpy()))
    values = torch.logsumexp(log_w.reshape(samples, count), 0) - math.log(samples)
    error = values.std().item() / math.sqrt(count)
    assert abs(values.mean().item() - bound(samples)) < 4 * error
    with random.stream(7):
        terms = model().terms(None, samples)
    loss = ImportanceWeighted()(terms)
    expected = torch.logsumexp(terms.log_weight, 0) - math.log(samples)
    torch.testing.assert_close(loss, -expected.mean())


def gradients(objective: ELBO | ImportanceWeighted, samples: int, count: int) -> tuple[Tensor, Tensor]:
    """Mean and standard error of the loss's gradient in (w, m, l), ``count`` repetitions as a batch of examples."""
    parts = model()
    shared = [parts.likelihood.w, parts.posterior.mean, parts.posterior.log_scale]

    def loss(w: Tensor, m: Tensor, l: Tensor, noise: Tensor) -> Tensor:
        values = {
            "likelihood.w": w,
            "posterior.mean": m,
            "posterior.log_scale": l,
            "posterior._home": torch.zeros(()),
        }
        with random.use(random.Replay([noise])):
            terms = torch.func.functional_call(parts, values, (None, samples), {"hold": objective.hold})
        return objective(terms, 1.0)

    with random.stream(3):
        noise = random.normal((count, samples, 1), "test")
    point = [p.detach() for p in shared]
    found = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)), (None, None, None, 0))(*point, noise)
    stacked = torch.stack([g.reshape(count) for g in found], 1)
    for one, row in zip(noise[:30], stacked[:30], strict=True):  # as training takes them
        leaves = [p.clone().requires_grad_() for p in point]
        each = torch.autograd.grad(loss(*leaves, one), leaves)
        torch.testing.assert_close(torch.cat([g.flatten() for g in each]), row)
    return stacked.mean(0), stacked.std(0) / math.sqrt(count)


def exact_gradient(samples: int) -> Tensor:
    h = 1e-5
    out = []
    for name, value in (("w", W), ("m", M), ("l", L)):
        above, below = bound(samples, **{name: value + h}), bound(samples, **{name: value - h})
        out.append(-(above - below) / (2 * h))
    return torch.tensor(out)


@pytest.mark.parametrize(
    ("objective", "samples"),
    [
        (ELBO(), 1),
        (ELBO(control=False), 1),
        (ELBO(gradient="path"), 1),
        (ImportanceWeighted(), 2),
        (ImportanceWeighted(gradient="dreg"), 2),
        (ImportanceWeighted(), 5),
        (ImportanceWeighted(gradient="dreg"), 5),
    ],
)
def test_every_gradient_is_unbiased(objective, samples: int) -> None:
    mean, error = gradients(objective, samples, 3000)
    assert ((mean - exact_gradient(samples)).abs() < 4 * error + 1e-9).all(), (mean, exact_gradient(samples), error)


def test_the_wrong_gradients_are_seen() -> None:
    """The path gradient of a bound of several samples is biased, which is why it is refused."""
    held = ImportanceWeighted(gradient="dreg")

    class Path(ImportanceWeighted):
        def __call__(self, terms, weight=1.0):
            return -(torch.logsumexp(terms.log_weight, 0) - math.log(len(terms.log_q))).mean()

    mean, error = gradients(Path(gradient="dreg"), 5, 3000)
    assert ((mean - exact_gradient(5)).abs() > 6 * error)[1:].any()
    assert held.hold


def exact_model() -> vf.Model:
    """q is the exact posterior."""
    parts = model()
    precision = 1 + W * W / (S * S)
    with torch.no_grad():
        parts.posterior.mean.fill_(W * X / (S * S) / precision)
        parts.posterior.log_scale.fill_(-0.5 * math.log(precision))
    return parts


@pytest.mark.parametrize("flow", [None, "affine"])
def test_the_path_gradient_vanishes_where_q_is_exact(flow: str | None) -> None:
    parts = exact_model()
    if flow is not None:
        parts.posterior.flow = vf.flows.Affine(1)
    for gradient, vanishes in (("path", True), ("total", False)):
        objective = ELBO(gradient=gradient, control=False)
        terms = parts.terms(None, 4, hold=objective.hold)
        assert terms.log_weight.std() < 1e-9
        parts.zero_grad()
        objective(terms, 1.0).backward()
        size = max(parts.posterior.mean.grad.abs().max(), parts.posterior.log_scale.grad.abs().max())
        assert (size < 1e-12) == vanishes


def test_dreg_has_less_noise_for_many_samples() -> None:
    plain, reduced = (gradients(ImportanceWeighted(g), 20, 300)[1][1:] for g in ("total", "dreg"))
    assert (reduced < plain / 2).all()


def test_annealing_follows_the_paper() -> None:
    objective = AnnealedELBO(steps=10_000)
    assert [objective.weight(step) for step in (0, 5_000, 9_900, 50_000)] == [0.01, 0.51, 1.0, 1.0]
    assert AnnealedELBO(steps=0).weight(0) == 1.0
    terms = model().terms(None, 3)
    joint = terms.log_likelihood + terms.log_prior
    torch.testing.assert_close(objective(terms, 0.3), (terms.log_q - 0.3 * joint).mean())
    torch.testing.assert_close(objective(terms, 1.0), -terms.log_weight.mean())


def test_free_bits_are_the_closed_form() -> None:
    torch.manual_seed(1)
    encoder = vf.networks.MLP(4, hidden=(8,))
    likelihood = vf.likelihoods.Bernoulli(vf.networks.MLP(3, 4, hidden=(8,)), 4)
    parts = vf.Model(vf.priors.StandardNormal(3), likelihood, vf.posteriors.Gaussian(3, encoder))
    x = torch.rand(16, 4).round()
    terms = parts.terms(x, groups=True)
    q = parts.posterior(x)
    normal = torch.distributions.Normal(q.mean, q.log_scale.exp())
    closed = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean(0)
    free = float(closed.detach().median())
    expected = closed.clamp(min=free).sum() - terms.log_likelihood.mean()
    torch.testing.assert_close(ELBO(free_bits=free)(terms, 1.0), expected)
    with pytest.raises(SpecError, match="free_bits"):
        ELBO(free_bits=0.1)(parts.terms(x), 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient": "dreg"}, "gradient: unknown value 'dreg'.* choices: path, total"),
        ({"objective": "iwae", "gradient": "path"}, "gradient: unknown value 'path'.* choices: dreg, total"),
        ({"free_bits": 0.5, "flow": "planar"}, "free_bits: are counted for each latent"),
        ({"objective": "iwea"}, "iwae"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        vf.fit("digits", torch.rand(64, 6).round(), latent=2, hidden=8, steps=1, quiet=True, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "iwae", "samples": 5},
        {"objective": "iwae", "samples": 5, "gradient": "dreg", "flow": "planar", "amortized": True},
        {"gradient": "path", "flow": "iaf", "length": 2},
        {"free_bits": 0.5},
    ],
)
def test_a_fit_with_each(settings: dict) -> None:
    torch.set_default_dtype(torch.float32)
    x = (torch.rand(128, 6) < torch.rand(128, 1)).float()
    run = vf.fit("digits", x, latent=2, hidden=8, epochs=4, warmup="0 steps", quiet=True, **settings)
    train = [record for record in run.metrics if record["split"] == "train"]
    assert train[-1]["elbo"] > train[0]["elbo"] - 0.5
    if settings.get("objective") == "iwae":
        assert -train[-1]["loss"] > train[-1]["elbo"]


def gaussian(flow: object = None) -> vf.posteriors.Gaussian:
    return vf.posteriors.Gaussian(2, vf.networks.MLP(6, hidden=(8,)), flow)


def bernoulli(decoder: nn.Module | None = None) -> nn.Module:
    return vf.likelihoods.Bernoulli(decoder or vf.networks.MLP(2, 6, hidden=(8,)), 6)


class Coupled(vf.networks.MLP):
    couples_examples = True


NORMAL = vf.priors.StandardNormal
REFUSED = {
    "likelihood × values of the data": lambda: (
        vf.Model(NORMAL(2), bernoulli(), gaussian()), "grey", None, "Bernoulli takes binary"),
    "likelihood × another number of levels": lambda: (
        vf.Model(NORMAL(2), vf.likelihoods.Logistics(vf.networks.MLP(2, 90), 6, levels=5), gaussian()), "levels",
        None, "Logistics is over 5 levels"),
    "target × posterior that reads x": lambda: (
        vf.Model(vf.targets.U1(), None, gaussian()), "none", None, "reads x"),
    "data × no likelihood": lambda: (
        vf.Model(NORMAL(2), None, gaussian()), "binary", None, "likelihood: missing"),
    "Hamiltonian × path or doubly reparameterised gradients": lambda: (
        vf.Model(NORMAL(2), bernoulli(), vf.posteriors.Hamiltonian(gaussian(), 2)), "binary",
        ELBO(gradient="path"), "gradient: 'path'"),
    "Hamiltonian × decoder with batch statistics": lambda: (
        vf.Model(NORMAL(2), bernoulli(Coupled(2, 6, hidden=(8,))), vf.posteriors.Hamiltonian(gaussian(), 2)),
        "binary", ELBO(), "couples the examples"),
    "free bits × posterior that mixes latents": lambda: (
        vf.Model(NORMAL(2), bernoulli(), gaussian(vf.flows.Planar(2))), "binary", ELBO(free_bits=0.1),
        "a Planar flow mixes latents"),
    "quantizer × importance bounds": lambda: (
        quantized(vf.priors.UniformCodes((2, 2), 3)), "binary", ImportanceWeighted(), "one code for sure"),
    "codes × real numbers": lambda: (
        quantized(NORMAL(4)), "binary", ELBO(), "StandardNormal is over real numbers"),
    "several processes × batch statistics": lambda: (
        vf.Model(NORMAL(2), bernoulli(Coupled(2, 6, hidden=(8,))), gaussian()), "binary", ELBO(),
        "Coupled takes statistics of a batch", 2),
    "several processes × importance bounds of a target": lambda: (
        vf.Model(vf.targets.U1(), None, vf.posteriors.Gaussian(2)), "none", ImportanceWeighted(),
        "the importance-weighted bound needs all of them", 2),
    "compiled step × posterior that reads values": lambda: (
        quantized(vf.priors.UniformCodes((2, 2), 3)), "binary", ELBO(), "compile: a quantizer's codebook", 1, None,
        True),
}  # fmt: skip


def quantized(prior: nn.Module) -> vf.Model:
    from varflow.networks.vq import VQEncoder

    encoder = VQEncoder((1, 8, 8), features=4)
    return vf.Model(prior, bernoulli(), vf.posteriors.Quantizer(encoder, codes=3, features=4))


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (vf.flows.Affine(2), "closed form for each latent, and after an Affine flow there is none"),
        (vf.flows.InverseAutoregressive(2), "an InverseAutoregressive flow mixes latents"),
        (vf.flows.AdditiveCoupling(2), "an AdditiveCoupling flow mixes latents"),
        (vf.flows.Radial(2), "a Radial flow mixes latents"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_free_bits_say_what_a_flow_does(flow: nn.Module, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        vf.refusals.check(
            vf.Model(NORMAL(2), bernoulli(), gaussian(flow)), "binary", ELBO(free_bits=0.1)
        )


@pytest.mark.parametrize("rule", vf.refusals.RULES)
def test_every_rule_refuses_its_case_with_one_sentence(rule: str) -> None:
    model, support, objective, message, *processes = REFUSED[rule]()
    with pytest.raises(SpecError, match=message) as caught:
        vf.refusals.check(model, support, objective, *processes)
    assert "\n" not in str(caught.value)
    vf.refusals.check(vf.Model(NORMAL(2), bernoulli(), gaussian()), "binary", ELBO())
