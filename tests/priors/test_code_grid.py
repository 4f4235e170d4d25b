"""Priors over grids of codes: exact probabilities, causality, and sampling that computes each position once."""

import math
from collections import Counter
from unittest import mock

import pytest
import torch
from torch.nn import functional

from varflow import priors
from varflow.core import random
from varflow.core.errors import DataError, ShapeError, SpecError
from varflow.priors.code_grid import pick

SMALL = {"channels": 6, "layers": 2, "kernel": 5, "embedding": 5, "hidden": 8}
KINDS = [priors.PixelCNN, priors.GatedPixelCNN]
kinds = pytest.mark.parametrize("kind", KINDS)
normalizations = pytest.mark.parametrize("normalization", ["layer", "none"])


def build(kind, shape=(4, 5), codes=4, spread=0.4, **settings):
    """A prior with random parameters in float64: a new one is uniform and would hide mistakes."""
    prior = kind(shape, codes, **{**SMALL, **settings}).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=spread)
    return prior


def grids(shape, codes):
    places = math.prod(shape)
    return torch.cartesian_prod(*[torch.arange(codes)] * places).reshape(-1, *shape)


def naive(prior, count, labels=None):
    """One full pass a position, the same uniform numbers."""
    height, width = prior.event_shape
    z = torch.zeros(count, height, width, dtype=torch.long)
    noise = random.uniform((count, height, width), "prior", dtype=torch.float64)
    with torch.no_grad():
        for i in range(height):
            for j in range(width):
                z[:, i, j] = pick(prior.logits(z, labels)[:, i, j], noise[:, i, j])
    return z


def reach(prior):
    """``[H·W, H·W]``: whether the logits of a position depend on the code at another.

    With a smooth function in place of rectifiers: of those some are off, and a way behind them looks closed.
    """
    prior = prior.train()
    z = torch.randint(prior.codes, (1, *prior.event_shape))
    embedded = prior.embed(z).detach()
    with mock.patch.object(functional, "relu", lambda x, inplace=False: functional.softplus(x)):
        jacobian = torch.autograd.functional.jacobian(
            lambda e: prior._logits(e, None)[0].sin().sum(-1).flatten(), embedded
        )
    return jacobian[:, 0].abs().sum(-1).flatten(1) > 0


@kinds
@normalizations
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (4, 3)])
def test_logits_depend_on_every_earlier_code_and_no_other(kind, normalization, shape):
    seen = reach(build(kind, shape, normalization=normalization))
    assert torch.equal(seen, torch.ones_like(seen).tril(-1))


def test_gated_has_no_blind_spot_and_the_masks_alone_have_the_known_one():
    shape = (4, 9)
    settings = {"kernel": 3, "layers": 9}
    gated = reach(build(priors.GatedPixelCNN, shape, **settings))
    assert torch.equal(gated, torch.ones_like(gated).tril(-1))
    masked = reach(build(priors.PixelCNN, shape, **settings)).reshape(*shape, *shape)
    # From each row to the one above, one column to the right at most.
    i, j, a, b = torch.meshgrid(*map(torch.arange, (*shape, *shape)), indexing="ij")
    before = (a < i) | ((a == i) & (b < j))
    assert torch.equal(masked, before & (b - j <= i - a))


@kinds
@normalizations
def test_the_81_probabilities_of_a_small_grid_sum_to_one(kind, normalization):
    prior = build(kind, (2, 2), 3, normalization=normalization)
    total = prior.log_prob(grids((2, 2), 3)).logsumexp(0)
    assert abs(total.item()) < 1e-12


@kinds
def test_samples_follow_the_probabilities(kind):
    prior = build(kind, (2, 2), 3, spread=0.3).float()
    z = grids((2, 2), 3)
    with random.stream(1), torch.no_grad():
        draws = prior.sample((100_000,))
        expected = prior.log_prob(z).double().exp() * len(draws)
    weights = torch.tensor([27, 9, 3, 1])
    seen = torch.bincount(draws.flatten(1) @ weights, minlength=81)
    assert expected.min() > 5
    statistic = ((seen - expected).square() / expected).sum().item()
    # 80 degrees of freedom: mean 80, variance 160.
    assert abs(statistic - 80) < 4 * math.sqrt(160)


@kinds
@normalizations
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("shape", [(4, 5), (1, 3), (5, 1), (1, 1)])
def test_cached_sampling_is_naive_sampling(kind, normalization, classes, shape):
    prior = build(kind, shape, normalization=normalization, classes=classes)
    labels = None if classes is None else torch.arange(7) % 3
    with random.stream(3):
        z, log_prob = prior.sample_and_log_prob((7,), labels=labels)
    with random.stream(3):
        assert torch.equal(z, naive(prior, 7, labels))
    torch.testing.assert_close(log_prob, prior.log_prob(z, labels), atol=1e-12, rtol=0)
    assert not log_prob.requires_grad


