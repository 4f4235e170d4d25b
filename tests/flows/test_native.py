"""The compiled planar chain: against the torch expression, 50 digits, transforms, and every way to lack it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from varflow import native
from varflow.flows import Planar
from varflow.flows.planar import push_in_torch as in_torch
from varflow.native import build, planar

SHIFT = Planar(1)._shift
DTYPES = [torch.float32, torch.float64]

# torch warns about its own internals when forward-mode derivatives are first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
compiled = pytest.mark.skipif(not native.available(), reason=native.reason() or "compiled")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    state = native._calls, native._why_not, native._wanted
    yield
    native._calls, native._why_not, native._wanted = state


def made(
    sets: tuple[int, ...],
    points: tuple[int, ...],
    length: int,
    features: int,
    packed: bool,
    dtype: torch.dtype = torch.float64,
    scales: tuple[float, float] = (1.0, 1.0),
) -> list[Tensor]:
    """z and the parameters, |u| and |w| of each step around ``scales``."""
    shape = (*sets, length, features)
    u, w = (s * features**-0.5 * torch.randn(shape, dtype=dtype) for s in scales)
    b = torch.randn(shape[:-1], dtype=dtype)
    if packed:
        z = torch.randn(*points, *sets, features, dtype=dtype)
        return [z, torch.cat([u.flatten(-2), w.flatten(-2), b], -1)]
    return [torch.randn(*sets, *points, features, dtype=dtype), u, w, b]


def compiled_push(z: Tensor, *parameters: Tensor, length: int, shift: float = SHIFT) -> Any:
    assert planar.usable(z, *parameters)
    return planar.push(in_torch, z, parameters, length, shift)


def operator_push(z: Tensor, *parameters: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """What a compiled program calls."""
    return torch.ops.varflow.planar(z, list(parameters), length, SHIFT)


def torch_push(z: Tensor, *parameters: Tensor, length: int, shift: float = SHIFT) -> Any:
    return in_torch(z, parameters, length, shift)


def all_of_it(
    push: Any, inputs: list[Tensor], cotangents: list[Tensor], **options: Any
) -> list[Tensor]:
    """z′, ladj, and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = push(*leaves, **options)
    return [x.detach() for x in (*out, *torch.autograd.grad(out, leaves, cotangents))]


def like_out(z: Tensor) -> list[Tensor]:
    return [torch.randn_like(z), torch.randn(z.shape[:-1], dtype=z.dtype)]


# The same numbers.


LAYOUTS = [
    # (sets, points, length, features): lanes are points, or sets, with and without a rest
    ((), (1,), 1, 1),
    ((), (70,), 3, 2),
    ((), (3, 50), 16, 40),
    ((3,), (40,), 4, 5),
    ((2, 3), (33,), 2, 17),
    ((17,), (1,), 5, 33),
    ((37,), (5,), 3, 2),
    ((4,), (2, 3), 65, 3),
]


