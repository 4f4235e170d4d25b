"""Autoregressive flows: feature i is scaled and shifted by what the features before it say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from varflow.core.derivatives import plain_gradient
from varflow.core.errors import SpecError, positive, unknown
from varflow.flows import autoregressive_chain as chain
from varflow.flows.flow import Flow, Local, shortened
from varflow.native import made as native
from varflow.networks.made import MADE, Step

#: The forget bias of the paper's gate: σ(1.5) = 0.82.
FORGET_BIAS = 1.5


class _Autoregressive(Flow):
    """What both share: the networks, the scale and the shift, and both ways through one step.

    Let (a, b) = MADE(x, c). A step relates x to y by y = x ⊙ exp(s(a)) + t(a, b), where sᵢ and tᵢ
    see x₍<i₎ alone (reading from x: parallel) or, for the dual flow, y₍<i₎.
    """

    #: Whether the log-scales are those of :meth:`coefficients` here.
    _bounded = True

    def __init__(
        self,
        features: int,
        length: int = 1,
        context_features: int = 0,
        hidden: Sequence[int] | None = None,
        bound: float = 3.0,
    ) -> None:
        super().__init__(features, context_features)
        positive(length=length)
        if not bound > 0:
            raise SpecError(f"bound: was {bound!r}; use a positive number, the largest |log-scale|")
        self.length: int = length
        self.bound: float = bound
        self.made: MADE = MADE(features, 2, hidden, context_features, length, zero_output=True)

    def coefficients(self, raw: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """(log-scale, shift) from the two outputs of the network."""
        return self.bound * torch.tanh(raw / self.bound), shift

    def at_once(self, step: Step, z: Tensor, solve: bool) -> tuple[Tensor, Tensor]:
        """(z ⊙ exp(s) + t, Σ s), (s, t) seeing the features of z; with ``solve`` ((z − t) ⊙ exp(−s), Σ s)."""
        log_scale, shift = self.coefficients(*step(z).unbind(-2))
        z = (z - shift) * (-log_scale).exp() if solve else z * log_scale.exp() + shift
        return z, log_scale.sum(-1)

    def one_by_one(
        self, step: Step, z: Tensor, batch: tuple[int, ...], solve: bool
    ) -> tuple[Tensor, Tensor]:
        """The same where (s, t) see the features of what comes out, which are found one after the other."""
        if self._bounded and native.usable(z, step, self.bound):
            return native.affine(step, z, batch, self.bound, solve)
        columns = z.unbind(-1)

        def update(i: int, raw: Tensor) -> Tensor:
            log_scale, shift = self.coefficients(*raw.unbind(-1))
            if solve:
                return (columns[i] - shift) * (-log_scale).exp()
            return columns[i] * log_scale.exp() + shift

        z, raw = step.sequential(update, batch)
        return z, self.coefficients(*raw.unbind(-2))[0].sum(-1)

    def count_steps(self) -> int:
        return self.length

    def _first(self, steps: int, local: Local) -> tuple[Flow, Local]:
        made = shortened(self, steps)
        made._modules["made"] = shortened(self.made, steps, "weights", "biases", "context_weight")
        return made, local

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        return self._through(z, local, solve=False)

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        return self._through(z, local, solve=True)

    def _through(self, z: Tensor, local: Local, solve: bool) -> tuple[Tensor, Tensor]:
        """All steps, or with ``solve`` their inverses from the last to the first."""
        first, *weights = self.made.weights
        layers = [first, *(each for pair in zip(weights, list(self.made.biases)[1:], strict=True) for each in pair)]
        shift = self.made.shift(*local)
        at_once = solve == self.fast_inverse
        if not (at_once and self._bounded and plain_gradient(z, [z, shift, *layers])):
            return self._steps_through(solve, z, shift, *layers)
        batch = torch.broadcast_shapes(z.shape[:-1], shift.shape[:-1])
        rows = z.expand(*batch, -1).reshape(-1, self.features)
        shift = shift.expand(*batch, -1).flatten(0, -2) if shift.ndim > 1 else shift.unsqueeze(0)
        way = chain.Way(partial(self._steps_through, solve), self.made.masks, self.bound, solve)
        z, ladj = chain.through(way, rows, shift, *layers)
        return z.view(*batch, self.features), ladj.view(batch)

    def _steps_through(self, solve: bool, z: Tensor, shift: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
        """The same, one step after the other: ``shift`` and ``layers`` as of :class:`MADE`, all steps stacked."""
        ladj = z.new_zeros(())
        batch = torch.broadcast_shapes(z.shape[:-1], shift.shape[:-1])
        steps = self.made.steps_of(shift, [layers[0], *layers[1::2]], layers[2::2])
        for step in reversed(steps) if solve else steps:
            if solve == self.fast_inverse:
                z, total = self.at_once(step, z, solve)
            else:
                z, total = self.one_by_one(step, z, batch, solve)
            ladj = ladj - total if solve else ladj + total
        return z, ladj

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, length={self.length}, bound={self.bound}"


class InverseAutoregressive(_Autoregressive):
    """IAF: z′ = z ⊙ exp(s) + t where (sᵢ, tᵢ) depend on z₍<i₎ and the context. ladj = Σᵢ sᵢ.

    Forward (sampling) is one parallel pass a step. The inverse (the density of a point that was not
    drawn here) finds one feature after the other: D short products a step, exact.

    Reference: Kingma et al. 2016, *Improving Variational Inference with Inverse Autoregressive
    Flow* (arXiv:1606.04934), equations 10–14 and algorithm 1. Different from the paper: by default
    s = b·tanh(a / b) with b = ``bound``, so that the flow starts as the identity and can widen as
    well as narrow; ``gate="paper"`` gives z′ = σ ⊙ z + (1 − σ) ⊙ m with σ = sigmoid(a + 1.5), which
    starts as z′ = 0.82 z. Between steps the order of degrees alternates; features are not permuted.

    ``local`` is the context itself: refinement moves one vector of C numbers.

    Args:
        features: D. With D = 1 a static step is affine.
        length: the number of steps.
        context_features: C, the size of the context; 0 for a static flow.
        hidden: widths of the hidden layers; by default two of max(64, 8 D).
        gate: ``"bounded"`` or ``"paper"``.
        bound: b, the largest |s| of the bounded gate.

    Raises:
        SpecError: an unknown gate, a size that is not positive, or hidden layers too narrow for D.

    Example:
        >>> import torch
        >>> flow = InverseAutoregressive(3, length=2)
        >>> z, ladj = flow(torch.ones(4, 3))
        >>> z.tolist()[0], ladj.tolist()[0]
        ([1.0, 1.0, 1.0], 0.0)
    """

    def __init__(
        self,
        features: int,
        length: int = 1,
        context_features: int = 0,
        hidden: Sequence[int] | None = None,
        gate: str = "bounded",
        bound: float = 3.0,
    ) -> None:
        super().__init__(features, length, context_features, hidden, bound)
        if gate not in ("bounded", "paper"):
            raise unknown("gate", gate, ("bounded", "paper"))
        self.gated: bool = gate == "paper"
        self._bounded = not self.gated

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gate={'paper' if self.gated else 'bounded'!r}"

    def coefficients(self, raw: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        if not self.gated:
            return super().coefficients(raw, shift)
        gate = raw + FORGET_BIAS
        return F.logsigmoid(gate), torch.sigmoid(-gate) * shift


class MaskedAutoregressive(_Autoregressive):
    """MAF: z′ᵢ = zᵢ · exp(sᵢ) + tᵢ where (sᵢ, tᵢ) depend on z′₍<i₎ and the context. ladj = Σᵢ sᵢ.

    The dual of IAF. The inverse (the density of any point) is one parallel pass a step. Forward
    (sampling) finds one feature after the other, each hidden unit computed once: D short products a
    step, whose work adds up to one pass. Take it for a prior or for density estimation.

    Reference: Papamakarios et al. 2017, *Masked Autoregressive Flow for Density Estimation*
    (arXiv:1705.07057), equations 3–5. Different from the paper: s = b·tanh(a / b) with b =
    ``bound``, no batch normalization between steps, and the flow starts as the identity.

    ``local`` is the context itself.

    Args:
        features: D. With D = 1 a static step is affine.
        length: the number of steps; the order of degrees alternates between them.
        context_features: C, the size of the context; 0 for a static flow.
        hidden: widths of the hidden layers; by default two of max(64, 8 D).
        bound: b, the largest |s|.

    Raises:
        SpecError: a size that is not positive, or hidden layers too narrow for D.
    """

    #: The density costs one pass, sampling D of them; a wrapper that may choose takes the inverse.
    fast_inverse = True
