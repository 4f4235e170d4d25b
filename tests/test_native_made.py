"""Compiled autoregressive steps against the torch expression, which stays their definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varflow import native
from varflow.flows import InverseAutoregressive, MaskedAutoregressive
from varflow.native import made

if not native.available():
    pytest.skip(f"varflow.native: {native.reason()}", allow_module_level=True)

SIZES = [(1, (3,), 0), (2, (7, 5), 0), (5, (16,), 3), (17, (40, 21, 33), 2), (40, (64, 96), 0)]


@pytest.fixture(autouse=True)
def compiled():
    before = native._wanted
    native.use(True)
    yield
    native.use(before)


def flow(kind, features, hidden, context, dtype, scale, seed=0):
    torch.manual_seed(seed)
    out = kind(features, length=3, context_features=context, hidden=hidden).to(dtype)
    for weight in out.parameters():
        torch.nn.init.normal_(weight, std=scale)
    return out


def both(one, z, *local):
    way = one.push if isinstance(one, MaskedAutoregressive) else one.pull
    found = []
    for use in (True, False):
        native.use(use)
        with torch.no_grad():
            found.append(way(z, local))
    return found


@pytest.mark.parametrize("kind", [MaskedAutoregressive, InverseAutoregressive])
@pytest.mark.parametrize(("features", "hidden", "context"), SIZES)
@pytest.mark.parametrize("batch", [(), (1,), (33,), (3, 50)])
def test_the_same_as_torch(kind, features, hidden, context, batch):
    one = flow(kind, features, hidden, context, torch.float64, 0.4)
    z = torch.randn(*batch, features, dtype=torch.float64)
    local = [torch.randn(*batch[-1:], context, dtype=torch.float64)] if context else []
    (found, ladj), (expected, expected_ladj) = both(one, z, *local)
    scale = expected.abs().amax() + 1
    assert (found - expected).abs().max() <= 1e-12 * scale**2
    assert (ladj - expected_ladj).abs().max() <= 1e-12 * scale
    assert ladj.shape == expected_ladj.shape


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 1e-3, 0.3, 3.0]),
    start=st.sampled_from([0.0, 1e-30, 1.0, 1e3]),
    features=st.integers(1, 9),
    points=st.integers(1, 70),
)
def test_one_step_of_any_size_in_float32(seed, scale, start, features, points):
    torch.manual_seed(seed)
    one = flow(MaskedAutoregressive, features, (11, 9), 0, torch.float32, scale, seed)
    z = start * torch.randn(points, features)
    with torch.no_grad():
        step = one.made.steps()[0]
        y, total = made.affine(step, z, (points,), one.bound, solve=False)
        # Not y against torch's y, which a steep network pulls apart: what the step says of this very y.
        log_scale, shift = one.coefficients(*step(y).unbind(-2))
    size = z.abs() * log_scale.exp() + shift.abs() + 1 + y.abs().amax() * scale
    assert ((y - z * log_scale.exp() - shift).abs() <= 2e-3 * size).all()
    assert (total - log_scale.sum(-1)).abs().max() <= 2e-3 * (1 + scale * y.abs().max())


def test_rows_do_not_depend_on_those_beside_them():
    """Up to rounding: a full tile and a lone vector are compiled apart, and which products and sums the compiler
    fuses may differ between them. What another row held would show in the first digits."""
    one = flow(MaskedAutoregressive, 6, (24, 24), 0, torch.float64, 0.5)
    z = torch.randn(150, 6, dtype=torch.float64)
    other = z.clone()
    other[1:-1] += 1
    with torch.no_grad():
        whole, changed = one.push(z), one.push(other)
        for a, b in zip(whole, changed, strict=True):
            # In one place of one call the instructions are the same.
            assert torch.equal(a[[0, -1]], b[[0, -1]])
        scale = whole[0].abs().amax() + 1
        for row in (0, 63, 64, 149):
            for a, b in zip(whole, one.push(z[row : row + 1]), strict=True):
                assert (a[row : row + 1] - b).abs().max() <= 1e-12 * scale**2


def test_nan_and_infinity_stay_in_their_rows():
    one = flow(MaskedAutoregressive, 4, (8, 8), 0, torch.float64, 0.5)
    z = torch.randn(5, 4, dtype=torch.float64)
    z[1, 0], z[3, 0] = math.nan, math.inf
    (found, _), (expected, _) = both(one, z)
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert found[1].isnan().all()
    assert found[[0, 2, 4]].isfinite().all()


def test_what_it_leaves_to_torch():
    one = flow(MaskedAutoregressive, 3, (8,), 0, torch.float32, 0.5)
    step, z = one.made.steps()[0], torch.randn(2, 3)
    assert not made.usable(z, step, one.bound)
    with torch.no_grad():
        step = one.made.steps()[0]
        assert made.usable(z, step, one.bound)
        assert not made.usable(z, step, 100.0)
        assert not made.usable(z.half(), step, one.bound)
        assert not made.usable(z[:0], step, one.bound)
    paper = flow(InverseAutoregressive, 3, (8,), 0, torch.float64, 0.5)
    gated = InverseAutoregressive(3, length=3, hidden=(8,), gate="paper").to(torch.float64)
    gated.load_state_dict(paper.state_dict())
    z = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        back, _ = gated.pull(gated.push(z)[0])
    assert (back - z).abs().max() < 1e-10