@kinds
def test_the_recorded_log_prob_is_right_in_float32(kind):
    prior = build(kind, (6, 6), 20).float()
    with random.stream(0):
        told: list[tuple[int, int]] = []
        z, log_prob = prior.sample_and_log_prob((8,), progress=lambda *counts: told.append(counts))
        positions = math.prod(prior.event_shape)
        assert told == [(done, positions) for done in range(1, positions + 1)]
    assert (log_prob - prior.log_prob(z)).abs().max() < 1e-5 * log_prob.abs().max()


@kinds
def test_a_new_prior_is_uniform(kind):
    for classes in (None, 2):
        prior = kind((3, 2), 8, **SMALL, classes=classes).double()
        z = torch.randint(8, (4, 3, 2))
        labels = None if classes is None else torch.tensor([0, 1, 1, 0])
        bits = -prior.log_prob(z, labels) / math.log(2)
        torch.testing.assert_close(bits, torch.full_like(bits, 6 * 3.0), atol=1e-12, rtol=0)


@kinds
@pytest.mark.parametrize("training", [True, False])
def test_no_example_touches_another(kind, training):
    prior = build(kind).train(training)
    z = torch.randint(4, (3, 2, 4, 5))
    whole = prior.log_prob(z)
    assert whole.shape == (3, 2)
    for index in range(3):
        torch.testing.assert_close(prior.log_prob(z[index]), whole[index])
    torch.testing.assert_close(prior.log_prob(z[1, 0]), whole[1, 0])
    assert prior.log_prob(z[:0]).shape == (0, 2)


@kinds
def test_classes_matter_and_broadcast(kind):
    prior = build(kind, classes=3)
    z = torch.randint(4, (4, 5))
    each = torch.stack([prior.log_prob(z, torch.tensor(label)) for label in range(3)])
    torch.testing.assert_close(prior.log_prob(z.expand(3, 4, 5), torch.arange(3)), each)
    assert each.unique().numel() == 3
    total = prior.sample((2, 3), labels=torch.arange(3))
    assert total.shape == (2, 3, 4, 5)


@kinds
def test_temperature_and_top_k(kind):
    prior = build(kind, (3, 3), 6)
    greedy = prior.sample((5,), top_k=1)
    assert (prior.logits(greedy).argmax(-1) == greedy).all()
    cold = prior.sample((5,), temperature=1e-6)
    assert torch.equal(cold, greedy)
    z = prior.sample((50,), top_k=2)
    assert (prior.logits(z).topk(2, -1).indices == z.unsqueeze(-1)).any(-1).all()


@kinds
def test_one_code_is_certain(kind):
    prior = build(kind, (2, 3), 1)
    z = prior.sample((4,))
    assert not z.any()
    assert prior.log_prob(z).abs().max() < 1e-12


def test_pick_never_draws_what_has_no_probability():
    largest = 1 - 2.0**-24
    logits = torch.tensor([[-math.inf, 0.3, -math.inf, 0.1, -math.inf]]).expand(4, 5)
    noise = torch.tensor([0.0, 0.3, 0.9, largest])
    assert pick(logits, noise).tolist() == [1, 1, 3, 3]


def test_pick_inverts_the_distribution_function():
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    noise = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = Counter(pick(logits.expand(1000, 3), noise).tolist())
    assert drawn == {0: 200, 1: 500, 2: 300}


