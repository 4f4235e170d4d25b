"""Several stochastic layers: p(h₁, h₂) = p(h₂) p(h₁|h₂) over one vector of latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import ShapeError, SpecError
from varflow.priors.layer import GaussianLayer
from varflow.priors.prior import Prior


class Ancestral(Prior):
    """z = [h₁, h₂] with p(z) = p(h₂) p(h₁|h₂); the likelihood reads h₁, see :class:`~varflow.priors.Reads`.

    A top that is itself ancestral makes three layers or more: z = [h₁, h₂, h₃], and ``conditional`` reads h₂.
    What follows log p(x, z) or its gradient (Hamiltonian posteriors, annealed sampling) sees one vector.

    Args:
        top: p(h₂), any prior over vectors.
        conditional: p(h₁|h₂), which reads the first ``conditional.given`` features of the top.

    Attributes:
        slices: name of each layer (h1, h2, …) → where it stands in z.

    Raises:
        SpecError: the conditional reads another number of features than the nearest layer has.

    Source: Burda, Grosse and Salakhutdinov 2016 (arXiv:1509.00519), eq. 1 and section 5. Cost: one network pass
    in both directions, beside the top's.

    Example:
        >>> from varflow.priors import GaussianLayer, StandardNormal
        >>> prior = Ancestral(StandardNormal(50), GaussianLayer(50, 100))
        >>> prior.slices["h1"], prior.sample((3,)).shape
        (slice(0, 100, None), torch.Size([3, 150]))
    """

    slices: dict[str, slice]

    def __init__(self, top: Prior, conditional: GaussianLayer) -> None:
        super().__init__()
        if len(top.event_shape) != 1:
            raise SpecError(
                f"top: is over events of shape {top.event_shape}; use a prior over vectors (D,)"
            )
        above = top.slices if isinstance(top, Ancestral) else {"h1": slice(0, top.event_shape[0])}
        if conditional.given != above["h1"].stop:
            raise SpecError(
                f"conditional: reads {conditional.given} features, the layer above has {above['h1'].stop}; "
                "build both with the same number"
            )
        self.top: Ancestral | Prior = top
        #: p(h₂|c) p(h₁|h₂) where the top reads a context.
        self.reads: tuple[str, ...] = top.reads
        self.conditional: GaussianLayer = conditional
        first = conditional.features
        self.event_shape: tuple[int, ...] = (first + top.event_shape[0],)
        self.slices = {"h1": slice(0, first)}
        for number, place in enumerate(above.values(), start=2):
            self.slices[f"h{number}"] = slice(first + place.start, first + place.stop)

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        """log p(h₂) + log p(h₁|h₂) in nats, ``[..., D₁ + D₂]`` → ``[...]``.

        Raises:
            ShapeError: the last dimension of z is another.
        """
        self.refuse_context(context)
        given = () if context is None else (context,)
        features = self.event_shape[0]
        if z.ndim == 0 or z.shape[-1] != features:
            raise ShapeError(f"z: shape {tuple(z.shape)}; this prior needs [..., {features}]")
        h1, top = z.tensor_split([self.conditional.features], -1)
        return self.top.log_prob(top, *given) + self.conditional.log_prob(h1, self._nearest(top))

    def sample(self, shape: Sequence[int] = (), context: Tensor | None = None) -> Float[Tensor, "..."]:
        self.refuse_context(context)
        top = self.top.sample(shape) if context is None else self.top.sample(shape, context)  # type: ignore[call-arg]
        h1, _ = self.conditional.draw(self._nearest(top), "prior")
        return torch.cat((h1, top), -1)

    def _nearest(self, top: Tensor) -> Tensor:
        return top[..., : self.conditional.given]
