"""The recipes of importance weighting and of the Hamiltonian VAE: schedules, limits, layers, sizes."""

from __future__ import annotations

import math

import pytest
import torch

import varflow as vf
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.core.form import Form
from varflow.runs.assemble import build
from varflow.settings.recipes import find
from varflow.settings.spec import RunSpec
from varflow.training.optimizers import OptimizerSettings, learning_rate

MNIST = Form((1, 28, 28), "binary")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_schedule_of_burda_et_al():
    """3^i passes at 0.001·10^(−i/7), i = 0 … 7: rates of every one of the 3,280 epochs."""
    spec = find("iwae").spec
    assert spec.training.epochs == sum(3**i for i in range(8)) == 3280
    updates = 7  # of an epoch; any number
    expected = [1e-3 * 10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    for epoch, rate in enumerate(expected):
        for update in (0, updates - 1):
            step = epoch * updates + update
            assert learning_rate(spec.optimizer, step, 1, updates) == pytest.approx(rate, rel=1e-12)


def test_beyond_the_schedule_the_last_rate_stays():
    spec = OptimizerSettings(decay="stages")
    assert (
        learning_rate(spec, 5000, 6000, 1)
        == learning_rate(spec, 3279, 6000, 1)
        == pytest.approx(1e-4)
    )


def test_a_fit_follows_the_schedule():
    x = (torch.rand(100, 6) < 0.5).float()
    run = vf.fit(
        "digits", x, latent=2, hidden=8, batch=40, epochs=5, decay="stages", lr=1e-2, quiet=True,
        validate_every="1 epoch",
    )
    rates = [record["lr"] for record in run.metrics if record["split"] == "train"]
    assert rates == pytest.approx([1e-2 * 10 ** (-i / 7) for i in (0, 1, 1, 1, 2)])


def test_one_stochastic_layer_has_the_sizes_of_the_paper():
    model = build(find("iwae").spec, MNIST)
    encoder = 785 * 200 + 201 * 200 + 201 * 100
    decoder = 51 * 200 + 201 * 200 + 201 * 784
    assert count(model) == encoder + decoder


def test_two_stochastic_layers_have_the_sizes_of_the_paper():
    """x 784 – 200 – 200 – h1 100 – 100 – 100 – h2 50, and back."""
    model = build(find("iwae-2").spec, MNIST)
    bottom = 785 * 200 + 201 * 200 + 201 * 200
    between = 101 * 100 + 101 * 100 + 101 * 100
    back = 51 * 100 + 101 * 100 + 101 * 200
    decoder = 101 * 200 + 201 * 200 + 201 * 784
    assert count(model.posterior) == bottom + between
    assert count(model.prior) == back
    assert count(model.likelihood) == decoder
    assert model.prior.event_shape == (150,)


def test_the_hvae_recipes_build_what_they_say():
    for name, steps in (("hvae", 5), ("hvae-mnist", 15)):
        spec = find(name).spec
        spec.validate()
        posterior = build(spec, MNIST).posterior
        assert posterior.steps == steps
        assert posterior.step_logit.shape == (1, 64)
        assert (posterior.step_sizes - spec.hamiltonian.initial_step).abs().max() < 1e-6
    torch.testing.assert_close(
        build(find("hvae").spec, MNIST).posterior.factors, torch.full((5,), 0.9)
    )
    plain = build(find("hvae").spec.replace(leapfrog=0), MNIST)
    moved = build(find("hvae").spec, MNIST)
    assert count(moved) - count(plain) == 64 + 5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"leapfrog": 2, "tempering": "free"},
        {"objective": "iwae", "samples": 3},
        {"objective": "iwae", "samples": 3, "gradient": "dreg"},
        {"prior": "mixture", "components": 3},
        {"flow": "planar", "length": 2},
    ],
)
def test_two_layers_from_the_settings_fit_and_load(settings, tmp_path):
    x = (torch.rand(96, 6) < torch.rand(96, 1)).float()
    run = vf.fit("digits", x, latent=3, top_latent=2, top_hidden=5, hidden=8, epochs=3, batch=32, warmup="0 steps",
                 out=tmp_path / "run", quiet=True, **settings)  # fmt: skip
    again = vf.load(tmp_path / "run", data=x)
    with random.stream(1):
        one = run.model.encode(x[:4], 2)
    with random.stream(1):
        two = again.model.encode(x[:4], 2)
    assert one.z.shape == (2, 4, 5)
    torch.testing.assert_close(one.z, two.z, rtol=0, atol=0)
    found = again.evaluate(samples=30)
    assert found.estimates["elbo"].value <= -found.estimates["nll"].value
    assert run.model.sample(7).shape == (7, 6)


