"""Compiled forms of what training and sampling repeat most, where a C++ compiler is at hand.

Small flows are bound by the number of torch operations, not by arithmetic; one call of compiled code
replaces about forty of them. The Bernoulli likelihood is bound by memory: one pass replaces four, or nine
with the gradient. A masked autoregressive network that runs one feature after the other makes thousands
of products of a few numbers, which are one call too. Of a planar fit to an energy in the plane many updates,
optimizer included, are one call. The code is compiled when first used (about six seconds, once per machine)
and agrees with the torch expression up to rounding. Without a compiler, or with ``VARFLOW_NATIVE=0`` in the
environment, everything runs in torch, as it does on other devices.

Each of ``native.planar``, ``native.bernoulli`` and ``native.made`` has ``usable``, which says of tensors whether
compiled code takes them, and the function itself. What they compute stands in torch beside each caller: it is what
a reader meets first, what tests compare with, and what runs elsewhere.

A run stores :func:`in_use` and a resumed run passes it to :func:`use`, because the last bits differ.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.autograd import forward_ad

from varflow.core.exporting import exporting
from varflow.native import build
from varflow.native.calls import Calls

_calls: Calls | None = None
_why_not: str | None = None
_wanted = True


def available() -> bool:
    """Whether the compiled code can be used here; compiles it at the first call."""
    return loaded() is not None


def reason() -> str:
    """Why not, in one sentence; empty where it is available."""
    loaded()
    return _why_not or ""


def absence() -> str:
    """What to tell the user of it: nothing where there is compiled code, or where it was turned off on purpose."""
    if available() or os.environ.get("VARFLOW_NATIVE") == "0":
        return ""
    return (
        f"note: flows and the Bernoulli likelihood run in torch alone, up to a few times slower, because there is no "
        f"compiled code here ({reason()})"
    )


def use(wanted: bool) -> None:
    """Use the compiled code from here on, where it is available, or do not."""
    global _wanted
    _wanted = bool(wanted)


def in_use() -> bool:
    """Whether flows on the CPU run compiled code; compiles it at the first call."""
    return _wanted and available()


def usable(*tensors: Tensor) -> bool:
    """Whether compiled code takes these: dense CPU tensors of one dtype, float32 or float64, none empty."""
    # A graph that leaves torch knows none of our functions.
    if torch.compiler.is_compiling() and exporting():
        return False
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
        and in_use()
    )


_PLAIN = (Tensor, torch.nn.Parameter)


def _in_use_for_compiler() -> bool:
    return in_use()


# What torch.compiler.assume_constant_result does; that function imports the compiler, more than a second.
_in_use_for_compiler._dynamo_marked_constant = True  # type: ignore[attr-defined]


def loaded() -> Calls | None:
    """The loaded functions, or None."""
    global _calls, _why_not
    if _calls is None and _why_not is None:
        try:
            if os.environ.get("VARFLOW_NATIVE") == "0":
                raise build.BuildError("turned off by VARFLOW_NATIVE=0")
            # Calls tries its functions on tensors. On a thread of its own these are plain ones, also when the first
            # flow of a process runs under torch.func.vmap or grad.
            with ThreadPoolExecutor(1) as thread:
                _calls = thread.submit(lambda: Calls(build.load())).result()
        except build.BuildError as error:
            _why_not = str(error)
    return _calls


def calls_in_use() -> Calls:
    """The loaded functions, where :func:`in_use` was asked before."""
    calls = loaded()
    if calls is None:
        raise RuntimeError(f"varflow.native: {reason()}")
    return calls
