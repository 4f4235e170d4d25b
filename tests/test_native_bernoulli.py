"""The compiled Bernoulli log-likelihood: against exact values, the torch expression, transforms, and refusals."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jvp, vmap

from varflow import native
from varflow.likelihoods import Bernoulli
from varflow.likelihoods.bernoulli import _in_torch as twin
from varflow.likelihoods.bernoulli import bernoulli_log_prob
from varflow.native import bernoulli, build

DTYPES = [torch.float32, torch.float64]
BAD = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30]

# torch warns about its own internals when forward-mode derivatives are first used.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.skipif(not native.available(), reason=native.reason() or "compiled"),
]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    wanted = native._wanted
    native.use(True)
    yield
    native.use(wanted)


def made(*shape: int, lead: tuple[int, ...] = (), dtype: torch.dtype = torch.float64, scale=4.0):
    x = (torch.rand(shape) > 0.5).to(dtype)
    return x, scale * torch.randn(*lead, *shape, dtype=dtype)


def with_slopes(function, x: Tensor, logits: Tensor, dims: tuple[int, ...] = (-1,)):
    leaf = logits.detach().requires_grad_()
    out = function(x, leaf, dims)
    return out.detach(), torch.autograd.grad(out.sum(), leaf)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_against_400_digits(dtype: torch.dtype) -> None:
    """Value and slope of single elements keep their relative accuracy, however far the logit is from 0."""
    eps, top = torch.finfo(dtype).eps, 1.9 if dtype is torch.float32 else 2.8
    size = torch.cat([torch.logspace(-12, top, 200), torch.tensor([0.0, 1e30])]).to(dtype)
    logits = torch.cat([size, -size]).unsqueeze(1)
    tiny = torch.finfo(dtype).tiny
    with mpmath.workdps(400):
        for grey in (0.0, 1.0, 0.3):
            x = torch.full_like(logits, grey)
            assert bernoulli.usable(x, logits)
            values, slopes = with_slopes(bernoulli_log_prob, x, logits)
            p = mpmath.mpf(x[0, 0].item())
            for value, slope, l in zip(values.tolist(), slopes[:, 0].tolist(), logits, strict=True):
                l = mpmath.mpf(l.item())
                e = mpmath.exp(-abs(l))
                parts = (p - (l > 0)) * l, mpmath.log1p(e)
                size = abs(parts[0]) + parts[1]
                assert abs(value - (parts[0] - parts[1])) <= 4 * eps * size + tiny
                share = mpmath.exp(min(l, 0)) / (1 + e)
                # Of grey x, p − σ may vanish; of x = 0 and 1 it does not.
                bound = abs(p - share) if grey in (0, 1) else 1
                assert abs(slope - (p - share)) <= 4 * eps * bound + tiny


@pytest.mark.parametrize("size", [1, 7, 784, 12289, 300_000])
@pytest.mark.parametrize("scale", [0.1, 4.0, 30.0])
def test_sums_are_as_accurate_as_those_of_torch(size: int, scale: float) -> None:
    """Float32 sums are within 3 eps, relative, whatever the length of a row: 2.0 is the worst of a million."""
    x, logits = made(5, size, dtype=torch.float32, scale=scale)
    # Not the twin in float64: x l − softplus(l) is 0 there where l is 40 and x is 1.
    exact = torch.nn.functional.logsigmoid((2 * x.double() - 1) * logits.double()).sum(-1)
    found = bernoulli_log_prob(x, logits, (-1,))
    eps = torch.finfo(torch.float32).eps
    assert ((found - exact) / exact).abs().max() <= 3 * eps
    assert (found - exact).abs().max() <= (twin(x, logits, (-1,)) - exact).abs().max() + (
        eps * exact.abs().max()
    )


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10**6),
    event=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    batch=st.lists(st.integers(1, 4), max_size=2),
    lead=st.lists(st.integers(1, 3), max_size=2),
    log_scale=st.integers(-8, 20),
    grey=st.booleans(),
)
def test_every_shape(dtype, seed, event, batch, lead, log_scale, grey) -> None:
    """x meets all samples of its logits; shapes, values and slopes are those of the torch expression."""
    torch.manual_seed(seed)
    x, logits = made(*batch, *event, lead=tuple(lead), dtype=dtype, scale=10.0**log_scale)
    if grey:
        x = torch.rand_like(x)
    dims = tuple(range(-len(event), 0))
    assert bernoulli.usable(x, logits)
    value, slope = with_slopes(bernoulli_log_prob, x, logits, dims)
    exact, exact_slope = with_slopes(twin, x.double(), logits.double(), dims)
    assert value.shape == (*lead, *batch)
    assert value.dtype == slope.dtype == dtype
    eps = torch.finfo(dtype).eps
    reach = ((x * logits).abs() + logits.abs() + 1).sum(dims).double()
    assert ((value - exact).abs() <= 4 * eps * reach).all()
    torch.testing.assert_close(slope.double(), exact_slope, rtol=8 * eps, atol=8 * eps)
    with torch.no_grad():
        # Without slopes other code runs, in which the compiler may fuse other products and sums.
        plain = bernoulli_log_prob(x, logits.requires_grad_(), dims)
        assert ((plain - value).abs() <= 4 * eps * reach).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("at", [0, 33, 52], ids=["vector", "later", "rest"])
def test_a_bad_row_stays_alone(dtype: torch.dtype, bad: float, at: int) -> None:
    for one in (0.0, 1.0):
        x, logits = made(6, 53, dtype=dtype)
        x[3, at] = one
        clean = with_slopes(bernoulli_log_prob, x, logits)
        logits[3, at] = bad
        found, expected = (with_slopes(f, x, logits) for f in (bernoulli_log_prob, twin))
        others = torch.arange(6) != 3
        for a, b, c in zip(found, clean, expected, strict=True):
            assert torch.equal(a[others], b[others])
            assert torch.equal(a.isfinite(), c.isfinite())
            torch.testing.assert_close(a[a.isfinite()], c[c.isfinite()], rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """To the bit: one function sums one row, whatever stands beside it."""
    x, logits = made(50, 37, lead=(3,), dtype=torch.float32)
    whole = bernoulli_log_prob(x, logits, (-1,))
    for i in range(0, 50, 7):
        part = bernoulli_log_prob(x[i : i + 7], logits[:, i : i + 7].contiguous(), (-1,))
        assert torch.equal(part, whole[:, i : i + 7])


def test_derivatives() -> None:
    x, logits = made(3, 5, lead=(2,))
    logits.requires_grad_()

    def function(logits: Tensor) -> Tensor:
        assert bernoulli.usable(x, logits)
        return bernoulli_log_prob(x, logits, (-2, -1))

    assert gradcheck(function, logits)
    assert gradgradcheck(function, logits)
    thirds = []
    for f in (bernoulli_log_prob, twin):
        value = f(x, logits, (-1,)).sum()
        for _ in range(2):
            value = torch.autograd.grad(value, logits, create_graph=True)[0].sin().sum()
        thirds.append(torch.autograd.grad(value, logits)[0])
    torch.testing.assert_close(*thirds)
    out = function(logits)
    batched = torch.autograd.grad(out, logits, torch.eye(2).double(), is_grads_batched=True)[0]
    torch.testing.assert_close(batched, torch.autograd.functional.jacobian(function, logits))


def test_a_graph_that_is_walked_twice() -> None:
    x, logits = made(4, 20)
    leaf = logits.requires_grad_()
    out = bernoulli_log_prob(x, leaf, (-1,)).sum()
    first = torch.autograd.grad(out, leaf, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out, leaf)[0])


def test_what_torch_keeps() -> None:
    """Gradients of x, strides, shapes that broadcast inside, mixed dtypes, other dtypes, nothing at all."""
    x, logits = made(4, 6, lead=(3,))
    grey = x.clone().requires_grad_()
    pairs = [
        (grey, logits),
        (x.mT.contiguous().mT, logits),
        (x, logits.mT.contiguous().mT),
        (x[:1], logits),
        (logits.sigmoid(), logits[0]),
        (x, logits.float()),
        (x.half(), logits.half()),
        (x[:0], logits[:, :0].contiguous()),
    ]
    for a, b in pairs:
        assert not bernoulli.usable(a, b)
        assert torch.equal(bernoulli_log_prob(a, b, (-1,)), twin(a, b, (-1,)))
    slopes = torch.autograd.grad(bernoulli_log_prob(grey, logits, (-1,)).sum(), grey)[0]
    torch.testing.assert_close(slopes, logits.sum(0))
    with torch.no_grad():
        assert bernoulli.usable(grey, logits)


def test_transforms_are_those_of_torch() -> None:
    x, logits = made(4, 6, lead=(3,))
    direction = torch.randn_like(logits)

    def results() -> list[Tensor]:
        def f(logits: Tensor) -> Tensor:
            return bernoulli_log_prob(x, logits, (-1,))

        return [
            vmap(f)(logits),
            vmap(grad(lambda l: f(l).sum()))(logits),
            hessian(lambda l: f(l).sum())(logits[0]),
            *jvp(f, (logits,), (direction,)),
        ]

    found = results()
    native.use(False)
    torch.testing.assert_close(found, results(), rtol=0, atol=0)
    native.use(True)
    kept: list[Tensor] = []

    def keep(logits: Tensor) -> Tensor:
        kept.append(logits)
        return logits.sum()

    grad(keep)(logits)
    assert torch.equal(bernoulli_log_prob(x, kept[0], (-1,)), bernoulli_log_prob(x, logits, (-1,)))


def test_switch_and_autocast() -> None:
    likelihood = Bernoulli(nn.Linear(3, 70), 70)
    x, z = (torch.rand(5, 70) > 0.5).float(), torch.randn(5, 3)
    logits = likelihood.decode(z)
    value = likelihood.log_prob(x, z)
    assert "_Sums" in type(value.grad_fn).__name__
    native.use(False)
    assert not bernoulli.usable(x, logits)
    plain = likelihood.log_prob(x, z)
    assert "_Sums" not in type(plain.grad_fn).__name__
    torch.testing.assert_close(value, plain)
    native.use(True)
    with torch.autocast("cpu", torch.bfloat16):
        assert likelihood.log_prob(x, z).dtype == torch.float32


@pytest.mark.slow
def test_compiled_graph_is_whole() -> None:
    x, logits = made(4, 6, dtype=torch.float32)
    compiled = torch.compile(lambda l: bernoulli_log_prob(x, l, (-1,)), fullgraph=True)
    torch.testing.assert_close(
        with_slopes(lambda x, l, d: compiled(l), x, logits), with_slopes(twin, x, logits)
    )


def test_a_library_with_wrong_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = native.Calls.bernoulli

    def doubled(self, *args, **options):
        out, slopes = wrong(self, *args, **options)
        return 2 * out, slopes

    monkeypatch.setattr(native.Calls, "bernoulli", doubled)
    with pytest.raises(build.BuildError, match="wrong numbers"):
        native.Calls(build.load())


@pytest.mark.slow
def test_processes_that_race_for_the_cache(tmp_path: Path) -> None:
    """All of them get a whole library, and one file stays."""
    program = "from varflow import native; assert native.available(), native.reason()"
    # Not optimized: the compiler is the longest part of it.
    environment = {**build.os.environ, "VARFLOW_CACHE": str(tmp_path), "VARFLOW_NATIVE_FLAGS": "-O0"}
    command = [sys.executable, "-c", program]
    racers = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [racer.wait() for racer in racers] == [0, 0]
    (file,) = (tmp_path / "native").iterdir()
    made_at = file.stat().st_mtime_ns
    time.sleep(0.01)
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert file.stat().st_mtime_ns == made_at
