"""Flows from and to other libraries: torch.distributions and zuko."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Size, Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, Transform, constraints

from varflow.core.errors import SpecError, positive
from varflow.flows.flow import Flow, Local


def as_transform(flow: Flow, context: Float[Tensor, "... context"] | None = None) -> Transform:
    """``flow`` at ``context`` as a :class:`torch.distributions.Transform` of vectors.

    Nothing is cached, so gradients stay right however often it is called;
    ``log_abs_det_jacobian`` therefore repeats a pass, the inverse one where that is the fast way.

    Raises:
        SpecError, ShapeError: as ``flow(z, context)``, when first called.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal, TransformedDistribution
        >>> from varflow.flows import Affine, as_transform
        >>> base = Normal(torch.zeros(2), torch.ones(2))
        >>> q = TransformedDistribution(base, [as_transform(Affine(2))])
        >>> q.event_shape
        torch.Size([2])
    """
    return FlowTransform(flow, context)


class FlowTransform(Transform):
    """See :func:`as_transform`."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: Flow, context: Tensor | None = None) -> None:
        super().__init__()
        self.flow: Flow = flow
        self.context: Tensor | None = context

    def _call(self, x: Tensor) -> Tensor:
        return self.flow(x, self.context)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.flow.inverse(y, self.context)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self.flow.fast_inverse:
            return -self.flow.inverse(y, self.context)[1]
        return self.flow(x, self.context)[1]

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        return self

    def forward_shape(self, shape: Size) -> Size:
        batch = () if self.context is None else self.context.shape[:-1]
        return Size((*torch.broadcast_shapes(shape[:-1], batch), *shape[-1:]))

    inverse_shape = forward_shape


def from_transform(transform: Transform | Callable[[], Transform], features: int) -> TransformFlow:
    """A static flow from a torch transform, or from a callable that builds one at each use.

    Use the second form, with an ``nn.Module`` as the callable, for a transform with parameters:
    they become parameters of the flow. Tensors inside a finished transform are constants and stay
    on their device. A transform of single numbers (``event_dim`` 0) is applied to each feature. The
    flow has no more inverse, and no other domain, than the transform.

    Args:
        transform: bijective, ``event_dim`` 0 or 1, as many features out as in.
        features: D.

    Raises:
        SpecError: the transform is none of that.

    Example:
        >>> import torch
        >>> from torch.distributions.transforms import AffineTransform
        >>> flow = from_transform(AffineTransform(1.0, 2.0), features=3)
        >>> flow(torch.zeros(3))[0].tolist()
        [1.0, 1.0, 1.0]
    """
    positive(features=features)
    built = transform if isinstance(transform, Transform) else transform()
    if not isinstance(built, Transform):
        raise SpecError(
            f"transform: {transform!r} gave {type(built).__name__}; "
            "use a torch.distributions Transform, or a callable that returns one"
        )
    dims = (built.domain.event_dim, built.codomain.event_dim)
    if not built.bijective or dims not in ((0, 0), (1, 1)):
        raise SpecError(
            f"transform: {built!r} has event dimensions {dims} and bijective={built.bijective}; "
            "a flow needs a bijective transform of single numbers or of vectors"
        )
    if built.forward_shape(Size((features,))) != Size((features,)):
        raise SpecError(f"transform: {built!r} changes the number of features; a flow keeps it")
    return TransformFlow(transform, features)


def from_zuko(
    lazy: Any, features: int | None = None, context_features: int | None = None
) -> TransformFlow:
    """A flow from any zuko lazy transform t; forward is t itself, with its costs and its start.

    Zuko's own flows map data to noise. For a posterior, whose forward must be fast, pass
    ``flow.transform``; to keep the meaning of a fitted zuko density, pass ``flow.transform.inv``.
    ``local`` is the context itself.

    Args:
        lazy: a ``zuko.lazy.LazyTransform``.
        features, context_features: D and C; read off zuko's own transforms where they can be.

    Raises:
        SpecError: zuko is missing, ``lazy`` is no lazy transform, or its sizes cannot be read off.
    """
    zuko = _zuko()
    if not isinstance(lazy, zuko.lazy.LazyTransform):
        raise SpecError(
            f"lazy: was {type(lazy).__name__}; use a zuko LazyTransform, "
            "for a zuko flow its .transform (or .transform.inv, from noise to data)"
        )
    read = _sizes(lazy) if features is None or context_features is None else None
    if read is None and features is None:
        raise SpecError(
            f"features: cannot be read off {type(lazy).__name__}; "
            "pass features and context_features"
        )
    if features is None and read is not None:
        features = read[0]
    if context_features is None:
        context_features = 0 if read is None else read[1]
    assert features is not None
    return TransformFlow(lazy, features, context_features)