@compiled
@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("sets", "points", "length", "features"), LAYOUTS, ids=str)
def test_every_layout(
    sets: tuple[int, ...],
    points: tuple[int, ...],
    length: int,
    features: int,
    packed: bool,
    paper: bool,
) -> None:
    options = {"length": length, "shift": 0.0 if paper else SHIFT}
    inputs = made(sets, points, length, features, packed, scales=(0.5, 0.5))
    cotangents = like_out(inputs[0])
    found = all_of_it(compiled_push, inputs, cotangents, **options)
    expected = all_of_it(torch_push, inputs, cotangents, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10**6),
    log_u=st.integers(-30, 30),
    log_w=st.integers(-30, 30),
    length=st.integers(1, 3),
    packed=st.booleans(),
    sets=st.sampled_from([1, 19]),
)
def test_extreme_parameters(
    dtype: torch.dtype, seed: int, log_u: int, log_w: int, length: int, packed: bool, sets: int
) -> None:
    """Errors are those of rounding the inputs: as large as a few roundings of them, no larger.

    Parameters of 0 are among them.
    """
    torch.manual_seed(seed)
    scales = (10 ** (log_u / 10), 10 ** (log_w / 10))
    inputs = made((sets,), (9,), length, 3, packed, dtype, scales)
    if seed % 5 == 0:
        for x in inputs[1:]:
            x[0] = 0
    cotangents = like_out(inputs[0])
    found = all_of_it(compiled_push, inputs, cotangents, length=length)
    exact = [x.double() for x in inputs], [x.double() for x in cotangents]
    expected = all_of_it(torch_push, *exact, length=length)
    eps = torch.finfo(dtype).eps
    step = max(eps, 1e-12)  # of the float64 in_torch: well above its own roundings
    reach = [torch.zeros_like(x) for x in expected]
    for _ in range(6):
        moved = [x * (1 + step * (2 * torch.rand_like(x) - 1)) for x in exact[0]]
        changed = all_of_it(torch_push, moved, exact[1], length=length)
        reach = [r.maximum((y - x).abs()) for r, x, y in zip(reach, expected, changed, strict=True)]
    # torch's derivative of tanh is 1 − h², off by eps of 1; it meets û and w and their products.
    sizes = (
        [x.double().norm(dim=-1).max() for x in inputs[1:3]]
        if not packed
        else [exact[0][1].norm()] * 2
    )
    torch_error = (
        torch.finfo(torch.float64).eps * (1 + sizes[0]) * (1 + sizes[1]) * (1 + max(sizes))
    )
    for x, y, r in zip(found, expected, reach, strict=True):
        assert x.isfinite().all()
        # A gradient sums over points and features that cancel; its largest entry tells how much.
        largest = 1 + y.abs().max()
        bound = 30 * (eps / step) * r.max() + 30 * eps * largest + torch_error * largest
        assert (x - y).abs().max() <= bound


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_against_50_digits(dtype: torch.dtype) -> None:
    """One step at z = 0 with w = 1 is û tanh(b) and log(h² + (1 − h²) s), to a few units in the last place."""
    eps = torch.finfo(dtype).eps
    size = torch.cat([torch.logspace(-18, 30, 41), torch.logspace(-2, 2, 161), torch.tensor([0.0])])
    b = torch.cat([size, -size]).to(dtype)
    z = torch.zeros(1, 1, dtype=dtype)
    with mpmath.workdps(50):
        for u in (-1000.0, -80.0, -3.0, -0.7, -1e-3, 0.0, 1e-7, 0.4, 2.0, 50.0, 1000.0):
            us, ones = (
                torch.full((len(b), 1, 1), u, dtype=dtype),
                torch.ones(len(b), 1, 1, dtype=dtype),
            )
            out, ladj = compiled_push(z.expand(len(b), 1), us, ones, b[:, None], length=1)
            a = mpmath.mpf(us[0].item())
            x = a + mpmath.mpf(torch.tensor(SHIFT, dtype=dtype).item())
            s = mpmath.log1p(mpmath.exp(x))
            # Rounding a + shift changes s by this, relative to itself.
            loose = eps * (abs(x) + 1) * min(1, 1 / s) + 8 * eps
            for i, p in enumerate(b.tolist()):
                h = mpmath.tanh(mpmath.mpf(p))
                det = mpmath.log(h * h + mpmath.sech(mpmath.mpf(p)) ** 2 * s)
                hat = mpmath.log1p(mpmath.exp(a) * (mpmath.e - 1)) - 1
                assert abs(out[i].item() - hat * h) <= 8 * eps * (abs(a) + 1) * abs(h)
                assert abs(ladj[i].item() - det) <= loose + 4 * eps * abs(det)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("w", [2.0**-10, 1.0, 2.0**8])
