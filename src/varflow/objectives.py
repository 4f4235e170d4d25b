"""Terms → a scalar to minimise. Sums over the event, means over the batch, nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from varflow.model import Terms

#: name in a spec → the objective.
TABLE = {"elbo": "varflow.objectives:ELBO"}


@dataclass(frozen=True)
class ELBO:
    """−E_q[log p(x|z)] + β_t E_q[log q(z|x) − log p(z)], with β_t = β·min(1, step / warmup).

    The expectation is a mean over the samples, for every posterior the same: no closed-form KL for
    some and samples for others, so bounds of different posteriors differ by what they are.

    Args:
        beta: weight of the KL term; 1 is the evidence lower bound (Kingma and Welling 2014, eq. 3),
            anything else the β-VAE's loss (Higgins et al. 2017).
        warmup: updates over which the weight grows linearly from 0.
    """

    beta: float = 1.0
    warmup: int = 0

    def weight(self, step: int) -> float:
        """β_t at an update (the first is 0)."""
        return self.beta * min(1.0, step / self.warmup) if self.warmup else self.beta

    def __call__(self, terms: Terms, weight: float | Tensor) -> Tensor:
        """The loss, a scalar. ``weight`` is β_t; a tensor of it keeps a compiled step from being compiled anew."""
        if isinstance(weight, float) and weight == 1.0:
            return -terms.log_weight.mean()
        return (weight * terms.kl - terms.log_likelihood).mean()
