"""What likelihoods of discrete levels share: x = v/(L − 1) with v one of 0, 1, … L − 1, each with a probability."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributions import constraints

from varflow.core import random
from varflow.core.errors import DataError, SpecError
from varflow.core.form import Form
from varflow.core.settings import settings
from varflow.likelihoods.likelihood import Likelihood, LikelihoodSettings, batch_dim


@settings
class OnLevelsSettings(LikelihoodSettings):
    """What likelihoods of levels share: they see stored levels as they are."""

    protocol: ClassVar[str] = "levels"

    def options(self, form: Form) -> dict[str, Any]:
        return {"levels": form.levels} if form.support == "levels" else {}


class OnLevels(Likelihood):
    """p(x|z) = Πᵢ p(xᵢ|z), each a probability of L levels; bits per dimension need no dequantization.

    Args:
        decoder: see :class:`Likelihood`.
        event_shape: shape of one x.
        levels: L.
        outputs: decoder outputs for each event element.

    Raises:
        SpecError: fewer than two levels, or a decoder of another ``out_shape``.
    """

    support: tuple[str, ...] = ("levels",)
    _refusal = "use protocol=levels, which leaves stored levels as they are"

    def __init__(
        self, decoder: nn.Module, event_shape: int | Sequence[int], levels: int, outputs: int
    ) -> None:
        super().__init__(decoder, event_shape, outputs)
        self.levels: int = levels
        self.top: int = levels - 1

    @abstractmethod
    def log_masses(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event_levels"]:
        """log p(v|z) of every level of every element, ``[*lead, *event, L]``: L times the size of an event."""

    def distribution(self, z: Float[Tensor, "*lead features"]) -> torch.distributions.Distribution:
        return torch.distributions.Independent(Grid(self.log_masses(z)), len(self.event_shape))

    def check(self, x: Tensor) -> None:
        super().check(x)
        off = (x * self.top - (x * self.top).round()).abs() > 1e-3
        if off.any():
            found = x[off].flatten()[0].item()
            raise DataError(
                f"x: has the value {found:g}, which is none of the {self.levels} levels k/{self.top}; "
                f"{self._refusal}"
            )

    def _level(self, x: Tensor) -> Tensor:
        """v of x, a whole number in the dtype of x: the product alone is off by rounding."""
        return (x * self.top).round()

    def _split(self, z: Tensor) -> Tensor:
        """What the decoder says of each element: ``[*lead, outputs, *event]``."""
        first = self.event_shape[0]
        return self.decode(z).unflatten(-len(self.event_shape), (self.outputs, first))

    @property
    def _dim(self) -> int:
        """Where :meth:`_split` puts the outputs."""
        return -len(self.event_shape) - 1

    def _uniform(self, like: Tensor, z: Tensor) -> Tensor:
        return random.uniform(
            like.shape, "likelihood", dtype=like.dtype, device=like.device, batch_dim=batch_dim(z)
        )

    def extra_repr(self) -> str:
        return f"event_shape={self.event_shape}, levels={self.levels}"


class Grid(torch.distributions.Distribution):
    """The values k/(L − 1), k = 0 … L − 1, with the log-probabilities ``[..., L]``."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.unit_interval

    def __init__(self, log_masses: Float[Tensor, "... levels"]) -> None:
        self.log_masses = log_masses
        self.top: int = log_masses.shape[-1] - 1
        super().__init__(log_masses.shape[:-1], validate_args=False)

    @property
    def values(self) -> Tensor:
        home = self.log_masses
        return torch.arange(self.top + 1, dtype=home.dtype, device=home.device) / self.top

    @property
    def mean(self) -> Tensor:
        return (self.log_masses.exp() * self.values).sum(-1)

    @property
    def variance(self) -> Tensor:
        return (self.log_masses.exp() * (self.values - self.mean[..., None]).square()).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        level: Int64[Tensor, "..."] = (value * self.top).round().long()
        level, table = torch.broadcast_tensors(level[..., None], self.log_masses)
        return table.gather(-1, level[..., :1])[..., 0]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = (*sample_shape, *self.batch_shape)
        flat = self.log_masses.exp().reshape(-1, self.top + 1)
        count = torch.Size(sample_shape).numel()
        drawn = torch.multinomial(flat, count, replacement=True).T
        return drawn.reshape(shape).to(flat.dtype) / self.top


def positive_levels(levels: int | None) -> int:
    """``levels``, where it is a number of levels.

    Raises:
        SpecError: it is missing, or below two.
    """
    if not isinstance(levels, int) or isinstance(levels, bool) or levels < 2:
        raise SpecError(
            f"levels: was {levels}; give the number of values a dimension can take, 2 or more, e.g. 256"
        )
    return levels
