"""Any Python callable as a target."""

from __future__ import annotations

from collections.abc import Callable as Function
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core.errors import NonFiniteError, ShapeError, SpecError
from varflow.targets.quadrature import Moments, grid, integrate
from varflow.targets.target import Target, Window


class Callable(Target):
    """log_prob(z) = ``log_prob(z)``, a callable of the user's own; unnormalised, nats.

    It is called here, at a few points, so that a mistake shows before training and not in it: it
    must map z ``[..., D]`` to ``[...]`` in the dtype of z, each example by itself, to finite numbers with
    finite gradients. Where it takes float32 or float64 alone (it multiplies by a matrix of its own, say), z of
    the other dtype (``precision="float64"``, evaluation, quadrature) is converted for it, and its result back;
    answers are then as exact as that dtype.

    Args:
        log_prob: z ``[..., D]`` → ``[...]``. A module is registered, so that it moves with the target and
            what it learns is learned.
        features: D.
        points: where to check, ``[P, D]``; their dtype and device are those it is called with. None:
            eight points within two units of 0, in the dtype of a module's first tensor.
        log_normalizer: log Z, where the user knows it.
        box: (x_min, x_max, y_min, y_max), in 2-D, outside of which the density is negligible: log Z,
            entropy and moments are then computed by quadrature at first use (see
            :func:`varflow.targets.grid`; panels are a fiftieth of each side).
        window: what a picture shows; None: the box.

    Raises:
        SpecError: not callable, not differentiable, examples that influence each other, or a box that is
            not in 2-D.
        ShapeError: it returns another shape, another dtype, or no tensor.
        NonFiniteError: it returns a NaN or an infinity, or has such a gradient.

    >>> target = Callable(lambda z: -0.5 * z.square().sum(-1), 2, box=(-9.0, 9.0, -9.0, 9.0))
    >>> round(target.log_normalizer, 6)  # log 2π
    1.837877
    """

    def __init__(
        self,
        log_prob: Function[[Tensor], Tensor],
        features: int,
        points: Float[Tensor, "points features"] | None = None,
        log_normalizer: float | None = None,
        box: Window | None = None,
        window: Window | None = None,
    ) -> None:
        super().__init__(features)
        if not callable(log_prob):
            raise SpecError(f"log_prob: was a {type(log_prob).__name__}; pass a function of z")
        if box is not None and features != 2:
            raise SpecError(
                f"box: integrates in the plane, but features is {features}; leave it out"
            )
        self.function = log_prob
        self.box: Window | None = box
        self.window: Window | None = window or box
        self._log_normalizer = log_normalizer
        if points is None:
            own = _own_dtype(log_prob)
            points = _points(features) if own is None else _points(features).to(own)
        _check(log_prob, points)
        self._checked = points.dtype
        self._takes_both = _takes_both(log_prob, points)

    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        self.check(z)
        # A module's tensors may have changed dtype since it was checked.
        own = z.dtype if self._takes_both else _own_dtype(self.function) or self._checked
        return self.function(z.to(own)).to(z.dtype)

    @property
    def moments(self) -> Moments | None:
        """All answers by quadrature over the box; None without a box."""
        # Parameters may have been trained since the last time.
        return self._integrate() if any(True for _ in self.parameters()) else self._moments

    @cached_property
    def _moments(self) -> Moments | None:
        return self._integrate()

    def _integrate(self) -> Moments | None:
        if self.box is None:
            return None
        x0, x1, y0, y1 = self.box
        # The shorter side sets the panels of both.
        rule = grid((x0, x1), (y0, y1), panel=min(x1 - x0, y1 - y0) / 50, nodes=10)
        device = self.get_buffer("_home").device
        rule = type(rule)(*(tensor.to(device) for tensor in rule))
        return integrate(self.log_prob, rule)

    @property
    def log_normalizer(self) -> float | None:
        if self._log_normalizer is not None or self.moments is None:
            return self._log_normalizer
        return self.moments.log_normalizer

    @property
    def entropy(self) -> float | None:
        return None if self.moments is None else self.moments.entropy

    @property
    def mean(self) -> Tensor | None:
        return None if self.moments is None else self._like(self.moments.mean)

    @property
    def covariance(self) -> Tensor | None:
        return None if self.moments is None else self._like(self.moments.covariance)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, function={self.function!r}"


def _points(features: int) -> Tensor:
    """Eight scattered points, the same every time."""
    turns = torch.arange(8 * features, dtype=torch.get_default_dtype()) + 1
    return 2 * torch.sin(1.7 * turns).reshape(8, features)


def _own_dtype(function: Function[[Tensor], Tensor]) -> torch.dtype | None:
    """That of a module's first floating-point tensor; None where there is none."""
    if not isinstance(function, nn.Module):
        return None
    tensors = (*function.parameters(), *function.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)


def _takes_both(log_prob: Function[[Tensor], Tensor], points: Tensor) -> bool:
    """Whether it maps float32 to float32 and float64 to float64; the dtype of ``points`` it is known to take."""
    other = torch.float32 if points.dtype == torch.float64 else torch.float64
    with torch.no_grad():
        try:
            value = log_prob(points.detach().to(other))
        except Exception:
            # What it raises for a dtype that it does not take is its own affair.
            return False
    return isinstance(value, Tensor) and value.dtype == other


def _check(log_prob: Function[[Tensor], Tensor], points: Tensor) -> None:
    z = points.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = log_prob(z)
    _check_form(value, z)
    _check_finite("log_prob", value, z)
    if not value.requires_grad:
        raise SpecError(
            "log_prob: returned a tensor that does not depend on z differentiably; stay in torch, "
            "without .detach(), .item(), numpy, rounding or torch.no_grad()"
        )
    (gradient,) = torch.autograd.grad(value.sum(), z, allow_unused=True)
    if gradient is None:
        raise SpecError("log_prob: its result does not depend on z; compute it from the argument")
    _check_finite("log_prob: the gradient", gradient, z)
    with torch.no_grad():
        pairs = z.reshape(2, -1, z.shape[-1]) if len(z) % 2 == 0 else z[None]
        _check_form(log_prob(pairs), pairs)
        alone = log_prob(z[:1])
        _check_form(alone, z[:1])
        far = (alone[0] - value[0]).abs()
        if far > 1e3 * torch.finfo(value.dtype).eps * (1 + value.detach().abs().max()):
            raise SpecError(
                f"log_prob: gives {value[0].item():.6g} for a point among others and "
                f"{alone[0].item():.6g} for it alone; sum over the last dimension only"
            )


def _check_form(value: object, z: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ShapeError(f"log_prob: returned a {type(value).__name__}; return a tensor")
    if value.shape != z.shape[:-1]:
        raise ShapeError(
            f"log_prob: returned shape {tuple(value.shape)} for z of shape {tuple(z.shape)}; return "
            f"{tuple(z.shape[:-1])}, one number for each point (sum over the last dimension)"
        )
    if value.dtype != z.dtype:
        raise ShapeError(
            f"log_prob: returned {value.dtype} for z of {z.dtype}; return the dtype of z (constants "
            "as Python numbers, or cast to z.dtype)"
        )


def _check_finite(name: str, value: Tensor, z: Tensor) -> None:
    bad = ~value.detach().isfinite()
    bad = bad.any(-1) if bad.ndim == z.ndim else bad
    if bad.any():
        first = z.detach()[bad][0].tolist()
        found = value.detach()[bad][0].tolist()
        raise NonFiniteError(
            f"{name}: is {found} at z = {[round(number, 4) for number in first]}; return finite "
            "numbers (log-space, logsumexp), or pass points where the density is positive"
        )
