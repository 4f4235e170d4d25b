"""Planar flow: the definition, 50-digit arithmetic, special points, derivatives, the exact inverse."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from varflow.core.errors import SpecError
from varflow.flows import Planar
from varflow.flows.planar import step_by_step
from varflow.flows.tanh_units import (
    inverse_pre_activations,
    inverse_pre_activations_unrolled,
    tanh_root,
)

SHIFT = math.log(math.e - 1)
DTYPES = [torch.float32, torch.float64]
#: log₁₀ of a norm between 10⁻³ and 10³.
LOG = st.integers(-30, 30).map(lambda n: n / 10)

# torch warns about its own internals when forward-mode derivatives are first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def perturbed(flow: Planar, scale: float = 0.7) -> Planar:
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(scale * torch.randn_like(p))
    return flow


def one_step(w: Tensor, u: Tensor, b: Tensor) -> Planar:
    flow = Planar(len(w)).to(w.dtype)
    with torch.no_grad():
        flow.w[0], flow.u[0], flow.b[0] = w, u, b
    return flow


def definition(
    z: Tensor, u: Tensor, w: Tensor, b: Tensor, shift: float = SHIFT
) -> tuple[Tensor, Tensor]:
    """The paper's formulas, a step at a time; ladj from the dot product w·û."""
    ladj = torch.zeros(z.shape[:-1], dtype=z.dtype)
    for k in range(len(b)):
        dot = w[k] @ u[k]
        hat = u[k] + (torch.log1p((dot + shift).exp()) - 1 - dot) * w[k] / (w[k] @ w[k])
        h = (z @ w[k] + b[k]).tanh()
        ladj = ladj + torch.log1p((1 - h * h) * (w[k] @ hat))
        z = z + h[..., None] * hat
    return z, ladj


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize(("features", "length"), [(1, 1), (2, 7), (5, 3)])
def test_static_flow_is_the_definition(features: int, length: int, paper: bool) -> None:
    flow = perturbed(Planar(features, length, paper_constraint=paper).double())
    z = torch.randn(6, features, dtype=torch.float64)
    expected = definition(z, flow.u, flow.w, flow.b, 0.0 if paper else SHIFT)
    torch.testing.assert_close(flow(z), expected, rtol=1e-12, atol=1e-12)


def test_amortized_flow_is_the_definition_of_each_example() -> None:
    flow = perturbed(Planar(3, 4, context_features=2).double())
    z, context = (torch.randn(*shape, dtype=torch.float64) for shape in [(7, 5, 3), (5, 2)])
    (packed,) = flow.condition(context)
    out, ladj = flow(z, context)
    for i, row in enumerate(packed):
        u, w, b = row.split([12, 12, 4])
        expected = definition(z[:, i], u.view(4, 3), w.view(4, 3), b)
        torch.testing.assert_close((out[:, i], ladj[:, i]), expected, rtol=1e-12, atol=1e-12)


def test_what_the_compiler_sees_is_the_same_map() -> None:
    flow = perturbed(Planar(3, 4).double())
    z = torch.randn(1, 6, 3, dtype=torch.float64)
    u, _, _ = flow._constrain(flow.u[None], flow.w[None])
    stepped, _ = step_by_step(z, u, flow.w[None], flow.b[None, None])
    torch.testing.assert_close(stepped, flow(z)[0], rtol=1e-12, atol=1e-12)

    args = [torch.randn(2, 3, 4), 0.3 * torch.randn(2, 4, 4), 2 * torch.rand(2, 4)]
    args = [x.double().requires_grad_() for x in args]
    plain, closed = inverse_pre_activations_unrolled(*args), inverse_pre_activations(*args)
    torch.testing.assert_close(plain, closed, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(closed.sin().sum(), args)
    found = torch.autograd.grad(plain.sin().sum(), args)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[1].triu(1), expected[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-10, atol=1e-10)


def exact_ladj(p: Any, x: Any) -> Any:
    """log(1 + sech²(p) m(x)) with 50 digits and more where the answer needs them."""
    with mpmath.workdps(50):
        s = mpmath.log1p(mpmath.exp(x) * (mpmath.e - 1))
        h = mpmath.tanh(p)
        return mpmath.log(h * h + mpmath.sech(p) ** 2 * s)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), log_w=LOG, log_u=LOG)
