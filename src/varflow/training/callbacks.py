"""Callbacks: code of the user's own that looks on while a model is fitted, and may end the fit.

They are called where the loop has stopped to read its terms, so a step pays nothing for them, and nothing that they
do reaches the random numbers or the mode of the model: a run with callbacks has the same bits as one without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from varflow.core import random, ranks
from varflow.core.errors import RunError, SpecError
from varflow.settings.spec import RunSpec
from varflow.training.progress import Record


@dataclass
class Fitting:
    """A fit as its callbacks see it.

    Attributes:
        spec: the settings of the run.
        model: what learns, on its device; in evaluation mode while callbacks are called.
        dataset: what it learns from.
        folder: of the run; None for a fit in memory.
        stage: "model", or "code prior" while the prior over the codes of a finished quantizer is fitted.
        begins: the step that this session starts from: 0, or where a resumed fit goes on.
        steps: the budget in updates.
        validate_every: updates between two validations.
        settled: updates until the weight of the objective has its final value, which is what validations score.
        step: updates done.
        bound: the bound of the last validation, its mean over the split; nats of x in the units of the data. None
            before the first, and where there is no validation split.
        best_step, best_bound: of the best weights so far, as far as the run keeps them.
        reason: why a callback asked the fit to end, or None.
    """

    spec: RunSpec
    model: Any
    dataset: Any
    folder: Path | None = None
    stage: Literal["model", "code prior"] = "model"
    begins: int = 0
    steps: int = 0
    validate_every: int = 0
    settled: int = 0
    step: int = 0
    bound: float | None = None
    best_step: int = 0
    best_bound: float | None = None
    reason: str | None = None

    def stop(self, reason: str) -> None:
        """Ask the fit to end here, as early stopping would end it; a resumed run goes on from here.

        Args:
            reason: a sentence for the outcome of the run. The first that is given stands.
        """
        if self.reason is None:
            self.reason = reason


class Callback:
    """Looks on while a model is fitted. A subclass overrides what it needs; each method here does nothing.

    ``vf.fit(..., callbacks=[Mine()])`` calls them in the order of the list, on the first process alone where there
    are several. The model is in evaluation mode, and ``varflow``'s and torch's random numbers are seeded by (seed,
    step); mode and generators are put back afterwards. A callback must not change weights. Time spent here counts
    neither as the run's seconds nor in its steps per second.

    An exception ends the fit, after the state has been saved, with an error that names the callback.

    Example:
        >>> import torch, varflow as vf
        >>> class LastBound(vf.training.Callback):
        ...     def validated(self, record, fitting):
        ...         self.bound = fitting.bound
        ...         if record["kl"] > 100:
        ...             fitting.stop("the KL term is above 100 nats")
        >>> seen, x = LastBound(), (torch.rand(64, 6) < 0.5).float()
        >>> run = vf.fit("digits", x, latent=2, hidden=8, epochs=1, quiet=True, callbacks=[seen])
        >>> seen.bound == run.metrics[-1]["elbo"]
        True
    """

    def started(self, fitting: Fitting) -> None:
        """Before the first step of a session; once for each stage."""

    def recorded(self, record: Record, fitting: Fitting) -> None:
        """After each record: the terms of the training steps since the last one, or a validation
        (``record["split"]``), as in metrics.jsonl.
        """

    def validated(self, record: Record, fitting: Fitting) -> None:
        """After each validation, when the best weights so far have been chosen."""

    def finished(self, run: Any) -> None:
        """At the end, with the :class:`~varflow.Run`; ``run.outcome`` says how it ended, also where a signal or
        a callback ended it.
        """

    def failed(self, error: BaseException) -> None:
        """In place of :meth:`finished` where an error ends the fit. What this raises is dropped, for the error."""


class Callbacks:
    """The callbacks of a run, called so that they leave no trace in it.

    Args:
        each: the callbacks.
        seed: of the run.
        last: callbacks that are called after the others.

    Raises:
        SpecError: one is no callback.
    """

    def __init__(
        self, each: Sequence[Callback] = (), seed: int = 0, last: Sequence[Callback] = ()
    ) -> None:
        if isinstance(each, Callback):
            raise SpecError("callbacks: was one callback; give a list, callbacks=[…]")
        for one in (*each, *last):
            if not isinstance(one, Callback):
                hint = " (a class: give an instance)" if isinstance(one, type) else ""
                raise SpecError(
                    f"callbacks: holds {getattr(one, '__name__', type(one).__name__)}{hint}; derive it from "
                    "varflow.training.Callback"
                )
        self.each, self.seed = [*each, *last], seed
        self._speaks = ranks.rank() == 0
        self._any = bool(self.each)

    def meet(self) -> None:
        """Let all processes know whether the first one has callbacks."""
        self._any = ranks.first(lambda: self._any)

    def call(self, method: str, fitting: Fitting, *values: Any) -> None:
        """Call ``method`` of each with ``values`` and ``fitting``; all processes agree on whether to stop.

        Raises:
            RunError: one raised an exception, by its name.
        """
        if not self._any:
            return

        def here() -> str | None:
            for one in self.each:
                with _untouched(fitting.model, self.seed, fitting.step), _named(one, method):
                    getattr(one, method)(*values, fitting)
            return fitting.reason

        fitting.reason = ranks.first(here)

    def finish(self, run: Any) -> None:
        """Tell each of the run that came of it.

        Raises:
            RunError: one raised an exception, by its name.
        """
        if not self._any:
            return

        def here() -> None:
            for one in self.each:
                with _untouched(run.model, self.seed, run.outcome["step"]), _named(one, "finished"):
                    one.finished(run)

        ranks.first(here)

    def fail(self, error: BaseException) -> None:
        """Tell each of an error that ends the fit; the others may be gone, so nobody waits for them."""
        for one in self.each if self._speaks else ():
            try:
                one.failed(error)
            except Exception as second:
                error.add_note(f"{type(one).__name__}.failed raised {type(second).__name__}: {second}")


@contextmanager
def _named(callback: Callback, method: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        name = f"{type(callback).__name__}.{method}"
        raise RunError(f"callback {name}: {type(error).__name__}: {error}") from error


@contextmanager
def _untouched(model: nn.Module, seed: int, step: int) -> Iterator[None]:
    """Evaluation mode and random numbers of their own inside; mode and generators as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    drawn = random.derive(seed, "callbacks", step)
    try:
        with torch.random.fork_rng(devices), random.stream(drawn):
            torch.manual_seed(drawn)
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
