"""A fitted density as a distribution of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from varflow.core.errors import ShapeError, SpecError
from varflow.data.protocols import Protocol
from varflow.model import Model

#: No batch of distributions, and no batch of samples.
_ONE = Size()


class Density(Distribution):
    """p(x) of a density that was fitted to real numbers, in the units of the data. Made by ``run.distribution()``.

    log p(x) is exact, in nats, and differentiable in x. Where columns are rounded it is the density of x with uniform
    noise of one step, as in training, and samples have that noise too: round them to the steps for data as they were.

    Args:
        model: whose prior is over x itself.
        preprocessing: what was learned in training.
        event_shape: of one x.
        batch_shape: independent copies.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - torch's own attribute
    has_rsample = False

    def __init__(
        self, model: Model, preprocessing: Protocol, event_shape: Size, batch_shape: Size = _ONE
    ) -> None:
        super().__init__(batch_shape, event_shape, validate_args=False)
        self.model, self.preprocessing = model, preprocessing

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) of ``[..., *event]``, nats, in the dtype of the model.

        Raises:
            ShapeError: another shape of event.
        """
        last = len(self.event_shape)
        if value.shape[-last:] != self.event_shape:
            needed = ", ".join(map(str, self.event_shape))
            raise ShapeError(f"value: shape {list(value.shape)}, should be [..., {needed}]")
        home = next(self.model.parameters())
        lead = torch.broadcast_shapes(value.shape[:-last], self.batch_shape)
        rows = value.to(home.device).expand(*lead, *self.event_shape).reshape(-1, *self.event_shape)
        x, ladj = self.preprocessing.encode(rows, None, home.dtype)
        return (self.model.terms(x, 1).log_weight[0] + ladj).reshape(lead)

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        """Draws ``[*sample, *batch, *event]`` from torch's global generator."""
        lead = Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            x = self.model.sample(max(lead.numel(), 1))[: lead.numel()]
            return self.preprocessing.unrounded(x).reshape(*lead, *self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Density:
        """The same with so many independent copies."""
        shape = torch.broadcast_shapes(Size(batch_shape), self.batch_shape)
        return Density(self.model, self.preprocessing, self.event_shape, Size(shape))


def distribution(model: Any, preprocessing: Protocol | None, event_shape: tuple[int, ...]) -> Density:
    """See :meth:`varflow.Run.distribution`."""
    if not isinstance(model, Model) or preprocessing is None:
        raise SpecError("distribution: this is a fit to a target, which has no x; use run.sample and run.log_q")
    if not model.posterior.observed:
        raise SpecError(
            "distribution: log p(x) of a model with latents is estimated and not exact; use run.scores(x), which has "
            "its error"
        )
    if preprocessing.source_levels is not None:
        raise SpecError(
            f"distribution: the data are levels, and protocol '{preprocessing.name}' gives them noise; use "
            "run.log_prob(x)"
        )
    return Density(model, preprocessing, Size(event_shape))
