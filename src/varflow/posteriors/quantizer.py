"""Vector quantization: a posterior that puts all its mass on the nearest grid of codewords."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from varflow.core.errors import DataError, ShapeError, SpecError, positive
from varflow.core.observed import Examples
from varflow.core.settings import AtLeast, Between, Settings, Size, settings
from varflow.flows.flow import full_precision, without_autocast
from varflow.networks.context import encode
from varflow.posteriors.codebook import Codebook, count, perplexity, usage, used
from varflow.posteriors.posterior import Conditional, Draw, LogJoint, Posterior

_PIECE = 1 << 17


@settings("Quantizer")
class QuantizerSettings(Settings):
    """The codebook of a vector quantizer."""

    codes: Annotated[int, "K, the number of codewords.", Size()] = 128
    code_features: Annotated[
        int, "D, the size of a codeword, and the channels of encoder and decoder.", Size()
    ] = 256
    codebook: Annotated[
        Literal["learned", "average"],
        "Learned by a loss term, or moving averages of what each codeword stands for.",
    ] = "learned"
    codebook_decay: Annotated[
        float, "average: what a moving average keeps at each update.", Between(0, 1, open=True)
    ] = 0.99
    codebook_weight: Annotated[
        float,
        "Weight of the codebook and commitment terms, sums over the grid, against nats.",
        AtLeast(0),
    ] = 1.0
    commitment: Annotated[
        float, "Weight of the commitment term against the codebook term.", AtLeast(0)
    ] = 0.25
    restarts: Annotated[
        float,
        "A code used less than this share of the mean starts again at a vector of the batch; 0 for never.",
        Between(0, 1),
    ] = 0.05
    kmeans: Annotated[
        int,
        "Iterations of k-means on the first batch, where the codebook then starts; 0 for a random start.",
        AtLeast(0),
    ] = 0

    read_by_others: ClassVar[tuple[str, ...]] = ("code_features",)
    alone = (
        "a quantizer has no flow, no leapfrog steps and no layers above it; leave it out, or use posterior=gaussian"
    )

    @property
    def width(self) -> int:
        """Features that the decoder reads at each place of the grid."""
        return self.code_features

    def check(self, spec: Any) -> None:
        if spec.get("target") != "none":
            raise SpecError(
                "posterior: a quantizer codes data, and a target has none; use posterior=gaussian"
            )
        if not spec.prior.discrete:
            raise SpecError(
                f"prior: {spec.get('prior')} is not over codes; with posterior=quantizer use uniform-codes, or "
                "pixelcnn or gated-pixelcnn"
            )
        if spec.get("network") != "grid":
            raise SpecError(
                f"network: {spec.get('network')} makes no grid of vectors; with posterior=quantizer use network=grid"
            )
        if spec.get("samples", 1) > 1:
            raise SpecError(
                f"samples: was {spec.get('samples')}; q of a quantizer is one code for sure, use samples=1"
            )

    def build(self, part: Any, encoder: nn.Module) -> Quantizer:
        """q(codes|x)."""
        return Quantizer(
            encoder,
            self.codes,
            self.code_features,
            decay=self.codebook_decay if self.codebook == "average" else None,
            beta=self.commitment,
            weight=self.codebook_weight,
            restarts=self.restarts,
            kmeans=self.kmeans,
        )


class Quantized(Conditional):
    """The codes of a batch, and the point z = e[codes] that they stand for. Made by :class:`Quantizer`.

    Attributes:
        codes: ``[*B, *grid]``, integers: what a prior over code grids charges.
        z: ``[*B, D, *grid]``, the codewords; gradients pass straight through to the encoder.
        encoded: ``[*B, D, *grid]``, what the encoder said.
        auxiliary: ``{"codebook": …, "commitment": …}``, losses in nats per example, scalars, to be added to a
            negative bound; no "codebook" where it is a moving average.
        counts: ``[K]``, how often each code occurs: in training in the global batch, else in this one.
        local: (encoded,).
    """

    def __init__(
        self,
        encoded: Tensor,
        z: Tensor,
        codes: Tensor,
        auxiliary: dict[str, Tensor],
        counts: Tensor,
        grid_dims: int = 2,
    ) -> None:
        self.encoded: Tensor = encoded
        self.z: Tensor = z
        self.codes: Tensor = codes
        self.auxiliary: dict[str, Tensor] = auxiliary
        self.counts: Tensor = counts
        self.grid_dims: int = grid_dims
        self.local: tuple[Tensor, ...] = (encoded,)

    @property
    def metrics(self) -> dict[str, Tensor]:
        """Perplexity, 1 to K, and the share of codes in use, both of :attr:`counts`."""
        return {"perplexity": perplexity(self.counts), "usage": usage(self.counts)}

    def draw(self, samples: int = 1, log_joint: LogJoint | None = None, hold: bool = False) -> Draw:
        """The same z for every sample, with log q = 0: q is a point mass over codes."""
        positive(samples=samples)
        z = self.z.expand(samples, *self.z.shape)
        batch = self.z.shape[: self.z.ndim - 1 - self.grid_dims]
        zeros = self.z.new_zeros(samples, *batch)
        return Draw(z, zeros, self.encoded.expand_as(z), zeros)

    @property
    def centre(self) -> Tensor:
        """The codewords."""
        return self.z

    def log_prob(self, z: Tensor) -> Tensor:
        """Refused: q has no density.

        Raises:
            SpecError: always.
        """
        raise SpecError(
            "log_prob: the quantizer puts all mass on one grid of codes and has no density of other points; "
            "use its codes under a prior over code grids"
        )


class Quantizer(Posterior):
    """q(codes|x) = 1 for the codeword nearest to each vector of the encoder: van den Oord et al. 2017.

        k = argmin_k ‖z_e − e_k‖,   z = e_k,   ∂z/∂z_e := 1,
        loss = −log p(x|z) + λ (Σ ‖sg[z_e] − e_k‖² + β Σ ‖z_e − sg[e_k]‖²)

    summed over the grid, a mean over examples, in nats (eq. 3). The last two terms are ``q.auxiliary``; with a
    ``decay`` the first of them gives way to moving averages (:class:`~varflow.posteriors.codebook.Codebook`).
    Under a prior over code grids log w = log p(x|z) + log p(codes) is the two-stage bound: H·W·log K nats are
    the cost under the uniform prior of stage one.

    Cost: one product of N×D with D×K; memory N×K + N×D, never N×K×D. Distances are float32 also under autocast.
    The codebook changes in a forward pass in training mode with gradients enabled, and then alone. Different from
    the paper: sums over the grid instead of means, restarts, a k-means start.

    Args:
        encoder: a network ``[B, *event] → [B, D, *grid]`` whose ``out_shape`` says (D, \\*grid).
        codes: K.
        features: D, the size of a codeword.
        decay: γ of the moving averages, e.g. 0.99; None for a codebook that the first term learns.
        beta: β, the weight of the commitment term.
        weight: λ, the weight of both terms against nats.
        restarts: a code used less than this share of the mean starts again at a vector of the batch; 0 for never.
        kmeans: iterations of k-means on the first batch; 0 starts uniformly on [−1/K, 1/K].

    Raises:
        SpecError: sizes that are not positive or do not fit, weights that are negative, a decay outside (0, 1).

    Example:
        >>> import torch
        >>> from varflow.networks import VQEncoder
        >>> posterior = Quantizer(VQEncoder((1, 8, 8), features=4), codes=16, features=4)
        >>> q = posterior(torch.zeros(5, 1, 8, 8))
        >>> q.codes.shape, q.draw(1).z.shape
        (torch.Size([5, 2, 2]), torch.Size([1, 5, 4, 2, 2]))
    """

    #: q is a point mass over codes, so bounds over several samples say nothing more than one.
    discrete = True

    def __init__(
        self,
        encoder: nn.Module,
        codes: int = 128,
        features: int = 256,
        decay: float | None = None,
        beta: float = 0.25,
        weight: float = 1.0,
        restarts: float = 0.05,
        kmeans: int = 0,
    ) -> None:
        super().__init__()
        shape: Sequence[int] = tuple(getattr(encoder, "out_shape", ()))
        if not shape or shape[0] != features:
            raise SpecError(
                f"encoder: its out_shape is {tuple(shape)}; vectors of {features} features need "
                f"({features}, height, width): build both with the same features"
            )
        for name, value in (("beta", beta), ("weight", weight)):
            if not 0 <= value < math.inf:
                raise SpecError(f"{name}: was {value}; use a number from 0 on")
        self.encoder = encoder
        self.codebook: Codebook = Codebook(codes, features, decay, restarts, kmeans)
        self.beta: float = beta
        self.weight: float = weight
        self.codes: int = codes
        self.grid: tuple[int, ...] = tuple(shape[1:])

    def forward(self, x: Examples | None = None) -> Quantized:
        """Encode x ``[B, *event]`` and code it; in training the codebook learns from the batch.

        Raises:
            SpecError: x is missing.
        """
        if x is None:
            raise SpecError("x: the quantizer reads x; call posterior(x)")
        encoded = full_precision(encode(self.encoder, x))
        return self._quantize(encoded, learn=self.training and torch.is_grad_enabled())

    def from_local(self, local: tuple[Tensor, ...]) -> Quantized:
        return self._quantize(local[0], learn=False)

    def decode_codes(self, codes: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The codewords of codes ``[..., *grid]``: ``[..., D, *grid]``, any grid.

        Raises:
            ShapeError: codes are no integers, or have fewer dimensions than a grid.
            DataError: a code out of range.
        """
        if codes.is_floating_point() or codes.ndim < len(self.grid):
            raise ShapeError(
                f"codes: {codes.dtype} of shape {tuple(codes.shape)}; needs integers [..., "
                f"{', '.join(map(str, self.grid))}]"
            )
        try:
            words = nn.functional.embedding(codes, self.codebook.weight)
        except IndexError:
            raise DataError(f"codes: out of range; codes go from 0 to {self.codes - 1}") from None
        return words.movedim(-1, -1 - len(self.grid))

    def refuses_compilation(self, gradient: str) -> str:
        return (
            "compile: a quantizer's codebook restarts and counts by the values of a batch, which a compiled step "
            "cannot; leave compile off (its time is that of its convolutions)"
        )

    def monitor(self) -> dict[str, float]:
        """Perplexity and usage of the codes of the training batches since the last call; empty without any."""
        counts = self.codebook.take_seen()
        return used(counts) if bool(counts.any()) else {}

    def _quantize(self, encoded: Tensor, learn: bool) -> Quantized:
        channel = -1 - len(self.grid)
        if encoded.shape[channel:] != (self.codebook.weight.shape[1], *self.grid):
            wanted = ", ".join(map(str, (self.codebook.weight.shape[1], *self.grid)))
            raise ShapeError(
                f"encoder: gave {tuple(encoded.shape)}; this quantizer needs [..., {wanted}]"
            )
        last = encoded.movedim(channel, -1)
        vectors = last.reshape(-1, last.shape[-1])
        with without_autocast(encoded):
            if learn:
                self.codebook.prepare(vectors.detach())
            codes = self.codebook.nearest(vectors)
            # A copy, because the codebook may change before the backward pass.
            words, commitment, distortion = _Round.apply(
                vectors, self.codebook.weight.clone(), codes
            )
            if learn:
                counts = self.codebook.observe(vectors.detach(), codes)
            else:
                counts = count(codes, self.codes, words.dtype)
            each = math.prod(self.grid) * self.weight
            auxiliary = {"commitment": (each * self.beta) * commitment.mean()}
            if self.codebook.decay is None:
                auxiliary["codebook"] = each * distortion.mean()
        z = words.reshape(last.shape).movedim(-1, channel)
        codes = codes.reshape(last.shape[:-1])
        return Quantized(encoded, z, codes, auxiliary, counts, len(self.grid))

    def extra_repr(self) -> str:
        return f"grid={self.grid}, beta={self.beta}, weight={self.weight}"


