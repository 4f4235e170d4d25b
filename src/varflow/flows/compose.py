"""Several flows, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import SpecError
from varflow.flows.flow import Flow, Local


class Compose(Flow):
    """f = f_K ∘ … ∘ f₁: the first argument acts first, base to target.

    The ladj add up. The context goes to every amortized part; static parts get none. ``local`` is
    what the parts need, flat, in the order of the parts. Each direction costs the sum of its parts.

    Args:
        flows: at least one flow, all of the same number of features; the amortized ones share one size
            of context, which is the ``context_features`` of the whole.

    Raises:
        SpecError: no flow, or flows that disagree on a size.

    Example:
        >>> from varflow.flows import Affine, Compose, Reverse
        >>> Compose(Affine(3), Reverse(3)).features
        3
    """

    def __init__(self, *flows: Flow) -> None:
        if not flows:
            raise SpecError("flows: there are none; give Compose at least one flow")
        features = [flow.features for flow in flows]
        if len(set(features)) > 1:
            raise SpecError(f"flows: have {features} features; all of them need the same number")
        contexts = [flow.context_features for flow in flows]
        sizes = set(contexts) - {0}
        if len(sizes) > 1:
            raise SpecError(
                f"flows: have context_features={contexts}; the amortized ones need the same size"
            )
        super().__init__(features[0], max(contexts))
        self.flows: nn.ModuleList = nn.ModuleList(flows)
        self.mixes: bool = any(flow.mixes for flow in flows)
        self.volume_preserving: bool = all(flow.volume_preserving for flow in flows)
        #: How many tensors of ``local`` belong to each part.
        self.counts: list[int] = [_count(flow) for flow in flows]

    def condition(self, context: Float[Tensor, "*batch context"] | None) -> Local:
        return tuple(
            tensor
            for flow in self._parts()
            for tensor in flow.condition(context if flow.context_features else None)
        )

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for flow, own in zip(self._parts(), self._split(local), strict=True):
            z, ladj = flow.push(z, own)
            total = ladj if total is None else total + ladj
        assert total is not None
        return z, total.expand(z.shape[:-1])

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        parts = list(zip(self._parts(), self._split(local), strict=True))
        for flow, own in reversed(parts):
            z, ladj = flow.pull(z, own)
            total = ladj if total is None else total + ladj
        assert total is not None
        return z, total.expand(z.shape[:-1])

    def count_steps(self) -> int:
        return sum(flow.count_steps() for flow in self._parts())

    def _first(self, steps: int, local: Local) -> tuple[Flow, Local]:
        parts: list[Flow] = []
        own: list[Tensor] = []
        for flow, held in zip(self._parts(), self._split(local), strict=True):
            part, share = flow.first(min(steps, flow.count_steps()), held)
            parts.append(part)
            own += share
            steps -= flow.count_steps()
            if steps <= 0:
                break
        return Compose(*parts), tuple(own)

    def _parts(self) -> Iterator[Flow]:
        for flow in self.flows:
            assert isinstance(flow, Flow)
            yield flow

    def _split(self, local: Local) -> Iterator[Local]:
        start = 0
        for count in self.counts:
            yield local[start : start + count]
            start += count


def _count(flow: Flow) -> int:
    """The number of tensors in ``flow``'s local, from an empty batch."""
    if not flow.context_features:
        return 0
    like = next(flow.parameters(), None)
    with torch.no_grad():
        empty = torch.empty(
            0,
            flow.context_features,
            dtype=None if like is None else like.dtype,
            device=None if like is None else like.device,
        )
        return len(flow.condition(empty))
