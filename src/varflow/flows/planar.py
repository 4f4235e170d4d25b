"""Planar flow: each step pushes points along one direction, by an amount set by a plane.

:func:`step_by_step` is the definition; :func:`push_in_torch` computes all steps in the coordinates wᵀz, and
compiled code does the same in one call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import positive
from varflow.flows.determinants import log_det
from varflow.flows.flow import Flow, Local, align, packed_first, shortened
from varflow.flows.tanh_units import inverse_pre_activations, pre_activations
from varflow.native import planar as native
from varflow.native.planar_fit import Chain
from varflow.networks.linear import Linear


class Planar(Flow):
    """``length`` steps z ← z + û tanh(wᵀz + b), with û chosen such that every step is invertible.

    û = u + (m(wᵀu) − wᵀu) w / ‖w‖² and log|det| = log(h² + (1 − h²)(1 + m(wᵀu)))

    with h = tanh(wᵀz + b) and m(a) = softplus(a + log(e − 1)) − 1 > −1. At w = 0, û = u. The
    determinant is a weighted mean of 1 and a positive number, so it is positive for all parameters.

    Differs from the paper: its m(a) = softplus(a) − 1 is not 0 at 0, so that u = 0 is not the
    identity (``paper_constraint=True`` restores it); and there is an exact inverse: one increasing
    scalar equation a step.

    All K steps are computed in the coordinates wᵀz: with A = z Wᵀ + b and G = W Ûᵀ the
    pre-activations obey a_k = A_k + Σ_{j<k} G_kj tanh(a_j), and z′ = z + tanh(a) Û.

    Args:
        features: D.
        length: K, the number of steps.
        context_features: C; with C > 0 one linear layer makes u, w, b of all steps from the
            context.
        paper_constraint: use the paper's m.

    ``local`` is one tensor ``[*batch, K (2D + 1)]``: u of all steps, then w, then b.

    Cost, per point: O(KD + K²) forward (static; the Gram matrix adds K²D per parameter set, so per
    example if amortized), and the same plus K scalar root solves for the inverse.

    On the CPU, forward and its first derivative are one call each of compiled code, where a C++
    compiler is at hand (:mod:`varflow.native`); else, and for everything else, they are torch.

    Source: Rezende and Mohamed, "Variational inference with normalizing flows" (2015), eqs. 10-13
    and appendix A.1.

    >>> flow = Planar(2, length=8)
    >>> z, ladj = flow(torch.randn(5, 2))
    >>> ladj.shape
    torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        length: int = 1,
        context_features: int = 0,
        *,
        paper_constraint: bool = False,
    ) -> None:
        super().__init__(features, context_features)
        positive(length=length)
        self.length = length
        self.paper_constraint = paper_constraint
        self._shift = 0.0 if paper_constraint else math.log(math.e - 1)
        if context_features:
            self.head: Linear = Linear(context_features, length * (2 * features + 1))
        else:
            self.u: nn.Parameter = nn.Parameter(torch.empty(length, features))
            self.w: nn.Parameter = nn.Parameter(torch.empty(length, features))
            self.b: nn.Parameter = nn.Parameter(torch.empty(length))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """u = 0, b = 0, w ~ N(0, 1/D): the identity, with gradients that reach u at once."""
        scale = self.features**-0.5
        if not self.context_features:
            self.u.zero_()
            self.w.normal_(std=scale)
            self.b.zero_()
            return
        size = self.length * self.features
        self.head.weight.normal_(std=0.1 * scale * self.context_features**-0.5)
        self.head.bias.zero_()
        self.head.weight[:size].zero_()
        self.head.bias[size : 2 * size].normal_(std=scale)

    def condition(self, context: Float[Tensor, "*batch context"] | None) -> Local:
        return (self.head(context),) if context is not None else ()

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        if not self.context_features:
            return _push(z, (self.u, self.w, self.b), self.length, self._shift)
        packed = local[0]
        if z.shape[:-1][-packed.dim() + 1 :] == packed.shape[:-1] and packed.dim() > 1:
            return _push(z, local, self.length, self._shift)
        z, packed, batch = align(z, packed)
        z, ladj = _push(z, (packed,), self.length, self._shift)
        return z.reshape(*batch, self.features), ladj.reshape(batch)

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        batch = tuple(z.shape[:-1])
        parameters: Local = () if self.context_features else (self.u, self.w, self.b)
        if not parameters:
            z, packed, batch = align(z, local[0])
            parameters = (packed,)
        z, u, w, b = _arrange(z, parameters, self.length)
        u, s, log_s = self._constrain(u, w)
        across = w.transpose(1, 2)
        # The last step is undone first: the same recurrence with the steps in reverse order.
        a, coupling = torch.baddbmm(b, z, across).flip(-1), (u @ across).flip(-2, -1)
        p = inverse_pre_activations(a, coupling, s.squeeze(1).flip(-1)).flip(-1)
        ladj = -log_det(p, s, log_s).sum(-1)
        z = torch.baddbmm(z, p.tanh(), u, alpha=-1)
        if self.context_features:
            z, ladj = z.transpose(0, 1), ladj.t()
        return z.reshape(*batch, self.features), ladj.reshape(batch)

    def count_steps(self) -> int:
        return self.length

    def _first(self, steps: int, local: Local) -> tuple[Flow, Local]:
        if not self.context_features:
            return shortened(self, steps, "u", "w", "b"), ()
        sizes = (self.features, self.features, 1)
        return shortened(self, steps), (packed_first(local[0], self.length, steps, sizes),)

    def compiled(self) -> Chain | None:
        """What compiled code has of it: the names of its tensors, where they are its own."""
        return None if self.context_features else Chain("u", "w", "b", self._shift)

    def _constrain(self, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _constrain(u, w, self._shift)

    def extra_repr(self) -> str:
        paper = ", paper_constraint=True" if self.paper_constraint else ""
        return f"{super().extra_repr()}, length={self.length}{paper}"


def step_by_step(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: z′ and the pre-activations p_k = w_kᵀz + b_k, for û in place of u; layouts as in ``_arrange``.

    All faster forms compute this. torch's compiler is given this one, which it fuses.
    """
    received = []
    for u_k, w_k, b_k in zip(u.unbind(1), w.unbind(1), b.unbind(2), strict=True):
        p = (z * w_k.unsqueeze(1)).sum(-1) + b_k
        z = torch.addcmul(z, p.tanh().unsqueeze(-1), u_k.unsqueeze(1))
        received.append(p)
    return z, torch.stack(received, -1)


def _push(
    z: Tensor, parameters: tuple[Tensor, ...], length: int, shift: float
) -> tuple[Tensor, Tensor]:
    if native.usable(z, *parameters):
        return native.push(push_in_torch, z, parameters, length, shift)
    return push_in_torch(z, parameters, length, shift)


def push_in_torch(
    z: Tensor, parameters: tuple[Tensor, ...], length: int, shift: float
) -> tuple[Tensor, Tensor]:
    """All steps in the coordinates wᵀz, for u, w, b apart or packed in one tensor (:mod:`varflow.native.planar`)."""
    shape = z.shape
    z, u, w, b = _arrange(z, parameters, length)
    u, s, log_s = _constrain(u, w, shift)
    if torch.compiler.is_compiling():
        z, p = step_by_step(z, u, w, b)
    else:
        across = w.transpose(1, 2)
        p = pre_activations(torch.baddbmm(b, z, across), u @ across)
        z = torch.baddbmm(z, p.tanh(), u)
    ladj = log_det(p, s, log_s).sum(-1)
    if len(parameters) == 1:
        z, ladj = z.transpose(0, 1), ladj.t()
    return z.reshape(shape), ladj.reshape(shape[:-1])


def _arrange(
    z: Tensor, parameters: tuple[Tensor, ...], length: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z [G, R, D], u and w [G, K, D], b [G, 1, K] for G parameter sets of R points each."""
    features = z.shape[-1]
    if len(parameters) == 1:
        (packed,) = parameters
        packed = packed.reshape(math.prod(packed.shape[:-1]), packed.shape[-1])
        size = length * features
        u, w, b = packed.split([size, size, length], -1)
        u, w = (x.unflatten(-1, (length, features)) for x in (u, w))
        points = _share(z, u.shape[0])
        return z.reshape(points, u.shape[0], features).transpose(0, 1), u, w, b.unsqueeze(1)
    u, w, b = parameters
    sets = math.prod(u.shape[:-2])
    u, w = (x.reshape(sets, length, features) for x in (u, w))
    z = z.reshape(sets, _share(z, sets), features)
    return z, u, w, b.reshape(sets, 1, length)


def _share(z: Tensor, sets: int) -> int:
    """Points of each set."""
    points = math.prod(z.shape[:-1])
    # A traced program is for any number of sets; of an empty batch there are none.
    return points // sets if torch.compiler.is_compiling() or sets else 0


def _constrain(u: Tensor, w: Tensor, shift: float) -> tuple[Tensor, Tensor, Tensor]:
    """û [G, K, D]; s = 1 + m(wᵀu) = 1 + wᵀû [G, 1, K]; and log s, exact where s underflows."""
    square = (w * w).sum(-1)
    dot = (u * w).sum(-1)
    # Below this ‖w‖² a step is a translation in any precision, and dividing by it could
    # overflow.
    vanishing = square <= torch.finfo(square.dtype).tiny ** 0.5
    lift = torch.where(vanishing, 0, _excess(dot, shift) / torch.where(vanishing, 1, square))
    shifted = dot + shift
    s = F.softplus(shifted, threshold=40)
    return torch.addcmul(u, lift.unsqueeze(-1), w), s.unsqueeze(1), shifted.unsqueeze(1)


def _excess(a: Tensor, shift: float) -> Tensor:
    """m(a) − a for m(a) = softplus(a + shift) − 1."""
    if torch.compiler.is_compiling():
        return _Excess.forward(a, shift)
    return _Excess.apply(a, shift)


class _Excess(torch.autograd.Function):
    """m(a) − a to full relative accuracy: ‖w‖² divides it, and a vanishes with w.

    With t = 1/(1 + e^shift), m(a) − m(0) = log(1 + (1 − t)(eᵃ − 1)) and, for large a without
    cancellation, m(a) − a − m(0) = log(1 + t (e^{−a} − 1)). The derivative is −σ(−a − shift).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, shift: float) -> Tensor:
        t = 1 / (1 + math.exp(shift))
        at_zero = -math.log(t) - 1 if shift == 0 else 0.0  # the other shift makes m(0) = 0
        positive_part, negative_part = torch.where(a > 0, a, 0), torch.where(a > 0, 0, a)
        above = torch.log1p(t * torch.expm1(-positive_part))
        below = torch.log1p((1 - t) * torch.expm1(negative_part)) - negative_part
        return above + below + at_zero

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, ctx.shift = inputs
        ctx.save_for_backward(a)
        ctx.save_for_forward(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        return -grad * torch.sigmoid(-a - ctx.shift), None

    @staticmethod
    def jvp(ctx: Any, da: Tensor, _: None) -> Tensor:
        (a,) = ctx.saved_tensors
        return -da * torch.sigmoid(-a - ctx.shift)
