"""The scalar recurrence behind planar chains and Sylvester inverses.

K tanh units feed one another: unit k receives a_k plus what the units before it send,

    wind:    p_k = a_k + Σ_{j<k} T_jk tanh(p_j)
    unwind:  p_k + (s_k − 1) tanh(p_k) = a_k − Σ_{j<k} T_jk tanh(p_j)        (s_k > 0: increasing)

The derivative of either is a triangular linear system, so the backward pass is one recurrence in the
other direction, and so is the backward pass of that: :class:`_Solve` differentiates into itself.

Layout: a ``[K, R, G]``, T ``[K, K, G]`` (source, target; strictly upper triangular) and s ``[K, G]``, where G
counts parameter sets and R the points that share a set. Unit first, so that each step is one
multiply-add on contiguous rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varflow.flows._root import tanh_root


def wind(a: Tensor, t: Tensor) -> Tensor:
    """p with p_k = a_k + Σ_{j<k} T_jk tanh(p_j). O(K²) multiply-adds a point, K steps."""
    if torch.compiler.is_compiling():
        return _wind_unrolled(a, t)
    return _Wind.apply(a, t)  # type: ignore[no-untyped-call, no-any-return]


def unwind(a: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """p with p_k + (s_k − 1) tanh(p_k) = a_k − Σ_{j<k} T_jk tanh(p_j): K scalar roots in turn."""
    return _Unwind.apply(a, t, s)  # type: ignore[no-untyped-call, no-any-return]


def sech2(p: Tensor) -> Tensor:
    """1 − tanh²(p) without cancellation, smooth at 0."""
    q = 2 * p
    return 4 * (torch.sigmoid(q) * torch.sigmoid(-q))


def log_mean(w: Tensor, v: Tensor, s: Tensor, log_s: Tensor) -> Tensor:
    """log(w + v·s) for weights w + v = 1 and s > 0: the determinant of planar, radial and Sylvester steps.

    Every term is positive, so nothing cancels. ``log_s`` replaces the sum where it underflows (w and s
    both below the smallest normal number); it has to be exact only there.
    """
    total = torch.addcmul(w, v, s)
    lost = total < torch.finfo(total.dtype).tiny
    # The inner where keeps log(0), and so an infinite derivative, out of the graph.
    return torch.where(lost, log_s, torch.where(lost, 1, total).log())


def _wind_unrolled(a: Tensor, t: Tensor) -> Tensor:
    """The recurrence in plain operations, for the compiler to fuse."""
    sent: list[Tensor] = []
    received: list[Tensor] = []
    for k, p in enumerate(a.unbind(0)):
        for j in range(k):
            p = torch.addcmul(p, t[j, k], sent[j])
        received.append(p)
        sent.append(p.tanh())
    return torch.stack(received)


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """Σ_r x_jrg y_krg, [K, K, G]."""
    if x.shape[1] == 1:
        return x * y.transpose(0, 1)
    return torch.einsum("jrg,krg->jkg", x, y)


def _fold(info: Any, in_dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Fold a vmapped dimension into the parameter sets."""
    folded = []
    for x, dim in zip(tensors, in_dims, strict=True):
        if dim is None:
            x = x.unsqueeze(-2).expand(*x.shape[:-1], info.batch_size, x.shape[-1])
        else:
            x = x.movedim(dim, -2)
        folded.append(x.flatten(-2))
    return folded


