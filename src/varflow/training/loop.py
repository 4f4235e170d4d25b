"""The training loop: batch → terms → objective → update, and what has to happen now and then.

Between two *boundaries* (some hundred steps, or a validation) nothing is read back from the device.
At a boundary the terms of the steps since the last one are read at once, checked, recorded, and the
state is copied, so that a run that meets a NaN still has its last good state.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from varflow import combinations
from varflow.core import random, ranks
from varflow.core.errors import NonFiniteError, RunError, SpecError
from varflow.data.dataset import Dataset
from varflow.data.unobserved import Unobserved
from varflow.ensemble import Ensemble, exact_errors
from varflow.model import Model, Terms
from varflow.posteriors.ancestral import Ancestral
from varflow.posteriors.codebook import count, used
from varflow.posteriors.quantizer import Quantizer
from varflow.settings.spec import RunSpec
from varflow.training import guard
from varflow.training.engine import Engine
from varflow.training.exchange import WATCHED, Exchange
from varflow.training.optimizers import learning_rate
from varflow.training.progress import Progress, Record

STATE_VERSION = 1
#: Steps between two looks at the terms.
BOUNDARY = 200
#: Seed of the validation noise: the same for every run, so runs are compared on the same draws.
VALIDATION_SEED = 20150706
#: Samples × pictures scored at once in a validation.
_VALIDATION_CHUNK = 1000
#: Ratio of the steps of two snapshots of a fit to a target.
_SPACING = 1.15
_METRICS = ("loss", "elbo", "log_likelihood", "kl", "ladj")


class Sink(Protocol):
    """Where records and states go; a run folder, usually."""

    def record(self, record: Record) -> None: ...

    def position(self) -> int: ...

    def save(self, state: dict[str, Any]) -> None: ...

    def snapshot(self, step: int, weights: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a fit ended.

    Attributes:
        step: updates done.
        finished: the budget was used, or early stopping ended it.
        reason: one sentence.
        seconds: time in the loop, over all sessions of the run.
        best_step, best_elbo: where the validation bound was highest, and its value (nats): the ELBO, or the
            importance-weighted bound where that is trained. Its weights are kept with keep="best".
        signal: the signal that interrupted the run, or came during its last step; or None.
    """

    step: int
    finished: bool
    reason: str
    seconds: float
    best_step: int
    best_elbo: float
    signal: int | None = None


