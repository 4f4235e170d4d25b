"""What only autoregressive flows promise; the shared contract is in ``test_contract.py``."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn import functional as F

from derivatives import derivatives
from varflow.core.errors import SpecError
from varflow.flows import InverseAutoregressive, MaskedAutoregressive, autoregressive
from varflow.flows import autoregressive_chain as chain

families = pytest.mark.parametrize("family", [InverseAutoregressive, MaskedAutoregressive])
contexts = pytest.mark.parametrize("context_features", [0, 3], ids=["static", "amortized"])


def shake(flow: nn.Module, scale: float = 1.0, seed: int = 0) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5


def reach(flow: nn.Module, d: int, context_features: int, way: str) -> Tensor:
    """Which output features depend on which input features, at any of some random points."""
    z = torch.randn(8, d, dtype=torch.float64)
    call = flow if way == "forward" else flow.inverse
    context = torch.randn(8, context_features, dtype=torch.float64) if context_features else None
    args = (z,) if context is None else (z, context)
    return vmap(jacrev(lambda v, *c: call(v, *c)[0]))(*args).abs().sum(0) > 0


@families
@contexts
@pytest.mark.parametrize("d", [1, 2, 5, 40])
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_one_step_is_triangular_and_reaches_every_earlier_feature(
    family: type, context_features: int, d: int, way: str
) -> None:
    flow = family(d, context_features=context_features).double()
    shake(flow)
    reached = reach(flow, d, context_features, way)
    assert torch.equal(reached, torch.ones(d, d, dtype=torch.bool).tril())


@families
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_the_second_step_reads_the_features_backwards(family: type, way: str) -> None:
    flow = family(4, length=2).double()
    shake(flow)
    with torch.no_grad():  # the first step becomes the identity
        flow.made.weights[-1][0].zero_()
        flow.made.biases[-1][0].zero_()
    assert torch.equal(reach(flow, 4, 0, way), torch.ones(4, 4, dtype=torch.bool).triu())
    shake(flow)
    assert reach(flow, 4, 0, way).all()


@families
def test_every_output_sees_the_whole_context(family: type) -> None:
    for d in (1, 2, 5):
        flow = family(d, context_features=3).double()
        shake(flow)
        z = torch.randn(8, d, dtype=torch.float64)
        context = torch.randn(8, 3, dtype=torch.float64)
        jacobian = vmap(jacrev(lambda c, v, flow=flow: flow(v, c)[0]))(context, z)
        assert (jacobian.abs().sum(0) > 0).all()


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    d=st.integers(1, 9),
    length=st.integers(1, 3),
    layers=st.integers(1, 3),
    extra=st.integers(0, 7),
    context_features=st.sampled_from([0, 2]),
    seed=st.integers(0, 99),
)
def test_one_by_one_agrees_with_parallel(
    d: int, length: int, layers: int, extra: int, context_features: int, seed: int
) -> None:
    """Whatever the widths, sampling and its parallel inverse are one map."""
    hidden = tuple(d + extra + layer for layer in range(layers))
    flow = MaskedAutoregressive(d, length, context_features, hidden=hidden).double()
    shake(flow, seed=seed)
    z = torch.randn(6, d, dtype=torch.float64)
    context = torch.randn(6, 2, dtype=torch.float64) if context_features else None
    out, ladj = flow(z, context)
    back, ladj_back = flow.inverse(out, context)
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ladj_back, -ladj, rtol=1e-9, atol=1e-9)


def test_sampling_is_the_textbook_recursion() -> None:
    """MAF forward: D full passes of the network, each to read off one more feature."""
    flow = MaskedAutoregressive(5, context_features=2, bound=2.0).double()
    shake(flow)
    z = torch.randn(7, 5, dtype=torch.float64)
    context = torch.randn(7, 2, dtype=torch.float64)
    out = torch.zeros_like(z)
    for i in range(5):
        raw, shift = flow.made(out, context).unbind(-2)
        column = z[:, i] * (2 * torch.tanh(raw / 2)).exp()[:, i] + shift[:, i]
        out = out.index_copy(1, torch.tensor([i]), column[:, None])
    torch.testing.assert_close(flow(z, context)[0], out, rtol=1e-12, atol=1e-12)


def test_iaf_and_maf_with_the_same_networks_are_duals() -> None:
    """Each reads its scale and shift off the side that its fast direction starts from."""
    iaf, maf = InverseAutoregressive(5).double(), MaskedAutoregressive(5).double()
    shake(iaf)
    maf.load_state_dict(iaf.state_dict())
    z = torch.randn(7, 5, dtype=torch.float64)
    raw, shift = iaf.made(z).unbind(-2)
    log_scale = 3 * torch.tanh(raw / 3)
    torch.testing.assert_close(iaf(z)[0], z * log_scale.exp() + shift)
    torch.testing.assert_close(maf.inverse(z)[0], (z - shift) * (-log_scale).exp())
    torch.testing.assert_close(maf.inverse(z)[1], -iaf(z)[1])


def test_the_gate_of_the_paper() -> None:
    flow = InverseAutoregressive(4, length=2, gate="paper").double()
    z = torch.randn(6, 4, dtype=torch.float64)
    start = torch.sigmoid(torch.tensor(1.5, dtype=torch.float64))
    torch.testing.assert_close(flow(z)[0], start**2 * z)
    torch.testing.assert_close(flow(z)[1], (8 * start.log()).expand(6))
    shake(flow)
    a, m = flow.made(z, step=0).unbind(-2)
    gate = torch.sigmoid(a + 1.5)
    middle = gate * z + (1 - gate) * m
    a, m = flow.made(middle, step=1).unbind(-2)
    expected = torch.sigmoid(a + 1.5) * middle + (1 - torch.sigmoid(a + 1.5)) * m
    torch.testing.assert_close(flow(z)[0], expected)
    torch.testing.assert_close(flow.inverse(flow(z)[0])[0], z)


def test_the_gate_of_the_paper_is_finite_for_extreme_outputs() -> None:
    flow = InverseAutoregressive(2, gate="paper")
    with torch.no_grad():
        flow.made.biases[-1][:, :2].fill_(-200.0)
    z = torch.randn(3, 2)
    torch.testing.assert_close(flow(z)[1], torch.full((3,), 2 * (1.5 - 200.0)))


def test_a_single_feature_is_affine() -> None:
    flow = MaskedAutoregressive(1, length=2).double()
    shake(flow)
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    out, ladj = flow(z)
    slope = out.diff(dim=0)
    torch.testing.assert_close(slope, slope[:1].expand(6, 1))
    torch.testing.assert_close(ladj, slope[0].log().expand(7))


def test_density_of_a_known_chain() -> None:
    """MAF by hand: the Gaussian chain z′₁ = z₁, z′₂ = z₂ + relu(z′₁)."""
    flow = MaskedAutoregressive(2, hidden=(1,)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
        flow.made.weights[0][0, 0, 0] = 1.0
        flow.made.weights[1][0, 3, 0] = 1.0  # the shift of feature 2
    x = torch.randn(20, 2, dtype=torch.float64)
    z, ladj = flow.inverse(x)
    torch.testing.assert_close(z[:, 0], x[:, 0])
    torch.testing.assert_close(z[:, 1], x[:, 1] - F.relu(x[:, 0]))
    torch.testing.assert_close(ladj, torch.zeros(20, dtype=torch.float64))


@families
def test_bad_options(family: type) -> None:
    with pytest.raises(SpecError, match="bound: was -1"):
        family(3, bound=-1)
    with pytest.raises(SpecError, match="at least 4 units"):
        family(5, hidden=(16, 3))
    with pytest.raises(SpecError, match="at least 5 units"):
        family(5, context_features=2, hidden=(4,))
    with pytest.raises(SpecError, match="did you mean 'paper'"):
        InverseAutoregressive(3, gate="papr")


@pytest.mark.parametrize(("family", "way"), [(InverseAutoregressive, "push"), (MaskedAutoregressive, "pull")])
@pytest.mark.parametrize(("context", "batch"), [(0, ()), (0, (3,)), (4, ()), (4, (1,)), (4, (3,))])
@pytest.mark.parametrize("hidden", [(9,), (9, 8), (9, 7, 8)])
def test_a_training_step_takes_all_steps_at_once(
    family: type,
    way: str,
    context: int,
    batch: tuple[int, ...],
    hidden: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values, gradients and their gradients are those of the plain operations."""
    flow = family(5, 3, context, hidden).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    z = torch.randn(*batch, 8, 5, dtype=torch.float64, requires_grad=True)
    local = (torch.randn(8, context, dtype=torch.float64, requires_grad=True),) if context else ()
    wanted = [z, *local, *flow.parameters()]
    weights = torch.randn(*batch, 8, 5, dtype=torch.float64), torch.randn(*batch, 8, dtype=torch.float64)

    fused, through = [], chain.through
    with monkeypatch.context() as patched:
        patched.setattr(chain, "through", lambda *given: (fused.append(1), through(*given))[1])
        found = derivatives(lambda: getattr(flow, way)(z, local), z, wanted, weights)
    assert fused
    monkeypatch.setattr(autoregressive, "plain_gradient", lambda *given: False)
    plain = derivatives(lambda: getattr(flow, way)(z, local), z, wanted, weights)
    for got, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_what_needs_no_gradient_or_a_transformation_takes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise AssertionError

    monkeypatch.setattr(chain, "through", refused)
    flow, z = InverseAutoregressive(4, 3), torch.randn(5, 4)
    with torch.no_grad():
        flow.push(z)
    torch.func.vmap(lambda row: flow.push(row)[0])(z)
    torch.func.vjp(lambda row: flow.push(row)[0], z)
    InverseAutoregressive(4, 3, gate="paper").push(z)
