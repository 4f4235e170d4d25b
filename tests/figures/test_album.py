"""The gallery: what applies is drawn, the same each time, and told exactly."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from matplotlib.image import imread

import varflow as vf
from varflow import figures
from varflow.core.errors import DataError
from varflow.data import from_tensor
from varflow.figures import gallery_examples
from varflow.figures import gallery_scene as scene
from varflow.figures.gallery_scene import Scene

METRICS = [
    {"step": k, "split": split, "elbo": -9.0 + k, "log_likelihood": -5.0, "kl": 4.0}
    for k in range(3)
    for split in ("train", "validation")
]


@pytest.fixture(autouse=True)
def _small_files(monkeypatch) -> None:
    monkeypatch.setattr(scene, "save", partial(figures.save, dpi=40))


def pictures(colours: int = 1, protocol: str = "auto"):
    source = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (60, colours, 6, 5), generator=source, dtype=torch.uint8)
    return from_tensor(x, labels=torch.arange(60) % 3, protocol=protocol)


def table(columns: int = 3):
    return from_tensor(torch.randn(60, columns, generator=torch.Generator().manual_seed(0)))


def model_of(dataset, **settings):
    return vf.build(vf.RunSpec().preset(hidden=8, layers=1, length=1).replace(**settings), dataset)


def names(entries) -> list[str]:
    return [entry.path.stem for entry in entries]


class Evaluated:
    """What the gallery reads of an evaluation."""

    per_example = {"khat": torch.linspace(0, 1, 20)}  # noqa: RUF012


CASES = {
    "2-D, static flow": (
        {"latent": 2, "flow": "planar"},
        "samples reconstructions decoded interpolations latents flow aggregate hmc curves weights",
    ),
    "2-D, amortized flow": (
        {"latent": 2, "flow": "planar", "amortized": True},
        "samples reconstructions decoded interpolations latents flow aggregate hmc curves weights",
    ),
    "5-D, no flow": ({"latent": 5}, "samples reconstructions interpolations latents aggregate hmc curves weights"),
    "5-D, Hamiltonian": (
        {"latent": 5, "leapfrog": 2, "tempering": "free"},
        "samples reconstructions interpolations latents aggregate trajectories schedule hmc curves weights",
    ),
    "5-D, two layers": (
        {"latent": 5, "top_latent": 2},
        "samples reconstructions interpolations latents hmc curves weights",
    ),
    "5-D, flow": (
        {"latent": 5, "flow": "iaf"},
        "samples reconstructions interpolations latents aggregate hmc curves weights",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_applies_to_pictures_is_drawn_and_told(case: str, tmp_path) -> None:
    settings, expected = CASES[case]
    dataset = pictures()
    entries = figures.gallery(
        model_of(dataset, **settings), dataset, METRICS, tmp_path, evaluation=Evaluated()
    )
    assert names(entries) == expected.split()
    assert json.loads((tmp_path / "index.json").read_text()) == [
        {"file": e.path.name, "title": e.title, "caption": e.caption} for e in entries
    ]
    told = {e.path.stem: e.caption for e in entries}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [f"{n}.png" for n in told] + ["index.json", "points.json"]
    )
    for entry in entries:
        picture = imread(entry.path)[..., :3]
        # What is cut off runs into the edge.
        for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
            assert (edge == 1).all(), entry.path.name
    assert "6 validation examples of" in told["latents"]
    assert "one draw" in told["latents"].lower()
    assert "20 evaluated points" in told["weights"]
    assert "mean of the Bernoulli likelihood" in told["samples"]
    if "trajectories" in told:
        assert "z_2 one of q(z|x)" in told["trajectories"]
        assert "tempering free" in told["schedule"]
    if "flow" in told:
        assert ("amortized" in told["flow"]) == settings.get("amortized", False)


def test_the_bound_is_drawn_where_it_was_computed(tmp_path) -> None:
    dataset = pictures()
    model = model_of(dataset, latent=2)
    curve = vf.evaluation.bound_curve(model, dataset, samples=10)
    entries = figures.gallery(model, dataset, [], tmp_path, curve=curve)
    assert names(entries)[-1] == "bound"
    assert "6 points of" in entries[-1].caption


def test_tables_get_pairs_of_columns_instead_of_pictures(tmp_path) -> None:
    dataset = table(6)
    entries = figures.gallery(model_of(dataset, latent=2), dataset, [], tmp_path)
    assert names(entries) == ["pairs", "latents", "aggregate"]
    assert "4 of 6 columns" in entries[0].caption


def test_colour_pictures_under_a_gaussian(tmp_path) -> None:
    dataset = pictures(colours=3, protocol="logit")
    entries = figures.gallery(model_of(dataset, latent=3), dataset, [], tmp_path)
    assert names(entries) == ["samples", "reconstructions", "interpolations", "latents", "aggregate", "hmc"]
    assert "Gaussian likelihood" in entries[0].caption


@pytest.mark.slow
def test_the_same_seed_gives_the_same_files_and_the_model_is_left_as_it_was(tmp_path) -> None:
    dataset = pictures()
    model = model_of(dataset, latent=2, flow="planar").train()
    before = torch.random.get_rng_state()

    def files(seed: int) -> dict[str, bytes]:
        entries = figures.gallery(model, dataset, METRICS, tmp_path / str(seed), seed=seed)
        return {entry.path.name: entry.path.read_bytes() for entry in entries}

    first, again, other = files(0), files(0), files(1)
    assert first == again
    assert first["samples.png"] != other["samples.png"]
    assert first["curves.png"] == other["curves.png"]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_mode_of_the_model_comes_back_after_an_error(tmp_path, monkeypatch) -> None:
    dataset = pictures()
    model = model_of(dataset, latent=2).train()
    monkeypatch.setattr(model, "sample", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        figures.gallery(model, dataset, METRICS, tmp_path)
    assert model.training


def test_mean_and_draw_show_the_same_latents(tmp_path, monkeypatch) -> None:
    dataset = pictures()
    model = model_of(dataset, latent=2)
    seen = []
    for method in ("mean", "sample"):
        inner = getattr(model.likelihood, method)
        monkeypatch.setattr(
            model.likelihood, method, lambda z, inner=inner: seen.append(z) or inner(z)
        )
    gallery_examples.samples(Scene(model, dataset, [], 0, None, "validation"))
    # A likelihood's sample may itself ask for its mean; whatever was asked, it was of the same z.
    assert len(seen) >= 2
    assert all(torch.equal(z, seen[0]) for z in seen)


def test_a_split_without_examples_is_replaced_and_the_caption_says_so(tmp_path) -> None:
    class NoValidation:
        def __init__(self, dataset) -> None:
            self._dataset = dataset
            self.sizes = {**dataset.sizes, "validation": 0}

        def __getattr__(self, name):
            return getattr(self._dataset, name)

    dataset = NoValidation(table())
    entries = figures.gallery(model_of(dataset, latent=2), dataset, [], tmp_path)
    assert "test examples" in entries[0].caption
    dataset.sizes = {"train": 0, "validation": 0, "test": 0}
    with pytest.raises(DataError, match="no examples"):
        figures.gallery(model_of(dataset, latent=2), dataset, [], tmp_path)


def test_long_encodings_do_not_depend_on_how_many_are_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(scene, "CHUNK", 4)
    dataset = table()
    shown = Scene(model_of(dataset, latent=2), dataset, [], 0, None, "train")
    with torch.no_grad():
        z0, z = shown.encode(10)
        fewer, _ = shown.encode(8)
    assert z.shape == (10, 2)
    torch.testing.assert_close(z0[:8], fewer)
    assert len(torch.unique(z0, dim=0)) == 10
