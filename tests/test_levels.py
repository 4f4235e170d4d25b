"""Likelihoods of levels: bins that sum to one, exact scores, extreme parameters, samples."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import nn

import varflow as vf
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.likelihoods import Categorical, Logistics

double = torch.float64
dtypes = pytest.mark.parametrize("dtype", [torch.float32, double])


class Given(nn.Module):
    """A decoder that puts out z itself."""

    def __init__(self, out_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.out_shape = out_shape

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.unflatten(-1, self.out_shape)


def logistics(elements: int, levels: int, components: int) -> Logistics:
    shape = Logistics.decoder_shape((elements,), components=components)
    return Logistics(Given(shape), elements, levels, components)


@dtypes
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("components", [1, 5])
@pytest.mark.parametrize("size", [0.1, 1.0, 10.0, 1e3, 1e6])
def test_bins_sum_to_one_at_any_parameters(dtype, levels, components, size):
    likelihood = logistics(200, levels, components)
    z = (size * torch.randn(200 * likelihood.outputs, dtype=double)).to(dtype)
    masses = likelihood.log_masses(z).exp().double()
    assert masses.shape == (200, levels)
    assert (masses.sum(-1) - 1).abs().max() < (1e-6 if dtype == torch.float32 else 1e-14)


@dtypes
@pytest.mark.parametrize("width", [-1e9, -80.0, -12.0, -4.0, 0.0, 4.0, 12.0, 80.0])
@pytest.mark.parametrize("offset", [-30.0, -1.0, -0.3, 0.0, 1e-3, 0.3, 1.0, 30.0])
def test_every_bin_agrees_with_fifty_digits(dtype, width, offset):
    """log σ(p) − σ(q) of the parameters as they are in that dtype, wherever the mass lies."""
    levels = 9
    likelihood = logistics(1, levels, 1)
    z = torch.tensor([offset, width], dtype=dtype)
    _, mean, log_scale = (float(part) for part in likelihood.parameters_at(z))
    found = likelihood.log_masses(z)[0].tolist()
    with mpmath.workdps(50):
        m, s = mpmath.mpf(mean), mpmath.exp(mpmath.mpf(log_scale))

        def above(edge):
            return 1 / (1 + mpmath.exp(-(m - edge) / s))

        ends = [mpmath.mpf(1), *(above(v - 0.5) for v in range(1, levels)), mpmath.mpf(0)]
        below = [1 / (1 + mpmath.exp((m - (v - 0.5)) / s)) for v in range(1, levels)]
        below = [mpmath.mpf(0), *below, mpmath.mpf(1)]
        for v, value in enumerate(found):
            # Of the two forms the one whose terms are small loses nothing to cancellation.
            mass = ends[v] - ends[v + 1] if m < v else below[v + 1] - below[v]
            if mass < mpmath.mpf(10) ** -40:
                assert value < -90
                continue
            exact = float(mpmath.log(mass))
            # s is known to a relative error of eps |log s|, which the distance in units of s inherits.
            assert abs(value - exact) <= 60 * torch.finfo(dtype).eps * (1 + abs(exact))


@pytest.mark.parametrize("size", [1.0, 1e3, 1e9])
def test_gradients_are_finite_at_extreme_parameters(size):
    likelihood = logistics(64, 256, 5)
    x = torch.randint(0, 256, (32, 64)) / 255
    z = (size * torch.randn(32, 64 * likelihood.outputs)).requires_grad_()
    value = likelihood.log_prob(x, z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert bool(value.isfinite().all())
    assert bool(slope.isfinite().all())
    assert value.max() <= 1e-4


@dtypes
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_equal_logits_score_log2_of_the_levels_exactly(dtype, levels):
    data = vf.data.from_tensor(
        torch.randint(0, levels, (40, 6), dtype=torch.uint8), None, "levels", levels
    ).to("cpu", dtype)
    likelihood = Categorical(Given((6 * levels,)), 6, levels)
    x, ladj, *_ = data.batch("train", torch.arange(8))
    bits = data.bits_per_dim(likelihood.log_prob(x, x.new_full((8, 6 * levels), 0.7)), ladj)
    eps = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(levels)), rtol=eps, atol=0)


def test_a_narrow_component_on_a_level_is_that_level():
    """All mass in one bin scores 0 bits; a level that the model excludes costs its distance."""
    likelihood = logistics(1, 256, 1)
    z = torch.zeros(256, 2)
    z[:, 0] = 2 * (torch.arange(256) / 255 - 0.5)
    z[:, 1] = -100.0
    x = torch.arange(256)[:, None] / 255
    assert likelihood.log_prob(x, z).abs().max() < 1e-6
    assert likelihood.log_prob(x.roll(1, 0), z).max() < -1e4
    torch.testing.assert_close(likelihood.mean(z), x, atol=1e-6, rtol=0)
    assert torch.equal(likelihood.sample(z), x)


@pytest.mark.parametrize("name", ["logistics", "categorical"])
def test_samples_follow_the_masses(name):
    """χ² of 40,000 samples of each of two elements: below its mean plus 4 standard deviations."""
    levels, count = 7, 40_000
    if name == "logistics":
        likelihood = logistics(2, levels, 3).to(double)
    else:
        likelihood = Categorical(Given((2 * levels,)), 2, levels).to(double)
    z = torch.randn(2 * likelihood.outputs, dtype=double)
    with random.stream(11):
        x = likelihood.sample(z.expand(count, -1))
    masses = likelihood.log_masses(z).exp()
    for element in range(2):
        seen = (x[:, element] * likelihood.top).round().long().bincount(minlength=levels)
        chi2 = ((seen - count * masses[element]).square() / (count * masses[element])).sum()
        assert chi2 < levels - 1 + 4 * math.sqrt(2 * (levels - 1))


def test_new_decoders_spread_their_components_over_the_levels():
    """Zeros give a mass that is within a factor of three of uniform, also at the ends."""
    for components in (1, 2, 5, 10):
        likelihood = logistics(1, 256, components)
        masses = likelihood.log_masses(torch.zeros(likelihood.outputs, dtype=double))[0].exp()
        inner = masses[1:-1] * 256
        assert inner.min() > 1 / 3
        assert inner.max() < 3
        torch.testing.assert_close(masses, masses.flip(0))


def test_levels_of_model_and_data_must_agree():
    x = torch.randint(0, 17, (60, 6), dtype=torch.uint8)
    data = vf.data.from_tensor(x, protocol="levels", levels=17)
    spec = vf.RunSpec().replace(hidden=8, latent=2, likelihood="logistics")
    model = vf.build(spec, data)
    assert model.likelihood.levels == 17
    other = vf.data.from_tensor(x, protocol="levels", levels=256)
    with pytest.raises(
        SpecError, match="over 17 levels, the data have 256; build it with levels=256"
    ):
        vf.fit(model, other, epochs=1, quiet=True)
    with pytest.raises(SpecError, match=r"Logistics takes levels.*data are real"):
        vf.build(spec, vf.data.from_tensor(torch.randn(50, 6)))
    with pytest.raises(SpecError, match="levels; use likelihood=logistics"):
        vf.build(spec.replace(likelihood="gaussian"), data)
    with pytest.raises(SpecError, match="protocol 'levels' needs levels"):
        vf.data.from_tensor(torch.rand(50, 6), protocol="levels")


@pytest.mark.parametrize("name", ["logistics", "categorical"])
def test_a_fit_reads_levels_and_comes_back_from_its_folder(name, tmp_path):
    """Auto takes the levels; uniform levels cost log₂ L at best, and bits/dim need no dequantization."""
    levels = 5
    x = torch.randint(0, levels, (400, 1, 3, 5), dtype=torch.uint8)
    data = vf.data.from_tensor(x, protocol="levels", levels=levels)
    run = vf.fit(
        "digits",
        data,
        likelihood=name,
        latent=2,
        hidden=16,
        epochs=4,
        quiet=True,
        out=tmp_path / "run",
    )
    found = run.evaluate(samples=60)
    bits = found.estimates["bits_per_dim"]
    assert bits.value > math.log2(levels) - 4 * bits.standard_error
    assert bits.value < math.log2(levels) + 0.4
    nll = found.estimates["nll"]
    assert bits.value == pytest.approx(nll.value / (15 * math.log(2)), rel=1e-12)
    again = vf.load(tmp_path / "run", data=data)
    assert again.form.levels == levels
    assert again.model.likelihood.levels == levels
    batch = data.batch("test", torch.arange(5)).x
    with random.stream(0):
        first = run.model.terms(batch).log_weight
    with random.stream(0):
        assert torch.equal(first, again.model.terms(batch).log_weight)
