"""A conditional prior with its classes summed out: exact on grids small enough to list."""

from collections import Counter

import pytest
import torch

from varflow import priors
from varflow.core import random
from varflow.core.errors import SpecError

SMALL = {"channels": 6, "layers": 1, "kernel": 3, "embedding": 5, "hidden": 8}


def build(kind=priors.PixelCNN, classes=3, codes=3):
    prior = priors.ByClass(kind((2, 2), codes, classes=classes, **SMALL)).double()
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            parameter.normal_(std=3.0 if "shifts" in name else 0.25)
    prior.count(torch.tensor([0] * 5 + [1] * 2 + [2]))
    return prior


def grids(codes=3):
    return torch.cartesian_prod(*[torch.arange(codes)] * 4).reshape(-1, 2, 2)


@pytest.mark.parametrize("kind", [priors.PixelCNN, priors.GatedPixelCNN])
def test_the_mixture_is_the_mixture_and_sums_to_one(kind):
    prior = build(kind)
    z = grids()
    with torch.no_grad():
        each = torch.stack(
            [prior.log_prob(z, torch.full((len(z),), label)) for label in range(3)]
        ).exp()
        both = prior.log_prob(z).exp()
    assert prior.shares.tolist() == pytest.approx([5 / 8, 2 / 8, 1 / 8])
    assert each.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert both.sum().item() == pytest.approx(1)
    torch.testing.assert_close(both, prior.shares @ each)
    # How far the classes differ at the start is up to the weights; rounding ends at about 1e-12.
    assert (each[0] / each[1] - 1).abs().max() > 1e-6


def test_a_class_that_never_occurred_has_no_part():
    prior = build()
    prior.count(torch.tensor([1, 1]))
    z = grids()
    with torch.no_grad():
        own = prior.log_prob(z, torch.ones(len(z), dtype=torch.long))
        torch.testing.assert_close(prior.log_prob(z), own)
    with random.stream(0):
        assert len(prior.sample((40,))) == 40


def test_samples_without_labels_follow_the_mixture():
    """χ² of 10,000 draws over the 81 grids."""
    prior, count = build(), 10_000
    with random.stream(5):
        z, recorded = prior.sample_and_log_prob((count,))
    torch.testing.assert_close(recorded, prior.log_prob(z), atol=1e-9, rtol=0)
    found = Counter(map(tuple, z.flatten(1).tolist()))
    with torch.no_grad():
        expected = count * prior.log_prob(grids()).exp()
    assert expected.min() > 5
    observed = torch.tensor([found[tuple(grid)] for grid in grids().flatten(1).tolist()])
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    # 80 degrees of freedom: mean 80, sd 12.6.
    assert abs(statistic - 80) < 4 * 12.65


def test_labels_that_are_given_are_kept():
    prior = build()
    labels = torch.tensor([0, 2])
    with random.stream(1):
        z, recorded = prior.sample_and_log_prob((5, 2), labels=labels)
    with random.stream(1):
        inner = prior.prior.sample((5, 2), labels=labels)
    assert torch.equal(z, inner)
    torch.testing.assert_close(recorded, prior.log_prob(z, labels.expand(5, 2)))


def test_what_cannot_be_is_named():
    with pytest.raises(SpecError, match="prior: has no classes"):
        priors.ByClass(priors.PixelCNN((2, 2), 3, **SMALL))
