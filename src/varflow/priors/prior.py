"""The contract of a prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from jaxtyping import Shaped
from torch import Tensor, nn

from varflow.core import display
from varflow.core.conditions import refuse_unread
from varflow.core.form import Form
from varflow.core.settings import Settings, settings


@settings
class PriorSettings(Settings):
    """What every prior over vectors has, which is nothing to be told; a prior with settings adds them in its file.

    Attributes:
        discrete: whether events are codes.
    """

    discrete: ClassVar[bool] = False
    alone = "only a prior over codes that learns has one; use prior=pixelcnn or gated-pixelcnn"

    def build(self, part: Any, features: int, form: Form) -> Prior:
        """p(z) over ``features`` numbers, for data of a form."""
        prior: Prior = part(features)
        return prior


class Prior(nn.Module, ABC):
    """p(z) over events of ``event_shape``, normalised: ``log_prob`` holds every constant, in nats.

    Attributes:
        event_shape: ``(D,)`` for a vector of latent features.
        discrete: whether events are integers.
        standard: whether p(z) is N(0, I).
        classes: how many classes it is conditioned on; None where labels are not read.
        reads: what it can be conditioned on, among "context" and "mask".
    """

    event_shape: tuple[int, ...]
    discrete: bool = False
    standard: bool = False
    classes: int | None = None
    reads: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        return display.tree(self)

    @abstractmethod
    def log_prob(self, z: Shaped[Tensor, "..."], context: Tensor | None = None) -> Tensor:
        """log p(z), or log p(z|c), for z ``[..., *event_shape]`` → ``[...]``, nats.

        Raises:
            SpecError: a context that this prior does not read, or one that is missing.
        """

    def refuse_context(self, context: Tensor | None) -> None:
        """Refuse a context by the name of a prior that reads none. Raises SpecError."""
        refuse_unread(self, "prior", context=context)

    @abstractmethod
    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draws ``[*shape, *event_shape]`` with the dtype and device of the prior."""

    def start(
        self, draw: Callable[[str], Tensor], context: Callable[[str], Tensor] | None = None
    ) -> None:
        """Begin at the data instead of anywhere; called once, before the first update of a prior fitted to data.

        Args:
            draw: split → its rows ``[N, *event_shape]``, as the prior sees them.
            context: split → c of the same rows ``[N, C]``, where the model is conditioned.

        Most priors have nothing to do.
        """

    def count(self, labels: Tensor) -> None:
        """Meet the training labels ``[N]`` of a prior with ``classes``; called once, before it is fitted.

        A prior that sums its classes out takes their shares from it. All others have nothing to do.
        """

    def bind(self, posterior: Any) -> None:
        """Meet the posterior of the same model; called once, when the model is put together.

        A prior that is made of posteriors keeps a reference to it and registers none of its tensors. All
        others have nothing to do.
        """
