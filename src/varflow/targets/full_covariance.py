"""The Gaussian model with correlated noise: where a diagonal posterior is not enough."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError, unknown
from varflow.targets.gaussian_statistics import (
    LOG_2PI,
    best_variance,
    check_index,
    check_table,
    start,
    statistics_of,
)


class ExactCorrelated(NamedTuple):
    """Exact answers at the present Δ and Σ; differentiable in them.

    Attributes:
        log_evidence: log p(D), nats ``[]``.
        mean: of p(z | D) ``[d]``.
        covariance: of p(z | D) ``[d, d]``.
    """

    log_evidence: Tensor
    mean: Tensor
    covariance: Tensor


class BestCorrelated(NamedTuple):
    """The Δ and Σ that maximise log p(D).

    Attributes:
        shift: Δ̂ ``[d]``.
        covariance: Σ̂ ``[d, d]``.
        log_evidence: log p(D) there, nats ``[]``.
    """

    shift: Tensor
    covariance: Tensor
    log_evidence: Tensor


class CorrelatedErrors(NamedTuple):
    """Squared distances (Frobenius for Σ) of what was learned; None where the truth was not given.

    Attributes:
        shift_to_best: ‖Δ − Δ̂‖².
        covariance_to_best: ‖Σ − Σ̂‖².
        shift_to_truth: ‖Δ − Δ*‖²; about ‖z‖² at best.
        covariance_to_truth: ‖Σ − Σ*‖².
        best_to_truth: ‖Σ̂ − Σ*‖², what maximum likelihood reaches on these data.
        floor: (tr(Σ*)² + tr(Σ*²)) / N, its expectation to first order.
    """

    shift_to_best: float
    covariance_to_best: float
    shift_to_truth: float | None
    covariance_to_truth: float | None
    best_to_truth: float | None
    floor: float | None


class CorrelatedGaussianModel(nn.Module):
    """xᵢ ~ N(z + Δ, Σ), i = 1…N, with one z ~ N(0, I) for the whole data set.

    As :class:`~varflow.targets.GaussianModel`, with Σ = L Lᵀ, L = diag(exp(``log_scale``)) + the part of
    ``below`` under the diagonal. The posterior N(n (Σ + nI)⁻¹ (x̄ − Δ), Σ (Σ + nI)⁻¹) is correlated, so
    a diagonal one falls short by :meth:`diagonal_gap` at best. Use float64.

    Args:
        data: x ``[N, d]``.
        shift: start of Δ, a number or ``[d]``.
        covariance: start of Σ ``[d, d]``; None: e⁶ I, the start of the diagonal model.
        learn_noise: whether Σ is learned, or known and kept.
        batches: ``"full"`` or ``"minibatch"``, as for the diagonal model.
        truth: (Δ*, Σ*), where it is known.

    Raises:
        ShapeError: data that are not a floating-point table, or a start of another shape.
        DataError: a NaN, an infinity, or no rows.
        SpecError: a covariance that is singular, indefinite or not symmetric.

    Cost: O(d²) per z and O(d³) per call, whatever N is.
    """

    support: tuple[str, ...] = ("real",)

    def __init__(
        self,
        data: Float[Tensor, "count features"],
        shift: float | Tensor = 0.0,
        covariance: Float[Tensor, "features features"] | None = None,
        learn_noise: bool = True,
        batches: Literal["full", "minibatch"] = "full",
        truth: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if batches not in ("full", "minibatch"):
            raise unknown("batches", str(batches), ["full", "minibatch"])
        check_table(data)
        self.batches = batches
        self.event_shape: tuple[int, ...] = (data.shape[1],)
        self.shift: nn.Parameter = nn.Parameter(start("shift", shift, data))
        factor = torch.eye(data.shape[1]).to(data) * torch.tensor(3.0).to(data).exp()
        if covariance is not None:
            factor = _cholesky(covariance, data.shape[1]).to(data)
        log_scale = factor.diagonal().log()
        self.log_scale: nn.Parameter = nn.Parameter(log_scale, requires_grad=learn_noise)
        self.below: nn.Parameter = nn.Parameter(factor.tril(-1), requires_grad=learn_noise)
        whole = statistics_of(data)
        rows = data.double() - whole.mean
        self.register_buffer("data_count", whole.count.to(data.dtype))
        self.register_buffer("data_mean", whole.mean.to(data.dtype))
        # S = F Fᵀ, F from the rows themselves: S as a product would lose half of the digits.
        root = torch.linalg.qr(rows, mode="r")[1].mT
        root = nn.functional.pad(root, (0, data.shape[1] - root.shape[1]))
        self.register_buffer("data_root", root.to(data.dtype))
        if batches == "minibatch":
            self.register_buffer("data_rows", rows.to(data.dtype))
        self.has_truth: bool = truth is not None
        if truth is not None:
            self.register_buffer("true_shift", truth[0].to(data))
            self.register_buffer("true_covariance", truth[1].to(data))

    @property
    def features(self) -> int:
        """d."""
        return self.event_shape[0]

    @property
    def rows(self) -> int | None:
        """How many rows x has to go through; None where it reads all data."""
        return self.get_buffer("data_rows").shape[0] if self.batches == "minibatch" else None

    @property
    def factor(self) -> Float[Tensor, "features features"]:
        """L, lower triangular with a positive diagonal."""
        return torch.diag_embed(self.log_scale.exp()) + self.below.tril(-1)

    @property
    def covariance(self) -> Float[Tensor, "features features"]:
        """Σ = L Lᵀ."""
        return self.factor @ self.factor.mT

    def log_prob(
        self, x: Int[Tensor, "..."] | None, z: Float[Tensor, "... features"]
    ) -> Float[Tensor, "..."]:
        """log p(x | z), ``[..., d]`` → ``[...]``, nats, all constants included.

        x is None for all data, or the numbers of the rows in a minibatch ``[n]``, whose
        log-likelihood counts N/n times.

        Raises:
            ShapeError: z does not end in d features, or x is not what ``batches`` says.
        """
        if z.ndim == 0 or z.shape[-1] != self.features:
            raise ShapeError(f"z: shape {tuple(z.shape)}; this model needs [..., {self.features}]")
        count, mean, root, weight = self._statistics(x)
        offset = (z + (self.shift - mean)).reshape(-1, self.features).mT
        factor = self.factor
        scatter = torch.linalg.solve_triangular(factor, root, upper=False).square().sum()
        squares = torch.linalg.solve_triangular(factor, offset, upper=False).square().sum(0)
        own = count * (self.log_scale.sum() + 0.5 * self.features * LOG_2PI) + 0.5 * scatter
        return -weight * (own + 0.5 * count * squares.reshape(z.shape[:-1]))

    def forward(self, x: Tensor | None, z: Tensor) -> Tensor:
        return self.log_prob(x, z)

    def mean(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """E[xᵢ | z] = z + Δ."""
        return z + self.shift

    def sample(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """One xᵢ ~ p(xᵢ | z) for each z."""
        noise = random.normal(z.shape, "likelihood", dtype=z.dtype, device=z.device)
        return self.mean(z) + noise @ self.factor.mT

    def exact(self) -> ExactCorrelated:
        """log p(D) and p(z | D) at the present Δ and Σ."""
        count, mean = self.get_buffer("data_count"), self.get_buffer("data_mean")
        total = torch.linalg.cholesky(self.covariance + count * self._eye())
        gain = torch.cholesky_solve(self._eye(), total)
        return ExactCorrelated(
            self._evidence(self.shift, self.factor),
            count * (gain @ (mean - self.shift)),
            self.covariance @ gain,
        )

    def log_evidence(self) -> Float[Tensor, ""]:
        """log p(D), nats."""
        return self._evidence(self.shift, self.factor)

    def diagonal_gap(self) -> Float[Tensor, ""]:
        """KL of the best diagonal Gaussian q to p(z | D), ½ (Σ log Λ_ii − log|Λ|), nats.

        Λ = I + nΣ⁻¹ is the posterior's precision; q has its mean and the variances 1 / Λ_ii.
        """
        factor, count = self.factor, self.get_buffer("data_count")
        inverse = torch.linalg.solve_triangular(factor, self._eye(), upper=False)
        precision = self._eye() + count * (inverse.mT @ inverse)
        return 0.5 * (precision.diagonal().log().sum() - torch.linalg.slogdet(precision)[1])

    @torch.no_grad()
    def maximum_likelihood(self) -> BestCorrelated:
        """Δ̂ = x̄; Σ̂ has the eigenvectors of the scatter S and, one by one, the closed form of σ̂².

        (For given eigenvalues of Σ, tr(Σ⁻¹S) is least when both share their eigenvectors, and the
        rest of log p(D) depends on the eigenvalues alone.)

        Raises:
            SpecError: a scatter of lower rank: Σ̂ is singular and the likelihood unbounded.
        """
        root, count = self.get_buffer("data_root"), self.get_buffer("data_count")
        vectors, singular, _ = torch.linalg.svd(root)
        if singular[-1] <= root.shape[0] * torch.finfo(root.dtype).eps * singular[0]:
            raise SpecError(
                "data: their scatter has not full rank, so the noise covariance that fits best is "
                "singular and the likelihood unbounded; use more rows or fewer features"
            )
        values = best_variance(count, singular.square())
        covariance = (vectors * values) @ vectors.mT
        shift = self.get_buffer("data_mean")
        return BestCorrelated(
            shift, covariance, self._evidence(shift, torch.linalg.cholesky(covariance))
        )

    @torch.no_grad()
    def errors(self) -> CorrelatedErrors:
        """How far Δ and Σ are from the maximum-likelihood solution and from the truth."""
        best = self.maximum_likelihood()

        def distance(a: Tensor, b: Tensor) -> float:
            return (a - b).double().square().sum().item()

        to_best = distance(self.shift, best.shift), distance(self.covariance, best.covariance)
        if not self.has_truth:
            return CorrelatedErrors(*to_best, None, None, None, None)
        true_shift, truth = self.get_buffer("true_shift"), self.get_buffer("true_covariance")
        squares = truth.double().trace().square() + truth.double().square().sum()
        return CorrelatedErrors(
            *to_best,
            distance(self.shift, true_shift),
            distance(self.covariance, truth),
            distance(best.covariance, truth),
            (squares / self.get_buffer("data_count")).item(),
        )

    def _statistics(self, x: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
        """n, x̄, a root of the scatter and the weight, of all data or of the rows x."""
        count, mean = self.get_buffer("data_count"), self.get_buffer("data_mean")
        if x is None:
            return count, mean, self.get_buffer("data_root"), 1.0
        check_index(x, self.batches)
        rows = self.get_buffer("data_rows")[x]
        offset = rows.mean(0)
        size = torch.full_like(count, x.shape[0])
        return size, mean + offset, (rows - offset).mT, count / size

    def _evidence(self, shift: Tensor, factor: Tensor) -> Tensor:
        """log p(D) = log N of the scatter given Σ, and of x̄ ~ N(Δ, I + Σ/n)."""
        count, mean = self.get_buffer("data_count"), self.get_buffer("data_mean")
        scatter = torch.linalg.solve_triangular(factor, self.get_buffer("data_root"), upper=False)
        total = torch.linalg.cholesky(factor @ factor.mT + count * self._eye())
        offset = torch.linalg.solve_triangular(total, (mean - shift).unsqueeze(-1), upper=False)
        log_noise = 2 * factor.diagonal().log().sum()
        log_total = 2 * total.diagonal().log().sum()
        fit = scatter.square().sum() + count * offset.square().sum()
        constant = count * self.features * LOG_2PI
        return -0.5 * (constant + (count - 1) * log_noise + log_total + fit)

    def _eye(self) -> Tensor:
        return torch.eye(self.features, dtype=self.shift.dtype, device=self.shift.device)

    def extra_repr(self) -> str:
        return f"features={self.features}, batches={self.batches}"


def _cholesky(covariance: Tensor, features: int) -> Tensor:
    """L, in float64; a covariance that has none in float64 arithmetic is refused."""
    if covariance.shape != (features, features):
        raise ShapeError(
            f"covariance: shape {tuple(covariance.shape)}; {features} features need "
            f"[{features}, {features}]"
        )
    covariance = covariance.detach().double()
    if not torch.allclose(covariance, covariance.mT, rtol=1e-6, atol=0.0):
        raise SpecError("covariance: is not symmetric; use (C + Cᵀ) / 2 if that is what you mean")
    values = torch.linalg.eigvalsh(covariance)
    if not values[0] > features * torch.finfo(torch.float64).eps * values[-1].abs():
        raise SpecError(
            f"covariance: is singular or indefinite, its smallest eigenvalue is {values[0].item():.3g} "
            f"and its largest {values[-1].item():.3g}; use a positive definite one"
        )
    return torch.linalg.cholesky(covariance)
