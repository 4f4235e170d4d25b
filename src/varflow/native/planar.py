"""Planar chains by compiled code, as operations that autograd, ``torch.func`` and the compiler understand.

    z, u, w, b            u, w, b of all sets apart:     u [*sets, K, D], z [*sets, *points, D]
    z, packed             one tensor for the three:      packed [*sets, K (2D + 1)], z [*points, *sets, D]

The backward pass of the first order is one call. Derivatives of it, for which nobody waits, are those of the
torch expression (``in_torch``), and so is everything of forward mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from varflow import native
from varflow.native.eligible import usable as usable

#: The torch expression: (z, parameters, K, shift) → (z′, ladj).
InTorch = Callable[[Tensor, tuple[Tensor, ...], int, float], tuple[Tensor, Tensor]]


def push(
    in_torch: InTorch, z: Tensor, parameters: tuple[Tensor, ...], length: int, shift: float
) -> tuple[Tensor, Tensor]:
    """z′ and ladj."""
    if torch.compiler.is_compiling():
        out, ladj = torch.ops.varflow.planar(z, list(parameters), length, shift)
        return out, ladj
    function = _Push if torch._C._are_functorch_transforms_active() else _PushAlone
    out, ladj = function.apply(in_torch, length, shift, z, *parameters)
    return out, ladj


class _Push(torch.autograd.Function):
    @staticmethod
    def forward(
        in_torch: InTorch, length: int, shift: float, z: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        return native.calls_in_use().push(z, parameters, length, shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.settings = inputs[:3]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_ladj: Tensor) -> tuple[Any, ...]:
        z, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            grads = _Back.apply(*ctx.settings, grad_out, grad_ladj, z, *parameters)
        else:
            _, length, shift = ctx.settings
            wanted = any(ctx.needs_input_grad[4:])
            grads = native.calls_in_use().back(
                z, tuple(parameters), grad_out, grad_ladj, length, shift, wanted
            )
            if not wanted:
                grads = (*grads, *[None] * len(parameters))
        return None, None, None, *grads

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        settings, tensors = inputs[:3], inputs[3:]
        (z,), parameters, at = _fold(info, in_dims[3:], tensors, 1)
        return _Push.apply(*settings, z, *parameters), (at, at)


class _PushAlone(torch.autograd.Function):
    """:class:`_Push` where no function transform is active: torch asks less of it, 12 µs a call."""

    @staticmethod
    def forward(
        ctx: Any, in_torch: InTorch, length: int, shift: float, z: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.settings = (in_torch, length, shift)
        ctx.save_for_backward(z, *parameters)
        return native.calls_in_use().push(z, parameters, length, shift)

    backward = _Push.backward


class _Back(torch.autograd.Function):
    """The gradients that :class:`_Push` sends back, as a function of everything that they depend on."""

    @staticmethod
    def forward(
        in_torch: InTorch,
        length: int,
        shift: float,
        grad_out: Tensor,
        grad_ladj: Tensor,
        z: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        return native.calls_in_use().back(z, parameters, grad_out, grad_ladj, length, shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.settings = inputs[:3]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        in_torch, length, shift = ctx.settings

        def first_order(grad_out: Tensor, grad_ladj: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            def chain(z: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
                return in_torch(z, parameters, length, shift)

            back = torch.func.vjp(chain, *inputs)[1]
            sent: tuple[Tensor, ...] = back((grad_out, grad_ladj))
            return sent

        back = torch.func.vjp(first_order, *ctx.saved_tensors)[1]
        return None, None, None, *back(grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        settings, tensors = inputs[:3], inputs[3:]
        # Every example has its own gradient, so that shared parameters stand once for each.
        points, parameters, at = _fold(info, in_dims[3:], tensors, 3, own=True)
        grads = _Back.apply(*settings, *points, *parameters)
        return grads, (at, *[0] * len(parameters))


def _fold(
    info: Any, in_dims: tuple[Any, ...], tensors: tuple[Tensor, ...], count: int, own: bool = False
) -> tuple[list[Tensor], list[Tensor], int]:
    """A vmapped dimension becomes one of sets, or of points where all share the parameters.

    The first ``count`` tensors follow the points, the last of them is z. Also where the dimension went.
    """

    def first(x: Tensor, dim: int | None) -> Tensor:
        return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

    points = [first(x, dim) for x, dim in zip(tensors[:count], in_dims[:count], strict=True)]
    parameters, dims = list(tensors[count:]), in_dims[count:]
    packed = len(parameters) == 1
    shared = all(dim is None for dim in dims) and not own
    sets = _sets(parameters[0], dims[0], packed)
    if not shared:
        parameters = [first(x, dim) for x, dim in zip(parameters, dims, strict=True)]
    z = points[-1]
    # Points come before packed sets, and after sets whose parameters are apart.
    if packed:
        at = 0 if shared else z.dim() - 2 - sets
    else:
        at = sets if shared else 0
    return [x.movedim(0, at) for x in points], parameters, at


def _sets(u: Tensor, dim: int | None, packed: bool) -> int:
    """How many dimensions of sets there were before the vmapped one."""
    return u.dim() - (dim is not None) - (1 if packed else 2)


# What the compiler sees: one operation forward and one backward.
_library = torch.library.Library("varflow", "FRAGMENT")
_library.define(
    "planar(Tensor z, Tensor[] parameters, int length, float shift) -> (Tensor, Tensor)"
)
_library.define(
    "planar_back(Tensor z, Tensor[] parameters, Tensor grad_out, Tensor grad_ladj, int length, float shift)"
    " -> Tensor[]"
)


def _push_operator(
    z: Tensor, parameters: list[Tensor], length: int, shift: float
) -> tuple[Tensor, Tensor]:
    return native.calls_in_use().push(z, tuple(parameters), length, shift)


def _back_operator(
    z: Tensor,
    parameters: list[Tensor],
    grad_out: Tensor,
    grad_ladj: Tensor,
    length: int,
    shift: float,
) -> list[Tensor]:
    return list(
        native.calls_in_use().back(z, tuple(parameters), grad_out, grad_ladj, length, shift)
    )


_library.impl("planar", _push_operator, "CPU")
_library.impl("planar_back", _back_operator, "CPU")


@torch.library.register_fake("varflow::planar", lib=_library)
def _push_shapes(
    z: Tensor, parameters: list[Tensor], length: int, shift: float
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), z.new_empty(z.shape[:-1])


@torch.library.register_fake("varflow::planar_back", lib=_library)
def _back_shapes(
    z: Tensor,
    parameters: list[Tensor],
    grad_out: Tensor,
    grad_ladj: Tensor,
    length: int,
    shift: float,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (z, *parameters)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z, parameters, *ctx.settings = inputs
    ctx.save_for_backward(z, *parameters)


def _operator_backward(ctx: Any, grad_out: Tensor, grad_ladj: Tensor) -> tuple[Any, ...]:
    z, *parameters = ctx.saved_tensors
    grad_z, *grads = torch.ops.varflow.planar_back(
        z, parameters, grad_out, grad_ladj, *ctx.settings
    )
    return grad_z, grads, None, None


torch.library.register_autograd(
    "varflow::planar", _operator_backward, setup_context=_save, lib=_library
)


@torch.library.register_vmap("varflow::planar", lib=_library)
def _push_batched(
    info: Any, in_dims: tuple[Any, ...], z: Tensor, parameters: list[Tensor], length: int, shift: float
) -> tuple[Any, Any]:
    dims = (in_dims[0], *_each(in_dims[1], parameters))
    (z,), parameters, at = _fold(info, dims, (z, *parameters), 1)
    return torch.ops.varflow.planar(z, parameters, length, shift), (at, at)


@torch.library.register_vmap("varflow::planar_back", lib=_library)
def _back_batched(
    info: Any,
    in_dims: tuple[Any, ...],
    z: Tensor,
    parameters: list[Tensor],
    grad_out: Tensor,
    grad_ladj: Tensor,
    length: int,
    shift: float,
) -> tuple[Any, Any]:
    dims = (in_dims[2], in_dims[3], in_dims[0], *_each(in_dims[1], parameters))
    tensors = (grad_out, grad_ladj, z, *parameters)
    (grad_out, grad_ladj, z), parameters, at = _fold(info, dims, tensors, 3, own=True)
    grads = torch.ops.varflow.planar_back(z, parameters, grad_out, grad_ladj, length, shift)
    return grads, [at, *[0] * len(parameters)]


def _each(dims: Any, parameters: list[Tensor]) -> tuple[Any, ...]:
    """The batched dimension of each of a list's tensors."""
    return tuple(dims) if isinstance(dims, (list, tuple)) else (dims,) * len(parameters)
