"""Radial flow: each step pulls points towards a centre or pushes them away from it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import positive
from varflow.flows.determinants import log_mean
from varflow.flows.flow import Flow, Local, packed_first, shortened
from varflow.networks.linear import Linear

_SHIFT = math.log(math.e - 1)
#: The square of a length this large is far below the largest float32.
_LARGE = 2.0**40


class Radial(Flow):
    """``length`` steps z ← z + β̂ (z − c) / (α + r) with r = ‖z − c‖, α > 0 and β̂ > −α.

    log|det| = (D − 1) log(ρ + (1 − ρ) s) + log(1 − τ² + τ² s) with τ = α / (α + r) = 1 − ρ and s = 1 + β̂ / α.

    α = softplus(a), s = softplus(b + log(e − 1)). Both terms are weighted means of 1 and the
    positive number s, so nothing cancels, for any β̂. At z = c, ∂z′/∂z = s·I.

    Differs from the paper: β̂ = α (s − 1) is 0 at b = 0 whatever α is, so that b = 0 is the
    identity (the paper's −α + softplus(b) is not); and the inverse is in closed form: with r′ =
    ‖z′ − c‖ and q = r′ − α s, r is the positive root of r² − q r − α r′ = 0.

    Args:
        features: D.
        length: K, the number of steps.
        context_features: C; with C > 0 one linear layer makes c, a, b of all steps from the
            context.

    ``local`` is one tensor ``[*batch, K (D + 2)]``: the centres of all steps, then a, then b.

    Cost, per point and direction: O(KD).

    Source: Rezende and Mohamed, "Variational inference with normalizing flows" (2015), eqs. 14-15
    and appendix A.2.

    >>> flow = Radial(2, length=8)
    >>> z, ladj = flow(torch.randn(5, 2))
    >>> ladj.shape
    torch.Size([5])
    """

    def __init__(self, features: int, length: int = 1, context_features: int = 0) -> None:
        super().__init__(features, context_features)
        positive(length=length)
        self.length = length
        if context_features:
            self.head: Linear = Linear(context_features, length * (features + 2))
        else:
            self.center: nn.Parameter = nn.Parameter(torch.empty(length, features))
            self.a: nn.Parameter = nn.Parameter(torch.empty(length))
            self.b: nn.Parameter = nn.Parameter(torch.empty(length))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """b = 0 (the identity), centres ~ N(0, I), α = 1 (static) or near it."""
        if not self.context_features:
            self.center.normal_()
            self.a.fill_(_SHIFT)
            self.b.zero_()
            return
        size = self.length * self.features
        self.head.weight.normal_(std=0.1 * self.context_features**-0.5)
        self.head.weight[-self.length :].zero_()
        self.head.bias.zero_()
        self.head.bias[:size].normal_()
        self.head.bias[size : size + self.length].fill_(_SHIFT)

    def condition(self, context: Float[Tensor, "*batch context"] | None) -> Local:
        return (self.head(context),) if context is not None else ()

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        center, alpha, s, log_s = self._unpack(local)
        beta = alpha * (s - 1)
        unit = _unit(z, center)
        z, per_unit = z / unit, 1 / unit
        radii = []
        for k in range(self.length):
            offset = torch.addcmul(z, center[k], per_unit, value=-1)
            r = unit * _norm(offset)
            z = torch.addcmul(z, beta[k] / (alpha[k] + r), offset)
            radii.append(r)
        return z * unit, self._ladj(radii, alpha, s, log_s)

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        center, alpha, s, log_s = self._unpack(local)
        unit = _unit(z, center)
        z, per_unit = z / unit, 1 / unit
        radii = []
        for k in reversed(range(self.length)):
            offset = torch.addcmul(z, center[k], per_unit, value=-1)
            r, shrink = _undo(unit * _norm(offset), alpha[k], alpha[k] * s[k])
            z = torch.addcmul(shrink * offset, center[k], per_unit)
            radii.append(r)
        return z * unit, -self._ladj(radii[::-1], alpha, s, log_s)

    def count_steps(self) -> int:
        return self.length

    def _first(self, steps: int, local: Local) -> tuple[Flow, Local]:
        if not self.context_features:
            return shortened(self, steps, "center", "a", "b"), ()
        return shortened(self, steps), (packed_first(local[0], self.length, steps, (self.features, 1, 1)),)

    def _unpack(self, local: Local) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centres [K, *batch, D]; α, s and log s (where s underflows) [K, *batch, 1]."""
        if self.context_features:
            k, d = self.length, self.features
            center, a, b = local[0].split([k * d, k, k], -1)
            center = center.unflatten(-1, (k, d)).movedim(-2, 0)
            a, b = a.movedim(-1, 0), b.movedim(-1, 0)
        else:
            center, a, b = self.center, self.a, self.b
        shifted = (b + _SHIFT).unsqueeze(-1)
        alpha = F.softplus(a, threshold=40).unsqueeze(-1)
        return center, alpha, F.softplus(shifted, threshold=40), shifted

    def _ladj(self, radii: list[Tensor], alpha: Tensor, s: Tensor, log_s: Tensor) -> Tensor:
        r = torch.stack(radii)
        lead = r.ndim - alpha.ndim
        if lead > 0:  # [K, *batch, 1] against [K, samples, *batch, 1]
            shape = (len(r),) + (1,) * lead + tuple(alpha.shape[1:])
            alpha, s, log_s = alpha.reshape(shape), s.reshape(shape), log_s.reshape(shape)
        total = alpha + r
        tau, rho = alpha / total, r / total
        ladj = log_mean(rho * (1 + tau), tau * tau, s, log_s)
        if self.features > 1:
            ladj = ladj + (self.features - 1) * log_mean(rho, tau, s, log_s)
        return ladj.sum(0).squeeze(-1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, length={self.length}"


def _unit(z: Tensor, center: Tensor) -> Tensor:
    """What lengths are measured in ``[..., 1]``, so that no square overflows: 1, but for huge points or centres."""
    largest = z.detach().abs().amax(-1, keepdim=True)
    furthest = center.detach().abs().amax((0, -1)).unsqueeze(-1)
    return (torch.maximum(largest, furthest) / _LARGE).clamp(min=1)


def _norm(x: Tensor) -> Tensor:
    """‖x‖ over the last dimension, kept; its derivative at 0 is taken as 0, to any order."""
    square = (x * x).sum(-1, keepdim=True)
    zero = square == 0
    return torch.where(zero, 0, torch.where(zero, 1, square).sqrt())


def _undo(r_y: Tensor, alpha: Tensor, alpha_s: Tensor) -> tuple[Tensor, Tensor]:
    """r before a step from r after it, and r / r_y; ``alpha_s`` is α + β̂."""
    q = r_y - alpha_s
    # Squares are taken of numbers of size 1 at most.
    scale = torch.maximum(torch.maximum(r_y, alpha_s), alpha).detach()
    scale = torch.where(scale == 0, 1, scale)
    square = (q / scale).square() + 4 * (alpha / scale) * (r_y / scale)
    zero = square == 0
    root = torch.where(zero, 0, scale * torch.where(zero, 1, square).sqrt())
    # Two forms of one root; each is used where it adds numbers of one sign.
    grow = q >= 0
    share = r_y / torch.where(grow, 1, root - q)
    r = torch.where(grow, 0.5 * q + 0.5 * root, 2 * alpha * share)
    down = r + alpha_s
    return r, (alpha + r) / torch.where(down > 0, down, 1)
