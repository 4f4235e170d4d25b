"""Log-determinants that are weighted means of 1 and a positive number: planar, radial and Sylvester steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sech2(p: Tensor) -> Tensor:
    """1 − tanh²(p) without cancellation, smooth at 0."""
    q = 2 * p
    return 4 * (torch.sigmoid(q) * torch.sigmoid(-q))


def log_mean(w: Tensor, v: Tensor, s: Tensor, log_s: Tensor) -> Tensor:
    """log(w + v·s) for weights w + v = 1 and s > 0: what the determinants of tanh and radial units are made of.

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
