"""Every target of the table against independent routes to its exact answers."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev, stack_module_state, vmap

from varflow import targets
from varflow.core import random
from varflow.core.errors import ShapeError, SpecError
from varflow.core.lazy import resolve
from varflow.targets import TABLE, Banana, Funnel, GaussianMixture, Ring, Target, grid, integrate

NAMES = sorted(set(TABLE) - {"gaussian-model"})
#: Targets without log Z in closed form, to four decimals.
LOG_Z = {"u1": 1.8775, "u2": 2.1766, "u3": 2.7362, "u4": 2.7987}
#: Where quadrature has to break, and how fine it has to be, by a rule of its own for each target.
RULES: dict[str, Callable[[], targets.Grid]] = {
    **{name: lambda: grid((-8, -4, 0, 4, 8), (-8, -4, 0, 4, 8), 0.4, 20) for name in LOG_Z},
    "ring": lambda: grid((-6, 0, 6), (-6, 0, 6), 0.3, 16),
    "banana": lambda: grid((-18, 18), (-12, 170), 1.0, 8),
    "mixture": lambda: grid((-11, 11), (-11, 11), 0.5, 10),
}
#: Targets whose sample moments are good enough to test (the funnel's have no use at s = 3).
SAMPLED = [name for name in NAMES if name != "funnel"]

names = pytest.mark.parametrize("name", NAMES)


def build(name: str) -> Target:
    target: Target = resolve(TABLE[name])(2)
    return target.double()


def points(count: int = 6, features: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, features, generator=generator, dtype=torch.float64)


@names
def test_answers_agree_with_another_quadrature(name: str) -> None:
    if name == "funnel":
        target, rule = Funnel(2, scale=0.7).double(), grid((-7, 7), (-60, 0, 60), 0.5, 12)
    else:
        target, rule = build(name), RULES[name]()
    moments = integrate(target.log_prob, rule)
    assert moments.log_normalizer == pytest.approx(target.log_normalizer, abs=1e-8)
    assert moments.entropy == pytest.approx(target.entropy, abs=1e-7)
    torch.testing.assert_close(moments.mean, target.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.covariance, target.covariance, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(LOG_Z))
def test_log_normalizers_of_the_energies(name: str) -> None:
    assert build(name).log_normalizer == pytest.approx(LOG_Z[name], abs=5e-5)


def _energy(name: str, x: float, y: float) -> float:
    """The table of the paper, as it stands there, with the wall."""
    w1 = math.sin(2 * math.pi * x / 4)
    w2 = 3 * math.exp(-0.5 * ((x - 1) / 0.6) ** 2)
    w3 = 3 / (1 + math.exp(-(x - 1) / 0.3))
    wall = 5 * (max(abs(x) - 4, 0) ** 2 + max(abs(y) - 4, 0) ** 2)
    if name == "u1":
        lobes = math.exp(-0.5 * ((x - 2) / 0.6) ** 2) + math.exp(-0.5 * ((x + 2) / 0.6) ** 2)
        return 0.5 * ((math.hypot(x, y) - 2) / 0.4) ** 2 - math.log(lobes)
    if name == "u2":
        return 0.5 * ((y - w1) / 0.4) ** 2 + wall
    other, width = (w2, 0.35) if name == "u3" else (w3, 0.4)
    first = math.exp(-0.5 * ((y - w1) / width) ** 2)
    return -math.log(first + math.exp(-0.5 * ((y - w1 + other) / 0.35) ** 2)) + wall


@pytest.mark.parametrize("name", sorted(LOG_Z))
def test_energies_are_those_of_the_paper(name: str) -> None:
    z = torch.cat([points(40), torch.tensor([[4.5, 1.0], [-1.0, -5.0]]).double()])
    expected = [-_energy(name, *row) for row in z.tolist()]
    torch.testing.assert_close(build(name).log_prob(z), torch.tensor(expected).double())


@pytest.mark.parametrize("name", sorted(LOG_Z))
def test_energies_are_finite_and_steep_far_away(name: str) -> None:
    target = resolve(TABLE[name])(2)
    z = torch.tensor([[60.0, -70.0], [-300.0, 200.0], [0.0, 0.0]], requires_grad=True)
    value = target.log_prob(z)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient[:2].norm(dim=-1) > 100).all()


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_have_the_exact_moments(name: str) -> None:
    target, count = build(name), 40_000
    with random.stream(3):
        z = target.sample((count,))
    assert target.mean is not None
    assert target.covariance is not None
    assert target.log_normalizer is not None
    log_density = target.log_density(z)
    error = log_density.std() / math.sqrt(count)
    assert abs(-log_density.mean() - target.entropy) < 4 * error
    offset = z - target.mean
    assert (offset.mean(0).abs() < 4 * target.covariance.diagonal().sqrt() / math.sqrt(count)).all()
    products = offset[:, :, None] * offset[:, None, :]
    spread = products.std(0) / math.sqrt(count)
    assert ((products.mean(0) - target.covariance).abs() < 4 * spread).all()


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_fill_cells_in_proportion_to_their_mass(name: str) -> None:
    """Pearson's χ² over 12 × 12 cells, whose masses come from quadrature."""
    target, count, cells = build(name), 40_000, 12
    assert target.window is not None
    with random.stream(4):
        z = target.sample((count,))
    x0, x1, y0, y1 = target.window
    # Gauss weights of panels that a cell cuts count wrongly, so the cells' edges are those of fine panels.
    fine = grid(
        torch.linspace(x0, x1, cells + 1).tolist(),
        torch.linspace(y0, y1, cells + 1).tolist(),
        panel=(x1 - x0) / cells / 3,
        nodes=8,
    )
    mass = (fine.log_weights + target.log_density(fine.points)).exp()

    def cell(at: Tensor) -> Tensor:
        low, size = torch.tensor([x0, y0]), torch.tensor([x1 - x0, y1 - y0])
        place = ((at - low) / size * cells).floor().clamp(-1, cells).long()
        inside = ((place >= 0) & (place < cells)).all(-1)
        return torch.where(inside, place[:, 0] * cells + place[:, 1], cells * cells)

    expected = torch.zeros(cells * cells + 1).double().index_add_(0, cell(fine.points), mass)
    expected[-1] = 1 - expected[:-1].sum()
    seen = torch.bincount(cell(z), minlength=cells * cells + 1).double()
    enough = count * expected >= 5
    expected = torch.cat([expected[enough], expected[~enough].sum()[None]]) * count
    seen = torch.cat([seen[enough], seen[~enough].sum()[None]])
    kept = expected > 1e-3
    statistic = ((seen - expected)[kept].square() / expected[kept]).sum()
    freedom = int(kept.sum()) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@names
