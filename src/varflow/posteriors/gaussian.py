"""A diagonal Gaussian followed by any flow, static or amortized.

    q₀(z₀|x) = N(z₀; μ(x), diag σ(x)²),   z = f(z₀; c(x)),
    log q(z|x) = log q₀(z₀|x) − log|det ∂z/∂z₀|.

The prior is charged at z, never at z₀ (Rezende and Mohamed 2015, eq. 15): a log-determinant that
the decoder can undo must not be free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError, positive, unknown
from varflow.core.observed import Examples
from varflow.core.settings import Settings, Size, settings
from varflow.flows.flow import Flow, Local, full_precision, without_autocast
from varflow.native.planar_fit import Chain, declared
from varflow.networks.context import conditions_of, encode
from varflow.networks.linear import Linear
from varflow.networks.sizes import output_features
from varflow.posteriors.posterior import Conditional, Draw, LogJoint, Posterior
from varflow.priors.prior import Prior

FlowFactory = Callable[..., Flow]


@settings("Gaussian")
class GaussianSettings(Settings):
    """A diagonal Gaussian, then a flow, then leapfrog steps; and layers above it."""

    latent: Annotated[int, "D, the number of latent features.", Size()] = 20
    amortized: Annotated[
        bool, "Flow parameters computed from x, instead of being shared by all x."
    ] = False
    context: Annotated[
        Literal["features", "moments"],
        "What an amortized flow sees: the encoder's features, or a linear map of the base moments.",
    ] = "features"
    base_moments: Annotated[
        Literal["learned", "fixed"],
        "Base of the flow: a learned mean and scale (of x, where there is an encoder), or N(0, I).",
    ] = "learned"

    roles: ClassVar[tuple[str, ...]] = ("flow", "hamiltonian", "layers_above")
    read_by_others: ClassVar[tuple[str, ...]] = ("latent",)
    alone = "a target has its own latents, and no x to compute anything from; leave it out"

    def shown(self, given: Mapping[str, Any]) -> Iterable[str]:
        everything = ("latent", "amortized", "context", "base_moments")
        return everything if given.get("target") == "none" else ("base_moments",)

    @property
    def width(self) -> int:
        """Features that the decoder reads."""
        return self.latent

    def check(self, spec: Any) -> None:
        sees_x = self.amortized and spec.get("flow") != "none"
        if self.base_moments == "fixed" and not (sees_x or spec.get("target") != "none"):
            raise SpecError(
                "base_moments: a fixed base under a flow that does not see x leaves nothing that depends "
                "on x; set amortized, or base_moments=learned"
            )

    def build(self, part: Any, features: int, encoder: nn.Module | None, flow: FlowFactory | None) -> Posterior:
        """q(z|x) over ``features`` latents; without an encoder q(z)."""
        return Gaussian(features, encoder, flow, self.amortized, self.context, self.base_moments)


class GaussianConditional(Conditional):
    """N(μ, diag σ²) pushed through a flow, for a batch of examples. Made by :class:`Gaussian`.

    Attributes:
        mean: μ ``[*B, D]``.
        log_scale: log σ ``[*B, D]``.
        local: (mean, log_scale, \\*per-example tensors of the flow).
    """

    def __init__(
        self, mean: Tensor, log_scale: Tensor, flow: Flow | None, flow_local: Local
    ) -> None:
        self.mean: Tensor = mean
        self.log_scale: Tensor = log_scale
        self.flow: Flow | None = flow
        self.flow_local: Local = flow_local
        self.local: tuple[Tensor, ...] = (mean, log_scale, *flow_local)

    def draw(self, samples: int = 1, log_joint: LogJoint | None = None, hold: bool = False) -> Draw:
        """z₀ = μ + σ ε with ε ~ N(0, I), then z = f(z₀). Sizes and units in :class:`Draw`."""
        positive(samples=samples)
        noise = random.normal(
            (samples, *self.mean.shape),
            "posterior",
            dtype=self.mean.dtype,
            device=self.mean.device,
            batch_dim=1 if self.mean.ndim > 1 else 0,
        )
        scale = self.log_scale.exp()
        z0 = self.mean + scale * noise
        # log q₀ at its own sample is −½ε² − Σ log σ: no difference z₀ − μ, no division by σ.
        constant = 0.5 * self.mean.shape[-1] * math.log(2 * math.pi)
        squares = noise.square().sum(-1)
        log_q0 = -0.5 * squares - constant - self.log_scale.sum(-1)
        if self.flow is None:
            z, ladj = z0, torch.zeros_like(log_q0)
            log_q = log_q0
        else:
            with without_autocast(z0):
                z, ladj = self.flow.push(z0, self.flow_local)
            log_q = log_q0 - ladj
        if hold:
            return Draw(z, self.held().log_prob(z), z0, ladj)
        # E ½ε² = D/2 and E ½z₀² = ½(μ² + σ²): the closed forms behind log q₀ and log N(z₀; 0, I).
        expected = (self.mean.square() + scale.square() - 1.0).sum(-1)
        control = 0.5 * (z0.square().sum(-1) - squares - expected)
        return Draw(z, log_q, z0, ladj, control)

    def log_prob(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "..."]:
        """log q(z|x) of any point, through the exact inverse of the flow; nats."""
        features = self.mean.shape[-1]
        if z.shape[-1] != features:
            raise ShapeError(f"z: shape {tuple(z.shape)}; this posterior needs [..., {features}]")
        ladj: Tensor | float = 0.0
        if self.flow is not None:
            with without_autocast(z):
                z, ladj = self.flow.pull(z, self.flow_local)
        scaled = (z - self.mean) * (-self.log_scale).exp()
        constant = 0.5 * features * math.log(2 * math.pi)
        return -0.5 * scaled.square().sum(-1) - constant - self.log_scale.sum(-1) + ladj

    def kl_groups(self, prior: Prior) -> Tensor | None:
        """½(μ² + σ² − 1) − log σ of each latent, without a flow and under a standard normal prior."""
        if self.flow is not None or not prior.standard:
            return None
        mean, log_scale = self.mean, self.log_scale
        return (0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale).unsqueeze(0)

    @property
    def diagonal(self) -> tuple[Tensor, Tensor] | None:
        return (self.mean, self.log_scale) if self.flow is None else None

    @property
    def centre(self) -> Tensor:
        if self.flow is None:
            return self.mean
        with without_autocast(self.mean):
            return self.flow.push(self.mean, self.flow_local)[0]

    def shared(self) -> list[str]:
        flow = self.flow
        if flow is None or not self._depends_on_parameters(flow):
            return []
        name = type(flow).__name__
        if flow.context_features:
            return [
                f"the networks of the {name} flow are the same for all examples; they stand still, and only what "
                "they read of x is refined"
            ]
        return [
            f"the {name} flow has parameters of its own, the same for all examples; they stand still, so what they "
            "cost belongs to the approximation gap"
        ]

    @torch.enable_grad()
    def _depends_on_parameters(self, flow: Flow) -> bool:
        """Whether parameters of the flow act beside the per-example tensors that were computed from them."""
        learned = [parameter for parameter in flow.parameters() if parameter.requires_grad]
        z = torch.zeros_like(self.mean)
        moved, ladj = flow.push(z, tuple(tensor.detach() for tensor in self.flow_local))
        total = moved.sum() + ladj.sum()
        if not learned or not total.requires_grad:
            return False
        grads = torch.autograd.grad(total, learned, allow_unused=True)
        return any(gradient is not None for gradient in grads)

    def held(self) -> GaussianConditional:
        flow = None if self.flow is None else _Frozen(self.flow)
        local = tuple(t.detach() for t in self.flow_local)
        return GaussianConditional(self.mean.detach(), self.log_scale.detach(), flow, local)


class _Frozen(Flow):
    """A flow whose own parameters are constants, for ``hold``."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow.features, flow.context_features)
        # A list, so that the flow's parameters are not registered a second time.
        self._inner = [_Pull(flow)]

    def push(self, z: Tensor, local: Local = ()) -> tuple[Tensor, Tensor]:
        raise SpecError("hold: scores samples; draw them from the posterior itself")

    def pull(self, z: Tensor, local: Local = ()) -> tuple[Tensor, Tensor]:
        inner = self._inner[0]
        constants = {name: p.detach() for name, p in inner.named_parameters()}
        pulled: tuple[Tensor, Tensor] = torch.func.functional_call(inner, constants, (z, local))
        return pulled