class Loop:
    """Maximises the objective of ``spec`` for ``model`` on ``dataset``.

    Args:
        model: on the engine's device, in its dtype.
        dataset: on the engine's device.
        spec: objective, optimizer and training settings are read here.
        engine: device, precision, compilation.
        sink: receives metrics records and resumable states.
        progress: shows what happens.

    Raises:
        NonFiniteError: (from :meth:`run`) a NaN or an infinity; the message names the first term and module,
            and the last good state has been saved.
    """

    def __init__(
        self,
        model: Model | Ensemble,
        dataset: Dataset | Unobserved,
        spec: RunSpec,
        engine: Engine,
        sink: Sink,
        progress: Progress,
    ) -> None:
        self.model, self.dataset, self.spec, self.engine = model, dataset, spec, engine
        self.sink, self.progress = sink, progress
        size = dataset.sizes["train"]
        if size < 1:
            raise SpecError("data: the training split is empty; give at least one example")
        # A block of a target's data is a batch by itself.
        self.batch = 1 if isinstance(dataset, Unobserved) and dataset.blocks else min(spec.training.batch, size)
        self.steps_per_epoch = size // self.batch
        self.steps = total_steps(spec, self.steps_per_epoch)
        every = spec.training.validate_every * self.steps_per_epoch
        self.validate_every = max(1, round(every)) if dataset.sizes["validation"] else self.steps
        self.objective = spec.objective.build(self.steps_per_epoch)
        for one in model.members() if isinstance(model, Ensemble) else [model]:
            combinations.check(
                one, dataset.support, self.objective, ranks.world(), dataset.levels
            )
        if engine.compile and isinstance(getattr(model, "posterior", None), Quantizer):
            raise SpecError(
                "compile: a quantizer's codebook restarts and counts by the values of a batch, which a compiled step "
                "cannot; leave compile off (its time is that of its convolutions)"
            )
        layered = isinstance(getattr(model, "posterior", None), Ancestral)
        if engine.compile and layered and getattr(self.objective, "gradient", "") == "dreg":
            raise SpecError(
                "compile: the gradients that doubly reparameterised ones weigh are not seen in a compiled step of "
                "several stochastic layers; leave compile off, or use gradient=total"
            )
        # Processes share the examples of a step, or the samples of a fit to a target.
        self._share, self.samples = self.batch, spec.objective.samples
        if isinstance(dataset, Unobserved):
            self.samples = ranks.share("samples", self.samples)
        else:
            self._share = ranks.share("batch", self.batch)
        self._exchange = Exchange(model.parameters()) if ranks.several() else None
        self.fits = model.fits if isinstance(model, Ensemble) else 1
        # The importance-weighted bound is another one for each number of samples.
        tighter = spec.objective.objective == "iwae"
        self._validation_samples = spec.objective.samples if tighter else 1
        self.optimizer = spec.optimizer.build(model)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.step = 0
        self.seconds = 0.0
        self.best_step, self.best_elbo = 0, -math.inf
        self.best_weights: dict[str, Tensor] | None = None
        self._buffer = torch.zeros(
            BOUNDARY, len(_METRICS), device=engine.device, dtype=engine.dtype
        )
        # Steps since the last record, and how many of them another session took.
        self._filled = self._carried = 0
        self._order: tuple[int, Tensor] | None = None
        self._compiled: Any = None
        self._requests: list[random.Request] = []
        self._signal: int | None = None
        self._resumed = False
        self._next_snapshot = 0
        self._clock = time.perf_counter()

    # -- the way of the data -------------------------------------------------------------------

    def update(self) -> Tensor:
        """One step: returns the row of metrics, still on the device."""
        weight = self.objective.weight(self.step)
        with self._stream() as source:
            x = self.dataset.batch("train", self._rows(self.step)).x
            loss, row = self._loss(x, weight, source)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        if self._exchange is not None:
            row = self._exchange(row, self._signal)
        settings = self.spec.optimizer
        if settings.clip is not None:
            if isinstance(self.model, Ensemble):
                self.model.clip_gradients(settings.clip)
            else:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        if settings.decay != "none":
            rate = learning_rate(settings, self.step, self.steps, self.steps_per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        return row

    def indices(self, step: int) -> Tensor:
        """Rows of the training split in a step: a fresh permutation each epoch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            rows, order = self.dataset.sizes["train"], torch.zeros(1, dtype=torch.int64)
            # A target that reads no data has one row, and a new epoch at every step.
            if rows > 1:
                source = random.generator(self.spec.training.seed, "shuffle", epoch)
                order = torch.randperm(rows, generator=source)
            self._order = (epoch, order.to(self.engine.device))
        return self._order[1][position * self.batch : (position + 1) * self.batch]

    def _rows(self, step: int) -> Tensor:
        """Those of them that this process reads."""
        index = self.indices(step)
        if self._share == self.batch:
            return index
        return index[ranks.rank() * self._share : (ranks.rank() + 1) * self._share]

    def _stream(self) -> AbstractContextManager[random.Source]:
        """The random numbers of the step, drawn for all processes alike."""
        return random.stream(self.spec.training.seed, self.step, ranks.rank(), ranks.world())

    def _loss(self, x: Tensor | None, weight: float, source: random.Source) -> tuple[Tensor, Tensor]:
        if not self.engine.compile:
            return self._evaluate(x, weight)
        if self._compiled is None:
            # One look at the step, in a stream of its own, notes which random tensors it asks for; they
            # are drawn beforehand and the compiled step takes them as inputs.
            recorder = random.Recorder(random.Stream(0))
            with random.use(recorder), torch.no_grad():
                self._evaluate(x, weight)
            self._requests = recorder.requests
            self._compiled = torch.compile(self._replayed)
        noise = [source.draw(request) for request in self._requests]
        weight_tensor = torch.tensor(weight, dtype=self.engine.dtype, device=self.engine.device)
        compiled: tuple[Tensor, Tensor] = self._compiled(x, weight_tensor, noise)
        return compiled

    def _replayed(self, x: Tensor | None, weight: Tensor, noise: list[Tensor]) -> tuple[Tensor, Tensor]:
        with random.use(random.Replay(noise)):
            return self._evaluate(x, weight)

    def _evaluate(self, x: Tensor | None, weight: float | Tensor) -> tuple[Tensor, Tensor]:
        with self.engine.autocast():
            terms = self.model.terms(
                x,
                self.samples,
                hold=self.objective.hold,
                groups=self.objective.groups,
            )
        loss = self.objective(terms, weight)
        for auxiliary in terms.auxiliary.values():
            loss = loss + auxiliary
        # A mean over stacked fits would divide each one's gradient by their number.
        return loss * self.fits, torch.stack([loss.detach(), *_means(terms)])

    # -- boundaries ----------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train until the budget, early stopping, a signal, or a non-finite number."""
        self.model.train()
        self._remember()
        saved = time.monotonic()
        reason = "the budget is used"
        begins = self.step == 0 and not self._resumed
        if begins:
            self._validate()
            self._remember()
            self._keep_snapshot()
        with self._listening():
            if begins:
                # Whatever ends the run from here on, it can be resumed.
                self.save()
            self._clock = time.perf_counter()
            while self.step < self.steps:
                if self._told is not None:
                    break
                if self._patience_is_over():
                    reason = f"no better validation ELBO since step {self.best_step}"
                    break
                row = self.update()
                self._buffer[self._filled] = row
                self._filled += 1
                validate = self.step % self.validate_every == 0 or self.step == self.steps
                if validate or self._filled == BOUNDARY:
                    self._check()
                    if validate:
                        self._validate()
                    self._remember()
                    self._keep_snapshot()
                    if time.monotonic() - saved > 60 * self.spec.training.save_every:
                        self.save()
                        saved = time.monotonic()
                    self._clock = time.perf_counter()
            self._tick()
            self.save()
        if self._told is not None and self.step < self.steps:
            name = signal.Signals(self._told).name
            return self._outcome(False, f"{name} received at step {self.step}")
        if self.spec.training.keep == "best" and self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()
        return self._outcome(True, reason)

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`load_state` needs to go on bit for bit."""
        return {
            "version": STATE_VERSION,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_step": self.best_step,
            "best_elbo": self.best_elbo,
            "best_weights": self.best_weights,
            "pending": self._buffer[: self._filled].clone(),
            "metrics_bytes": self.sink.position(),
            "engine": self.engine.to_dict(),
            "next_snapshot": self._next_snapshot,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`.

        Raises:
            RunError: the state belongs to another format or another model.
        """
        if state.get("version") != STATE_VERSION:
            raise RunError(
                f"state: format version {state.get('version')!r}, this varflow reads {STATE_VERSION}; "
                "resume with the varflow that wrote it, or fit again"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise RunError(
                f"state: does not fit the model of this run's spec ({error}); fit again"
            ) from error
        self.step, self.seconds, self._resumed = state["step"], state["seconds"], True
        self.best_step, self.best_elbo = state["best_step"], state["best_elbo"]
        self.best_weights = state["best_weights"]
        self._next_snapshot = state.get("next_snapshot", 0)
        pending = state["pending"]
        self._filled = self._carried = len(pending)
        self._buffer[: self._filled] = pending.to(self._buffer)

    def save(self) -> None:
        """Hand a resumable state to the sink."""
        self.sink.save(self.state())

    def kept_weights(self) -> dict[str, Tensor]:
        """The weights that the run stands for: best on validation, or the last."""
        if self.spec.training.keep == "best" and self.best_weights is not None:
            return self.best_weights
        return self.model.state_dict()

    def _check(self) -> None:
        rows = self._buffer[: self._filled].double().cpu()
        norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
        weights_finite = bool(torch.stack([n.to(self._buffer) for n in norms]).isfinite().all())
        if not (bool(rows.isfinite().all()) and weights_finite):
            self._diagnose()
        took = self._tick()
        record: Record = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 4),
            "split": "train",
            **dict(zip(_METRICS, rows.mean(0).tolist(), strict=True)),
            # Of every update; six digits, so that the file stays small.
            "elbos": [float(f"{elbo:.6g}") for elbo in rows[:, _METRICS.index("elbo")].tolist()],
            "beta": self.objective.weight(self.step - 1),
            "lr": self.optimizer.param_groups[0]["lr"],
            "steps_per_second": (self._filled - self._carried) / took if took else 0.0,
            "seconds": round(self.seconds, 3),
            **self._monitored(),
        }
        self._filled = self._carried = 0
        self.sink.record(record)
        self.progress.train(record)

    @torch.no_grad()
    def _validate(self) -> None:
        size = self.dataset.sizes["validation"]
        if not size:
            return
        self.model.eval()
        total = torch.zeros(len(_METRICS), dtype=torch.float64, device=self.engine.device)
        counts = self._no_counts()
        for chunk, index in self._validation_chunks(size)[ranks.rank() :: ranks.world()]:
            with random.stream(VALIDATION_SEED, chunk), self.engine.autocast():
                x = self.dataset.batch("validation", index).x
                terms = self.model.terms(
                    x, self._validation_samples, groups=self.objective.groups
                )
            loss = self.objective(terms, self.objective.final)
            total += torch.stack([loss, *_means(terms)]).double() * len(index)
            if counts is not None and terms.codes is not None:
                counts += count(terms.codes, len(counts), counts.dtype)
        self.model.train()
        means = (ranks.all_reduce(total) / size).tolist()
        if not all(map(math.isfinite, means)):
            self._diagnose_validation()
        record: Record = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 4),
            "split": "validation",
            **dict(zip(_METRICS, means, strict=True)),
            **({} if counts is None else used(ranks.all_reduce(counts))),
            "seconds": round(self.seconds, 3),
        }
        self.sink.record(record)
        self.progress.validation(record)
        score = -record["loss"] if self._validation_samples > 1 else record["elbo"]
        if score > self.best_elbo:
            self.best_elbo, self.best_step = score, self.step
            self.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def _monitored(self) -> Record:
        """What the model itself finds worth a curve: plain numbers, or a list over the fits."""
        if isinstance(self.model, Ensemble):
            return self.model.monitor()
        monitor = getattr(self.model.posterior, "monitor", None)
        return {**exact_errors(self.model), **({} if monitor is None else monitor())}

    def _no_counts(self) -> Tensor | None:
        """Where a validation counts the codes of a codebook; None where there is none."""
        codebook = getattr(getattr(self.model, "posterior", None), "codebook", None)
        return None if codebook is None else torch.zeros_like(codebook.counts, dtype=torch.float64)

    def _keep_snapshot(self) -> None:
        """The weights of a fit to a target now and then, ever more rarely: they become an animation."""
        if isinstance(self.dataset, Unobserved) and self.step >= self._next_snapshot:
            self.sink.snapshot(self.step, self.model.state_dict())
            self._next_snapshot = max(self.step + BOUNDARY, round(self.step * _SPACING))

    def _patience_is_over(self) -> bool:
        patience = self.spec.training.patience
        # In a warm-up the bound that is scored is not the one that is followed.
        begin = max(self.best_step, round(self.spec.get("warmup", 0.0) * self.steps_per_epoch))
        return (
            patience is not None and self.step - begin >= patience * self.steps_per_epoch
        )

    def _tick(self) -> float:
        now = time.perf_counter()
        took, self._clock = now - self._clock, now
        self.seconds += took
        return took

    def _remember(self) -> None:
        self._good = (self.step, *guard.snapshot(self.model, self.optimizer))

    def _outcome(self, finished: bool, reason: str) -> Outcome:
        return Outcome(
            self.step, finished, reason, self.seconds, self.best_step, self.best_elbo, self._told
        )

    @property
    def _told(self) -> int | None:
        """The signal to stop with, which all processes know of at the same step."""
        return self._signal if self._exchange is None else self._exchange.signal

    # -- what can go wrong ---------------------------------------------------------------------

    def _diagnose(self) -> None:
        """Walk again from the last good state, looking at everything, and raise what is found."""
        noticed, good = self.step, self._good[0]
        self._restore()
        finding, at = guard.Finding(), noticed
        while self.step < noticed and finding.where is None:
            at = self.step
            with self._stream(), self.engine.autocast():
                x = self.dataset.batch("train", self._rows(self.step)).x
                guard.inspect_terms(self.model, x, self.samples, finding)
            finding.where = ranks.first_of(finding.where)
            if finding.where is None:
                self.update()
                guard.inspect_gradients(self.model, finding)
        if finding.where is None:
            guard_parameters = guard.Finding()
            for name, parameter in self.model.named_parameters():
                guard_parameters.look(f"parameter '{name}' after the update", parameter)
            finding = guard_parameters
        self._restore()
        self.save()
        where = finding.where or "the replay, run without compilation, stayed finite"
        settings = self.spec.optimizer
        raise NonFiniteError(
            f"step {at}: {where}. The last good state (step {good}) is kept; "
            + guard.advice(settings.lr, settings.clip, self.engine.precision)
        )

    def _validation_chunks(self, size: int) -> list[tuple[int, Tensor]]:
        """(number, which pictures): as many at once as their samples leave room for."""
        parts = torch.arange(size, device=self.engine.device).split(
            max(1, _VALIDATION_CHUNK // self._validation_samples)
        )
        return list(enumerate(parts))

    def _diagnose_validation(self) -> None:
        """Name what is not finite on the validation split; training was, up to here."""
        finding = guard.Finding()
        self.model.eval()
        size = self.dataset.sizes["validation"]
        for chunk, index in self._validation_chunks(size):
            with random.stream(VALIDATION_SEED, chunk), self.engine.autocast():
                x = self.dataset.batch("validation", index).x
                guard.inspect_terms(self.model, x, 1, finding)
        at, good = self.step, self._good[0]
        self._restore()
        self.save()
        settings = self.spec.optimizer
        raise NonFiniteError(
            f"validation at step {at}: {finding.where or 'a sum over the split is not finite'}. "
            f"The last good state (step {good}) is kept; "
            + guard.advice(settings.lr, settings.clip, self.engine.precision)
        )

    def _restore(self) -> None:
        step, weights, optimizer = self._good
        self.model.load_state_dict(weights)
        copies = {
            **optimizer,
            "state": {
                index: {k: v.clone() if isinstance(v, Tensor) else v for k, v in entry.items()}
                for index, entry in optimizer["state"].items()
            },
        }
        self.optimizer.load_state_dict(copies)
        self.step, self._filled = step, 0

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the loop after the current step; a second one ends the program."""

        def note(number: int, frame: object) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number

        try:
            previous = [signal.signal(number, note) for number in WATCHED]
        except ValueError:
            # Signals can be watched from the main thread alone; elsewhere the caller keeps them.
            yield
            return
        try:
            yield
        finally:
            for number, handler in zip(WATCHED, previous, strict=True):
                signal.signal(number, handler)


def total_steps(spec: RunSpec, steps_per_epoch: int) -> int:
    """Updates in the budget of ``spec``."""
    if spec.training.steps is not None:
        return spec.training.steps
    assert spec.training.epochs is not None
    return max(1, round(spec.training.epochs * steps_per_epoch))


def _means(terms: Terms) -> list[Tensor]:
    log_likelihood, kl = terms.log_likelihood.detach().mean(), terms.kl.detach().mean()
    return [log_likelihood - kl, log_likelihood, kl, terms.draw.ladj.detach().mean()]
