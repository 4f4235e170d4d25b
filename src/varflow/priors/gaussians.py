"""A mixture of Gaussians with full covariances, fitted to data before training begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core import random, ranks
from varflow.core.errors import ShapeError, positive
from varflow.core.threads import one_thread
from varflow.priors._components import by_rows, pick
from varflow.priors.prior import Prior

#: Features at most: a covariance has D² numbers.
LARGEST = 512
#: Numbers of components that are tried, and the weights of the prior on covariances against one row.
COMPONENTS, _STRENGTHS = (1, 2, 3, 5, 8, 12, 20), (100.0, 30.0, 10.0, 1.0, 0.1, 0.01)
#: Numbers in all covariances, at most, where there is more than one component.
LARGEST_COVARIANCES = 1 << 16
#: log π of a component that is not there.
NOTHING = -1e4
#: Rows that the choice of a mixture is made on, and rows that the chosen one is fitted to, at most.
CHOOSING, FITTING = 4000, 50_000
#: Numbers in the rows that the choice is made on, at most.
_NUMBERS = 1 << 17
#: So many numbers of components in a row that bring nothing end the search.
PATIENCE = 3
#: Iterations of EM, at most, and the gain in nats a row below which it ends.
ITERATIONS, TOLERANCE = 100, 1e-4
#: The same while mixtures are compared.
COMPARING = (40, 1e-3)
#: Iterations between two looks at held-out rows.
_LOOK = 5


class Components(NamedTuple):
    """log π ``[K]``, m ``[K, D]``, and L ``[K, D, D]``, lower triangular: covariances are L Lᵀ."""

    log_weights: Tensor
    means: Tensor
    factors: Tensor


class Gaussians(Prior):
    """p(z) = Σₖ πₖ N(z; mₖ, Lₖ Lₖᵀ).

    N(0, I) until :meth:`start` fits it to data. It is not trained by gradients: as the base of a flow it is the
    place that the flow starts from, and a new flow is the identity, so a fit begins at the best such mixture.

    Args:
        features: D.

    Attributes:
        log_weights: log π ``[K]``.
        means: m ``[K, D]``.
        whitening: L⁻¹ ``[K, D, D]``.

    Cost: K·D² operations a point for a density and D² for a sample.

    Example:
        >>> import torch
        >>> prior = Gaussians(2)
        >>> round(prior.log_prob(torch.zeros(2)).item(), 4)
        -1.8379
    """

    log_weights: Tensor
    means: Tensor
    whitening: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        positive(features=features)
        self.event_shape: tuple[int, ...] = (features,)
        # As many as a fit may find, so that sizes are known before it; those left over have a weight of e^−10000 = 0.
        components = max(k for k in COMPONENTS if k == 1 or k * features**2 <= LARGEST_COVARIANCES)
        self.register_buffer("log_weights", torch.tensor([0.0] + [NOTHING] * (components - 1)))
        self.register_buffer("means", torch.zeros(components, features))
        self.register_buffer("whitening", torch.eye(features).repeat(components, 1, 1))

    def start(
        self, draw: Callable[[str], Tensor], context: Callable[[str], Tensor] | None = None
    ) -> None:
        """Fit the mixture to the training split, K chosen on the validation split: see :func:`fit_components`."""
        found = ranks.first(lambda: fit_components(draw("train"), draw("validation")))
        identity = torch.eye(*self.event_shape, dtype=found.factors.dtype)
        whitening = torch.linalg.solve_triangular(found.factors, identity, upper=False)
        components = len(found.means)
        self.log_weights.fill_(NOTHING)[:components] = found.log_weights.to(self.log_weights)
        self.means[:components] = found.means.to(self.means)
        self.whitening[:components] = whitening.to(self.whitening)

    @property
    def components(self) -> int:
        """K."""
        return int((self.log_weights > NOTHING).sum())

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        """log p(z) in nats, ``[..., D]`` → ``[...]``.

        Raises:
            ShapeError: the last dimension of z is not D.
        """
        self.refuse_context(context)
        features = self.event_shape[0]
        if z.ndim == 0 or z.shape[-1] != features:
            raise ShapeError(f"z: shape {tuple(z.shape)}; this prior needs [..., {features}]")
        return by_rows(lambda rows: self._joint(rows).logsumexp(-1), z, len(self.means))

    def sample(self, shape: Sequence[int] = (), context: Tensor | None = None) -> Float[Tensor, "..."]:
        self.refuse_context(context)
        dtype, device = self.means.dtype, self.means.device
        which = pick(self.log_weights.exp(), random.uniform(shape, "prior", dtype=dtype, device=device))
        noise = random.normal((*shape, *self.event_shape), "prior", dtype=dtype, device=device)
        factors = self.whitening[which]
        spread = torch.linalg.solve_triangular(factors, noise.unsqueeze(-1), upper=False).squeeze(-1)
        return self.means[which] + spread

    def extra_repr(self) -> str:
        return f"features={self.event_shape[0]}, components={self.components}"

    def _joint(self, z: Tensor) -> Tensor:
        """log πₖ N(z; mₖ, Lₖ Lₖᵀ), ``[..., D]`` → ``[..., K]``."""
        scaled = torch.einsum("...kd,ked->...ke", z.unsqueeze(-2) - self.means, self.whitening)
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        ladj = self.whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.log_weights + ladj - constant - 0.5 * scaled.square().sum(-1)


def fit_components(
    train: Float[Tensor, "rows features"], held_out: Float[Tensor, "held features"]
) -> Components:
    """The mixture of Gaussians that does best on held-out rows; float64, on the CPU.

    For each K, two choices of Λ, and strengths λ from the best of the K before on as long as they gain, EM finds
    a mode of the posterior under an inverse Wishart prior on the covariances (Fraley and Raftery 2007, "Bayesian
    regularization for normal mixture estimation"):

        Σₖ = (Wₖ + λ Λ) / (nₖ + λ),   πₖ = (nₖ + 1) / (n + K),

    with Wₖ the scatter of nₖ rows about mₖ, and Λ the covariance of all rows, or its diagonal, over K^(2/D). It
    starts from k-means++ and ten of Lloyd's iterations. The mixture with the highest mean of log p of the held-out
    rows is taken; larger K are not tried once three in a row have brought none. Without held-out rows: one Gaussian,
    λ = 1 and the diagonal. Of more than 4,000 rows (fewer above 32 features) the first ones choose, and EM goes on
    from there on up to 50,000.

    Different from the source: no prior on the means, λ chosen on held-out rows instead of D + 2.
    """
    with one_thread():
        return _fit_components(train.double().cpu(), held_out.double().cpu()[:CHOOSING])


def _fit_components(train: Tensor, held_out: Tensor) -> Components:
    train = train[:FITTING]
    mean = train.mean(0)
    # A column that does not vary keeps its unit.
    scale = (train - mean).square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    x, held = (train - mean) / scale, (held_out - mean) / scale
    few = x[: min(CHOOSING, max(_NUMBERS // x.shape[1], 1))]
    chosen = (1, 1.0 if not len(held) else _STRENGTHS[0], True)
    best = _em(few, *chosen)
    highest, vain = -math.inf, 0
    # Where the search for a strength begins, for each choice of Λ: at the best of the K before.
    best_places = {True: 0, False: 0}
    for components in COMPONENTS if len(held) else ():
        too_many = components * x.shape[1] ** 2 > LARGEST_COVARIANCES or 4 * components > len(few)
        if vain == PATIENCE or (components > 1 and too_many):
            break
        vain += 1
        for diagonal in (True, False):
            tried: dict[int, tuple[float, Components]] = {}

            def score(place: int, k: int = components, d: bool = diagonal, tried: Any = tried) -> float:
                if place not in tried:
                    found = _em(few, k, _STRENGTHS[place], d, limits=COMPARING, held=held)
                    tried[place] = float(_joint(held, found).logsumexp(-1).mean()), found
                return tried[place][0]

            # One Gaussian has a closed form, so all is tried of it.
            place = climb(score, best_places[diagonal], len(_STRENGTHS), everywhere=components == 1)
            best_places[diagonal] = place
            if tried[place][0] > highest:
                highest, best = tried[place]
                chosen, vain = (components, _STRENGTHS[place], diagonal), 0
    if chosen[0] > 1 or len(x) > len(few):
        best = _em(x, *chosen, _belonging(_joint(x, best)))
    return Components(best.log_weights, mean + scale * best.means, scale.unsqueeze(-1) * best.factors)


def climb(score: Callable[[int], float], start: int, size: int, everywhere: bool = False) -> int:
    """The place 0 … size − 1 of the highest score: of all, or the top that is reached from ``start`` step by step."""
    if everywhere:
        return max(range(size), key=score)
    place = start
    while True:
        around = [other for other in (place - 1, place, place + 1) if 0 <= other < size]
        higher = max(around, key=score)
        if score(higher) <= score(place):
            return place
        place = higher


def _em(
    x: Tensor,
    components: int,
    strength: float,
    diagonal: bool,
    belong: Tensor | None = None,
    limits: tuple[int, float] | None = None,
    held: Tensor | None = None,
) -> Components:
    """The mode that EM finds from who belongs where, ``[N, K]``; from k-means without. With held-out rows it ends
    where these have become less likely.
    """
    rows, features = x.shape
    covariance = x.mT @ x / rows
    spread = torch.diag(covariance.diagonal()) if diagonal else covariance
    # A column that is the same in all rows has no spread, and the sum no inverse.
    ridge = 1e-6 * torch.eye(features, dtype=x.dtype)
    belief = spread / components ** (2 / features) + ridge
    belong, before = (clusters(x, components) if belong is None else belong), -math.inf
    iterations, tolerance = (ITERATIONS, TOLERANCE) if limits is None else limits
    likeliest = -math.inf
    for iteration in range(iterations):
        sizes = belong.sum(0)
        means = (belong.mT @ x) / sizes.clamp(min=1e-9).unsqueeze(-1)
        # Σ r x xᵀ − n m mᵀ as one product; x is standardized, so little cancels.
        weighted = (belong.unsqueeze(-1) * x.unsqueeze(1)).flatten(1)
        scatter = (weighted.mT @ x).unflatten(0, (components, features))
        scatter = scatter - sizes[:, None, None] * means.unsqueeze(-1) * means.unsqueeze(-2)
        covariances = (scatter + strength * belief) / (sizes + strength)[:, None, None]
        weights = (sizes + 1) / (rows + components)
        found = Components(weights.log(), means, torch.linalg.cholesky(covariances + ridge))
        joint = _joint(x, found)
        total = joint.logsumexp(-1, keepdim=True)
        belong, now = (joint - total).exp(), float(total.mean())
        if components == 1 or now - before < tolerance:
            break
        before = now
        if held is not None and iteration % _LOOK == _LOOK - 1:
            score = float(_joint(held, found).logsumexp(-1).mean())
            if score < likeliest:
                break
            likeliest = score
    return found


def _belonging(joint: Tensor) -> Tensor:
    """The share that each component has in each row."""
    return (joint - joint.logsumexp(-1, keepdim=True)).exp()


def _joint(x: Tensor, found: Components) -> Tensor:
    """log πₖ N(x; mₖ, Lₖ Lₖᵀ), ``[N, D]`` → ``[N, K]``."""
    components, features = found.means.shape
    identity = torch.eye(features, dtype=x.dtype).expand(components, -1, -1)
    whitening = torch.linalg.solve_triangular(found.factors, identity, upper=False)
    # L⁻¹ x of all components as one product.
    white = (x @ whitening.flatten(0, 1).mT).unflatten(1, (components, features))
    squares = (white - (whitening @ found.means.unsqueeze(-1)).squeeze(-1)).square().sum(-1)
    ladj = found.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return found.log_weights - ladj - 0.5 * x.shape[-1] * math.log(2 * math.pi) - 0.5 * squares


def clusters(x: Tensor, components: int) -> Tensor:
    """Which cluster each row is in, one-hot ``[N, K]``: a k-means++ start, then ten of Lloyd's iterations."""
    source = random.generator(0, "gaussians", components)
    centres = x[torch.randint(len(x), (1,), generator=source)]
    for _ in range(components - 1):
        apart = torch.cdist(x, centres).amin(1).square()
        # With fewer different rows than centres any row will do.
        chances = apart if bool(apart.sum() > 0) else torch.ones_like(apart)
        centres = torch.cat([centres, x[torch.multinomial(chances, 1, generator=source)]])
    for _ in range(11):
        belong = torch.nn.functional.one_hot(torch.cdist(x, centres).argmin(1), components).to(x.dtype)
        centres = (belong.mT @ x) / belong.sum(0).clamp(min=1e-9).unsqueeze(-1)
    return belong
