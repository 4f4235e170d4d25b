"""The scalar root that inverts a tanh unit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Newton steps after the bounds below. In float64 the slowest corner of (s, q) is exact after five.
STEPS = 6


def tanh_root(q: Tensor, s: Tensor) -> Tensor:
    """p with p + κ tanh(p) = q, κ = s − 1, s ≥ 0. Elementwise and without branches on the data.

    The left side is odd and increasing. For p > 0 it is concave if κ > 0 and convex if κ < 0, so
    Newton from below (κ > 0) or from above (κ < 0) moves towards the root from one side and cannot
    leave the bracket |p − q| ≤ |κ|. What is left to do is to start close, uniformly in κ and q:

    1. κ > 0. From tanh p ≤ min(p, 1): p ≥ q/s and p ≥ q − κ. Deep in saturation these are weak.
       With t = p − (q − κ) = κ(1 − tanh p) ≤ 2κ e^{−2p} one has 2t e^{2t} ≤ 4κ e^{−2(q − κ)};
       Lambert's W(x) is at most log(1 + x), so t ≤ t₁ = ½ softplus(log 4κ − 2(q − κ)), and p = ½
       log(2κ/t − 1) ≥ ½ log(2κ/t₁ − 1).
    2. κ < 0. From tanh p ≤ min(p, 1): p ≤ q/s and p ≤ q − κ. Near the flat point of κ = −1 these
       are weak. There p − tanh p ≥ p³/(3 + 1.2 p²) gives p ≤ (4.2 q/|κ|)^⅓ as long as that is at
       most 1.

    Not differentiable: callers bring the derivative (implicit function theorem).
    """
    kappa = s - 1
    y = q.abs()
    below = torch.fmax(y / s, y - kappa)
    above = torch.fmin(y / s, y - kappa)
    cubic = (4.2 * y / kappa.abs()) ** (1 / 3)
    above = torch.where(cubic < 1, torch.fmin(above, cubic), above)
    bound = 0.5 * F.softplus((4 * kappa).log() - 2 * (y - kappa), threshold=40)
    saturated = 0.5 * (2 * kappa / bound - 1).log()
    # NaN, and so discarded, for κ < 0; and of no use where t₁ is so small that it underflows.
    useful = (saturated > below) & (bound > 1e-3)
    below = torch.where(useful, saturated, below)
    p = torch.where(kappa > 0, below, torch.where(kappa < 0, above, y))
    for _ in range(STEPS):
        h = p.tanh()
        e = torch.exp(-2 * p)
        slope = torch.addcmul(h * h, 4 * e / (1 + e).square(), s)
        p = p - torch.where(slope > 0, torch.addcmul(p - y, kappa, h) / slope, 0)
    return torch.copysign(p, q)
