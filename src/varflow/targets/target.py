"""The contract of a target: a density known up to its normaliser, with what is known of it exactly."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError, positive
from varflow.core.settings import Settings, Size, settings
from varflow.priors.prior import Prior

Window = tuple[float, float, float, float]


@settings
class TargetSettings(Settings):
    """What every target can be told; a target is inferred without data, so it brings a posterior alone."""

    dimensions: Annotated[int, "D of a target of any dimension.", Size()] = 2

    roles: ClassVar[tuple[str, ...]] = ("posterior",)
    alone = "a target is a density of its own, without data, prior and likelihood; leave it out"

    def build(self, part: Any) -> Prior:
        """The density, as a prior that nothing is observed about."""
        target: Prior = part(self.dimensions)
        return target

    def likelihood(self, part: Any, block: int) -> nn.Module | None:
        """What is observed all the same, inside the target: nothing, but for models that hold their data."""
        return None

    def facts(self) -> dict[str, Any]:
        """What data.json says beside the name."""
        return {}


class Target(Prior):
    """π(z) = exp(log_prob(z)) / Z over z ``[..., D]``; a prior that nothing is observed about.

    Unlike other priors a target need not be normalised. What is known of it exactly stands in the
    properties below; each is None where it is not known. Numbers are nats; tensors come in the dtype
    and on the device of the target. All targets of varflow are twice differentiable and work under
    ``torch.func.vmap``; their scalars are Python floats, so that float64 loses nothing.

    Args:
        features: D.

    Attributes:
        window: (x_min, x_max, y_min, y_max) that shows the target in a picture, in 2-D, or None.
    """

    window: Window | None = None

    def __init__(self, features: int) -> None:
        super().__init__()
        positive(features=features)
        self.event_shape: tuple[int, ...] = (features,)
        self.register_buffer("_home", torch.zeros(()), persistent=False)

    @property
    def features(self) -> int:
        """D."""
        return self.event_shape[0]

    @abstractmethod
    def log_prob(
        self, z: Float[Tensor, "... features"], context: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        """log π(z) + log Z, ``[..., D]`` → ``[...]``, nats.

        Raises:
            ShapeError: the last dimension of z is not D.
        """

    @property
    def log_normalizer(self) -> float | None:
        """log Z = log ∫ exp(log_prob(z)) dz."""
        return None

    @property
    def entropy(self) -> float | None:
        """−E log π of the normalised density."""
        return None

    @property
    def mean(self) -> Tensor | None:
        """E z, ``[D]``."""
        return None

    @property
    def covariance(self) -> Tensor | None:
        """E (z − E z)(z − E z)ᵀ, ``[D, D]``."""
        return None

    @property
    def modes(self) -> Tensor | None:
        """A point at (or, for a mode that is a curve, on) each mode, ``[M, D]``."""
        return None

    @property
    def mode_weights(self) -> Tensor | None:
        """E over π of :meth:`mode_probabilities`, ``[M]``: how much of the mass each mode holds."""
        return None

    def mode_probabilities(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "... modes"]:
        """The probability that z came from each mode, ``[..., D]`` → ``[..., M]``, sums to 1.

        Raises:
            SpecError: the target has no modes to tell apart.
        """
        raise SpecError(
            f"target: {type(self).__name__} has no separate modes; ask U1, U3, U4 or GaussianMixture"
        )

    def log_density(self, z: Float[Tensor, "... features"]) -> Float[Tensor, "..."]:
        """log π(z), normalised, nats.

        Raises:
            SpecError: log Z is not known.
        """
        log_normalizer = self.log_normalizer
        if log_normalizer is None:
            raise SpecError(
                f"target: log Z of this {type(self).__name__} is not known; use log_prob, or give it"
            )
        return self.log_prob(z) - log_normalizer

    def sample(self, shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Exact, independent draws ``[*shape, D]`` of π.

        Raises:
            SpecError: there is no exact sampler.
        """
        raise SpecError(
            f"target: {type(self).__name__} has no exact sampler; choose a measure that needs no "
            "samples of it, such as the ELBO"
        )

    def check(self, z: Tensor) -> None:
        """Refuse a z that does not end in D features."""
        if z.ndim == 0 or z.shape[-1] != self.features:
            name = type(self).__name__
            raise ShapeError(f"z: shape {tuple(z.shape)}; {name} needs [..., {self.features}]")

    def extra_repr(self) -> str:
        return f"features={self.features}"

    def _like(self, values: Any) -> Tensor:
        home = self.get_buffer("_home")
        return torch.as_tensor(values, dtype=home.dtype, device=home.device)

    def _normal(self, *shape: int) -> Tensor:
        home = self.get_buffer("_home")
        return random.normal(shape, "target", dtype=home.dtype, device=home.device)

    def _uniform(self, *shape: int) -> Tensor:
        home = self.get_buffer("_home")
        return random.uniform(shape, "target", dtype=home.dtype, device=home.device)

    def _reject(
        self,
        shape: Sequence[int],
        acceptance: float,
        propose: Callable[[int], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Rejection sampling: ``propose(n)`` gives points ``[n, D]`` and which of them to keep ``[n]``."""
        needed = math.prod(shape)
        found: list[Tensor] = []
        while (missing := needed - sum(len(points) for points in found)) > 0:
            points, keep = propose(math.ceil(1.1 * missing / acceptance) + 16)
            found.append(points[keep])
        kept = torch.cat(found)[:needed] if found else self._like([])
        return kept.reshape(*shape, self.features)


def exactly_two(name: str, features: int) -> int:
    """Refuse a number of features other than 2."""
    if features != 2:
        raise SpecError(f"features: was {features}; {name} lives in the plane, use features=2")
    return features


def positive_number(**values: float) -> None:
    """Raise :class:`SpecError` for the first value that is not a positive, finite number."""
    for name, value in values.items():
        if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
            raise SpecError(f"{name}: was {value!r}; use a positive number")
