"""The contract of a posterior.

``q = posterior(x)`` encodes a batch once (``x=None`` for a target without data) and gives the
distribution q(z|x) of each example. From there everything is asked of q.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from varflow.core import display
from varflow.core.errors import SpecError
from varflow.core.observed import Examples
from varflow.priors.prior import Prior

LogJoint = Callable[[Tensor], Tensor]


class Draw(NamedTuple):
    """Samples of q and their density.

    Attributes:
        z: ``[S, *B, D]``, the samples.
        log_q: ``[S, *B]``, log q(z|x) in nats: log q₀(z₀) − ladj for a flow.
        z0: ``[S, *B, D]``, the base samples that became z.
        ladj: ``[S, *B]``, log|det ∂z/∂z₀| in nats.
        control: ``[S, *B]``, a function of the samples whose mean under q is zero, or None: the sample of
            log q₀(z₀) − log N(z₀; 0, I) less its closed-form mean. Objectives subtract it from
            log q − log p(z), which it follows closely, and so estimate the same mean with less noise.
        momentum: ``[S, *B, D]``, what z came with where q lives on positions and momenta, else None.
        log_joint: ``[S, *B]``, log p(x, z) in nats where drawing had to compute it anyway, else None.
    """

    z: Tensor
    log_q: Tensor
    z0: Tensor
    ladj: Tensor
    control: Tensor | None = None
    momentum: Tensor | None = None
    log_joint: Tensor | None = None


class Conditional(ABC):
    """q(z|x) for a batch of x.

    Attributes:
        local: the tuple of per-example tensors that make q what it is. Optimizing them alone, and
            rebuilding with ``posterior.from_local(local)``, refines q example by example.
        codes: integers ``[*B, *grid]``, where a prior over codes is what z is charged to; else None.
        context: what the prior is conditioned on ``[*B, ...]``, e.g. labels; else None.
        auxiliary: further losses by name, each a scalar in nats per example.
    """

    local: tuple[Tensor, ...]
    codes: Tensor | None = None
    context: Tensor | None = None
    auxiliary: Mapping[str, Tensor] = MappingProxyType({})

    @abstractmethod
    def draw(self, samples: int = 1, log_joint: LogJoint | None = None, hold: bool = False) -> Draw:
        """S reparameterised samples for each example, with their log q.

        Args:
            samples: S.
            log_joint: z → log p(x, z); used by posteriors that follow its gradient, ignored by others.
            hold: log q depends on the parameters through z alone (path-derivative gradients, Roeder,
                Wu and Duvenaud 2017).
        """

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x) of points drawn elsewhere, ``[S, *B, D]`` → ``[S, *B]``, nats."""

    def held(self) -> Conditional:
        """The same q with every parameter cut from the graph, so that its density knows them through z alone.

        Raises:
            SpecError: where the density of a point cannot be had without what drew it.
        """
        raise SpecError(f"hold: {type(self).__name__} has no density of its own; use gradient=total")

    def kl_groups(self, prior: Prior) -> Tensor | None:
        """KL(q(z_d|x) ‖ p(z_d)) of each latent ``[1, *B, D]`` in nats, where both q and p are independent over
        latents and it has a closed form; else None.
        """
        return None

    @property
    def diagonal(self) -> tuple[Tensor, Tensor] | None:
        """(mean, log-scale), each ``[*B, D]``, where q is a diagonal Gaussian in z; else None."""
        return None

    @property
    def centre(self) -> Tensor:
        """One point in the middle of q, ``[*B, D]``, with nothing random in it: the mean of a Gaussian, and its image
        under a flow.

        Raises:
            SpecError: a posterior that names no such point.
        """
        raise SpecError(f"centre: {type(self).__name__} names no point in its middle; draw samples instead")

    def shared(self) -> list[str]:
        """What all examples have in common beside ``local``, and so stands still while that is refined: sentences."""
        return []


class Posterior(nn.Module, ABC):
    """The map x → q(z|x) with its learned parameters.

    Attributes:
        reads_x: whether q depends on x through an encoder; if not, q is one distribution, with parameters of
            its own, and ``posterior()`` is called without x.
        discrete: whether z is looked up by codes, which the prior is over.
        observed: whether z is x itself, as a vector: the prior is then fitted to the data.
        reads: what it can be conditioned on beside x, among "context" and "mask".
        gaussian: whether q(z|x), before a flow if there is one, is a diagonal Gaussian, whose KL to N(0, I) has a
            closed form for each latent.
        uses_gradient: whether drawing follows the gradient of log p(x, z), which ``draw`` then has to be given.
        codes: how many codewords there are, for a posterior whose codes are counted; 0 for any other.
        grid: the shape of the codes of one example, where they are counted.
    """

    reads_x: bool = True
    discrete: bool = False
    observed: bool = False
    gaussian: bool = False
    reads: tuple[str, ...] = ()
    uses_gradient: bool = False
    codes: int = 0
    grid: tuple[int, ...] = ()

    def _repr_html_(self) -> str:
        return display.tree(self)

    def monitor(self) -> dict[str, float]:
        """What is worth a curve beside the terms, since the last call; nothing for most."""
        return {}

    def refuses_compilation(self, gradient: str) -> str | None:
        """Why a training step with this estimator of the gradient cannot be compiled, a sentence; None if it can."""
        return None

    @abstractmethod
    def forward(self, x: Examples | None = None) -> Conditional:
        """Encode x ``[B, *event]`` once, with its context and mask where there are such."""

    if TYPE_CHECKING:
        # torch types every call of a module as Any.
        def __call__(self, x: Examples | None = None) -> Conditional: ...

    @abstractmethod
    def from_local(self, local: tuple[Tensor, ...]) -> Conditional:
        """The q whose per-example tensors are ``local``."""
