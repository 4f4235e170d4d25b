"""Sylvester flow: the definition, its relation to planar, diagonals near −1, the exact inverse."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from varflow.core.errors import SpecError
from varflow.flows import Sylvester

DTYPES = [torch.float32, torch.float64]

# torch warns about its own internals when forward-mode derivatives are first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def perturbed(flow: Sylvester, scale: float = 0.7) -> Sylvester:
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(scale * torch.randn_like(p))
    return flow


def definition(flow: Sylvester, z: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's formulas with dense matrices, for one parameter set."""
    d, m, h = flow.features, flow.rank, flow.reflections
    ladj = torch.zeros(z.shape[:-1], dtype=z.dtype)
    for row in packed.reshape(flow.length, -1):
        vectors, triangles, diagonal, diagonal_tilde, b = row.split([h * d, m * m, m, m, m])
        q = torch.eye(d, dtype=z.dtype)
        for v in vectors.view(h, d):
            q = (torch.eye(d, dtype=z.dtype) - 2 * torch.outer(v, v) / (v @ v)) @ q
        q = q[:, :m]
        upper = triangles.view(m, m).triu(1) + diagonal.tanh().diag()
        upper_tilde = triangles.view(m, m).T.triu(1) + diagonal_tilde.tanh().diag()
        act = (z @ q @ upper_tilde.T + b).tanh()
        jacobian = torch.eye(m, dtype=z.dtype) + (1 - act * act)[..., None] * (upper_tilde @ upper)
        z = z + act @ upper.T @ q.T
        ladj = ladj + jacobian.slogdet()[1]  # Sylvester's identity, without the triangle
    return z, ladj


@pytest.mark.parametrize(
    ("features", "length", "rank", "reflections"),
    [(1, 1, 1, 1), (2, 3, 2, 1), (5, 2, 3, 3), (6, 1, 6, 2)],
)
def test_static_flow_is_the_definition(
    features: int, length: int, rank: int, reflections: int
) -> None:
    flow = perturbed(Sylvester(features, length, rank=rank, reflections=reflections).double())
    z = torch.randn(4, 3, features, dtype=torch.float64)
    expected = definition(flow, z, flow.packed)
    torch.testing.assert_close(flow(z), expected, rtol=1e-11, atol=1e-11)


def test_amortized_flow_is_the_definition_of_each_example() -> None:
    flow = perturbed(Sylvester(4, 2, context_features=2, rank=3).double())
    z, context = (torch.randn(*shape, dtype=torch.float64) for shape in [(7, 5, 4), (5, 2)])
    (packed,) = flow.condition(context)
    out, ladj = flow(z, context)
    for i, row in enumerate(packed):
        expected = definition(flow, z[:, i], row)
        torch.testing.assert_close((out[:, i], ladj[:, i]), expected, rtol=1e-11, atol=1e-11)


def test_start_is_the_identity_and_can_leave_it() -> None:
    z = torch.randn(5, 4, dtype=torch.float64)
    for flow, context in [
        (Sylvester(4, 3).double(), None),
        (Sylvester(4, 3, context_features=2).double(), torch.randn(5, 2).double()),
    ]:
        out, ladj = flow(z, context)
        torch.testing.assert_close(out, z, rtol=0, atol=1e-14)
        torch.testing.assert_close(ladj, torch.zeros(5).double(), rtol=0, atol=1e-13)
        grads = torch.autograd.grad(out.square().sum() - ladj.sum(), list(flow.parameters()))
        assert all(g.abs().max() > 1e-3 for g in grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d", "d_tilde"), [(30.0, -30.0), (500.0, -500.0), (8.0, 7.0), (-9.0, 9.5)]
)
def test_ladj_where_the_diagonal_product_nears_minus_one(
    dtype: torch.dtype, d: float, d_tilde: float
) -> None:
    """z = 0, b = 0: ladj = log(1 + tanh d tanh d̃), down to e^(−1000)."""
    flow = Sylvester(1).to(dtype)
    with torch.no_grad():
        flow.packed[0, 2], flow.packed[0, 3] = d, d_tilde
    z = torch.zeros(1, dtype=dtype, requires_grad=True)
    found = flow(z)[1]
    with mpmath.workdps(500):
        exact = float(mpmath.log(1 + mpmath.tanh(d) * mpmath.tanh(d_tilde)))
    expected = torch.tensor(exact, dtype=dtype)
    torch.testing.assert_close(found, expected, rtol=8 * torch.finfo(dtype).eps, atol=1e-6)
    grads = torch.autograd.grad(found, [z, flow.packed])
    assert all(g.isfinite().all() for g in grads)
    back, inverse_ladj = flow.inverse(z)
    assert back.isfinite().all()
    torch.testing.assert_close(inverse_ladj, -found)


@pytest.mark.parametrize("direction", ["push", "pull"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 3)])
def test_derivatives(direction: str, shape: tuple[int, ...]) -> None:
    flow = Sylvester(3, 2, context_features=1, rank=2, reflections=2)
    z = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    size = flow.head.out_features
    packed = torch.randn(2, size, dtype=torch.float64, requires_grad=True)

    def function(z: Tensor, packed: Tensor) -> Any:
        return getattr(flow, direction)(z, (packed,))

    assert gradcheck(function, (z, packed))
    assert gradgradcheck(function, (z, packed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 3])
def test_inverse(dtype: torch.dtype, length: int) -> None:
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    flow = perturbed(Sylvester(5, length, rank=4), 0.3).to(dtype)
    z = torch.randn(1000, 5, dtype=dtype)
    out, ladj = flow(z)
    back, inverse_ladj = flow.inverse(out)
    torch.testing.assert_close(back, z, rtol=0, atol=tolerance)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_backward_error_of_the_inverse(dtype: torch.dtype, scale: float) -> None:
    flow = perturbed(Sylvester(4, rank=4), scale).to(dtype)
    y = 4 * torch.randn(200, 4, dtype=dtype)
    z, ladj = flow.inverse(y)
    assert z.isfinite().all()
    assert ladj.isfinite().all()
    # A rounding of z comes back times ‖R̃‖ ‖R‖, both at most about the entries' size.
    size = flow.packed.abs().max() * 4
    error = (flow(z)[0] - y).norm(dim=-1)
    bound = (1 + size**2) * (1 + z.norm(dim=-1) + y.norm(dim=-1))
    assert (error <= 100 * torch.finfo(dtype).eps * bound).all()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_vmap_over_stacked_flows(direction: str) -> None:
    flows = [perturbed(Sylvester(3, 2, rank=2).double()) for _ in range(3)]
    stacked = torch.stack([flow.packed.detach() for flow in flows])
    z = torch.randn(5, 3, dtype=torch.float64)
    flow = Sylvester(3, 2, rank=2).double()
    del flow.packed

    def loss(packed: Tensor) -> Tensor:
        flow.packed = packed
        out, ladj = getattr(flow, direction)(z)
        return (out * out).sum() - ladj.sum()

    grads = torch.func.vmap(torch.func.grad(loss))(stacked)
    expected = torch.stack([torch.func.grad(loss)(x) for x in stacked])
    torch.testing.assert_close(grads, expected)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(SpecError, match="rank: was 5; use at most features = 4"):
        Sylvester(4, rank=5)
    with pytest.raises(SpecError, match="reflections: was 0"):
        Sylvester(4, reflections=0)
