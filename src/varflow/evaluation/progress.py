"""A progress bar for :func:`varflow.evaluation.evaluate`, where somebody can see it."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """``with Progress() as progress: evaluate(..., progress=progress)``.

    Draws to standard error, so that a table on standard output stays clean; silent without a
    terminal.
    """

    def __init__(self, console: Console | None = None, unit: str = "points") -> None:
        console = console or Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), unit, TimeRemainingColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(unit, total=None)

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
