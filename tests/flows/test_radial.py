"""Radial flow: the definition, 50-digit arithmetic, the centre, derivatives, the closed-form inverse."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from varflow.core.errors import SpecError
from varflow.flows import Radial

SHIFT = math.log(math.e - 1)
DTYPES = [torch.float32, torch.float64]

# torch warns about its own internals when forward-mode derivatives are first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def perturbed(flow: Radial, scale: float = 1.0) -> Radial:
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(scale * torch.randn_like(p))
    return flow


def one_step(center: Tensor, a: float, b: float) -> Radial:
    flow = Radial(len(center)).to(center.dtype)
    with torch.no_grad():
        flow.center[0] = center
        flow.a[0], flow.b[0] = a, b
    return flow


def definition(z: Tensor, center: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    ladj = torch.zeros(z.shape[:-1], dtype=z.dtype)
    for k in range(len(b)):
        alpha = torch.log1p(a[k].exp())
        beta = alpha * (torch.log1p((b[k] + SHIFT).exp()) - 1)
        r = (z - center[k]).norm(dim=-1)
        ladj = ladj + (z.shape[-1] - 1) * torch.log1p(beta / (alpha + r))
        ladj = ladj + torch.log1p(alpha * beta / (alpha + r) ** 2)
        z = z + (beta / (alpha + r))[..., None] * (z - center[k])
    return z, ladj


@pytest.mark.parametrize(("features", "length"), [(1, 1), (2, 7), (5, 3)])
def test_static_flow_is_the_definition(features: int, length: int) -> None:
    flow = perturbed(Radial(features, length).double())
    z = torch.randn(6, features, dtype=torch.float64)
    expected = definition(z, flow.center, flow.a, flow.b)
    torch.testing.assert_close(flow(z), expected, rtol=1e-12, atol=1e-12)


def test_amortized_flow_is_the_definition_of_each_example() -> None:
    flow = perturbed(Radial(3, 4, context_features=2).double())
    z, context = (torch.randn(*shape, dtype=torch.float64) for shape in [(7, 5, 3), (5, 2)])
    (packed,) = flow.condition(context)
    out, ladj = flow(z, context)
    for i, row in enumerate(packed):
        center, a, b = row.split([12, 4, 4])
        expected = definition(z[:, i], center.view(4, 3), a, b)
        torch.testing.assert_close((out[:, i], ladj[:, i]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    log_r=st.integers(-40, 30).map(lambda n: n / 10),
    a=st.integers(-20, 1000),
    b=st.integers(-1000, 1000),
)
def test_ladj_against_50_digits(
    dtype: torch.dtype, seed: int, log_r: float, a: int, b: int
) -> None:
    """Small and huge radii, α up to 1000, and β̂ from −α (s = e^(−1000)) to 1000 α.

    The errors are those of r, α and s, carried through the exact function, and those of its sums.
    """
    draw = torch.Generator().manual_seed(seed)
    features = int(torch.randint(1, 6, (), generator=draw))
    offset = torch.randn(features, generator=draw, dtype=torch.float64)
    z = (offset / offset.norm() * 10**log_r).to(dtype)
    found = one_step(torch.zeros(features, dtype=dtype), a, b)(z)[1].item()
    eps = (features + 2) * torch.finfo(dtype).eps
    with mpmath.workdps(50):
        r = mpmath.sqrt(mpmath.fsum(mpmath.mpf(v) ** 2 for v in z.tolist()))
        alpha = mpmath.log1p(mpmath.exp(a))
        shifted = mpmath.mpf(torch.tensor(b + SHIFT, dtype=dtype).item())

        def exact(r: Any, shifted: Any) -> Any:
            s = mpmath.log1p(mpmath.exp(shifted))
            tau, rho = alpha / (alpha + r), r / (alpha + r)
            first, second = rho + tau * s, rho * (1 + tau) + tau**2 * s
            return (features - 1) * mpmath.log(first) + mpmath.log(second)

        answer = exact(r, shifted)
        reach = max(
            abs(exact(r * (1 + i * eps), shifted + j * eps * (1 + abs(shifted))) - answer)
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        )
        assert abs(found - answer) <= reach + 4 * eps * (1 + abs(answer))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [-1000.0, -1.0, 0.0, 1.0, 1000.0])
def test_at_the_centre(dtype: torch.dtype, b: float) -> None:
    """z = c stays, ∂z′/∂z = s I and ladj = D log s there; nothing is NaN, in any derivative."""
    center = torch.tensor([0.5, -1.0, 2.0], dtype=dtype)
    flow = one_step(center, 0.3, b)
    with mpmath.workdps(500):
        log_s = float(mpmath.log(mpmath.log1p(mpmath.exp(SHIFT + b))))
    z = center.clone().requires_grad_()
    out, ladj = flow(z)
    torch.testing.assert_close(out, center)
    torch.testing.assert_close(ladj, torch.tensor(3 * log_s, dtype=dtype), rtol=1e-5, atol=1e-6)
    jacobian = torch.func.jacrev(lambda z: flow(z)[0])(center)
    expected = math.exp(log_s) * torch.eye(3, dtype=dtype)
    torch.testing.assert_close(jacobian, expected, rtol=1e-5, atol=1e-6)
    back, inverse_ladj = flow.inverse(out)
    torch.testing.assert_close(back, center)
    torch.testing.assert_close(inverse_ladj, -ladj)
    for direction in (flow.forward, flow.inverse):
        moved, ladj = direction(z)
        grads = torch.autograd.grad(moved.sum() + ladj, [z, *flow.parameters()], create_graph=True)
        assert all(g.isfinite().all() for g in grads)
        second = torch.autograd.grad(sum(g.sum() for g in grads), z)
        assert second[0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [0.51, 0.53, 0.97])
@pytest.mark.parametrize("b", [-2.0, 1.5])
@pytest.mark.parametrize("far", ["point", "centre"])
def test_radii_whose_squares_overflow(dtype: torch.dtype, power: float, b: float, far: str) -> None:
    """|z − c| up to near the largest number, both ways, with first derivatives, beside a point at hand."""
    finfo = torch.finfo(dtype)
    place = finfo.max**power * torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
    center = (place if far == "centre" else torch.zeros(3)).to(dtype)
    flow = one_step(center, 0.5, b)
    near = torch.tensor([0.2, 0.1, -0.4], dtype=dtype)
    z = torch.stack([(-place if far == "centre" else place).to(dtype) / 4, near]).requires_grad_()
    out, ladj = flow(z)
    back, inverse_ladj = flow.inverse(out)
    for i, point in enumerate(z.tolist()):
        with mpmath.workdps(50):
            offset = [mpmath.mpf(v) - mpmath.mpf(c) for v, c in zip(point, center.tolist(), strict=True)]
            r = mpmath.sqrt(mpmath.fsum(v**2 for v in offset))
            alpha = mpmath.log1p(mpmath.exp(0.5))
            s = mpmath.log1p(mpmath.exp(mpmath.mpf(b) + SHIFT))
            change = alpha * (s - 1) / (alpha + r)
            exact = 2 * mpmath.log1p(change) + mpmath.log1p((s - 1) * (alpha / (alpha + r)) ** 2)
            expected = [float(v + change * o) for v, o in zip(point, offset, strict=True)]
        scale = max(map(abs, expected))
        for found, wanted in ((out[i], expected), (back[i], point)):
            error = found.detach() - torch.tensor(wanted, dtype=dtype)
            # The last inverse ends on c + (z − c), which a far centre rounds.
            allowed = 64 * finfo.eps * (scale + center.abs().max())
            assert error.abs().max() <= allowed
        assert abs(ladj[i].item() - float(exact)) < 64 * finfo.eps * (1 + abs(float(exact)))
        tolerance = 64 * finfo.eps
        torch.testing.assert_close(inverse_ladj[i], -ladj[i], rtol=tolerance, atol=tolerance)
    for moved, found in ((out, ladj), (back, inverse_ladj)):
        (gradient,) = torch.autograd.grad((moved / place.abs().max()).sum() + found.sum(), z, retain_graph=True)
        assert gradient.isfinite().all()
    alone, ladj_alone = flow(near)
    assert torch.equal(alone, out[1])
    assert torch.equal(ladj_alone, ladj[1])


def test_start_is_the_identity() -> None:
    z = torch.randn(5, 4, dtype=torch.float64)
    out, ladj = Radial(4, 8).double()(z)
    torch.testing.assert_close(out, z, rtol=0, atol=1e-14)
    torch.testing.assert_close(ladj, torch.zeros(5).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("direction", ["push", "pull"])
@pytest.mark.parametrize("shape", [(2, 2), (3, 2, 2)])
def test_derivatives(direction: str, shape: tuple[int, ...]) -> None:
    flow = Radial(2, 2, context_features=1)
    z = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)

    def function(z: Tensor, packed: Tensor) -> Any:
        return getattr(flow, direction)(z, (packed,))

    assert gradcheck(function, (z, packed), check_forward_ad=True)
    assert gradgradcheck(function, (z, packed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 4])
def test_inverse_of_moderate_parameters(dtype: torch.dtype, length: int) -> None:
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    flow = Radial(3, length).to(dtype)
    with torch.no_grad():
        flow.b.uniform_(-1, 1)
    z = torch.randn(1000, 3, dtype=dtype)
    out, ladj = flow(z)
    back, inverse_ladj = flow.inverse(out)
    torch.testing.assert_close(back, z, rtol=0, atol=tolerance)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), a=st.integers(-10, 1000), b=st.integers(-1000, 1000))
def test_backward_error_of_the_inverse(dtype: torch.dtype, seed: int, a: int, b: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    flow = one_step(torch.randn(3, generator=draw).to(dtype), a, b)
    y = (4 * torch.randn(50, 3, generator=draw)).to(dtype)
    z, ladj = flow.inverse(y)
    assert z.isfinite().all()
    assert ladj.isfinite().all()
    # A rounding of z comes back times the largest slope of the map, max(1, s).
    slope = max(1.0, b + 1.0)
    scale = slope * (1 + z.norm(dim=-1) + y.norm(dim=-1))
    error = (flow(z)[0] - y).norm(dim=-1)
    assert (error <= 100 * torch.finfo(dtype).eps * scale).all()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_density_integrates_to_one(direction: str) -> None:
    flow = Radial(2, 3).double()
    with torch.no_grad():
        flow.b.uniform_(-1, 1)
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        z, ladj = flow(grid) if direction == "forward" else flow.inverse(grid)
    density = (ladj - 0.5 * (z * z).sum(-1)).exp() / (2 * math.pi)
    # The density has a cone at each centre, which a grid sees to second order only.
    assert density.sum().item() * 0.05**2 == pytest.approx(1, abs=1e-3)


def test_vmap_over_stacked_flows() -> None:
    flows = [perturbed(Radial(2, 3).double()) for _ in range(4)]
    parameters, _ = torch.func.stack_module_state(flows)
    z = torch.randn(5, 2, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        out, ladj = torch.func.functional_call(flows[0], parameters, (z,))
        return (out * out).sum() - ladj.sum()

    grads = torch.func.vmap(torch.func.grad(loss))(parameters)
    for i, flow in enumerate(flows):
        out, ladj = flow(z)
        value = (out * out).sum() - ladj.sum()
        expected = torch.autograd.grad(value, list(flow.parameters()))
        torch.testing.assert_close([grads[k][i] for k, _ in flow.named_parameters()], [*expected])


def test_length_must_be_positive() -> None:
    with pytest.raises(SpecError, match="length: was 0"):
        Radial(2, 0)
