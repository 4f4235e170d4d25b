"""A prior over codes that is conditioned on classes, with the classes summed out where none is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from varflow.core import random
from varflow.core.errors import SpecError
from varflow.priors.code_grid import AutoregressiveGrid, CodeGrid, pick


class ByClass(CodeGrid):
    """p(z) = Σ_y π_y p(z | y): a conditional prior with the shares π of its classes.

    With labels it is p(z | y), which is what maximum likelihood fits; without, the sum over all classes is a prior
    like any other, so that bounds on log p(x) need no labels and can be compared with unconditional ones.

    Args:
        prior: conditioned on classes.

    Attributes:
        shares: π ``[classes]``, equal until :meth:`count` has seen labels.

    Raises:
        SpecError: a prior without classes.

    Cost: log_prob with labels one pass, without them one for each class.

    Example:
        >>> import torch
        >>> from varflow.priors import PixelCNN
        >>> prior = ByClass(PixelCNN((2, 2), codes=3, channels=4, layers=1, kernel=3, classes=2))
        >>> round(prior.log_prob(torch.zeros(2, 2, dtype=torch.long)).item(), 4)
        -4.3944
    """

    shares: Tensor

    def __init__(self, prior: AutoregressiveGrid) -> None:
        if prior.classes is None:
            raise SpecError("prior: has no classes; build it with classes=…, or use it as it is")
        super().__init__(prior.event_shape, prior.codes, prior.classes)
        self.prior = prior
        self.register_buffer("shares", torch.full((prior.classes,), 1 / prior.classes))

    @torch.no_grad()
    def count(self, labels: Int[Tensor, " n"]) -> None:
        """Set π to the shares of the classes among ``labels``."""
        number = torch.bincount(labels.long().cpu(), minlength=len(self.shares))
        self.shares.copy_(number / number.sum())

    def log_prob(
        self, z: Int[Tensor, "... height width"], context: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """log p(z | context) or, without labels, log p(z); ``[..., H, W]`` → ``[...]``, nats.

        Raises as :meth:`~varflow.priors.PixelCNN.log_prob`.
        """
        if context is not None:
            return self.prior.log_prob(z, context)
        home = self.shares
        each = torch.stack(
            [
                self.prior.log_prob(z, torch.full(z.shape[:-2], label, device=home.device))
                for label in range(len(home))
            ]
        )
        # A class that no label was of has weight 0, whatever the network says of it.
        weights = home.to(each.dtype).log().reshape(-1, *[1] * (each.ndim - 1))
        return torch.logsumexp(each + weights, 0)

    def sample(
        self,
        shape: Sequence[int] = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        labels: Int[Tensor, "..."] | None = None,
    ) -> Int[Tensor, "..."]:
        """Draws ``[*shape, H, W]``; without labels of classes drawn from π."""
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
        """Draws with log p of each: log p(z | y) for labels that are given; else log p(z), for which they are scored
        once more under every class. ``progress`` is called with (positions done, positions).

        Raises as :meth:`~varflow.priors.PixelCNN.sample_and_log_prob`.
        """
        if labels is not None:
            return self.prior.sample_and_log_prob(shape, temperature, top_k, labels, progress)
        count = math.prod(shape)
        noise = random.uniform(
            (count,), "classes", dtype=torch.float32, device=self.shares.device, batch_dim=0
        )
        drawn = pick(self.shares.log().expand(count, -1), noise).reshape(tuple(shape))
        z, _ = self.prior.sample_and_log_prob(shape, temperature, top_k, drawn, progress)
        return z, self.log_prob(z)
