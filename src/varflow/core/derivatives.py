"""Which derivatives a call may be asked for: functions that write theirs out serve plain gradients alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad


def plain_gradient(x: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether an eager step asks for a plain gradient: of tensors of one dtype on one device, x among them."""
    return (
        not torch.compiler.is_compiling()
        and x.numel() > 0
        and torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in tensors)
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and torch.amp.is_autocast_available(x.device.type)
        and not torch.is_autocast_enabled(x.device.type)
        and all(tensor.dtype == x.dtype and tensor.device == x.device for tensor in tensors)
    )