class _Round(torch.autograd.Function):
    """(z, e, codes) → (e[codes], ‖z − sg e‖², ‖sg z − e‖²), each gradient where the paper sends it.

    The first output's gradient passes to z as it is; the second's goes to z alone, the third's to e alone.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, table: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        words = table.index_select(0, codes)
        if torch._C._are_functorch_transforms_active():
            squares = (z - words).square().sum(-1)
        else:
            squares = torch.cat([_squares(a - b) for a, b in _pieces(z, words)])
        return words, squares, squares.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(
        ctx: Any, of_words: Tensor, of_commitment: Tensor, of_distortion: Tensor
    ) -> tuple[Tensor | None, ...]:
        z, table, codes = ctx.saved_tensors
        wants_z, wants_table, _ = ctx.needs_input_grad
        for_z = for_table = None
        near, far = 2 * of_commitment.unsqueeze(-1), -2 * of_distortion.unsqueeze(-1)
        if not (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()):
            for_z = torch.empty_like(z)
            for_table = torch.zeros_like(table)
            pieces = _pieces(z, codes, of_words, near, far, for_z)
            for vectors, chosen, straight, to_z, to_table, out in pieces:
                away = vectors - table.index_select(0, chosen)
                torch.addcmul(straight, away, to_z, out=out)
                if wants_table:
                    for_table.index_add_(0, chosen, away.mul_(to_table))
            return for_z if wants_z else None, for_table if wants_table else None, None
        if wants_z:
            for_z = of_words + near * (z - table.detach().index_select(0, codes))
        if wants_table:
            away = far * (z.detach() - table.index_select(0, codes))
            for_table = torch.zeros_like(table).index_add(0, codes, away)
        return for_z, for_table, None


def _pieces(*tensors: Tensor) -> Any:
    """Rows in pieces of a megabyte or so: what is made of them stays in the cache."""
    rows = max(1, _PIECE // max(1, tensors[0].shape[-1]))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _squares(away: Tensor) -> Tensor:
    return torch.linalg.vecdot(away, away)
