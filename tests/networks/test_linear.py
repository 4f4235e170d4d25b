"""The product by either library: the same numbers, derivatives, and transformations."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from varflow.core.errors import SpecError
from varflow.networks import linear as room
from varflow.networks.linear import Linear, linear, use_library

onednn = pytest.mark.skipif(not room._available(), reason="this torch has no oneDNN linear")


@pytest.fixture(autouse=True)
def _small_products_too(monkeypatch):
    monkeypatch.setattr(room, "_SMALL", 1)
    before = room.library()
    yield
    use_library(before)


@onednn
@pytest.mark.parametrize("lead", [(), (1,), (7,), (3, 5), (0,), (2, 0)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_both_libraries_agree_in_value_and_gradient(lead, with_bias):
    x = torch.randn(*lead, 11, requires_grad=True)
    weight = torch.randn(6, 11, requires_grad=True)
    bias = torch.randn(6, requires_grad=True) if with_bias else None
    inputs = [t for t in (x, weight, bias) if t is not None]
    use_library("onednn")
    one = linear(x, weight, bias)
    grad = torch.randn_like(one)
    slopes = torch.autograd.grad(one, inputs, grad)
    other = F.linear(x, weight, bias)
    assert one.shape == other.shape
    assert torch.allclose(one, other, atol=1e-5)
    for a, b in zip(slopes, torch.autograd.grad(other, inputs, grad), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@onednn
def test_views_and_expanded_inputs_are_read_right():
    use_library("onednn")
    weight = torch.randn(9, 8)
    wide = torch.randn(5, 16)
    for x in (wide[:, ::2], wide[:, 3:11], torch.randn(8, 5).t(), torch.randn(1, 8).expand(5, 8)):
        assert torch.allclose(linear(x, weight), F.linear(x, weight), atol=1e-5)
    for view in (
        torch.randn(8, 9).t(),
        torch.randn(9, 20)[:, 4:12],
        torch.randn(1, 8).expand(9, 8),
    ):
        assert torch.allclose(linear(wide[:, :8], view), F.linear(wide[:, :8], view), atol=1e-5)


@onednn
def test_second_derivatives_agree():
    use_library("onednn")
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)

    def second(product):
        value = product(x, weight).tanh().square().sum()
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, weight))

    for a, b in zip(second(linear), second(F.linear), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@onednn
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_transformations_of_functions_agree():
    use_library("onednn")
    x, weight, bias = torch.randn(4, 3), torch.randn(6, 5, 3), torch.randn(6, 5)
    for in_dims in ((None, 0, 0), (None, 0, None)):
        b = bias if in_dims[2] == 0 else bias[0]
        stacked = torch.func.vmap(linear, in_dims)(x, weight, b)
        for k in range(6):
            assert torch.allclose(
                stacked[k], F.linear(x, weight[k], b[k] if in_dims[2] == 0 else b), atol=1e-5
            )
    many = torch.randn(6, 4, 3)
    assert torch.allclose(
        torch.func.vmap(lambda v: linear(v, weight[0]))(many), many @ weight[0].t(), atol=1e-5
    )
    jacobian = torch.func.jacrev(lambda v: linear(v, weight[0]))(x[0])
    assert torch.allclose(jacobian, weight[0], atol=1e-6)
    _, tangent = torch.func.jvp(lambda w: linear(x, w, bias[0]), (weight[0],), (weight[1],))
    assert torch.allclose(tangent, x @ weight[1].t(), atol=1e-5)


@onednn
def test_double_precision_and_autocast_take_torchs_own_product():
    use_library("onednn")
    layer = Linear(8, 4)
    assert torch.equal(
        layer.double()(torch.ones(2, 8).double()),
        F.linear(torch.ones(2, 8).double(), *layer.parameters()),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(torch.ones(2, 8)).dtype == torch.bfloat16


def test_the_choice_can_be_made_and_is_one_of_two():
    assert room._measure() in ("blas", "onednn")
    use_library("blas")
    assert room.library() == "blas"
    with pytest.raises(SpecError, match="did you mean 'blas'"):
        use_library("bla")


@onednn
def test_the_short_way_and_the_way_of_transformations_give_the_same_bits():
    use_library("onednn")
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((5, 7), (4, 7), (4,))]
    short, long = linear(*inputs), room._Product.apply(*inputs)
    assert torch.equal(short, long)
    with torch.no_grad():
        assert torch.equal(linear(*inputs), short)
    grad = torch.randn(5, 4)
    for a, b in zip(
        torch.autograd.grad(short, inputs, grad),
        torch.autograd.grad(long, inputs, grad),
        strict=True,
    ):
        assert torch.equal(a, b)
    under = torch.func.grad(lambda w: (linear(inputs[0], w, inputs[2]) * grad).sum())(inputs[1])
    assert torch.allclose(
        under, torch.autograd.grad(linear(*inputs), inputs[1], grad)[0], atol=1e-5
    )


@onednn
def test_shapes_are_known_without_numbers():
    use_library("onednn")
    with FakeTensorMode():
        x, weight = torch.empty(5, 7), torch.empty(4, 7, requires_grad=True)
        y = linear(x, weight)
        y.sum().backward()
        assert y.shape == (5, 4)
        assert weight.grad.shape == (4, 7)


@onednn
def test_a_bias_with_gaps_is_read_with_its_gaps():
    use_library("onednn")
    x, weight = torch.randn(9, 7), torch.randn(4, 7)
    for bias in (torch.randn(4, 3)[:, 1], torch.randn(1).expand(4)):
        assert torch.allclose(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-5)
