"""The training loop: data → batch → posterior → terms → objective → update, and what has to happen now and then.

Between two *boundaries* (some hundred steps, or a validation) nothing is read back from the device.
At a boundary the terms of the steps since the last one are read at once, checked, recorded, and the
state is copied, so that a run that meets a NaN still has its last good state.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from varflow import refusals
from varflow.core import random, ranks
from varflow.core.durations import PATIENCE, VALIDATION
from varflow.core.errors import RankError, RunError, SpecError
from varflow.core.observed import Examples
from varflow.data.dataset import Dataset
from varflow.data.target_batches import TargetBatches
from varflow.ensemble import Ensemble
from varflow.model import Model
from varflow.settings.spec import RunSpec
from varflow.training import guard
from varflow.training.blocks import Blocks
from varflow.training.callbacks import Callbacks, Fitting
from varflow.training.engine import Engine
from varflow.training.exchange import Exchange, Signals
from varflow.training.forward import METRICS, Forward
from varflow.training.graph import Cuda, Graphed
from varflow.training.optimizers import Rate, learning_rate
from varflow.training.progress import Progress, Record
from varflow.training.stopping import Best
from varflow.training.validation import Validation

STATE_VERSION = 2
#: Steps between two looks at the terms.
BOUNDARY = 200
#: Rows that a prior of x itself is started with, at most.
_START_ROWS = 5000
#: Ratio of the steps of two snapshots of a fit to a target.
_SPACING = 1.15


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
        best_step, best_elbo: where the validation bound was best (see :class:`varflow.training.stopping.Best`), and
            its value for x in the units of the data (nats): the ELBO, or the importance-weighted bound where that is
            trained. Its weights are kept with keep="best".
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
        callbacks: look on, and may end the fit.
        fitting: what they see of it.

    Raises:
        SpecError: parts that do not combine, or nothing to train on.
        RunError: (from :meth:`run`) a callback raised an exception; the state has been saved.
        NonFiniteError: (from :meth:`run`) a NaN or an infinity; the message names the first term and module,
            and the last good state has been saved.
    """

    def __init__(
        self,
        model: Model | Ensemble,
        dataset: Dataset | TargetBatches,
        spec: RunSpec,
        engine: Engine,
        sink: Sink,
        progress: Progress,
        callbacks: Callbacks | None = None,
        fitting: Fitting | None = None,
    ) -> None:
        self.model, self.dataset, self.spec, self.engine = model, dataset, spec, engine
        self.sink, self.progress = sink, progress
        self.callbacks = callbacks or Callbacks()
        self.fitting = fitting or Fitting(spec, model, dataset)
        size = dataset.sizes["train"]
        if size < 1:
            raise SpecError("data: the training split is empty; give at least one example")
        self.batch = dataset.step_rows(spec.training.batch)
        self.steps_per_epoch = size // self.batch
        self.steps = total_steps(spec, self.steps_per_epoch)
        self.objective = spec.objective.build(self.steps_per_epoch)
        for member in model.members():
            refusals.check(
                member, dataset.support, self.objective, ranks.world(), dataset.levels, engine.compile
            )
        # What the processes share of a step, each takes an equal part of.
        whole = {"batch": self.batch, "samples": spec.objective.samples}
        shared = {dataset.shared: ranks.share(dataset.shared, whole[dataset.shared])}
        self._share, self.samples = (whole | shared).values()
        self._exchange = Exchange(model.parameters()) if ranks.several() else None
        self._signals = Signals()
        self.forward = Forward(model, self.objective, engine, self.samples)
        self.optimizer = spec.optimizer.build(model)
        self._blocks = Blocks.of(
            model, dataset, self.objective, self.optimizer, spec.optimizer.clip, engine, spec.training.seed,
            self.samples,
        )  # fmt: skip
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._rate = Rate(engine.device, spec.optimizer.lr)
        self._graph: Graphed | None = None
        if engine.graph != "off":
            self._graph = Graphed(self._whole_step, engine.graph, Cuda(engine.device), engine.dtype, progress.say)
            if not dataset.resident:
                # A graph would read the rows of its capture for ever.
                self._graph.give_up("its rows do not lie on the device")
        self._steps = self._graph or self._whole_step
        self.validation = Validation(model, dataset, self.objective, engine, spec.objective.samples)
        self.validate_every = self.steps
        if self.validation.size:
            every = spec.training.validate_every
            self.validate_every = VALIDATION.steps("validate_every", every, self.steps_per_epoch)
        patience = spec.training.patience
        self.patience = patience and PATIENCE.steps("patience", patience, self.steps_per_epoch)
        self.best = Best()
        self.step = 0
        self.seconds = 0.0
        self._buffer = torch.zeros(
            BOUNDARY, len(METRICS), device=engine.device, dtype=engine.dtype
        )
        # Steps since the last record, and how many of them another session took.
        self._filled = self._carried = 0
        self._order: tuple[int, Tensor] | None = None
        self._good = guard.LastGood(model, self.optimizer)
        self._good_position = 0
        self._resumed = False
        self._untold: list[Record] = []
        self._next_snapshot = 0
        self._clock = time.perf_counter()

    # -- the way of the data -------------------------------------------------------------------

    def update(self) -> Tensor:
        """One step: returns the row of metrics, still on the device."""
        if self.spec.optimizer.decay != "none":
            rate = learning_rate(self.spec.optimizer, self.step, self.steps, self.steps_per_epoch)
            self._rate.set(self.optimizer, rate)
        with self.noise() as noise:
            row = self._steps(self.own_rows(self.step), self.objective.weight(self.step), noise)
        self.step += 1
        return row

    def _whole_step(self, rows: Tensor, weight: float | Tensor, noise: random.Source) -> Tensor:
        """From the rows of a step to the update: what a CUDA graph captures."""
        loss, row = self.forward(self.dataset.batch("train", rows), weight, noise)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        if self._exchange is not None:
            row = self._exchange(row, self._signals.received)
        if self.spec.optimizer.clip is not None:
            self.model.clip_gradients(self.spec.optimizer.clip)
        self.optimizer.step()
        return row

    def noise(self) -> AbstractContextManager[random.Source]:
        """The random numbers of the step, drawn for all processes alike."""
        return random.stream(self.spec.training.seed, self.step, ranks.rank(), ranks.world())

    def batch_of(self, step: int) -> Any:
        """What this process reads in a step."""
        return self.dataset.batch("train", self.own_rows(step))

    def own_rows(self, step: int) -> Tensor:
        """The rows of a step that this process takes."""
        rows = self.indices(step)
        if self._share < self.batch:
            rows = rows[ranks.rank() * self._share : (ranks.rank() + 1) * self._share]
        return rows

    def indices(self, step: int) -> Tensor:
        """Rows of the training split in a step: a fresh permutation each epoch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = self.dataset.sizes["train"]
        order = self.dataset.computed_order(self.spec.training.seed, epoch)
        if order is not None:
            return torch.from_numpy(order(position * self.batch, (position + 1) * self.batch))
        # A single row has one order, and where it stands for no data at all every step is an epoch.
        if self._order is None or (self._order[0] != epoch and rows > 1):
            source = random.generator(self.spec.training.seed, "shuffle", epoch)
            self._order = (epoch, torch.randperm(rows, generator=source).to(self.engine.device))
        return self._order[1][position * self.batch : (position + 1) * self.batch]

    # -- now and then --------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train until the budget, early stopping, a callback, a signal, or a non-finite number."""
        self.model.train()
        begins = self.step == 0 and not self._resumed
        if begins:
            self.model.start(self._start_rows)
        self._remember()
        if begins:
            self._validate()
            self._keep_snapshot()
            self._good_position = self.sink.position()
        with self._signals.watched():
            if begins:
                # Whatever ends the run from here on, it can be resumed.
                self.save()
            self._open()
            try:
                reason = self._train()
            except RankError:
                # What was saved last may be minutes old, and the last look at the terms is not.
                self.restore()
                self.sink.save(self.state() | {"metrics_bytes": self._good_position})
                raise
            finally:
                # Whoever reads ahead has nothing more to read.
                self.dataset.read_ahead(self.own_rows, range(0))
            self._tick()
            self.save()
        if self._told is not None and self.step < self.steps:
            return self._outcome(False, f"{signal.Signals(self._told).name} received at step {self.step}")
        if self.spec.training.keep == "best" and self.best.weights is not None:
            self.model.load_state_dict(self.best.weights)
        self.model.eval()
        return self._outcome(True, reason)

    def _train(self) -> str:
        """Steps with what comes between them; returns why they ended."""
        self.dataset.read_ahead(self.own_rows, range(self.step, self.steps))
        saved = time.monotonic()
        self._clock = time.perf_counter()
        while self.step < self.steps:
            if self._told is not None:
                return "a signal"
            if self.fitting.reason is not None:
                return self.fitting.reason
            validated = self.step % self.validate_every == 0
            if validated and self.best.is_over(self.step, self.patience, self.objective.settled):
                return f"no better validation ELBO since step {self.best.step}"
            self._advance()
            validate = self.step % self.validate_every == 0 or self.step == self.steps
            if not (validate or self._filled == BOUNDARY):
                continue
            self._check()
            if validate:
                self._validate()
            self._remember()
            self._keep_snapshot()
            self._tell()
            if time.monotonic() - saved > 60 * self.spec.training.save_every:
                self.save()
                saved = time.monotonic()
            self._clock = time.perf_counter()
        return "the budget is used"

    def _advance(self) -> None:
        """The next update; where compiled code has the whole of it, all before the next look at the terms."""
        count = min(BOUNDARY - self._filled, self.steps - self.step, self._until_validation())
        rows = None if self._blocks is None else self._take(self._blocks, min(count, self._blocks.most))
        if rows is None:
            rows = self.update().unsqueeze(0)
        self._buffer[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def _take(self, blocks: Blocks, count: int) -> Tensor | None:
        """So many updates at once: their rows of metrics, as :meth:`update` has one."""
        steps = range(self.step, self.step + count)
        rates = [
            learning_rate(self.spec.optimizer, step, self.steps, self.steps_per_epoch) for step in steps
        ]
        found = blocks(self.step, [self.objective.weight(step) for step in steps], rates)
        if found is None:
            return None
        loss, kl, ladj = found.unbind(1)
        nothing = torch.zeros_like(kl)
        self.step += count
        # As METRICS has them: nothing is observed, and nothing preprocessed.
        return torch.stack([loss, -kl, nothing, kl, ladj, nothing], 1)

    def _remember(self) -> None:
        """Where the run goes back to when it meets a NaN, or when another process of it ends."""
        self._good.remember(self.step)
        self._good_position = self.sink.position()

    def _until_validation(self) -> int:
        return self.validate_every - self.step % self.validate_every

    def _start_rows(self, split: str) -> Examples:
        """Rows that a part may begin at: the first of a split, as the model sees them, under noise of their own."""
        rows = torch.arange(min(self.dataset.sizes[split], _START_ROWS), device=self.engine.device)
        with random.stream(random.derive(self.spec.training.seed, "start", 0)):
            x = self.dataset.batch(split, rows).seen
        assert x is not None
        return x

    def _check(self) -> None:
        """Read the terms of the steps since the last boundary, and record them."""
        rows = self._buffer[: self._filled].double().cpu()
        norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
        weights_finite = bool(torch.stack([n.to(self._buffer) for n in norms]).isfinite().all())
        if not (bool(rows.isfinite().all()) and weights_finite):
            guard.diagnose(self)
        took = self._tick()
        record = self._record("train", dict(zip(METRICS, rows.mean(0).tolist(), strict=True)))
        record |= {
            # Of every update; six digits, so that the file stays small.
            "elbos": [float(f"{elbo:.6g}") for elbo in rows[:, METRICS.index("elbo")].tolist()],
            "beta": self.objective.weight(self.step - 1),
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "steps_per_second": (self._filled - self._carried) / took if took else 0.0,
            **self.model.monitor(),
        }
        self._filled = self._carried = 0
        self.sink.record(record)
        self.progress.train(record)
        self._untold.append(record)

    def _validate(self) -> None:
        """Score the validation split, and keep the weights where they are the best."""
        if not self.validation.size:
            return
        means, bounds = self.validation()
        record = self._record("validation", means)
        if not all(torch.isfinite(torch.tensor(list(means.values())))):
            found = self.validation.finding() or "a sum over the split is not finite"
            guard.stop(self, f"validation at step {self.step}", found)
        self.sink.record(record)
        self.progress.validation(record)
        self.best.offer(self.step, bounds, self.model.state_dict())
        self.fitting.bound = float(bounds.mean())
        self._untold.append(record)

    def _open(self) -> None:
        """Tell the callbacks that the session begins, and of what was recorded before its first step."""
        self.fitting.begins, self.fitting.steps = self.step, self.steps
        self.fitting.validate_every, self.fitting.settled = self.validate_every, self.objective.settled
        self._call("started")
        self._tell()

    def _tell(self) -> None:
        """Hand the callbacks what was recorded since the last time: last at a boundary, when its state is whole."""
        told, self._untold = self._untold, []
        for record in told:
            self._call("recorded", record)
            if record["split"] == "validation":
                self._call("validated", record)

    def _call(self, method: str, *values: Any) -> None:
        self.fitting.step = self.step
        if self.best.weights is not None:
            self.fitting.best_step, self.fitting.best_bound = self.best.step, self.best.value
        try:
            self.callbacks.call(method, self.fitting, *values)
        except (RunError, RankError):
            self.save()
            raise

    def _record(self, split: str, means: Record) -> Record:
        epoch = round(self.step / self.steps_per_epoch, 4)
        return {"step": self.step, "epoch": epoch, "split": split, **means, "seconds": round(self.seconds, 3)}

    def _keep_snapshot(self) -> None:
        """The weights now and then, ever more rarely, where the data set says that they are worth it."""
        if self.dataset.keeps_snapshots and self.step >= self._next_snapshot:
            self.sink.snapshot(self.step, self.model.state_dict())
            self._next_snapshot = max(self.step + BOUNDARY, round(self.step * _SPACING))

    def _tick(self) -> float:
        now = time.perf_counter()
        took, self._clock = now - self._clock, now
        self.seconds += took
        return took

    def _outcome(self, finished: bool, reason: str) -> Outcome:
        best = self.best
        return Outcome(self.step, finished, reason, self.seconds, best.step, best.value, self._told)

    @property
    def _told(self) -> int | None:
        """The signal to stop with, which all processes know of at the same step."""
        return self._signals.received if self._exchange is None else self._exchange.signal

    # -- states --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`load_state` needs to go on bit for bit."""
        return {
            "version": STATE_VERSION,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best.state(),
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
        if self._graph is not None:
            # The optimizer has new tensors.
            self._graph.forget()
        self.best.load_state(state["best"])
        self._next_snapshot = state["next_snapshot"]
        pending = state["pending"]
        self._filled = self._carried = len(pending)
        self._buffer[: self._filled] = pending.to(self._buffer)

    def save(self) -> None:
        """Hand a resumable state to the sink."""
        self.sink.save(self.state())

    def restore(self) -> None:
        """Go back to the last boundary where everything was finite."""
        self.step, self._filled = self._good.restore(), 0
        if self._graph is not None:
            self._graph.forget("a step that is looked at runs eagerly")

    def kept_weights(self) -> dict[str, Tensor]:
        """The weights that the run stands for: best on validation, or the last."""
        if self.spec.training.keep == "best" and self.best.weights is not None:
            return self.best.weights
        return self.model.state_dict()


def total_steps(spec: RunSpec, steps_per_epoch: int) -> int:
    """Updates in the budget of ``spec``."""
    if spec.training.steps is not None:
        return spec.training.steps
    assert spec.training.epochs is not None
    return max(1, round(spec.training.epochs * steps_per_epoch))
