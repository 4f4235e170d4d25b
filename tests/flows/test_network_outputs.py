"""Flows of networks whose outputs reach ±10, against the definition in 50-digit arithmetic, both ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor, nn

from varflow.flows import (
    AdditiveCoupling,
    Affine,
    AffineCoupling,
    Compose,
    Flow,
    InverseAutoregressive,
    MaskedAutoregressive,
    nice,
)

DIGITS, REACH = 50, 10.0
CONTEXT = 2
HIDDEN = (8, 8)
FAMILIES = {
    "iaf": partial(InverseAutoregressive, length=2, hidden=HIDDEN),
    "iaf, paper's gate": partial(InverseAutoregressive, length=2, hidden=HIDDEN, gate="paper"),
    "maf": partial(MaskedAutoregressive, length=2, hidden=HIDDEN),
    "additive": partial(AdditiveCoupling, length=3, hidden=HIDDEN),
    "coupling": partial(AffineCoupling, length=3, hidden=HIDDEN),
    "nice": partial(nice, length=3),
}

Row = list[Any]
Moved = tuple[Row, Any]


# The definitions, one point and one number after the other.


def numbers(tensor: Tensor) -> Any:
    """As nested lists of numbers of 50 digits, exactly."""
    found = tensor.detach().double().tolist()

    def convert(x: Any) -> Any:
        return [convert(y) for y in x] if isinstance(x, list) else mpmath.mpf(x)

    return convert(found)


def network(module: nn.Module, t: int, inputs: Row, context: Row | None) -> Row:
    """The outputs of network t: rectified layers, the context added to the first; MADE's weights masked."""
    h = inputs
    count = len(module.weights)
    for layer in range(count):
        weight = module.weights[layer][t]
        if hasattr(module, f"mask{layer}"):
            weight = weight * getattr(module, f"mask{layer}")
        weight, bias = numbers(weight[:, : len(h)]), numbers(module.biases[layer][t])
        if layer == 0 and context is not None:
            moves = numbers(module.context_weight[t])
            bias = [b + mpmath.fdot(row, context) for b, row in zip(bias, moves, strict=True)]
        h = [mpmath.fdot(row, h) + b for row, b in zip(weight, bias, strict=True)]
        if layer < count - 1:
            h = [max(x, mpmath.mpf(0)) for x in h]
    return h


def coefficients(flow: Flow, raw: Any, shift: Any) -> tuple[Any, Any]:
    if getattr(flow, "gated", False):
        gate = 1 / (1 + mpmath.exp(-(raw + 1.5)))
        return mpmath.log(gate), (1 - gate) * shift
    return flow.bound * mpmath.tanh(raw / flow.bound), shift


def autoregressive(flow: Flow, t: int, z: Row, context: Row | None, solve: bool) -> Moved:
    """One step; reading its own result unless (IAF forward, MAF backward) all it reads is known."""
    d, reverse = len(z), t % 2 == 1
    own = solve == isinstance(flow, InverseAutoregressive)
    order = range(d)[::-1] if reverse else range(d)
    read, total = ([mpmath.mpf(0)] * d if own else list(z)), mpmath.mpf(0)
    out: Row = [None] * d
    for i in order:
        outputs = network(flow.made, t, read[::-1] if reverse else read, context)
        place = d - 1 - i if reverse else i
        s, shift = coefficients(flow, outputs[place], outputs[d + place])
        out[i] = (z[i] - shift) * mpmath.exp(-s) if solve else z[i] * mpmath.exp(s) + shift
        total += -s if solve else s
        if own:
            read[i] = out[i]
    return out, total


def coupling(flow: Flow, t: int, z: Row, context: Row | None, solve: bool) -> Moved:
    out, total = list(z), mpmath.mpf(0)
    kept, moved = z[t % 2 :: 2], range(len(z))[1 - t % 2 :: 2]
    outputs = network(flow, t, kept, context)
    for j, i in enumerate(moved):
        s, shift = mpmath.mpf(0), outputs[j]
        if isinstance(flow, AffineCoupling):
            s, shift = coefficients(flow, outputs[j], outputs[flow.larger + j])
        out[i] = (z[i] - shift) * mpmath.exp(-s) if solve else z[i] * mpmath.exp(s) + shift
        total += -s if solve else s
    return out, total


def affine(flow: Affine, z: Row, context: Row | None, solve: bool) -> Moved:
    if context is None:
        packed = numbers(flow.static)
    else:
        head = flow.parameters_of
        bias, weight = numbers(head.bias), numbers(head.weight)
        packed = [b + mpmath.fdot(row, context) for b, row in zip(bias, weight, strict=True)]
    s, shift = packed[: len(z)], packed[len(z) :]
    if solve:
        moved = [(x - t) * mpmath.exp(-a) for x, a, t in zip(z, s, shift, strict=True)]
        return moved, -mpmath.fsum(s)
    moved = [x * mpmath.exp(a) + t for x, a, t in zip(z, s, shift, strict=True)]
    return moved, mpmath.fsum(s)