def test_slopes_against_50_digits(dtype: torch.dtype, w: float) -> None:
    """∂/∂b of z′ + ladj at z = 0, also where 1 − h² is far below the rounding of 1; ∂/∂z is w times that."""
    eps = torch.finfo(dtype).eps
    size = torch.cat([torch.logspace(-6, 1.3, 40), torch.tensor([0.0, 35.0])])
    b = torch.cat([size, -size]).to(dtype).unsqueeze(1)
    z, ones = torch.zeros(len(b), 1, dtype=dtype), torch.ones(len(b), 1, 1, dtype=dtype)
    for u in (-30.0, -2.0, -0.1, 0.3, 4.0, 100.0):
        inputs, cotangents = [z, u / w * ones, w * ones, b], [z + 1, z[:, 0] + 1]
        found = all_of_it(compiled_push, inputs, cotangents, length=1)
        with mpmath.workdps(50):
            x = mpmath.mpf(inputs[1][0].item()) * w + mpmath.log(mpmath.e - 1)
            s = mpmath.log1p(mpmath.exp(x))
            for i, p in enumerate(b[:, 0].tolist()):
                h, v = mpmath.tanh(mpmath.mpf(p)), mpmath.sech(mpmath.mpf(p)) ** 2
                terms = [
                    v * (s - 1) / w,
                    2 * h * v / (h * h + v * s),
                    -2 * h * v * s / (h * h + v * s),
                ]
                bound = 16 * eps * (1 + abs(x)) * (sum(abs(t) for t in terms) + v / w)
                assert abs(found[5][i].item() - sum(terms)) <= bound
                assert abs(found[2][i].item() - 1 - w * sum(terms)) <= w * bound + 2 * eps


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sets", "points"), [((), (40,)), ((40,), ())], ids=["points", "sets"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_bad_point_stays_alone(
    dtype: torch.dtype, sets: tuple[int, ...], points: tuple[int, ...], bad: float
) -> None:
    inputs = made(sets, points, 3, 4, False, dtype)
    cotangents = like_out(inputs[0])
    clean = all_of_it(compiled_push, inputs, cotangents, length=3)
    inputs[0][7, 1] = bad
    found = all_of_it(compiled_push, inputs, cotangents, length=3)
    expected = all_of_it(torch_push, inputs, cotangents, length=3)
    others = torch.arange(40) != 7
    for x, y in zip(found[:3], clean[:3], strict=True):
        assert torch.equal(x[others], y[others])
    for x, y in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(x[7].isnan(), y[7].isnan())
        assert torch.equal(x[7].isinf(), y[7].isinf())
    if bad != bad:
        assert all(x.isnan().any() for x in found)


@compiled
@pytest.mark.parametrize("packed", [False, True])
def test_what_need_not_be_there(packed: bool) -> None:
    """Gradients of some inputs only, strided and expanded tensors, no points, one point."""
    inputs = made((5,), (6,), 2, 3, packed)
    cotangents = like_out(inputs[0])
    whole = all_of_it(compiled_push, inputs, cotangents, length=2)
    for i, x in enumerate(inputs):
        out = compiled_push(*inputs[:i], x.clone().requires_grad_(), *inputs[i + 1 :], length=2)
        leaf = out[0].grad_fn.next_functions[i][0].variable
        alone = torch.autograd.grad(out, leaf, cotangents)[0]
        # Without sums over points the compiler may fuse other products and sums.
        torch.testing.assert_close(alone, whole[2 + i], rtol=1e-12, atol=1e-12)
    z, *parameters = inputs
    strided = z.mT.contiguous().mT
    assert not strided.is_contiguous()
    assert torch.equal(compiled_push(strided, *parameters, length=2)[0], whole[0])
    leaf = z.clone().requires_grad_()
    compiled_push(leaf, *parameters, length=2)[0].sum().backward()
    ones = [torch.ones_like(z), torch.zeros(z.shape[:-1]).double()]
    torch.testing.assert_close(leaf.grad, all_of_it(torch_push, inputs, ones, length=2)[2])

    flow = Planar(3, 2)
    flow(torch.zeros(0, 3))[0].sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in flow.parameters())
    assert flow(torch.zeros(3))[1].shape == ()


# Derivatives and transforms.


@compiled
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("sets", "points"), [((), (3,)), ((2,), (2,)), ((9,), ())], ids=str)
def test_derivatives(sets: tuple[int, ...], points: tuple[int, ...], packed: bool) -> None:
    inputs = [x.requires_grad_() for x in made(sets, points, 2, 2, packed)]

    def push(*inputs: Tensor) -> Any:
        return compiled_push(*inputs, length=2)

    assert gradcheck(push, inputs, fast_mode=True)
    assert gradgradcheck(push, inputs, fast_mode=True)


@compiled
def test_third_derivative() -> None:
    inputs = [x.requires_grad_() for x in made((), (3,), 2, 2, False)]
    thirds = []
    for push in (compiled_push, torch_push):
        x = push(*inputs, length=2)[1].sum()
        for _ in range(2):
            first = torch.autograd.grad(x, inputs, create_graph=True, allow_unused=True)
            x = sum(g.sin().sum() for g in first if g is not None)
        thirds.append(torch.autograd.grad(x, inputs))
    torch.testing.assert_close(*thirds, rtol=1e-9, atol=1e-9)


