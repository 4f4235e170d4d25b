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

from varflow.core.errors import ShapeError, SpecError
from varflow.core.observed import Examples, parts_of
from varflow.networks.mlp import as_shape
from varflow.posteriors.posterior import Conditional, Draw, LogJoint, Posterior


class DataAsLatentsConditional(Conditional):
    """The point mass at z = x. ``local`` is x as a vector ``[B, D]``."""

    def __init__(self, x: Tensor) -> None:
        self.local: tuple[Tensor, ...] = (x,)

    def draw(self, samples: int = 1, log_joint: LogJoint | None = None, hold: bool = False) -> Draw:
        """x, ``samples`` times, with log_q = 0 (see the module)."""
        (x,) = self.local
        z = x.expand(samples, *x.shape)
        zero = torch.zeros_like(z[..., 0])
        return Draw(z, zero, z, zero)

    @property
    def centre(self) -> Tensor:
        return self.local[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Refused: a point mass has no density. Raises SpecError."""
        raise SpecError(
            "log_prob: x is observed itself, and a point mass has no density; use model.terms"
        )


class DataAsLatents(Posterior):
    """z = x, flattened to a vector of D numbers."""

    observed = True

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape: tuple[int, ...] = as_shape("event_shape", event_shape)
        self.features: int = math.prod(self.event_shape)

    def forward(self, x: Examples | None = None) -> DataAsLatentsConditional:
        # x is z whatever the context is.
        values = parts_of(x)[0]
        if values is None or values.shape[-len(self.event_shape) :] != self.event_shape:
            given = None if values is None else tuple(values.shape)
            raise ShapeError(f"x: shape {given}; this model needs [B, {self.event_shape}]")
        return DataAsLatentsConditional(values.flatten(-len(self.event_shape)))

    def from_local(self, local: tuple[Tensor, ...]) -> DataAsLatentsConditional:
        return DataAsLatentsConditional(*local)


class ObservedGrid(Conditional):
    """The point mass at codes that were given. ``local`` is the codes ``[*B, H, W]``."""

    def __init__(self, codes: Tensor, context: Tensor | None) -> None:
        self.local: tuple[Tensor, ...] = (codes,)
        self.codes: Tensor = codes
        self.context: Tensor | None = context

    def draw(self, samples: int = 1, log_joint: LogJoint | None = None, hold: bool = False) -> Draw:
        """The codes, ``samples`` times, with log_q = 0: q(codes) = 1."""
        (codes,) = self.local
        z = codes.expand(samples, *codes.shape)
        zero = torch.zeros(z.shape[:-2], device=codes.device)
        return Draw(z, zero, z, zero)

    @property
    def centre(self) -> Tensor:
        return self.local[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Refused: what is given is not drawn. Raises SpecError."""
        raise SpecError("log_prob: the codes are observed themselves; use model.terms")


class CodesAsLatents(Posterior):
    """z = x for grids of codes, integers ``[B, H, W]``; with ``labelled``, rows ``[B, 1 + H·W]`` of a label and the
    codes (:func:`varflow.data.from_codes`), whose label the prior is conditioned on.

    The mass p(x) = p(codes) needs no correction: log w = log p(codes), or log p(codes | label).

    Args:
        shape: (H, W).
        labelled: whether labels come first.
    """

    discrete = True

    def __init__(self, shape: Sequence[int], labelled: bool = False) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = as_shape("shape", shape)
        self.labelled: bool = labelled
        self.event_shape: tuple[int, ...] = (1 + math.prod(self.shape),) if labelled else self.shape

    def forward(self, x: Examples | None = None) -> ObservedGrid:
        """Raises ShapeError where x is missing or of another shape."""
        values = parts_of(x)[0]
        size = len(self.event_shape)
        if values is None or tuple(values.shape[-size:]) != self.event_shape:
            given = None if values is None else tuple(values.shape)
            raise ShapeError(f"x: shape {given}; this model needs [B, {self.event_shape}]")
        if not self.labelled:
            return ObservedGrid(values, None)
        return ObservedGrid(values[..., 1:].unflatten(-1, self.shape), values[..., 0])

    def decode_codes(self, codes: Tensor) -> Tensor:
        """The codes themselves."""
        return codes

    def from_local(self, local: tuple[Tensor, ...]) -> ObservedGrid:
        return ObservedGrid(local[0], None)
