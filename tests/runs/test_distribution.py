"""p(x) of a fitted density as a torch distribution, in the units of the data."""

import math

import pytest
import torch
from torch.distributions import Distribution, Independent

import varflow as vf
from varflow.core.errors import SpecError

torch.set_num_threads(1)


def correlated(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return torch.tensor([50.0, -2.0]).double() + z @ torch.tensor([[8.0, 0.3], [0.0, 0.1]]).double()


@pytest.fixture(scope="module")
def run() -> vf.Run:
    return vf.fit("density", correlated(400), steps=20, precision="float64", quiet=True)


@pytest.fixture(scope="module")
def rounded() -> vf.Run:
    x = correlated(400)
    return vf.fit(
        "density", torch.stack([x[:, 0].round(), x[:, 1]], 1), protocol="table", steps=20, precision="float64",
        quiet=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def levels() -> vf.Run:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (80, 1, 1, 2), generator=generator, dtype=torch.uint8)
    data = vf.data.from_tensor(x, levels=4, protocol="logit")
    return vf.fit("density", data, steps=5, precision="float64", quiet=True)


def test_log_prob_is_that_of_the_run(run):
    p, x = run.distribution(), correlated(30)
    assert isinstance(p, Distribution)
    assert p.event_shape == (2,)
    assert p.batch_shape == ()
    torch.testing.assert_close(p.log_prob(x), run.log_prob(x), rtol=1e-12, atol=1e-12)
    assert p.log_prob(x.reshape(5, 6, 2)).shape == (5, 6)
    assert p.log_prob(x[0]).shape == ()


@pytest.mark.parametrize("which", ["run", "rounded", "levels"])
def test_it_integrates_to_one(which, request):
    """By the trapezoid over a grid in the units of the data, which the ladj of the preprocessing must make right."""
    p = request.getfixturevalue(which).distribution()
    draws = p.sample((4000,)).reshape(-1, 2)
    if which == "levels":
        bound = p.support.base_constraint
        low, high = torch.full((2,), bound.lower_bound), torch.full((2,), bound.upper_bound)
    else:
        middle, spread = draws.mean(0), draws.std(0)
        low, high = middle - 7 * spread, middle + 7 * spread
    size = 160
    # Midpoints, so that the ends of a bounded support are no points of the grid.
    places = (torch.arange(size).double() + 0.5) / size
    axes = [a + (b - a) * places for a, b in zip(low.double(), high.double(), strict=True)]
    grid = torch.cartesian_prod(*axes).reshape(-1, *p.event_shape)
    with torch.no_grad():
        total = p.log_prob(grid).exp().sum() * ((high - low) / size).prod()
    assert abs(float(total) - 1) < 3e-3


def test_draws_have_the_density(run):
    """The mean of −log p over draws is the entropy, which a Gaussian of the same covariance bounds from above."""
    p = run.distribution()
    torch.manual_seed(0)
    draws = p.sample((4000,))
    assert draws.shape == (4000, 2)
    again = (torch.manual_seed(0), p.sample((4000,)))[1]
    assert torch.equal(draws, again)
    surprise = -p.log_prob(draws).detach()
    bound = math.log(2 * math.pi * math.e) + 0.5 * float(torch.logdet(draws.T.cov()))
    assert float(surprise.mean()) < bound + 5 * float(surprise.std()) / math.sqrt(4000)


def test_rounded_columns_are_scored_without_noise(rounded):
    p = rounded.distribution()
    x = torch.tensor([[50.0, -2.0], [51.0, -1.9]]).double()
    assert torch.equal(p.log_prob(x), p.log_prob(x))
    values, ladj = rounded.preprocessing.encode(x, None, torch.float64)
    torch.testing.assert_close(p.log_prob(x), rounded.model.prior.log_prob(values) + ladj)
    draws = p.sample((50,))
    assert not torch.equal(draws[:, 0], draws[:, 0].round())
    assert torch.equal(rounded.sample(50)[:, 0], rounded.sample(50)[:, 0].round())


def test_levels_are_dequantized_ones(levels):
    p = levels.distribution()
    k = torch.tensor([[[[0, 3]]], [[[1, 2]]]], dtype=torch.uint8)
    before = k.double() + 0.5
    given = before.clone()
    assert torch.equal(p.log_prob(k), p.log_prob(given))
    assert torch.equal(given, before)
    assert p.support.base_constraint.upper_bound > 4
    with pytest.raises(ValueError, match="within the support"):
        p.log_prob(before + 10)


def test_points_go_there_and_back():
    values = torch.rand(5, 3, dtype=torch.float64) * 7.9
    for name in ("uniform", "symmetric", "logit"):
        protocol = vf.data.protocols.LEVELS[name](name, 8)
        y = values.clone().requires_grad_()
        x, ladj = protocol.encode_point(y, torch.float64)
        torch.testing.assert_close(protocol.decode_point(x), values)
        (slope,) = torch.autograd.grad(x.sum(), y)
        torch.testing.assert_close(slope.log().sum(1), ladj)


def test_expand_and_independent(run):
    p, x = run.distribution().expand((3, 2)), correlated(2)
    assert p.batch_shape == (3, 2)
    assert p.sample((4,)).shape == (4, 3, 2, 2)
    torch.testing.assert_close(p.log_prob(x), run.log_prob(x).expand(3, 2))
    assert Independent(p, 1).log_prob(x).shape == (3,)


def test_gradients_reach_x_and_the_parameters(run):
    x = correlated(4).requires_grad_()
    run.distribution().log_prob(x).sum().backward()
    assert bool(x.grad.isfinite().all())
    assert any(parameter.grad is not None for parameter in run.model.parameters())
    run.model.zero_grad()


@pytest.mark.parametrize("prior", ["maf", "iaf", "planar"])
def test_reparametrized_draws(prior):
    """Their derivative by a parameter is that of the same draws, by differences."""
    fitted = vf.fit(
        "density", correlated(200), prior=prior, prior_length=1, steps=5, precision="float64", quiet=True
    )  # fmt: skip
    p = fitted.distribution()
    assert p.has_rsample

    def mean_square(draw):
        torch.manual_seed(3)
        return draw((16,)).square().mean()

    assert torch.equal(mean_square(p.sample), mean_square(p.rsample).detach())
    parameters = list(p.model.prior.flow.parameters())
    slopes = torch.autograd.grad(mean_square(p.rsample), parameters, allow_unused=True)
    used = [(q, g) for q, g in zip(parameters, slopes, strict=True) if g is not None and g.abs().max() > 0]
    parameter, slope = max(used, key=lambda pair: float(pair[1].abs().max()))
    place = int(slope.abs().argmax())
    ends = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            parameter.view(-1)[place] += step
            ends.append(float(mean_square(p.sample)))
            parameter.view(-1)[place] -= step
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(slope.view(-1)[place]), rel=1e-5)


def test_draws_of_a_mixture_are_not_reparametrized():
    fitted = vf.fit("density", correlated(60), prior="mixture", steps=1, quiet=True)
    p = fitted.distribution()
    assert not p.has_rsample
    with pytest.raises(NotImplementedError, match="draws of Mixture are no differentiable map"):
        p.rsample((2,))


def test_what_has_no_density_says_so(run):
    vae = vf.fit("digits", correlated(60), likelihood="gaussian", latent=1, hidden=4, steps=1, quiet=True)
    with pytest.raises(SpecError, match="integral over them"):
        vae.distribution()
    target = vf.fit("energy", target="u1", length=2, steps=1, quiet=True)
    with pytest.raises(SpecError, match="fit to a target"):
        target.distribution()
    with pytest.raises(ValueError, match="event"):
        run.distribution().log_prob(torch.zeros(3, 5))
