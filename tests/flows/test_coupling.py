"""What only couplings promise; the shared contract is in ``test_contract.py``."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import jacrev

from derivatives import derivatives
from varflow.core.errors import SpecError
from varflow.flows import AdditiveCoupling, AffineCoupling, Compose, nice
from varflow.flows import coupling_chain as chain
from varflow.flows.elementwise import Affine


def shake(flow: nn.Module, scale: float = 1.0) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5


@pytest.mark.parametrize("family", [AdditiveCoupling, AffineCoupling])
@pytest.mark.parametrize("d", [2, 5, 6])
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_halves_alternate_by_index_parity(family: type, d: int, length: int) -> None:
    """Step t moves the features of the other parity than t, from those of its own parity."""
    torch.manual_seed(0)
    flow = family(d, length=length).double()
    shake(flow)
    with torch.no_grad():  # every step but the last becomes the identity
        flow.weights[-1][:-1].zero_()
        flow.biases[-1][:-1].zero_()
    kept = torch.arange(d) % 2 == (length - 1) % 2
    jacobian = jacrev(lambda v: flow(v)[0])(torch.randn(d, dtype=torch.float64))
    reached = jacobian.abs() > 0
    expected = torch.eye(d, dtype=torch.bool) | (~kept[:, None] & kept)
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_three_steps_mix_all_features(d: int) -> None:
    flow = AdditiveCoupling(d, length=3).double()
    shake(flow)
    jacobian = jacrev(lambda v: flow(v)[0])(torch.randn(d, dtype=torch.float64))
    assert (jacobian.abs() > 0).all()


def test_default_width_is_five_times_the_features() -> None:
    shapes = [tuple(weight.shape) for weight in AdditiveCoupling(6, length=2).weights]
    assert shapes == [(2, 30, 3), (2, 30, 30), (2, 3, 30)]
    assert [w.shape[-1] for w in AdditiveCoupling(6, hidden=(7,)).weights] == [3, 7]


def test_unused_entries_of_the_smaller_half_get_no_gradient() -> None:
    flow = AdditiveCoupling(5, length=2)
    shake(flow)
    flow(torch.randn(9, 5))[0].square().sum().backward()
    first, last = flow.weights[0].grad, flow.weights[-1].grad
    assert first is not None
    assert last is not None
    assert first[1, :, -1].abs().max() == 0  # odd features: two of three columns
    assert last[0, -1].abs().max() == 0  # step 0 moves them: two of three rows
    assert first[0].abs().sum(0).min() > 0


def test_log_scale_is_bounded_smoothly() -> None:
    flow = AffineCoupling(2, length=1, bound=0.5).double()
    with torch.no_grad():
        flow.biases[-1].fill_(1e6)
    z = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    ladj = flow(z)[1]
    torch.testing.assert_close(ladj, torch.full_like(ladj, 0.5))
    with torch.no_grad():
        flow.biases[-1].fill_(0.01)
    torch.testing.assert_close(flow(z)[1], 0.5 * torch.full_like(ladj, 0.02).tanh())


def test_nice_is_couplings_and_one_scaling() -> None:
    flow = nice(6, length=16, context_features=3)
    assert isinstance(flow, Compose)
    assert [type(part) for part in flow.flows] == [AdditiveCoupling, Affine]
    assert flow.flows[0].length == 15
    assert flow.context_features == 3
    static = nice(4, length=3).double()
    shake(static)
    z = torch.randn(5, 4, dtype=torch.float64)
    log_scale = static.flows[1].static[:4].sum()
    torch.testing.assert_close(static(z)[1], log_scale.expand(5))


def test_nice_of_length_one_is_affine_and_needs_one_feature_only() -> None:
    assert isinstance(nice(1, length=1), Affine)
    with pytest.raises(SpecError, match="needs at least 2"):
        nice(1, length=2)


def test_the_context_moves_the_shift() -> None:
    flow = AdditiveCoupling(4, length=2, context_features=3).double()
    shake(flow)
    z = torch.zeros(4, dtype=torch.float64)
    context = torch.randn(3, dtype=torch.float64)
    jacobian = jacrev(lambda c: flow(z, c)[0])(context)
    assert (jacobian.abs() > 0).all()
    assert flow.condition(context)[0] is context


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": ()}, "at least one hidden layer"),
        ({"hidden": (4, 0)}, r"hidden\[1\]: was 0"),
        ({"bound": 0.0}, "bound: was 0.0"),
        ({"bound": float("nan")}, "bound: was nan"),
    ],
    ids=str,
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        AffineCoupling(4, **options)


@pytest.mark.parametrize(("context", "batch"), [(0, ()), (0, (3,)), (4, ()), (4, (1,)), (4, (3,))])
@pytest.mark.parametrize("hidden", [(7,), (7, 5), (7, 5, 6)])
def test_a_training_step_takes_all_couplings_at_once(
    context: int, batch: tuple[int, ...], hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients and their gradients are those of the plain operations."""
    flow = AdditiveCoupling(6, 5, context, hidden).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    z = torch.randn(*batch, 8, 6, dtype=torch.float64, requires_grad=True)
    local = (torch.randn(8, context, dtype=torch.float64, requires_grad=True),) if context else ()
    wanted = [z, *local, *flow.parameters()]
    weights = torch.randn(*batch, 8, 6, dtype=torch.float64), torch.randn(*batch, 8, dtype=torch.float64)

    fused, push = [], chain.push
    with monkeypatch.context() as patched:
        patched.setattr(chain, "push", lambda *given: (fused.append(1), push(*given))[1])
        found = derivatives(lambda: flow.push(z, local), z, wanted, weights)
    assert fused
    monkeypatch.setattr(chain, "usable", lambda *given: False)
    plain = derivatives(lambda: flow.push(z, local), z, wanted, weights)
    for got, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_what_needs_no_gradient_or_a_transformation_takes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise AssertionError

    monkeypatch.setattr(chain, "push", refused)
    flow, z = AdditiveCoupling(4, 3), torch.randn(5, 4)
    with torch.no_grad():
        flow.push(z)
    torch.func.vmap(lambda row: flow.push(row)[0])(z)
    torch.func.vjp(lambda row: flow.push(row)[0], z)
    AdditiveCoupling(5, 3).push(torch.randn(5, 5))
