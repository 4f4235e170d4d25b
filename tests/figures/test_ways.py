"""Ways between latents, and the figures of them."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import varflow as vf
from varflow import figures
from varflow.core.errors import ShapeError, SpecError
from varflow.data import from_tensor
from varflow.figures import gallery_scene as scenes
from varflow.figures.gallery_data import draw
from varflow.priors import interpolation

double = torch.float64


@pytest.fixture(autouse=True)
def _small_files(monkeypatch) -> None:
    monkeypatch.setattr(scenes, "save", partial(figures.save, dpi=40))


def moved_prior(features: int = 4) -> vf.priors.Flow:
    prior = vf.priors.flow_prior(features, "maf", length=2).to(double)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.5 * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5
    return prior


@pytest.mark.parametrize("way", ["linear", "spherical", "in_base"])
def test_every_way_begins_and_ends_at_its_ends(way):
    a, b = torch.randn(2, 5, 4, dtype=double)
    made = getattr(interpolation, way)
    made = partial(made, moved_prior()) if way == "in_base" else made
    z = made(a, b, 7)
    assert z.shape == (5, 7, 4)
    torch.testing.assert_close(z[:, 0], a, rtol=0, atol=1e-12)
    torch.testing.assert_close(z[:, -1], b, rtol=0, atol=1e-12)


def test_the_arc_keeps_its_length_and_turns_evenly():
    a, b = torch.randn(2, 6, 8, dtype=double)
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    z = interpolation.spherical(3 * a, 3 * b, 9)
    torch.testing.assert_close(z.norm(dim=-1), torch.full((6, 9), 3.0, dtype=double))
    angle = torch.acos((z[:, :-1] * z[:, 1:]).sum(-1) / 9)
    whole = torch.acos((a * b).sum(-1))
    torch.testing.assert_close(angle, (whole / 8)[:, None].expand(6, 8))


def test_parallel_and_opposite_ends_take_the_straight_line():
    a = torch.randn(3, 4, dtype=double)
    for b in (2 * a, -a, a * (1 + 1e-13)):
        z = interpolation.spherical(a, b, 5)
        torch.testing.assert_close(z, interpolation.linear(a, b, 5))
        assert bool(z.isfinite().all())
    assert bool(interpolation.spherical(torch.zeros(2, 4), torch.zeros(2, 4)).isfinite().all())


def test_a_way_in_the_base_is_straight_there_and_keeps_to_the_prior():
    """Its base points have the length of an arc: half-way density is not that of the far-off midpoint."""
    prior = moved_prior(16)
    z = prior.sample((64,)).detach()
    a, b = z[:32], z[32:]
    with torch.no_grad():
        base = prior.encode(interpolation.in_base(prior, a, b, 5).flatten(0, 1)).unflatten(
            0, (32, 5)
        )
        torch.testing.assert_close(
            base, interpolation.spherical(prior.encode(a), prior.encode(b), 5), rtol=1e-9, atol=1e-9
        )
    with pytest.raises(
        SpecError, match="StandardNormal has no base space; use linear or spherical"
    ):
        interpolation.in_base(vf.priors.StandardNormal(4), a, b)
    with pytest.raises(ShapeError, match=r"b: shape \(2, 4\), a has \(3, 4\)"):
        interpolation.linear(torch.zeros(3, 4), torch.zeros(2, 4))


def pictures():
    x = torch.randint(0, 256, (300, 1, 6, 5), dtype=torch.uint8)
    return from_tensor(x, labels=torch.arange(300) % 3)


def scene(dataset, **settings):
    spec = vf.RunSpec().preset(hidden=8, layers=1, latent=3).replace(**settings)
    return scenes.Scene(vf.build(spec, dataset), dataset, [], 0, None, "validation")


@pytest.mark.parametrize(("prior", "panels"), [("normal", 2), ("maf", 3), ("mixture", 2)])
def test_interpolations_are_ten_by_ten_each_way(prior, panels):
    with torch.no_grad():
        figure, title, caption = draw(scene(pictures(), prior=prior), "interpolations")
    assert title == "Interpolations"
    assert "10 pairs of validation examples" in caption
    assert ("base points" in caption) == (panels == 3)
    shown = [axes.images[0].get_array().shape for axes in figure.axes]
    assert shown == [(10 * 7 + 1, 10 * 6 + 1, 3)] * panels


def test_ends_of_the_rows_are_the_decoded_draws():
    one = scene(pictures(), prior="maf")
    with torch.no_grad():
        figure, *_ = draw(one, "interpolations")
        _, z = one.encode(20)
        first = one.dataset.pictures(one.model.likelihood.mean(z[:1]))[0, 0]
        last = one.dataset.pictures(one.model.likelihood.mean(z[10:11]))[0, 0]
    for axes in figure.axes:
        sheet = torch.as_tensor(axes.images[0].get_array()[..., 0])
        torch.testing.assert_close(sheet[1:7, 1:6].float(), first, atol=1e-4, rtol=0)
        torch.testing.assert_close(sheet[1:7, -6:-1].float(), last, atol=1e-4, rtol=0)


def test_few_pictures_give_few_rows_and_codes_none():
    x = torch.randint(0, 256, (30, 1, 6, 5), dtype=torch.uint8)
    with torch.no_grad():
        drawn = draw(scene(from_tensor(x)), "interpolations")
        assert "1 pairs" in drawn.caption
        assert draw(scene(from_tensor(torch.randn(40, 3))), "interpolations") is None


def test_points_in_the_plane_share_their_axes():
    data = vf.data.load("three-clusters")
    with torch.no_grad():
        figure, title, caption = draw(scene(data, scale="decoder"), "plane")
    assert title == "Data and samples"
    assert len(figure.axes) == 3
    assert "999 validation examples" in caption
    assert "Colours of the data are the labels" in caption
    assert len({axes.get_xlim() + axes.get_ylim() for axes in figure.axes}) == 1
    low, high = figure.axes[0].get_xlim()
    assert low < -6 < 5 < high
    # The latents of noise and mean are the same draws: the middle panel scatters around the right one.
    colours = {tuple(c) for c in figure.axes[0].collections[0].get_facecolors()}
    assert len(colours) == 3


def test_density_estimation_has_no_noise_to_leave_out():
    data = vf.data.load("gaussian-1")
    with torch.no_grad():
        figure, *_ = draw(scene(data, likelihood="identity", prior="maf"), "plane")
        assert len(figure.axes) == 2
        entries = draw(scene(from_tensor(torch.randn(50, 3))), "plane")
    assert entries is None
    with pytest.raises(ShapeError, match="2 for 1 panels"):
        figures.plane({"data": torch.zeros(4, 2)}, figure.axes)


def test_points_outside_of_the_frame_are_counted():
    _, axes = figures.canvas(1, 2)
    points = torch.rand(100, 2)
    far = points.clone()
    far[:25] += 50
    figures.plane({"data": points, "model": far}, axes[0])
    assert axes[0, 1].get_title() == "model\n25.0% outside"
    assert math.isclose(axes[0, 0].get_xlim()[0], axes[0, 1].get_xlim()[0])
