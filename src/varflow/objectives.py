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

    The KL term is a mean over samples for every posterior, minus a control variate of mean zero
    (``Draw.control``). For a Gaussian without a flow under a standard normal prior the two together
    are the closed-form KL; the nearer a flow is to the identity, the more of the noise it takes
    away. So posteriors are compared by what they are, not by the noise of their gradients.

    Args:
        beta: weight of the KL term; 1 is the evidence lower bound (Kingma and Welling 2014, eq. 3),
            anything else the β-VAE's loss (Higgins et al. 2017).
        warmup: updates over which the weight grows linearly from 0.
        control: subtract the control variate; without it the plain sample mean.
    """

    beta: float = 1.0
    warmup: int = 0
    control: bool = True

    def weight(self, step: int) -> float:
        """β_t at an update (the first is 0)."""
        return self.beta * min(1.0, step / self.warmup) if self.warmup else self.beta

    def __call__(self, terms: Terms, weight: float | Tensor) -> Tensor:
        """The loss, a scalar in nats. ``weight`` is β_t, a float or (for a compiled step) a tensor."""
        kl = terms.kl
        if self.control and terms.draw.control is not None:
            kl = kl - terms.draw.control
        return (weight * kl - terms.log_likelihood).mean()
