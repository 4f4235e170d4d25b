"""Products of Householder reflections, all at once (compact WY form)."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(v: Tensor) -> Tensor:
    """v / ‖v‖ over the last dimension; 0 where ‖v‖² is below the smallest normal number."""
    square = (v * v).sum(-1, keepdim=True)
    vanishing = square < torch.finfo(square.dtype).tiny
    return torch.where(vanishing, 0, v / torch.where(vanishing, 1, square).sqrt())


def overlaps(v: Tensor) -> Tensor:
    """2 v vᵀ for rows v ``[..., K, D]``: what :func:`reflect` solves with."""
    return 2 * (v @ v.transpose(-1, -2))


def reflect(z: Tensor, v: Tensor, gram: Tensor, transpose: bool = False) -> Tensor:
    """H_K … H_1 z (``transpose``: H_1 … H_K z) for z ``[G, R, D]``, unit rows v ``[G, K, D]``.

    H_k subtracts c_k v_k with c_k = 2 v_kᵀ(z − Σ_{j<k} c_j v_j): a triangular system with unit
    diagonal, (I + 2 tril(v vᵀ, −1)) c = 2 v z. The transposed product solves the transposed
    system. A row v_k = 0 makes c_k = 0, the identity.
    """
    if v.shape[-2] == 1:
        c = 2 * (v @ z.transpose(-1, -2))
    else:
        # unitriangular: neither the diagonal nor the other triangle of gram is read.
        c = torch.linalg.solve_triangular(
            gram, 2 * (v @ z.transpose(-1, -2)), upper=transpose, unitriangular=True
        )
    return torch.baddbmm(z, c.transpose(-1, -2), v, alpha=-1)
