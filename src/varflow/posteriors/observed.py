"""Density estimation as one more model: the latents are the data.

p(x|z) and q(z|x) are the same point mass at z = x, whose density, whatever it is, cancels in

    log w = log p(x|z) + log p(z) − log q(z|x) = log p(x),

so both are written as 0. Every objective and estimator of the house then fits and scores the prior by exact
maximum likelihood, with no noise in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from varflow.errors import ShapeError, SpecError
from varflow.networks.mlp import as_shape
from varflow.posteriors.posterior import Conditional, Draw, LogJoint, Posterior


class ObservedConditional(Conditional):
    """The point mass at z = x. ``local`` is x as a vector ``[B, D]``."""

    def __init__(self, x: Tensor) -> None:
        self.local = (x,)

    def draw(self, samples: int = 1, log_joint: LogJoint | None = None, hold: bool = False) -> Draw:
        """x, ``samples`` times, with log_q = 0 (see the module)."""
        (x,) = self.local
        z = x.expand(samples, *x.shape)
        zero = torch.zeros_like(z[..., 0])
        return Draw(z, zero, z, zero)

    def log_prob(self, z: Tensor) -> Tensor:
        """Refused: a point mass has no density. Raises SpecError."""
        raise SpecError(
            "log_prob: x is observed itself, and a point mass has no density; use model.terms"
        )


class Observed(Posterior):
    """z = x, flattened to a vector of D numbers."""

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_shape("event_shape", event_shape)
        self.features = math.prod(self.event_shape)

    def forward(self, x: Tensor | None = None) -> ObservedConditional:
        if x is None or x.shape[-len(self.event_shape) :] != self.event_shape:
            given = None if x is None else tuple(x.shape)
            raise ShapeError(f"x: shape {given}; this model needs [B, {self.event_shape}]")
        return ObservedConditional(x.flatten(-len(self.event_shape)))

    def from_local(self, local: tuple[Tensor, ...]) -> ObservedConditional:
        return ObservedConditional(*local)
