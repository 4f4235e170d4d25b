"""One affine autoregressive step by compiled code, feature after feature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varflow import native
from varflow.native.calls import MOST_LAYERS
from varflow.networks.made import Step, traced

#: Above it exp(bound) nears the largest float32.
_BOUND = 80.0


def usable(z: Tensor, step: Step, bound: float) -> bool:
    """Whether :func:`affine` takes these: no gradient is kept, nothing looks on, and all are plain CPU tensors."""
    return (
        not torch.is_grad_enabled()
        and not traced()
        and step.outputs == 2
        and len(step.weights) <= MOST_LAYERS
        and bound <= _BOUND
        and native.usable(z, *step.weights, *step.biases)
    )


def affine(
    step: Step, z: Tensor, batch: Sequence[int], bound: float, solve: bool
) -> tuple[Tensor, Tensor]:
    """z′ᵢ = zᵢ exp(sᵢ) + tᵢ where (sᵢ, tᵢ) see z′₍<i₎, or with ``solve`` (zᵢ − tᵢ) exp(−sᵢ); and Σ s.

    s = bound · tanh(a / bound); (a, t) are the outputs of ``step``.
    """
    first = step.biases[0]
    if first.ndim > 1:
        first = first.expand(*batch, first.shape[-1])
    return native.calls_in_use().made(
        z.expand(*batch, z.shape[-1]),
        step.weights,
        [first, *step.biases[1:]],
        step.blocks,
        bound,
        reverse=step.reverse,
        solve=solve,
    )
