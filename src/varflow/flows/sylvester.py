"""Sylvester flow: a planar flow with M units a step, held together by an orthogonal frame."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import SpecError, positive
from varflow.flows.determinants import log_det
from varflow.flows.flow import Flow, Local, align, shortened
from varflow.flows.householder import overlaps, reflect, unit
from varflow.flows.tanh_units import inverse_pre_activations
from varflow.networks.linear import Linear


class _Step(NamedTuple):
    """The parameters of one step, for G parameter sets."""

    vectors: Tensor  # [G, H, D], unit
    gram: Tensor  # [G, H, H], what reflect solves with
    upper: Tensor  # R [G, M, M]
    upper_tilde: Tensor  # R̃ [G, M, M]
    s: Tensor  # [G, 1, M]
    log_s: Tensor  # [G, 1, M]
    b: Tensor  # [G, 1, M]


class Sylvester(Flow):
    """``length`` steps z ← z + Q R tanh(R̃ Qᵀz + b), Q ``[D, M]`` with orthonormal columns.

    log|det| = Σᵢ log(hᵢ² + (1 − hᵢ²) sᵢ) with sᵢ = 1 + rᵢᵢ r̃ᵢᵢ > 0.

    R and R̃ are upper triangular with diagonals tanh(d), tanh(d̃), so that every step is
    invertible; s = 2(σ(2d)σ(2d̃) + σ(−2d)σ(−2d̃)) needs no difference. Q is the first M columns of
    a product of Householder reflections, orthogonal to rounding (the paper's other choice,
    iterative orthogonalization, is not).

    The inverse is exact: p = R̃ Qᵀz + b obeys p + R̃R tanh(p) = R̃ Qᵀz′ + b, triangular, so p is
    found from the last unit to the first, one increasing scalar equation each.

    Args:
        features: D.
        length: K, the number of steps.
        context_features: C; with C > 0 one linear layer makes the parameters of all steps from the
            context.
        rank: M ≤ D, the units of a step; min(D, 16) by default.
        reflections: Householder vectors of each Q; min(M, 8) by default. M suffice for any M
            columns.

    ``local`` is one tensor ``[*batch, K P]``, step by step. The P numbers of a step are its
    reflection vectors; an M×M matrix holding R above its diagonal and R̃ᵀ below it; d; d̃; b.

    Cost, per point: O(K (HD + M²)) with H reflections; the inverse adds K·M scalar root solves.

    Source: van den Berg, Hasenclever, Tomczak and Welling, "Sylvester normalizing flows for
    variational inference" (2018), eqs. 9-13 and section 3.2.

    >>> flow = Sylvester(4, length=2, rank=3)
    >>> z, ladj = flow(torch.randn(5, 4))
    >>> ladj.shape
    torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        length: int = 1,
        context_features: int = 0,
        *,
        rank: int | None = None,
        reflections: int | None = None,
    ) -> None:
        super().__init__(features, context_features)
        rank = min(features, 16) if rank is None else rank
        reflections = min(rank, 8) if reflections is None else reflections
        positive(length=length, rank=rank, reflections=reflections)
        if rank > features:
            raise SpecError(f"rank: was {rank}; use at most features = {features}")
        self.length: int = length
        self.rank: int = rank
        self.reflections: int = reflections
        self._sizes = [reflections * features, rank * rank, rank, rank, rank]
        if context_features:
            self.head: Linear = Linear(context_features, length * sum(self._sizes))
        else:
            self.packed: nn.Parameter = nn.Parameter(torch.empty(length, sum(self._sizes)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """R = 0 (the identity); R̃, and so the directions that gradients find, random."""
        start = self.head.bias.view(self.length, -1) if self.context_features else self.packed
        vectors, triangles, r, r_tilde, b = start.split(self._sizes, -1)
        vectors.normal_()
        upper = torch.ones(self.rank, self.rank, dtype=torch.bool).triu()
        triangles.normal_(std=self.rank**-0.5)
        triangles[:, upper.flatten()] = 0
        r.zero_()
        r_tilde.normal_(std=0.5)
        b.zero_()
        if self.context_features:
            self.head.weight.normal_(std=0.1 * self.context_features**-0.5)
            weight = self.head.weight.view(self.length, sum(self._sizes), -1)
            _, triangles, r, _, _ = weight.split(self._sizes, 1)
            triangles[:, upper.flatten()] = 0
            r.zero_()

    def condition(self, context: Float[Tensor, "*batch context"] | None) -> Local:
        return (self.head(context),) if context is not None else ()

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        z, steps, batch = self._arrange(z, local)
        total = z.new_zeros(())
        for step in steps:
            inside = reflect(z, step.vectors, step.gram, transpose=True)[..., : self.rank]
            p = torch.baddbmm(step.b, inside, step.upper_tilde.transpose(1, 2))
            z = z + self._outside(p.tanh() @ step.upper.transpose(1, 2), step)
            total = total + log_det(p, step.s, step.log_s).sum(-1)
        return self._restore(z, batch), total.t().reshape(batch)

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        z, steps, batch = self._arrange(z, local)
        total = z.new_zeros(())
        for step in reversed(steps):
            inside = reflect(z, step.vectors, step.gram, transpose=True)[..., : self.rank]
            q = torch.baddbmm(step.b, inside, step.upper_tilde.transpose(1, 2))
            # R̃R couples a unit to those after it: the last unit is solved first.
            coupling = (step.upper_tilde @ step.upper).transpose(1, 2).flip(-2, -1)
            p = inverse_pre_activations(q.flip(-1), coupling, step.s.squeeze(1).flip(-1)).flip(-1)
            z = z - self._outside(p.tanh() @ step.upper.transpose(1, 2), step)
            total = total - log_det(p, step.s, step.log_s).sum(-1)
        return self._restore(z, batch), total.t().reshape(batch)

    def count_steps(self) -> int:
        return self.length

    def _first(self, steps: int, local: Local) -> tuple[Flow, Local]:
        if not self.context_features:
            return shortened(self, steps, "packed"), ()
        return shortened(self, steps), (local[0][..., : steps * sum(self._sizes)],)

    def _outside(self, x: Tensor, step: _Step) -> Tensor:
        """Q x."""
        return reflect(F.pad(x, (0, self.features - self.rank)), step.vectors, step.gram)

    def _arrange(self, z: Tensor, local: Local) -> tuple[Tensor, list[_Step], tuple[int, ...]]:
        """Points [G, R, D], the parameters of each step ([G, ...]), and the batch shape."""
        z, packed, batch = align(z, local[0] if local else self.packed.flatten())
        packed = packed.unflatten(-1, (self.length, -1)).transpose(0, 1)
        vectors, triangles, d, d_tilde, b = packed.split(self._sizes, -1)
        vectors = unit(vectors.unflatten(-1, (self.reflections, self.features)))
        triangles = triangles.unflatten(-1, (self.rank, self.rank))
        upper = triangles.triu(1) + torch.diag_embed(d.tanh())
        upper_tilde = triangles.transpose(-1, -2).triu(1) + torch.diag_embed(d_tilde.tanh())
        same = F.logsigmoid(2 * d) + F.logsigmoid(2 * d_tilde)
        opposite = F.logsigmoid(-2 * d) + F.logsigmoid(-2 * d_tilde)
        log_s = torch.logaddexp(same, opposite) + math.log(2)
        s = 2 * (
            torch.sigmoid(2 * d) * torch.sigmoid(2 * d_tilde)
            + torch.sigmoid(-2 * d) * torch.sigmoid(-2 * d_tilde)
        )
        rows = (x.unsqueeze(-2) for x in (s, log_s, b))
        stacked = (vectors, overlaps(vectors), upper, upper_tilde, *rows)
        steps = [_Step(*parts) for parts in zip(*(x.unbind() for x in stacked), strict=True)]
        return z.transpose(0, 1), steps, batch

    def _restore(self, z: Tensor, batch: tuple[int, ...]) -> Tensor:
        return z.transpose(0, 1).reshape(*batch, self.features)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, length={self.length}, rank={self.rank}, "
            f"reflections={self.reflections}"
        )
