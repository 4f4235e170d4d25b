"""The density of a run as torch has distributions: of x in the units of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from varflow.core.errors import SpecError
from varflow.data.protocols import Protocol
from varflow.model import Model
from varflow.priors.flow import Flow
from varflow.priors.gaussians import Gaussians

if TYPE_CHECKING:
    from varflow.runs.run import Run


class Density(Distribution):
    """p(v) of stored values v ``[*event]``:   log p(v) = log p(x) + log|dx/dv|, x the preprocessed v; nats.

    ``log_prob`` is exact and differentiable, in v and in the parameters of the model. Nothing is random in it: where
    training adds noise, v is taken as it is. For a table with rounded columns v is any real number, and a number on
    the grid is the middle of its step. For levels v is a dequantized level k + u in [0, L), in bins one wide; integer
    tensors are levels k and scored at k + 1/2. Draws have the same density, so nothing is rounded in them.

    ``rsample`` differentiates draws by the parameters of a flow whose base has none (N(0, I), or the mixture of
    Gaussians that a density begins with); ``has_rsample`` says whether there is one.

    Args:
        model: a density of x, as :class:`varflow.posteriors.DataAsLatents` makes one.
        preprocessing: from v to x.
        event_shape: of one v.
        batch_shape: of equal distributions, as ``expand`` makes them.
        validate_args: check shape and support of what is scored, whatever other libraries have made torch's default.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        model: Model,
        preprocessing: Protocol,
        event_shape: Sequence[int],
        batch_shape: Sequence[int] = (),
        validate_args: bool = True,
    ) -> None:
        self.model, self.preprocessing = model, preprocessing
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether a draw is a differentiable map of noise that no parameter of the model has a part in."""
        base = self.model.prior.base if isinstance(self.model.prior, Flow) else self.model.prior
        return bool(base.standard) or isinstance(base, Gaussians)

    @property
    def support(self) -> Any:
        """All real numbers; for levels through the logit the interval that it comes back to, a little over [0, L]."""
        each: Any = constraints.real
        if self.preprocessing.source_levels is not None:
            ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
            low, high = self.preprocessing.decode_point(ends).tolist()
            each = constraints.interval(low, high) if math.isfinite(high) else constraints.real
        return constraints.independent(each, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Density:
        shape = torch.broadcast_shapes(self.batch_shape, torch.Size(batch_shape))
        return Density(
            self.model, self.preprocessing, self.event_shape, shape, bool(getattr(self, "_validate_args", True))
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(v) for v ``[..., *event]`` → ``[...]``, in the dtype of the model.

        Raises:
            ValueError: v of another event shape or outside the support, where arguments are validated.
        """
        home = next(self.model.parameters())
        value = torch.as_tensor(value, device=home.device)
        if not value.is_floating_point():
            shift = 0.0 if self.preprocessing.source_levels is None else 0.5
            value = value.to(home.dtype) + shift
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        rows = value.reshape(-1, *self.event_shape)
        x, ladj = self.preprocessing.encode_point(rows, home.dtype)
        found = self.model.prior.log_prob(x.flatten(1)) + ladj
        return found.reshape(value.shape[: value.ndim - len(self.event_shape)]).expand(batch)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``[*sample_shape, *batch, *event]``, from torch's generator or the stream that is open."""
        return self._drawn(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The draws of :meth:`sample`, differentiable in the parameters of the model.

        Raises:
            NotImplementedError: where :attr:`has_rsample` is false.
        """
        if not self.has_rsample:
            raise NotImplementedError(
                f"rsample: draws of {type(self.model.prior).__name__} are no differentiable map of noise; use sample"
            )
        return self._drawn(sample_shape)

    def _drawn(self, sample_shape: Any) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        count = math.prod(shape[: len(shape) - len(self.event_shape)])
        x = self.model.prior.sample((count,))
        return self.preprocessing.decode_point(x.reshape(count, *self.event_shape)).reshape(shape)

    def __repr__(self) -> str:
        return f"Density(event_shape={tuple(self.event_shape)}, batch_shape={tuple(self.batch_shape)})"


def density(run: Run, validate_args: bool = True) -> Density:
    """See :meth:`varflow.Run.distribution`."""
    if run.conditions is not None:
        names = ", ".join(run.conditions.names)
        raise SpecError(f"distribution: this run is conditioned on {names}; use log_prob(x, given=...) and sample")
    if run.infers_target:
        raise SpecError(
            "distribution: this is a fit to a target, which has no x; use run.log_q(z) and run.sample(count)"
        )
    if not isinstance(run.model, Model) or run.preprocessing is None:
        raise SpecError(
            "distribution: several fits were trained together here, and a distribution is of one; fit one seed"
        )
    posterior = run.model.posterior
    if posterior.discrete:
        raise SpecError("distribution: codes have a mass and no density; use run.log_prob(x) and run.sample(count)")
    if not posterior.observed:
        raise SpecError(
            "distribution: p(x) of a model with latents is an integral over them, which has no exact log_prob; use "
            "run.log_prob(x), an estimate, or fit a density, e.g. vf.fit('density', x)"
        )
    return Density(run.model, run.preprocessing, run.form.event_shape, (), validate_args)
