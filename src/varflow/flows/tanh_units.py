"""K tanh units that feed one another, as in planar chains and in the inverses of planar and Sylvester flows.

The pre-activation p_k of unit k is what it receives, a_k plus what the units before it send; on the way back it is
the root of an increasing equation:

    forward    p_k = a_k + Σ_{j<k} T_jk tanh(p_j)
    inverse    p_k + (s_k − 1) tanh(p_k) = a_k − Σ_{j<k} T_jk tanh(p_j)        (s_k > 0)

:func:`inverse_pre_activations_unrolled` is the second by its definition, and the first is what ``step_by_step`` in
:mod:`varflow.flows.planar` does by its own. The derivative of either is a triangular linear system, so the backward
pass is one recurrence in the other direction, and so is the backward pass of that: :class:`_Solve` differentiates
into itself.

Layout: a ``[G, R, K]``, T ``[G, K, K]`` (source, target; only j < k is read) and s ``[G, K]``, where G counts
parameter sets and R the points that share a set. Inside, units come first, so that each step is one multiply-add on
contiguous rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varflow.flows.determinants import sech2

#: Newton steps after the bounds in :func:`tanh_root`. In float64 the slowest corner of (s, q) is exact after five.
STEPS = 6


def pre_activations(a: Tensor, t: Tensor) -> Tensor:
    """p with p_k = a_k + Σ_{j<k} T_jk tanh(p_j). O(K²) multiply-adds a point, K steps."""
    return _Units.apply(a, t, None)


def inverse_pre_activations(a: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """p with p_k + (s_k − 1) tanh(p_k) = a_k − Σ_{j<k} T_jk tanh(p_j): K scalar roots in turn."""
    if torch.compiler.is_compiling():
        return inverse_pre_activations_unrolled(a, t, s)
    return _Units.apply(a, t, s)


def inverse_pre_activations_unrolled(a: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The same in plain operations, which a compiler can trace.

    Two Newton steps inside the graph give the root its first and second derivatives.
    """
    solved = []
    for k in range(a.shape[-1]):
        q, s_k = a[..., k], s[:, None, k]
        p = tanh_root(q.detach(), s_k.detach())
        for _ in range(2):
            h = p.tanh()
            p = p - (p + (s_k - 1) * h - q) / (h * h + sech2(p) * s_k)
        a = a - t[:, None, k] * p.tanh().unsqueeze(-1)
        solved.append(p)
    return torch.stack(solved, -1)


def tanh_root(q: Tensor, s: Tensor) -> Tensor:
    """p with p + κ tanh(p) = q, κ = s − 1, s ≥ 0. Elementwise and without branches on the data.

    The left side is odd and increasing. For p > 0 it is concave if κ > 0 and convex if κ < 0, so
    Newton from below (κ > 0) or from above (κ < 0) moves towards the root from one side and cannot
    leave the bracket |p − q| ≤ |κ|. What is left to do is to start close, uniformly in κ and q:

    1. κ > 0. From tanh p ≤ min(p, 1): p ≥ q/s and p ≥ q − κ. Deep in saturation these are weak.
       With t = p − (q − κ) = κ(1 − tanh p) ≤ 2κ e^{−2p} one has 2t e^{2t} ≤ 4κ e^{−2(q − κ)};
       Lambert's W(x) is at most log(1 + x), so t ≤ t₁ = ½ softplus(log 4κ − 2(q − κ)), and p = ½
       log(2κ/t − 1) ≥ ½ log(2κ/t₁ − 1).
    2. κ < 0. From tanh p ≤ min(p, 1): p ≤ q/s and p ≤ q − κ. Near the flat point of κ = −1 these
       are weak. There p − tanh p ≥ p³/(3 + 1.2 p²) gives p ≤ (4.2 q/|κ|)^⅓ as long as that is at
       most 1.

    Not differentiable: callers bring the derivative (implicit function theorem).
    """
    kappa = s - 1
    y = q.abs()
    below = torch.fmax(y / s, y - kappa)
    above = torch.fmin(y / s, y - kappa)
    cubic = (4.2 * y / kappa.abs()) ** (1 / 3)
    above = torch.where(cubic < 1, torch.fmin(above, cubic), above)
    bound = 0.5 * F.softplus((4 * kappa).log() - 2 * (y - kappa), threshold=40)
    saturated = 0.5 * (2 * kappa / bound - 1).log()
    # NaN, and so discarded, for κ < 0; and of no use where t₁ is so small that it underflows.
    useful = (saturated > below) & (bound > 1e-3)
    below = torch.where(useful, saturated, below)
    p = torch.where(kappa > 0, below, torch.where(kappa < 0, above, y))
    for _ in range(STEPS):
        h = p.tanh()
        e = torch.exp(-2 * p)
        slope = torch.addcmul(h * h, 4 * e / (1 + e).square(), s)
        p = p - torch.where(slope > 0, torch.addcmul(p - y, kappa, h) / slope, 0)
    return torch.copysign(p, q)


def _units_first(x: Tensor) -> Tensor:
    """[G, R, K] → [K, R, G], a fresh buffer."""
    return x.permute(2, 1, 0).clone(memory_format=torch.contiguous_format)


def _units_last(x: Tensor) -> Tensor:
    return x.permute(2, 1, 0).contiguous()


