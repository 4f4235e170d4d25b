"""The Hamiltonian posterior against exact evidence, finite differences, closed-form gaps, and known defects."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

import varflow as vf
from varflow import hmc
from varflow.core import random
from varflow.core.errors import ShapeError, SpecError
from varflow.evaluation import LinearGaussian
from varflow.posteriors import Gaussian, Hamiltonian
from varflow.posteriors import hamiltonian as room
from varflow.targets import GaussianModel

pytestmark = pytest.mark.usefixtures("float64")

TEMPERINGS = ["none", "fixed", "free"]
STEPS = ["scalar", "dimension", "step", "both"]


EXACT_WEIGHT = [[0.6, 0.2], [0.2, -0.6], [0.0, 0.3]]
X = torch.tensor([[0.3, -0.5, 0.8], [1.2, 0.4, -0.7]], dtype=torch.float64)


class Same(nn.Module):
    features = 3

    def forward(self, x):
        return x


def linear_gaussian(**options) -> tuple[LinearGaussian, vf.Model]:
    """Always the same: of some encoders the weights have too long a tail for a standard error."""
    torch.manual_seed(0)
    exact = LinearGaussian(torch.tensor(EXACT_WEIGHT), torch.tensor([0.1, -0.2, 0.3]), 1.0)
    decoder = vf.networks.MLP(2, 3, hidden=())
    with torch.no_grad():
        decoder.last.weight.copy_(exact.weight)
        decoder.last.bias.copy_(exact.bias)
    base = Gaussian(2, Same())
    with torch.no_grad():
        base.moments.weight.mul_(0.3)
        # A base a little wider than the posterior: the weights keep a variance.
        base.moments.bias.copy_(torch.tensor([0.0, 0.0, 0.1, 0.1]))
    options = {"steps": 3, "initial_step": 0.3, "bound": 1.0, **options}
    posterior = Hamiltonian(base, **options)
    likelihood = vf.likelihoods.Gaussian(decoder, 3, scale=1.0)
    return exact, vf.Model(vf.priors.StandardNormal(2), likelihood, posterior)


def vary(posterior: Hamiltonian) -> None:
    """Steps and factors that all differ. Always the same: of some draws the weights have too long a tail."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (posterior.step_logit, posterior.log_excess, posterior.factor_logits):
            if parameter is not None:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.3 * noise.to(parameter))


def excess(model: vf.Model, exact: LinearGaussian, samples: int = 100_000) -> float:
    """How many standard errors E[w / p(x)] is from 1, at worst over x."""
    with random.stream(seed=4), torch.no_grad():
        ratio = (model.terms(X, samples).log_weight - exact.log_prob(X)).exp()
    assert (ratio.mean(0).square() / ratio.square().mean(0) > 0.1).all()
    error = ratio.std(0) / math.sqrt(samples)
    return float(((ratio.mean(0) - 1).abs() / error.clamp_min(1e-12)).max())


@pytest.mark.parametrize("tempering", TEMPERINGS)
@pytest.mark.parametrize("step", ["scalar", "both"])
def test_weights_average_to_the_evidence(tempering, step):
    exact, model = linear_gaussian(tempering=tempering, step=step)
    vary(model.posterior)
    assert excess(model, exact) < 4
    log_w = model.terms(X, 20_000).log_weight
    bound = log_w.mean(0) - 5 * log_w.std(0) / math.sqrt(20_000)
    assert (bound < exact.log_prob(X)).all()


@pytest.mark.parametrize("features", [1, 2])
@pytest.mark.parametrize("tempering", TEMPERINGS)
@pytest.mark.parametrize("affine", [False, True])
def test_weights_average_to_the_normalizer_of_a_target(features, tempering, affine):
    a, b = torch.tensor([2.0, 3.0])[:features], torch.tensor([0.4, -0.6])[:features]
    target = Quadratic(a, b) if affine else Quadratic(a, b).__call__
    posterior = Hamiltonian(Gaussian(features), 2, tempering, "both", initial_step=0.2)
    vary(posterior)
    log_z = 0.5 * (features * math.log(2 * math.pi) - a.log().sum() + (b.square() / a).sum())
    with random.stream(seed=5), torch.no_grad():
        draw = posterior().draw(100_000, log_joint=target)
        ratio = (target(draw.z) - draw.log_q - log_z).exp()
    assert ratio.mean() ** 2 / ratio.square().mean() > 0.1
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(100_000)


