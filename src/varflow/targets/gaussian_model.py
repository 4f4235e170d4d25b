"""The Gaussian model: one latent z behind a whole data set, with its exact answers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError, positive, unknown
from varflow.targets.gaussian_statistics import (
    LOG_2PI,
    Statistics,
    best_variance,
    check_index,
    check_scatter,
    check_table,
    ecme,
    evidence,
    start,
    statistics_of,
)

Batches = Literal["full", "minibatch", "separate"]


class Exact(NamedTuple):
    """Exact answers at the present Δ and σ; differentiable in them.

    Attributes:
        log_evidence: log p(D), nats ``[]``.
        mean: of p(z | D) ``[d]``.
        variance: of p(z | D) ``[d]``, which is diagonal.
    """

    log_evidence: Tensor
    mean: Tensor
    variance: Tensor


class MaximumLikelihood(NamedTuple):
    """The Δ and σ² that maximise log p(D).

    Attributes:
        shift: Δ̂ ``[d]``.
        variance: σ̂² ``[d]``.
        log_evidence: log p(D) there, nats ``[]``.
    """

    shift: Tensor
    variance: Tensor
    log_evidence: Tensor


class Errors(NamedTuple):
    """Squared distances of what was learned; None where the truth was not given.

    Attributes:
        shift_to_best: ‖Δ − Δ̂‖², to the maximum-likelihood solution (x̄ with full data).
        scale_to_best: ‖σ − σ̂‖².
        shift_to_truth: ‖Δ − Δ*‖². Data cannot tell Δ from z, so it is about ‖z‖² at best.
        scale_to_truth: ‖σ − σ*‖².
        best_to_truth: ‖σ̂ − σ*‖², what maximum likelihood reaches on these data.
        floor: Σ σ*² / 2N, its expectation.
    """

    shift_to_best: float
    scale_to_best: float
    shift_to_truth: float | None
    scale_to_truth: float | None
    best_to_truth: float | None
    floor: float | None


class GaussianModel(nn.Module):
    """xᵢ ~ N(z + Δ, diag σ²), i = 1…N, with one z ~ N(0, I) for the whole data set.

    This is the likelihood p(D | z); Δ (``shift``) and log σ (``log_scale``) are its parameters and the
    data are its buffers, as centred statistics computed in float64. They and the parameters have the
    dtype of the data. Use float64: at N = 10⁴, d = 400 log p(D) is near −10⁶, where float32 resolves
    0.06 nat. The centred form keeps z and gradients as accurate as the dtype allows in either.

    Args:
        data: x ``[N, d]``.
        shift: start of Δ, a number or ``[d]``.
        log_scale: start of log σ, a number or ``[d]``.
        batches: what x means in :meth:`log_prob`. ``"full"``: it is None, and all data count.
            ``"minibatch"``: the numbers of some rows ``[n]``; their log-likelihood counts N/n times, so
            that one KL is paid and the gradient is unbiased. ``"separate"``: the number of a block
            ``[1]``; each of the consecutive blocks of ``block`` rows is a data set of its own with its
            own z (the objective of the h-vae repository, not a bound on log p(D)). None stands for all
            data in each of them.
        block: rows of a block.
        truth: (Δ*, σ*), where it is known.

    Raises:
        ShapeError: data that are not a floating-point table, or a start of another shape.
        DataError: a NaN, an infinity, or no rows.

    Cost: O(d) per z, whatever N is.

    Source: Caterini, Doucet and Sejdinovic, "Hamiltonian variational auto-encoder" (2018), section 4.1.
    Their −nd/2 log 2π is here too, so that log p(D) is that of the data.

    >>> model = GaussianModel(torch.tensor([[0.0], [2.0]], dtype=torch.float64), log_scale=0.0)
    >>> round(model.log_prob(None, torch.ones(1).double()).item(), 4)  # two N(±1; 0, 1)
    -2.8379
    """

    support: tuple[str, ...] = ("real",)

    def __init__(
        self,
        data: Float[Tensor, "count features"],
        shift: float | Tensor = 0.0,
        log_scale: float | Tensor = 3.0,
        batches: Batches = "full",
        block: int = 256,
        truth: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        positive(block=block)
        if batches not in ("full", "minibatch", "separate"):
            raise unknown("batches", str(batches), ["full", "minibatch", "separate"])
        check_table(data)
        self.batches = batches
        self.block: int = block
        self.event_shape: tuple[int, ...] = (data.shape[1],)
        self.shift: nn.Parameter = nn.Parameter(start("shift", shift, data))
        self.log_scale: nn.Parameter = nn.Parameter(start("log_scale", log_scale, data))
        whole = statistics_of(data)
        self._store("count", whole.count, data)
        self._store("mean", whole.mean, data)
        self._store("scatter", whole.scatter, data)
        if batches == "minibatch":
            self._store("rows", data.double() - whole.mean, data)
        if batches == "separate":
            blocks = [statistics_of(rows) for rows in data.split(block)]
            self._store("block_count", torch.stack([b.count for b in blocks]), data)
            self._store("block_mean", torch.stack([b.mean for b in blocks]), data)
            self._store("block_scatter", torch.stack([b.scatter for b in blocks]), data)
        self.has_truth: bool = truth is not None
        if truth is not None:
            self.register_buffer("true_shift", truth[0].to(data))
            self.register_buffer("true_scale", truth[1].to(data))

    def _store(self, name: str, value: Tensor, data: Tensor) -> None:
        self.register_buffer(f"data_{name}", value.to(data.dtype))

    @property
    def features(self) -> int:
        """d."""
        return self.event_shape[0]

    @property
    def blocks(self) -> int:
        """The number of blocks with ``batches="separate"``, else 1."""
        return self._parts().count.shape[0]

    @property
    def rows(self) -> int | None:
        """How many numbers x has to go through: rows or blocks; None where it reads all data."""
        if self.batches == "full":
            return None
        name = "data_rows" if self.batches == "minibatch" else "data_block_count"
        return self.get_buffer(name).shape[0]

    def statistics(self, x: Int[Tensor, "..."] | None = None) -> Statistics:
        """The statistics of all data, of the rows x, or of the block x; see ``batches``.

        Raises:
            ShapeError: x is not a vector of whole numbers, or not one block.
            SpecError: x was given although ``batches="full"``.
        """
        if x is None:
            get = self.get_buffer
            return Statistics(get("data_count"), get("data_mean"), get("data_scatter"))
        check_index(x, self.batches)
        if self.batches == "separate":
            names = ("data_block_count", "data_block_mean", "data_block_scatter")
            return Statistics(*(self.get_buffer(name)[x].squeeze(0) for name in names))
        rows, count = self.get_buffer("data_rows")[x], self.get_buffer("data_count")
        offset = rows.mean(0)
        size = torch.full_like(count, x.shape[0])
        mean = self.get_buffer("data_mean") + offset
        return Statistics(size, mean, (rows - offset).square().sum(0), count / size)

    def log_prob(
        self, x: Int[Tensor, "..."] | None, z: Float[Tensor, "... features"]
    ) -> Float[Tensor, "..."]:
        """log p(x | z), ``[..., d]`` → ``[...]``, nats, all constants included.

        Raises:
            ShapeError: z does not end in d features, or x is not what ``batches`` says.
        """
        if z.ndim == 0 or z.shape[-1] != self.features:
            raise ShapeError(f"z: shape {tuple(z.shape)}; this model needs [..., {self.features}]")
        count, mean, scatter, weight = self.statistics(x)
        inverse = (-self.log_scale).exp()
        own = self.log_scale.sum() + 0.5 * self.features * LOG_2PI
        own = count * own + 0.5 * (scatter * inverse.square()).sum()
        squares = ((z + (self.shift - mean)) * inverse).square().sum(-1)
        return -weight * (own + 0.5 * count * squares)

    def forward(self, x: Tensor | None, z: Tensor) -> Tensor:
        return self.log_prob(x, z)

    def affine_gradient(self, x: Int[Tensor, "..."] | None = None) -> tuple[Tensor, Tensor]:
        """(b, a), each ``[d]``, of ∇_z log p(x | z) = b − a ⊙ z. The prior's own part is (0, 1)."""
        count, mean, _, weight = self.statistics(x)
        a = weight * count * (-2 * self.log_scale).exp()
        return a * (mean - self.shift), a

    def mean(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """E[xᵢ | z] = z + Δ."""
        return z + self.shift

    def sample(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """One xᵢ ~ p(xᵢ | z) for each z."""
        noise = random.normal(z.shape, "likelihood", dtype=z.dtype, device=z.device)
        return self.mean(z) + self.log_scale.exp() * noise

    def exact(self, x: Int[Tensor, "..."] | None = None) -> Exact:
        """log p(D) and p(z | D) at the present Δ and σ, of all data or of one block.

        Raises:
            SpecError: x is a minibatch; a scaled likelihood has no evidence.
        """
        if x is not None and self.batches != "separate":
            raise SpecError("x: a minibatch has no evidence of its own; leave it out")
        statistics = self.statistics(x)
        count, mean, _, _ = statistics
        variance = (2 * self.log_scale).exp()
        total = variance + count
        log_evidence = evidence(statistics, self.shift, variance).sum(-1)
        return Exact(log_evidence, count * (mean - self.shift) / total, variance / total)

    def log_evidence(self) -> Float[Tensor, ""]:
        """log p(D); with ``batches="separate"`` the sum over the blocks of log p(block). Nats."""
        variance = (2 * self.log_scale).exp()
        return evidence(self._parts(), self.shift, variance).sum()

    @torch.no_grad()
    def maximum_likelihood(self) -> MaximumLikelihood:
        """Δ̂ = x̄ and σ̂² in closed form; for separate blocks by 200 steps of ECME, which suffice.

        Raises:
            SpecError: a dimension in which all data are equal: the likelihood is unbounded there.
        """
        check_scatter(self.statistics())
        parts = self._parts()
        shift, variance = parts.mean[0], best_variance(parts.count[0], parts.scatter[0])
        if len(parts.count) > 1:
            shift, variance = ecme(parts)
        return MaximumLikelihood(shift, variance, evidence(parts, shift, variance).sum())

    @torch.no_grad()
    def errors(self) -> Errors:
        """How far Δ and σ are from the maximum-likelihood solution and from the truth."""
        best = self.maximum_likelihood()
        scale, best_scale = self.log_scale.exp(), best.variance.sqrt()

        def distance(a: Tensor, b: Tensor) -> float:
            return (a - b).double().square().sum().item()

        to_best = distance(self.shift, best.shift), distance(scale, best_scale)
        if not self.has_truth:
            return Errors(*to_best, None, None, None, None)
        true_shift, true_scale = self.get_buffer("true_shift"), self.get_buffer("true_scale")
        return Errors(
            *to_best,
            distance(self.shift, true_shift),
            distance(scale, true_scale),
            distance(best_scale, true_scale),
            true_scale.double().square().sum().item() / (2 * self.get_buffer("data_count").item()),
        )

    def _parts(self) -> Statistics:
        """The data sets that the objective counts, with a leading dimension for them."""
        names = ("count", "mean", "scatter")
        if self.batches == "separate":
            return Statistics(*(self.get_buffer(f"data_block_{name}") for name in names))
        return Statistics(*(self.get_buffer(f"data_{name}").unsqueeze(0) for name in names))

    def extra_repr(self) -> str:
        return f"features={self.features}, batches={self.batches}"
