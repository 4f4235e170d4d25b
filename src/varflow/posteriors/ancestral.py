"""Several stochastic layers, bottom up: q(h₁, h₂|x) = q(h₁|x) q(h₂|h₁)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import ShapeError, SpecError
from varflow.core.observed import Examples
from varflow.core.settings import Settings, Size, settings
from varflow.posteriors.posterior import Conditional, Draw, LogJoint, Posterior
from varflow.priors.ancestral import Ancestral as AncestralPrior
from varflow.priors.layer import GaussianLayer, detached
from varflow.priors.prior import Prior


@settings("Ancestral")
class AncestralSettings(Settings):
    """A second stochastic layer."""

    top_latent: Annotated[
        int,
        "Latents of a second stochastic layer h₂ above the first: p(h₂) p(h₁|h₂) and q(h₁|x) q(h₂|h₁); 0 for none.",
        Size(0),
    ] = 0
    top_hidden: Annotated[
        int,
        "Units of each of the two hidden layers between the stochastic layers.",
        Size(),
    ] = 100

    switch = "top_latent"

    def shown(self, given: Mapping[str, Any]) -> Iterable[str]:
        if given.get("target") != "none":
            return ()
        return Settings.shown(self, given)

    def missing(self, given: Mapping[str, Any]) -> str:
        if given.get("target") != "none":
            return "a target has its own latents and no layers; leave it out"
        return "without latents of its own there is none; set top_latent"

    def build(self, bottom: Posterior, activation: str) -> Posterior:
        """q(h₁|x) q(h₂|h₁) on top of q(h₁|x); without a second layer that itself."""
        if not self.top_latent:
            return bottom
        width = int(bottom.features)  # type: ignore[arg-type]
        return Ancestral(bottom, GaussianLayer(width, self.top_latent, self._hidden, activation))

    def prior(self, top: Prior, features: int, activation: str) -> Prior:
        """p(h₂) p(h₁|h₂) over a prior of the second layer alone, for ``features`` latents below it."""
        return AncestralPrior(top, GaussianLayer(self.top_latent, features, self._hidden, activation))

    @property
    def _hidden(self) -> tuple[int, int]:
        return (self.top_hidden, self.top_hidden)


class AncestralConditional(Conditional):
    """q(h₁|x) q(h₂|h₁) of a batch. Made by :class:`Ancestral`.

    Attributes:
        bottom: q(h₁|x).
        local: the bottom's: what is above depends on x through h₁ alone.
    """

    def __init__(self, bottom: Conditional, conditional: GaussianLayer | _Constant) -> None:
        self.bottom: Conditional = bottom
        self.conditional = conditional
        self.local: tuple[Tensor, ...] = bottom.local

    def draw(self, samples: int = 1, log_joint: LogJoint | None = None, hold: bool = False) -> Draw:
        """h₁ ~ q(h₁|x), then h₂ ~ q(h₂|h₁). Sizes and units in :class:`Draw`.

        ``z0`` is the bottom's and h₂, ``ladj`` the bottom's. ``control`` is None: the nearest closed form, of
        a divergence from N(0, I), does not follow log q(h₁|x) − log p(h₁|h₂), and would add noise.
        """
        bottom = self.bottom.draw(samples)
        below = self._nearest(bottom.z)
        lead = below.ndim - 1
        assert isinstance(self.conditional, GaussianLayer)
        above, log_q = self.conditional.draw(below, "posterior", 1 if lead > 1 else 0)
        z = torch.cat((bottom.z, above), -1)
        # Held, log q must be a function of this very z: doubly reparameterised gradients weigh what flows through it.
        total = self.held().log_prob(z) if hold else bottom.log_q + log_q
        return Draw(z, total, torch.cat((bottom.z0, above), -1), bottom.ladj)

    def log_prob(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "..."]:
        """log q(h₁|x) + log q(h₂|h₁) of any point; nats.

        Raises:
            SpecError: as the bottom does, where it has no density.
        """
        below, above = z.tensor_split([z.shape[-1] - self.conditional.features], -1)
        return self.bottom.log_prob(below) + self.conditional.log_prob(above, self._nearest(below))

    @property
    def centre(self) -> Tensor:
        """The centre of each layer, given that of the layer below."""
        below = self.bottom.centre
        assert isinstance(self.conditional, GaussianLayer)
        above, _ = self.conditional.moments(self._nearest(below))
        return torch.cat((below, above), -1)

    def shared(self) -> list[str]:
        own = (
            "q of the upper layer given the one below is the same network for all examples; it stands still, so "
            "what it costs belongs to the approximation gap"
        )
        return list(dict.fromkeys([*self.bottom.shared(), own]))

    def held(self) -> AncestralConditional:
        return AncestralConditional(self.bottom.held(), _Constant(self.conditional))

    def _nearest(self, below: Tensor) -> Tensor:
        if below.shape[-1] < self.conditional.given:
            raise ShapeError(
                f"z: has {below.shape[-1]} features below the last layer, which reads {self.conditional.given}"
            )
        return below[..., below.shape[-1] - self.conditional.given :]


class _Constant:
    """The density of a layer whose parameters are constants."""

    def __init__(self, layer: GaussianLayer | _Constant) -> None:
        self.features: int = layer.features
        self.given: int = layer.given
        self._layer = layer

    def log_prob(self, h: Tensor, g: Tensor) -> Tensor:
        if isinstance(self._layer, _Constant):
            return self._layer.log_prob(h, g)
        return detached(self._layer, h, g)


class Ancestral(Posterior):
    """q(z|x) = q(h₁|x) q(h₂|h₁) over z = [h₁, h₂], the order of :class:`varflow.priors.Ancestral`.

    A bottom that is itself ancestral makes three layers or more: z = [h₁, h₂, h₃], and ``conditional`` reads h₂.

    Args:
        bottom: q(h₁|x), with or without a flow.
        conditional: q(h₂|h₁), which reads the last ``conditional.given`` features of the bottom.

    Attributes:
        features: D₁ + D₂.

    Raises:
        SpecError: a bottom that follows gradients (wrap the whole in a Hamiltonian posterior instead), or a
            conditional that reads another number of features than the layer below has.

    Cost: a draw and a density are one pass of the conditional's network, beside the bottom's.

    Source: Burda, Grosse and Salakhutdinov 2016 (arXiv:1509.00519), section 5: 100 and 50 latents with
    two tanh layers of 200 and of 100 units.

    Example:
        >>> import torch, varflow as vf
        >>> bottom = vf.posteriors.Gaussian(4, vf.networks.MLP(6, hidden=(8,), activation="tanh"))
        >>> posterior = Ancestral(bottom, vf.priors.GaussianLayer(4, 2, hidden=(8,)))
        >>> posterior(torch.zeros(5, 6)).draw(3).z.shape
        torch.Size([3, 5, 6])
    """

    conditional: GaussianLayer

    def __init__(self, bottom: Posterior, conditional: GaussianLayer) -> None:
        super().__init__()
        if getattr(bottom, "uses_gradient", False):
            raise SpecError(
                f"bottom: {type(bottom).__name__} follows the gradient of log p(x, z) in all of z; "
                "build the ancestral posterior first and wrap it"
            )
        width = int(bottom.features)  # type: ignore[arg-type]
        nearest = bottom.conditional.features if isinstance(bottom, Ancestral) else width
        if conditional.given != nearest:
            raise SpecError(
                f"conditional: reads {conditional.given} features, the layer below has {nearest}; build both "
                "with the same number"
            )
        self.bottom: Ancestral | Posterior = bottom
        self.conditional = conditional
        self.features: int = width + conditional.features
        self.reads_x: bool = bottom.reads_x
        self.reads: tuple[str, ...] = bottom.reads

    def refuses_compilation(self, gradient: str) -> str | None:
        if gradient != "dreg":
            return None
        return (
            "compile: the gradients that doubly reparameterised ones weigh are not seen in a compiled step of "
            "several stochastic layers; leave compile off, or use gradient=total"
        )

    def forward(self, x: Examples | None = None) -> AncestralConditional:
        """q(z|x) for x ``[B, *event]``; raises as the bottom does."""
        return AncestralConditional(self.bottom(x), self.conditional)

    def from_local(self, local: tuple[Tensor, ...]) -> AncestralConditional:
        return AncestralConditional(self.bottom.from_local(local), self.conditional)
