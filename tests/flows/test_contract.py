"""The battery that every flow in ``varflow.flows.TABLE``, and a composition, must pass, promise by promise.

A new family is checked by its line in the table alone, unless it refuses a size or a length.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, jacrev, stack_module_state, vmap

from varflow.core.errors import ShapeError, SpecError
from varflow.core.lazy import resolve
from varflow.flows import TABLE, Affine, Compose, Planar, Reverse
from varflow.flows.flow import Flow

CONTEXT = 3
#: Features that a family refuses, at the length that :func:`build` asks for.
REFUSED = {"nice": {1}, "additive": {1}, "coupling": {1}}
#: Families that start as a random rotation or reflection instead of the identity.
ROTATIONS = {"householder"}
#: Zuko's inverse of a steep spline loses digits; a factor on the backward error.
LOOSE = {"spline": 1e3}



def compose(features: int, length: int = 1, context_features: int = 0) -> Compose:
    """Static and amortized parts, nested, between two reversals that undo each other at the start."""
    planar = Planar(features, length, context_features)
    return Compose(Reverse(features), Compose(planar, Affine(features)), Reverse(features))


def family(name: str) -> Callable[..., Flow]:
    return compose if name == "compose" else resolve(TABLE[name])


names = pytest.mark.parametrize("name", sorted([*TABLE, "compose"]))
contexts = pytest.mark.parametrize("context_features", [0, CONTEXT], ids=["static", "amortized"])
dims = pytest.mark.parametrize("d", [1, 2, 5, 40])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def build(
    name: str,
    d: int,
    context_features: int = 0,
    scale: float = 1.0,
    length: int = 2,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    device: str = "cpu",
) -> Flow:
    """A flow whose parameters are moved from their start by ``scale``, relative to their fan-in."""
    if d in REFUSED.get(name, ()):
        pytest.skip(f"{name} refuses {d} feature(s), tested in test_refuses")
    torch.manual_seed(seed)
    flow = family(name)(d, length=length, context_features=context_features).to(dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5
    return flow.to(device)


def inputs(
    d: int,
    context_features: int,
    *batch: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 1,
    device: str = "cpu",
) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(*batch, d, generator=generator, dtype=dtype).to(device)
    if not context_features:
        return z, None
    return z, torch.randn(*batch, context_features, generator=generator, dtype=dtype).to(device)


def pick(context: Tensor | None, index: object) -> Tensor | None:
    return None if context is None else context[index]  # type: ignore[index]


def jacobians(
    way: Callable[..., tuple[Tensor, Tensor]], z: Tensor, context: Tensor | None
) -> Tensor:
    """∂z′/∂z for each example, ``[B, D, D]``."""
    if context is None:
        return vmap(jacrev(lambda v: way(v, None)[0]))(z)
    return vmap(jacrev(lambda v, c: way(v, c)[0]))(z, context)


# (i) The log-determinant is that of the map.


@names
@contexts
@dims
def test_ladj_is_log_det_of_jacobian(name: str, context_features: int, d: int, device: str) -> None:
    flow = build(name, d, context_features, device=device)
    z, context = inputs(d, context_features, 3, device=device)
    sign, expected = torch.linalg.slogdet(jacobians(flow, z, context))
    assert (sign != 0).all()
    torch.testing.assert_close(flow(z, context)[1], expected, rtol=1e-8, atol=1e-8)


@names
@contexts
def test_ladj_of_inverse_is_log_det_of_its_jacobian(name: str, context_features: int) -> None:
    flow = build(name, 3, context_features)
    z, context = inputs(3, context_features, 3)
    expected = torch.linalg.slogdet(jacobians(flow.inverse, z, context))[1]
    torch.testing.assert_close(flow.inverse(z, context)[1], expected, rtol=1e-8, atol=1e-8)


@names
@contexts
@pytest.mark.parametrize("d", [2, 5])
def test_ladj_with_extreme_parameters(name: str, context_features: int, d: int) -> None:
    flow = build(name, d, context_features, scale=4.0, length=1)
    z, context = inputs(d, context_features, 20)
    z = 3 * z
    jacobian = jacobians(flow, z, context)
    expected = torch.linalg.slogdet(jacobian)[1]
    ladj = flow(z, context)[1]
    assert ladj.isfinite().all()
    # slogdet itself loses digits in proportion to the condition number.
    error = (ladj - expected).abs() / torch.linalg.cond(jacobian)
    assert error.max() < 1e-10


# (iv) A new flow is the identity, so the ELBO is that of the model without it.


@names
@contexts
@dims
@dtypes
def test_starts_as_the_identity(
    name: str, context_features: int, d: int, dtype: torch.dtype
) -> None:
    flow = build(name, d, context_features, scale=0.0, dtype=dtype)
    z, context = inputs(d, context_features, 64, dtype=dtype)
    out, ladj = flow(z, context)
    eps = torch.finfo(dtype).eps
    if name in ROTATIONS:
        norms = z.norm(dim=-1), out.norm(dim=-1)
        torch.testing.assert_close(*norms, rtol=100 * eps, atol=100 * eps)
        assert torch.equal(ladj, torch.zeros_like(ladj))
        # Two reflections could be the identity; they start random all the same.
        assert d == 1 or (out - z).abs().max() > 0.1
        return
    torch.testing.assert_close(out, z, rtol=16 * eps, atol=16 * eps)
    torch.testing.assert_close(ladj, torch.zeros_like(ladj), rtol=0, atol=16 * eps * d)

    def elbo(sample: Tensor, log_det: Tensor | float) -> Tensor:
        log_likelihood = torch.log_softmax(sample.sin(), -1)[:, 0]
        return (log_likelihood - sample.square().sum(-1) / 2 + log_det).mean()

    torch.testing.assert_close(elbo(out, ladj), elbo(z, 0.0), rtol=100 * eps, atol=100 * eps)


# (v) No example touches another.


@names
@contexts
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_examples_are_independent(name: str, context_features: int, training: bool) -> None:
    flow = build(name, 3, context_features).train(training)
    z, context = inputs(3, context_features, 4)

    def outputs(v: Tensor) -> Tensor:
        out, ladj = flow(v, context)
        return torch.cat((out, ladj[:, None]), -1)

    influence = jacrev(outputs)(z).abs().sum((1, 3))  # [out example, in example]
    assert torch.equal(influence * (1 - torch.eye(4)), torch.zeros(4, 4))
    whole = outputs(z)
    for i in range(4):
        out, ladj = flow(z[i : i + 1], pick(context, slice(i, i + 1)))
        torch.testing.assert_close(whole[i, :3], out[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(whole[i, 3], ladj[0], rtol=1e-12, atol=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    permuted = flow(z[order], pick(context, order))[0]
    torch.testing.assert_close(permuted, whole[order, :3], rtol=1e-12, atol=1e-12)


# (vii) The inverse is exact, and its log-determinant the negative.


@names
@contexts
@dims
@dtypes
def test_round_trip(
    name: str, context_features: int, d: int, dtype: torch.dtype, device: str
) -> None:
    # In float32 the bound of 1e-5 holds for well-conditioned maps only.
    single = dtype == torch.float32
    flow = build(name, d, context_features, scale=0.3 if single else 1.0, dtype=dtype, device=device)
    z, context = inputs(d, context_features, 8, dtype=dtype, device=device)
    tolerance = 1e-5 if single else 1e-9
    out, ladj = flow(z, context)
    back, ladj_back = flow.inverse(out, context)
    torch.testing.assert_close(back, z, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ladj_back, -ladj, rtol=tolerance, atol=tolerance)
    there, ladj_there = flow.inverse(z, context)
    again, ladj_again = flow(there, context)
    torch.testing.assert_close(again, z, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ladj_again, -ladj_there, rtol=tolerance, atol=tolerance)


@names
@contexts
@dtypes
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.0, 4.0, allow_subnormal=False),
    spread=st.floats(-3.0, 3.0, allow_subnormal=False).map(lambda power: 10**power),
)
def test_backward_error_with_extreme_parameters(
    name: str, context_features: int, dtype: torch.dtype, seed: int, scale: float, spread: float
) -> None:
    flow = build(name, 4, context_features, scale, length=1, dtype=dtype, seed=seed)
    z, context = inputs(4, context_features, 16, dtype=dtype, seed=seed)
    z = spread * z
    with torch.no_grad():
        back, ladj = flow.inverse(z, context)
        again, ladj_again = flow(back, context)
    for tensor in (back, ladj, again, ladj_again):
        assert tensor.isfinite().all()
    size = 100 + z.abs().max() + back.abs().max()
    tolerance = 100 * LOOSE.get(name, 1) * torch.finfo(dtype).eps
    assert (again - z).abs().max() <= tolerance * size


# (ii) Densities integrate to one, in both directions.


@names
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_density_integrates_to_one(name: str, direction: str) -> None:
    flow = build(name, 2, scale=0.5)
    axis = torch.linspace(-16, 16, 321, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        z, ladj = flow(points) if direction == "forward" else flow.inverse(points)
    log_density = -z.square().sum(-1) / 2 - math.log(2 * math.pi) + ladj
    mass = log_density.exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1) < 1e-3


# What the class says of itself.


@names
@contexts
def test_attributes_tell_the_truth(name: str, context_features: int) -> None:
    flow = build(name, 4, context_features, length=3)
    z, context = inputs(4, context_features, 5)
    jacobian = jacobians(flow, z, context)
    off_diagonal = jacobian * (1 - torch.eye(4))
    assert (off_diagonal.abs().max() > 1e-6) == flow.mixes
    assert (flow(z, context)[1].abs().max() > 1e-9) != flow.volume_preserving
    assert (flow.features, flow.context_features) == (4, context_features)
    assert f"features=4, context_features={context_features}" in repr(flow)


@names
def test_amortized_parameters_follow_the_context(name: str) -> None:
    flow = build(name, 4, CONTEXT)
    z, context = inputs(4, CONTEXT, 6)
    assert context is not None
    out = flow(z[0], context)[0]
    assert (out[1:] - out[0]).abs().amax(-1).min() > 1e-6


# Shapes, dtypes, devices.


@names
@contexts
@pytest.mark.parametrize("batch", [(), (1,), (6,), (2, 3), (0,), (3, 0, 2)], ids=str)
@dtypes
def test_batch_shapes_and_dtypes(
    name: str, context_features: int, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    flow = build(name, 3, context_features, dtype=dtype)
    z, context = inputs(3, context_features, *batch, dtype=dtype)
    for way in (flow, flow.inverse):
        out, ladj = way(z, context)
        assert (out.shape, ladj.shape) == ((*batch, 3), batch)
        assert (out.dtype, ladj.dtype) == (dtype, dtype)


@names
@pytest.mark.parametrize(
    ("z_batch", "context_batch"),
    [((5, 4), (4,)), ((), (4,)), ((4,), ()), ((5, 1), (4,)), ((2, 5, 4), (5, 1))],
    ids=str,
)
def test_context_broadcasts(
    name: str, z_batch: tuple[int, ...], context_batch: tuple[int, ...]
) -> None:
    flow = build(name, 3, CONTEXT)
    z = inputs(3, 0, *z_batch)[0]
    context = inputs(CONTEXT, 0, *context_batch, seed=2)[0]
    batch = torch.broadcast_shapes(z_batch, context_batch)
    for way in (flow, flow.inverse):
        out, ladj = way(z, context)
        full = way(z.expand(*batch, 3), context.expand(*batch, CONTEXT))
        assert (out.shape, ladj.shape) == ((*batch, 3), batch)
        torch.testing.assert_close((out, ladj), full, rtol=1e-12, atol=1e-12)


@names
@contexts
@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_stays_on_its_device(name: str, context_features: int, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    flow = build(name, 3, context_features).to(device)
    z, context = inputs(3, context_features, 5)
    z, context = z.to(device), None if context is None else context.to(device)
    for way in (flow, flow.inverse):
        for tensor in way(z, context):
            assert tensor.device.type == device


# Conditioning as a step of its own.


@names
@contexts
def test_condition_then_push_is_forward(name: str, context_features: int) -> None:
    flow = build(name, 3, context_features)
    z, context = inputs(3, context_features, 5)
    local = flow.condition(context)
    assert bool(local) == bool(context_features)
    assert torch.equal(flow.push(z, local)[0], flow(z, context)[0])
    assert torch.equal(flow.pull(z, local)[1], flow.inverse(z, context)[1])
    assert all(tensor.shape[0] == 5 for tensor in local)
    for i in range(5):
        for whole, own in zip(local, flow.condition(pick(context, i)), strict=True):
            torch.testing.assert_close(whole[i], own, rtol=1e-12, atol=1e-12)


@names
def test_local_can_be_refined(name: str) -> None:
    """Gradients reach every tensor of ``local``, each example's its own."""
    flow = build(name, 3, CONTEXT)
    z, context = inputs(3, CONTEXT, 5)
    local = tuple(tensor.detach().requires_grad_() for tensor in flow.condition(context))
    out, ladj = flow.push(z, local)
    gradients = torch.autograd.grad((out.sin().sum(-1) + ladj)[2], local)
    assert sum(gradient[2].abs().sum() for gradient in gradients) > 0
    for gradient in gradients:
        assert gradient[[0, 1, 3, 4]].abs().max() == 0


