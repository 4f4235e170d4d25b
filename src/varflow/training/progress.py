"""Progress of a fit: its terms in one line."""

from __future__ import annotations

from typing import Any, TextIO

from varflow.core.live import EVERY, Live

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
    """Shows what :class:`~varflow.training.Loop` reports: in a notebook and on a terminal a line that is replaced in
    place; elsewhere a plain line every ten seconds, after the first minute one a minute.

    Args:
        steps: updates of the whole run.
        stream: where to write; standard error without it, and in a notebook the output of the cell.
        quiet: say nothing.
        every: seconds between two plain lines in the first minute.
    """

    def __init__(
        self, steps: int, stream: TextIO | None = None, quiet: bool = False, every: float = EVERY
    ) -> None:
        self.steps = steps
        self._live = Live(stream, quiet, every)
        self._validation = ""

    def __enter__(self) -> Progress:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(*error)

    def say(self, message: str) -> None:
        """A line that stays."""
        self._live.say(message)

    def train(self, record: Record) -> None:
        """A record of the training split."""
        words = describe(record) + self._validation
        self._live.show(record["step"], self.steps, "step", words, "steps", record["steps_per_second"])

    def validation(self, record: Record) -> None:
        """A record of the validation split."""
        self._validation = f"  validation ELBO {record['elbo']:.2f}"
        if "perplexity" in record:
            self._validation += f", perplexity {record['perplexity']:.1f}"
