"""Gradients of log p(x, z) within a bound on memory, and the importance weights that need them."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

import varflow as vf
from varflow import hmc
from varflow.core.errors import SpecError
from varflow.evaluation import Importance, importance_sample
from varflow.evaluation.memory import CACHE, COPIES, SlicedJoint, gradient_rows, rows_within
from varflow.model import LogJoint

from .conftest import tiny


def moving() -> vf.Model:
    inner = tiny()
    posterior = vf.posteriors.Hamiltonian(inner.posterior, steps=2, tempering="fixed")
    return vf.Model(inner.prior, inner.likelihood, posterior).double()


@pytest.mark.parametrize("memory", [2000, 5000, 20_000, 2**30])
def test_slices_equal_the_whole(binary, memory):
    model, x = tiny(), binary[:7]
    z = torch.randn(5, 7, 2, dtype=torch.float64)
    value, gradient = SlicedJoint(model, x, memory).value_and_gradient(z)
    expected = hmc.slope(LogJoint(model, x))(z)
    torch.testing.assert_close(value, expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, expected[1], rtol=0, atol=1e-12)


def test_a_hamiltonian_is_drawn_within_the_memory(binary):
    model, x = moving(), binary[:9]
    whole = importance_sample(model, x, 70)
    largest = []
    model.likelihood.value_and_gradient = lambda x, z: None
    inner = model.likelihood.decoder.forward
    model.likelihood.decoder.forward = lambda z: largest.append(z[..., 0].numel()) or inner(z)
    tight = importance_sample(model, x, 70, memory=20_000)
    assert max(largest) < 100
    for f in fields(Importance):
        one, two = getattr(whole, f.name), getattr(tight, f.name)
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9, equal_nan=True, msg=f.name)


def test_what_drawing_computed_is_not_decoded_again(binary):
    model, x = moving(), binary[:4]
    rows = []
    model.likelihood.value_and_gradient = lambda x, z: None
    inner = model.likelihood.log_prob
    model.likelihood.log_prob = lambda x, z: rows.append(z[..., 0].numel()) or inner(x, z)
    importance_sample(model, x, 10)
    # Three gradients for two steps; the last brings log p(x, z) along. The rest measures memory.
    assert rows.count(40) == 3


def test_a_gradient_needs_all_activations_at_once(binary):
    model, x = tiny().float(), binary[:1].float()
    z = torch.zeros(1, 1, 2)
    draw = model.posterior(x).draw(1)
    # Decoding holds little more than one layer's output, of 8 or of 6 numbers; a gradient keeps all of them.
    row = COPIES * 4 * 8
    assert rows_within(row, model, x, draw) == 1
    assert row + 4 * 8 < row * 100 // gradient_rows(row * 100, model, x, z) < 3 * row
    assert rows_within(2**40, model, x, draw) == CACHE // row
    with pytest.raises(SpecError, match="memory: was 20 bytes; the gradient of one latent takes"):
        gradient_rows(20, model, x, z)
    with pytest.raises(
        SpecError, match="memory: was 20 bytes; decoding one latent takes about 128"
    ):
        rows_within(20, model, x, draw)