def test_twice_differentiable(name: str, device: str) -> None:
    target, z = build(name).to(device), points().to(device).requires_grad_()
    assert torch.autograd.gradcheck(target.log_prob, z)
    assert torch.autograd.gradgradcheck(target.log_prob, z)


@names
def test_examples_are_independent_and_shapes_are_kept(name: str) -> None:
    target = build(name)
    z = points(4)
    whole = target.log_prob(z)
    influence = jacrev(target.log_prob)(z).abs().sum(-1)
    assert torch.equal(influence * (1 - torch.eye(4)), torch.zeros(4, 4).double())
    torch.testing.assert_close(vmap(target.log_prob)(z), whole, rtol=1e-14, atol=1e-14)
    for batch in [(), (1,), (2, 3), (0,)]:
        z = points(max(1, math.prod(batch)))[: math.prod(batch)].reshape(*batch, 2)
        for dtype in (torch.float32, torch.float64):
            value = target.to(dtype).log_prob(z.to(dtype))
            assert (value.shape, value.dtype) == (batch, dtype)
    with pytest.raises(ShapeError, match=r"z: shape \(4, 3\)"):
        target.log_prob(torch.zeros(4, 3))


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_are_repeatable_and_have_the_dtype(name: str, dtype: torch.dtype) -> None:
    target = build(name).to(dtype)
    with random.stream(1):
        first = target.sample((2, 5))
    with random.stream(1):
        again = target.sample((2, 5))
    assert (first.shape, first.dtype) == ((2, 5, 2), dtype)
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert target.sample().shape == (2,)
    assert target.sample((0, 3)).shape == (0, 3, 2)


@names
def test_answers_are_float64_in_a_float32_target(name: str) -> None:
    """The quadrature never runs in single precision; what is a tensor has the target's dtype."""
    single = resolve(TABLE[name])(2)
    double = build(name)
    tolerance = 1e-6 if name == "mixture" else 0  # its locations are buffers
    assert single.log_normalizer == pytest.approx(double.log_normalizer, abs=tolerance)
    assert single.entropy == pytest.approx(double.entropy, abs=tolerance)
    assert single.mean.dtype == torch.float32
    assert single.covariance.dtype == torch.float32


@names
def test_pickles_and_copies(name: str) -> None:
    target, z = build(name), points()
    assert target.entropy is not None
    for twin in (pickle.loads(pickle.dumps(target)), copy.deepcopy(target)):
        assert torch.equal(twin.log_prob(z), target.log_prob(z))
        assert twin.entropy == target.entropy
        assert twin.modes is None or torch.equal(twin.modes, target.modes)


@names
def test_samples_are_on_the_target_device_and_constants_follow(name: str) -> None:
    target = build(name).to("meta")
    assert target.log_prob(torch.empty(3, 2, device="meta")).device.type == "meta"


