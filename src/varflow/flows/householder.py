"""Householder flow: a product of reflections, an orthogonal map."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import positive
from varflow.flows._batch import align
from varflow.flows._reflections import overlaps, reflect, unit
from varflow.flows.flow import Flow, Local
from varflow.networks.linear import Linear


class Householder(Flow):
    r"""``length`` reflections z ← z − 2 v (vᵀz) / ‖v‖²; ladj is 0.

    The product of all K reflections is I − Vᵀ T V (compact WY form): two matrix products and one
    triangular solve of size K, instead of K steps. A vector v = 0 reflects nothing (the paper's
    formula is undefined there).

    A static Householder flow turns a standard normal base into itself; it is of use on other bases,
    between other flows, and when amortized. An odd number of reflections has determinant −1 and
    cannot be the identity; an even number could be, but does not start there: the vectors start
    random, so a new flow is a random orthogonal map.

    Args:
        features: D.
        length: K, the number of reflections.
        context_features: C; with C > 0 the vectors are chained as in the paper: v₁ is linear in the
            context, and v_t linear in v_{t−1}.

    ``local`` is one tensor ``[*batch, K D]``, the vectors in the order of their reflections.

    Cost, per point and direction: O(KD + K²), and O(K²D) once per parameter set.

    Source: Tomczak and Welling, "Improving variational auto-encoders using Householder flow"
    (2016), eqs. 8-9; the compact form: Schreiber and Van Loan, "A storage-efficient WY
    representation" (1989).

    >>> flow = Householder(4, length=3)
    >>> z = torch.randn(5, 4)
    >>> bool(torch.allclose(flow(z)[0].norm(dim=-1), z.norm(dim=-1), rtol=1e-4))
    True
    """

    volume_preserving = True

    def __init__(self, features: int, length: int = 1, context_features: int = 0) -> None:
        super().__init__(features, context_features)
        positive(length=length)
        self.length = length
        if context_features:
            self.head = Linear(context_features, features)
            self.weight = nn.Parameter(torch.empty(length - 1, features, features))
            self.bias = nn.Parameter(torch.empty(length - 1, features))
        else:
            self.v = nn.Parameter(torch.empty(length, features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Static: v ~ N(0, I). Amortized: orthogonal weights, so no v_t forgets the context."""
        if not self.context_features:
            self.v.normal_()
            return
        scale = self.features**-0.5
        self.head.weight.normal_(std=self.context_features**-0.5)
        self.head.bias.normal_(std=scale)
        for weight in self.weight:
            nn.init.orthogonal_(weight)
        self.bias.normal_(std=scale)

    def condition(self, context: Float[Tensor, "*batch context"] | None) -> Local:
        if context is None:
            return ()
        v = self.head(context)
        vectors = [v]
        for weight, bias in zip(self.weight.unbind(), self.bias.unbind(), strict=True):
            v = torch.nn.functional.linear(v, weight, bias)
            vectors.append(v)
        return (torch.cat(vectors, -1),)

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        return self._apply_all(z, local, transpose=False)

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        return self._apply_all(z, local, transpose=True)

    def _apply_all(self, z: Tensor, local: Local, transpose: bool) -> tuple[Tensor, Tensor]:
        if self.context_features:
            z, packed, batch = align(z, local[0])
            v = unit(packed.unflatten(-1, (self.length, self.features)))
        else:
            batch = tuple(z.shape[:-1])
            z = z.reshape(math.prod(batch), 1, self.features)
            v = unit(self.v).unsqueeze(0)
        turned = reflect(z.transpose(0, 1), v, overlaps(v), transpose)
        z = turned.transpose(0, 1).reshape(*batch, self.features)
        return z, z.new_zeros(batch)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, length={self.length}"
