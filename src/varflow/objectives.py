"""Terms → a scalar to minimise. Sums over the event, means over the batch, nats.

Every objective is a function of :class:`varflow.Terms` and of a weight that follows the step. ``hold``
and ``groups`` say what it needs of :meth:`varflow.Model.terms`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch

from varflow.core import ranks
from varflow.core.durations import DURATION
from varflow.core.errors import SpecError
from varflow.core.settings import AtLeast, Settings, settings
from varflow.native.planar_fit import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from varflow.model import Terms

#: name in a spec → the objective.
TABLE = {
    "elbo": "varflow.objectives:ELBO",
    "annealed": "varflow.objectives:AnnealedELBO",
    "iwae": "varflow.objectives:ImportanceWeighted",
}

Gradient = Literal["total", "path", "dreg"]


@settings
class ObjectiveSettings(Settings):
    """What every objective can be told."""

    samples: Annotated[
        int, "Posterior samples for each example in a training step.", AtLeast(1)
    ] = 1


@settings("ELBO")
class ELBOSettings(ObjectiveSettings):
    beta: Annotated[
        float,
        "Weight of the KL term; anything but 1 trains something else than the ELBO.",
        AtLeast(0),
    ] = 1.0
    warmup: Annotated[
        str,
        'How long the weight of the KL term grows linearly from 0 to beta, e.g. "10 epochs" or "2000 steps".',
        DURATION,
    ] = "0 steps"
    control: Annotated[
        bool,
        "Subtract the control variate of mean zero from the KL term: the same objective with less noise.",
    ] = True
    free_bits: Annotated[float, "Nats that each latent may spend for free.", AtLeast(0)] = 0.0
    gradient: Annotated[
        Literal["total", "path"], "Total derivative; path: without the score of q."
    ] = "total"

    def build(self, part: Any, steps_per_epoch: int) -> ELBO:
        warmup = DURATION.steps("warmup", self.warmup, steps_per_epoch)
        return ELBO(self.beta, warmup, self.control, self.free_bits, self.gradient)


@settings("AnnealedELBO")
class AnnealedSettings(ObjectiveSettings):
    gradient: Annotated[
        Literal["total", "path"], "Total derivative; path: without the score of q."
    ] = "total"
    anneal: Annotated[
        int, "Updates until the log-joint has its full weight.", AtLeast(0)
    ] = 10_000

    def build(self, part: Any, steps_per_epoch: int) -> AnnealedELBO:
        return AnnealedELBO(self.anneal, gradient=self.gradient)


@settings("ImportanceWeighted")
class ImportanceWeightedSettings(ObjectiveSettings):
    gradient: Annotated[
        Literal["total", "dreg"], "Total derivative; dreg: doubly reparameterised."
    ] = "total"

    def build(self, part: Any, steps_per_epoch: int) -> ImportanceWeighted:
        return ImportanceWeighted(self.gradient)


class Objective(ABC):
    """Terms → loss, with what the training loop asks beside it.

    Attributes:
        gradient: the estimator of the gradient.
        bound: the name of the bound that is maximised.
        tightens: whether each number of samples has a bound of its own, so that validation needs as many as training.
        hold: whether log q has to depend on the parameters through z alone.
        groups: whether the terms need the KL of each latent.
        final: the weight at the end.
        settled: updates until the weight has its final value.
    """

    gradient: Gradient
    bound: ClassVar[str] = "ELBO"
    tightens: ClassVar[bool] = False

    @property
    def hold(self) -> bool:
        return self.gradient != "total"

    @property
    def groups(self) -> bool:
        return False

    @property
    def final(self) -> float:
        return 1.0

    @property
    def settled(self) -> int:
        return 0

    def weight(self, step: int) -> float:
        """The weight β_t at an update (the first is 0)."""
        return 1.0

    def lower_bound(self, terms: Terms) -> Tensor:
        """The bound on log p(x) of each example ``[B]``, nats: the mean of log w over its samples."""
        return terms.log_weight.mean(0)

    @abstractmethod
    def __call__(self, terms: Terms, weight: float | Tensor) -> Tensor:
        """The loss, a scalar in nats. ``weight`` is β_t, a float or (for a compiled step) a tensor."""


@dataclass(frozen=True)
class ELBO(Objective):
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
        free_bits: λ nats: the KL of each latent, averaged over the batch, costs max(λ, KL)
            (Kingma et al. 2016, eq. 15, with one latent a group).
        gradient: ``"total"`` derivative, or ``"path"``: the derivative through z alone, without the
            score of q, whose mean is zero (Roeder, Wu and Duvenaud 2017). It vanishes where q is exact.

    Raises:
        SpecError: free bits for terms without a KL of each latent.
    """

    beta: float = 1.0
    warmup: int = 0
    control: bool = True
    free_bits: float = 0.0
    gradient: Literal["total", "path"] = "total"

    @property
    def groups(self) -> bool:
        return self.free_bits > 0

    @property
    def final(self) -> float:
        return self.beta

    @property
    def settled(self) -> int:
        return self.warmup

    def weight(self, step: int) -> float:
        """β_t at an update (the first is 0)."""
        return self.beta * min(1.0, step / self.warmup) if self.warmup else self.beta

    def compiled(self) -> Loss | None:
        """What compiled code has of it."""
        return None if self.hold or self.free_bits else Loss("elbo", self.control)

    def __call__(self, terms: Terms, weight: float | Tensor) -> Tensor:
        if self.free_bits:
            if terms.kl_groups is None:
                raise SpecError(
                    "free_bits: this posterior and prior have no KL of each latent; use flow=none and prior=normal"
                )
            each = terms.kl_groups.flatten(0, -2).mean(0)
            if torch.is_grad_enabled():
                # In training it is the global batch that decides which latents are free.
                each = ranks.mean(each)
            return weight * each.clamp(min=self.free_bits).sum() - terms.log_likelihood.mean()
        kl = terms.kl
        if self.control and terms.draw.control is not None:
            kl = kl - terms.draw.control
        return (weight * kl - terms.log_likelihood).mean()


