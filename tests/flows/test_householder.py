"""Householder flow: the product of reflections, orthogonality, the zero vector, derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from varflow.core.errors import SpecError
from varflow.flows import Householder
from varflow.flows.householder import step_by_step


@pytest.mark.parametrize(("features", "length"), [(1, 1), (2, 3), (5, 1), (5, 16), (40, 16)])
def test_static_flow_is_the_product(features: int, length: int) -> None:
    flow = Householder(features, length).double()
    z = torch.randn(3, 4, features, dtype=torch.float64)
    out, ladj = flow(z)
    torch.testing.assert_close(out, step_by_step(z, flow.v), rtol=1e-12, atol=1e-12)
    assert torch.equal(ladj, torch.zeros(3, 4).double())


def test_amortized_vectors_are_chained() -> None:
    flow = Householder(3, 4, context_features=2).double()
    z, context = (torch.randn(*shape, dtype=torch.float64) for shape in [(7, 5, 3), (5, 2)])
    v = flow.head(context)
    chain = [v]
    for weight, bias in zip(flow.weight, flow.bias, strict=True):
        v = v @ weight.T + bias
        chain.append(v)
    (packed,) = flow.condition(context)
    torch.testing.assert_close(packed, torch.cat(chain, -1))
    out, _ = flow(z, context)
    for i in range(5):
        expected = step_by_step(z[:, i], torch.stack(chain)[:, i])
        torch.testing.assert_close(out[:, i], expected, rtol=1e-12, atol=1e-12)


def test_every_amortized_vector_depends_on_the_context() -> None:
    flow = Householder(6, 16, context_features=3)
    (packed,) = flow.condition(torch.randn(200, 3))
    spread = packed.view(200, 16, 6).std(0).norm(dim=-1)
    assert (spread > 0.3 * spread[0]).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_orthogonal_and_inverted_by_its_transpose(
    dtype: torch.dtype, tolerance: float, scale: float
) -> None:
    flow = Householder(40, 16).to(dtype)
    with torch.no_grad():
        flow.v.mul_(scale)
    matrix = flow(torch.eye(40, dtype=dtype))[0]
    eye = torch.eye(40, dtype=dtype)
    torch.testing.assert_close(matrix @ matrix.T, eye, rtol=0, atol=tolerance)
    assert abs(matrix.double().slogdet()[1].item()) < 100 * tolerance
    assert matrix.double().det().sign() == 1  # 16 reflections
    torch.testing.assert_close(flow.inverse(matrix)[0], eye, rtol=0, atol=tolerance)


def test_zero_vector_reflects_nothing() -> None:
    flow = Householder(3, 3).double()
    with torch.no_grad():
        flow.v[1] = 0
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    out, _ = flow(z)
    expected = step_by_step(z, flow.v.detach()[[0, 2]])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(out.sin().sum(), [z, flow.v], create_graph=True)
    assert torch.equal(grads[1][1], torch.zeros(3).double())
    second = torch.autograd.grad(grads[0].sin().sum() + grads[1].sum(), [z, flow.v])
    assert all(g.isfinite().all() for g in second)


@pytest.mark.parametrize("direction", ["push", "pull"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 3)])
def test_derivatives(direction: str, shape: tuple[int, ...]) -> None:
    flow = Householder(3, 3, context_features=1)
    z = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)

    def function(z: Tensor, packed: Tensor) -> Any:
        return getattr(flow, direction)(z, (packed,))[0]

    assert gradcheck(function, (z, packed))
    assert gradgradcheck(function, (z, packed))


def test_vmap_over_stacked_flows() -> None:
    flows = [Householder(3, 4).double() for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(flows)
    z = torch.randn(5, 3, dtype=torch.float64)

    def out(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(flows[0], parameters, (z,))[0]

    found = torch.func.vmap(out)(parameters)
    torch.testing.assert_close(found, torch.stack([flow(z)[0] for flow in flows]))


def test_length_must_be_positive() -> None:
    with pytest.raises(SpecError, match="length: was -1"):
        Householder(2, -1)
