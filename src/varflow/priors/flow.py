"""A prior that is a flow of a simpler one: the learned prior of the VLAE, and density estimation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from varflow import flows
from varflow.core import random
from varflow.core.errors import SpecError, unknown
from varflow.core.form import Form
from varflow.core.lazy import resolve
from varflow.core.settings import Between, Size, settings
from varflow.flows.flow import Flow as Map
from varflow.flows.flow import full_precision
from varflow.priors.experts import Experts
from varflow.priors.gaussians import LARGEST, Gaussians
from varflow.priors.normal import StandardNormal
from varflow.priors.prior import Prior, PriorSettings

#: Families whose networks have hidden layers to choose.
_WITH_HIDDEN = ("maf", "iaf", "coupling", "additive", "spline")


@settings("planar", "radial", "sylvester", "triangular", "nice")
class FlowPriorSettings(PriorSettings):
    """A flow of a simple density."""

    prior_length: Annotated[int, "Steps of the flow.", Size()] = 5
    prior_base: Annotated[
        Literal["normal", "gaussians"],
        "What it is a flow of: N(0, I); or, with likelihood=identity, a mixture of Gaussians with full covariances "
        "that is fitted to the data before training (N(0, I) beyond 512 features); of p(x|c) its weights and means "
        "follow c.",
    ] = "normal"
    prior_context: Annotated[
        bool, "p(z|c): the prior reads what the model is conditioned on. A density, likelihood=identity, always does."
    ] = False
    prior_defensive: Annotated[
        float, "Share of the base itself, so that no row falls into a hole of the flow.", Between(0, 1)
    ] = 0.0

    def check(self, spec: Any) -> None:
        if self.prior_base == "gaussians" and spec.get("likelihood", "auto") != "identity":
            raise SpecError(
                "prior_base: gaussians are fitted to the data, and latents are not there before training; use "
                "prior_base=normal, or likelihood=identity"
            )

    def build(self, part: Any, features: int, form: Form, context_features: int = 0) -> Prior:
        prior: Prior = part(features, length=self.prior_length, **self.base(features, context_features))
        return prior

    def base(self, features: int, context_features: int) -> dict[str, Any]:
        """What all flow priors are given."""
        base: Prior | None = None
        if self.prior_base == "gaussians" and features <= LARGEST:
            base = Experts(features, context_features) if context_features else Gaussians(features)
        return {
            "base": base,
            "defensive": self.prior_defensive,
            "context_features": context_features,
        }


@settings("maf", "iaf", "coupling", "spline")
class NetworkFlowPriorSettings(FlowPriorSettings):
    """A flow whose steps are networks with hidden layers."""

    prior_hidden: Annotated[
        int | None,
        "Units of each hidden layer of the flow's networks; without it the family's default.",
        Size(),
    ] = None
    prior_layers: Annotated[
        int, "Hidden layers of those networks, where prior_hidden says how wide they are.", Size()
    ] = 1

    def build(self, part: Any, features: int, form: Form, context_features: int = 0) -> Prior:
        hidden = (self.prior_hidden,) * self.prior_layers if self.prior_hidden else None
        own = self.base(features, context_features)
        prior: Prior = part(features, length=self.prior_length, hidden=hidden, **own)
        return prior


class Flow(Prior):
    """z = f(e) with e ~ base:   log p(z) = log base(f⁻¹(z)) + log|det ∂f⁻¹/∂z|.

    With ``inverted`` the map from base to latents is f⁻¹, and the density takes f forward: the right way
    round for a flow whose forward direction is the cheap one (an inverse autoregressive flow, a
    spline of zuko's, a planar flow), as fitting asks for densities only. A new flow is the identity, so
    a new prior is its base.

    With a ``defensive`` share ε the density is (1 − ε) p(z) + ε base(z). A flow trained on few rows has no reason to
    be anything in particular where there were none, and far from them log p(z) can be thousands of nats too low;
    this keeps it above log base(z) + log ε everywhere. When the flow is new, it is the base still. ``encode`` and
    ``decode`` are those of the flow.

    A Gaussian posterior pushed through a *static* flow f, under N(0, I), is the same model as the Gaussian
    posterior under ``Flow(f, inverted=True)`` with the decoder applied to f(z): the ELBOs are equal.

    Args:
        flow: f; its parameters become the prior's. One with ``context_features`` makes this p(z|c).
        base: p(e), or p(e|c) where it reads c; N(0, I) by default, any prior over D features.
        inverted: z = f⁻¹(e) instead.
        defensive: ε, in [0, 1).

    Raises:
        SpecError: a base over other events, or a share outside [0, 1).

    Cost: a density is one ``pull`` of the flow, a sample one ``push`` (the other way round if inverted).
    For :class:`~varflow.flows.MaskedAutoregressive` that is one parallel pass, and D short
    products whose work adds up to one pass.

    Source: Rezende and Mohamed 2015, eq. 5; as a prior, Chen et al. 2017, "Variational lossy
    autoencoder" (arXiv:1611.02731), section 3.2. Different from the paper: any family and any base. Defensive
    mixtures: Hesterberg 1995, "Weighted average importance sampling and defensive mixture distributions".

    Example:
        >>> import torch
        >>> from varflow.flows import MaskedAutoregressive
        >>> prior = Flow(MaskedAutoregressive(2, length=3))
        >>> prior.sample((4,)).shape, round(prior.log_prob(torch.zeros(2)).item(), 4)
        (torch.Size([4, 2]), -1.8379)
    """

    def __init__(
        self, flow: Map, base: Prior | None = None, inverted: bool = False, defensive: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= defensive < 1:
            raise SpecError(f"defensive: was {defensive!r}; use a share of the base, 0 <= defensive < 1")
        self.event_shape: tuple[int, ...] = (flow.features,)
        self.base: StandardNormal | Prior = StandardNormal(flow.features) if base is None else base
        if self.base.event_shape != self.event_shape:
            raise SpecError(
                f"base: is over events of shape {self.base.event_shape}, the flow has {flow.features} "
                "features; build both with the same number"
            )
        self._base_reads = "context" in self.base.reads
        if self._base_reads and not flow.context_features:
            raise SpecError("base: reads a context, and the flow has none; build the flow with context_features")
        self.reads: tuple[str, ...] = ("context",) if flow.context_features else ()
        self.flow: Map = flow
        self.inverted: bool = inverted
        self.defensive: float = defensive

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        """log p(z), or log p(z|c), in nats, ``[..., D]`` → ``[...]``; exact.

        Args:
            z: points.
            context: c ``[..., C]``, which broadcasts against z from the left, for a flow with a context.

        Raises:
            ShapeError: the last dimension of z is not D.
            SpecError: a context for a flow that has none, or none for a flow that needs one.
        """
        self._check_context(context)
        e, ladj = self.flow(z, context) if self.inverted else self.flow.inverse(z, context)
        given = self._given(context)
        log_prob = self.base.log_prob(e, *given) + ladj
        if not self.defensive:
            return log_prob
        kept = self.base.log_prob(full_precision(z), *given) + math.log(self.defensive)
        return torch.logaddexp(log_prob + math.log1p(-self.defensive), kept)

    def sample(self, shape: Sequence[int] = (), context: Tensor | None = None) -> Float[Tensor, "..."]:
        """Draws ``[*shape, D]``; of p(z|c) for a context ``[..., C]`` that broadcasts against them."""
        e = self.draw_base(shape, context)
        z = self.decode(e, context)
        if not self.defensive:
            return z
        coin = random.uniform((*shape, 1), "prior", dtype=e.dtype, device=e.device)
        return torch.where(coin < self.defensive, e, z)

    def draw_base(self, shape: Sequence[int] = (), context: Tensor | None = None) -> Float[Tensor, "..."]:
        """Draws e of the base ``[*shape, D]``, under the context where the base reads it."""
        self._check_context(context)
        return self.base.sample(shape, *self._given(context))

    def start(
        self, draw: Callable[[str], Tensor], context: Callable[[str], Tensor] | None = None
    ) -> None:
        """Start the base: a new flow is the identity."""
        self.base.start(draw, context)

    def decode(
        self, e: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "... features"]:
        """The z of a base point e: interpolate there, and stay where the prior has its mass."""
        z: Tensor = (self.flow.inverse(e, context) if self.inverted else self.flow(e, context))[0]
        return z

    def encode(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "... features"]:
        """The base point e of z; the inverse of :meth:`decode`."""
        e: Tensor = (self.flow(z, context) if self.inverted else self.flow.inverse(z, context))[0]
        return full_precision(e)

    def _given(self, context: Tensor | None) -> tuple[Tensor, ...]:
        """What the base is given of c."""
        return (context,) if self._base_reads and context is not None else ()

    def _check_context(self, context: Tensor | None) -> None:
        self.refuse_context(context)
        if context is None and self.reads:
            raise SpecError(
                f"context: missing; this prior is p(z|c) with {self.flow.context_features} context features, give c "
                "[..., C]"
            )

    def extra_repr(self) -> str:
        return f"inverted={self.inverted}"


def flow_prior(
    features: int,
    flow: str = "maf",
    length: int = 5,
    hidden: Sequence[int] | None = None,
    base: Prior | None = None,
    defensive: float = 0.0,
    context_features: int = 0,
) -> Flow:
    """The flow prior of a family by name, the way round that makes densities cheap.

    Args:
        features: D.
        flow: a name of :data:`varflow.flows.TABLE`.
        length: steps of the flow.
        hidden: widths of the hidden layers of the families that have some; their own default without it.
        base: p(e), N(0, I) by default.
        defensive: as :class:`Flow`.
        context_features: C of p(z|c); 0 for p(z).

    Raises:
        SpecError: an unknown family, sizes that it refuses, or ``hidden`` for a family without.
    """
    if flow not in flows.TABLE:
        raise unknown("flow", flow, flows.TABLE)
    if hidden is not None and flow not in _WITH_HIDDEN:
        raise SpecError(
            f"hidden: was {tuple(hidden)}; {flow} has no hidden layers, leave it out "
            f"(it is for {', '.join(_WITH_HIDDEN)})"
        )
    options: dict[str, Any] = {} if hidden is None else {"hidden": tuple(hidden)}
    if context_features:
        options["context_features"] = context_features
    made: Map = resolve(flows.TABLE[flow])(features, length=length, **options)
    return Flow(made, base, not made.fast_inverse, defensive)


maf: partial[Flow] = partial(flow_prior, flow="maf")
iaf: partial[Flow] = partial(flow_prior, flow="iaf")
coupling: partial[Flow] = partial(flow_prior, flow="coupling")
nice: partial[Flow] = partial(flow_prior, flow="nice")
spline: partial[Flow] = partial(flow_prior, flow="spline")
planar: partial[Flow] = partial(flow_prior, flow="planar")
radial: partial[Flow] = partial(flow_prior, flow="radial")
sylvester: partial[Flow] = partial(flow_prior, flow="sylvester")
triangular: partial[Flow] = partial(flow_prior, flow="triangular")
