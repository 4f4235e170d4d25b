"""The plane under every flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from varflow import figures, flows
from varflow.core.errors import ShapeError
from varflow.core.lazy import resolve


def perturbed(flow):
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=source).to(parameter)
    return flow


@pytest.mark.parametrize("name", flows.TABLE)
@pytest.mark.parametrize("context_features", [0, 3])
def test_every_flow_is_drawn(name: str, context_features: int) -> None:
    torch.manual_seed(0)
    flow = perturbed(
        resolve(flows.TABLE[name])(
            2, length=1 if name == "affine" else 2, context_features=context_features
        )
    )
    context = torch.ones(3) if context_features else None
    axes = figures.flow_grid(
        flow, figures.canvas()[1][0, 0], context, extent=2.0, lines=4, points=21
    )
    before, after = axes.collections
    grid = np.concatenate(before.get_segments())
    assert len(before.get_segments()) == 8
    np.testing.assert_allclose([grid.min(), grid.max()], [-2, 2])
    sent = torch.from_numpy(grid).float()
    with torch.no_grad():
        moved, ladj = flow(sent) if context is None else flow(sent, context)
    moved, ladj = moved.reshape(8, 21, 2), ladj.reshape(8, 21)
    segments = np.array(after.get_segments()).reshape(8, 20, 2, 2)
    np.testing.assert_allclose(segments[:, :, 0], moved[:, :-1], atol=1e-4)
    np.testing.assert_allclose(segments[:, :, 1], moved[:, 1:], atol=1e-4)
    colour = np.asarray(after.get_array()).reshape(8, 20)
    if ladj.abs().max() > 1e-6:
        np.testing.assert_allclose(colour, (ladj[:, :-1] + ladj[:, 1:]) / 2, atol=1e-4)
    else:
        assert (colour == colour[:, :1]).all()
    frame = np.array([axes.get_xlim(), axes.get_ylim()]).T
    assert (segments > frame[0]).all()
    assert (segments < frame[1]).all()


def test_colour_is_symmetric_about_zero_and_one_tear_does_not_wash_it_out() -> None:
    def torn(z):
        ladj = z[:, 0].clone()
        ladj[0] = 1e4
        return z, ladj

    axes = figures.flow_grid(torn, figures.canvas()[1][0, 0])
    assert axes.collections[1].norm.vmin == -axes.collections[1].norm.vmax
    assert axes.collections[1].norm.vmax <= 3


def test_centre_and_extent_place_the_grid_and_dtype_follows_the_flow() -> None:
    flow = flows.Affine(2).double()
    axes = figures.flow_grid(flow, figures.canvas()[1][0, 0], extent=(1.0, 0.5), centre=(4.0, -2.0))
    corners = np.concatenate(axes.collections[0].get_segments())
    np.testing.assert_allclose(corners.min(0), [3.0, -2.5])
    np.testing.assert_allclose(corners.max(0), [5.0, -1.5])


def test_only_two_features() -> None:
    with pytest.raises(ShapeError, match="3 features"):
        figures.flow_grid(flows.Affine(3), figures.canvas()[1][0, 0])