def test_ladj_against_50_digits(dtype: torch.dtype, seed: int, log_w: float, log_u: float) -> None:
    """The error is that of rounding wᵀz + b and wᵀu, carried through the exact function."""
    draw = torch.Generator().manual_seed(seed)
    features = int(torch.randint(1, 6, (), generator=draw))
    w, u, z = torch.randn(3, features, generator=draw, dtype=torch.float64)
    w, u = w / w.norm() * 10**log_w, u / u.norm() * 10**log_u
    w, u, z, b = (x.to(dtype) for x in (w, u, z, torch.randn((), generator=draw)))
    found = one_step(w, u, b)(z)[1].item()
    eps = (features + 2) * torch.finfo(dtype).eps
    with mpmath.workdps(50):
        w_, u_, z_ = ([mpmath.mpf(v) for v in x.tolist()] for x in (w, u, z))
        p = mpmath.fdot(w_, z_) + mpmath.mpf(b.item())
        x = mpmath.fdot(w_, u_)
        dp = eps * (mpmath.fdot(map(abs, w_), map(abs, z_)) + abs(b.item()))
        dx = eps * (mpmath.fdot(map(abs, w_), map(abs, u_)) + 1)
        exact = exact_ladj(p, x)
        reach = max(
            abs(exact_ladj(p + i * dp, x + j * dx) - exact) for i in (-1, 0, 1) for j in (-1, 0, 1)
        )
        # Between the corners the function can peak where p crosses 0.
        if abs(p) <= dp:
            reach = max(reach, *(abs(exact_ladj(0, x + j * dx) - exact) for j in (-1, 1)))
        assert abs(found - exact) <= reach + 4 * eps * (1 + abs(exact))


@pytest.mark.parametrize("dtype", DTYPES)
def test_determinant_far_below_the_smallest_number(dtype: torch.dtype) -> None:
    """At wᵀz + b = 0 the determinant is softplus(wᵀu + log(e − 1)), here e^(−10⁶)."""
    w = torch.tensor([1000.0, 0], dtype=dtype)
    flow = one_step(w, -w, torch.zeros((), dtype=dtype))
    z = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    ladj = flow(z)[1]
    torch.testing.assert_close(ladj, torch.full((3,), SHIFT - 1e6, dtype=dtype))
    grads = torch.autograd.grad(ladj.sum(), [z, *flow.parameters()])
    assert all(g.isfinite().all() for g in grads)
    # ∂ladj/∂u = w, since ladj = wᵀu + log(e − 1) here.
    torch.testing.assert_close(grads[1][0], 3 * w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-6])
def test_vanishing_w(dtype: torch.dtype, size: float) -> None:
    """w → 0: the step becomes a translation by û tanh(b), with finite derivatives and ladj → 0."""
    w = torch.tensor([size, 0], dtype=dtype)
    u, b = torch.tensor([0.5, -2.0], dtype=dtype), torch.tensor(0.3, dtype=dtype)
    flow = one_step(w, u, b)
    z = torch.randn(4, 2, dtype=dtype, requires_grad=True)
    out, ladj = flow(z)
    if size == 0:
        torch.testing.assert_close(out, z + u * b.tanh())
    assert (ladj.abs() <= 2 * size + 4 * torch.finfo(dtype).eps).all()
    torch.testing.assert_close(flow.inverse(out)[0], z)
    grads = torch.autograd.grad(out.sin().sum() + ladj.sum(), [z, *flow.parameters()])
    assert all(g.isfinite().all() for g in grads)