class _Pull(nn.Module):
    """``pull`` as a module call, which is what functional_call can redirect."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor, local: Local) -> tuple[Tensor, Tensor]:
        return self.flow.pull(z, local)


class Gaussian(Posterior):
    """q(z|x): an encoder gives the moments of a diagonal Gaussian, a flow reshapes it.

    Args:
        features: D, the number of latent features.
        encoder: any network ``[B, *event] -> [B, F]``; without one the posterior is for a target and its moments
            are parameters of its own. F is its attribute ``features``, or found by a dry run
            (:func:`varflow.networks.output_features`).
        flow: none, a built :class:`~varflow.flows.Flow`, or a callable such as
            ``functools.partial(Planar, length=16)`` that is called with ``features`` and
            ``context_features``, so that no size has to be computed.
        amortized: with a callable ``flow``: whether its parameters come from x.
        context: what an amortized flow sees: ``"features"`` of the encoder, or ``"moments"``, a
            linear map ``[2D] -> [D]`` of (μ, log σ²).
        base: ``"learned"`` moments, or ``"fixed"`` at N(0, I).
        event_shape: shape of one x, for the dry run of an encoder whose first layer does not tell it.

    Raises:
        SpecError: parts that do not fit each other.

    Source: Rezende and Mohamed 2015, section 4; the amortized parameters are theirs, the static
    ones the usual simplification. A static flow reshapes all posteriors alike, which is the same
    model as a learned prior; only an amortized flow enriches q(z|x).
    """

    gaussian = True

    def __init__(
        self,
        features: int,
        encoder: nn.Module | None = None,
        flow: Flow | FlowFactory | None = None,
        amortized: bool = False,
        context: Literal["features", "moments"] = "features",
        base: Literal["learned", "fixed"] = "learned",
        event_shape: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        positive(features=features)
        if context not in ("features", "moments"):
            raise unknown("context", context, ["features", "moments"])
        if base not in ("learned", "fixed"):
            raise unknown("base", base, ["learned", "fixed"])
        if encoder is None and amortized:
            raise SpecError(
                "amortized: there is no x to compute flow parameters from; give an encoder"
            )
        if base == "fixed" and context == "moments" and amortized:
            raise SpecError(
                "context: 'moments' of a fixed base hold nothing of x; use context='features'"
            )
        self.features: int = features
        self.context = context
        self.base = base
        self.encoder = encoder
        self.reads_x: bool = encoder is not None
        self.reads: tuple[str, ...] = conditions_of(encoder)
        width = 0 if encoder is None else output_features(encoder, event_shape)
        context_features = features if context == "moments" else width
        if flow is not None and not isinstance(flow, Flow):
            flow = flow(features=features, context_features=context_features if amortized else 0)
        if flow is not None:
            _check_fit(flow, features, context_features if encoder is not None else 0)
        self.flow = flow
        self.moments: nn.Module | None = None
        self.mean: nn.Parameter | None = None
        self.log_scale: nn.Parameter | None = None
        if base == "learned":
            if encoder is None:
                self.mean = nn.Parameter(torch.zeros(features))
                self.log_scale = nn.Parameter(torch.zeros(features))
            else:
                self.moments = Linear(width, 2 * features)
        self.mixer: Linear | None = (
            Linear(2 * features, features)
            if flow is not None and flow.context_features and context == "moments"
            else None
        )
        self.register_buffer("_home", torch.zeros(()), persistent=False)

    def forward(self, x: Examples | None = None) -> GaussianConditional:
        """q(z|x) for x ``[B, *event]``; the encoder runs once, whatever is asked of q later.

        Raises:
            SpecError: x is missing although there is an encoder, or given although there is none.
        """
        if (x is None) != (self.encoder is None):
            need = "needs x" if x is None else "has no encoder, call it without x"
            raise SpecError(f"x: this posterior {need}")
        hidden = None if self.encoder is None else encode(self.encoder, x)
        mean, log_scale = self._base(hidden)
        if self.flow is None:
            return GaussianConditional(mean, log_scale, None, ())
        context = self._context(hidden, mean, log_scale)
        with without_autocast(mean):
            local = self.flow.condition(context)
        return GaussianConditional(mean, log_scale, self.flow, local)

    def from_local(self, local: tuple[Tensor, ...]) -> GaussianConditional:
        mean, log_scale, *rest = local
        return GaussianConditional(mean, log_scale, self.flow, tuple(rest))

    def compiled(self) -> Chain | None:
        """What compiled code has of it: a chain of planar steps that reads no x, by the names of its tensors."""
        steps = None if self.encoder is not None or self.flow is None else declared(self.flow)
        if not isinstance(steps, Chain):
            return None
        base = (None, None) if self.mean is None else ("mean", "log_scale")
        return Chain(*steps.within("flow.")[:4], *base)

    def _context(self, hidden: Tensor | None, mean: Tensor, log_scale: Tensor) -> Tensor | None:
        if self.flow is None or not self.flow.context_features or hidden is None:
            return None
        if self.mixer is None:
            return full_precision(hidden)
        # The flow-VAE scripts mix mean and log-variance; 2 log σ is the log-variance.
        return full_precision(self.mixer(torch.cat([mean, 2 * log_scale], -1)))

    def _base(self, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.moments is not None:
            mean, log_scale = full_precision(self.moments(hidden)).chunk(2, -1)
            return mean, log_scale
        if self.mean is not None and self.log_scale is not None:
            return self.mean, self.log_scale
        home = self.get_buffer("_home")
        batch = () if hidden is None else hidden.shape[:-1]
        return home.new_zeros(*batch, self.features), home.new_zeros(*batch, self.features)


def _check_fit(flow: Flow, features: int, context_features: int) -> None:
    if flow.features != features:
        raise SpecError(
            f"flow: has {flow.features} features, the posterior {features}; build it with the same"
        )
    if flow.context_features and flow.context_features != context_features:
        raise SpecError(
            f"flow: expects a context of {flow.context_features} features, the posterior gives "
            f"{context_features}; pass a callable such as functools.partial(Planar, length=8) instead"
        )
