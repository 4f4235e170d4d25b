"""How far an estimate is, where somebody can see it."""

from __future__ import annotations

from typing import TextIO

from varflow.core.live import EVERY, Live


class Progress:
    """``with Progress() as progress: evaluate(..., progress=progress)``.

    A line that is replaced in a notebook and on a terminal, which is cleared at the end; elsewhere a plain line every
    ten seconds, after the first minute one a minute. All on standard error, so that a table on standard output stays
    clean.

    Args:
        unit: what is counted.
        quiet: say nothing.
        stream: where to write; standard error without it.
        every: seconds between two plain lines.
    """

    def __init__(
        self, unit: str = "points", quiet: bool = False, stream: TextIO | None = None, every: float = EVERY
    ) -> None:
        self._unit, self._live = unit, Live(stream, quiet, every, stays=False)

    def __call__(self, done: int, total: int) -> None:
        self._live.show(done, total, unit=self._unit)

    def __enter__(self) -> Progress:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(*error)