def test_start_is_the_identity_unless_the_paper_says_otherwise() -> None:
    z = torch.randn(5, 4, dtype=torch.float64)
    for flow, context in [
        (Planar(4, 8), None),
        (Planar(4, 8, context_features=3), torch.randn(5, 3).double()),
    ]:
        out, ladj = flow.double()(z, context)
        torch.testing.assert_close(out, z, rtol=0, atol=1e-14)
        torch.testing.assert_close(ladj, torch.zeros(5).double(), rtol=0, atol=1e-14)
    paper = Planar(4, 8, paper_constraint=True).double()
    out, ladj = paper(z)
    assert (out - z).abs().max() > 1e-3
    torch.testing.assert_close(paper.inverse(out), (z, -ladj), rtol=0, atol=1e-9)


def call(flow: Planar, direction: str) -> Any:
    """The flow as a function of the point and its static parameters, for gradcheck."""

    def function(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> Any:
        flow.u, flow.w, flow.b = u, w, b  # plain tensors, where the parameters were
        return flow.push(z) if direction == "push" else flow.pull(z)

    for name in ("u", "w", "b"):
        delattr(flow, name)
    return function


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_static_derivatives(direction: str) -> None:
    args = [torch.randn(*s).double().requires_grad_() for s in [(2, 2), (3, 2), (3, 2), (3,)]]
    function = call(Planar(2, 3), direction)
    assert gradcheck(function, args, check_forward_ad=True)
    assert gradgradcheck(function, args)


@pytest.mark.parametrize("direction", ["push", "pull"])
@pytest.mark.parametrize("shape", [(2, 2), (3, 2, 2)])
def test_amortized_derivatives(direction: str, shape: tuple[int, ...]) -> None:
    flow = Planar(2, 2, context_features=1)
    z = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(2, 10, dtype=torch.float64, requires_grad=True)

    def function(z: Tensor, packed: Tensor) -> Any:
        return getattr(flow, direction)(z, (packed,))

    assert gradcheck(function, (z, packed), check_forward_ad=True)
    assert gradgradcheck(function, (z, packed))


def test_second_derivative_at_the_plane() -> None:
    """At wᵀz + b = 0, where |tanh| has a corner: ∂²ladj/∂p² = 2(1/s − 1) exactly."""
    w, u = torch.tensor([1.0]).double(), torch.tensor([-0.8]).double()
    flow = one_step(w, u, torch.zeros(()).double())
    hessian = torch.func.hessian(lambda z: flow(z)[1])(torch.zeros(1).double())
    s = torch.log1p((u + SHIFT).exp())
    torch.testing.assert_close(hessian[0], 2 * (1 / s - 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 4])
def test_inverse_of_moderate_parameters(dtype: torch.dtype, length: int) -> None:
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    flow = Planar(3, length).to(dtype)
    with torch.no_grad():
        flow.u.copy_(torch.nn.functional.normalize(torch.randn(length, 3)))
        flow.w.copy_(torch.nn.functional.normalize(torch.randn(length, 3)))
        flow.b.normal_()
    z = torch.randn(1000, 3, dtype=dtype)
    out, ladj = flow(z)
    back, inverse_ladj = flow.inverse(out)
    torch.testing.assert_close(back, z, rtol=0, atol=tolerance)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), log_w=LOG, log_u=LOG)
