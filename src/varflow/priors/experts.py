"""A mixture of linear regressions: Gaussians whose weights and means follow what they are conditioned on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core import random, ranks
from varflow.core.errors import ShapeError, SpecError, positive
from varflow.core.threads import one_thread
from varflow.priors import gaussians
from varflow.priors._components import pick
from varflow.priors.gaussians import COMPONENTS, LARGEST_COVARIANCES, NOTHING, clusters
from varflow.priors.prior import Prior

#: What is tried of each number of components: the weight of the prior on covariances against one row, whether that is
#: diagonal, and whether means follow c.
_WAYS = ((100.0, True, True), (10.0, False, True), (1.0, False, True), (10.0, False, False))
#: Weight of the prior on slopes, and on the gate's, around zero, against one row. Classes that are told apart for
#: sure need a steep gate.
_RIDGE, _GATE_RIDGE = 1.0, 0.01
#: Steps towards the best weights in an iteration of EM.
_GATE_STEPS = 20


class Regressions(NamedTuple):
    """Gate A ``[K, 1 + C]``, coefficients B ``[K, 1 + C, D]``, and L ``[K, D, D]``, lower triangular, of a fit."""

    gate: Tensor
    coefficients: Tensor
    factors: Tensor


class Experts(Prior):
    """p(z|c) = Σₖ πₖ(c) N(z; mₖ + Sₖ c, Lₖ Lₖᵀ),   π(c) = softmax(a + A c).

    N(0, I) until :meth:`start` fits it to data. It is not trained by gradients: as the base of a conditional flow it
    is the place that the flow starts from. What :class:`~varflow.priors.Gaussians` is without a context.

    Args:
        features: D.
        context_features: C.

    Attributes:
        gate: (a, A) ``[K, 1 + C]``.
        means: m ``[K, D]``.
        slopes: S ``[K, D, C]``.
        whitening: L⁻¹ ``[K, D, D]``.

    Cost: K·D·(D + C) operations a point for a density and D·(D + C) for a sample.

    Source: Jacobs, Jordan, Nowlan and Hinton 1991, "Adaptive mixtures of local experts"; fitted by EM (Jordan and
    Jacobs 1994). Different: full covariances, with a prior; one gate for all experts.

    Example:
        >>> import torch
        >>> prior = Experts(2, context_features=3)
        >>> round(prior.log_prob(torch.zeros(2), torch.ones(3)).item(), 4)
        -1.8379
    """

    gate: Tensor
    means: Tensor
    slopes: Tensor
    whitening: Tensor
    reads = ("context",)

    def __init__(self, features: int, context_features: int) -> None:
        super().__init__()
        positive(features=features, context_features=context_features)
        self.event_shape: tuple[int, ...] = (features,)
        self.context_features: int = context_features
        components = max(k for k in COMPONENTS if k == 1 or k * features**2 <= LARGEST_COVARIANCES)
        self.register_buffer("gate", torch.zeros(components, 1 + context_features))
        self.gate[1:, 0] = NOTHING
        self.register_buffer("means", torch.zeros(components, features))
        self.register_buffer("slopes", torch.zeros(components, features, context_features))
        self.register_buffer("whitening", torch.eye(features).repeat(components, 1, 1))

    def start(
        self, draw: Callable[[str], Tensor], context: Callable[[str], Tensor] | None = None
    ) -> None:
        """Fit the mixture to the training split, K chosen on the validation split: see :func:`fit_experts`."""
        if context is None:
            raise SpecError("context: missing; this prior is p(z|c) and starts at rows with their contexts")
        given = context
        found = ranks.first(
            lambda: fit_experts(
                (draw("train"), given("train")), (draw("validation"), given("validation"))
            )
        )
        identity = torch.eye(*self.event_shape, dtype=found.factors.dtype)
        whitening = torch.linalg.solve_triangular(found.factors, identity, upper=False)
        components = len(found.gate)
        self.gate.zero_()
        self.gate[:, 0] = NOTHING
        self.gate[:components] = found.gate.to(self.gate)
        self.means[:components] = found.coefficients[:, 0].to(self.means)
        self.slopes[:components] = found.coefficients[:, 1:].mT.to(self.slopes)
        self.whitening[:components] = whitening.to(self.whitening)

    @property
    def components(self) -> int:
        """K."""
        return int((self.gate[:, 0] > NOTHING).sum())

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Float[Tensor, "... context"] | None = None
    ) -> Float[Tensor, "..."]:
        """log p(z|c) in nats, ``[..., D]`` and ``[..., C]``, which broadcast, → ``[...]``.

        Raises:
            ShapeError: the last dimension of z is not D, or that of c not C.
            SpecError: a context is missing.
        """
        c, features = self._needed(context), self.event_shape[0]
        if z.ndim == 0 or z.shape[-1] != features:
            raise ShapeError(f"z: shape {tuple(z.shape)}; this prior needs [..., {features}]")
        apart = z.unsqueeze(-2) - self._means(c)
        scaled = torch.einsum("...kd,ked->...ke", apart, self.whitening)
        ladj = self.whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * features * math.log(2 * math.pi)
        joint = self._log_weights(c) + ladj - constant - 0.5 * scaled.square().sum(-1)
        return joint.logsumexp(-1)

    def sample(
        self, shape: Sequence[int] = (), context: Float[Tensor, "... context"] | None = None
    ) -> Float[Tensor, "..."]:
        """Draws ``[*shape, D]`` of p(z|c), for a context ``[..., C]`` that broadcasts against them."""
        c = self._needed(context).expand(*shape, self.context_features)
        dtype, device = self.means.dtype, self.means.device
        uniform = random.uniform(shape, "prior", dtype=dtype, device=device)
        noise = random.normal((*shape, *self.event_shape), "prior", dtype=dtype, device=device)
        which = pick(self._log_weights(c).exp(), uniform)
        spread = torch.linalg.solve_triangular(self.whitening[which], noise.unsqueeze(-1), upper=False)
        centre = self.means[which] + (self.slopes[which] @ c.unsqueeze(-1)).squeeze(-1)
        return centre + spread.squeeze(-1)

    def extra_repr(self) -> str:
        sizes = f"features={self.event_shape[0]}, context_features={self.context_features}"
        return f"{sizes}, components={self.components}"

    def _means(self, c: Tensor) -> Tensor:
        return self.means + torch.einsum("kdc,...c->...kd", self.slopes, c)

    def _log_weights(self, c: Tensor) -> Tensor:
        return torch.log_softmax(self.gate[:, 0] + c @ self.gate[:, 1:].mT, -1)

    def _needed(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise SpecError(
                f"context: missing; this prior is p(z|c) with {self.context_features} context features, give "
                "c [..., C]"
            )
        if context.shape[-1:] != (self.context_features,):
            raise ShapeError(
                f"context: shape {tuple(context.shape)}; this prior needs [..., {self.context_features}]"
            )
        return context.to(self.means.dtype)


def fit_experts(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> Regressions:
    """The mixture of linear regressions of x on c that does best on held-out rows; float64, on the CPU.

    As :func:`varflow.priors.gaussians.fit_components`, with means mₖ + Sₖ c by weighted least squares (a ridge of one
    row on S) and weights softmax(a + A c), towards whose best an iteration of EM takes some steps of the bound that
    Böhning 1992 gives for the curvature. S = 0 is tried too, and fewer
    strengths of the prior on covariances.

    Args:
        train: x ``[N, D]`` and c ``[N, C]``.
        held_out: the same of other rows; there may be none.
    """
    with one_thread():
        return _fit_experts(*(t.double().cpu() for t in (*train, *held_out)))


def _fit_experts(x: Tensor, c: Tensor, held: Tensor, held_c: Tensor) -> Regressions:
    x, c = x[: gaussians.FITTING], c[: gaussians.FITTING]
    held, held_c = held[: gaussians.CHOOSING], held_c[: gaussians.CHOOSING]
    mean = x.mean(0)
    scale = (x - mean).square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    x, held = (x - mean) / scale, (held - mean) / scale
    u, held_u = _with_one(c), _with_one(held_c)
    few, few_u = x[: gaussians.CHOOSING], u[: gaussians.CHOOSING]
    chosen: tuple[int, float, bool, bool] = (1, 1.0 if not len(held) else 100.0, True, True)
    best = _em(few, few_u, *chosen, limits=gaussians.COMPARING)
    highest, vain = -math.inf, 0
    for components in COMPONENTS if len(held) else ():
        too_many = components * x.shape[1] ** 2 > LARGEST_COVARIANCES or 4 * components > len(few)
        if vain == gaussians.PATIENCE or (components > 1 and too_many):
            break
        vain += 1
        for strength, diagonal, sloped in _WAYS:
            found = _em(few, few_u, components, strength, diagonal, sloped, limits=gaussians.COMPARING)
            score = float(_joint(held, held_u, found).logsumexp(-1).mean())
            if score > highest:
                chosen, best = (components, strength, diagonal, sloped), found
                highest, vain = score, 0
    best = _em(x, u, *chosen, start=best)
    coefficients = scale * best.coefficients
    coefficients[:, 0] += mean
    return Regressions(best.gate, coefficients, scale.unsqueeze(-1) * best.factors)


def _em(
    x: Tensor,
    u: Tensor,
    components: int,
    strength: float,
    diagonal: bool,
    sloped: bool,
    start: Regressions | None = None,
    limits: tuple[int, float] = (gaussians.ITERATIONS, gaussians.TOLERANCE),
) -> Regressions:
    """The mode that EM finds from the clusters of x and c together, or from another fit."""
    (rows, features), size = x.shape, u.shape[1]
    covariance = x.mT @ x / rows
    spread = torch.diag(covariance.diagonal()) if diagonal else covariance
    ridge = 1e-6 * torch.eye(features, dtype=x.dtype)
    belief = spread / components ** (2 / features) + ridge
    read = u if sloped else u[:, :1]
    penalty = torch.diag(torch.tensor([1e-9] + [_RIDGE] * (read.shape[1] - 1), dtype=x.dtype))
    curvature = torch.linalg.cholesky(u.mT @ u + _GATE_RIDGE * torch.eye(size, dtype=x.dtype))
    gate, before = torch.zeros(components, size, dtype=x.dtype), -math.inf
    if start is None:
        belong = clusters(torch.cat([x, u[:, 1:]], 1), components)
    else:
        gate, belong = start.gate, _joint(x, u, start).softmax(-1)
    for _ in range(limits[0]):
        sizes = belong.sum(0)
        weighted = belong.mT.unsqueeze(-1) * read
        fitted = torch.linalg.solve(weighted.mT @ read + penalty, weighted.mT @ x)
        left = x - read @ fitted
        scatter = (belong.mT.unsqueeze(-1) * left).mT @ left
        covariances = (scatter + strength * belief) / (sizes + strength)[:, None, None]
        for _ in range(_GATE_STEPS if components > 1 else 0):
            slope = (belong - (u @ gate.mT).softmax(-1)).mT @ u - _GATE_RIDGE * gate
            gate = gate + 2 * torch.cholesky_solve(slope.mT, curvature).mT
        coefficients = torch.zeros(components, size, features, dtype=x.dtype)
        coefficients[:, : read.shape[1]] = fitted
        found = Regressions(gate, coefficients, torch.linalg.cholesky(covariances + ridge))
        joint = _joint(x, u, found)
        total = joint.logsumexp(-1, keepdim=True)
        belong, now = (joint - total).exp(), float(total.mean())
        if components == 1 or now - before < limits[1]:
            break
        before = now
    return found


def _joint(x: Tensor, u: Tensor, found: Regressions) -> Tensor:
    """log πₖ(c) N(x; Bₖᵀ u, Lₖ Lₖᵀ), u = (1, c): ``[N, D]`` and ``[N, 1 + C]`` → ``[N, K]``."""
    identity = torch.eye(x.shape[1], dtype=x.dtype).expand(len(found.factors), -1, -1)
    whitening = torch.linalg.solve_triangular(found.factors, identity, upper=False)
    white = (x - u @ found.coefficients) @ whitening.mT
    ladj = found.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_weights = torch.log_softmax(u @ found.gate.mT, -1)
    squares = white.square().sum(-1).mT
    return log_weights - ladj - 0.5 * x.shape[-1] * math.log(2 * math.pi) - 0.5 * squares


def _with_one(c: Tensor) -> Tensor:
    return torch.cat([torch.ones(len(c), 1, dtype=c.dtype), c], 1)