# Derivatives and function transforms.


@names
@contexts
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_twice_differentiable(
    name: str, context_features: int, direction: str, device: str
) -> None:
    flow = build(name, 2, context_features, device=device)
    z, context = inputs(2, context_features, 2, device=device)
    state = {key: value.detach().requires_grad_() for key, value in flow.named_parameters()}
    leaves = (z, *(() if context is None else (context,)), *state.values())

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        now = dict(zip(state, tensors[-len(state) :], strict=True))
        args = tensors[: len(tensors) - len(state)]
        return functional_call(
            _Way(flow, direction), {f"flow.{k}": v for k, v in now.items()}, args
        )

    for leaf in leaves:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, atol=1e-5)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, atol=1e-4, rtol=1e-3)


class _Way(torch.nn.Module):
    """A flow whose forward is one of its two directions."""

    def __init__(self, flow: Flow, direction: str) -> None:
        super().__init__()
        self.flow, self.direction = flow, direction

    def forward(self, *args: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow(*args) if self.direction == "forward" else self.flow.inverse(*args)


@names
@contexts
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_vmap_over_parameters_is_a_loop(
    name: str, context_features: int, direction: str, device: str
) -> None:
    flows = [
        _Way(build(name, 3, context_features, seed=seed, device=device), direction)
        for seed in range(3)
    ]
    parameters, buffers = stack_module_state(flows)
    batches = [inputs(3, context_features, 4, seed=seed, device=device) for seed in range(3)]
    args = tuple(
        torch.stack(tensors) for tensors in zip(*batches, strict=True) if tensors[0] is not None
    )
    template = copy.deepcopy(flows[0]).to("meta")
    out, ladj = vmap(lambda p, b, *a: functional_call(template, (p, b), a))(
        parameters, buffers, *args
    )
    shared, _ = vmap(lambda p, b: functional_call(template, (p, b), tuple(arg[0] for arg in args)))(
        parameters, buffers
    )
    for i, flow in enumerate(flows):
        expected, expected_ladj = flow(*(arg[i] for arg in args))
        torch.testing.assert_close(out[i], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ladj[i], expected_ladj, rtol=1e-10, atol=1e-10)
        expected = flow(*(arg[0] for arg in args))[0]
        torch.testing.assert_close(shared[i], expected, rtol=1e-10, atol=1e-10)


@names
@contexts
def test_state_moves_to_a_new_flow(name: str, context_features: int) -> None:
    old = build(name, 3, context_features, seed=0)
    new = build(name, 3, context_features, seed=1)
    new.load_state_dict(old.state_dict())
    z, context = inputs(3, context_features, 4)
    assert torch.equal(new(z, context)[0], old(z, context)[0])
    twin = copy.deepcopy(old)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.zero_()
    assert torch.equal(twin(z, context)[0], new(z, context)[0])


# Errors.


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refuses(name: str) -> None:
    for d in REFUSED[name]:
        with pytest.raises(SpecError, match=f"features: was {d}"):
            family(name)(d, length=2, context_features=0)


@names
@pytest.mark.parametrize(
    ("sizes", "argument"),
    [
        ((0, 1, 0), "features"),
        ((-2, 1, 0), "features"),
        ((2.0, 1, 0), "features"),
        ((3, 0, 0), "length"),
        ((3, -1, 0), "length"),
        ((3, 1, -1), "context_features"),
    ],
    ids=str,
)
def test_bad_sizes(name: str, sizes: tuple[int, int, int], argument: str) -> None:
    with pytest.raises(SpecError, match=argument):
        family(name)(sizes[0], length=sizes[1], context_features=sizes[2])


@names
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_wrong_tensors(name: str, direction: str) -> None:
    static, amortized = build(name, 3), build(name, 3, CONTEXT)
    z, context = inputs(3, CONTEXT, 4)

    def way(flow: Flow, *args: Tensor | None) -> None:
        (flow if direction == "forward" else flow.inverse)(*args)

    with pytest.raises(ShapeError, match="needs a floating-point tensor"):
        way(static, torch.zeros(4, 3, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"z: shape \(4, 2\)"):
        way(static, z[:, :2])
    with pytest.raises(ShapeError, match=r"z: shape \(\)"):
        way(static, z[0, 0])
    with pytest.raises(SpecError, match="context: given"):
        way(static, z, context)
    with pytest.raises(SpecError, match="context: missing"):
        way(amortized, z)
    with pytest.raises(ShapeError, match=r"context: shape \(4, 2\)"):
        way(amortized, z, pick(context, (slice(None), slice(2))))
    for own, wrong in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        static.to(own)
        with pytest.raises(ShapeError, match=rf"z: was {wrong}; .* are {own}; .*flow.to\({wrong}\)"):
            way(static, z.to(wrong))
    with pytest.raises(ShapeError, match=r"context: was torch.float32; .* are torch.float64"):
        way(amortized, z, pick(context, slice(None)).float())


@names
@contexts
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(name: str, context_features: int, half: torch.dtype) -> None:
    flow = build(name, 3, context_features, dtype=torch.float32)
    z, context = inputs(3, context_features, 4, dtype=half)
    out, ladj = flow(z, context)
    assert (out.dtype, ladj.dtype) == (torch.float32, torch.float32)
    assert torch.equal(out, flow(z.float(), None if context is None else context.float())[0])