@compiled
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sets", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("which", ["all", "z", "parameters", "one"])
@pytest.mark.parametrize("route", ["function", "operator"])
def test_vmap(packed: bool, sets: tuple[int, ...], which: str, route: str) -> None:
    """Values and gradients are those of a loop, whichever inputs are stacked and along which dimension."""
    route_push = compiled_push if route == "function" else operator_push
    single = made(sets, (4,), 2, 3, packed)
    stacked = [torch.stack([x + 0.1 * i for i in range(5)]) for x in single]
    chosen = {"all": range(4), "z": [0], "parameters": range(1, 4), "one": [1]}[which]
    dims = tuple((x.dim() if i == 0 else 0) if i in chosen else None for i, x in enumerate(single))
    args = [
        x if dim is None else y.movedim(0, dim)
        for x, y, dim in zip(single, stacked, dims, strict=True)
    ]

    def value(push: Any, *inputs: Tensor) -> Tensor:
        out, ladj = push(*inputs, length=2)
        return out.sin().sum() + (ladj * ladj).sum()

    def loop(function: Any) -> list[Any]:
        each = (
            [x if d is None else y[i] for x, y, d in zip(single, stacked, dims, strict=True)]
            for i in range(5)
        )
        return [function(*inputs) for inputs in each]

    numbers = tuple(range(len(single)))
    close = {"rtol": 1e-10, "atol": 1e-10}
    found = vmap(lambda *x: route_push(*x, length=2), dims)(*args)
    expected = loop(lambda *x: torch_push(*x, length=2))
    torch.testing.assert_close(found[0], torch.stack([x for x, _ in expected]), **close)
    torch.testing.assert_close(found[1], torch.stack([x for _, x in expected]), **close)

    def slopes(push: Any) -> Any:
        return grad(lambda *x: value(push, *x), numbers)

    expected = [torch.stack(x) for x in zip(*loop(slopes(torch_push)), strict=True)]
    if route == "function":  # torch differentiates operators from outside alone
        inside = vmap(slopes(route_push), dims)(*args)
        torch.testing.assert_close(list(inside), expected, **close)

    leaves = [x.clone().requires_grad_() for x in args]
    vmap(lambda *x: value(route_push, *x), dims)(*leaves).sum().backward()
    for leaf, dim, x in zip(leaves, dims, expected, strict=True):
        torch.testing.assert_close(
            leaf.grad, x.sum(0) if dim is None else x.movedim(0, dim), **close
        )


@compiled
def test_transforms_of_transforms() -> None:
    single = made((), (4,), 2, 3, False)
    z, *parameters = (torch.stack([torch.stack([x, x + 0.1])] * 3) for x in single)

    def value(push: Any, z: Tensor, *parameters: Tensor) -> Tensor:
        out, ladj = push(z, *parameters, length=2)
        return out.sin().sum() + (ladj * ladj).sum()

    results = []
    for push in (compiled_push, lambda *x, length: in_torch(x[0], x[1:], length, SHIFT)):

        def second(z: Tensor, *p: Tensor, push: Any = push) -> Tensor:
            return jacrev(jacrev(lambda z: value(push, z, *p)))(z)

        results.append(
            [
                vmap(vmap(lambda *x, push=push: value(push, *x)))(z, *parameters),
                vmap(vmap(grad(lambda *x, push=push: value(push, *x), (0, 1))))(z, *parameters)[1],
                vmap(second)(z[0], *(p[0] for p in parameters)),
            ]
        )
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@compiled
def test_forward_mode_is_that_of_torch() -> None:
    flow = Planar(3, 2).double()
    torch.nn.init.normal_(flow.u)
    z, dz = torch.randn(2, 4, 3).double()
    native.use(True)
    found = [jvp(flow, (z,), (dz,)), hessian(lambda z: flow(z)[1].sum())(z)]
    native.use(False)
    expected = [jvp(flow, (z,), (dz,)), hessian(lambda z: flow(z)[1].sum())(z)]
    torch.testing.assert_close(found, expected)


@compiled
def test_a_tensor_left_over_from_a_transform() -> None:
    kept: list[Tensor] = []

    def keep(z: Tensor) -> Tensor:
        kept.append(z)
        return z.sum()

    z = torch.randn(4, 3)
    grad(keep)(z)
    flow = Planar(3, 2)
    assert torch.equal(flow(kept[0])[0], flow(z)[0])