def test_weights_of_two_layers_average_to_the_evidence():
    """p(x) by quadrature over h2 and h1, both one number, against the mean weight."""
    torch.set_default_dtype(torch.float64)
    try:
        spec = RunSpec().replace(
            latent=1, top_latent=1, top_hidden=4, hidden=5, layers=1, activation="tanh"
        )
        model = build(spec, Form((3,), "binary")).double()
        x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
        nodes = torch.linspace(-9, 9, 721)
        h1, h2 = torch.meshgrid(nodes, nodes, indexing="ij")
        grid = torch.stack([h1, h2], -1).reshape(-1, 1, 2)
        with torch.no_grad():
            exact = torch.logsumexp(model.log_joint(grid, x), 0) + 2 * math.log(18 / 720)
            with random.stream(2):
                ratio = (model.terms(x, 100_000).log_weight - exact).exp()
        error = ratio.std(0) / math.sqrt(100_000)
        assert (ratio.mean(0).square() / ratio.square().mean(0) > 0.1).all()
        assert ((ratio.mean(0) - 1).abs() < 4 * error).all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_limits_take_the_first_examples_alone(tmp_path):
    x = (torch.rand(100, 6) < 0.5).float()
    settings = {
        "latent": 2,
        "hidden": 8,
        "batch": 16,
        "epochs": 2,
        "quiet": True,
        "out": tmp_path / "run",
    }
    run = vf.fit("digits", x, train_limit=32, validation_limit=4, **settings)
    assert run.outcome["step"] == 4
    assert run.dataset.sizes == {"train": 32, "validation": 4, "test": 10}
    whole = vf.fit("digits", x, latent=2, hidden=8, epochs=1, quiet=True).dataset
    index = torch.arange(4)
    for split in ("train", "validation", "test"):
        torch.testing.assert_close(run.dataset.raw(split)[index], whole.raw(split)[index])
    assert vf.load(tmp_path / "run", data=x).dataset.sizes["train"] == 32
    with pytest.raises(
        SpecError, match="train_limit: was 81; the train split of tensor has 80 examples"
    ):
        vf.fit("digits", x, train_limit=81, steps=1, quiet=True)
    with pytest.raises(SpecError, match="validation_limit: was 0; use 1 or more"):
        vf.fit("digits", x, validation_limit=0, steps=1, quiet=True)


def test_validation_noise_of_the_first_examples_is_that_of_all():
    x = torch.rand(50, 1, 4, 4)
    whole = vf.data.from_tensor(x, protocol="dynamic")
    few = whole.first(validation=3)
    index = torch.arange(3)
    torch.testing.assert_close(few.batch("validation", index).x, whole.batch("validation", index).x)
    assert whole.first(validation=None) is whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_latent": 2, "prior": "vamp"}, "top_latent: a VampPrior"),
        ({"top_latent": 2, "target": "u1"}, "top_latent: belongs to a second .* a target has"),
        ({"top_latent": -1}, "top_latent: was -1"),
        ({"top_latent": 2, "free_bits": 0.1}, "free_bits"),
    ],
)
def test_what_two_layers_do_not_go_with(settings, message):
    data, small = ((torch.rand(64, 6) < 0.5).float(), {"latent": 2, "hidden": 8})
    if "target" in settings:
        data, small = None, {}
    with pytest.raises(SpecError, match=message):
        vf.fit("digits", data, steps=1, quiet=True, **small, **settings)
