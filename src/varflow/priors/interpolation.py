"""Ways from one latent to another: straight, along a sphere, and straight in the base space of a learned prior."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core.errors import ShapeError, SpecError, positive
from varflow.priors.flow import Flow
from varflow.priors.prior import Prior


def linear(
    a: Float[Tensor, "*batch features"], b: Float[Tensor, "*batch features"], steps: int = 10
) -> Float[Tensor, "*batch steps features"]:
    """z(t) = (1 − t) a + t b at ``steps`` equally spaced t from 0 to 1.

    Half-way between two draws of N(0, I) it has half their squared length, where such a prior has little mass.
    """
    t = _times(a, b, steps)
    # The form that ends in b to the last bit.
    return (1 - t) * a[..., None, :] + t * b[..., None, :]


def spherical(
    a: Float[Tensor, "*batch features"], b: Float[Tensor, "*batch features"], steps: int = 10
) -> Float[Tensor, "*batch steps features"]:
    """z(t) = [sin((1 − t) ω) a + sin(t ω) b] / sin ω with ω the angle between a and b.

    Along it the length moves from |a| to |b| and stays that of draws of N(0, I). Parallel directions give the
    straight line, which is the limit; for opposite ones no arc is singled out, and the straight line is taken too.

    Source: Shoemake 1985, section 3.3; for latents White 2016, "Sampling generative networks", section 2.1.
    """
    t = _times(a, b, steps)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)[..., None, None]
    angle = torch.acos(cosine.clamp(-1, 1))
    sine = torch.sin(angle)
    flat = sine < 1e-4
    divisor = torch.where(flat, 1.0, sine)
    first = torch.where(flat, 1 - t, torch.sin((1 - t) * angle) / divisor)
    second = torch.where(flat, t, torch.sin(t * angle) / divisor)
    return first * a[..., None, :] + second * b[..., None, :]


def in_base(
    prior: Prior,
    a: Float[Tensor, "*batch features"],
    b: Float[Tensor, "*batch features"],
    steps: int = 10,
    context: Tensor | None = None,
) -> Float[Tensor, "*batch steps features"]:
    """z(t) = f(e(t)) with e(t) the arc of :func:`spherical` from f⁻¹(a) to f⁻¹(b), for a prior f#N(0, I).

    The way stays where a learned prior has its mass, however it lies. For a static flow in the posterior, which
    is a learned prior too, pass ``varflow.priors.Flow(flow, inverted=True)`` and its base draws. Of a prior p(z|c)
    all points of a way are under its ``context`` ``[*batch, C]``.

    Raises:
        SpecError: the prior is no flow prior, and so has no base space.
    """
    if not isinstance(prior, Flow):
        raise SpecError(
            f"prior: {type(prior).__name__} has no base space; use linear or spherical, or a flow prior"
        )
    ways = spherical(prior.encode(a, context), prior.encode(b, context), steps)
    along = None if context is None else context[..., None, :].expand(*ways.shape[:-1], -1).flatten(0, -2)
    made: Any = prior.decode(ways.flatten(0, -2), along).unflatten(0, ways.shape[:-1])
    return made


def _times(a: Tensor, b: Tensor, steps: int) -> Tensor:
    if a.shape != b.shape:
        raise ShapeError(f"b: shape {tuple(b.shape)}, a has {tuple(a.shape)}; give both the same")
    positive(steps=steps)
    return torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
