"""Figures of discrete latents."""

import math

import numpy as np
import pytest
import torch

import varflow as vf
from varflow import figures
from varflow.core.errors import DataError, ShapeError
from varflow.data import from_tensor


def test_colours_are_alike_for_codewords_that_are_near():
    words = torch.cat([torch.randn(10, 6), 30 + torch.randn(10, 6)])
    colours = figures.codeword_colours(words)
    assert colours.shape == (20, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[:10, :10].mean() < distances[:10, 10:].mean()
    assert len(np.unique(colours, axis=0)) == 20
    assert figures.codeword_colours(torch.zeros(1, 4)).tolist() == [[0.5, 0.5, 0.5]]


def test_maps_show_the_colour_of_each_code():
    _, axes = figures.canvas()
    table = np.eye(3)
    codes = torch.tensor([[[0, 1], [2, 0]]])
    drawn = figures.code_maps(codes, table, axes[0, 0], torch.ones(1, 1, 7, 6))
    sheet = drawn.images[0].get_array()
    gap = 3
    tile = sheet[gap : gap + 7, gap : gap + 6]
    assert tile[0, 0].tolist() == [1, 0, 0]
    assert tile[0, 5].tolist() == [0, 1, 0]
    assert tile[6, 0].tolist() == [0, 0, 1]
    assert tile[6, 5].tolist() == [1, 0, 0]
    assert [text.get_text() for text in axes[0, 0].texts] == ["codes", "decoded"]
    with pytest.raises(ShapeError, match="codes: from 0 to 2; there are colours for 2"):
        figures.code_maps(codes, table[:2], axes[0, 0], torch.ones(1, 1, 7, 6))


def test_usage_has_a_bar_for_each_code():
    _, axes = figures.canvas()
    drawn = figures.code_usage(torch.tensor([0.0, 3.0, 1.0, 0.0]), axes[0, 0])
    assert [bar.get_height() for bar in drawn.patches] == [0.75, 0.25, 0, 0]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert drawn.get_title() == f"perplexity {math.exp(entropy):.1f}, 2 of 4 codes in use"
    with pytest.raises(DataError, match="no code occurs"):
        figures.code_usage(torch.zeros(4), axes[0, 0])


def test_curves_start_before_training():
    _, axes = figures.canvas(1, 2)
    first = [{"step": k, "split": "validation", "perplexity": 3.0 + k} for k in range(3)]
    second = [{"step": k, "split": "validation", "elbo": -9.0 + k} for k in range(3)]
    left, right = figures.code_curves(first, second, 9.0, axes[0])
    assert left.lines[0].get_xydata().tolist() == [[0, 3], [1, 4], [2, 5]]
    assert right.lines[0].get_xydata().tolist() == [[0, 9], [1, 8], [2, 7]]
    with pytest.raises(DataError, match="no record"):
        figures.code_curves([], [], 1.0, figures.canvas(1, 2)[1][0])


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["uniform-codes", "pixelcnn"])
def test_the_gallery_of_a_quantizer(tmp_path, prior):
    x = torch.randint(0, 256, (60, 3, 8, 9), dtype=torch.uint8)
    data = from_tensor(x, torch.arange(60) % 3, protocol="symmetric")
    spec = vf.recipes.find("vq-pixelcnn").spec.preset(
        codes=5, code_features=4, blocks=1, prior_channels=4, prior_length=1
    ).replace(prior=prior)
    metrics = [
        {
            "step": k,
            "split": "validation",
            "elbo": -k,
            "log_likelihood": -1,
            "kl": 1,
            "perplexity": 2.0,
        }
        for k in range(2)
    ]
    model = vf.build(spec, data)
    entries = figures.gallery(model, data, metrics, tmp_path, code_prior_metrics=metrics[:1])
    names = [entry.path.stem for entry in entries]
    assert names == [
        "samples",
        "reconstructions",
        "code_maps",
        "code_usage",
        "curves",
        "code_curves",
    ]
    again = figures.gallery(model, data, metrics, tmp_path / "b", code_prior_metrics=metrics[:1])
    for one, other in zip(entries, again, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
