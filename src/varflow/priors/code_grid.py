"""Priors over grids of codes: what they share, and the uniform one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import DataError, ShapeError, SpecError, positive
from varflow.core.settings import settings
from varflow.flows.flow import full_precision, without_autocast
from varflow.priors.prior import Prior, PriorSettings

#: Takes the codes ``[N]`` of a position, gives the logits ``[N, K]`` of the next.
Walk = Generator[Tensor, Tensor, None]


class CodeGrid(Prior):
    """p(z) over grids z ``[H, W]`` of integers 0 … K − 1.

    Attributes:
        event_shape: (H, W).
        codes: K.
        classes: number of classes it is conditioned on, or None.
    """

    discrete = True

    def __init__(self, shape: Sequence[int], codes: int, classes: int | None = None) -> None:
        super().__init__()
        height, width = _grid(shape)
        positive(codes=codes)
        if classes is not None:
            positive(classes=classes)
        self.event_shape: tuple[int, ...] = (height, width)
        self.codes: int = codes
        self.classes: int | None = classes
        self.reads: tuple[()] | tuple[str, ...] = () if classes is None else ("context",)
        self.register_buffer("_home", torch.zeros(()), persistent=False)

    def check(self, z: Tensor) -> None:
        """Refuse what is no grid of codes of this size.

        Raises:
            ShapeError: the shape does not end in (H, W), or the dtype is no integer.
        """
        if z.is_floating_point() or z.is_complex() or z.dtype == torch.bool:
            raise ShapeError(f"z: was {z.dtype}; codes are integers, e.g. z.long()")
        if z.shape[-2:] != self.event_shape:
            height, width = self.event_shape
            raise ShapeError(
                f"z: shape {tuple(z.shape)}; this prior needs [..., {height}, {width}]"
            )

    def extra_repr(self) -> str:
        return f"shape={self.event_shape}, codes={self.codes}, classes={self.classes}"


@settings("UniformCodes")
class CodeGridSettings(PriorSettings):
    """What priors over grids of codes share: they stand behind a quantizer and nowhere else."""

    discrete: ClassVar[bool] = True

    def check(self, spec: Any) -> None:
        if spec.get("posterior") == "quantizer":
            return
        prior, posterior = spec.get("prior"), spec.get("posterior")
        has = "there is none" if posterior is None else f"posterior={posterior} has none"
        raise SpecError(
            f"prior: {prior} is over the codes of a quantizer, and {has}; use posterior=quantizer, e.g. the recipe "
            "vq-pixelcnn, or prior=normal"
        )

    def build(self, part: Any, grid: Any, codes: Any) -> Prior:
        """p(codes) over a ``grid`` (H, W) of one of so many codes."""
        prior: Prior = part(grid, codes)
        return prior


class UniformCodes(CodeGrid):
    """Every code equally likely at every position: log p(z) = −H·W·log K.

    The prior of a vector-quantized model while its codebook is learned (van den Oord et al. 2017, section 3.2).

    Args:
        shape: (H, W).
        codes: K.

    Example:
        >>> import torch
        >>> prior = UniformCodes((2, 2), codes=2)
        >>> round(prior.log_prob(torch.zeros(5, 2, 2, dtype=torch.long))[0].item(), 4)
        -2.7726
    """

    def __init__(self, shape: Sequence[int], codes: int) -> None:
        super().__init__(shape, codes)

    def log_prob(
        self, z: Int[Tensor, "... height width"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        """−H·W·log K for each grid, nats. Raises ShapeError as :meth:`CodeGrid.check`."""
        self.refuse_context(context)
        self.check(z)
        value = -math.prod(self.event_shape) * math.log(self.codes)
        return self.get_buffer("_home").new_full(z.shape[:-2], value)

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = ()) -> Int[Tensor, "... height width"]:
        home = self.get_buffer("_home")
        noise = random.uniform(
            (*shape, *self.event_shape), "prior", dtype=torch.float32, device=home.device
        )
        # In float64 the largest float32 below 1 times K stays below K.
        return (noise.double() * self.codes).long()


class AutoregressiveGrid(CodeGrid):
    """p(z) = Π p(z_ij | the positions before (i, j)), read row by row, with a network for the logits.

    What a subclass gives: ``_logits``, all positions in one pass, and ``_walk``, one position after the other with
    every activation computed once.

    Args:
        shape: (H, W).
        codes: K.
        embedding: features of an embedded code.
        classes: condition on one of so many classes.
    """

    def __init__(
        self, shape: Sequence[int], codes: int, embedding: int, classes: int | None
    ) -> None:
        super().__init__(shape, codes, classes)
        positive(embedding=embedding)
        self.embed: nn.Embedding = nn.Embedding(codes, embedding)

    @abstractmethod
    def _logits(self, embedded: Tensor, labels: Tensor | None) -> Tensor:
        """``[N, H, W, E]`` → ``[N, H, W, K]``."""

    @abstractmethod
    def _walk(self, batch: int, labels: Tensor | None) -> Walk:
        """Yields the logits ``[N, K]`` of each position, is sent its codes ``[N]``."""

    def logits(
        self, z: Int[Tensor, "... height width"], labels: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "... height width codes"]:
        """The logits of p(z_ij | before) at every position, float32 at least; one pass.

        Raises:
            ShapeError: z is no grid of integers of this size, or the labels do not broadcast to its batch.
            SpecError: labels are missing, or given to a prior without classes.
            DataError: a code or a label out of range.
        """
        self.check(z)
        batch = z.shape[:-2]
        labels = self._labels(labels, batch)
        try:
            embedded = self.embed(z.reshape(-1, *self.event_shape))
            out = self._logits(embedded, None if labels is None else labels.reshape(-1))
        except IndexError:
            many = "" if self.classes is None else f", labels from 0 to {self.classes - 1}"
            raise DataError(
                f"z: holds a code or label out of range; codes go from 0 to {self.codes - 1}{many}"
            ) from None
        return full_precision(out).reshape(*batch, *self.event_shape, self.codes)

    def log_prob(
        self, z: Int[Tensor, "... height width"], context: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """log p(z) or, with classes, log p(z | context), ``[..., H, W]`` → ``[...]``, nats; one pass.

        Args:
            z: codes.
            context: labels ``[...]``.

        Raises:
            As :meth:`logits`.
        """
        logits = self.logits(z, context)
        with without_autocast(logits):
            each = torch.log_softmax(logits, -1).gather(-1, z.long().unsqueeze(-1))
            return each.sum((-3, -2, -1))

    def sample(
        self,
        shape: Sequence[int] = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        labels: Int[Tensor, "..."] | None = None,
    ) -> Int[Tensor, "..."]:
        """Draws ``[*shape, H, W]``. Cost and arguments as :meth:`sample_and_log_prob`."""
        return self.sample_and_log_prob(shape, temperature, top_k, labels)[0]

    @torch.no_grad()
    def sample_and_log_prob(
        self,
        shape: Sequence[int] = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        labels: Int[Tensor, "..."] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> tuple[Int[Tensor, "..."], Float[Tensor, "..."]]:
        """Draws ``[*shape, H, W]`` with log p of each ``[*shape]``, nats. H·W short steps, one pass of work.

        In the dtype of the parameters, whatever autocast says.

        Args:
            shape: batch shape.
            temperature: divides the logits; below 1 the likely becomes likelier.
            top_k: draw among the k likeliest codes of a position.
            labels: classes that broadcast to ``shape``.
            progress: called with (positions done, positions).

        The log p is that of the model, also where temperature or top_k make the draws come from another law.

        Raises:
            SpecError: a temperature that is not positive, top_k outside 1 … K, labels missing or unwanted.
            ShapeError: labels that do not broadcast to ``shape``.
            DataError: a label out of range.
        """
        if not 0 < temperature < math.inf:
            raise SpecError(
                f"temperature: was {temperature}; use a positive number, or top_k=1 for the likeliest"
            )
        if top_k is not None and not 1 <= top_k <= self.codes:
            raise SpecError(f"top_k: was {top_k}; use 1 to {self.codes}, or None for all codes")
        shape, (height, width) = tuple(shape), self.event_shape
        labels = self._labels(labels, shape)
        count = math.prod(shape)
        home = full_precision(self.get_buffer("_home"))
        noise = random.uniform(
            (*shape, height, width), "prior", dtype=home.dtype, device=home.device
        ).reshape(count, height * width)
        z = torch.zeros(count, height * width, dtype=torch.long, device=home.device)
        log_prob = home.new_zeros(count)
        # Autocast would convert the weights anew at each of the H·W steps.
        with without_autocast(home):
            walk = self._walk(count, None if labels is None else labels.reshape(-1))
            try:
                logits = full_precision(next(walk))
            except IndexError:
                raise DataError(f"labels: out of range; there are {self.classes} classes") from None
            for position in range(height * width):
                code = pick(logits / temperature, noise[:, position], top_k)
                z[:, position] = code
                each = torch.log_softmax(logits, -1).gather(-1, code.unsqueeze(-1))
                log_prob += each.squeeze(-1)
                if progress is not None:
                    progress(position + 1, height * width)
                if position + 1 < height * width:
                    logits = full_precision(walk.send(code))
        return z.reshape(*shape, height, width), log_prob.reshape(shape)

    def _labels(self, labels: Tensor | None, batch: Sequence[int]) -> Tensor | None:
        if (labels is None) != (self.classes is None):
            mend = (
                f"missing; this prior is conditioned on one of {self.classes} classes"
                if labels is None
                else "given, but this prior has no classes; build it with classes=…"
            )
            raise SpecError(f"labels: {mend}")
        if labels is None:
            return None
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ShapeError(
                f"labels: was {labels.dtype}; classes are integers, e.g. labels.long()"
            )
        try:
            return labels.expand(tuple(batch))
        except RuntimeError:
            raise ShapeError(
                f"labels: shape {tuple(labels.shape)}; needs one that broadcasts to {tuple(batch)}"
            ) from None


def pick(
    logits: Float[Tensor, "batch codes"], noise: Float[Tensor, "batch"], top_k: int | None = None
) -> Int[Tensor, "batch"]:
    """Codes drawn by inverting the distribution function at ``noise``, uniform on [0, 1)."""
    if top_k is not None and top_k < logits.shape[-1]:
        values, kept = logits.topk(top_k, -1)
        logits = torch.full_like(logits, -math.inf).scatter(-1, kept, values)
    upto = torch.softmax(logits, -1).cumsum(-1)
    # Noise below 1 times the total rounds to less than the total, so a code of probability 0 is never drawn.
    level = noise.unsqueeze(-1).to(upto.dtype) * upto[:, -1:]
    return torch.searchsorted(upto, level, right=True).squeeze(-1)


def _grid(shape: Sequence[int]) -> tuple[int, int]:
    sizes = tuple(shape)
    if len(sizes) != 2:
        raise SpecError(f"shape: was {sizes}; a grid of codes has (height, width)")
    positive(height=sizes[0], width=sizes[1])
    return sizes[0], sizes[1]
