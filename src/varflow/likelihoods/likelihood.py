"""The contract of a likelihood.

A likelihood p(x|z) owns a decoder, a network ``[*lead, D] -> [*lead, *out_shape]``, and reads what
it puts out as parameters of a distribution over events x. How many parameters an event element
needs is its number of ``outputs``; the decoder stacks them along the first event dimension.

What every likelihood promises (``tests/test_likelihoods.py`` checks it for all):

* ``log_prob(x, z)`` sums the event and keeps every constant; nats. x ``[B, *event]`` broadcasts
  against z ``[S, B, D]``.
* Densities and their sums stay in float32 or better, also with a decoder in half precision.
* Twice differentiable, and usable under ``torch.func.vmap`` and ``torch.func.functional_call``.
* ``log_prob`` reads no value of x back; ``check`` does, and ``check_support`` goes by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from varflow.core import display
from varflow.core.errors import DataError, ShapeError, SpecError
from varflow.core.form import Form
from varflow.core.settings import Settings, settings
from varflow.networks.mlp import Shape, as_shape


@settings
class LikelihoodSettings(Settings):
    """What every likelihood brings: networks and a posterior. One with settings of its own adds them in its file.

    Attributes:
        protocol: the protocol of the data where that is left to be chosen.
        continuous: whether the data must have a density.
    """

    roles: ClassVar[tuple[str, ...]] = ("network", "posterior")
    protocol: ClassVar[str] = "auto"
    continuous: ClassVar[bool] = False

    def options(self, form: Form) -> dict[str, Any]:
        """What the likelihood is built with, beside its decoder and the event shape."""
        return {}

    def build(self, part: Any, decoder: Callable[[Shape], nn.Module], form: Form) -> nn.Module:
        """p(x|z) of data of a form; ``decoder`` makes the network for an ``out_shape``."""
        options = self.options(form)
        shape = part.decoder_shape(form.event_shape, **options)
        likelihood: nn.Module = part(decoder(shape), form.event_shape, **options)
        return likelihood


class Likelihood(nn.Module, ABC):
    """Base class: shapes and checks. A family writes the four abstract methods.

    Args:
        decoder: a network ``[*lead, D] -> [*lead, *out_shape]``; its attribute ``out_shape``, where
            it has one, must be :meth:`decoder_shape`. With an attribute ``context_features`` of C it reads z and a
            context c side by side, ``[*lead, D + C]``, and this is p(x|z, c).
        event_shape: shape of one x.
        outputs: decoder outputs for each event element.
        out_shape: of the decoder, where it is not so many outputs for each element.

    Attributes:
        support: what x may be: any of ``"binary"`` (0 and 1), ``"levels"`` (k/(L − 1)), ``"unit"`` ([0, 1]),
            ``"real"``, ``"columns"`` (cells of a table).
        outputs: decoder outputs for each event element.
        reads: what it can be conditioned on beside z, among "context" and "mask".

    Raises:
        SpecError: an event shape that is not one, or a decoder of another ``out_shape``.
    """

    support: tuple[str, ...] = ("real",)
    outputs: int = 1
    reads: tuple[str, ...] = ()
    _refusal: ClassVar[str] = "choose another likelihood or protocol"
    #: support of the data → the way out that fits it better than ``_refusal``.
    _ways_out: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: int | Sequence[int],
        outputs: int = 1,
        out_shape: Shape | None = None,
    ) -> None:
        super().__init__()
        self.event_shape: Shape = _event_shape(event_shape)
        self.outputs = outputs
        needed = (outputs * self.event_shape[0], *self.event_shape[1:]) if out_shape is None else out_shape
        given = getattr(decoder, "out_shape", needed)
        if tuple(given) != needed:
            raise SpecError(
                f"decoder: puts out {tuple(given)}; this {type(self).__name__} over events of "
                f"shape {self.event_shape} needs {needed}: build it with out_shape={needed}"
            )
        self.decoder = decoder
        if getattr(decoder, "context_features", 0):
            self.reads = (*self.reads, "context")
        self._event_dims = tuple(range(-len(self.event_shape), 0))

    @classmethod
    def decoder_shape(cls, event_shape: int | Sequence[int], **options: Any) -> Shape:
        """The ``out_shape`` of the decoder for this event shape and these constructor options."""
        first, *rest = _event_shape(event_shape)
        return (cls._outputs_for(**options) * first, *rest)

    @classmethod
    def _outputs_for(cls, **options: Any) -> int:
        return 1

    @abstractmethod
    def log_prob(
        self, x: Shaped[Tensor, "*x_batch_event"], z: Float[Tensor, "*lead_latent"]
    ) -> Float[Tensor, "*lead"]:
        """log p(x|z) in nats, summed over the event.

        x ``[*batch, *event]``, which broadcasts against z ``[*lead, D]``, or a grid of vectors ``[*lead, D, h, w]``
        where the decoder reads grids → ``[*lead]``.

        Raises:
            ShapeError: x does not end in the event shape, or is not floating point.
        """

    @abstractmethod
    def mean(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        """E[x|z], ``[*lead, *event]``."""

    @abstractmethod
    def sample(self, z: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead_event"]:
        """x ~ p(x|z), ``[*lead, *event]``; not differentiable through the draw of a discrete x."""

    @abstractmethod
    def distribution(self, z: Float[Tensor, "*lead features"]) -> torch.distributions.Distribution:
        """p(x|z) as torch has it, batch shape ``[*lead]``, event shape ``[*event]``."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.log_prob(x, z)

    def check_support(self, support: str) -> None:
        """Refuse data of a ``support`` that this likelihood has no density for.

        Raises:
            SpecError: one sentence with both sides and a way out.
        """
        if support not in self.support:
            name = type(self).__name__
            of_tables = "use likelihood=columns, which takes each column by its kind"
            way_out = of_tables if support == "columns" else self._ways_out.get(support, self._refusal)
            raise SpecError(
                f"likelihood: {name} takes {' or '.join(self.support)} values of x, the data are {support}; {way_out}"
            )

    def check(self, x: Tensor) -> None:
        """Check shape and values of ``x`` before a computation; this reads the values back.

        Raises:
            ShapeError: as :meth:`log_prob`.
            DataError: a NaN or infinity, or a value outside the support.
        """
        self.check_shape(x)
        bad = ~torch.isfinite(x)
        if bad.any():
            raise DataError(
                f"x: {int(bad.sum())} of {x.numel()} values are NaN or infinite; "
                "remove those examples"
            )
        if "real" in self.support:
            return
        between = "unit" in self.support or "levels" in self.support
        inside = ((x >= 0) & (x <= 1)) if between else ((x == 0) | (x == 1))
        if not inside.all():
            found = x[~inside].flatten()[0].item()
            wanted = "[0, 1]" if between else "0 and 1"
            name = type(self).__name__
            raise DataError(f"x: has the value {found:g}; {name} takes {wanted}; {self._refusal}")

    def check_shape(self, x: Tensor) -> None:
        """Refuse an ``x`` that does not end in the event shape or is not floating point."""
        name = type(self).__name__
        if not x.is_floating_point():
            raise ShapeError(f"x: was {x.dtype}; {name} needs floating point, e.g. x.float()")
        if x.shape[-len(self.event_shape) :] != self.event_shape:
            expected = ", ".join(str(size) for size in self.event_shape)
            raise ShapeError(f"x: shape {tuple(x.shape)}; this {name} needs [..., {expected}]")

    def decode(self, z: Tensor) -> Tensor:
        """What the decoder puts out for z, ``[*lead, *out_shape]``, in float32 or better."""
        out: Tensor = self.decoder(z)
        return out.float() if out.dtype in (torch.float16, torch.bfloat16) else out

    def _repr_html_(self) -> str:
        return display.tree(self)

    def extra_repr(self) -> str:
        return f"event_shape={self.event_shape}"


def _event_shape(value: int | Sequence[int]) -> Shape:
    shape = as_shape("event_shape", value)
    if not shape:
        raise SpecError("event_shape: was (); give the shape of one example, e.g. (784,)")
    return shape


def batch_dim(z: Tensor) -> int | None:
    """The dimension that ranks share: the last one before the features, if there is one."""
    return z.ndim - 2 if z.ndim > 1 else None
