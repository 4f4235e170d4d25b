"""The Hamiltonian posterior: samples of another posterior, moved along the gradient of log p(x, z).

    z₀ ~ q₀(z|x),  γ₀ ~ N(0, I),  ρ₀ = γ₀/√β₀,   K × [leapfrog of step ε_k, then ρ ← α_k ρ],  Πα_k = √β₀.

Its density is known on the extended space of positions and momenta. Leapfrog steps keep volumes, and
what the start blows up by β₀^{−D/2} the tempering takes back, so the map (z₀, γ₀) → (z_K, ρ_K) has
log|det| = 0 and the log-weight holds no β₀:

    log w = log p(x, z_K) + log N(ρ_K; 0, I) − log q₀(z₀|x) − log N(γ₀; 0, I).

A flow f may follow on positions and momenta together, (z, ρ) = f(z_K, ρ_K): then (z, ρ) stands in the log-weight for
(z_K, ρ_K), and log|det ∂f| is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow import hmc
from varflow.core import random
from varflow.core.errors import SpecError, unknown
from varflow.core.observed import Examples
from varflow.core.settings import Above, AtLeast, Settings, settings
from varflow.flows.flow import Flow, without_autocast
from varflow.posteriors.posterior import Conditional, Draw, LogJoint, Posterior

Tempering = Literal["none", "fixed", "free"]
Step = Literal["scalar", "dimension", "step", "both"]


@settings("Hamiltonian")
class HamiltonianSettings(Settings):
    """Leapfrog steps after the flow."""

    leapfrog: Annotated[
        int, "Hamiltonian posterior: leapfrog steps after the flow; 0 for none.", AtLeast(0)
    ] = 0
    tempering: Annotated[
        Tempering, "No tempering, the quadratic schedule, or a free factor for each step."
    ] = "none"
    step_shape: Annotated[
        Step, "One step size, one for each latent, for each leapfrog step, or for both."
    ] = "scalar"
    step_bound: Annotated[float, "The largest step size.", Above(0)] = 0.5
    initial_step: Annotated[float, "Step size at the start.", Above(0)] = 0.05
    initial_temperature: Annotated[float, "1/√β₀ at the start."] = 1.5

    switch = "leapfrog"
    alone = "without leapfrog steps there is none; set leapfrog, or leave it out"

    @property
    def roles(self) -> tuple[str, ...]:
        return ("extended_flow",) if self.leapfrog else ()

    def check(self, spec: Any) -> None:
        if not self.leapfrog:
            return
        if self.initial_step >= self.step_bound:
            raise SpecError(
                f"initial_step: was {self.initial_step}; use less than step_bound={self.step_bound}"
            )
        if self.initial_temperature < 1 or (
            self.tempering != "none" and self.initial_temperature == 1
        ):
            raise SpecError(
                f"initial_temperature: was {self.initial_temperature}; use a number above 1, or tempering=none"
            )

    def build(self, base: Posterior, flow: Callable[..., Flow] | None) -> Posterior:
        """The Hamiltonian posterior around ``base``; without leapfrog steps that itself."""
        if not self.leapfrog:
            return base
        return Hamiltonian(
            base,
            self.leapfrog,
            tempering=self.tempering,
            step=self.step_shape,
            bound=self.step_bound,
            initial_step=self.initial_step,
            initial_temperature=self.initial_temperature,
            flow=flow,
        )


class HamiltonianConditional(Conditional):
    """q(z|x) of a batch, on the extended space. Made by :class:`Hamiltonian`.

    Attributes:
        base: q₀, the posterior that the trajectories start from.
        local: the base's.
    """

    def __init__(self, posterior: Hamiltonian, base: Conditional) -> None:
        self.posterior: Hamiltonian = posterior
        self.base: Conditional = base
        self.local: tuple[Tensor, ...] = base.local

    @property
    def centre(self) -> Tensor:
        """That of q₀: where the trajectories go from it depends on the momentum."""
        return self.base.centre

    def shared(self) -> list[str]:
        what = "step sizes and tempering"
        if self.posterior.flow is not None:
            what = "step sizes, tempering and the flow of positions and momenta"
        return [
            *self.base.shared(),
            f"{what} are the same for all examples; they stand still, so what they cost belongs to the approximation "
            "gap",
        ]

    def draw(self, samples: int = 1, log_joint: LogJoint | None = None, hold: bool = False) -> Draw:
        """z_K, with the fields of :class:`Draw` read on the extended space.

        ``log_q`` is log q₀(z₀) + log N(γ₀; 0, I) − log N(ρ_K; 0, I), so that log p(x, z) − log_q is
        the log-weight above, whose mean weight is p(x). ``z0``, ``ladj`` and ``control`` are the
        base's: the extended map adds 0 to ladj, and what has mean 0 under q₀ keeps it. The gradient of
        log p(x, z) is differentiated through, also with respect to the parameters of log p.

        Args:
            samples: S.
            log_joint: z ``[S, *B, D]`` → log p(x, z) ``[S, *B]``. Its attribute ``affine_gradient``
                (b, a), where it has one that is not None, says that its gradient is b − a ⊙ z.
            hold: refused.

        Raises:
            SpecError: no log_joint, or ``hold``.
            ShapeError: log_joint gives another shape.
        """
        if hold:
            raise SpecError(
                "hold: path gradients score a sample under q(z|x), and the Hamiltonian posterior has "
                "its density on the extended space only; use gradient=total"
            )
        base = self.base.draw(samples, log_joint)
        if not self.posterior.steps:
            return base
        noise = _momentum(base.z)
        end = self._move(base.z, noise, log_joint)
        ladj = base.ladj
        if self.posterior.flow is not None:
            end, extended = self._flow(end)
            ladj = ladj + extended
        kinetic = 0.5 * noise.square().sum(-1)
        log_q = base.log_q - kinetic + 0.5 * end.rho.square().sum(-1) - (ladj - base.ladj)
        control = base.control
        if self.posterior.rao_blackwell:
            mean_free = 0.5 * noise.shape[-1] - kinetic
            control = mean_free if control is None else control + mean_free
        return Draw(end.z, log_q, base.z0, ladj, control, end.rho, end.log_density)

    @torch.no_grad()
    def trajectory(
        self, log_joint: LogJoint, samples: int = 1
    ) -> Float[Tensor, "points samples ..."]:
        """The positions z₀ (after the base's flow), z₁, …, z_K of S samples: ``[K + 1, S, *B, D]``.

        With a flow on positions and momenta, what it makes of z_K is one point more.
        """
        start = self.base.draw(samples, log_joint).z
        if not self.posterior.steps:
            return start.unsqueeze(0)
        visited: list[Tensor] = []
        slope = hmc.slope(log_joint)

        def noting(z: Tensor) -> tuple[Tensor | None, Tensor]:
            visited.append(z)
            return slope(z)

        steps, factors, temperature = self.posterior.schedule()
        end = hmc.leapfrog(
            start, temperature * _momentum(start), noting, steps, self.posterior.steps, factors
        )
        if self.posterior.flow is not None:
            visited.append(self._flow(end)[0].z)
        return torch.stack(visited)

    def log_prob(self, z: Tensor) -> Tensor:
        """Refused: the density of z alone is an integral over momenta.

        Raises:
            SpecError: always.
        """
        raise SpecError(
            "log_prob: the Hamiltonian posterior has no density of z alone, only one of position and "
            "momentum together; draw from it and use log_q, or importance weights"
        )

    def _flow(self, end: hmc.Phase) -> tuple[hmc.Phase, Tensor]:
        """(z, ρ) = f(z_K, ρ_K), and log|det ∂f| ``[S, *B]``."""
        assert self.posterior.flow is not None
        joint = torch.cat((end.z, end.rho), -1)
        with without_autocast(joint):
            moved, ladj = self.posterior.flow(joint)
        z, rho = moved.chunk(2, -1)
        return hmc.Phase(z, rho, None), ladj

    def _move(self, z: Tensor, noise: Tensor, log_joint: LogJoint | None) -> hmc.Phase:
        if log_joint is None:
            raise SpecError(
                "log_joint: was None; the Hamiltonian posterior follows its gradient: pass a callable "
                "z -> log p(x, z), e.g. draw(S, log_joint=lambda z: model.log_joint(z, x))"
            )
        steps, factors, temperature = self.posterior.schedule()
        rho, count = temperature * noise, self.posterior.steps
        affine = getattr(log_joint, "affine_gradient", None)
        if affine is not None:
            return hmc.affine_leapfrog(z, rho, affine, steps, count, factors)
        return hmc.leapfrog(z, rho, hmc.slope(log_joint), steps, count, factors)


class Hamiltonian(Posterior):
    """K leapfrog steps from the samples of any posterior, learned end to end.

    Args:
        base: the posterior that z₀ comes from, with or without a flow. Its samples start the
            trajectory.
        steps: K; 0 is the base itself.
        tempering: ``"none"``: α_k = 1; ``"fixed"``: the quadratic schedule 1/√β_k = 1 + (1/√β₀ − 1)
            (1 − k²/K²) with β₀ learned; ``"free"``: every α_k learned in (0, 1).
        step: ε is learned as one number (``"scalar"``), for each ``"dimension"``, each ``"step"``,
            or ``"both"``.
        bound: the largest step size; ε = bound · sigmoid(logit).
        initial_step: ε to begin with, all alike.
        initial_temperature: 1/√β₀ to begin with, if tempered.
        rao_blackwell: add ½(D − |γ₀|²), of mean 0, to ``Draw.control``, so that the ELBO uses the mean
            of log N(γ₀; 0, I) in place of its sample, as the paper does. γ₀ does not depend on
            parameters: gradients are the same, and the value is *noisier*, because the sample cancels
            against the energy that an accurate trajectory conserves (1.5 to 10 times the standard
            deviation on Gaussian targets with a learned base).
        flow: a static flow of 2D features, or a callable such as ``functools.partial(InverseAutoregressive,
            length=5)`` that is called with ``features=2D``: it moves positions and momenta after the last step.

    Attributes:
        uses_gradient: True: ``draw`` needs ``log_joint``.

    Raises:
        SpecError: an unknown choice or a number outside its range.

    Cost of a draw: K + 1 gradients of log p(x, z), each differentiated once more in training; with
    an affine gradient O(KD) and two passes over the samples. There is no other direction: see
    ``q.log_prob``.

    Source: Caterini, Doucet and Sejdinovic, "Hamiltonian variational auto-encoder" (2018),
    algorithm 1. Differs from the paper: any base; the sample of log N(γ₀) is kept by default; the value of
    log p(x, z_K) that comes with the last gradient is handed on (``Draw.log_joint``).

    Example:
        >>> import torch
        >>> from varflow.posteriors import Gaussian
        >>> posterior = Hamiltonian(Gaussian(2), steps=3, tempering="fixed")
        >>> target = lambda z: -0.5 * z.square().sum(-1)
        >>> posterior().draw(5, log_joint=target).z.shape
        torch.Size([5, 2])
    """

    uses_gradient = True

    def __init__(
        self,
        base: Posterior,
        steps: int,
        tempering: Tempering = "none",
        step: Step = "scalar",
        bound: float = 0.5,
        initial_step: float = 0.05,
        initial_temperature: float = 1.5,
        rao_blackwell: bool = False,
        flow: Flow | Callable[..., Flow] | None = None,
    ) -> None:
        super().__init__()
        if tempering not in get_args(Tempering):
            raise unknown("tempering", str(tempering), get_args(Tempering))
        if step not in get_args(Step):
            raise unknown("step", str(step), get_args(Step))
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise SpecError(f"steps: was {steps!r}; use 0, 1, 2, …")
        if not 0 < initial_step < bound < math.inf:
            raise SpecError(
                f"initial_step: was {initial_step} with bound={bound}; use 0 < initial_step < bound"
            )
        if tempering != "none" and not 1 < initial_temperature < math.inf:
            raise SpecError(
                f"initial_temperature: was {initial_temperature}; use a number above 1, or tempering='none'"
            )
        self.base: Posterior = base
        self.steps: int = steps
        self.tempering = tempering
        self.step = step
        self.bound: float = bound
        self.rao_blackwell: bool = rao_blackwell
        self.features: int = int(base.features)  # type: ignore[arg-type]
        if flow is not None and not isinstance(flow, Flow):
            flow = flow(features=2 * self.features)
        if flow is not None and (flow.features != 2 * self.features or flow.context_features):
            raise SpecError(
                f"flow: has {flow.features} features and a context of {flow.context_features}; on positions and "
                f"momenta it needs {2 * self.features} features and no context"
            )
        if flow is not None and not steps:
            raise SpecError("flow: on positions and momenta, and 0 steps have no momenta; use the base's flow")
        self.flow = flow
        self.reads_x: bool = base.reads_x
        self.reads: tuple[str, ...] = base.reads
        self.step_logit: nn.Parameter | None = None
        self.log_excess: nn.Parameter | None = None
        self.factor_logits: nn.Parameter | None = None
        self.register_buffer("_home", torch.zeros(()), persistent=False)
        if not steps:
            return
        rows, columns = (
            steps if step in ("step", "both") else 1,
            self.features if step in ("dimension", "both") else 1,
        )
        logit = math.log(initial_step) - math.log(bound - initial_step)
        self.step_logit = nn.Parameter(torch.full((rows, columns), logit))
        if tempering == "fixed":
            self.log_excess = nn.Parameter(torch.tensor(math.log(initial_temperature - 1)))
        if tempering == "free":
            # sigmoid(logit) = T^{-1/K}, all factors alike.
            each = math.log(initial_temperature) / steps
            self.factor_logits = nn.Parameter(torch.full((steps,), -math.log(math.expm1(each))))

    def forward(self, x: Examples | None = None) -> HamiltonianConditional:
        """q(z|x) for x ``[B, *event]``; raises as the base does."""
        return HamiltonianConditional(self, self.base(x))

    def from_local(self, local: tuple[Tensor, ...]) -> HamiltonianConditional:
        return HamiltonianConditional(self, self.base.from_local(local))

    @property
    def step_sizes(self) -> Float[Tensor, "steps features"]:
        """ε ``[K, D]``."""
        if self.step_logit is None:
            return self.get_buffer("_home").new_zeros(0, self.features)
        return self._steps().expand(self.steps, self.features)

    @property
    def factors(self) -> Float[Tensor, "steps"]:
        """The tempering factors α ``[K]``; 1 without tempering."""
        if self.log_excess is not None:
            inverse_roots = self._inverse_roots(self.log_excess)
            return inverse_roots[1:] / inverse_roots[:-1]
        if self.factor_logits is not None:
            return torch.sigmoid(self.factor_logits)
        return self.get_buffer("_home").new_ones(self.steps)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """1/√β₀ = 1/Πα_k, the scale of the first momentum."""
        if self.log_excess is not None:
            return 1 + self.log_excess.exp()
        if self.factor_logits is not None:
            # −log sigmoid(l) = softplus(−l).
            return nn.functional.softplus(-self.factor_logits).sum().exp()
        return self.get_buffer("_home").new_ones(())

    def schedule(self) -> tuple[list[Tensor], list[Tensor] | None, Tensor]:
        """What a trajectory needs: K step sizes, K tempering factors or None, and 1/√β₀."""
        steps = self._steps()
        sizes = list(steps.unbind(0)) if steps.shape[0] > 1 else [steps[0]] * self.steps
        factors = None if self.tempering == "none" else list(self.factors.unbind(0))
        return sizes, factors, self.temperature

    def _steps(self) -> Tensor:
        assert self.step_logit is not None
        return self.bound * torch.sigmoid(self.step_logit)

    def _inverse_roots(self, log_excess: Tensor) -> Tensor:
        """1/√β_k, k = 0 … K, of the quadratic schedule; the last one is 1."""
        k = torch.arange(self.steps + 1, dtype=log_excess.dtype, device=log_excess.device)
        return 1 + log_excess.exp() * (1 - (k / self.steps).square())

    def extra_repr(self) -> str:
        return (
            f"steps={self.steps}, tempering={self.tempering}, step={self.step}, bound={self.bound}"
        )


def _momentum(z: Tensor) -> Tensor:
    """γ₀ ~ N(0, I) for positions z ``[S, *B, D]``."""
    batch_dim = 1 if z.ndim > 2 else 0
    return random.normal(z.shape, "momentum", dtype=z.dtype, device=z.device, batch_dim=batch_dim)
