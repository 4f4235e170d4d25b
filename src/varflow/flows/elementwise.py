"""Flows that treat each feature by itself: a scale and a shift, and a reversal of the order."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import positive
from varflow.flows.flow import Flow, Local
from varflow.networks.linear import Linear


class Affine(Flow):
    """z′ = z ⊙ exp(s) + t with ladj = Σᵢ sᵢ.

    Amortized, (s, t) is one linear function of the context. Both directions cost one pass. It is
    the last step of NICE (Dinh et al. 2014, arXiv:1410.8516, section 3.3), with a shift added.

    ``local`` is one tensor ``[..., 2 D]``: s, then t.

    Args:
        features: D.
        length: any; a chain of affine maps is one affine map, and one is what is built.
        context_features: C, the size of the context; 0 for static s and t.

    Example:
        >>> import torch
        >>> Affine(2)(torch.tensor([[1.0, -2.0]]))[0].tolist()
        [[1.0, -2.0]]
    """

    mixes = False

    def __init__(self, features: int, length: int = 1, context_features: int = 0) -> None:
        super().__init__(features, context_features)
        positive(length=length)
        if context_features:
            self.parameters_of: Linear = Linear(context_features, 2 * features)
            nn.init.zeros_(self.parameters_of.weight)
            nn.init.zeros_(self.parameters_of.bias)
        else:
            self.static: nn.Parameter = nn.Parameter(torch.zeros(2 * features))

    def condition(self, context: Float[Tensor, "*batch context"] | None) -> Local:
        return () if context is None else (self.parameters_of(context),)

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        s, t = self._scale_shift(local)
        out = z * s.exp() + t
        return out, s.sum(-1).expand(out.shape[:-1])

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        s, t = self._scale_shift(local)
        out = (z - t) * (-s).exp()
        return out, -s.sum(-1).expand(out.shape[:-1])

    def _scale_shift(self, local: Local) -> tuple[Tensor, ...]:
        packed = local[0] if local else self.static
        return packed.unflatten(-1, (2, self.features)).unbind(-2)


class Reverse(Flow):
    """z′ᵢ = z_{D+1−i}: the features in reverse order. ladj = 0, its own inverse, no parameters."""

    volume_preserving = True

    def __init__(self, features: int) -> None:
        super().__init__(features)

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        return z.flip(-1), z.new_zeros(z.shape[:-1])

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        return self.push(z)
