"""An encoder is any network: its size is its own attribute, or found by a dry run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import varflow as vf
from varflow.core.errors import SpecError
from varflow.networks import output_features


def test_a_sequence_that_begins_with_a_linear_layer_tells_its_size() -> None:
    encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
    q = vf.posteriors.Gaussian(2, encoder, vf.flows.Planar, amortized=True)
    assert q(torch.randn(5, 6)).draw(3).z.shape == (3, 5, 2)


def test_the_shape_of_an_example_is_enough_for_any_other() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    q = vf.posteriors.Gaussian(2, encoder, event_shape=(1, 8, 8))
    assert output_features(encoder, (1, 8, 8)) == 4 * 3 * 3
    assert encoder.training
    assert q(torch.randn(5, 1, 8, 8)).mean.shape == (5, 2)


def test_it_is_fitted_like_any_other() -> None:
    encoder = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
    decoder = nn.Sequential(nn.Linear(2, 6))
    likelihood = vf.likelihoods.Bernoulli(decoder, (6,))
    model = vf.Model(vf.priors.StandardNormal(2), likelihood, vf.posteriors.Gaussian(2, encoder))
    before = encoder[0].weight.detach().clone()
    run = vf.fit(model, (torch.rand(100, 6) < 0.5).float(), steps=5, keep="last", quiet=True)
    assert run.outcome["finished"]
    assert not torch.equal(before, encoder[0].weight.detach())


@pytest.mark.parametrize(
    ("encoder", "event_shape", "said"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3)), None, "encoder: Sequential does not say .* pass event_shape="),
        (nn.Sequential(nn.Conv2d(1, 4, 3)), (1, 8, 8), r"makes shape \[1, 4, 6, 6\] .* nn.Flatten"),
        (nn.Linear(5, 3), (4,), r"cannot read one example of shape \[4\]"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    encoder: nn.Module, event_shape: tuple[int, ...] | None, said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        vf.posteriors.Gaussian(2, encoder, event_shape=event_shape)