class Quadratic:
    """b z − ½ a z², whose gradient b − a z is known to be affine."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __call__(self, z):
        return (self.b * z - 0.5 * self.a * z.square()).sum(-1)

    @property
    def affine_gradient(self):
        return self.b, self.a


@pytest.mark.parametrize("tempering", TEMPERINGS)
@pytest.mark.parametrize("step", STEPS)
def test_affine_targets_take_the_short_way_and_agree(tempering, step):
    target = Quadratic(torch.tensor([1.0, 30.0, 200.0]), torch.tensor([0.5, -20.0, 100.0]))
    posterior = Hamiltonian(Gaussian(3), 10, tempering, step)
    vary(posterior)
    draws = []
    for log_joint in (target, target.__call__):
        with random.stream(seed=6):
            draws.append(posterior().draw(50, log_joint=log_joint))
    for name in ("z", "log_q", "momentum"):
        one, two = (getattr(d, name) for d in draws)
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(draws[1].log_joint, target(draws[1].z))


def closed_form_gap(posterior, a, mean) -> torch.Tensor:
    """KL on the extended space for a Gaussian target of precision a, by the matrices of the K maps."""
    total = torch.zeros(())
    temperature, factors = posterior.temperature, posterior.factors
    for d in range(len(a)):
        move, unit = torch.eye(2), torch.eye(2)
        for k in range(posterior.steps):
            e = posterior.step_sizes[k, d]
            kick, drift, temper = unit.clone(), unit.clone(), unit.clone()
            kick[1, 0], drift[0, 1], temper[1, 1] = -0.5 * e * a[d], e, factors[k]
            move = temper @ kick @ drift @ kick @ move
        q = posterior.base()
        start = torch.stack([q.mean[d] - mean[d], torch.zeros(())])
        spread = torch.diag(torch.stack([(2 * q.log_scale[d]).exp(), temperature.square()]))
        second = move @ (spread + torch.outer(start, start)) @ move.T
        total = total + 0.5 * (a[d] * second[0, 0] + second[1, 1]) - 1
        total = total - 0.5 * a[d].log() - q.log_scale[d]
    return total


@pytest.mark.parametrize("tempering", TEMPERINGS)
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("rao_blackwell", [False, True])
def test_the_elbo_of_a_gaussian_target_has_its_closed_form(tempering, steps, rao_blackwell):
    a, mean = torch.tensor([3.0, 50.0]), torch.tensor([0.7, -0.2])
    posterior = Hamiltonian(
        Gaussian(2),
        steps,
        tempering,
        "both",
        initial_step=0.08,
        initial_temperature=3.0,
        rao_blackwell=rao_blackwell,
    )
    vary(posterior)
    with torch.no_grad():
        posterior.base.mean.copy_(torch.tensor([0.3, 0.1]))
        posterior.base.log_scale.copy_(torch.tensor([-0.4, -0.9]))
        count = 50_000
        with random.stream(seed=7):
            draw = posterior().draw(count, log_joint=Quadratic(a, a * mean))
        log_pi = -0.5 * (a * (draw.z - mean).square() - (a / (2 * math.pi)).log()).sum(-1)
        gaps = draw.log_q - log_pi
        expected = closed_form_gap(posterior, a, mean)
    for values in (gaps, gaps - draw.control):
        assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(count)
    assert abs(draw.control.mean()) < 4 * draw.control.std() / math.sqrt(count)


@pytest.mark.parametrize("steps", [1, 5])
def test_tempering_schedules(steps):
    fixed = Hamiltonian(Gaussian(2), steps, "fixed", initial_temperature=5.0)
    free = Hamiltonian(Gaussian(2), steps, "free", initial_temperature=5.0)
    k = torch.arange(steps + 1)
    # 1/√β_k = (1 − 1/√β₀) k²/K² + 1/√β₀ with 1/√β₀ = 5.
    roots = (1 - 5.0) * (k / steps) ** 2 + 5.0
    torch.testing.assert_close(fixed.factors, roots[1:] / roots[:-1])
    torch.testing.assert_close(free.factors, torch.full((steps,), 5.0 ** (-1 / steps)))
    for posterior in (fixed, free):
        vary(posterior)
        torch.testing.assert_close(posterior.factors.prod() * posterior.temperature, torch.ones(()))
        assert ((posterior.factors > 0) & (posterior.factors < 1)).all()
    none = Hamiltonian(Gaussian(2), steps)
    assert none.temperature == 1
    assert (none.factors == 1).all()


@pytest.mark.parametrize(
    ("step", "free"), [("scalar", 1), ("dimension", 3), ("step", 4), ("both", 12)]
)
def test_step_sizes_are_bounded_and_as_many_as_asked_for(step, free):
    posterior = Hamiltonian(Gaussian(3), 4, step=step, bound=0.5, initial_step=0.2)
    assert posterior.step_logit.numel() == free
    assert posterior.step_sizes.shape == (4, 3)
    torch.testing.assert_close(posterior.step_sizes, torch.full((4, 3), 0.2))
    with torch.no_grad():
        posterior.step_logit.fill_(50.0)
    assert (posterior.step_sizes <= 0.5).all()


class Explicit:
    """log p(x, z) of a Bernoulli decoder with one tanh layer, with its gradient written out."""

    def __init__(self, model, x):
        self.model, self.x = model, x

    def __call__(self, z):
        return self.model.log_joint(z, self.x)

    def value_and_gradient(self, z):
        decoder = self.model.likelihood.decoder
        (first,), last = decoder.layers, decoder.last
        h = first(z).tanh()
        residual = self.x - torch.sigmoid(last(h))
        return self(z), ((residual @ last.weight) * (1 - h * h)) @ first.weight - z


def small_image_model(tempering, step, **options) -> vf.Model:
    decoder = vf.networks.MLP(2, 4, hidden=(5,), activation="tanh")
    encoder = vf.networks.MLP(4, hidden=(3,), activation="tanh")
    posterior = Hamiltonian(
        Gaussian(2, encoder, **options), 3, tempering, step, initial_step=0.3, bound=1.0
    )
    likelihood = vf.likelihoods.Bernoulli(decoder, 4)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)
    return vf.Model(vf.priors.StandardNormal(2), likelihood, posterior)


BITS = torch.tensor([[1.0, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 1]], dtype=torch.float64)


def elbo(model: vf.Model, log_joint, control: bool = True) -> torch.Tensor:
    with random.stream(seed=8):
        draw = model.posterior(BITS).draw(2, log_joint=log_joint)
    value = model.log_joint(draw.z, BITS) - draw.log_q
    return (value + draw.control if control else value).mean()


def gradient_error(model: vf.Model, log_joint) -> float:
    """Largest difference between autograd and central differences, over every parameter."""
    parameters = list(model.parameters())
    analytic = torch.autograd.grad(elbo(model, log_joint), parameters)
    worst, h = 0.0, 1e-5
    for parameter, gradient in zip(parameters, analytic, strict=True):
        flat, found = parameter.detach().view(-1), gradient.reshape(-1)
        for i in range(0, flat.numel(), max(1, flat.numel() // 5)):
            centre, values = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = centre + sign * h
                values.append(elbo(model, log_joint).item())
            flat[i] = centre
            worst = max(worst, abs((values[0] - values[1]) / (2 * h) - found[i].item()))
    return worst


@pytest.mark.parametrize("tempering", TEMPERINGS)
@pytest.mark.parametrize("step", STEPS)
def test_gradients_of_the_elbo(tempering, step):
    """By finite differences through both paths, and one path against the other."""
    model = small_image_model(tempering, step)
    vary(model.posterior)
    paths = [partial(model.log_joint, x=BITS), Explicit(model, BITS)]
    for path in paths:
        assert gradient_error(model, path) < 1e-7
    one, two = (torch.autograd.grad(elbo(model, p), list(model.parameters())) for p in paths)
    for left, right in zip(one, two, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


def test_gradients_through_a_flow_underneath():
    model = small_image_model(
        "fixed", "step", flow=partial(vf.flows.Planar, length=2), amortized=True
    )
    for parameter in model.posterior.base.flow.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    assert gradient_error(model, partial(model.log_joint, x=BITS)) < 1e-7


def test_the_value_from_the_last_gradient_is_log_joint_at_the_end():
    model = small_image_model("free", "both")
    draw = model.posterior(BITS).draw(5, log_joint=partial(model.log_joint, x=BITS))
    torch.testing.assert_close(draw.log_joint, model.log_joint(draw.z, BITS))
    assert draw.z.shape == draw.momentum.shape == (5, 3, 2)


@pytest.mark.parametrize("tempering", TEMPERINGS)
@pytest.mark.parametrize("features", [1, 2])
def test_one_latent_for_a_whole_data_set(features, tempering):
    """The Gaussian model, whose evidence is known; its gradient is affine and the model says so."""
    data = 0.3 + torch.randn(20, features)
    likelihood = GaussianModel(data, log_scale=0.1)
    posterior = Hamiltonian(
        Gaussian(features), 2, tempering, "both", initial_step=0.1, initial_temperature=1.3
    )
    vary(posterior)
    exact = likelihood.exact()
    with torch.no_grad():
        posterior.base.mean.copy_(exact.mean + 0.02)
        posterior.base.log_scale.copy_(0.5 * exact.variance.log() + 0.1)
    model = vf.Model(vf.priors.StandardNormal(features), likelihood, posterior)
    with random.stream(seed=14), torch.no_grad():
        terms = model.terms(samples=100_000)
        ratio = (terms.log_weight - exact.log_evidence).exp()
    assert terms.draw.log_joint is None
    assert ratio.mean() ** 2 / ratio.square().mean() > 0.1
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(100_000)


# The defects of others, each put in and each found by a check above.


def no_momentum(z):
    """h-vae: the draw is overwritten by zeros."""
    return torch.zeros_like(z)


def late_kick(z, rho, slope, step, steps, temper=None):
    """pythae: the position moves by the momentum before its half step."""
    value = None
    for k in range(steps):
        before = rho
        rho = rho + 0.5 * step[k] * slope(z)[1]
        z = z + step[k] * before
        value, force = slope(z)
        rho = rho + 0.5 * step[k] * force
        rho = rho if temper is None else temper[k] * rho
    return hmc.Phase(z, rho, value)


def detached(z, rho, slope, step, steps, temper=None, leapfrog=hmc.leapfrog):
    """h-vae: the gradient of log p(x, z) is a constant to autograd."""

    def constant(z):
        value, force = slope(z)
        return value, force.detach()

    return leapfrog(z, rho, constant, step, steps, temper)


def frozen_decoder(z, rho, slope, step, steps, temper=None, leapfrog=hmc.leapfrog):
    """HVAE + IAF: decoder parameters get no gradient through the trajectory; z still does."""

    def surrogate(z):
        value, force = slope(z)
        inner = z.detach().requires_grad_()
        rows = slope(inner)[1]
        hessian = torch.stack(
            [
                torch.autograd.grad(rows[..., d].sum(), inner, retain_graph=True)[0]
                for d in range(z.shape[-1])
            ],
            -2,
        )
        moved = (hessian @ (z - z.detach()).unsqueeze(-1)).squeeze(-1)
        return value, force.detach() + moved

    return leapfrog(z, rho, surrogate, step, steps, temper)


def forgotten_temper(z, rho, slope, step, steps, temper=None, leapfrog=hmc.leapfrog):
    """pythae: tempering is computed, then overwritten."""
    return leapfrog(z, rho, slope, step, steps, None)


@pytest.mark.parametrize("mutant", [no_momentum, late_kick, forgotten_temper])
def test_defects_of_the_density_are_caught(monkeypatch, mutant):
    exact, model = linear_gaussian(tempering="fixed", steps=3, initial_temperature=1.8)
    assert excess(model, exact) < 4
    if mutant is no_momentum:
        monkeypatch.setattr(room, "_momentum", mutant)
    else:
        monkeypatch.setattr(hmc, "leapfrog", mutant)
    assert excess(model, exact) > 8


@pytest.mark.parametrize("mutant", [detached, frozen_decoder])
def test_defects_of_the_gradient_are_caught(monkeypatch, mutant):
    model = small_image_model("fixed", "both")
    log_joint = partial(model.log_joint, x=BITS)
    assert gradient_error(model, log_joint) < 1e-7
    monkeypatch.setattr(hmc, "leapfrog", mutant)
    assert gradient_error(model, log_joint) > 1e-4


def mutated_draws(change):
    """A draw whose log_q is changed as another program has it."""
    exact, model = linear_gaussian(tempering="fixed", steps=3, initial_temperature=1.8)
    q, log_joint = model.posterior(X), partial(model.log_joint, x=X)
    with random.stream(seed=4), torch.no_grad():
        draw = q.draw(100_000, log_joint=log_joint)
        temperature = model.posterior.temperature
        ratio = (model.log_joint(draw.z, X) - change(draw, temperature) - exact.log_prob(X)).exp()
    # A mean to which few weights contribute has no standard error to speak of: that is seen, too.
    if (ratio.mean(0).square() / ratio.square().mean(0) < 0.1).any():
        return math.inf
    error = ratio.std(0) / math.sqrt(100_000)
    return float(((ratio.mean(0) - 1).abs() / error).max())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d, t: d.log_q + 2 * t.log(), id="beta0 charged once more"),
        pytest.param(
            lambda d, t: d.log_q - 0.5 * d.momentum.square().sum(-1), id="final momentum free"
        ),
        pytest.param(lambda d, t: d.log_q - 1.0, id="a constant per batch is missing"),
        pytest.param(lambda d, t: d.log_q.sum(1, keepdim=True), id="summed over the batch"),
        pytest.param(lambda d, t: d.log_q - d.control, id="means in importance weights"),
    ],
)
def test_defects_of_the_weights_are_caught(change):
    assert mutated_draws(lambda draw, temperature: draw.log_q) < 4
    assert mutated_draws(change) > 8


def test_temperature_changes_the_trajectory():
    """pythae: the ends are the same for every β₀."""
    posterior, ends = Hamiltonian(Gaussian(2), 3, "fixed"), []
    for temperature in (1.1, 3.0):
        with torch.no_grad(), random.stream(seed=9):
            posterior.log_excess.fill_(math.log(temperature - 1))
            ends.append(posterior().draw(4, log_joint=Quadratic(torch.ones(2), torch.ones(2))).z)
    assert (ends[0] - ends[1]).abs().max() > 1e-2


# Shapes, switches and refusals.


def test_no_steps_is_the_base():
    base = Gaussian(2)
    posterior = Hamiltonian(base, 0, "free", "both")
    target = Quadratic(torch.ones(2), torch.ones(2))
    draws = []
    for q in (base(), posterior()):
        with random.stream(seed=10):
            draws.append(q.draw(7, log_joint=target))
    for one, two in zip(draws[0][:5], draws[1][:5], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert posterior.step_sizes.shape == (0, 2)
    assert posterior.temperature == 1
    assert [name for name, _ in posterior.named_parameters()] == ["base.mean", "base.log_scale"]
    assert posterior().trajectory(target, 3).shape == (1, 3, 2)


def test_one_feature_and_one_sample():
    posterior = Hamiltonian(Gaussian(1), 2, "free", "both")
    draw = posterior().draw(1, log_joint=lambda z: -z.square().sum(-1))
    assert draw.z.shape == (1, 1)
    assert draw.log_q.shape == (1,)


def test_the_trajectory_ends_where_the_draw_does():
    model = small_image_model("fixed", "both")
    log_joint = partial(model.log_joint, x=BITS)
    q = model.posterior(BITS)
    with random.stream(seed=11):
        draw = q.draw(4, log_joint=log_joint)
    with random.stream(seed=11):
        path = q.trajectory(log_joint, 4)
    assert path.shape == (4, 4, 3, 2)
    torch.testing.assert_close(path[0], draw.z0)
    torch.testing.assert_close(path[-1], draw.z)
    assert not path.requires_grad


def test_local_tensors_rebuild_the_posterior():
    model = small_image_model("free", "both")
    q = model.posterior(BITS)
    again = model.posterior.from_local(q.local)
    draws = []
    for each in (q, again):
        with random.stream(seed=12):
            draws.append(each.draw(3, log_joint=partial(model.log_joint, x=BITS)))
    torch.testing.assert_close(draws[0].z, draws[1].z)
    torch.testing.assert_close(draws[0].log_q, draws[1].log_q)


def test_what_it_cannot_do_is_refused_by_name():
    q = Hamiltonian(Gaussian(2), 2)()
    target = Quadratic(torch.ones(2), torch.ones(2))
    with pytest.raises(SpecError, match="log_joint: was None"):
        q.draw(3)
    with pytest.raises(SpecError, match="hold: path gradients"):
        q.draw(3, log_joint=target, hold=True)
    with pytest.raises(SpecError, match="log_prob: the Hamiltonian posterior"):
        q.log_prob(torch.zeros(2))
    with pytest.raises(ShapeError, match="log_joint: gave shape"):
        q.draw(3, log_joint=lambda z: -z.square().sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tempering": "fredom"}, "tempering: unknown value"),
        ({"step": "dimensions"}, "did you mean 'dimension'"),
        ({"steps": -1}, "steps: was -1"),
        ({"steps": 1.5}, "steps: was 1.5"),
        ({"initial_step": 0.5}, "initial_step: was 0.5 with bound=0.5"),
        ({"initial_step": 0.0}, "initial_step: was 0.0"),
        ({"initial_temperature": 1.0, "tempering": "fixed"}, "initial_temperature: was 1.0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        Hamiltonian(Gaussian(2), **{"steps": 3, **options})


@pytest.mark.parametrize("affine", [False, True])
def test_many_fits_in_one_program(affine):
    """Parameters stacked under vmap: values and gradients of each fit by itself."""
    target = Quadratic(torch.tensor([1.0, 20.0]), torch.tensor([0.5, -3.0]))
    posterior = Hamiltonian(Gaussian(2), 4, "fixed", "both")
    names = [name for name, _ in posterior.named_parameters()]
    stacked = {
        name: (p + 0.2 * torch.randn(3, *p.shape)).detach()
        for name, p in posterior.named_parameters()
    }
    noise = [torch.randn(3, 6, 2), torch.randn(3, 6, 2)]

    def loss(parameters, noises):
        class Fit(nn.Module):
            def __init__(self):
                super().__init__()
                self.posterior = posterior

            def forward(self):
                log_joint = target if affine else target.__call__
                draw = self.posterior().draw(6, log_joint=log_joint)
                return (draw.log_q - target(draw.z)).mean()

        with random.use(random.Replay(noises)):
            named = {f"posterior.{name}": value for name, value in parameters.items()}
            return torch.func.functional_call(Fit(), named, ())

    both = torch.func.grad_and_value(loss)
    gradients, values = torch.func.vmap(both)(stacked, noise)
    for i in range(3):
        gradient, value = both(
            {name: p[i] for name, p in stacked.items()}, [each[i] for each in noise]
        )
        torch.testing.assert_close(values[i], value)
        for name in names:
            torch.testing.assert_close(gradients[name][i], gradient[name])


def test_many_vaes_in_one_program():
    """The same for a decoder, whose parameters are inside the trajectory."""
    model = small_image_model("free", "both")
    stacked = {
        name: (p + 0.1 * torch.randn(2, *p.shape)).detach() for name, p in model.named_parameters()
    }
    noise = [torch.randn(2, 5, 3, 2), torch.randn(2, 5, 3, 2)]

    def loss(parameters, noises):
        with random.use(random.Replay(noises)):
            terms = torch.func.functional_call(model, parameters, (BITS, 5))
        return -terms.log_weight.mean()

    gradients = torch.func.vmap(torch.func.grad(loss))(stacked, noise)
    one = torch.func.grad(loss)({k: v[1] for k, v in stacked.items()}, [n[1] for n in noise])
    for name, value in one.items():
        torch.testing.assert_close(gradients[name][1], value)


def test_importance_bound_of_a_hamiltonian_posterior_grows_towards_the_evidence():
    exact, model = linear_gaussian(tempering="free", step="dimension", initial_temperature=1.3)
    with random.stream(seed=13), torch.no_grad():
        log_w = model.terms(X, 20_000).log_weight.reshape(1000, 20, 2)
    bounds = [(torch.logsumexp(log_w[:, :k], 1) - math.log(k)).mean(0) for k in (1, 5, 20)]
    assert (bounds[0] < bounds[1]).all()
    assert (bounds[1] < bounds[2]).all()
    error = (torch.logsumexp(log_w, 1)).std(0) / math.sqrt(1000)
    assert (bounds[2] < exact.log_prob(X) + 5 * error).all()


def test_float32_stays_float32():
    posterior = Hamiltonian(Gaussian(2), 3, "free", "both").float()
    draw = posterior().draw(4, log_joint=lambda z: -z.square().sum(-1))
    assert {draw.z.dtype, draw.log_q.dtype, draw.momentum.dtype} == {torch.float32}