@kinds
def test_gradients_by_finite_differences_to_second_order(kind):
    prior = build(kind, (2, 2), 3, classes=2)
    z, label = grids((2, 2), 3)[40], torch.tensor(1)
    parameters = {name: p.detach() for name, p in prior.named_parameters()}
    names = ["embed.weight", "shifts.weight"]

    def value(*chosen):
        given = {**parameters, **dict(zip(names, chosen, strict=True))}
        return torch.func.functional_call(_Scored(prior), _under(given), (z, label))

    inputs = [parameters[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(value, inputs)
    direction = [torch.randn_like(t) for t in inputs]
    first = torch.autograd.grad(value(*inputs), inputs, create_graph=True)
    slope = sum((g * d).sum() for g, d in zip(first, direction, strict=True))
    second = torch.autograd.grad(slope, inputs)
    step = 1e-5
    ends = []
    for sign in (1, -1):
        moved = [
            (t + sign * step * d).detach().requires_grad_()
            for t, d in zip(inputs, direction, strict=True)
        ]
        ends.append(torch.autograd.grad(value(*moved), moved))
    for got, up, down in zip(second, *ends, strict=True):
        torch.testing.assert_close(got, (up - down) / (2 * step), atol=1e-6, rtol=1e-5)


class _Scored(torch.nn.Module):
    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, z, labels):
        return self.prior.log_prob(z, labels)


def _under(parameters):
    return {f"prior.{name}": value for name, value in parameters.items()}


@kinds
def test_many_priors_at_once_by_vmap(kind):
    members = [build(kind, (3, 3), 4) for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(members)
    z = torch.randint(4, (5, 3, 3))
    scored = _Scored(members[0])

    def log_prob(member):
        return torch.func.functional_call(scored, _under(member), (z, None))

    each = torch.stack([member.log_prob(z) for member in members])
    torch.testing.assert_close(torch.func.vmap(log_prob)(parameters), each)


@kinds
def test_a_training_step_in_bfloat16_keeps_densities_in_float32(kind):
    prior = kind((4, 4), 6, **SMALL, classes=2)
    z, labels = torch.zeros(8, 4, 4, dtype=torch.long), torch.arange(8) % 2
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            log_prob = prior.log_prob(z, labels)
        assert log_prob.dtype is torch.float32
        optimizer.zero_grad()
        (-log_prob.mean()).backward()
        optimizer.step()
        losses.append(-log_prob.mean().item())
    assert abs(losses[0] - 16 * math.log(6)) < 1e-4
    assert losses[-1] < 0.5 * losses[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert prior.sample((2,), labels=torch.arange(2)).shape == (2, 4, 4)


@kinds
def test_maximum_likelihood_learns_a_grid_that_repeats(kind):
    """Each code is its left neighbour's successor, the first of a row free: the entropy is H log K."""
    prior = kind((3, 4), 3, **SMALL)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for step in range(150):
        with random.stream(5, step):
            first = (random.uniform((64, 3, 1), "data") * 3).long()
        z = (first + torch.arange(4)) % 3
        loss = -prior.log_prob(z).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 3 * math.log(3) - 0.3 < loss.item() < 3 * math.log(3) + 0.5


def test_uniform_codes():
    prior = priors.UniformCodes((3, 5), 7).double()
    z = prior.sample((2000,))
    assert z.shape == (2000, 3, 5)
    assert z.unique().tolist() == list(range(7))
    expected = torch.full((2000,), -15 * math.log(7), dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(z), expected)
    seen = z.flatten().bincount(minlength=7).double()
    statistic = ((seen - 30_000 / 7).square() / (30_000 / 7)).sum()
    assert abs(statistic.item() - 6) < 4 * math.sqrt(12)


@kinds
def test_draws_depend_on_the_stream_alone(kind):
    prior = build(kind)
    with random.stream(9, 4):
        first = prior.sample((3,))
    with random.stream(9, 4):
        assert torch.equal(prior.sample((3,)), first)


@kinds
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: p.log_prob(torch.zeros(4, 5)), ShapeError, "z: was torch.float32"),
        (lambda p: p.log_prob(torch.zeros(5, 4).long()), ShapeError, "needs \\[..., 4, 5\\]"),
        (lambda p: p.log_prob(torch.full((4, 5), 4)), DataError, "from 0 to 3"),
        (lambda p: p.log_prob(torch.full((4, 5), -1)), DataError, "from 0 to 3"),
        (lambda p: p.log_prob(torch.zeros(4, 5).long(), torch.tensor(0)), SpecError, "no classes"),
        (lambda p: p.sample((2,), temperature=0), SpecError, "temperature: was 0"),
        (lambda p: p.sample((2,), temperature=math.inf), SpecError, "temperature: was inf"),
        (lambda p: p.sample((2,), top_k=5), SpecError, "top_k: was 5; use 1 to 4"),
    ],
)
def test_what_cannot_be_is_named(kind, call, error, words):
    with pytest.raises(error, match=words):
        call(build(kind))


@kinds
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: p.sample((2,)), SpecError, "labels: missing"),
        (lambda p: p.sample((2,), labels=torch.zeros(2)), ShapeError, "labels: was torch.float32"),
        (lambda p: p.sample((2,), labels=torch.arange(3)), ShapeError, "broadcasts to \\(2,\\)"),
        (lambda p: p.sample((2,), labels=torch.tensor(3)), DataError, "labels: out of range"),
        (lambda p: p.log_prob(torch.zeros(4, 5).long(), torch.tensor(3)), DataError, "from 0 to 2"),
    ],
)
def test_wrong_labels_are_named(kind, call, error, words):
    with pytest.raises(error, match=words):
        call(build(kind, classes=3))


@kinds
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape": (4,)}, "shape: was"),
        ({"shape": (4, 0)}, "width: was 0"),
        ({"codes": 0}, "codes: was 0"),
        ({"layers": 0}, "layers: was 0"),
        ({"kernel": 4}, "kernel: was 4"),
        ({"kernel": 1}, "kernel: was 1"),
        ({"normalization": "batch"}, "normalization: unknown value 'batch'"),
        ({"classes": 0}, "classes: was 0"),
    ],
)
def test_impossible_settings_are_named(kind, settings, words):
    with pytest.raises(SpecError, match=words):
        kind(**{"shape": (4, 5), "codes": 4, **SMALL, **settings})