@dataclass(frozen=True)
class AnnealedELBO(Objective):
    """E_q[log q(z) − β_t log p(x, z)], with β_t = min(1, start + step / steps).

    The whole log-joint is tempered, so that a fit to a density of several modes begins with a flat one
    (Rezende and Mohamed 2015, eq. 20: start = 0.01 and 10,000 steps).

    Args:
        steps: updates over which β_t grows by 1; 0 for none.
        start: β at the first update.
        gradient: as :class:`ELBO`.
    """

    steps: int = 10_000
    start: float = 0.01
    gradient: Literal["total", "path"] = "total"

    @property
    def settled(self) -> int:
        return math.ceil((1.0 - self.start) * self.steps)

    def weight(self, step: int) -> float:
        """β_t at an update (the first is 0)."""
        return min(1.0, self.start + step / self.steps) if self.steps else 1.0

    def compiled(self) -> Loss | None:
        """What compiled code has of it."""
        return None if self.hold else Loss("annealed")

    def __call__(self, terms: Terms, weight: float | Tensor) -> Tensor:
        return (terms.log_q - weight * (terms.log_likelihood + terms.log_prior)).mean()


@dataclass(frozen=True)
class ImportanceWeighted(Objective):
    """−E log (1/S) Σ_s w_s, the importance-weighted bound (Burda, Grosse and Salakhutdinov 2016, eq. 8).

    Args:
        gradient: ``"total"``, or ``"dreg"``: the doubly reparameterised gradient (Tucker et al. 2019, eq. 8).
            Parameters of q get Σ_s w̃_s² ∂log w_s/∂z ∂z/∂φ, whose signal does not drown for many
            samples; all others their usual Σ_s w̃_s ∂log w_s/∂θ. Both are unbiased.

    The path gradient of the ELBO is not offered here: for S > 1 it is biased.
    """

    gradient: Literal["total", "dreg"] = "total"
    bound: ClassVar[str] = "importance-weighted bound"
    tightens: ClassVar[bool] = True

    def lower_bound(self, terms: Terms) -> Tensor:
        """log (1/S) Σ_s w_s of each example ``[B]``, nats."""
        log_w = terms.log_weight
        return torch.logsumexp(log_w, 0) - math.log(log_w.shape[0])

    def __call__(self, terms: Terms, weight: float | Tensor = 1.0) -> Tensor:
        log_w, bound = terms.log_weight, self.lower_bound(terms).mean()
        if not self.hold or not torch.is_grad_enabled():
            return -bound
        share = torch.softmax(log_w.detach(), 0)
        if terms.z.requires_grad:
            events = terms.z.ndim - log_w.ndim
            factor = share.reshape(*share.shape, *[1] * events)
            terms.z.register_hook(lambda grad: grad * factor)
        # The value of the bound, with the gradient of the weighted sum.
        weighted = (share * log_w).sum(0).mean()
        return -(weighted + (bound - weighted).detach())
