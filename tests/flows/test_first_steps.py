"""``Flow.first``: the way from base to target, step by step."""

from __future__ import annotations

import pytest
import torch

from varflow.core.errors import SpecError
from varflow.core.lazy import resolve
from varflow.flows import TABLE, Affine, Compose, Householder, Planar, Radial, Reverse, Sylvester
from varflow.flows.flow import Flow

D, C, K = 3, 4, 5


def moved(flow: Flow) -> Flow:
    """A flow away from its start."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.5 * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5
    return flow


def family(name: str, context_features: int) -> Flow:
    if name == "spline":
        pytest.importorskip("zuko")
    if name == "compose":
        planar = Planar(D, 2, context_features)
        made: Flow = Compose(Reverse(D), Compose(planar, Affine(D, context_features=context_features)), Reverse(D))
    else:
        made = resolve(TABLE[name])(D, length=K, context_features=context_features)
    return moved(made.double())


names = pytest.mark.parametrize("name", sorted([*TABLE, "compose"]))
contexts = pytest.mark.parametrize("context_features", [0, C], ids=["static", "amortized"])


@names
@contexts
def test_each_share_is_a_flow_and_the_last_is_the_whole(name: str, context_features: int) -> None:
    flow = family(name, context_features)
    z = torch.randn(7, D, dtype=torch.float64)
    local = flow.condition(torch.randn(7, C, dtype=torch.float64)) if context_features else ()
    for steps in range(1, flow.count_steps() + 1):
        part, own = flow.first(steps, local)
        after, ladj = part.push(z, own)
        back, minus = part.pull(after, own)
        torch.testing.assert_close(back, z, atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(minus, -ladj.expand(7), atol=1e-8, rtol=1e-6)
        assert part.count_steps() == steps
    whole, total = flow.push(z, local)
    torch.testing.assert_close(after, whole)
    torch.testing.assert_close(ladj, total)


STACKED = {
    "planar": ("u", "w", "b"), "radial": ("center", "a", "b"), "householder": ("v",), "sylvester": ("packed",),
    "additive": (), "coupling": (), "iaf": (), "maf": (),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in STACKED if name != "householder"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_it_is_the_first_steps_that_are_kept(name: str, steps: int) -> None:
    """Where all later steps are the identity, the whole flow is the share."""
    start = resolve(TABLE[name])(D, length=K).double()
    flow = moved(resolve(TABLE[name])(D, length=K).double())
    kept = dict(start.named_parameters())
    with torch.no_grad():
        for key, parameter in flow.named_parameters():
            parameter[steps:] = kept[key][steps:]
    z = torch.randn(7, D, dtype=torch.float64)
    part, own = flow.first(steps)
    for found, expected in zip(part.push(z, own), flow.push(z), strict=True):
        torch.testing.assert_close(found.expand_as(expected), expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [(Planar, {"u": D, "w": D, "b": 0}), (Radial, {"center": D, "a": 0, "b": 0}), (Householder, {"v": D})],
)
def test_an_amortized_share_has_the_numbers_of_its_steps(kind: type, sizes: dict[str, int]) -> None:
    """The same numbers in a static flow of so many steps."""
    flow, steps = moved(kind(D, K, C).double()), 3
    z, local = torch.randn(1, D, dtype=torch.float64), flow.condition(torch.randn(1, C, dtype=torch.float64))
    static = kind(D, steps).double()
    groups = local[0][0].split([K * max(size, 1) for size in sizes.values()])
    with torch.no_grad():
        for (name, size), group in zip(sizes.items(), groups, strict=True):
            getattr(static, name).copy_(group.reshape(K, size)[:steps] if size else group[:steps])
    part, own = flow.first(steps, local)
    for found, expected in zip(part.push(z, own), static.push(z), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_share_leaves_the_flow_as_it_is() -> None:
    flow = moved(Sylvester(D, K))
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    z = torch.randn(3, D)
    whole = flow(z)[0]
    flow.first(2)
    assert flow.length == K
    torch.testing.assert_close(flow(z)[0], whole)
    assert all(torch.equal(tensor, before[name]) for name, tensor in flow.state_dict().items())


@pytest.mark.parametrize("steps", [0, K + 1, -1])
def test_another_number_is_refused(steps: int) -> None:
    with pytest.raises(SpecError, match=rf"steps: was {steps}; this Planar has {K}, use 1 to {K}"):
        Planar(D, K).first(steps)


def test_a_flow_in_one_piece_has_one_step() -> None:
    flow = Affine(D)
    assert flow.count_steps() == 1
    assert flow.first(1) == (flow, ())
