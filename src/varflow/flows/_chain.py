"""The scalar recurrence behind planar chains and Sylvester inverses.

K tanh units feed one another: unit k receives a_k plus what the units before it send,

    wind:    p_k = a_k + Σ_{j<k} T_jk tanh(p_j)
    unwind:  p_k + (s_k − 1) tanh(p_k) = a_k − Σ_{j<k} T_jk tanh(p_j)        (s_k > 0: increasing)

The derivative of either is a triangular linear system, so the backward pass is one recurrence in
the other direction, and so is the backward pass of that: :class:`_Solve` differentiates into
itself.

Layout: a ``[G, R, K]``, T ``[G, K, K]`` (source, target; only j < k is read) and s ``[G, K]``,
where G counts parameter sets and R the points that share a set. Inside, units come first, so that
each step is one multiply-add on contiguous rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varflow.flows._root import tanh_root


def wind(a: Tensor, t: Tensor) -> Tensor:
    """p with p_k = a_k + Σ_{j<k} T_jk tanh(p_j). O(K²) multiply-adds a point, K steps."""
    return _Wind.apply(a, t)


def unwind(a: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """p with p_k + (s_k − 1) tanh(p_k) = a_k − Σ_{j<k} T_jk tanh(p_j): K scalar roots in turn."""
    if torch.compiler.is_compiling():
        return _unwind_unrolled(a, t, s)
    return _Unwind.apply(a, t, s)


def _unwind_unrolled(a: Tensor, t: Tensor, s: Tensor) -> Tensor:
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


def sech2(p: Tensor) -> Tensor:
    """1 − tanh²(p) without cancellation, smooth at 0."""
    q = 2 * p
    return 4 * (torch.sigmoid(q) * torch.sigmoid(-q))


def log_mean(w: Tensor, v: Tensor, s: Tensor, log_s: Tensor) -> Tensor:
    """log(w + v·s) for weights w + v = 1 and s > 0: what the determinants of this room are made of.

    Every term is positive, so nothing cancels. ``log_s`` replaces the sum where it underflows (w
    and s both below the smallest normal number); it has to be exact only there.
    """
    total = torch.addcmul(w, v, s)
    lost = total < torch.finfo(total.dtype).tiny
    # The inner where keeps log(0), and so an infinite derivative, out of the graph.
    return torch.where(lost, log_s, torch.where(lost, 1, total).log())


def log_det(p: Tensor, s: Tensor, log_s: Tensor) -> Tensor:
    """log(h² + (1 − h²) s) with h = tanh(p): the log-derivative of p ↦ p + (s − 1) tanh(p)."""
    if torch.compiler.is_compiling():
        return _log_det(p, s, log_s)
    return _LogDet.apply(p, s, log_s)


def _log_det(p: Tensor, s: Tensor, log_s: Tensor) -> Tensor:
    return log_mean(p.tanh().square(), sech2(p), s, log_s)


class _LogDet(torch.autograd.Function):
    """:func:`_log_det` as one node of the graph, because small models are bound by the number of
    nodes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, s: Tensor, log_s: Tensor) -> Tensor:
        return _log_det(p, s, log_s)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = ctx.saved_tensors[1]
        dp, ds, dlog_s = _LogDet.partials(*ctx.saved_tensors)
        return grad * dp, (grad * ds).sum_to_size(s.shape), (grad * dlog_s).sum_to_size(s.shape)

    @staticmethod
    def jvp(ctx: Any, p: Tensor | None, s: Tensor | None, log_s: Tensor | None) -> Tensor:
        partials = _LogDet.partials(*ctx.saved_tensors)
        terms = [d * dx for d, dx in zip(partials, (p, s, log_s), strict=True) if dx is not None]
        return torch.stack(terms).sum(0)

    @staticmethod
    def partials(p: Tensor, s: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, v = p.tanh(), sech2(p)
        total = torch.addcmul(h * h, v, s)
        lost = total < torch.finfo(total.dtype).tiny
        ds = torch.where(lost, 0, v / torch.where(lost, 1, total))
        return 2 * h * (1 - s) * ds, ds, lost.to(p.dtype)


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


class _Wind(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, t: Tensor) -> Tensor:
        p = _units_first(a)
        later = p
        for unit, sent in zip(p.unbind(), _sent(t), strict=False):
            later = later[1:]
            later.addcmul_(sent, unit.tanh())
        return _units_last(p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], output)
        ctx.save_for_forward(inputs[1], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        t, p = ctx.saved_tensors
        h = p.tanh()
        adjoint = _Solve.apply(grad, 1 - h * h, t, True)
        return adjoint, _outer(h, adjoint)

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dt: Tensor | None) -> Tensor:
        t, p = ctx.saved_tensors
        h = p.tanh()
        rhs = torch.zeros_like(p) if da is None else da
        if dt is not None:
            rhs = rhs + h @ dt.triu(1)
        return _Solve.apply(rhs, 1 - h * h, t, False)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return _unfold(info, _Wind.apply(*_fold(info, in_dims, tensors)))


class _Unwind(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, t: Tensor, s: Tensor) -> Tensor:
        p = _units_first(a)
        sent = _sent(t)
        for j, (unit, slope) in enumerate(zip(p.unbind(), s.t().unsqueeze(1), strict=True)):
            unit.copy_(tanh_root(unit, slope))
            if j < len(sent):
                p[j + 1 :].addcmul_(sent[j], unit.tanh(), value=-1)
        return _units_last(p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:], output)
        ctx.save_for_forward(*inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t, s, p = ctx.saved_tensors
        h, slope, det = _slopes(p, s)
        adjoint = _Solve.apply(grad / det, -slope / det, t, True)
        return adjoint, -_outer(h, adjoint), -(h * adjoint).sum(1)

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dt: Tensor | None, ds: Tensor | None) -> Tensor:
        t, s, p = ctx.saved_tensors
        h, slope, det = _slopes(p, s)
        rhs = torch.zeros_like(p) if da is None else da
        if dt is not None:
            rhs = rhs - h @ dt.triu(1)
        if ds is not None:
            rhs = rhs - ds.unsqueeze(1) * h
        return _Solve.apply(rhs, -slope / det, t, False) / det

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return _unfold(info, _Unwind.apply(*_fold(info, in_dims, tensors)))


def _slopes(p: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h, slope = p.tanh(), sech2(p)
    return h, slope, torch.addcmul(h * h, slope, s.unsqueeze(1))


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


def _fold(info: Any, in_dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Fold a vmapped dimension into the parameter sets."""
    folded = []
    for x, dim in zip(tensors, in_dims, strict=True):
        x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        folded.append(x.flatten(0, 1))
    return folded


def _unfold(info: Any, x: Tensor) -> tuple[Tensor, int]:
    return x.unflatten(0, (info.batch_size, x.shape[0] // info.batch_size)), 0
