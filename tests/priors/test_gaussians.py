"""The mixture of Gaussians that a density starts from, and the share of the base that a flow prior keeps."""

import math

import pytest
import torch

import varflow as vf
from varflow.core import random
from varflow.core.errors import ShapeError, SpecError
from varflow.priors import Flow, Gaussians
from varflow.priors.gaussians import fit_components


def two_lines(rows: int, seed: int = 0) -> torch.Tensor:
    """Half of the rows along x₁ = x₀ about (−4, 0), half along x₁ = −x₀ about (4, 0), in units of 1000."""
    generator = torch.Generator().manual_seed(seed)
    along, across = torch.randn(2, rows, generator=generator, dtype=torch.float64)
    side = torch.where(torch.arange(rows) % 2 == 0, -1.0, 1.0)
    x = torch.stack([along + 0.1 * across + 4 * side, -side * along + 0.1 * side * across], -1)
    return 1000 * x


def started(train: torch.Tensor, held_out: torch.Tensor) -> Gaussians:
    prior = Gaussians(train.shape[1]).double()
    prior.start(lambda split: {"train": train, "validation": held_out}[split])
    return prior


def as_torch(prior: Gaussians) -> torch.distributions.Distribution:
    factors = torch.linalg.inv(prior.whitening).tril()
    each = torch.distributions.MultivariateNormal(prior.means, scale_tril=factors)
    weights = torch.distributions.Categorical(logits=prior.log_weights)
    return torch.distributions.MixtureSameFamily(weights, each)


def test_a_new_one_is_standard_normal():
    z = torch.randn(5, 3)
    assert torch.allclose(Gaussians(3).log_prob(z), vf.priors.StandardNormal(3).log_prob(z), atol=1e-6)


def test_two_lines_are_found_in_their_units():
    prior = started(two_lines(400), two_lines(200, 1))
    assert prior.components > 1
    test = two_lines(2000, 2)
    found = prior.log_prob(test)
    assert torch.allclose(found, as_torch(prior).log_prob(test), rtol=1e-9)
    # Entropy of the mixture, whose halves hardly meet: log 2 + ½ log det(2πe Σ), det Σ = (2·0.1)² in units of 1000².
    entropy = math.log(2) + math.log(2 * math.pi * math.e) + math.log(0.2) + 2 * math.log(1000)
    error = found.std().item() / len(test) ** 0.5
    assert -found.mean().item() == pytest.approx(entropy, abs=4 * error + 0.05)


def test_samples_have_the_moments_of_the_density():
    prior = started(two_lines(400), two_lines(200, 1))
    with random.stream(0):
        z = prior.sample((20_000,))
    exact = as_torch(prior)
    assert torch.allclose(z.mean(0), exact.mean, atol=4 * exact.variance.max().sqrt().item() / 20_000**0.5)
    assert torch.allclose(z.var(0), exact.variance, rtol=0.1)
    # −log p of its own samples is its entropy, and so it is of torch's.
    torch.manual_seed(0)
    theirs = prior.log_prob(exact.sample((20_000,)))
    ours = prior.log_prob(z)
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=5 * ours.std().item() / 20_000**0.5)


def test_gaussian_rows_are_as_good_as_one_gaussian():
    generator = torch.Generator().manual_seed(3)
    mix = torch.tensor([[1.0, 0.0], [0.9, 0.1]], dtype=torch.float64)
    x = torch.randn(2600, 2, generator=generator, dtype=torch.float64) @ mix.mT
    exact = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), scale_tril=mix)
    lost = exact.log_prob(x[600:]) - started(x[:400], x[400:600]).log_prob(x[600:])
    # Five parameters from 400 rows cost 5/800 nats; more components than one, at most a few times that.
    assert lost.mean().item() < 0.05 + 4 * lost.std().item() / 2000**0.5


@pytest.mark.parametrize("rows", [3, 12])
def test_few_rows_constant_columns_and_no_held_out_rows_are_no_obstacle(rows):
    x = torch.randn(rows, 20, dtype=torch.float64)
    x[:, 4] = 7.0
    for held_out in (x[:0], x[:1], torch.cat([x[:2], x[:2]])):
        prior = started(x, held_out)
        assert prior.log_prob(x).isfinite().all()
        assert prior.log_prob(x + 100).isfinite().all()


