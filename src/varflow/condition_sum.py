"""Examples whose condition is not known: the sum over its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from varflow.core import random
from varflow.core.columns import Column
from varflow.core.errors import SpecError
from varflow.core.observed import Examples, joined, observed, parts_of
from varflow.networks.columns import ColumnFeatures

if TYPE_CHECKING:
    from varflow.model import Terms


class ConditionSum(nn.Module):
    """p(x) = Σ_k π_k p(x | c = k) for examples without c, and p(x | c) for those with it.

    Inference draws z_k ~ q(z | x, c = k) for every value k, and one weight comes of all of them,

        log w = log Σ_k π_k w_k,    w_k = p(x | z_k, k) p(z_k | k) / q(z_k | x, k),

    whose mean is below log p(x). Its terms are means under r_k = π_k w_k / w, the posterior of the value that is not
    known: log w = Σ_k r_k (log w_k + log π_k − log r_k). So all objectives and estimators hold as they are. This is
    the bound of Kingma, Mohamed, Rezende and Welling 2014 (eq. 7) with the best q(c|x) there is, in place of an
    encoder for c, and without their further term for the labels that are known.

    Every step costs as much as one with K times the examples: which of them have no condition is known on the device
    alone.

    Args:
        columns: those that are conditioned on, one of them a category with ``summed``.

    Attributes:
        name: of the condition.
        size: K.
    """

    log_shares: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        column = next(c for c in columns if c.summed)
        self.name: str = column.name
        self.size: int = len(column.categories)
        self.start: int = ColumnFeatures(columns).start(column.name)
        shares = torch.tensor(column.shares, dtype=torch.float64)
        self.register_buffer("log_shares", (shares / shares.sum()).log(), persistent=False)

    def unknown(self, context: Float[Tensor, "batch context"]) -> Bool[Tensor, " batch"]:
        """Which contexts lack the condition: none of its values is marked."""
        return context[..., self.start : self.start + self.size].sum(-1) == 0

    def fill(self, context: Float[Tensor, "batch context"], value: int | Tensor) -> Float[Tensor, "batch context"]:
        """The contexts with a value, or one for each, where the condition is not known."""
        there = context[:, self.start : self.start + self.size]
        values = torch.as_tensor(value, device=context.device).expand(len(context))
        marked = nn.functional.one_hot(values, self.size).to(context.dtype)
        there = torch.where(self.unknown(context)[:, None], marked, there)
        return torch.cat([context[:, : self.start], there, context[:, self.start + self.size :]], -1)

    def drawn(self, context: Float[Tensor, "batch context"]) -> Float[Tensor, "batch context"]:
        """The contexts with a value of its share, drawn for each, where the condition is not known."""
        u = random.uniform((len(context),), "condition", dtype=torch.float32, device=context.device, batch_dim=0)
        value = torch.searchsorted(self.log_shares.exp().cumsum(0), u.double(), right=True)
        return self.fill(context, value.clamp(max=self.size - 1))

    def having(self, x: Examples, value: int | Tensor) -> Examples:
        """x with a value, or one for each example, where the condition is not known."""
        values, context, mask = parts_of(x)
        return x if context is None else observed(values, self.fill(context, value), mask)

    def each(self, x: Examples) -> Examples:
        """x under the first value, then x under the second, …: ``[K·B, *event]``."""
        return joined([self.having(x, value) for value in range(self.size)])

    def refuse(self, x: Examples, verb: str) -> None:
        """Refuse examples without their condition, where their sum is no answer.

        Raises:
            SpecError: names the first of them.
        """
        context = parts_of(x)[1]
        if context is None or not bool((gaps := self.unknown(context)).any()):
            return
        row = int(gaps.nonzero()[0, 0]) + 1
        raise SpecError(
            f"{verb}: row {row} (counted from 1) has no '{self.name}', and this is of p(x|{self.name}); give it, or "
            "leave such rows out"
        )

    def log_weights(self, context: Float[Tensor, "batch context"]) -> Float[Tensor, "values batch"]:
        """log π_k where the condition is not known; else 0 at the value that it has and −∞ at the others."""
        there = context[:, self.start : self.start + self.size].T.log()
        return torch.where(self.unknown(context), self.log_shares.to(context.dtype)[:, None], there)

    def fold(self, terms: Terms, context: Float[Tensor, "batch context"]) -> Terms:
        """The terms of :meth:`each`, ``[S, K·B]``, as those of the examples, ``[S, B]``."""
        weights = self.log_weights(context)

        def apart(t: Tensor) -> Tensor:
            return t.unflatten(1, (self.size, len(context)))

        joint = apart(terms.log_weight.detach()) + weights
        # By the best r the gradient of log w is the mean of those of log w_k, so nothing flows through r itself.
        log_r = torch.log_softmax(joint, 1)
        r = log_r.exp()

        def mean(t: Tensor) -> Tensor:
            # A value that is ruled out has no part, whatever its terms are.
            return torch.where(r > 0, r * apart(t), 0.0).sum(1)

        spread = torch.where(r > 0, r * (weights - log_r), 0.0).sum(1)
        likeliest = r.argmax(1)

        def picked(z: Tensor) -> Tensor:
            at = likeliest[:, None, :, None].expand(-1, 1, -1, z.shape[-1])
            return apart(z).gather(1, at).squeeze(1)

        draw = terms.draw
        control = draw.control
        if control is not None:
            # r follows the sample, so under it the mean is not zero; known conditions have one value alone.
            control = torch.where(self.unknown(context), 0.0, mean(control))
        return replace(
            terms,
            z=picked(terms.z.flatten(2)),
            log_likelihood=mean(terms.log_likelihood),
            log_prior=mean(terms.log_prior) + spread,
            log_q=mean(terms.log_q),
            draw=draw._replace(
                z=picked(draw.z.flatten(2)),
                log_q=mean(draw.log_q),
                z0=picked(draw.z0.flatten(2)),
                ladj=mean(draw.ladj),
                control=control,
                momentum=None,
                log_joint=None,
            ),
        )
