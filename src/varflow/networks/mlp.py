"""The fully connected network, plain or gated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, is_autocast_enabled, nn

from varflow.core.errors import ShapeError, SpecError, unknown
from varflow.core.settings import Settings, Size, settings
from varflow.networks.linear import Linear, linear, rectified

Shape = tuple[int, ...]
ActivationName = Literal["relu", "tanh", "softplus", "elu", "gelu", "silu"]

#: name in a spec → the function.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": F.tanh,
    "softplus": F.softplus,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
}

#: name → (pre-activation, activation) → its derivative, where :meth:`MLP.linearize` has one.
SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda a, h: a > 0,
    "tanh": lambda a, h: 1 - h * h,
    "softplus": lambda a, h: torch.sigmoid(a),
}


@settings("MLP")
class MLPSettings(Settings):
    """The fully connected pair."""

    layers: Annotated[int, "Hidden layers of each network.", Size()] = 2
    hidden: Annotated[int, "Units of each hidden layer.", Size()] = 400
    activation: Annotated[ActivationName, "Activation of the hidden layers."] = "relu"
    gated: Annotated[bool, "Gated hidden layers: Linear(x)·sigmoid(Linear(x))."] = False

    def encoder(self, event_shape: Shape, latent: int) -> nn.Module:
        """x → features; ``latent`` is for the networks that need to know it."""
        return MLP(event_shape, None, (self.hidden,) * self.layers, self.activation, self.gated)

    def decoder(self, latent: int, out_shape: Shape) -> nn.Module:
        """z → parameters of the likelihood."""
        return MLP(latent, out_shape, (self.hidden,) * self.layers, self.activation, self.gated)


class MLP(nn.Module):
    """Linear layers with an activation between them, from one shape to another.

        plain  h′ = a(W h + b),      gated  h′ = (W h + b) ⊙ σ(V h + c)

    As an encoder (``out_shape=None``) it ends after the last activation; as a decoder it ends with
    a linear layer, reshaped to ``out_shape``. Any leading dimensions are batch, also when one is 0.
    No example touches another. Twice differentiable as far as the activation is (relu and elu:
    almost everywhere).

    Args:
        in_shape: the event's shape, or its size where it is a vector.
        out_shape: shape or size of what comes out; None for an encoder.
        hidden: units of each hidden layer; an empty tuple with an ``out_shape`` is a linear map.
        activation: relu, tanh, softplus, elu, gelu or silu, for plain hidden layers.
        gated: gated hidden layers instead (Dauphin et al. 2017, section 2; the gate is the only
            nonlinearity). Value and gate come from one matrix product of double width.

    Attributes:
        features: size of what comes out.
        out_shape: its shape.
        couples_examples: False.

    Raises:
        SpecError: an unknown activation, a size that is not a positive integer, no hidden layer in
            an encoder.
        ShapeError: an input whose last dimensions are not ``in_shape``, or of another dtype than
            the parameters.

    Example:
        >>> import torch
        >>> encoder = MLP((1, 8, 8), hidden=(32, 16), gated=True)
        >>> encoder.features, encoder(torch.zeros(5, 1, 8, 8)).shape
        (16, torch.Size([5, 16]))
        >>> MLP(2, (1, 8, 8), hidden=(32,))(torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5, 1, 8, 8])
    """

    couples_examples = False

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int] | None = None,
        hidden: int | Sequence[int] = (400, 400),
        activation: str = "relu",
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape: Shape = as_shape("in_shape", in_shape)
        self.hidden: Shape = as_shape("hidden", hidden)
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        if out_shape is None and not self.hidden:
            raise SpecError("hidden: was empty; an encoder needs one layer or more, e.g. (400,)")
        self.activation: str = activation
        self.gated: bool = gated
        widths = (math.prod(self.in_shape), *self.hidden)
        self.layers: nn.ModuleList = nn.ModuleList(
            Linear(before, (2 if gated else 1) * after) for before, after in pairwise(widths)
        )
        self.out_shape: tuple[int, ...] = widths[-1:] if out_shape is None else as_shape("out_shape", out_shape)
        self.features: int = math.prod(self.out_shape)
        self.last: Linear | None = None if out_shape is None else Linear(widths[-1], self.features)

    def forward(self, x: Float[Tensor, "*batch_in"]) -> Float[Tensor, "*batch_out"]:
        """``[*batch, *in_shape]`` → ``[*batch, *out_shape]``."""
        check_input(self, x, self.in_shape)
        h = x if len(self.in_shape) == 1 else x.flatten(-len(self.in_shape))
        activation = F.glu if self.gated else ACTIVATIONS[self.activation]
        for layer in self.layers:
            if activation is F.relu:
                h = rectified(h, layer.weight, layer.bias)  # type: ignore[arg-type]
            else:
                h = activation(layer(h))
        if self.last is not None:
            h = self.last(h)
        return h if len(self.out_shape) == 1 else h.unflatten(-1, self.out_shape)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]] | None:
        """(out, v ↦ vᵀ ∂out/∂x) for a vector x ``[*batch, in]``, v and out ``[*batch, *out_shape]``.

        The product is written in forward operations: gradients of it cost a quarter less than
        gradients of a recorded backward pass. None where it is not written: gated layers, activations
        without an entry in ``SLOPES``, networks without a last layer, inputs that are no vectors.
        """
        slope = None if self.gated else SLOPES.get(self.activation)
        if slope is None or self.last is None or len(self.in_shape) > 1:
            return None
        check_input(self, x, self.in_shape)
        h, slopes = x, []
        for layer in self.layers:
            a = layer(h)
            h = ACTIVATIONS[self.activation](a)
            slopes.append(slope(a, h))
        weights = [layer.weight for layer in (*self.layers, self.last)]

        def pull(v: Tensor) -> Tensor:
            v = linear(v if len(self.out_shape) == 1 else v.flatten(-len(self.out_shape)), weights[-1].t())
            for weight, slope in zip(weights[-2::-1], slopes[::-1], strict=True):
                v = linear(v * slope, weight.t())
            return v

        h = self.last(h)
        return h if len(self.out_shape) == 1 else h.unflatten(-1, self.out_shape), pull

    def extra_repr(self) -> str:
        activation = "gated" if self.gated else self.activation
        return f"in_shape={self.in_shape}, out_shape={self.out_shape}, activation={activation}"


def as_shape(argument: str, value: int | Sequence[int]) -> Shape:
    """``value`` as a tuple of positive integers.

    Raises:
        SpecError: it is not one.
    """
    sizes = (value,) if isinstance(value, int) else tuple(value)
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise SpecError(f"{argument}: was {value!r}; use positive integers")
    return sizes


def check_input(network: nn.Module, x: Tensor, shape: Shape) -> None:
    """Refuse an ``x`` that does not end in ``shape`` or has another dtype than the parameters.

    Raises:
        ShapeError: naming both.
    """
    name = type(network).__name__
    if x.shape[-len(shape) :] != shape:
        expected = ", ".join(str(size) for size in shape)
        raise ShapeError(f"input: shape {tuple(x.shape)}; this {name} needs [..., {expected}]")
    own = next(network.parameters()).dtype
    if x.dtype != own and not (x.is_floating_point() and is_autocast_enabled(x.device.type)):
        raise ShapeError(
            f"input: was {x.dtype}; this {name} has {own} parameters: "
            f"convert the input with .to({own}), or the network"
        )
