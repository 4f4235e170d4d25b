"""Planar flow: each step pushes points along one direction, by an amount set by a plane."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from varflow.flows._batch import align
from varflow.flows._chain import log_mean, sech2, unwind, wind
from varflow.flows.flow import Flow, Local, positive


class Planar(Flow):
    r"""``length`` steps z ← z + û tanh(wᵀz + b), with û chosen such that every step is invertible.

    .. math::
        û = u + (m(wᵀu) − wᵀu) w / ‖w‖², \qquad \log|\det| = \log(h² + (1 − h²)(1 + m(wᵀu)))

    with h = tanh(wᵀz + b) and m(a) = softplus(a + log(e − 1)) − 1 > −1. At w = 0, û = u. The
    determinant is a weighted mean of 1 and a positive number, so it is positive for all parameters.

    Differs from the paper: its m(a) = softplus(a) − 1 is not 0 at 0, so that u = 0 is not the identity
    (``paper_constraint=True`` restores it); and the inverse, which the paper calls intractable, is
    exact: one increasing scalar equation a step.

    All K steps are computed in the coordinates wᵀz: with A = z Wᵀ + b and G = W Ûᵀ the
    pre-activations obey a_k = A_k + Σ_{j<k} G_kj tanh(a_j), and z′ = z + tanh(a) Û.

    Args:
        features: D.
        length: K, the number of steps.
        context_features: C; with C > 0 one linear layer makes u, w, b of all steps from the context.
        paper_constraint: use the paper's m.

    ``local`` is one tensor ``[*batch, K (2D + 1)]``: u of all steps, then w, then b.

    Cost, per point: O(KD + K²) forward (static; the Gram matrix adds K²D per parameter set, so per
    example if amortized), and the same plus K scalar root solves for the inverse.

    Source: Rezende and Mohamed, "Variational inference with normalizing flows" (2015), eqs. 10-13 and
    appendix A.1.

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
            self.head = nn.Linear(context_features, length * (2 * features + 1))
        else:
            self.u = nn.Parameter(torch.empty(length, features))
            self.w = nn.Parameter(torch.empty(length, features))
            self.b = nn.Parameter(torch.empty(length))
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
        z, directions, bias, batch = self._arrange(z, local)
        a, coupling, lift, s, log_s = self._gram(z, directions, bias)
        p = wind(a, coupling)
        h = p.tanh()
        ladj = log_mean(h * h, sech2(p), s.unsqueeze(1), log_s.unsqueeze(1)).sum(0)
        return self._move(z, h, lift, directions).reshape(*batch, self.features), ladj.reshape(batch)

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        z, directions, bias, batch = self._arrange(z, local)
        a, coupling, lift, s, log_s = self._gram(z, directions, bias, reverse=True)
        p = unwind(a.flip(0), coupling.flip(0, 1), s.flip(0)).flip(0)
        h = p.tanh()
        ladj = log_mean(h * h, sech2(p), s.unsqueeze(1), log_s.unsqueeze(1)).sum(0)
        return self._move(z, -h, lift, directions).reshape(*batch, self.features), -ladj.reshape(batch)

    def _arrange(self, z: Tensor, local: Local) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """Points [R, G, D], directions [G, 2K, D] (u above w), biases [G, K] and the batch shape."""
        if self.context_features:
            z, packed, batch = align(z, local[0])
            size = 2 * self.length * self.features
            directions, bias = packed.split([size, self.length], -1)
            return z, directions.unflatten(-1, (2 * self.length, self.features)), bias, batch
        batch = tuple(z.shape[:-1])
        directions = torch.cat([self.u, self.w]).unsqueeze(0)
        return z.reshape(math.prod(batch), 1, self.features), directions, self.b.unsqueeze(0), batch

    def _gram(
        self, z: Tensor, directions: Tensor, bias: Tensor, reverse: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Everything the recurrence needs, unit first.

        a [K, R, G]; coupling [K, K, G], what step j sends to a later step (``reverse``: to an earlier
        one); lift [K, 1, G], the multiple of w in û; s = 1 + m(wᵀu) [K, G] and its logarithm where
        s underflows.
        """
        k = self.length
        w = directions[:, k:]
        products = w @ directions.transpose(1, 2)
        wu, ww = products[..., :k], products[..., k:]
        dot, square = wu.diagonal(dim1=1, dim2=2), ww.diagonal(dim1=1, dim2=2)
        shifted = dot + self._shift
        s = F.softplus(shifted, threshold=40)
        # m(a) − a = log(1 + e^{−(a + shift)}) + shift − 1, without the cancellation of s − 1 − a.
        excess = F.softplus(-shifted, threshold=40) + (self._shift - 1)
        # Below this ‖w‖² a step is a translation in any precision, and dividing by it could overflow.
        vanishing = square <= torch.finfo(square.dtype).tiny ** 0.5
        lift = torch.where(vanishing, 0, excess / torch.where(vanishing, 1, square))
        coupling = torch.addcmul(wu, ww, lift.unsqueeze(1))
        coupling = coupling.triu(1) if reverse else coupling.tril(-1)
        a = torch.baddbmm(bias.unsqueeze(-1), w, z.permute(1, 2, 0))
        return (
            a.permute(1, 2, 0),
            coupling.permute(2, 1, 0),
            lift.t().unsqueeze(1),
            s.t(),
            shifted.t(),
        )

    def _move(self, z: Tensor, h: Tensor, lift: Tensor, directions: Tensor) -> Tensor:
        """z + Σ_k h_k û_k."""
        amounts = torch.cat([h, h * lift]).permute(2, 1, 0)
        return torch.baddbmm(z.transpose(0, 1), amounts, directions).transpose(0, 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, length={self.length}"
