"""A fitted density as a distribution of torch."""

import math

import pytest
import torch

import varflow as vf
from varflow.core.errors import ShapeError, SpecError


@pytest.fixture(scope="module")
def run() -> vf.Run:
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([1000.0, 0.02]).double() + torch.tensor([50.0, 0.001]).double() * torch.randn(
        400, 2, generator=generator, dtype=torch.float64
    )
    return vf.fit("density", x, steps=30, precision="float64", quiet=True)


def test_it_is_the_density_of_the_run(run):
    p = run.distribution()
    x = run.dataset.raw("test")
    assert (p.event_shape, p.batch_shape) == ((2,), ())
    torch.testing.assert_close(p.log_prob(x), run.log_prob(x), rtol=1e-12, atol=1e-12)
    assert p.log_prob(x.reshape(2, -1, 2)).shape == (2, len(x) // 2)
    assert p.support.check(x).all()


def test_samples_follow_it(run):
    p = run.distribution()
    torch.manual_seed(0)
    x = p.sample((4000,))
    torch.manual_seed(0)
    assert torch.equal(x, p.sample((4000,)))
    train = run.dataset.raw("train")
    assert ((x.mean(0) - train.mean(0)).abs() < 0.2 * train.std(0)).all()
    assert p.sample().shape == (2,)
    assert p.sample((2, 3)).shape == (2, 3, 2)
    # E log p under p is −H; the same by the mean over samples of two seeds, within errors.
    entropies = [-p.log_prob(p.sample((4000,))).detach() for _ in range(2)]
    error = math.hypot(*(float(h.std()) / 4000**0.5 for h in entropies))
    assert abs(float(entropies[0].mean() - entropies[1].mean())) < 5 * error


def test_it_is_differentiable_in_x(run):
    p = run.distribution()
    x = run.dataset.raw("test")[:3].clone().requires_grad_()
    (score,) = torch.autograd.grad(p.log_prob(x).sum(), x)
    step = torch.tensor([1e-3, 1e-8]).double()
    for column in range(2):
        h = torch.zeros(2).double()
        h[column] = step[column]
        slope = (p.log_prob(x + h) - p.log_prob(x - h)) / (2 * step[column])
        torch.testing.assert_close(score[:, column], slope.detach(), rtol=1e-4, atol=1e-6)


def test_copies_are_independent(run):
    p = run.distribution().expand((5,))
    assert p.batch_shape == (5,)
    assert p.sample((7,)).shape == (7, 5, 2)
    x = run.dataset.raw("test")[:1]
    assert torch.equal(p.log_prob(x), run.distribution().log_prob(x).expand(5))


def test_rounded_columns_have_the_density_of_their_noise():
    """Steps of 1 in whole numbers: the density integrates to 1, and its samples are no whole numbers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (400, 1), generator=generator).double()
    run = vf.fit("density", x, steps=20, precision="float64", quiet=True)
    p = run.distribution()
    grid = torch.linspace(-30, 50, 16_001, dtype=torch.float64)
    assert torch.trapezoid(p.log_prob(grid[:, None]).exp(), grid).item() == pytest.approx(1, abs=1e-3)
    drawn = p.sample((50,))
    assert not torch.equal(drawn, drawn.round())
    assert torch.equal(run.sample(50), run.sample(50).round())


def test_what_has_no_exact_density_is_refused(run):
    with pytest.raises(ShapeError, match=r"value: shape \[4, 3\], should be \[..., 2\]"):
        run.distribution().log_prob(torch.zeros(4, 3))
    x = (torch.rand(40, 6) < 0.5).float()
    with pytest.raises(SpecError, match="distribution: log p\\(x\\) of a model with latents is estimated"):
        vf.fit("digits", x, latent=2, hidden=4, steps=1, quiet=True).distribution()
    with pytest.raises(SpecError, match="distribution: this is a fit to a target"):
        vf.fit("energy", length=1, steps=1, quiet=True).distribution()
    levels = torch.randint(0, 256, (40, 6), dtype=torch.uint8)
    with pytest.raises(SpecError, match="distribution: the data are levels"):
        vf.fit("density", levels, steps=1, quiet=True).distribution()
