"""Lining up points and per-example parameters."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class Aligned(NamedTuple):
    """R points for each of G parameter sets, and the batch shape that they came in."""

    z: Tensor  # [R, G, D]
    packed: Tensor  # [G, P]
    batch: tuple[int, ...]


def align(z: Tensor, packed: Tensor) -> Aligned:
    """Broadcast the batch shapes of z ``[*, D]`` and packed ``[*, P]``, without copies in the
    usual cases.

    Usual are static parameters (``packed [P]``), one set per example, and one set per example
    shared by samples (``z [S, B, D]``, ``packed [B, P]``). Anything else expands the parameters.
    """
    batch = torch.broadcast_shapes(z.shape[:-1], packed.shape[:-1])
    sets = packed.shape[:-1]
    while sets and sets[0] == 1:
        sets = sets[1:]
    if sets != batch[len(batch) - len(sets) :]:
        sets = batch
        packed = packed.expand(*batch, packed.shape[-1])
    groups, points = prod(sets), prod(batch[: len(batch) - len(sets)])
    z = z.expand(*batch, z.shape[-1])
    return Aligned(
        z.reshape(points, groups, z.shape[-1]),
        packed.reshape(groups, packed.shape[-1]),
        tuple(batch),
    )
