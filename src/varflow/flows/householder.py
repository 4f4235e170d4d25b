"""Householder flow: a product of reflections, an orthogonal map.

:func:`step_by_step` is the definition. :func:`reflect` is the product of all reflections at once, of which Sylvester
flows make their frames.
make their frames of.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import positive
from varflow.core.exporting import exporting
from varflow.flows.flow import Flow, Local, align, shortened
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

    def count_steps(self) -> int:
        return self.length

    def _first(self, steps: int, local: Local) -> tuple[Flow, Local]:
        if not self.context_features:
            return shortened(self, steps, "v"), ()
        return shortened(self, steps), (local[0][..., : steps * self.features],)

    def _apply_all(self, z: Tensor, local: Local, transpose: bool) -> tuple[Tensor, Tensor]:
        if local:
            z, packed, batch = align(z, local[0])
            v = unit(packed.unflatten(-1, (self.length, self.features)))
        else:  # without align: each view of the vectors would cost as much as a product of this size
            batch = tuple(z.shape[:-1])
            z, v = z.reshape(math.prod(batch), 1, self.features), unit(self.v).unsqueeze(0)
        turned = reflect(z.transpose(0, 1), v, overlaps(v), transpose)
        z = turned.transpose(0, 1).reshape(*batch, self.features)
        return z, z.new_zeros(batch)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, length={self.length}"


def step_by_step(z: Tensor, vectors: Tensor) -> Tensor:
    """The definition, for z ``[..., D]`` and vectors that are not 0: z ← z − 2 v (vᵀz) / ‖v‖², one after another."""
    for v in vectors:
        z = z - 2 * (z @ v).unsqueeze(-1) * v / (v @ v)
    return z


def unit(v: Tensor) -> Tensor:
    """v / ‖v‖ over the last dimension; 0 where ‖v‖² is below the smallest normal number."""
    square = (v * v).sum(-1, keepdim=True)
    vanishing = square < torch.finfo(square.dtype).tiny
    return torch.where(vanishing, 0, v / torch.where(vanishing, 1, square).sqrt())


def overlaps(v: Tensor) -> Tensor:
    """2 v vᵀ for rows v ``[..., K, D]``: what :func:`reflect` solves with."""
    return 2 * (v @ v.transpose(-1, -2))


def reflect(z: Tensor, v: Tensor, gram: Tensor, transpose: bool = False) -> Tensor:
    """H_K … H_1 z (``transpose``: H_1 … H_K z) for z ``[G, R, D]``, unit rows v ``[G, K, D]``.

    H_k subtracts c_k v_k with c_k = 2 v_kᵀ(z − Σ_{j<k} c_j v_j): a triangular system with unit
    diagonal, (I + 2 tril(v vᵀ, −1)) c = 2 v z. The transposed product solves the transposed
    system. A row v_k = 0 makes c_k = 0, the identity.
    """
    if v.shape[-2] == 1:
        c = 2 * (v @ z.transpose(-1, -2))
    elif exporting():
        c = _substitute(gram, 2 * (v @ z.transpose(-1, -2)), transpose)
    else:
        # unitriangular: neither the diagonal nor the other triangle of gram is read.
        c = torch.linalg.solve_triangular(
            gram, 2 * (v @ z.transpose(-1, -2)), upper=transpose, unitriangular=True
        )
    return torch.baddbmm(z, c.transpose(-1, -2), v, alpha=-1)


def _substitute(gram: Tensor, right: Tensor, upper: bool) -> Tensor:
    """The triangular system row by row: ONNX has no such solver."""
    rows = gram.shape[-1]
    solved: dict[int, Tensor] = {}
    for k in reversed(range(rows)) if upper else range(rows):
        row = right[..., k, :]
        for j, known in solved.items():
            row = row - gram[..., k, j].unsqueeze(-1) * known
        solved[k] = row
    return torch.stack([solved[k] for k in range(rows)], -2)
