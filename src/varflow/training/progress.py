"""Progress of a fit: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

Record = dict[str, Any]


def describe(record: Record) -> str:
    """The terms of a metrics record in one line; nats, of x in the units of the data."""
    parts = [
        f"ELBO {record['elbo']:.2f}",
        f"log p(x|z) {record['log_likelihood']:.2f}",
        f"KL {record['kl']:.2f}",
    ]
    if record["log_likelihood"] == record["preprocessing_ladj"]:
        # Nothing is said of x given z: the prior is of x itself.
        parts = [f"log p {record['elbo']:.2f}"]
    if record.get("ladj"):
        parts.append(f"ladj {record['ladj']:.2f}")
    if "perplexity" in record:
        parts.append(f"perplexity {record['perplexity']:.1f}, {100 * record['usage']:.0f} % of codes in use")
    return "  ".join(parts)


class Progress:
    """Shows what :class:`~varflow.training.Loop` reports.

    Args:
        steps: updates of the whole run.
        stream: where to write; stderr without it.
        quiet: say nothing.
        every: seconds between two lines where there is no terminal.
    """

    def __init__(
        self, steps: int, stream: TextIO | None = None, quiet: bool = False, every: float = 10.0
    ) -> None:
        self.steps, self.quiet, self.every = steps, quiet, every
        self.stream = stream or sys.stderr
        self._live = not quiet and self.stream.isatty()
        self._last = time.monotonic()
        self._validation = ""
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(bar_width=20),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=Console(file=self.stream),
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self.steps)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, message: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=self.stream, flush=True)

    def train(self, record: Record) -> None:
        """A record of the training split."""
        rate = record["steps_per_second"]
        text = f"{describe(record)}  {rate:.0f} steps/s{self._validation}"
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], description=text)
        elif time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            left = (self.steps - record["step"]) / rate if rate else 0.0
            self.say(f"step {record['step']}/{self.steps}  {text}  {_clock(left)} left")

    def validation(self, record: Record) -> None:
        """A record of the validation split."""
        self._validation = f"  validation ELBO {record['elbo']:.2f}"
        if "perplexity" in record:
            self._validation += f", perplexity {record['perplexity']:.1f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