@pytest.mark.parametrize("name", ["u1", "u3", "u4", "mixture"])
def test_mode_probabilities(name: str) -> None:
    target = build(name)
    assert target.modes is not None
    assert target.mode_weights is not None
    own = target.mode_probabilities(target.modes)
    assert (own.diagonal() > 0.99).all()
    z = points(50)
    torch.testing.assert_close(target.mode_probabilities(z).sum(-1), torch.ones(50).double())
    with random.stream(5):
        z = target.sample((20_000,))
    shares = target.mode_probabilities(z)
    error = shares.std(0) / math.sqrt(len(z))
    assert ((shares.mean(0) - target.mode_weights).abs() < 4 * error).all()
    assert target.mode_weights.sum() == pytest.approx(1, abs=1e-9)


def test_modes_of_u1_are_maxima() -> None:
    target = build("u1")
    assert target.modes is not None
    z = target.modes.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_prob(z).sum(), z)
    assert gradient.abs().max() < 1e-6
    # Along the ring the maximum is of fourth order: its Hessian is singular.
    angle = torch.linspace(0, 2 * math.pi, 41, dtype=torch.float64)[:, None, None]
    around = target.modes + 0.1 * torch.cat([angle.cos(), angle.sin()], -1)
    assert (target.log_prob(around) < target.log_prob(target.modes)).all()


@pytest.mark.parametrize("name", ["u2", "ring", "banana", "funnel"])
def test_targets_without_modes_say_so(name: str) -> None:
    assert build(name).modes is None
    assert build(name).mode_weights is None
    with pytest.raises(SpecError, match="no separate modes"):
        build(name).mode_probabilities(points())


# The closed forms, beyond the defaults.


@pytest.mark.parametrize(("radius", "width"), [(1.0, 0.1), (3.0, 1.0), (1.0, 0.9)])
def test_ring_with_any_width(radius: float, width: float) -> None:
    ring = Ring(radius=radius, width=width).double()
    edge = radius + 10 * width
    moments = integrate(ring.log_prob, grid((-edge, 0, edge), (-edge, 0, edge), width, 16))
    # The cusp at 0, of mass up to e^{−½ (R/s)²}, costs the rule some digits.
    assert moments.log_normalizer == pytest.approx(ring.log_normalizer, abs=1e-4)
    assert moments.entropy == pytest.approx(ring.entropy, abs=1e-4)
    torch.testing.assert_close(moments.covariance, ring.covariance, rtol=1e-3, atol=1e-4)
    r = torch.linspace(0, edge, 200_001, dtype=torch.float64)
    weight = 2 * math.pi * r * (-0.5 * ((r - radius) / width).square()).exp()
    log_z = torch.trapezoid(weight, r).log()
    assert ring.log_normalizer == pytest.approx(log_z.item(), abs=1e-8)


@pytest.mark.parametrize("features", [2, 3, 10])
def test_banana_is_a_bent_gaussian(features: int) -> None:
    banana = Banana(features, scale=3.0, bend=0.1).double()
    with random.stream(0):
        z = banana.sample((500,))
    straight = z.clone()
    straight[:, 1] -= 0.1 * (z[:, 0].square() - 9)
    scale = torch.ones(features).double()
    scale[0] = 3
    expected = torch.distributions.Normal(0, scale).log_prob(straight).sum(-1)
    torch.testing.assert_close(banana.log_prob(z), expected)


@pytest.mark.parametrize("features", [2, 10])
def test_funnel_is_two_conditionals(features: int) -> None:
    funnel = Funnel(features).double()
    with random.stream(0):
        z = funnel.sample((20_000,))
    first = torch.distributions.Normal(0.0, 3.0).log_prob(z[:, 0])
    rest = torch.distributions.Normal(0.0, (0.5 * z[:, :1]).exp()).log_prob(z[:, 1:]).sum(-1)
    torch.testing.assert_close(funnel.log_prob(z), first + rest)
    error = funnel.log_prob(z).std() / math.sqrt(len(z))
    assert abs(-funnel.log_prob(z).mean() - funnel.entropy) < 4 * error
    # In the frame of its own width each feature is standard normal.
    white = z[:, 1:] * (-0.5 * z[:, :1]).exp()
    assert abs(white.square().mean() - 1) < 4 * math.sqrt(2 / white.numel())


def test_funnel_does_not_overflow() -> None:
    value = Funnel(10).log_prob(torch.cat([torch.full((1, 1), -150.0), torch.zeros(1, 9)], -1))
    assert value.isfinite().all()


