"""Which tensors compiled code takes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from varflow import native


def usable(*tensors: Tensor) -> bool:
    """Whether compiled code takes these: dense CPU tensors of one dtype, float32 or float64, none empty."""
    dtype = tensors[0].dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        return False
    for x in tensors:
        if not x.is_cpu or x.dtype is not dtype or not x.numel():
            return False
    if torch.compiler.is_compiling():
        return _in_use_for_compiler()
    return (
        all(type(x) in _PLAIN for x in tensors)
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._get_tracing_state() is None
        and native.in_use()
    )


_PLAIN = (Tensor, torch.nn.Parameter)


@torch.compiler.assume_constant_result
def _in_use_for_compiler() -> bool:
    return native.in_use()
