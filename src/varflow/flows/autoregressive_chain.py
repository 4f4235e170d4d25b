"""All parallel passes of an autoregressive flow in one function with the derivative written out: training steps.

:class:`varflow.flows.autoregressive.InverseAutoregressive` and its dual define it, a step after the other in plain
operations. Here the activations of all steps lie in one tensor a layer, so that the gradient of a layer's weights is
one batched product for all steps, and the masks are laid over the weights and over their gradients once.
Derivatives of derivatives go through the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from varflow.networks.linear import linear, outer_products

#: (z, shift of the first layer, weights and biases of the layers) → (z′, ladj).
Definition = Callable[..., tuple[Tensor, Tensor]]


class Way(NamedTuple):
    """What is not differentiated: the masks, and which way the points go."""

    definition: Definition
    #: For each layer, 1 where a weight may be read and 0 elsewhere.
    masks: Sequence[Tensor]
    #: b of log-scale = b·tanh(a / b).
    bound: float
    #: The inverses, from the last step to the first.
    solve: bool

    @property
    def slope(self) -> float:
        """±b: what tanh(a / b) is multiplied by in the logarithm of a step's own scale."""
        return -self.bound if self.solve else self.bound

    def order(self, length: int) -> range:
        """The steps one after the other."""
        return range(length)[::-1] if self.solve else range(length)


def through(way: Way, z: Tensor, shift: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
    """(z′, ladj) of z, where :func:`varflow.core.derivatives.plain_gradient`.

    Args:
        way: masks, bound and direction, and the same in plain operations, of what follows.
        z: points ``[R, D]``.
        shift: what is added to the first hidden layers, their biases too, ``[R or 1, length · width]``.
        layers: the weight of the first layer, then weight and bias of each other one, those of all steps stacked.
    """
    out: tuple[Tensor, Tensor] = _Through.apply(way, z, shift, *layers)
    return out


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Way, z: Tensor, shift: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
        given, biases = z, layers[2::2]
        weights = [weight * mask for weight, mask in zip((layers[0], *layers[1::2]), way.masks, strict=True)]
        length, (rows, features) = len(weights[0]), z.shape
        shifts = shift.view(len(shift), length, -1)
        hidden = [z.new_empty(length, rows, weight.shape[-1]) for weight in weights[1:]]
        # A step takes ``points`` to ``moved``, which is points · scale or, solved, (points − offset) · scale.
        points, bends, scales, moved = (z.new_empty(length, rows, features) for _ in range(4))
        for t in way.order(length):
            x = points[t].copy_(_ordered(z, t))
            h = torch.add(linear(x, weights[0][t]), shifts[:, t], out=hidden[0][t]).relu_()
            for layer, (weight, bias) in enumerate(zip(weights[1:-1], biases[:-1], strict=True), 1):
                h = torch.clamp_min(linear(h, weight[t], bias[t]), 0, out=hidden[layer][t])
            raw, offset = linear(h, weights[-1][t], biases[-1][t]).chunk(2, -1)
            bend = torch.tanh(raw / way.bound, out=bends[t])
            scale = torch.mul(bend, way.slope, out=scales[t]).exp_()
            if way.solve:
                z = torch.mul(x - offset, scale, out=moved[t])
            else:
                z = torch.mul(x, scale, out=moved[t]) + offset
            z = _ordered(z, t)
        ctx.way, ctx.layers = way, len(layers)
        ctx.save_for_backward(given, shift, *layers, points, bends, scales, moved, *weights, *hidden)
        return z.clone(), bends.sum((0, -1)) * way.slope

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        way: Way = ctx.way
        given, saved = ctx.saved_tensors[: ctx.layers + 2], ctx.saved_tensors[ctx.layers + 2 :]
        if torch.is_grad_enabled():
            wanted = [tensor for tensor, needs in zip(given, ctx.needs_input_grad[1:], strict=True) if needs]
            found = iter(torch.autograd.grad(way.definition(*given), wanted, grads, create_graph=True))
            return (None, *(next(found) if needs else None for needs in ctx.needs_input_grad[1:]))
        grad, grad_ladj = grads[0], grads[1].unsqueeze(-1)
        (points, bends, scales, moved), weights = saved[:4], saved[4 : 4 + len(way.masks)]
        hidden = saved[4 + len(way.masks) :]
        length, features = len(points), points.shape[-1]
        shift = given[1]
        slopes = (1 - bends.square()).mul_(way.slope / way.bound)
        last = points.new_empty(length, len(grad), 2 * features)
        deltas = [torch.empty_like(h) for h in hidden]
        for t in reversed(way.order(length)):
            grad = _ordered(grad, t)
            delta, kept = last[t], grad * scales[t]
            torch.mul(torch.addcmul(grad_ladj, grad, moved[t]), slopes[t], out=delta[:, :features])
            if way.solve:
                torch.neg(kept, out=delta[:, features:])
            else:
                delta[:, features:] = grad
            for layer in reversed(range(len(hidden))):
                # Whether a unit was active is read off its value.
                back = linear(delta, weights[layer + 1][t].t())
                delta = torch.ops.aten.threshold_backward.grad_input(
                    back, hidden[layer][t], 0, grad_input=deltas[layer][t]
                )
            grad = _ordered(kept + linear(delta, weights[0][t].t()), t)
        found_shift = deltas[0].transpose(0, 1).flatten(1)
        if len(shift) == 1:
            found_shift = found_shift.sum(0, keepdim=True)
        found_layers = [outer_products(deltas[0], points).mul_(way.masks[0])]
        for above, below, mask in zip([*deltas[1:], last], hidden, way.masks[1:], strict=True):
            found_layers += [outer_products(above, below).mul_(mask), above.sum(1)]
        return (None, grad, found_shift, *found_layers)


def _ordered(z: Tensor, t: int) -> Tensor:
    """An odd step reads the features last to first."""
    return z.flip(-1) if t % 2 else z
