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
        hidden = [z.new_empty(length, rows, weight.shape[-1]) for weight in weights[1:]]
        # A step takes ``points`` to ``moved``, which is points · scale or, solved, (points − offset) · scale.
        points, bends, scales, moved = (z.new_empty(length, rows, features) for _ in range(4))
        # Cut into steps once: indexing costs as much as a small product.
        shifts, first = shift.view(len(shift), length, -1).unbind(1), weights[0].unbind(0)
        inner = [(weight.unbind(0), bias.unbind(0)) for weight, bias in zip(weights[1:], biases, strict=True)]
        outs = [each.unbind(0) for each in (points, bends, scales, moved, *hidden)]
        for t in way.order(length):
            x, bend, scale, out, h, *hs = (each[t] for each in outs)
            torch.add(linear(x.copy_(_ordered(z, t)), first[t]), shifts[t], out=h).relu_()
            for (weight, bias), above in zip(inner[:-1], hs, strict=True):
                h = torch.clamp_min(linear(h, weight[t], bias[t]), 0, out=above)
            weight, bias = inner[-1]
            raw, offset = linear(h, weight[t], bias[t]).chunk(2, -1)
            torch.mul(torch.tanh(raw / way.bound, out=bend), way.slope, out=scale).exp_()
            if way.solve:
                z = torch.mul(x - offset, scale, out=out)
            else:
                z = torch.mul(x, scale, out=out) + offset
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
        first = weights[0].mT.unbind(0)
        layers = [
            (w.mT.unbind(0), h.unbind(0), d.unbind(0)) for w, h, d in zip(weights[1:], hidden, deltas, strict=True)
        ]
        steps = [each.unbind(0) for each in (scales, moved, slopes, last)]
        for t in reversed(way.order(length)):
            grad = _ordered(grad, t)
            scale, out, slope, delta = (each[t] for each in steps)
            kept = grad * scale
            torch.mul(torch.addcmul(grad_ladj, grad, out), slope, out=delta[:, :features])
            if way.solve:
                torch.neg(kept, out=delta[:, features:])
            else:
                delta[:, features:] = grad
            for weight, h, found in reversed(layers):
                # Whether a unit was active is read off its value.
                back = linear(delta, weight[t])
                delta = torch.ops.aten.threshold_backward.grad_input(back, h[t], 0, grad_input=found[t])
            grad = _ordered(kept + linear(delta, first[t]), t)
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
