"""The Bernoulli log-likelihood by compiled code: one call gives the sums and what their gradient needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varflow import native


def usable(x: Tensor, logits: Tensor) -> bool:
    """Whether :func:`log_prob` takes these; the same rule for each row, whatever rows are beside it.

    Dense tensors on the CPU; the shape of x is the shape of the logits, or the end of it. Not where torch's
    compiler sees it: what that makes of the torch expression is one loop too.
    """
    lead = logits.dim() - x.dim()
    return (
        not torch.compiler.is_compiling()
        and lead >= 0
        and logits.shape[lead:] == x.shape
        and logits.is_contiguous()
        and x.is_contiguous()
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch._C._are_functorch_transforms_active()
        and native.usable(x, logits)
    )


def log_prob(x: Tensor, logits: Tensor, dims: int) -> Tensor:
    """Σ x l − softplus(l) over the last ``dims`` dimensions."""
    if logits.requires_grad and torch.is_grad_enabled():
        out: Tensor = _Sums.apply(x, logits, dims)
        return out
    return native.calls_in_use().bernoulli(x, logits, dims, slopes=False)[0]


class _Sums(torch.autograd.Function):
    """The slopes x − σ(l) are made together with the sums: they share the exponential, the costly part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, dims: int) -> Tensor:
        out, slopes = native.calls_in_use().bernoulli(x, logits, dims, slopes=True)
        ctx.dims = dims
        ctx.save_for_backward(x, logits, slopes)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, logits, slopes = ctx.saved_tensors
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            # Derivatives of this one are torch's.
            slopes = x - torch.sigmoid(logits)
        return None, grad[(..., *[None] * ctx.dims)] * slopes, None