def test_equal_rows_are_no_obstacle():
    x = torch.ones(40, 2, dtype=torch.float64)
    assert started(x, x[:5]).log_prob(x).isfinite().all()


def test_the_number_of_components_comes_with_the_weights():
    prior = started(two_lines(400), two_lines(200, 1))
    other = Gaussians(2).double()
    other.load_state_dict(prior.state_dict())
    z = two_lines(10, 4)
    assert torch.equal(other.log_prob(z), prior.log_prob(z))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Gaussians(3).load_state_dict(prior.state_dict())


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match=r"z: shape \(5,\); this prior needs \[..., 3\]"):
        Gaussians(3).log_prob(torch.zeros(5))


def test_the_fit_is_the_same_in_other_units():
    train, held_out = two_lines(300), two_lines(100, 1)
    one, other = fit_components(train, held_out), fit_components(train / 1000 + 5, held_out / 1000 + 5)
    assert torch.allclose(one.means / 1000 + 5, other.means, rtol=1e-6)
    assert torch.allclose(one.factors / 1000, other.factors, rtol=1e-6)


# -- the defensive share -----------------------------------------------------------------------------


def bent(defensive: float) -> Flow:
    torch.manual_seed(0)
    flow = vf.flows.AffineCoupling(2, length=2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return Flow(flow, defensive=defensive).double()


def test_a_defensive_prior_integrates_to_one_and_has_a_floor():
    plain, prior = bent(0.0), bent(0.2)
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = prior.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
        by_hand = torch.log(0.8 * plain.log_prob(grid).exp() + 0.2 * prior.base.log_prob(grid).exp())
        floor = prior.base.log_prob(grid) + math.log(0.2)
        assert mass.item() == pytest.approx(1.0, abs=2e-3)
        near = grid.norm(dim=-1) < 5
        assert torch.allclose(prior.log_prob(grid)[near], by_hand[near], atol=1e-9)
        assert (prior.log_prob(grid) >= floor).all()


def test_samples_of_a_defensive_prior_are_of_its_density():
    prior = bent(0.3)
    with random.stream(1), torch.no_grad():
        z = prior.sample((40_000,))
        # E under p of base/p is 1, whatever p is: it fails where samples are of another density.
        ratio = (prior.base.log_prob(z) - prior.log_prob(z)).exp()
    assert ratio.mean().item() == pytest.approx(1.0, abs=4 * ratio.std().item() / 200)


def test_what_does_not_go_is_refused():
    with pytest.raises(SpecError, match=r"defensive: was 1\.0"):
        Flow(vf.flows.Planar(2), defensive=1.0)
    with pytest.raises(SpecError, match="prior_base: gaussians are fitted to the data"):
        vf.fit("digits", prior="maf", prior_base="gaussians")


# -- in a fit ----------------------------------------------------------------------------------------


def test_a_density_begins_at_the_mixture_and_is_read_back(tmp_path):
    x = two_lines(300).float()
    settings = {"prior_length": 1, "steps": 5, "quiet": True, "threads": 1, "protocol": "standardize"}
    run = vf.fit("density", x, out=tmp_path / "run", **settings)
    assert run.model.prior.base.components > 1
    first = next(r for r in run.metrics if r["split"] == "validation")
    # The entropy of the two lines, within the noise of 30 held-out rows; a single Gaussian is 2 nats worse.
    entropy = math.log(2) + math.log(2 * math.pi * math.e) + math.log(0.2) + 2 * math.log(1000)
    assert -first["elbo"] == pytest.approx(entropy, abs=4 * first["standard_error"])
    again = vf.load(tmp_path / "run", data=x)
    z = torch.randn(7, 2)
    assert torch.equal(again.model.prior.log_prob(z), run.model.prior.log_prob(z))


def test_an_interrupted_density_does_not_begin_again(tmp_path):
    x = two_lines(300).float()
    settings = {"prior_length": 1, "quiet": True, "threads": 1, "keep": "last"}
    vf.fit("density", x, out=tmp_path / "run", steps=5, **settings)
    run = vf.resume(tmp_path / "run", data=x, steps=9, quiet=True)
    whole = vf.fit("density", x, steps=9, **settings)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name
