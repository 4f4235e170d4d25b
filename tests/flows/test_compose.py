"""Composition, the elementwise flow and the reversal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from varflow.core.errors import ShapeError, SpecError
from varflow.flows import AdditiveCoupling, Affine, Compose, InverseAutoregressive, Reverse


def shake(flow: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += torch.randn_like(parameter) * parameter.shape[-1] ** -0.5


def mixed() -> Compose:
    """Amortized and static parts, nested, in an order that a wrong split would not survive."""
    flow = Compose(
        InverseAutoregressive(3),
        Compose(Affine(3, context_features=2), Reverse(3), Affine(3)),
        AdditiveCoupling(3, 2, context_features=2),
    ).double()
    shake(flow)
    return flow


def test_the_first_argument_acts_first() -> None:
    shift, double = Affine(2), Affine(2)
    with torch.no_grad():
        shift.static[2:] = 1.0
        double.static[:2] = torch.tensor(2.0).log()
    z = torch.zeros(2)
    torch.testing.assert_close(Compose(shift, double)(z)[0], torch.full((2,), 2.0))
    torch.testing.assert_close(Compose(double, shift)(z)[0], torch.full((2,), 1.0))


def test_is_the_loop_over_its_parts() -> None:
    flow = mixed()
    iaf, (affine, reverse, last), coupling = flow.flows[0], flow.flows[1].flows, flow.flows[2]
    z, context = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    out, total = z, torch.zeros(5).double()
    for part in (iaf, affine, reverse, last, coupling):
        out, ladj = part(out, context if part.context_features else None)
        total = total + ladj
    torch.testing.assert_close(flow(z, context), (out, total))
    back, ladj = flow.inverse(out, context)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(ladj, -total)


def test_local_is_flat_and_per_example() -> None:
    flow = mixed()
    context = torch.randn(5, 2).double()
    local = flow.condition(context)
    assert [tuple(tensor.shape) for tensor in local] == [(5, 6), (5, 2)]
    assert flow.counts == [0, 1, 1]
    assert Compose(Affine(3), Reverse(3)).condition(None) == ()


def test_sizes_and_flags_follow_from_the_parts() -> None:
    flow = mixed()
    assert (flow.features, flow.context_features) == (3, 2)
    assert (flow.mixes, flow.volume_preserving) == (True, False)
    assert Compose(Affine(3), Affine(3)).mixes is False
    assert Compose(AdditiveCoupling(3), Reverse(3)).volume_preserving is True
    assert Compose(Affine(3), Reverse(3)).context_features == 0


def test_ladj_has_the_whole_batch_shape_when_only_a_late_part_widens_it() -> None:
    flow = Compose(Affine(2), Affine(2, context_features=3), Affine(2))
    for way in (flow, flow.inverse):
        out, ladj = way(torch.zeros(4, 1, 2), torch.zeros(5, 3))
        assert (out.shape, ladj.shape) == ((4, 5, 2), (4, 5))


def test_every_parameter_is_registered_once() -> None:
    flow = mixed()
    parts = [flow.flows[0], *flow.flows[1].flows, flow.flows[2]]
    expected = sum(len(list(part.parameters())) for part in parts)
    assert len(list(flow.parameters())) == expected


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(SpecError, match="there are none"):
        Compose()
    with pytest.raises(SpecError, match=r"have \[2, 3\] features"):
        Compose(Affine(2), Affine(3))
    with pytest.raises(SpecError, match=r"context_features=\[4, 0, 5\]"):
        Compose(Affine(2, context_features=4), Affine(2), Affine(2, context_features=5))
    with pytest.raises(ShapeError, match=r"needs \[\.\.\., 3\]"):
        mixed()(torch.zeros(2, 4), torch.zeros(2, 2))


def test_affine_packs_log_scale_then_shift() -> None:
    flow = Affine(2, context_features=3)
    local = torch.tensor([0.5, -1.0, 2.0, 3.0])
    out, ladj = flow.push(torch.ones(2), (local,))
    torch.testing.assert_close(out, torch.tensor([0.5, -1.0]).exp() + torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(ladj, torch.tensor(-0.5))
    assert flow.condition(torch.ones(7, 3))[0].shape == (7, 4)


def test_reverse_is_its_own_inverse() -> None:
    z = torch.randn(4, 5)
    flow = Reverse(5)
    assert torch.equal(flow(z)[0], z.flip(-1))
    assert torch.equal(flow(flow(z)[0])[0], z)
    assert torch.equal(flow.inverse(z)[0], flow(z)[0])
    assert flow(z)[1].tolist() == [0.0] * 4
    assert flow.volume_preserving
    assert list(flow.parameters()) == []