def steps(flow: Flow) -> list[Callable[[Row, Row | None, bool], Moved]]:
    if isinstance(flow, Compose):
        return [step for part in flow.flows for step in steps(part)]
    if isinstance(flow, Affine):
        return [partial(affine, flow)]
    kind = autoregressive if hasattr(flow, "made") else coupling
    return [partial(kind, flow, t) for t in range(flow.length)]


def definition(flow: Flow, z: Tensor, context: Tensor | None, solve: bool) -> tuple[Tensor, Tensor]:
    """z′ and ladj, rounded to float64."""
    found: list[Row] = []
    with mpmath.workdps(DIGITS):
        for n, point in enumerate(numbers(z)):
            given, total = None if context is None else numbers(context[n]), mpmath.mpf(0)
            for step in reversed(steps(flow)) if solve else steps(flow):
                point, ladj = step(point, given, solve)
                total += ladj
            found.append([float(x) for x in [*point, total]])
    whole = torch.tensor(found, dtype=torch.float64)
    return whole[:, :-1], whole[:, -1]


# Their outputs.


def outputs_of(flow: Flow, run: Callable[[], Any]) -> list[Tensor]:
    """What the networks give while ``run`` runs the way that reads known points: one tensor a step."""
    from varflow.flows.coupling import _Step as OfCoupling
    from varflow.networks.made import Step as OfMADE

    found: list[Tensor] = []

    def spied(call: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: Any) -> Any:
            out = call(*args)
            found.append(torch.stack(out, -2) if isinstance(out, tuple) else out)
            return out

        return spy

    with pytest.MonkeyPatch.context() as patch:
        for kind in (OfCoupling, OfMADE):
            patch.setattr(kind, "__call__", spied(kind.__call__))
        run()
    return found


def stretched(name: str, d: int, context_features: int, z: Tensor, context: Tensor | None) -> Flow:
    """A flow of random networks whose largest output at these points is ±10, in every step."""
    flow = FAMILIES[name](d, context_features=context_features).double()
    way = flow.inverse if flow.fast_inverse else flow
    part = flow.flows[0] if isinstance(flow, Compose) else flow
    module = getattr(part, "made", part)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        if isinstance(flow, Compose):
            packed = [*flow.flows[1].parameters()]
            for parameter in packed:
                parameter.mul_(REACH / 2 / parameter.abs().max())
        order = range(part.length)
        for number, t in enumerate(reversed(order) if flow.fast_inverse else order):
            largest = outputs_of(flow, lambda: way(z, context))[number].abs().max()
            module.weights[-1][t].mul_(REACH / largest)
            module.biases[-1][t].mul_(REACH / largest)
    for outputs in outputs_of(flow, lambda: way(z, context)):
        assert outputs.abs().max().item() == pytest.approx(REACH)
    return flow


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("context_features", [0, CONTEXT], ids=["static", "amortized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [2, 5])
def test_outputs_up_to_ten(name: str, context_features: int, dtype: torch.dtype, d: int) -> None:
    """As exact as numbers of this dtype can be: the error is that of a relative change of z, context and
    parameters by a few roundings."""
    z = torch.randn(6, d, dtype=torch.float64).to(dtype).double()
    context = (
        torch.randn(6, CONTEXT, dtype=torch.float64).to(dtype).double()
        if context_features
        else None
    )
    exact = stretched(name, d, context_features, z, context).to(dtype).double()
    state = {key: value.clone() for key, value in exact.state_dict().items()}
    flow = FAMILIES[name](d, context_features=context_features).to(dtype)
    flow.load_state_dict(state)
    eps = torch.finfo(dtype).eps

    def jolt(x: Tensor) -> Tensor:
        return x * (1 + 1e-9 * (2 * torch.rand_like(x) - 1))

    for solve in (True, False) if flow.fast_inverse else (False, True):
        expected = definition(exact, z, context, solve)

        def run(
            flow: Flow, z: Tensor, context: Tensor | None, solve: bool = solve
        ) -> tuple[Tensor, ...]:
            return (flow.inverse if solve else flow)(z, context)

        reach = [torch.zeros(6, d).double(), torch.zeros(6).double()]
        with torch.no_grad():
            for _ in range(12):
                exact.load_state_dict({key: jolt(value) for key, value in state.items()})
                moved = run(exact, jolt(z), None if context is None else jolt(context))
                for most, now, then in zip(reach, moved, expected, strict=True):
                    torch.maximum(most, (now - then).abs() / 1e-9, out=most)
            exact.load_state_dict(state)
        for grad in (True, False):  # compiled code and writing in place stand behind either
            with torch.set_grad_enabled(grad):
                found = run(flow, z.to(dtype), None if context is None else context.to(dtype))
            for now, then, most in zip(found, expected, reach, strict=True):
                assert now.dtype == dtype
                allowed = 4 * eps * (1 + then.abs() + most)
                assert ((now.double() - then).abs() <= allowed).all()
        # The other way starts where this one ended: elsewhere the outputs of a network may be far above 10.
        z = expected[0].to(dtype).double()
