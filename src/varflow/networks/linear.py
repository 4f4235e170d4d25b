"""x Wᵀ + b by the faster of the two CPU libraries that torch carries.

torch sends float32 products to its BLAS, usually MKL, which leaves the wide vector units of some
processors idle: on an AMD EPYC the same product took oneDNN, the library behind torch's
convolutions, half the time. Which one is faster is measured once per process, on one thread, in a few
milliseconds; results differ in the last bits, so a run stores the choice and a resumed run keeps it.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from varflow.core.errors import unknown
from varflow.core.exporting import exporting

Library = Literal["blas", "onednn"]

#: Below so many multiply-adds a call is overhead, and BLAS has less of it.
_SMALL = 1 << 20
#: oneDNN has to be so much faster to be chosen: a tie stays where torch put it.
_MARGIN = 1.25
_chosen: Library | None = None


def library() -> Library:
    """The library in use; measured at the first call."""
    global _chosen
    if _chosen is None:
        _chosen = _measure()
    return _chosen


def use_library(name: Library) -> None:
    """Use ``name`` from here on, e.g. what an interrupted run had used.

    Raises:
        SpecError: no such library.
    """
    global _chosen
    if name not in ("blas", "onednn"):
        raise unknown("library", str(name), ["blas", "onednn"])
    _chosen = name if name == "blas" or _available() else "blas"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x ``[..., I]``, W ``[O, I]``, b ``[O]`` → x Wᵀ + b ``[..., O]``, as ``torch.nn.functional.linear``."""
    if not _goes_to_onednn(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    return _product(rows, weight, bias).reshape(*x.shape[:-1], weight.shape[0])


def rectified(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """max(0, x Wᵀ + b), as the compiler had better see it.

    Left alone it keeps the signs of the pre-activations as bytes, and writes those one at a time: 1 ms of a step
    of the dense VAE. Here the sign is read off the output, which the next layer keeps anyway.
    """
    if not torch.compiler.is_compiling() or not _goes_to_onednn(x, weight):
        return F.relu(linear(x, weight, bias))
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = torch.ops.varflow.rectify.default(rows, weight, bias)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def outer_products(above: Tensor, below: Tensor) -> Tensor:
    """Σ over rows of above ⊗ below for each of T layers: ``[T, N, O]`` and ``[T, N, I]`` → ``[T, O, I]``.

    The gradients of T weights at once, without a derivative of its own.
    """
    if not _goes_to_onednn(above[0].t(), below[0].t()):
        return torch.bmm(above.mT, below)
    # oneDNN's entry has no batched form.
    return torch.stack([linear(a.t(), b.t()) for a, b in zip(above, below, strict=True)])


def _goes_to_onednn(x: Tensor, weight: Tensor) -> bool:
    # A graph that leaves torch knows no operator of ours, and serves any number of rows: their count decides nothing.
    if torch.compiler.is_compiling() and exporting():
        return False
    return not (
        x.dtype is not torch.float32
        or weight.dtype is not torch.float32
        or x.device.type != "cpu"
        or x.numel() * weight.shape[0] < _SMALL
        or torch.is_autocast_enabled("cpu")
        or library() == "blas"
    )


class Linear(nn.Linear):
    """``torch.nn.Linear``, its product by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """A parameter drawn as torch draws those of a linear layer: uniform on ±1/√fan_in."""
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


# An operator of our own around torch's, which the compiler takes for a step of an inference with constant
# weights.
_library = torch.library.Library("varflow", "DEF")
_library.define("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not x.numel():
        return F.linear(x, weight, bias)
    # oneDNN reads the bias as if its numbers lay side by side.
    bias = None if bias is None else bias.contiguous()
    out: Tensor = _onednn(_dense(x), _dense(weight), bias, "none", [], "")
    return out


_library.impl("product", _multiply, "CPU")

_library.define("rectify(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.define("unrectify(Tensor grad, Tensor out) -> Tensor")
_library.impl("rectify", lambda x, weight, bias: _multiply(x, weight, bias).relu_(), "CPU")
_library.impl("unrectify", lambda grad, out: torch.ops.aten.threshold_backward(grad, out, 0), "CPU")
torch.library.register_fake("varflow::unrectify", lambda grad, out: torch.empty_like(out), lib=_library)


@torch.library.register_fake("varflow::rectify", lib=_library)
@torch.library.register_fake("varflow::product", lib=_library)
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_vmap("varflow::product", lib=_library)
def _batched(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    x, weight, bias = (
        t if dim is None else t.movedim(dim, 0) for t, dim in zip(inputs, in_dims, strict=True)
    )
    if in_dims[1] is None and in_dims[2] is None:
        rows: Tensor = torch.ops.varflow.product(x.flatten(0, 1), weight, bias)
        return rows.unflatten(0, x.shape[:2]), 0
    # One batched product; oneDNN's entry has no batched form.
    out = x @ weight.mT
    if bias is not None:
        out = out + (bias if in_dims[2] is None else bias.unsqueeze(1))
    return (out, 0) if out.dim() == 3 else (out.expand(info.batch_size, *out.shape), 0)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for x ``[N, I]``.

    An ordinary step goes straight to oneDNN, and to the ``apply`` that is written in C: what only other callers
    need (an operator's dispatch through Python, a signature read anew each time) was 7 % of a training step.
    """
    watched = torch.is_grad_enabled() or forward_ad._current_level >= 0
    # The compiler refuses functions with a forward-mode derivative, and reads the operator.
    if torch.compiler.is_compiling():
        return torch.ops.varflow.product.default(x, weight, bias)
    if torch._C._are_functorch_transforms_active():
        operator = _Product.apply if watched else torch.ops.varflow.product.default
        return operator(x, weight, bias)
    return _apply(x, weight, bias) if watched else _multiply(x, weight, bias)


def _gradients(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    """Those of x, weight and bias that are wanted, from that of the product."""
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad
    return (
        _product(grad, weight.t()) if wants_x else None,
        _product(grad.t(), x.t()) if wants_weight else None,
        grad.sum(0) if wants_bias else None,
    )


class _Product(torch.autograd.Function):
    """:func:`_product`; its derivatives are products again, and differentiate the same way."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch._C._are_functorch_transforms_active():
            return torch.ops.varflow.product.default(x, weight, bias)
        return _multiply(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        out = x.new_zeros(x.shape[0], weight.shape[0])
        if x_t is not None:
            out = out + F.linear(x_t, weight)
        if weight_t is not None:
            out = out + F.linear(x, weight_t)
        return out if bias_t is None else out + bias_t


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


#: ``_Product.apply`` less its reading of the signature, for calls that no transformation looks at.
_apply: Any = super(torch.autograd.Function, _Product).apply

torch.library.register_autograd(
    "varflow::product", _Product.backward, setup_context=_save, lib=_library
)


def _save_rectified(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2], output)


def _rectified_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, out = ctx.saved_tensors
    grad = torch.ops.varflow.unrectify.default(grad, out)
    return _gradients(ctx, grad, x, weight)


torch.library.register_autograd(
    "varflow::rectify", _rectified_back, setup_context=_save_rectified, lib=_library
)


def _dense(matrix: Tensor) -> Tensor:
    """As it is where rows or columns lie side by side; a copy of anything else."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_onednn: Any = torch.ops.mkldnn._linear_pointwise.default if _available() else None


@torch.no_grad()
def _measure() -> Library:
    if not _available():
        return "blas"
    x, weight, bias = torch.ones(128, 400), torch.ones(400, 400), torch.ones(400)
    try:
        products: list[Any] = [_multiply, F.linear]
        best = [float("inf"), float("inf")]
        # In turn, and the best of each: the machine may be busy.
        for _ in range(12):
            for number, product in enumerate(products):
                began = time.perf_counter()
                product(x, weight, bias)
                best[number] = min(best[number], time.perf_counter() - began)
    except (RuntimeError, NotImplementedError):
        return "blas"
    return "onednn" if best[0] * _MARGIN < best[1] else "blas"
