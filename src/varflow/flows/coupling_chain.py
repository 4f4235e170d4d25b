"""All additive couplings of a flow in one function with the derivative written out: what training steps take.

:class:`varflow.flows.coupling.AdditiveCoupling` defines it, a step after the other in plain operations. Here the
activations of all steps lie in one tensor a layer, so that the gradient of a layer's weights is one batched product
for all steps, and nothing is stacked afterwards. Derivatives of derivatives go through the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from varflow.core.derivatives import plain_gradient
from varflow.networks.linear import linear, outer_products

#: (z, shift of the first layer, weights and biases of the layers) → z′.
Definition = Callable[..., Tensor]


def usable(z: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether a plain gradient is asked for, of points with an even number of features."""
    return z.shape[-1] % 2 == 0 and plain_gradient(z, tensors)


def push(definition: Definition, z: Tensor, shift: Tensor, *layers: Tensor) -> Tensor:
    """z′ of z, where :func:`usable`.

    Args:
        definition: the same in plain operations, of what follows.
        z: points ``[R, D]``, D even.
        shift: what is added to the first hidden layers, their biases too, ``[R or 1, length · width]``.
        layers: the weight of the first layer, then weight and bias of each other one, those of all steps stacked.
    """
    out: Tensor = _Push.apply(definition, z, shift, *layers)
    return out


class _Push(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, definition: Definition, z: Tensor, shift: Tensor, *layers: Tensor) -> Tensor:
        first, weights, biases = layers[0], layers[1::2], layers[2::2]
        length, rows = len(first), len(z)
        halves = [z[:, 0::2], z[:, 1::2]]
        kept = z.new_empty(length, rows, z.shape[-1] // 2)
        hidden = [z.new_empty(length, rows, weight.shape[-1]) for weight in weights]
        # Cut into steps once: indexing costs as much as a small product.
        shifts = shift.view(len(shift), length, -1).unbind(1)
        stays_of, weights_of, *others = (each.unbind(0) for each in (kept, first, *hidden, *weights, *biases))
        hidden_of, others = others[: len(hidden)], others[len(hidden) :]
        inner = list(zip(others[: len(weights)], others[len(weights) :], strict=True))
        for t in range(length):
            stays, moves = t % 2, 1 - t % 2
            x = stays_of[t].copy_(halves[stays])
            h = torch.add(linear(x, weights_of[t]), shifts[t], out=hidden_of[0][t]).relu_()
            for (weight, bias), out in zip(inner[:-1], hidden_of[1:], strict=True):
                h = torch.clamp_min(linear(h, weight[t], bias[t]), 0, out=out[t])
            weight, bias = inner[-1]
            halves[moves] = halves[moves] + linear(h, weight[t], bias[t])
        ctx.definition, ctx.layers = definition, len(layers)
        ctx.save_for_backward(z, shift, *layers, kept, *hidden)
        return torch.stack(halves, -1).flatten(-2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        given, (kept, *hidden) = ctx.saved_tensors[: ctx.layers + 2], ctx.saved_tensors[ctx.layers + 2 :]
        if torch.is_grad_enabled():
            wanted = [tensor for tensor, needs in zip(given, ctx.needs_input_grad[1:], strict=True) if needs]
            found = iter(torch.autograd.grad(ctx.definition(*given), wanted, grad, create_graph=True))
            return (None, *(next(found) if needs else None for needs in ctx.needs_input_grad[1:]))
        _, shift, first, *others = given
        weights = others[::2]
        halves = [grad[:, 0::2], grad[:, 1::2]]
        last = torch.empty_like(kept)
        deltas = [torch.empty_like(h) for h in hidden]
        last_of, back_of = last.unbind(0), first.mT.unbind(0)
        layers = [(w.mT.unbind(0), h.unbind(0), d.unbind(0)) for w, h, d in zip(weights, hidden, deltas, strict=True)]
        for t in reversed(range(len(first))):
            stays, moves = t % 2, 1 - t % 2
            delta = last_of[t].copy_(halves[moves])
            for weight, h, found in reversed(layers):
                # Whether a unit was active is read off its value.
                back = linear(delta, weight[t])
                delta = torch.ops.aten.threshold_backward.grad_input(back, h[t], 0, grad_input=found[t])
            halves[stays] = halves[stays] + linear(delta, back_of[t])
        found_shift = deltas[0].transpose(0, 1).flatten(1)
        if len(shift) == 1:
            found_shift = found_shift.sum(0, keepdim=True)
        found_layers = [outer_products(deltas[0], kept)]
        for above, below in zip([*deltas[1:], last], hidden, strict=True):
            found_layers += [outer_products(above, below), above.sum(1)]
        return (None, torch.stack(halves, -1).flatten(-2), found_shift, *found_layers)
