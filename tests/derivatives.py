"""Derivatives of a flow's direction, for comparing two ways of computing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def derivatives(
    call: Callable[[], tuple[Tensor, Tensor]], z: Tensor, wanted: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """(z′, ladj) of a call, its weighted gradients, those of z alone, and the gradients of gradients.

    A constant ladj has no gradient: only outputs that have one are differentiated.
    """
    found = list(call())
    assert found[1].shape == found[0].shape[:-1]

    def grad(inputs: Sequence[Tensor], **options: bool) -> tuple[Tensor, ...]:
        outputs = [(out, weight) for out, weight in zip(call(), weights, strict=True) if out.requires_grad]
        return torch.autograd.grad([out for out, _ in outputs], inputs, [weight for _, weight in outputs], **options)

    once = grad(wanted, create_graph=True)
    twice = torch.autograd.grad(sum(each.square().sum() for each in once), wanted)
    return [*found, *grad(wanted), *grad([z]), *once, *twice]
