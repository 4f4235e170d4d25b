"""A lower triangular linear map: it turns a diagonal Gaussian into any Gaussian."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import positive
from varflow.flows.flow import Flow, Local, align
from varflow.networks.linear import Linear


class Triangular(Flow):
    r"""z′ = (I + N / √D) (exp(s) ⊙ z) + t with N strictly lower triangular; ladj = Σᵢ sᵢ.

    On a base N(μ, diag σ²) it gives N(L μ + t, L diag(σ²) Lᵀ) with L = (I + N / √D) diag(eˢ): every
    Gaussian, each in several ways unless the base is fixed at N(0, I), where L is the Cholesky factor of
    the covariance. As the scales come first, the round trip is as exact for any s; divided by √D, an N
    with entries of order 1 leaves the first factor well conditioned.

    Args:
        features: D.
        length: any; a chain of these maps is one of them, and one is what is built.
        context_features: C; with C > 0 one linear layer makes t, s and N from the context.

    ``local`` is one tensor ``[..., D (D + 3) / 2]``: t, then s, then N below its diagonal, row by row.

    Cost, per point: O(D²) in both directions, the inverse by a triangular solve. Amortized, each
    example has a D × D matrix of its own.

    Source: the Cholesky parameterization of a Gaussian, e.g. Kingma and Welling, "An introduction to
    variational autoencoders" (2019), section 2.5.1.

    >>> flow = Triangular(3)
    >>> flow(torch.tensor([[1.0, -2.0, 0.5]]))[0].tolist()
    [[1.0, -2.0, 0.5]]
    """

    def __init__(self, features: int, length: int = 1, context_features: int = 0) -> None:
        super().__init__(features, context_features)
        positive(length=length)
        size = features * (features + 3) // 2
        if context_features:
            self.head: Linear = Linear(context_features, size)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        else:
            self.static: nn.Parameter = nn.Parameter(torch.zeros(size))

    def condition(self, context: Float[Tensor, "*batch context"] | None) -> Local:
        return () if context is None else (self.head(context),)

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        if not local:
            unit, s, t = self._unpack(self.static)
            return (z * s.exp()) @ unit.mT + t, s.sum(-1).expand(z.shape[:-1])
        z, packed, batch = align(z, local[0])
        unit, s, t = self._unpack(packed)
        out = ((z * s.exp()).transpose(0, 1) @ unit.mT).transpose(0, 1) + t
        return out.reshape(*batch, self.features), s.sum(-1).expand(z.shape[:-1]).reshape(batch)

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        z, packed, batch = align(z, local[0] if local else self.static)
        unit, s, t = self._unpack(packed)
        columns = (z - t).permute(1, 2, 0)
        scaled = torch.linalg.solve_triangular(unit, columns, upper=False, unitriangular=True)
        out = scaled.permute(2, 0, 1) * (-s).exp()
        return out.reshape(*batch, self.features), -s.sum(-1).expand(z.shape[:-1]).reshape(batch)

    def _unpack(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """I + N / √D ``[..., D, D]``, s ``[..., D]``, t ``[..., D]``."""
        d = self.features
        t, s, below = packed.split([d, d, d * (d - 1) // 2], -1)
        # What the entries are taken from: a zero, a one, then N, whose (i, j) is number i (i − 1) / 2 + j.
        i = torch.arange(d, device=packed.device)[:, None]
        j = torch.arange(d, device=packed.device)
        number = torch.where(j < i, i * (i - 1) // 2 + j + 2, (i == j).long()).flatten()
        constants = torch.zeros_like(s[..., :1]), torch.ones_like(s[..., :1])
        entries = torch.cat([*constants, below * d**-0.5], -1)
        return entries.index_select(-1, number).unflatten(-1, (d, d)), s, t
