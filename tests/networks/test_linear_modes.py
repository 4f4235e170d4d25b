"""The linear map under every transformation, with either library, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, hessian, vmap
from torch.func import grad as func_grad

from varflow.networks import linear as module
from varflow.networks.linear import Linear, linear

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

pytestmark = [
    pytest.mark.parametrize("road", ["torch", "onednn"]),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _on(road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if road == "onednn" and not HAS_ONEDNN:
        pytest.skip("this torch is built without oneDNN")
    monkeypatch.setattr(module, "_SMALL", 1)
    monkeypatch.setattr(module, "_chosen", "onednn" if road == "onednn" else "blas")


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    largest = theirs.abs().max().item() if theirs.numel() else 0.0
    torch.testing.assert_close(
        ours.double(), theirs.double(), rtol=0, atol=2e-6 * max(largest, 1.0)
    )


@pytest.mark.parametrize("batch", [(), (0,), (5,), (1,), (3, 5), (2, 0, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_float64(batch: tuple[int, ...], bias: bool) -> None:
    layer = Linear(7, 4, bias=bias)
    x = torch.randn(*batch, 7, requires_grad=True)
    double = nn.Linear(7, 4, bias=bias, dtype=torch.float64)
    double.load_state_dict(layer.state_dict())
    y = x.detach().double().requires_grad_()
    weight = torch.randn(*batch, 4)
    (layer(x) * weight).sum().backward()
    (double(y) * weight).sum().backward()
    close(layer(x), double(y))
    close(x.grad, y.grad)
    for ours, theirs in zip(layer.parameters(), double.parameters(), strict=True):
        close(ours.grad, theirs.grad)


def test_forward_mode_through_an_ordinary_backward() -> None:
    w, x, v = torch.randn(4, 7, requires_grad=True), torch.randn(5, 7), torch.randn(5, 7)
    with forward_ad.dual_level():
        loss = linear(forward_ad.make_dual(x, v), w).square().sum()
        (gradient,) = torch.autograd.grad(loss, w)
        tangent = forward_ad.unpack_dual(gradient).tangent
        with torch.no_grad():
            moved = forward_ad.unpack_dual(linear(forward_ad.make_dual(x, v), w)).tangent
    double = w.detach().double()
    close(
        tangent, 2 * (double @ v.double().t() @ x.double() + double @ x.double().t() @ v.double())
    )
    close(moved, v.double() @ double.t())


def test_strided_inputs() -> None:
    x, w, b = torch.randn(7, 12).t(), torch.randn(7, 10).t()[::2], torch.randn(5)
    close(linear(x, w, b), x.double() @ w.double().t() + b)
    close(linear(x[::3, ::2], w[:, ::2], None), x[::3, ::2].double() @ w[:, ::2].double().t())


def test_is_torchs_layer_in_float64_and_under_autocast() -> None:
    layer, theirs = Linear(7, 4, dtype=torch.float64), nn.Linear(7, 4, dtype=torch.float64)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(5, 7, dtype=torch.float64)
    assert torch.equal(layer(x), theirs(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Linear(7, 4)(x.float()).dtype == torch.bfloat16


def test_second_derivatives() -> None:
    w, b = torch.randn(3, 4), torch.randn(3)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return linear(linear(x, w, b).tanh(), w.t()).square().sum()

    x = torch.randn(2, 4, requires_grad=True)
    (first,) = torch.autograd.grad(energy(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)

    def exact(x: torch.Tensor) -> torch.Tensor:
        return ((x @ w.double().t() + b).tanh() @ w.double()).square().sum()

    y = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(exact(y), y, create_graph=True)
    close(first, expected)
    close(second, torch.autograd.grad(expected.square().sum(), y)[0])
    close(hessian(energy)(x.detach()), hessian(exact)(y.detach()))


@pytest.mark.parametrize(
    "dims", [(0, None, None), (0, 0, 0), (None, 0, None), (None, None, 0), (1, 0, None)]
)
def test_vmap(dims: tuple[int | None, ...]) -> None:
    shapes = [(5, 7), (4, 7), (4,)]
    inputs = []
    for shape, dim in zip(shapes, dims, strict=True):
        x = torch.randn(3, *shape) if dim is not None else torch.randn(shape)
        inputs.append(x.movedim(0, dim) if dim else x)
    expected = torch.stack(
        [
            linear(*(x if d is None else x.select(d, i) for x, d in zip(inputs, dims, strict=True)))
            for i in range(3)
        ]
    )
    close(vmap(linear, dims)(*inputs), expected)


def test_many_models_in_one_program() -> None:
    layers = [Linear(7, 4) for _ in range(3)]
    x = torch.randn(5, 7)
    stacked = {
        name: torch.stack([layer.state_dict()[name] for layer in layers])
        for name in ("weight", "bias")
    }

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(layers[0], parameters, (x,)).square().sum()

    gradients = vmap(func_grad(loss))(stacked)
    for i, layer in enumerate(layers):
        layer(x).square().sum().backward()
        for name in stacked:
            close(gradients[name][i], layer.get_parameter(name).grad)


def test_batched_backward() -> None:
    layer, x = Linear(7, 4), torch.randn(5, 7, requires_grad=True)
    y = layer(x)
    (rows,) = torch.autograd.grad(y, x, torch.eye(20).reshape(20, 5, 4), is_grads_batched=True)
    close(rows[:4].sum(1), layer.weight)
