"""The VampPrior: the posteriors of a few learned inputs, averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError, positive, unknown
from varflow.core.form import Form
from varflow.core.settings import Size, settings
from varflow.networks.mlp import as_shape
from varflow.priors._components import by_rows, pick
from varflow.priors.prior import Prior, PriorSettings

#: What the data may be → whether pseudo-inputs live between 0 and 1.
_BOUNDED = {"binary": True, "grey": True, "unit": True, "real": False}
#: Data values v enter as logits of ½ + 0.9 (v − ½): 0 and 1 themselves have none.
_SHRINK = 0.9


@settings("Vamp")
class VampSettings(PriorSettings):
    components: Annotated[int, "Pseudo-inputs of the VampPrior.", Size()] = 100

    def check(self, spec: Any) -> None:
        if spec.get("top_latent"):
            raise SpecError(
                "top_latent: a VampPrior averages q(z|x) over all latents at once, and two layers need a prior of "
                "the second alone; use prior=normal, mixture or a flow"
            )

    def build(self, part: Any, features: int, form: Form) -> Prior:
        if form.support == "columns":
            raise SpecError(
                "prior: the inputs of a VampPrior are learned numbers, and codes and counts of a table cannot "
                "move by small steps; use prior=mixture or a flow"
            )
        support = "real" if form.support == "real" else "unit"
        return Vamp(features, form.event_shape, self.components, support)


class Vamp(Prior):
    """p(z) = 1/K Σₖ q(z|uₖ): the variational posterior at K pseudo-inputs u, learned with the rest.

    The prior owns the pseudo-inputs alone, as free numbers v with u = v for real data and u = sigmoid(v) for
    data between 0 and 1. q is the model's posterior: :meth:`bind` keeps a reference to it and registers none
    of its tensors, and :class:`~varflow.Model` calls it.

    Args:
        features: D.
        event_shape: shape of one x.
        components: K.
        support: the values of the data: binary, grey, unit or real.
        start: examples ``[K, *event]`` that the pseudo-inputs start at; without them random ones, v ~ N(0, 1)
            for real data and N(0, 1) logits otherwise.

    Attributes:
        free: v ``[K, *event]``.

    Raises:
        SpecError: a size that is not positive, or an unknown support.
        ShapeError: ``start`` has another shape.

    Cost: K encoder passes for each call of ``log_prob`` without ``context``, and K densities q(z|u) a point: K·D
    operations for a Gaussian posterior. A static flow after it is inverted once a point, an amortized
    one K times. A sample is one draw of the posterior at a random pseudo-input.

    Source: Tomczak and Welling 2018, "VAE with a VampPrior" (arXiv:1705.07120), eq. 9. Different from the
    paper: sigmoid in place of a clipped linear map; any posterior whose density can be asked for, flows
    included; one stochastic layer.

    Example:
        >>> import torch, varflow as vf
        >>> posterior = vf.posteriors.Gaussian(2, vf.networks.MLP(6, hidden=(8,)))
        >>> prior = Vamp(2, (6,), components=5, support="binary")
        >>> prior.bind(posterior)
        >>> prior.log_prob(prior.sample((3, 4))).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        features: int,
        event_shape: int | Sequence[int],
        components: int = 500,
        support: str = "real",
        start: Float[Tensor, "components ..."] | None = None,
    ) -> None:
        super().__init__()
        positive(features=features, components=components)
        if support not in _BOUNDED:
            raise unknown("support", support, _BOUNDED)
        self.event_shape: tuple[int, ...] = (features,)
        self.components: int = components
        self.support: str = support
        shape = (components, *as_shape("event_shape", event_shape))
        self.free: nn.Parameter = nn.Parameter(torch.randn(shape))
        # A list, so that the posterior's tensors are not registered a second time.
        self._posterior: list[Any] = []
        if start is not None:
            self.start_at(start)

    def bind(self, posterior: Any) -> None:
        """Let q be ``posterior``.

        Raises:
            SpecError: it reads no x, its density cannot be asked for, its encoder couples the examples of a
                batch, or it has another number of features.
        """
        if not posterior.reads_x:
            raise SpecError(
                "prior: a VampPrior is made of posteriors of x, and this posterior reads none; use prior=mixture"
            )
        if getattr(posterior, "uses_gradient", False):
            raise SpecError(
                f"prior: a VampPrior scores latents under q(z|u), and {type(posterior).__name__} has no density "
                "of z alone; use prior=mixture or a flow"
            )
        if any(getattr(part, "couples_examples", False) for part in posterior.modules()):
            raise SpecError(
                "prior: pseudo-inputs would enter the batch statistics of the encoder; use "
                "normalization=group, or prior=mixture"
            )
        features = getattr(posterior, "features", self.event_shape[0])
        if (features,) != self.event_shape:
            raise SpecError(
                f"prior: has {self.event_shape[0]} features, the posterior {features}; build both with the same"
            )
        self._posterior = [posterior]

    @torch.no_grad()
    def start_at(self, x: Float[Tensor, "components ..."]) -> None:
        """Set the pseudo-inputs to examples ``[K, *event]``; values in [0, 1] are shrunk to [0.05, 0.95].

        Raises:
            ShapeError: another shape.
        """
        if x.shape != self.free.shape:
            raise ShapeError(
                f"start: shape {tuple(x.shape)}; {self.components} pseudo-inputs need {tuple(self.free.shape)}"
            )
        x = x.to(self.free)
        self.free.copy_(torch.logit(0.5 + _SHRINK * (x - 0.5)) if _BOUNDED[self.support] else x)

    def inputs(self) -> Float[Tensor, "components ..."]:
        """The pseudo-inputs u ``[K, *event]``."""
        return torch.sigmoid(self.free) if _BOUNDED[self.support] else self.free

    def conditional(self) -> Any:
        """q(z|u) of all pseudo-inputs, a batch of K; ``log_prob`` takes it as ``q``.

        Raises:
            SpecError: no posterior is bound.
        """
        return self._bound()(self.inputs())

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None, q: Any = None
    ) -> Float[Tensor, "..."]:
        """log p(z) in nats, ``[..., D]`` → ``[...]``.

        Args:
            z: points.
            context: refused; a VampPrior reads none.
            q: :meth:`conditional`, where it is already there; without it the pseudo-inputs are encoded.

        Raises:
            ShapeError: the last dimension of z is not D.
            SpecError: no posterior is bound, or a context.
        """
        self.refuse_context(context)
        features = self.event_shape[0]
        if z.ndim == 0 or z.shape[-1] != features:
            raise ShapeError(f"z: shape {tuple(z.shape)}; this prior needs [..., {features}]")
        q = self.conditional() if q is None else q

        def average(rows: Tensor) -> Tensor:
            each: Tensor = q.log_prob(rows.unsqueeze(-2))
            return each.logsumexp(-1) - math.log(self.components)

        return by_rows(average, z, self.components)

    def sample(self, shape: Sequence[int] = (), context: Tensor | None = None) -> Float[Tensor, "..."]:
        self.refuse_context(context)
        shares = self.free.new_full((self.components,), 1 / self.components)
        u = random.uniform((math.prod(shape),), "prior", dtype=shares.dtype, device=shares.device)
        which = pick(shares, u)
        chosen = self._bound().from_local(tuple(part[which] for part in self.conditional().local))
        z: Tensor = chosen.draw(1).z[0]
        return z.reshape(*shape, *self.event_shape)

    def extra_repr(self) -> str:
        return f"components={self.components}, inputs={tuple(self.free.shape[1:])}, support={self.support}"

    def _bound(self) -> Any:
        if not self._posterior:
            raise SpecError(
                "prior: this VampPrior has no posterior yet; put it into a Model, or call bind(posterior)"
            )
        return self._posterior[0]