def _sent(t: Tensor) -> list[Tensor]:
    """For each unit but the last: what it sends to the units after it, [n, 1, G]."""
    k = t.shape[-1]
    source, target = torch.triu_indices(k, k, 1, device=t.device)
    packed = t.flatten(1).t().index_select(0, source * k + target).unsqueeze(1)
    return list(packed.split([*range(k - 1, 0, -1)]))


def _received(t: Tensor) -> list[Tensor]:
    """For each unit but the first: what the units before it send to it, [n, 1, G]."""
    k = t.shape[-1]
    target, source = torch.tril_indices(k, k, -1, device=t.device)
    packed = t.flatten(1).t().index_select(0, source * k + target).unsqueeze(1)
    return list(packed.split([*range(1, k)]))


def _outer(source: Tensor, target: Tensor) -> Tensor:
    """The gradient of T: Σ_r source_j target_k for j < k."""
    source = source.transpose(1, 2)
    # One point: a product of small matrices is the slow way to multiply two vectors.
    return (source * target if target.shape[1] == 1 else source @ target).triu(1)


class _Units(torch.autograd.Function):
    """:func:`pre_activations` where s is None, else :func:`inverse_pre_activations`."""

    @staticmethod
    def forward(a: Tensor, t: Tensor, s: Tensor | None) -> Tensor:
        p = _units_first(a)
        later, sent = p, _sent(t)
        for k, unit in enumerate(p.unbind()):
            if s is not None:
                unit.copy_(tanh_root(unit, s[:, k]))
            later = later[1:]
            if k < len(sent):
                later.addcmul_(sent[k], unit.tanh(), value=1 if s is None else -1)
        return _units_last(p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:], output)
        ctx.save_for_forward(*inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        t, s, p = ctx.saved_tensors
        h = p.tanh()
        if s is None:
            adjoint = _Solve.apply(grad, 1 - h * h, t, True)
            return adjoint, _outer(h, adjoint), None
        slope, det = _slopes(p, h, s)
        adjoint = _Solve.apply(grad / det, -slope / det, t, True)
        return adjoint, -_outer(h, adjoint), -(h * adjoint).sum(1)

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dt: Tensor | None, ds: Tensor | None) -> Tensor:
        t, s, p = ctx.saved_tensors
        h = p.tanh()
        rhs = torch.zeros_like(p) if da is None else da
        if dt is not None:
            rhs = rhs + (h if s is None else -h) @ dt.triu(1)
        if s is None:
            return _Solve.apply(rhs, 1 - h * h, t, False)
        if ds is not None:
            rhs = rhs - ds.unsqueeze(1) * h
        slope, det = _slopes(p, h, s)
        return _Solve.apply(rhs, -slope / det, t, False) / det

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _unfold(info, _Units.apply(*_fold(info, in_dims, inputs)))


def _slopes(p: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """1 − h², and the derivative of p + (s − 1) tanh(p)."""
    slope = sech2(p)
    return slope, torch.addcmul(h * h, slope, s.unsqueeze(1))


class _Solve(torch.autograd.Function):
    """x = r + N x with N_kj = c_j T_jk for j < k, or x = r + Nᵀ x (``transposed``)."""

    @staticmethod
    def forward(r: Tensor, c: Tensor, t: Tensor, transposed: bool) -> Tensor:
        x = _units_first(r)
        units, scales = x.unbind(), c.permute(2, 1, 0).unbind()
        if transposed:
            total = torch.zeros_like(x)
            totals = total.unbind()
            for k, received in reversed(list(enumerate(_received(t), 1))):
                total[:k].addcmul_(received, units[k])
                units[k - 1].addcmul_(scales[k - 1], totals[k - 1])
        else:
            later = x
            for unit, scale, sent in zip(units, scales, _sent(t), strict=False):
                later = later[1:]
                later.addcmul_(sent, unit * scale)
        return _units_last(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, c, t, ctx.transposed = inputs
        ctx.save_for_backward(c, t, output)
        ctx.save_for_forward(c, t, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        c, t, x = ctx.saved_tensors
        adjoint = _Solve.apply(grad, c, t, not ctx.transposed)
        source, target = (adjoint, x) if ctx.transposed else (x, adjoint)
        dc = source * (target @ t.triu(1).transpose(1, 2))
        return adjoint, dc, _outer(c * source, target), None

    @staticmethod
    def jvp(ctx: Any, dr: Tensor | None, dc: Tensor | None, dt: Tensor | None, _: None) -> Tensor:
        c, t, x = ctx.saved_tensors
        rhs = torch.zeros_like(x) if dr is None else dr
        for dn_c, dn_t in ((dc, t), (c, dt)):
            if dn_c is None or dn_t is None:
                continue
            if ctx.transposed:
                rhs = rhs + dn_c * (x @ dn_t.triu(1).transpose(1, 2))
            else:
                rhs = rhs + (dn_c * x) @ dn_t.triu(1)
        return _Solve.apply(rhs, c, t, ctx.transposed)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _unfold(info, _Solve.apply(*_fold(info, in_dims[:3], inputs[:3]), inputs[3]))


def _fold(info: Any, in_dims: tuple[int | None, ...], tensors: tuple[Any, ...]) -> list[Any]:
    """Fold a vmapped dimension into the parameter sets."""
    folded = []
    for x, dim in zip(tensors, in_dims, strict=True):
        if x is not None:
            x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            x = x.flatten(0, 1)
        folded.append(x)
    return folded


def _unfold(info: Any, x: Tensor) -> tuple[Tensor, int]:
    return x.unflatten(0, (info.batch_size, x.shape[0] // info.batch_size)), 0
