"""Coupling flows: one half of the features moves, the other half says how."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from varflow.core.errors import SpecError, positive
from varflow.flows import coupling_chain as chain
from varflow.flows.compose import Compose
from varflow.flows.elementwise import Affine
from varflow.flows.flow import Flow, Local, shortened
from varflow.networks.linear import linear, uniform


class _Coupling(Flow):
    """What both couplings share: the halves and the networks.

    The halves are the features of even and of odd index. Step 0 moves the odd ones, step 1 the even
    ones, and so on. Of an odd number of features the even half has one more; weights are stacked
    for the larger half, and the smaller one leaves a column or a row of them unused.

    With a context each network adds a linear function of it to its first hidden layer. ``local`` is
    the context itself: refinement then moves one vector of C numbers, and the linear functions of
    all steps are one product.
    """

    #: Numbers that a step's network gives for each feature that moves.
    outputs: int

    def __init__(
        self,
        features: int,
        length: int = 1,
        context_features: int = 0,
        hidden: Sequence[int] | None = None,
    ) -> None:
        super().__init__(features, context_features)
        positive(length=length)
        if features < 2:
            raise SpecError(
                "features: was 1; a coupling needs at least 2, one to move and one to say how far; "
                "for one feature use an affine or an autoregressive flow"
            )
        widths = (5 * features, 5 * features) if hidden is None else tuple(hidden)
        positive(**{f"hidden[{index}]": width for index, width in enumerate(widths)})
        if not widths:
            raise SpecError("hidden: was (); a coupling needs at least one hidden layer")
        self.length = length
        self.larger: int = (features + 1) // 2
        inputs, targets = (self.larger, *widths), (*widths, self.outputs * self.larger)
        self.weights: nn.ParameterList = nn.ParameterList(
            uniform(length, out, size, fan_in=size) for size, out in zip(inputs, targets, strict=True)
        )
        self.biases: nn.ParameterList = nn.ParameterList(
            uniform(length, out, fan_in=size) for size, out in zip(inputs, targets, strict=True)
        )
        self.context_weight: nn.Parameter | None = (
            uniform(length, targets[0], context_features, fan_in=context_features)
            if context_features
            else None
        )
        nn.init.zeros_(self.weights[-1])
        nn.init.zeros_(self.biases[-1])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, length={self.length}"

    def count_steps(self) -> int:
        return self.length

    def _first(self, steps: int, local: Local) -> tuple[Flow, Local]:
        return shortened(self, steps, "weights", "biases", "context_weight"), local

    def _shift(self, local: Local) -> Tensor:
        """What is added to the first hidden layer of each step: its bias, and what the context says."""
        if local and self.context_weight is not None:
            return linear(local[0], self.context_weight.flatten(0, 1), self.biases[0].flatten())
        return self.biases[0].flatten()

    def _steps(self, local: Local) -> list[_Step]:
        weights = [weight.unbind(0) for weight in self.weights]
        biases = [bias.unbind(0) for bias in self.biases]
        if local and self.context_weight is not None:
            biases[0] = self._shift(local).unflatten(-1, (self.length, -1)).unbind(-2)
        return [
            _Step([w[t] for w in weights], [b[t] for b in biases], self.outputs)
            for t in range(self.length)
        ]

    @abstractmethod
    def move(self, z: Tensor, outputs: tuple[Tensor, ...], solve: bool) -> tuple[Tensor, Tensor | None]:
        """The half that moves, or with ``solve`` moves back, and its log-scales; None where it keeps volumes."""

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        return self._through(z, local, solve=False)

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        return self._through(z, local, solve=True)

    def _through(self, z: Tensor, local: Local, solve: bool) -> tuple[Tensor, Tensor]:
        """All steps, or with ``solve`` their inverses from the last to the first."""
        return self._steps_through(z, self._steps(local), solve)

    def _steps_through(self, z: Tensor, each: list[_Step], solve: bool) -> tuple[Tensor, Tensor]:
        halves = [z[..., 0::2], z[..., 1::2]]
        ladj = z.new_zeros(())
        steps = list(enumerate(each))
        for t, step in reversed(steps) if solve else steps:
            kept, moved = t % 2, 1 - t % 2
            outputs = step(halves[kept], halves[moved].shape[-1])
            halves[moved], log_scale = self.move(halves[moved], outputs, solve)
            if log_scale is not None:
                total = log_scale.sum(-1)
                ladj = ladj - total if solve else ladj + total
        even, odd = halves
        even, odd = torch.broadcast_tensors(even, F.pad(odd, (0, self.larger - odd.shape[-1])))
        out = torch.stack((even, odd), -1).flatten(-2)[..., : self.features]
        return out, out.new_zeros(out.shape[:-1]) if self.volume_preserving else ladj


class AdditiveCoupling(_Coupling):
    """NICE's coupling: z′_moved = z_moved + g(z_kept, c), halves alternating. ladj = 0.

    Reference: Dinh et al. 2014, *NICE* (arXiv:1410.8516), equations 6–9. Different from the paper:
    g has two hidden layers of 5 D rectified units, its last layer starts at zero (so that the flow
    starts as the identity), and a context may enter. Both directions cost one pass a step.

    Args:
        features: D ≥ 2, even or odd.
        length: the number of steps; two move every feature once.
        context_features: C, the size of the context; 0 for a static flow.
        hidden: widths of the hidden layers of g; by default ``(5 D, 5 D)``.

    Raises:
        SpecError: D is 1, or a size is not positive.

    Example:
        >>> import torch
        >>> z, ladj = AdditiveCoupling(3, length=2)(torch.ones(4, 3))
        >>> z.shape, ladj.tolist()
        (torch.Size([4, 3]), [0.0, 0.0, 0.0, 0.0])
    """

    volume_preserving = True
    outputs = 1

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        first, *weights = self.weights
        layers = [first, *(each for pair in zip(weights, list(self.biases)[1:], strict=True) for each in pair)]
        if not chain.usable(z, [z, *local, *self.parameters()]):
            return super().push(z, local)
        shift = self._shift(local)
        batch = torch.broadcast_shapes(z.shape[:-1], shift.shape[:-1])
        if shift.ndim == 1:
            shift = shift.unsqueeze(0)
        else:
            shift = shift.expand(*batch, -1).flatten(0, -2)
        rows = z.expand(*batch, -1).reshape(-1, self.features)
        out = chain.push(self._plain, rows, shift, *layers).view(*batch, self.features)
        return out, out.new_zeros(batch)

    def _plain(self, z: Tensor, shift: Tensor, *layers: Tensor) -> Tensor:
        """All steps in plain operations, of what :func:`varflow.flows.coupling_chain.push` is given."""
        biases = [shift.unflatten(-1, (self.length, -1)).unbind(-2), *(bias.unbind(0) for bias in layers[2::2])]
        weights = [weight.unbind(0) for weight in (layers[0], *layers[1::2])]
        steps = [_Step([w[t] for w in weights], [b[t] for b in biases], 1) for t in range(self.length)]
        return self._steps_through(z, steps, solve=False)[0]

    def move(self, z: Tensor, outputs: tuple[Tensor, ...], solve: bool) -> tuple[Tensor, None]:
        (shift,) = outputs
        return z - shift if solve else z + shift, None


class AffineCoupling(_Coupling):
    """RealNVP's coupling: z′_moved = z_moved ⊙ exp(s) + t, with (s, t) = g(z_kept, c). ladj = Σ s.

    Reference: Dinh et al. 2016, *Density estimation using Real NVP* (arXiv:1605.08803), equations
    4–8. Different from the paper: halves are alternate features, s = b·tanh(raw / b) is bounded
    smoothly by b = ``bound``, so that no step scales by more than e^b either way, and g has the
    form of :class:`AdditiveCoupling`'s, its last layer starting at zero. Both directions cost one
    pass a step.

    Args:
        features: D ≥ 2, even or odd.
        length: the number of steps; two move every feature once.
        context_features: C, the size of the context; 0 for a static flow.
        hidden: widths of the hidden layers of g; by default ``(5 D, 5 D)``.
        bound: b, the largest |s|.

    Raises:
        SpecError: D is 1, a size is not positive, or ``bound`` is not positive.
    """

    outputs = 2

    def __init__(
        self,
        features: int,
        length: int = 1,
        context_features: int = 0,
        hidden: Sequence[int] | None = None,
        bound: float = 3.0,
    ) -> None:
        super().__init__(features, length, context_features, hidden)
        if not bound > 0:
            raise SpecError(f"bound: was {bound!r}; use a positive number, the largest |log-scale|")
        self.bound = bound

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bound={self.bound}"

    def move(self, z: Tensor, outputs: tuple[Tensor, ...], solve: bool) -> tuple[Tensor, Tensor]:
        raw, shift = outputs
        log_scale = self.bound * torch.tanh(raw / self.bound)
        return (z - shift) * (-log_scale).exp() if solve else z * log_scale.exp() + shift, log_scale


def nice(features: int, length: int = 2, context_features: int = 0) -> Compose | Affine:
    """NICE as published: ``length − 1`` additive couplings, then one :class:`Affine` step.

    Dinh et al. 2014 (arXiv:1410.8516), section 3.3; their last step has no shift. With ``length=1``
    the affine step alone is left, which any number of features allows.

    Raises:
        SpecError: ``length`` > 1 for a single feature, or a size is not positive.
    """
    positive(length=length)
    affine = Affine(features, context_features=context_features)
    if length == 1:
        return affine
    return Compose(AdditiveCoupling(features, length - 1, context_features), affine)


class _Step(NamedTuple):
    """The network of one step."""

    weights: list[Tensor]
    biases: list[Tensor]
    outputs: int

    def __call__(self, kept: Tensor, size: int) -> tuple[Tensor, ...]:
        """``outputs`` tensors of ``size`` features, the size of the half that moves."""
        h = F.relu(linear(kept, self.weights[0][:, : kept.shape[-1]]) + self.biases[0])
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            h = F.relu(linear(h, weight, bias))
        out = linear(h, self.weights[-1], self.biases[-1])
        return out.unflatten(-1, (self.outputs, -1))[..., :size].unbind(-2)