def spline(
    features: int,
    length: int = 1,
    context_features: int = 0,
    bins: int = 8,
    hidden: tuple[int, ...] = (64, 64),
) -> TransformFlow:
    """Zuko's neural spline flow: autoregressive monotone rational-quadratic splines on [−5, 5].

    Outside of that interval the map is the identity. Forward is one parallel pass a step, the
    inverse D of them. The last layers start at zero, which makes all bins equal: the identity.
    Second derivatives jump at the knots.

    Reference: Durkan et al. 2019, *Neural Spline Flows* (arXiv:1906.04032).

    Args:
        features: D.
        length: the number of steps; the order of features alternates.
        context_features: C, the size of the context; 0 for a static flow.
        bins: the number of bins of each spline.
        hidden: widths of the hidden layers.

    Raises:
        SpecError: zuko is missing, or a size is not positive.
    """
    positive(features=features, length=length, bins=bins)
    zuko = _zuko()
    flow = zuko.flows.NSF(
        features, context_features, transforms=length, bins=bins, hidden_features=hidden
    )
    for part in flow.transform.modules():
        if isinstance(getattr(part, "hyper", None), nn.Sequential):
            for parameter in part.hyper[-1].parameters():
                nn.init.zeros_(parameter)
        for parameter in getattr(part, "phi", ()):
            nn.init.zeros_(parameter)
    return from_zuko(flow.transform, features, context_features)


class TransformFlow(Flow):
    """A flow around a torch transform, or around ``source(*local)`` which builds one."""

    def __init__(self, source: Any, features: int, context_features: int = 0) -> None:
        super().__init__(features, context_features)
        self.source = source

    def extra_repr(self) -> str:
        source = "" if isinstance(self.source, nn.Module) else f", source={_described(self.source)}"
        return super().extra_repr() + source

    def count_steps(self) -> int:
        return len(_chain(self.source)) or 1

    def _first(self, steps: int, local: Local) -> tuple[Flow, Local]:
        part = type(self.source)(*_chain(self.source)[:steps])
        return TransformFlow(part, self.features, self.context_features), local

    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        return _apply(self._transform(local), z, local)

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        return _apply(self._transform(local).inv, z, local)

    def _transform(self, local: Local) -> Transform:
        return self.source if isinstance(self.source, Transform) else self.source(*local)


def _chain(source: Any) -> list[Any]:
    """The maps that a composed transform of zuko's is a chain of; none of any other."""
    return list(source.transforms) if type(source).__name__ == "LazyComposedTransform" else []


def _described(source: Any) -> str:
    """A transform with its numbers: torch prints an affine one without them."""
    if isinstance(source, AffineTransform):
        return f"AffineTransform(loc={source.loc}, scale={source.scale})"
    if isinstance(source, ComposeTransform):
        return f"ComposeTransform([{', '.join(_described(part) for part in source.parts)}])"
    return repr(source)


def _apply(transform: Transform, z: Tensor, local: Local) -> tuple[Tensor, Tensor]:
    # Foreign transforms expect z to have the whole batch shape.
    batch = torch.broadcast_shapes(z.shape[:-1], *(tensor.shape[:-1] for tensor in local))
    z = z.expand(*batch, z.shape[-1])
    if 0 in batch:  # torch's own sum over the event fails on empty tensors
        return z, z.sum(-1)
    both = getattr(transform, "call_and_ladj", None)
    if both is not None:
        out, ladj = both(z)
    else:
        out = transform(z)
        ladj = transform.log_abs_det_jacobian(z, out)
    if transform.domain.event_dim == 0:
        ladj = ladj.sum(-1)
    return out, ladj


def _zuko() -> Any:
    try:
        import zuko
    except ImportError:
        raise SpecError("zuko: is not installed; run: pip install 'varflow[zuko]'") from None
    return zuko


def _sizes(lazy: nn.Module) -> tuple[int, int] | None:
    """(features, context features) of the first part of ``lazy`` that knows them."""
    part: Any
    for part in lazy.modules():
        hyper, mask, total = (getattr(part, name, None) for name in ("hyper", "mask", "total"))
        if hyper is not None and mask is not None:  # coupling: sees the features where mask is 1
            return mask.numel(), hyper.in_features - int(mask.sum())
        if hyper is not None and total and getattr(part, "passes", None):  # autoregressive
            return hyper.out_features // total, hyper.in_features - hyper.out_features // total
        if hyper is not None and total:  # elementwise: sees the context alone
            return hyper.out_features // total, hyper.in_features
        if getattr(part, "phi", None):
            return part.phi[0].shape[0], 0
    return None
