"""What the priors that average over components share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from varflow.core.exporting import exporting

#: Numbers that one slice of rows × components × features may have where no gradient is kept.
_LARGEST = 1 << 22


def by_rows(score: Callable[[Tensor], Tensor], z: Tensor, components: int) -> Tensor:
    """``score(z)`` ``[..., D] → [...]``, in slices of rows where nothing keeps the intermediate results.

    A score makes ``components`` × D numbers of each row. With gradients they are all kept, and slices would
    only cost time.
    """
    rows = max(_LARGEST // (components * z.shape[-1]), 1)
    lead = z.shape[:-1]
    if torch.is_grad_enabled() or exporting() or lead.numel() <= rows:
        return score(z)
    parts = [score(part) for part in z.reshape(-1, z.shape[-1]).split(rows)]
    return torch.cat(parts).reshape(lead)


def pick(shares: Tensor, uniform: Tensor) -> Tensor:
    """The number of a component for each uniform number u: the first k with u < share₀ + … + share_k.

    Counting the sums that u has passed, all but the last, never leaves 0…K−1, however the sums are rounded.
    """
    edges = shares.cumsum(-1)[..., :-1]
    return (uniform.unsqueeze(-1) >= edges).sum(-1)
