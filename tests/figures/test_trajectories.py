"""Trajectories and schedules: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from varflow import figures
from varflow.core.errors import ShapeError
from varflow.posteriors import Gaussian, Hamiltonian


def lines(axes) -> list[np.ndarray]:
    return [line.get_ydata() for line in axes.get_lines()]


def test_each_row_is_one_example_and_each_column_one_point():
    originals, steps = torch.zeros(2, 1, 4, 5), torch.rand(3, 2, 1, 4, 5)
    _, axes = figures.canvas()
    figures.decoded_trajectories(originals, steps, axes[0, 0], sides=["a", "b"])
    sheet = axes[0, 0].images[0].get_array()
    gap, start = 1, 7 + 2
    assert sheet.shape == (2 * 5 + 1, 7 + 2 + 3 * 6 + 1, 3)
    for row in range(2):
        top = gap + row * 5
        np.testing.assert_allclose(sheet[top : top + 4, gap : gap + 5], 0)
        for column in range(3):
            left = start + gap + column * 6
            shown = sheet[top : top + 4, left : left + 5, 0]
            np.testing.assert_allclose(shown, steps[column, row, 0])
    texts = [text.get_text() for text in axes[0, 0].texts]
    assert texts == ["data", "$z_{0}$", "$z_{1}$", "$z_{2}$", "a", "b"]


@pytest.mark.parametrize("shape", [(3, 1, 1, 4, 5), (0, 2, 1, 4, 5), (3, 2, 1, 5, 5), (3, 2, 1, 4)])
def test_trajectories_of_other_pictures_are_refused(shape):
    _, axes = figures.canvas()
    with pytest.raises(ShapeError, match="steps"):
        figures.decoded_trajectories(torch.zeros(2, 1, 4, 5), torch.zeros(shape), axes[0, 0])


@pytest.mark.parametrize("tempering", ["none", "fixed", "free"])
def test_the_temperature_is_that_of_the_posterior(tempering):
    posterior = Hamiltonian(Gaussian(3), 4, tempering, "scalar", initial_temperature=2.0).double()
    _, axes = figures.canvas(1, 2)
    figures.hamiltonian_schedule(posterior.step_sizes, posterior.factors, axes[0], posterior.bound)
    roots = lines(axes[0, 1])[0]
    assert len(roots) == 5
    assert roots[-1] == 1
    np.testing.assert_allclose(roots[0], float(posterior.temperature.detach()))
    np.testing.assert_allclose(roots[1:] / roots[:-1], posterior.factors.detach())
    steps = lines(axes[0, 0])[0]
    np.testing.assert_allclose(steps, [0.05] * 4, rtol=1e-6)
    assert lines(axes[0, 0])[1][0] == 0.5


def test_step_sizes_of_each_latent_are_sorted_and_of_each_step_apart():
    sizes = torch.tensor([[0.1, 0.3, 0.2], [0.4, 0.6, 0.5]])
    _, axes = figures.canvas(1, 2)
    figures.hamiltonian_schedule(sizes, torch.ones(2), axes[0])
    np.testing.assert_allclose(lines(axes[0, 0]), [[0.3, 0.2, 0.1], [0.6, 0.5, 0.4]], rtol=1e-6)
    _, axes = figures.canvas(1, 2)
    figures.hamiltonian_schedule(sizes[:1].expand(2, 3), torch.ones(2), axes[0])
    np.testing.assert_allclose(lines(axes[0, 0]), [[0.3, 0.2, 0.1]], rtol=1e-6)


def test_a_schedule_needs_steps():
    _, axes = figures.canvas(1, 2)
    with pytest.raises(ShapeError, match="factors: is empty"):
        figures.hamiltonian_schedule(torch.ones(0, 2), torch.ones(0), axes[0])
    with pytest.raises(ShapeError, match="step_sizes"):
        figures.hamiltonian_schedule(torch.ones(3, 2), torch.ones(2), axes[0])