@pytest.mark.parametrize("features", [1, 2, 5])
def test_mixture_against_torch(features: int) -> None:
    weights = [1.0, 2.0, 3.0]
    mixture = GaussianMixture(features, modes=3, radius=2.0, scale=0.8, weights=weights).double()
    components = torch.distributions.MultivariateNormal(
        mixture.get_buffer("locations"), 0.64 * torch.eye(features).double()
    )
    shares = torch.distributions.Categorical(probs=torch.tensor(weights).double())
    expected = torch.distributions.MixtureSameFamily(shares, components)
    z = points(20, features)
    torch.testing.assert_close(mixture.log_prob(z), expected.log_prob(z), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixture.mean, expected.mean, rtol=1e-6, atol=1e-6)
    variance = expected.variance
    torch.testing.assert_close(mixture.covariance.diagonal(), variance, rtol=1e-6, atol=1e-6)
    with random.stream(2):
        z = mixture.sample((40_000,))
    log_density = mixture.log_prob(z)
    assert mixture.entropy is not None
    assert abs(-log_density.mean() - mixture.entropy) < 4 * log_density.std() / 200


def test_entropy_of_modes_that_span_more_than_a_plane_is_unknown() -> None:
    assert GaussianMixture(4, locations=torch.eye(4)).entropy is None
    assert GaussianMixture(4, locations=torch.eye(4)[:3]).entropy is not None


def test_a_single_mode_is_a_gaussian() -> None:
    mixture = GaussianMixture(3, modes=1, scale=2.0).double()
    expected = 1.5 * (1 + math.log(2 * math.pi)) + 3 * math.log(2)
    assert mixture.entropy == pytest.approx(expected, abs=1e-10)


def test_mixtures_of_one_size_can_be_stacked() -> None:
    mixtures = [GaussianMixture(modes=3, radius=r).double() for r in (2.0, 5.0)]
    state = stack_module_state(mixtures)
    out = vmap(lambda p, b, z: functional_call(mixtures[0], (p, b), (z,)), in_dims=(0, 0, None))
    call = GaussianMixture.forward
    try:
        GaussianMixture.forward = GaussianMixture.log_prob  # type: ignore[method-assign]
        stacked = out(*state, points())
    finally:
        GaussianMixture.forward = call  # type: ignore[method-assign]
    for i, mixture in enumerate(mixtures):
        torch.testing.assert_close(stacked[i], mixture.log_prob(points()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: targets.U1(3), "features: was 3"),
        (lambda: targets.U4(1), "features: was 1"),
        (lambda: Ring(3), "features: was 3"),
        (lambda: Ring(radius=1.0, width=2.0), "width: was 2.0"),
        (lambda: Ring(radius=-1.0), "radius: was -1.0"),
        (lambda: Banana(1), "features: was 1"),
        (lambda: Banana(2, bend=math.nan), "bend: was nan"),
        (lambda: Funnel(1), "features: was 1"),
        (lambda: Funnel(2, scale=0.0), "scale: was 0.0"),
        (lambda: GaussianMixture(modes=0), "modes: was 0"),
        (lambda: GaussianMixture(modes=2, weights=[1.0, 0.0]), "weights: were"),
        (lambda: GaussianMixture(locations=[[math.nan, 0.0]]), "locations: have a NaN"),
        (lambda: grid((0, 0), (0, 1)), "breaks: were"),
        (lambda: grid((0, 1), (0, 1), panel=0), "panel: was 0"),
    ],
)
def test_bad_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_bad_shapes() -> None:
    with pytest.raises(ShapeError, match="locations: shape"):
        GaussianMixture(3, locations=[[0.0, 1.0]])
    with pytest.raises(ShapeError, match="weights: shape"):
        GaussianMixture(modes=3, weights=[1.0, 2.0])


def test_what_tells_targets_apart_is_in_their_repr() -> None:
    """An ensemble stacks models whose representations are equal."""
    pairs = [
        (Ring(radius=2.0), Ring(radius=3.0)),
        (Banana(bend=0.1), Banana(bend=0.2)),
        (Funnel(scale=1.0), Funnel(scale=2.0)),
        (GaussianMixture(scale=0.5), GaussianMixture(scale=0.6)),
    ]
    for one, other in pairs:
        assert repr(one) != repr(other)


@pytest.mark.parametrize("name", ["u1", "u2", "u3", "u4", "ring", "banana", "funnel", "mixture"])
def test_second_derivatives_are_finite_far_away(name: str) -> None:
    """Leapfrog steps differentiate the gradient; torch.logaddexp gave NaN there."""
    torch.manual_seed(0)
    target = build(name).float()
    z = (8 * torch.randn(20_000, target.event_shape[0])).requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_prob(z).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad((gradient * torch.randn_like(gradient)).sum(), z)
    assert gradient.isfinite().all()
    assert second.isfinite().all()