@compiled
def test_constants_in_place_of_parameters() -> None:
    flow = Planar(3, 2, context_features=2)
    z, context = torch.randn(5, 4, 3, requires_grad=True), torch.randn(4, 2)
    constants = {name: p.detach() for name, p in flow.named_parameters()}
    out, ladj = functional_call(flow, constants, (z, context))
    (out.sum() + ladj.sum()).backward()
    assert z.grad is not None
    assert all(p.grad is None for p in flow.parameters())


@compiled
def test_observers_of_operations_see_them() -> None:
    """What records or replaces torch operations gets the torch expression: fake tensors, flop counters."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    flow = Planar(3, 2)
    with FlopCounterMode(display=False) as counter:
        flow(torch.randn(4, 3))
    assert counter.get_total_flops() > 0
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert flow(mode.from_tensor(torch.randn(4, 3)))[1].shape == (4,)


@compiled
def test_autocast_changes_nothing() -> None:
    flow = Planar(3, 4)
    torch.nn.init.normal_(flow.u)
    z = torch.randn(5, 3)
    plain = flow.push(z)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(flow.push(z), plain, rtol=0, atol=0)


@compiled
def test_threads_do_not_share_their_memory() -> None:
    flows = [Planar(n + 2, 8) for n in range(6)]
    for flow in flows:
        torch.nn.init.normal_(flow.u)
    points = [torch.randn(300, flow.features) for flow in flows]
    expected = [flow(z)[0] for flow, z in zip(flows, points, strict=True)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            wrong.extend([i] * (not torch.equal(flows[i](points[i])[0], expected[i])))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# The compiler of torch.


@compiled
@pytest.mark.parametrize("packed", [False, True])
def test_operator(packed: bool) -> None:
    z, *parameters = [x.requires_grad_() for x in made((), (4,), 2, 3, False)]
    if packed:
        z, *parameters = [x.requires_grad_() for x in made((4,), (), 2, 3, True)]
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.varflow.planar, (z, parameters, 2, SHIFT), test_utils=tests)
    found = torch.ops.varflow.planar(z, parameters, 2, SHIFT)
    torch.testing.assert_close(found, torch_push(z, *parameters, length=2))


COMPILE = """
import sys
import torch
from varflow import native
from varflow.flows import Planar
from varflow.native import planar

native.use(sys.argv[1] == "1")
calls = []
flow = Planar(3, 4)
torch.nn.init.normal_(flow.u)
z = torch.randn(8, 3)

def loss(z):
    out, ladj = flow(z)
    return (out.sin().sum() + ladj.sum())

def keep(graph, inputs):
    calls.extend(str(node.target) for node in graph.graph.nodes)
    return graph

