"""The one model: a prior, a likelihood, and a posterior put together.

    log w = log p(x|z) + log p(z) − log q(z|x),   z ~ q(z|x)

is all there is; objectives and estimators are functions of these terms. What a user switches is a
part, never a program.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from varflow.errors import SpecError
from varflow.posteriors.posterior import Conditional, Draw, Posterior
from varflow.priors.prior import Prior


@dataclass(frozen=True)
class Terms:
    """The three terms of the log-weight, for S samples of each of B examples; nats.

    Attributes:
        z: ``[S, B, D]``.
        log_likelihood: log p(x|z) ``[S, B]``.
        log_prior: log p(z) ``[S, B]``.
        log_q: log q(z|x) ``[S, B]``.
        draw: what the posterior returned, with its own fields (base samples, ladj).
        kl_groups: log q − log p of each group of latents ``[S, B, G]``, where the posterior has groups.
        auxiliary: further losses of a part, by name, each a scalar.
    """

    z: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor
    draw: Draw
    kl_groups: Tensor | None = None
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    @property
    def log_weight(self) -> Tensor:
        """log w = log p(x|z) + log p(z) − log q(z|x), ``[S, B]``."""
        return self.log_likelihood + self.log_prior - self.log_q

    @property
    def kl(self) -> Tensor:
        """log q(z|x) − log p(z), ``[S, B]``: its mean over samples estimates KL(q(z|x) ‖ p(z))."""
        return self.log_q - self.log_prior


class Model(nn.Module):
    """p(z) p(x|z) with q(z|x).

    Args:
        prior: p(z).
        likelihood: p(x|z), which owns the decoder.
        posterior: q(z|x), which owns the encoder.

    Raises:
        SpecError: parts that do not combine.

    Example:
        >>> import torch, varflow as vf
        >>> model = vf.Model(
        ...     vf.priors.StandardNormal(2),
        ...     vf.likelihoods.Bernoulli(vf.networks.MLP(2, 6, hidden=(8,)), (6,)),
        ...     vf.posteriors.Gaussian(2, vf.networks.MLP(6, hidden=(8,))),
        ... )
        >>> model.terms(torch.ones(5, 6), samples=3).log_weight.shape
        torch.Size([3, 5])
    """

    def __init__(self, prior: Prior, likelihood: nn.Module, posterior: Posterior) -> None:
        super().__init__()
        features = getattr(posterior, "features", None)
        if features is not None and prior.event_shape != (features,):
            raise SpecError(
                f"prior: is over events of shape {prior.event_shape}, the posterior draws ({features},); "
                "build both with the same number of features"
            )
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior

    def log_joint(self, z: Float[Tensor, "..."], x: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log p(x, z) = log p(x|z) + log p(z): z ``[S, B, D]``, x ``[B, *event]`` → ``[S, B]``, nats."""
        return self.likelihood.log_prob(x, z) + self.prior.log_prob(z)  # type: ignore[operator]

    def terms(
        self,
        x: Shaped[Tensor, "..."],
        samples: int = 1,
        q: Conditional | None = None,
        hold: bool = False,
    ) -> Terms:
        """The terms of log w for S samples of each example of x ``[B, *event]``.

        Args:
            x: a batch, as the data set's protocol gives it.
            samples: S.
            q: q(z|x) where it is already there (refined, or encoded before); else ``posterior(x)``.
            hold: see :meth:`varflow.posteriors.Conditional.draw`.
        """
        q = self.posterior(x) if q is None else q
        draw = q.draw(samples, log_joint=lambda z: self.log_joint(z, x), hold=hold)
        log_likelihood = self.likelihood.log_prob(x, draw.z)  # type: ignore[operator]
        return Terms(draw.z, log_likelihood, self.prior.log_prob(draw.z), draw.log_q, draw)

    def forward(self, x: Tensor, samples: int = 1) -> Terms:
        return self.terms(x, samples)

    @torch.no_grad()
    def sample(self, count: int, mean: bool = False) -> Tensor:
        """x ~ p(x): ``[count, *event]``; with ``mean`` the likelihood's mean instead of its noise."""
        return self._observe(self.prior.sample((count,)), mean)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, mean: bool = True) -> Tensor:
        """One z ~ q(z|x) for each example, decoded: ``[B, *event]``."""
        return self._observe(
            self.posterior(x).draw(1, log_joint=lambda z: self.log_joint(z, x)).z[0], mean
        )

    @torch.no_grad()
    def encode(self, x: Tensor, samples: int = 1) -> Draw:
        """Samples of q(z|x) with their densities."""
        return self.posterior(x).draw(samples, log_joint=lambda z: self.log_joint(z, x))

    def _observe(self, z: Tensor, mean: bool) -> Tensor:
        likelihood: Any = self.likelihood
        return likelihood.mean(z) if mean else likelihood.sample(z)
