"""One pass from a batch to its loss, plain or compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varflow.core import random
from varflow.core.observed import Examples
from varflow.ensemble import Ensemble
from varflow.model import Model, Terms
from varflow.objectives import Objective
from varflow.training.engine import Engine

#: What a step leaves in the records, in this order; nats, means over the batch. ``loss`` is the objective in the
#: units of the model, ``elbo`` and ``log_likelihood`` are of x in the units of the data.
METRICS = ("loss", "elbo", "log_likelihood", "kl", "ladj", "preprocessing_ladj")


class Forward:
    """batch → posterior → terms → objective.

    A compiled step may draw no random numbers itself: what it asks for is noted once, drawn beforehand at each step,
    and passed in.
    """

    def __init__(
        self, model: Model | Ensemble, objective: Objective, engine: Engine, samples: int
    ) -> None:
        self.model: Model | Ensemble = model
        self.objective: Objective = objective
        self.engine: Engine = engine
        self.samples: int = samples
        self._compiled: Any = None
        self._requests: list[random.Request] = []
        # Filled anew at each compiled step: to make a tensor of a number is a copy to the device, and waits for it.
        self._weight = torch.zeros((), device=engine.device, dtype=engine.dtype)

    def __call__(self, batch: Any, weight: float | Tensor, source: random.Source) -> tuple[Tensor, Tensor]:
        """(loss, :data:`METRICS`) of a batch, both on the device.

        Args:
            batch: with ``seen`` and ``ladj``, as the data set gives it.
            weight: of the objective.
            source: the random numbers of the step.
        """
        if not self.engine.compile:
            return self._plain(batch.seen, batch.ladj, weight)
        if self._compiled is None:
            # One look at the step, in a stream of its own.
            recorder = random.Recorder(random.Stream(0))
            with random.use(recorder), torch.no_grad():
                self._plain(batch.seen, batch.ladj, weight)
            self._requests = recorder.requests
            self._compiled = torch.compile(self._replayed)
        noise = [source.draw(request) for request in self._requests]
        found: tuple[Tensor, Tensor] = self._compiled(batch.seen, batch.ladj, self._weight.fill_(weight), noise)
        return found

    def _plain(self, x: Examples | None, ladj: Tensor | None, weight: float | Tensor) -> tuple[Tensor, Tensor]:
        objective = self.objective
        with self.engine.autocast():
            terms = self.model.terms(x, self.samples, hold=objective.hold, groups=objective.groups)
        loss = objective(terms, weight)
        for auxiliary in terms.auxiliary.values():
            loss = loss + auxiliary
        row = torch.stack([loss.detach(), *means(terms, ladj)])
        # A mean over stacked fits would divide each one's gradient by their number.
        return loss * self.model.fits, row

    def _replayed(
        self, x: Examples | None, ladj: Tensor | None, weight: Tensor, noise: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        with random.use(random.Replay(noise)):
            return self._plain(x, ladj, weight)


def means(terms: Terms, ladj: Tensor | None) -> list[Tensor]:
    """All of :data:`METRICS` but the loss: means over samples and examples."""
    log_likelihood, kl = terms.log_likelihood.detach().mean(), terms.kl.detach().mean()
    shift = torch.zeros_like(kl) if ladj is None else ladj.mean().to(kl.dtype)
    log_likelihood = log_likelihood + shift
    return [log_likelihood - kl, log_likelihood, kl, terms.draw.ladj.detach().mean(), shift]
