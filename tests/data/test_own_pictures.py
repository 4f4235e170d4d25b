"""The picture recipes as a whole: no example touches another, any size and number of channels, folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import jacrev

import varflow as vf
from varflow.core import random
from varflow.core.errors import DataError, SpecError
from varflow.settings import recipes

double = torch.float64
SMALL = {
    "stem": 3, "channels": "4-6-8", "up_channels": "6-6-4", "head": 3, "prior_hidden": 16, "latent": 4,
    "hidden": 8, "threads": 1,
}  # fmt: skip


def pictures(shape=(1, 9, 7), rows=60, levels=256):
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, levels, (rows, *shape), generator=g, dtype=torch.uint8)


def small(name: str) -> vf.RunSpec:
    return recipes.find(name).spec.preset(**SMALL)


def model_of(name: str, data, **settings):
    spec = small(name).replace(**settings)
    model = vf.build(spec, data).to(double)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


CASES = {
    "vae-2d": ("vae-2d", "gaussian-1", {}),
    "nf-clusters": ("nf-clusters", "three-clusters", {}),
    "vae-cifar, learned scale": ("vae-cifar", (3, 9, 7), {}),
    "vae-cifar, unit scale": ("vae-cifar", (3, 9, 7), {"scale": 1}),
    "vae-cifar, logistics": ("vae-cifar", (3, 9, 7), {"likelihood": "logistics"}),
    "vae-svhn, one channel": ("vae-svhn", (1, 11, 8), {}),
    "vlae": ("vlae", (3, 9, 7), {}),
    "vlae, several steps": ("vlae", (3, 9, 7), {"prior_length": 3}),
    "vlae, spline": ("vlae", (3, 9, 7), {"prior": "spline", "prior_layers": 1, "prior_length": 2}),
    "vlae, mixture": ("vlae", (3, 9, 7), {"prior": "mixture", "components": 5}),
    "vlae, vamp": ("vlae", (3, 9, 7), {"prior": "vamp", "components": 5}),
}


def case(name: str):
    recipe, what, settings = CASES[name]
    if isinstance(what, str):
        data = vf.data.load(what)
    else:
        wanted = "levels" if settings.get("likelihood") == "logistics" else "logit"
        data = vf.data.from_tensor(pictures(what), protocol=wanted, levels=256)
    data = data.to("cpu", double)
    return model_of(recipe, data, **settings), data


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_no_example_touches_another(name, training):
    """f(x)[i] = f(x[i:i+1]), and ∂ log w[i]/∂x[j] = 0 for i ≠ j."""
    model, data = case(name)
    model.train(training)
    x = data.batch("test", torch.arange(3)).x
    noise = torch.randn(1, 3, model.posterior.features, dtype=double)

    def log_weight(x, noise=noise):
        q = model.infer(x)
        with random.use(random.Replay([noise])):
            return model.terms(x, 1, q=q).log_weight[0]

    together = log_weight(x)
    assert bool(together.isfinite().all())
    for i in range(3):
        alone = log_weight(x[i : i + 1], noise[:, i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-10, atol=1e-10)
    slope = jacrev(log_weight)(x).flatten(2).abs().sum(-1)
    assert torch.equal(slope, torch.diag(slope.diagonal()))
    assert bool((slope.diagonal() > 0).all())
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        log_weight(x[order], noise[:, order]), together[order], rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", ["vae-2d", "nf-clusters", "vlae", "vae-cifar"])
def test_the_bound_before_training_is_recorded(name):
    """The first record is the validation bound at step 0, as a new model of the same seed has it."""
    given = None if name in ("vae-2d", "nf-clusters") else pictures((3, 9, 7))
    run = vf.fit(small(name), given, steps=3, validate_every="1 epoch", quiet=True)
    held_out = [record for record in run.metrics if record["split"] == "validation"]
    assert run.metrics[0] is held_out[0]
    assert (held_out[0]["step"], held_out[0]["epoch"]) == (0, 0.0)
    assert held_out[-1]["step"] == 3
    fresh = vf.build(run.spec, run.dataset).eval()
    with random.stream(20150706), torch.no_grad():
        x, ladj, *_ = run.dataset.batch("validation", torch.arange(run.dataset.sizes["validation"]))
        terms = fresh.terms(x[:1000])
    if len(x) <= 1000:
        assert held_out[0]["elbo"] == pytest.approx((terms.log_weight + ladj[:1000]).mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", recipes.TABLE)
def test_recipes_resolve(name):
    recipe = recipes.find(name)
    recipe.spec.validate()
    assert recipe.name == name


def test_the_networks_of_the_picture_recipes_are_the_programs():
    """3×3 convolutions to 256×4×4 and back by 4×4 transposed ones: parameters counted by hand."""
    data = vf.data.from_tensor(pictures((3, 32, 32)))
    for name, latent in (("vae-cifar", 32), ("vae-svhn", 16)):
        model = vf.build(recipes.find(name).spec, data)

        def count(module):
            return sum(p.numel() for p in module.parameters())

        convolutions = sum((a * 9 + 1) * b for a, b in ((3, 32), (32, 64), (64, 128), (128, 256)))
        assert count(model.posterior) == convolutions + (4096 + 1) * 2 * latent
        up = sum(a * 16 * b + b for a, b in ((128, 128), (128, 64), (64, 32)))
        decoder = (latent + 1) * 2048 + up + (32 * 9 + 1) * 3
        assert count(model.likelihood.decoder) == decoder
    made = vf.build(recipes.find("vlae").spec, data).prior.flow.made
    assert (made.features, made.hidden, made.length) == (16, (512, 512), 1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 13, 5), (3, 17, 9)])
@pytest.mark.parametrize("likelihood", ["auto", "logistics"])
def test_odd_sizes_and_one_channel_train_and_evaluate(shape, likelihood, tmp_path):
    run = vf.fit(
        small("vlae"),
        pictures(shape),
        likelihood=likelihood,
        steps=2,
        quiet=True,
        out=tmp_path / "r",
    )
    found = run.evaluate(samples=3)
    unit = "bits_per_dim"
    assert found.estimates[unit].value > 0
    assert run.model.sample(2).shape == (2, *shape)
    again = vf.load(tmp_path / "r", data=pictures(shape))
    for key, value in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value)


def test_pictures_too_small_for_the_network_are_refused():
    with pytest.raises(SpecError, match=r"channels: has 3 entries.*pictures of 3×3"):
        vf.fit("vae-cifar", pictures((1, 3, 3)), steps=1, quiet=True)


def folder(tmp_path: Path, sizes, mode="L") -> Path:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    (tmp_path / "own").mkdir()
    for k, (height, width) in enumerate(sizes):
        shape = (height, width) if mode == "L" else (height, width, 3)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        image.fromarray(pixels).save(tmp_path / "own" / f"{k:02}.png")
    return tmp_path / "own"


@pytest.mark.slow
def test_a_folder_of_mixed_sizes_needs_one_number(tmp_path):
    path = folder(tmp_path, [(9, 12), (11, 7), (9, 12)] * 8)
    with pytest.raises(DataError, match=r"pictures of 2 sizes.*--resize 32"):
        vf.fit("vae-cifar", data=str(path), steps=1, quiet=True)
    run = vf.fit(
        small("vae-cifar"), data=str(path), resize=9, likelihood="logistics", steps=1, quiet=True,
        out=tmp_path / "run",
    )  # fmt: skip
    assert run.dataset.event_shape == (1, 9, 9)
    assert run.dataset.protocol == "levels"
    assert run.model.likelihood.levels == 256
    found = vf.load(tmp_path / "run").evaluate(samples=2)
    assert found.estimates["bits_per_dim"].value > 0
    run.report()
    drawn = {p.stem for p in (tmp_path / "run" / "figures").glob("*.png")}
    assert {"samples", "reconstructions", "interpolations"} <= drawn


def test_a_folder_of_colour_pictures_of_odd_sizes(tmp_path):
    path = folder(tmp_path, [(7, 11)] * 20, "RGB")
    run = vf.fit(small("vlae"), data=str(path), steps=1, quiet=True)
    assert run.dataset.event_shape == (3, 7, 11)
    assert run.dataset.protocol == "logit"
    with pytest.raises(SpecError, match="resize: was 0"):
        vf.fit("vlae", data=str(path), resize=0, steps=1, quiet=True)


def test_levels_of_ones_own_table_can_be_told(tmp_path):
    x = np.random.default_rng(0).integers(0, 5, (60, 4)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    run = vf.fit(
        "digits",
        data=str(tmp_path / "x.npy"),
        levels=5,
        likelihood="categorical",
        latent=2,
        steps=2,
        quiet=True,
    )
    assert run.model.likelihood.levels == 5
    assert run.dataset.levels == 5
