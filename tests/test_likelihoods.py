"""Facts about likelihoods: closed forms, torch's own densities, normalization, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from varflow import likelihoods
from varflow.core import random
from varflow.core.columns import Column
from varflow.core.errors import DataError, ShapeError, SpecError
from varflow.core.lazy import resolve
from varflow.likelihoods import Bernoulli, Categorical, Gaussian, Logistics
from varflow.networks import MLP

double = torch.float64
SCALES = (0.3, "learned", "per-dimension", "decoder")
KINDS = [("bernoulli", {}), ("bernoulli", {"grey": True})] + [
    ("gaussian", {"scale": scale}) for scale in SCALES
]
KINDS += [("logistics", {"levels": 5, "components": k}) for k in (1, 3)]
KINDS += [("categorical", {"levels": 5})]
KINDS += [("columns", {"column_scale": scale}) for scale in ("learned", "decoded")]
ids = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in KINDS]
every = pytest.mark.parametrize(("name", "options"), KINDS, ids=ids)


#: A column of each kind; a table of more has some of them twice.
COLUMNS = (
    Column("town", "category", ("a", "b", "c", "d")),
    Column("age", "real"),
    Column("visits", "count", loc=1.0, scale=0.8),
    Column("smokes", "binary", ("no", "yes")),
    Column("income", "positive"),
    Column("grade", "ordinal", ("low", "middle", "high")),
    Column("debt", "real", tail=3.0),
    Column("side", "category", ("left", "right")),
    Column("born", "date"),
)


class Given(nn.Module):
    """A decoder that puts out z itself, reshaped: its outputs are whatever a test wants."""

    def __init__(self, out_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.out_shape = out_shape

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.unflatten(-1, self.out_shape)


def make(name, options, event_shape=(2, 3), latent=4, dtype=double, seed=0):
    kind = resolve(likelihoods.TABLE[name])
    torch.manual_seed(seed)
    if name == "columns":
        # A row of a table is a vector.
        event_shape = (math.prod(event_shape),)
        options = {"columns": [COLUMNS[i % len(COLUMNS)] for i in range(event_shape[0])], **options}
    decoder = MLP(latent, kind.decoder_shape(event_shape, **options), (5,), activation="tanh")
    likelihood = kind(decoder, event_shape, **options)
    if isinstance(getattr(likelihood, "log_scale", None), nn.Parameter):
        nn.init.normal_(likelihood.log_scale)
    return likelihood.to(dtype)


def event(likelihood, *batch, dtype=double):
    x = torch.randn(*batch, *likelihood.event_shape, dtype=dtype)
    if "columns" in likelihood.support:
        for place, column in enumerate(likelihood.columns):
            if not column.continuous:
                values = len(column.categories) or 20
                x[..., place] = torch.randint(0, values, x[..., place].shape).to(dtype)
        return x
    if "levels" in likelihood.support:
        return torch.randint(0, likelihood.levels, x.shape).to(dtype) / likelihood.top
    return (x > 0).to(dtype) if "binary" in likelihood.support else x


@every
def test_log_prob_is_that_of_torch(name, options, device):
    likelihood = make(name, options).to(device)
    x, z = event(likelihood, 7).to(device), torch.randn(3, 7, 4, dtype=double).to(device)
    expected = likelihood.distribution(z).log_prob(x)
    torch.testing.assert_close(likelihood.log_prob(x, z), expected, rtol=1e-12, atol=1e-12)


def test_a_pseudo_likelihood_of_grey_values_is_minus_the_cross_entropy():
    likelihood = make("bernoulli", {"grey": True})
    x, z = torch.rand(7, 2, 3, dtype=double), torch.randn(7, 4, dtype=double)
    p = likelihood.mean(z)
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum((-2, -1))
    torch.testing.assert_close(likelihood.log_prob(x, z), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(likelihood.distribution(z).log_prob(x), expected)


@every
@pytest.mark.parametrize("event_shape", [(5,), (1, 4, 4), (2, 3)])
def test_shapes(name, options, event_shape):
    likelihood = make(name, options, event_shape)
    for batch, lead in [((), ()), ((7,), (7,)), ((7,), (3, 7)), ((0,), (3, 0)), ((7,), (0, 7))]:
        x, z = event(likelihood, *batch), torch.randn(*lead, 4, dtype=double)
        value = likelihood.log_prob(x, z)
        assert value.shape == lead
        assert value.dtype == double
        assert likelihood.mean(z).shape == likelihood.sample(z).shape == (*lead, *likelihood.event_shape)
        assert likelihood.distribution(z).batch_shape == lead
        assert likelihood.distribution(z).event_shape == likelihood.event_shape
        assert math.prod(likelihood.event_shape) == math.prod(event_shape)


@every
def test_each_sample_is_scored_as_if_alone(name, options):
    likelihood = make(name, options)
    x, z = event(likelihood, 5), torch.randn(3, 5, 4, dtype=double)
    together = likelihood.log_prob(x, z)
    for s, b in itertools.product(range(3), range(5)):
        torch.testing.assert_close(likelihood.log_prob(x[b], z[s, b]), together[s, b])


def test_uniform_pixels_cost_one_bit_each():
    likelihood = Bernoulli(Given((784,)), 784).to(double)
    x = (torch.rand(5, 784) > 0.5).to(double)
    value = likelihood.log_prob(x, torch.zeros(5, 784, dtype=double))
    # A sum of 784 equal terms is rounded at each addition, in an order that depends on the processor.
    torch.testing.assert_close(
        value, torch.full_like(value, -784 * math.log(2)), rtol=784 * 2**-53, atol=0
    )


def test_the_bernoulli_sums_to_one_over_all_events():
    likelihood = make("bernoulli", {}, event_shape=(2, 2))
    events = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=double)
    z = torch.randn(6, 1, 4, dtype=double)
    total = likelihood.log_prob(events.unflatten(-1, (2, 2)), z.expand(6, 16, 4)).logsumexp(-1)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", SCALES)
def test_the_gaussian_integrates_to_one(scale):
    likelihood = make("gaussian", {"scale": scale}, event_shape=(2,))
    z = torch.randn(4, dtype=double)
    mean, log_scale = likelihood.parameters_at(z)
    spread = torch.as_tensor(log_scale, dtype=double).exp().expand(2)
    # Trapezoids out to nine standard deviations: the rule is exact to rounding for such a bell.
    steps = torch.linspace(-9, 9, 201, dtype=double)
    grid = torch.cartesian_prod(*(mean[:, None] + spread[:, None] * steps).detach())
    area = spread.prod() * (steps[1] - steps[0]) ** 2
    mass = likelihood.log_prob(grid, z.expand(len(grid), 4)).exp().sum() * area
    assert abs(mass.item() - 1) < 1e-12


@given(st.floats(-1e4, 1e4, allow_subnormal=False), st.sampled_from([0.0, 1.0]))
@example(0.0, 1.0)
@example(21.0, 1.0)  # where torch's own softplus is off by 8e-10
@example(-1e4, 0.0)
@settings(max_examples=60, deadline=None)
def test_extreme_logits_are_finite_and_right(logit, x):
    """log p = −log(1 + exp(∓l)), in float32 to its own accuracy; the gradient is x − σ(l)."""
    likelihood = Bernoulli(Given((1,)), 1)
    signed = logit if x == 1 else -logit
    exact = -math.log1p(math.exp(-signed)) if signed > 0 else signed - math.log1p(math.exp(signed))
    for dtype in (torch.float32, double):
        z = torch.tensor([logit], dtype=dtype, requires_grad=True)
        value = likelihood.log_prob(torch.tensor([x], dtype=dtype), z)
        (slope,) = torch.autograd.grad(value, z)
        tolerance = 4 * torch.finfo(dtype).eps * (1 + abs(logit))
        assert abs(value.item() - exact) <= tolerance
        assert abs(slope.item() - (x - torch.sigmoid(torch.tensor(logit, dtype=double)).item())) < (
            1e-6 if dtype == torch.float32 else 1e-15
        )


def test_float32_sums_of_a_picture_are_accurate():
    likelihood = Bernoulli(Given((784,)), 784)
    logits = 5 * torch.randn(200, 784, dtype=double)
    x = (torch.rand(200, 784) > 0.5).to(double)
    error = likelihood.log_prob(x.float(), logits.float()).double() - likelihood.log_prob(x, logits)
    assert error.abs().max() < 1e-3
    assert error.mean().abs() < 1e-4


@every
def test_twice_differentiable(name, options, device):
    likelihood = make(name, options).to(device)
    x = event(likelihood, 2).to(device)
    z = torch.randn(3, 2, 4, dtype=double).to(device).requires_grad_()

    def value(z, *parameters):
        named = dict(zip(dict(likelihood.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(likelihood, named, (x, z))

    inputs = (z, *likelihood.parameters())
    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(value, inputs, fast_mode=True)


@pytest.mark.parametrize("name", likelihoods.TABLE)
def test_the_gradient_in_x_is_right_too(name):
    likelihood = make(name, {"grey": True} if name == "bernoulli" else {})
    x = torch.rand(3, *likelihood.event_shape, dtype=double, requires_grad=True)
    z = torch.randn(3, 4, dtype=double)
    assert torch.autograd.gradcheck(lambda x: likelihood.log_prob(x, z), x)


@every
def test_many_likelihoods_in_one_program(name, options, device):
    several = [make(name, options, seed=seed).to(device) for seed in range(3)]
    parameters, _ = torch.func.stack_module_state(several)
    x, z = event(several[0], 3, 5).to(device), torch.randn(3, 2, 5, 4, dtype=double).to(device)
    together = torch.func.vmap(
        lambda p, x, z: torch.func.functional_call(several[0], p, (x, z)),
    )(parameters, x, z)
    alone = [one.log_prob(a, b) for one, a, b in zip(several, x, z, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-12)


@every
def test_densities_stay_in_float32_under_autocast(name, options):
    likelihood = make(name, options, dtype=torch.float32)
    x, z = event(likelihood, 5, dtype=torch.float32), torch.randn(3, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        value = likelihood.log_prob(x, z)
        assert likelihood.sample(z).dtype == torch.float32
    assert value.dtype == torch.float32
    half = value.to(torch.bfloat16).float()
    assert (half != value).any()


@every
def test_sample_means_and_variances(name, options):
    """Means within 4 standard errors, variances too (Gaussian: var of s² is 2σ⁴/n)."""
    likelihood = make(name, options, event_shape=(9,) if name == "columns" else (3,))
    n = 20_000
    z = torch.randn(4, dtype=double)
    with random.stream(seed=7):
        x = likelihood.sample(z.expand(n, 4))
    expected = likelihood.distribution(z)
    error = (x.mean(0) - expected.mean) / (expected.variance / n).sqrt()
    assert error.abs().max() < 4
    if name == "columns":
        # Of codes and of logarithms it gives something else than the mean.
        return
    torch.testing.assert_close(likelihood.mean(z), expected.mean, rtol=1e-14, atol=1e-14)
    if name == "gaussian":
        spread = (x.var(0) / expected.variance - 1) / math.sqrt(2 / n)
        assert spread.abs().max() < 4
    else:
        values = torch.linspace(0, 1, getattr(likelihood, "levels", 2), dtype=double)
        assert torch.equal(x.unique(), values)


@every
def test_samples_come_from_the_stream_and_ranks_share_the_batch(name, options):
    likelihood = make(name, options)
    z = torch.randn(3, 6, 4, dtype=double)
    with random.stream(seed=1, step=5):
        whole = likelihood.sample(z)
    with random.stream(seed=1, step=5, rank=1, world=2):
        half = likelihood.sample(z[:, 3:])
    torch.testing.assert_close(half, whole[:, 3:], rtol=1e-12, atol=1e-12)
    with random.stream(seed=1, step=6):
        assert not torch.equal(likelihood.sample(z), whole)


def test_learned_scales_reach_the_maximum_likelihood_answer():
    """At a fixed mean the best σ is the root mean square residual, of all elements or of each."""
    residual = torch.tensor([0.1, 1.0, 3.0], dtype=double) * torch.randn(50, 3, dtype=double)
    z = torch.zeros(50, 3, dtype=double)
    for scale, best in (
        ("learned", residual.square().mean()),
        ("per-dimension", residual.square().mean(0)),
    ):
        likelihood = Gaussian(Given((3,)), 3, scale).to(double)
        assert torch.equal(likelihood.log_scale.exp(), torch.ones_like(best))
        with torch.no_grad():
            likelihood.log_scale.copy_(0.5 * best.log())
        slope = torch.autograd.grad(likelihood.log_prob(residual, z).sum(), likelihood.log_scale)[0]
        assert slope.abs().max() < 1e-10


def test_the_decoder_stacks_mean_and_log_scale_along_the_first_event_dimension():
    shape = Gaussian.decoder_shape((2, 3), scale="decoder")
    assert shape == (4, 3)
    likelihood = Gaussian(Given(shape), (2, 3), "decoder").to(double)
    z = torch.arange(12, dtype=double)
    mean, log_scale = likelihood.parameters_at(z)
    assert torch.equal(mean, z[:6].view(2, 3))
    assert torch.equal(log_scale, z[6:].view(2, 3))


def test_sizes_of_decoders():
    assert Bernoulli.decoder_shape(7, grey=True) == (7,)
    assert Gaussian.decoder_shape((1, 8, 8)) == (1, 8, 8)
    assert Gaussian.decoder_shape((3, 8, 8), scale="decoder") == (6, 8, 8)
    assert make("gaussian", {"scale": "decoder"}).outputs == 2
    assert make("gaussian", {"scale": "0.5"}).scale == 0.5


@pytest.mark.parametrize(
    ("name", "options", "support", "words"),
    [
        ("bernoulli", {}, "unit", "Bernoulli takes binary.*the data are unit.*grey=True"),
        ("bernoulli", {}, "real", "the data are real"),
        ("bernoulli", {"grey": True}, "real", "binary or unit"),
        ("gaussian", {}, "binary", "the data are binary; use a Bernoulli"),
        ("gaussian", {}, "levels", "the data are levels; use likelihood=logistics"),
        ("gaussian", {}, "grey", "the data are grey; a density at points has no upper bound"),
        ("bernoulli", {}, "levels", "the data are levels"),
        ("logistics", {}, "real", "Logistics takes levels.*the data are real; use protocol=levels"),
        ("categorical", {"levels": 3}, "unit", "the data are unit; use protocol=levels"),
        ("columns", {}, "real", "Columns takes columns values of x, the data are real; use protocol=columns"),
        ("gaussian", {}, "columns", "the data are columns; use likelihood=columns"),
    ],
)
def test_data_without_a_density_are_refused_by_name(name, options, support, words):
    with pytest.raises(SpecError, match=words):
        make(name, options).check_support(support)


@every
def test_declared_supports_are_accepted(name, options):
    likelihood = make(name, options)
    for support in likelihood.support:
        likelihood.check_support(support)
    likelihood.check(event(likelihood, 4))


@pytest.mark.parametrize(
    ("name", "options", "bad", "words"),
    [
        ("bernoulli", {}, 0.5, "value 0.5; Bernoulli takes 0 and 1; binarize"),
        ("bernoulli", {"grey": True}, 1.5, r"value 1.5; Bernoulli takes \[0, 1\]"),
        ("bernoulli", {}, math.nan, "1 of 24 values are NaN or infinite"),
        ("gaussian", {}, math.nan, "1 of 24 values are NaN or infinite"),
        ("gaussian", {}, math.inf, "NaN or infinite"),
        ("logistics", {"levels": 5}, 0.3, "value 0.3, which is none of the 5 levels k/4"),
        ("categorical", {"levels": 5}, 1.25, r"value 1.25; Categorical takes \[0, 1\]"),
        ("columns", {}, math.nan, "1 of 24 values are NaN or infinite; give a mask"),
        ("columns", {}, 2.0, "column 'smokes' has the value 2; a binary column takes 0 and 1"),
    ],
)
def test_bad_values_are_named(name, options, bad, words):
    likelihood = make(name, options)
    x = event(likelihood, 4)
    x[2].view(-1)[3] = bad
    with pytest.raises(DataError, match=words):
        likelihood.check(x)


@every
def test_bad_shapes_and_dtypes_are_refused(name, options):
    likelihood = make(name, options)
    z = torch.zeros(5, 4, dtype=double)
    for call in (likelihood.check, lambda x: likelihood.log_prob(x, z)):
        sizes = ", ".join(map(str, likelihood.event_shape))
        with pytest.raises(ShapeError, match=rf"shape \(5, 7\); this .* needs \[\.\.\., {sizes}\]"):
            call(torch.zeros(5, 7, dtype=double))
        with pytest.raises(ShapeError, match=r"torch\.int64.*x\.float\(\)"):
            call(torch.zeros(5, *likelihood.event_shape, dtype=torch.long))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Bernoulli(MLP(2, 5), 6), r"puts out \(5,\).*Bernoulli.*\(6,\)"),
        (lambda: Gaussian(MLP(2, 6), 6, "decoder"), r"out_shape=\(12,\)"),
        (lambda: Bernoulli(MLP(2, 5), ()), r"event_shape: was \(\)"),
        (lambda: Bernoulli.decoder_shape(()), r"event_shape: was \(\)"),
        (lambda: Bernoulli(MLP(2, 5), (5, 0)), "event_shape"),
        (lambda: Gaussian(MLP(2, 5), 5, 0.0), r"scale: was 0\.0; use a positive number"),
        (lambda: Gaussian(MLP(2, 5), 5, -1), "scale: was -1"),
        (lambda: Gaussian(MLP(2, 5), 5, math.inf), "scale: was inf"),
        (lambda: Gaussian(MLP(2, 5), 5, True), "scale: was True"),
        (lambda: Gaussian(MLP(2, 5), 5, "lerned"), "did you mean 'learned'"),
        (lambda: Logistics(MLP(2, 5), 5), r"puts out \(5,\).*\(75,\)"),
        (lambda: Logistics(MLP(2, 15), 5, levels=1, components=1), "levels: was 1; give"),
        (lambda: Logistics(MLP(2, 15), 5, components=0), "components"),
        (lambda: Categorical(MLP(2, 15), 5, levels=None), "levels: was None"),
    ],
)
def test_impossible_settings_are_refused(call, words):
    with pytest.raises(SpecError, match=words):
        call()
