"""The table of codewords: nearest neighbours, moving averages, restarts, and a k-means start."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from varflow.core import random, ranks
from varflow.core.errors import SpecError, positive
from varflow.networks.linear import linear

#: γ of the counts that restarts look at, where the codewords themselves are no moving averages.
_COUNT_DECAY = 0.99
#: Added to each count in the smoothed share of a code (Laplace), of a batch that may leave it out.
_SMOOTHING = 1e-5
#: k-means looks at no more vectors a code.
_VECTORS_A_CODE = 64


class Codebook(nn.Module):
    """K codewords e_k ``[K, D]``, learned by gradients or as moving averages of what they stand for.

    With a ``decay`` γ, after each batch (van den Oord et al. 2017, appendix A.1)

        N_k ← γ N_k + (1 − γ) n_k,   m_k ← γ m_k + (1 − γ) Σ z,   e_k = m_k / Ñ_k,

    with Ñ_k = (N_k + ε)/(ΣN + K ε)·ΣN. Different from the paper: every code starts with a fair share of the first
    batch, or with its k-means cluster; and a code whose N_k falls below ``restarts`` times the mean starts again
    at a random vector of the batch, its N_k and m_k with it, at the mean count. An optimizer's moments for a
    restarted codeword, where gradients learn it, stay as they are.

    Several processes see one codebook: counts and sums are those of the global batch, restarts and k-means choose
    among its vectors, as many from each process, and inside ``random.stream`` their random numbers are the
    same on every process.

    Args:
        codes: K.
        features: D.
        decay: γ, or None for codewords that a loss term learns.
        restarts: a share of the mean count, 0 for never.
        kmeans: iterations of the k-means start on the first batch, 0 for none.

    Raises:
        SpecError: sizes that are not positive, a decay outside (0, 1), restarts outside [0, 1).
    """

    counts: Tensor
    seen: Tensor
    sums: Tensor | None
    started: Tensor

    def __init__(
        self,
        codes: int,
        features: int,
        decay: float | None = None,
        restarts: float = 0.05,
        kmeans: int = 0,
    ) -> None:
        super().__init__()
        positive(codes=codes, features=features)
        if decay is not None and not 0 < decay < 1:
            raise SpecError(f"decay: was {decay}; use a number between 0 and 1, or None")
        if not 0 <= restarts < 1:
            raise SpecError(f"restarts: was {restarts}; use 0 for none, or a share below 1")
        if kmeans < 0:
            raise SpecError(f"kmeans: was {kmeans}; use a number of iterations, 0 for none")
        self.decay: float | None = decay
        self.restarts: float = restarts
        self.kmeans: int = kmeans
        weight = torch.empty(codes, features).uniform_(-1 / codes, 1 / codes)
        self.weight: Tensor
        if decay is None:
            self.weight = nn.Parameter(weight)
            self.register_buffer("sums", None)
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("sums", torch.zeros_like(weight))
        self.register_buffer("counts", torch.zeros(codes))
        # Kept with the weights, so that a resumed fit records what one without a break would.
        self.register_buffer("seen", torch.zeros(codes))
        self.register_buffer("started", torch.tensor(False))
        self._is_started: bool | None = False

    @torch.no_grad()
    def nearest(self, z: Float[Tensor, "vectors features"]) -> Int[Tensor, "vectors"]:
        """argmin_k ‖z − e_k‖² = argmin_k ‖e_k‖² − 2 z·e_k: one product, N×K numbers; of ties the lowest k."""
        weight = self.weight.detach()
        return linear(z.detach(), -2 * weight, weight.square().sum(-1)).argmin(-1)

    @torch.no_grad()
    def prepare(self, z: Float[Tensor, "vectors features"]) -> None:
        """Before a training batch is coded: the start, at the first one, and restarts at later ones."""
        if self._is_started is None:
            self._is_started = bool(self.started)
        if not self._is_started:
            self._start(z)
            self._is_started = True
        elif self.restarts:
            self._restart(z)

    @torch.no_grad()
    def observe(
        self, z: Float[Tensor, "vectors features"], codes: Int[Tensor, "vectors"]
    ) -> Float[Tensor, "codes"]:
        """After a training batch is coded: the moving averages. Returns the counts of the global batch."""
        batch = ranks.all_reduce(count(codes, self.counts.shape[0], self.counts.dtype))
        decay = _COUNT_DECAY if self.decay is None else self.decay
        self.counts.lerp_(batch, 1 - decay)
        self.seen.add_(batch)
        if self.sums is not None:
            self.sums.lerp_(ranks.all_reduce(_sums(z, codes, self.weight)), 1 - decay)
            total = self.counts.sum()
            smooth = (self.counts + _SMOOTHING) / (total + len(self.counts) * _SMOOTHING) * total
            self.weight.copy_(self.sums / smooth.unsqueeze(-1))
        return batch

    @torch.no_grad()
    def take_seen(self) -> Float[Tensor, "codes"]:
        """How often each code occurred in training batches since the last call."""
        taken = self.seen.clone()
        self.seen.zero_()
        return taken

    def _start(self, z: Tensor) -> None:
        vectors = ranks.gather(z)
        self.counts.fill_(len(vectors) / len(self.counts))
        if self.kmeans:
            known = min(len(self.counts), len(vectors))
            centres, counts = kmeans(vectors, known, self.kmeans)
            self.weight[:known] = centres
            # An empty cluster counts as one vector, and those looked at stand for all.
            counts = torch.where(counts > 0, counts, 1)
            self.counts[:known] = counts * (len(vectors) / counts.sum())
        if self.sums is not None:
            self.sums.copy_(self.weight * self.counts.unsqueeze(-1))
        self.started.fill_(True)

    def _restart(self, z: Tensor) -> None:
        mean = self.counts.mean()
        dead = self.counts < self.restarts * mean
        noise = random.uniform(
            self.counts.shape, "restarts", dtype=torch.float32, device=self.counts.device
        )
        rank, world = ranks.rank(), ranks.world()
        # A row of the global batch, as many vectors from each process: its owner hands it to all.
        chosen = (noise.double() * (len(z) * world)).long() - rank * len(z)
        own = (chosen >= 0) & (chosen < len(z))
        rows = z[torch.where(own, chosen, 0)] * own.unsqueeze(-1)
        rows = ranks.all_reduce(rows.to(self.weight.dtype))
        self.weight.copy_(torch.where(dead.unsqueeze(-1), rows, self.weight))
        self.counts.copy_(torch.where(dead, mean, self.counts))
        if self.sums is not None:
            self.sums.copy_(torch.where(dead.unsqueeze(-1), rows * mean, self.sums))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._is_started = None

    def extra_repr(self) -> str:
        codes, features = self.weight.shape
        return (
            f"codes={codes}, features={features}, decay={self.decay}, restarts={self.restarts}, "
            f"kmeans={self.kmeans}"
        )


def kmeans(
    vectors: Float[Tensor, "vectors features"], clusters: int, iterations: int
) -> tuple[Float[Tensor, "clusters features"], Float[Tensor, "clusters"]]:
    """Centres and sizes of clusters: a k-means++ start (Arthur and Vassilvitskii 2007), then Lloyd's iterations.

    At most 64 vectors a cluster are looked at, chosen at random. A cluster that loses its vectors keeps its centre.
    Cost: ``clusters`` + ``iterations`` passes over the vectors.
    """
    options: dict[str, Any] = {"dtype": vectors.dtype, "device": vectors.device}
    if len(vectors) > _VECTORS_A_CODE * clusters:
        order = random.uniform((len(vectors),), "kmeans", **options).argsort()
        vectors = vectors[order[: _VECTORS_A_CODE * clusters]]
    noise = random.uniform((clusters,), "kmeans", **options)
    centres = vectors.new_empty(clusters, vectors.shape[1])
    # The first centre is any vector, the next one is drawn in proportion to its squared distance from all before.
    apart = torch.ones_like(vectors[:, 0])
    for index in range(clusters):
        upto = apart.cumsum(0)
        chosen = torch.searchsorted(upto, noise[index : index + 1] * upto[-1:], right=True)
        # With fewer different vectors than centres nothing is apart any more, and any vector will do.
        centres[index] = vectors[chosen.remainder(len(vectors))].squeeze(0)
        away = (vectors - centres[index]).square().sum(-1)
        apart = away if index == 0 else torch.minimum(apart, away)
    sizes = vectors.new_zeros(clusters)
    for _ in range(iterations):
        squares = centres.square().sum(-1)
        codes = linear(vectors, -2 * centres, squares).argmin(-1)
        sizes = count(codes, clusters, vectors.dtype)
        means = _sums(vectors, codes, centres) / sizes.unsqueeze(-1)
        centres = torch.where(sizes.unsqueeze(-1) > 0, means, centres)
    return centres, sizes


def count(codes: Int[Tensor, "..."], size: int, dtype: torch.dtype) -> Float[Tensor, "codes"]:
    """How often each code occurs."""
    flat = codes.reshape(-1)
    zeros = torch.zeros(size, dtype=dtype, device=codes.device)
    return zeros.index_add(0, flat, torch.ones_like(flat, dtype=dtype))


def perplexity(counts: Float[Tensor, "codes"]) -> Float[Tensor, ""]:
    """exp(−Σ p log p): how many codes, used equally often, would say as much; 1 to K."""
    return torch.special.entr(counts / counts.sum()).sum().exp()


def usage(counts: Float[Tensor, "codes"]) -> Float[Tensor, ""]:
    """The share of codes that occur at all."""
    return (counts > 0).to(counts.dtype).mean()


def used(counts: Float[Tensor, "codes"]) -> dict[str, float]:
    """Both of them, as plain numbers."""
    return {"perplexity": float(perplexity(counts)), "usage": float(usage(counts))}


def _sums(z: Tensor, codes: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).index_add_(0, codes, z.to(like.dtype))