def _unfold(info: Any, x: Tensor) -> tuple[Tensor, int]:
    return x.unflatten(-1, (info.batch_size, x.shape[-1] // info.batch_size)), x.ndim - 1


class _Wind(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, t: Tensor) -> Tensor:
        p = a.clone(memory_format=torch.contiguous_format)
        t = t.unsqueeze(2)
        for j in range(len(p) - 1):
            p[j + 1 :].addcmul_(t[j, j + 1 :], p[j].tanh())
        return p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], output)
        ctx.save_for_forward(inputs[1], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        t, p = ctx.saved_tensors
        h = p.tanh()
        adjoint = _Solve.apply(grad, 1 - h * h, t, True)
        return adjoint, _outer(h, adjoint)

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dt: Tensor | None) -> Tensor:  # type: ignore[override]
        t, p = ctx.saved_tensors
        h = p.tanh()
        rhs = torch.zeros_like(p) if da is None else da
        if dt is not None:
            rhs = rhs + torch.einsum("jkg,jrg->krg", dt, h)
        return _Solve.apply(rhs, 1 - h * h, t, False)  # type: ignore[no-any-return]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return _unfold(info, _Wind.apply(*_fold(info, in_dims, tensors)))


class _Unwind(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, t: Tensor, s: Tensor) -> Tensor:
        p = a.clone(memory_format=torch.contiguous_format)
        t, s = t.unsqueeze(2), s.unsqueeze(1)
        for j in range(len(p)):
            p[j].copy_(tanh_root(p[j], s[j]))
            p[j + 1 :].addcmul_(t[j, j + 1 :], p[j].tanh(), value=-1)
        return p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:], output)
        ctx.save_for_forward(*inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        t, s, p = ctx.saved_tensors
        h, slope, det = _slopes(p, s)
        adjoint = _Solve.apply(grad / det, -slope / det, t, True)
        return adjoint, -_outer(h, adjoint), -(h * adjoint).sum(1)

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, da: Tensor | None, dt: Tensor | None, ds: Tensor | None
    ) -> Tensor:
        t, s, p = ctx.saved_tensors
        h, slope, det = _slopes(p, s)
        rhs = torch.zeros_like(p) if da is None else da
        if dt is not None:
            rhs = rhs - torch.einsum("jkg,jrg->krg", dt, h)
        if ds is not None:
            rhs = rhs - ds.unsqueeze(1) * h
        return _Solve.apply(rhs, -slope / det, t, False) / det  # type: ignore[no-any-return]

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
        x = r.clone(memory_format=torch.contiguous_format)
        t = t.unsqueeze(2)
        if not transposed:
            for j in range(len(x) - 1):
                x[j + 1 :].addcmul_(t[j, j + 1 :], x[j] * c[j])
            return x
        received = torch.zeros_like(x)
        for k in range(len(x) - 1, 0, -1):
            received[:k].addcmul_(t[:k, k], x[k])
            x[k - 1].addcmul_(c[k - 1], received[k - 1])
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, c, t, ctx.transposed = inputs
        ctx.save_for_backward(c, t, output)
        ctx.save_for_forward(c, t, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        c, t, x = ctx.saved_tensors
        adjoint = _Solve.apply(grad, c, t, not ctx.transposed)
        source, target = (adjoint, x) if ctx.transposed else (x, adjoint)
        dc = source * torch.einsum("jkg,krg->jrg", t, target)
        return adjoint, dc, _outer(c * source, target), None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, dr: Tensor | None, dc: Tensor | None, dt: Tensor | None, _: None
    ) -> Tensor:
        c, t, x = ctx.saved_tensors
        rhs = torch.zeros_like(x) if dr is None else dr
        if ctx.transposed:
            if dc is not None:
                rhs = rhs + dc * torch.einsum("jkg,krg->jrg", t, x)
            if dt is not None:
                rhs = rhs + c * torch.einsum("jkg,krg->jrg", dt, x)
        else:
            if dc is not None:
                rhs = rhs + torch.einsum("jkg,jrg->krg", t, dc * x)
            if dt is not None:
                rhs = rhs + torch.einsum("jkg,jrg->krg", dt, c * x)
        return _Solve.apply(rhs, c, t, ctx.transposed)  # type: ignore[no-any-return]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[Tensor, int]:
        folded = _fold(info, in_dims[:3], inputs[:3])
        return _unfold(info, _Solve.apply(*folded, inputs[3]))