def test_backward_error_of_the_inverse(
    dtype: torch.dtype, seed: int, log_w: float, log_u: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    w, u = torch.randn(2, 3, generator=draw)
    w, u = w / w.norm() * 10**log_w, u / u.norm() * 10**log_u
    flow = one_step(w.to(dtype), u.to(dtype), torch.randn((), generator=draw).to(dtype))
    y = (4 * torch.randn(50, 3, generator=draw)).to(dtype)
    z, ladj = flow.inverse(y)
    assert z.isfinite().all()
    assert ladj.isfinite().all()
    # A rounding of z moves wᵀz by ‖w‖ and so f by as much again as ‖û‖ ‖w‖.
    hat, _, _ = flow._constrain(flow.u[None], flow.w[None])
    scale = (1 + hat.norm() * flow.w.norm()) * (z.norm(dim=-1) + y.norm(dim=-1) + 1 + hat.norm())
    error = (flow(z)[0] - y).norm(dim=-1)
    assert (error <= 100 * torch.finfo(dtype).eps * scale).all()


def test_root_over_the_whole_range() -> None:
    """|p + κ tanh(p) − q| at rounding level for κ from −1 to 10⁶ and q around every turn of the curve."""
    for dtype in DTYPES:
        s = torch.cat([torch.logspace(-16, 6, 200), torch.tensor([0.0, 1.0])]).to(dtype)
        q = torch.cat([torch.logspace(-12, 7, 300), torch.tensor([0.0])]).to(dtype)
        s, q = torch.meshgrid(s, q, indexing="ij")
        corner = (s - 1).abs() + torch.randn_like(s)
        for y in (q, -q, corner):
            p = tanh_root(y, s)
            residual = p.double() + (s - 1).double() * p.double().tanh() - y.double()
            scale = torch.maximum(y.abs(), (s - 1).abs() * p.tanh().abs()).double() + 1
            assert (residual.abs() <= 4 * torch.finfo(dtype).eps * scale).all()
            assert (p.sign() * y.sign() >= 0).all()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_density_integrates_to_one(direction: str) -> None:
    """N(f(y)) |det ∂f/∂y| for the flow and for its inverse, on a grid."""
    flow = perturbed(Planar(2, 4).double())
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        z, ladj = flow(grid) if direction == "forward" else flow.inverse(grid)
    density = (ladj - 0.5 * (z * z).sum(-1)).exp() / (2 * math.pi)
    assert density.sum().item() * 0.05**2 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_vmap_over_stacked_flows(direction: str) -> None:
    flows = [perturbed(Planar(2, 3).double()) for _ in range(4)]
    parameters, _ = torch.func.stack_module_state(flows)
    z = torch.randn(5, 2, dtype=torch.float64)
    name = "forward" if direction == "push" else "inverse"

    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = Planar(2, 3).double()

        def forward(self, z: Tensor) -> Any:
            return getattr(self.flow, name)(z)

    module = Call()

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        named = {f"flow.{k}": v for k, v in parameters.items()}
        out, ladj = torch.func.functional_call(module, named, (z,))
        return (out * out).sum() - ladj.sum()

    values = torch.func.vmap(loss)(parameters)
    grads = torch.func.vmap(torch.func.grad(loss))(parameters)
    for i, flow in enumerate(flows):
        out, ladj = getattr(flow, name)(z)
        value = (out * out).sum() - ladj.sum()
        torch.testing.assert_close(values[i], value)
        expected = torch.autograd.grad(value, list(flow.parameters()))
        torch.testing.assert_close([grads[k][i] for k, _ in flow.named_parameters()], [*expected])


def test_length_must_be_positive() -> None:
    with pytest.raises(SpecError, match="length: was 0"):
        Planar(2, 0)


COMPILE = """
import sys
import torch
from varflow.flows import Planar

torch.manual_seed(0)
context_features = int(sys.argv[1])
flow = Planar(2, 3, context_features)
for p in flow.parameters():
    p.data.add_(0.3 * torch.randn_like(p))
z, context = torch.randn(8, 2), torch.randn(8, 3) if context_features else None
for eager in (flow.forward, flow.inverse):
    compiled = torch.compile(eager, fullgraph=True)
    grads = []
    for f in (compiled, eager):
        out, ladj = f(z, context)
        value = (out + ladj[:, None]).sin().sum()
        grads.append((out, ladj, *torch.autograd.grad(value, [*flow.parameters()])))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
"""


@pytest.mark.slow
@pytest.mark.parametrize("context_features", [0, 3])
def test_compiles_without_graph_breaks(context_features: int) -> None:
    """In a process of its own: the shape checks of the tests are not what a compiler should see."""
    command = [sys.executable, "-c", COMPILE, str(context_features)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
