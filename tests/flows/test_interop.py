"""Flows as torch transforms, and torch and zuko transforms as flows."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution, transforms

from varflow.core.errors import SpecError
from varflow.flows import (
    Affine,
    InverseAutoregressive,
    MaskedAutoregressive,
    as_transform,
    from_transform,
    from_zuko,
    spline,
)


def shake(flow: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += torch.randn_like(parameter) * parameter.shape[-1] ** -0.5


def base(*shape: int) -> Normal:
    return Normal(torch.zeros(shape).double(), torch.ones(shape).double())


# as_transform


@pytest.mark.parametrize("family", [InverseAutoregressive, MaskedAutoregressive])
@pytest.mark.parametrize("context_features", [0, 2])
def test_transformed_distribution_has_the_flows_density(
    family: type, context_features: int
) -> None:
    flow = family(3, 2, context_features).double()
    shake(flow)
    context = torch.randn(4, 2).double() if context_features else None
    q = TransformedDistribution(base(3), [as_transform(flow, context)])
    batch = (4,) if context_features else ()
    assert (q.batch_shape, q.event_shape) == (batch, (3,))
    x = q.rsample((5,))
    assert x.shape == (5, *batch, 3)
    z, ladj = flow.inverse(x, context)
    expected = -(z.square().sum(-1) + 3 * math.log(2 * math.pi)) / 2 + ladj
    torch.testing.assert_close(q.log_prob(x), expected)


def test_transform_and_its_inverse() -> None:
    flow = InverseAutoregressive(3).double()
    shake(flow)
    transform = as_transform(flow)
    x = torch.randn(5, 3).double()
    y = transform(x)
    torch.testing.assert_close(transform.inv(y), x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), flow(x)[1])
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(y, x), -flow(x)[1])
    assert transform.bijective
    assert transform.domain.event_dim == transform.codomain.event_dim == 1
    assert transform.with_cache(1) is transform


def test_chains_with_torch_transforms() -> None:
    flow = Affine(3).double()
    shake(flow)
    chain = transforms.ComposeTransform([transforms.TanhTransform(), as_transform(flow)])
    x = torch.randn(5, 3).double()
    expected = (math.log(2.0) * 2 - 2 * x - 2 * torch.nn.functional.softplus(-2 * x)).sum(-1)
    expected = expected + flow.static[:3].sum()
    torch.testing.assert_close(chain.log_abs_det_jacobian(x, chain(x)), expected)


def test_no_cache_breaks_a_second_backward() -> None:
    flow = Affine(2)
    q = TransformedDistribution(Normal(torch.zeros(2), torch.ones(2)), [as_transform(flow)])
    x = torch.randn(5, 2)
    first = torch.autograd.grad(q.log_prob(x).sum(), flow.static)[0]
    with torch.no_grad():
        flow.static += 0.5
    second = torch.autograd.grad(q.log_prob(x).sum(), flow.static)[0]
    assert (first - second).abs().max() > 0.1


# from_transform


@pytest.mark.parametrize(
    "transform",
    [
        transforms.AffineTransform(1.0, -2.0),
        transforms.SigmoidTransform(),
        transforms.TanhTransform(),
        transforms.ComposeTransform(
            [transforms.ExpTransform(), transforms.AffineTransform(0.0, 2.0)]
        ),
        transforms.IndependentTransform(transforms.SigmoidTransform(), 1),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_torch_transforms_as_flows(transform: transforms.Transform) -> None:
    flow = from_transform(transform, 3)
    z = torch.randn(5, 3).double()
    out, ladj = flow(z)
    torch.testing.assert_close(out, transform(z))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: flow(v)[0]))(z)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian)[1])
    back, ladj_back = flow.inverse(out)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(ladj_back, -ladj)


class Scale(nn.Module):
    """A factory with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.3))

    def forward(self) -> transforms.Transform:
        return transforms.AffineTransform(0.0, self.log_scale.exp())


def test_a_module_factory_is_registered() -> None:
    flow = from_transform(Scale(), 2)
    assert [name for name, _ in flow.named_parameters()] == ["source.log_scale"]
    z = torch.ones(4, 2)
    flow(z)[1].sum().backward()
    assert next(flow.parameters()).grad == 8.0
    twin = copy.deepcopy(flow)
    with torch.no_grad():
        next(flow.parameters()).zero_()
    torch.testing.assert_close(twin(z)[1], torch.full((4,), 0.6))
    torch.testing.assert_close(flow(z)[1], torch.zeros(4))