for f in (torch.compile(loss, fullgraph=True, backend=keep), torch.compile(loss, fullgraph=True)):
    found = torch.autograd.grad(f(z), list(flow.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(loss(z), list(flow.parameters())), rtol=1e-3, atol=1e-4)
assert any("varflow.planar" in name for name in calls) == (sys.argv[1] == "1"), calls
"""


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["0", "1"])
def test_compiled_graph_calls_it(wanted: str) -> None:
    python(COMPILE, wanted)


# Ways to lack it.


def python(script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def forget() -> None:
    native._calls = native._why_not = None


OFF = """
import torch
import varflow.flows
from varflow import native
assert native._calls is None and native._why_not is None  # nothing is compiled by an import
flow = varflow.flows.Planar(3, 2)
out, ladj = flow(torch.randn(4, 3))
(out.sum() + ladj.sum()).backward()
print(native.available(), native.in_use(), native.reason())
"""


@pytest.mark.slow
def test_turned_off_by_the_environment() -> None:
    assert python(OFF, VARFLOW_NATIVE="0").strip() == "False False turned off by VARFLOW_NATIVE=0"


@compiled
def test_switch() -> None:
    z = torch.randn(4, 3)
    assert native.available()
    assert native.reason() == native.absence() == ""
    for wanted in (False, True):
        native.use(wanted)
        assert native.in_use() == planar.usable(z) == wanted


@compiled
@pytest.mark.parametrize("transform", ["vmap", "jacrev", "jvp", "vmap of hessian"])
def test_first_use_may_be_under_a_transform(transform: str) -> None:
    """The library tries itself on plain tensors when it is loaded, whatever called it."""
    flow, z = Planar(2, 3), torch.randn(4, 2)
    runs = {
        "vmap": lambda: vmap(flow)(z)[1],
        "jacrev": lambda: jacrev(lambda v: flow(v)[1])(z[0]),
        "jvp": lambda: jvp(lambda v: flow(v)[1], (z,), (z,))[1],
        "vmap of hessian": lambda: vmap(hessian(lambda v: flow(v)[1]))(z),
    }
    expected = runs[transform]()
    native._calls = native._why_not = None
    torch.testing.assert_close(runs[transform](), expected, rtol=0, atol=0)
    assert native.available()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.delenv("VARFLOW_NATIVE", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    native.use(True)
    assert not native.in_use()
    assert "no C++ compiler" in native.reason()
    assert native.reason() in native.absence()
    out, _ = Planar(3, 2)(torch.randn(4, 3))
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'some error here' >&2; exit 1", "failed: some error here"),
        ("exit 1", "failed: no message"),
        ("", "could not be loaded"),
    ],
)
def test_a_compiler_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str
) -> None:
    """One that says why, one that does not, one that makes an empty file."""
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    forget()
    monkeypatch.delenv("VARFLOW_NATIVE", raising=False)
    monkeypatch.setenv("CXX", f"{compiler} -flag")
    monkeypatch.setenv("VARFLOW_CACHE", str(tmp_path / "cache"))
    assert not native.available()
    assert message in native.reason()
    compiler.write_text("not a program")
    forget()
    assert not native.available()
    assert "could not be run" in native.reason()


@compiled
def test_a_library_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    library = build.load()
    forget()
    monkeypatch.setattr(build, "load", lambda: object())
    assert "incomplete" in native.reason()
    forget()
    monkeypatch.setattr(build, "load", lambda: library)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    monkeypatch.setattr("varflow.native.calls._sizes", lambda *args: (1, 0, 1, 1, 0, 0.0))
    assert "wrong numbers" in native.reason()


@pytest.mark.slow
@compiled
def test_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Made once; a damaged file is made again; nothing half done is left behind."""
    monkeypatch.setenv("VARFLOW_CACHE", str(tmp_path))
    command = [*build.find_compiler(), *build.FLAGS, *build._tuning()]
    file = tmp_path / "native" / f"{build._fingerprint(command)}.so"
    file.parent.mkdir()
    file.write_bytes(b"damaged")
    native.Calls(build.load())
    with monkeypatch.context() as patch:
        patch.setattr(build, "_compile", lambda *args: pytest.fail("compiled again"))
        native.Calls(build.load())
    assert list((tmp_path / "native").iterdir()) == [file]
    assert file.stat().st_size > 1000


@pytest.mark.slow
@compiled
def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VARFLOW_CACHE", str(tmp_path / "file"))
    native.Calls(build.load())


@compiled
def test_another_processor_or_compiler_has_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*build.find_compiler(), *build.FLAGS]
    here = build._fingerprint(command)
    assert here == build._fingerprint(command)
    assert here != build._fingerprint([*command, "-g"])
    monkeypatch.setattr(build, "_processor", lambda: "another")
    assert here != build._fingerprint(command)


@compiled
@pytest.mark.slow
@pytest.mark.skipif(build.platform.machine() != "x86_64", reason="names of x86 processors")
@pytest.mark.parametrize("processor", ["x86-64", "haswell"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrower_vectors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processor: str, dtype: torch.dtype
) -> None:
    """The code of processors with 16- and 32-byte vectors gives the same numbers."""
    if processor == "haswell" and "avx2" not in build._processor():
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr(build, "_tuning", lambda: [f"-march={processor}"])
    monkeypatch.setenv("VARFLOW_CACHE", str(tmp_path))
    other = native.Calls(build.load())
    for packed in (False, True):
        for sets, points in [((), (70,)), ((19,), (5,)), ((9,), ())]:
            inputs = made(sets, points, 3, 6, packed, dtype)
            cotangents = like_out(inputs[0])
            found = all_of_it(compiled_push, inputs, cotangents, length=3)
            with monkeypatch.context() as patch:
                patch.setattr(native, "_calls", other)
                narrow = all_of_it(compiled_push, inputs, cotangents, length=3)
            torch.testing.assert_close(narrow, found, rtol=1e-4, atol=1e-4)
            if dtype == torch.float64:
                torch.testing.assert_close(narrow, found, rtol=1e-11, atol=1e-11)