def test_there_and_back_through_torch() -> None:
    flow = InverseAutoregressive(3).double()
    shake(flow)
    again = from_transform(as_transform(flow), 3)
    z = torch.randn(5, 3).double()
    torch.testing.assert_close(again(z), flow(z))
    torch.testing.assert_close(again.inverse(z), flow.inverse(z))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (transforms.AbsTransform(), "bijective=False"),
        (transforms.StickBreakingTransform(), "changes the number of features"),
        (transforms.CorrCholeskyTransform(), "event dimensions"),
        (lambda: 3, "gave int"),
    ],
    ids=["abs", "stick breaking", "cholesky", "no transform"],
)
def test_refuses_what_is_no_flow(transform: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        from_transform(transform, 3)  # type: ignore[arg-type]


# zuko


def lazy_transforms() -> dict[str, tuple[object, int, int]]:
    zuko = pytest.importorskip("zuko")
    return {
        "maf": (zuko.flows.MAF(3, 2, transforms=2).transform, 3, 2),
        "inverse": (zuko.flows.MAF(3, 2, transforms=2).transform.inv, 3, 2),
        "static": (zuko.flows.MAF(4, transforms=1).transform, 4, 0),
        "coupling": (zuko.flows.RealNVP(5, 2, transforms=2).transform, 5, 2),
        "single": (zuko.flows.NSF(1, 2).transform, 1, 2),
        "single static": (zuko.flows.NSF(1, transforms=1).transform, 1, 0),
        "elementwise": (
            zuko.lazy.UnconditionalTransform(zuko.transforms.SoftclipTransform, bound=9.0),
            2,
            0,
        ),
    }


@pytest.mark.parametrize(
    "name", ["maf", "inverse", "static", "coupling", "single", "single static", "elementwise"]
)
def test_zuko_transforms_as_flows(name: str) -> None:
    lazy, features, context_features = lazy_transforms()[name]
    stated = (features, context_features) if name == "elementwise" else ()
    flow = from_zuko(lazy, *stated).double()
    assert (flow.features, flow.context_features) == (features, context_features)
    z = torch.randn(5, features).double()
    context = torch.randn(5, context_features).double() if context_features else None
    out, ladj = flow(z, context)
    torch.testing.assert_close(out, lazy(context)(z))
    jacobian = torch.stack(
        [
            torch.func.jacrev(lambda v, i=i: flow(v, None if context is None else context[i])[0])(
                z[i]
            )
            for i in range(5)
        ]
    )
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian)[1])
    back, ladj_back = flow.inverse(out, context)
    torch.testing.assert_close(back, z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ladj_back, -ladj, rtol=1e-6, atol=1e-6)


def test_a_zuko_density_keeps_its_meaning() -> None:
    zuko = pytest.importorskip("zuko")
    density = zuko.flows.MAF(3, transforms=2).double()
    flow = from_zuko(density.transform.inv)
    x = torch.randn(5, 3).double()
    z, ladj = flow.inverse(x)
    expected = Independent(base(3), 1).log_prob(z) + ladj
    torch.testing.assert_close(density().log_prob(x), expected)


def test_zuko_sizes_and_types_are_checked() -> None:
    zuko = pytest.importorskip("zuko")
    unsized = zuko.lazy.UnconditionalTransform(zuko.transforms.CosTransform)
    with pytest.raises(SpecError, match="cannot be read off UnconditionalTransform"):
        from_zuko(unsized)
    assert from_zuko(unsized, features=2).context_features == 0
    with pytest.raises(SpecError, match=r"lazy: was MAF; .* its .transform"):
        from_zuko(zuko.flows.MAF(3))


def test_spline_parameters_are_registered_and_trained() -> None:
    flow = spline(2, length=2, context_features=3, bins=5)
    out: Tensor = flow(torch.randn(7, 2), torch.randn(7, 3))[0]
    out.square().sum().backward()
    gradients = [p.grad.abs().sum() for p in flow.parameters() if p.grad is not None]
    assert sum(gradients) > 0


def test_spline_is_the_identity_outside_of_its_box() -> None:
    flow = spline(2).double()
    shake(flow)
    z = torch.tensor([[7.0, -8.0], [50.0, 5.5]]).double()
    assert torch.equal(flow(z)[0], z)
    assert torch.equal(flow(z)[1], torch.zeros(2).double())


def test_without_zuko_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(SpecError, match=r"pip install 'varflow\[zuko\]'"):
        spline(2)
