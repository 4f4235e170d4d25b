"""How far something is, told as its reader can take it.

In a notebook and on a terminal one line that is replaced in place; in a file, a pipe or a terminal that cannot move
its cursor a plain line every 10 seconds, after the first minute one a minute. Nothing where nothing is to be said.
"""

from __future__ import annotations

import html
import os
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, TextIO

#: Seconds between two plain lines in the first minute; from then on :data:`_RARER` times as many.
EVERY = 10.0
_RARER = 6

#: Seconds between two pictures of a line in a notebook: each is a message that the notebook keeps until the next.
_FRAME = 0.25
#: Seconds that a rate is measured over.
_WINDOW = 60.0


def colours(stream: TextIO | None) -> bool:
    """Whether text on ``stream`` may be coloured.

    Of what is set the first counts: NO_COLOR (https://no-color.org), FORCE_COLOR or CLICOLOR_FORCE, TERM=dumb,
    CLICOLOR=0; else a terminal has colours and a file has none.
    """
    if os.environ.get("NO_COLOR"):
        return False
    forced = os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE")
    if forced:
        return forced.lower() not in ("0", "false")
    return is_terminal(stream) and os.environ.get("CLICOLOR") != "0"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether ``stream`` is a terminal whose lines can be written over."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    except ValueError:
        # It has been closed.
        return False


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this program."""
    interactive = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive is not None else None
    return getattr(shell, "kernel", None) is not None


def clock(seconds: float) -> str:
    """``1:02:03``, or ``2:03`` below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Live:
    """``with Live() as live: live.show(done, total)``.

    Args:
        stream: where to write; standard error without it, and in a notebook the output of the cell.
        quiet: say nothing.
        every: seconds between two plain lines in the first minute, where nothing can be written over.
        stays: whether the last picture of the line is left on a terminal.

    Attributes:
        kind: how it is told.
    """

    kind: Literal["quiet", "notebook", "terminal", "log"]

    def __init__(
        self, stream: TextIO | None = None, quiet: bool = False, every: float = EVERY, stays: bool = True
    ) -> None:
        told, stream = stream is not None, sys.stderr if stream is None else stream
        if quiet or stream is None:
            self.kind = "quiet"
        elif not told and in_notebook():
            self.kind = "notebook"
        else:
            self.kind = "terminal" if is_terminal(stream) else "log"
        self._stream, self._every, self._stays = stream, every, stays
        #: Of rich, and of IPython.
        self._line: Any = None
        self._cell: Any = None
        self._held: _Picture | None = None
        self._drawn = -_FRAME
        self._begin()

    def _begin(self) -> None:
        self._began = self._told = time.monotonic()
        self._count_from(0, 0)

    def _count_from(self, done: int, total: int) -> None:
        #: When how many were done, in the last minute.
        self._seen = deque([(time.monotonic(), done)])
        self._done, self._total = done, total

    def __enter__(self) -> Live:
        self._begin()
        if self.kind == "terminal":
            self._line = self._made_line()
            self._line.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._line is not None:
            self._line.stop()
            self._line = None
        elif self.kind == "notebook" and self._held is not None:
            self._draw()

    def show(
        self, done: int, total: int, name: str = "", words: str = "", unit: str = "", rate: float | None = None
    ) -> None:
        """``done`` of ``total``: the line as it is now.

        Args:
            done, total: how far it is, in ``unit``.
            name: before the numbers.
            words: what else there is to say.
            unit: plural, of what is counted.
            rate: of them in a second; by the clock without it.
        """
        if self.kind == "quiet":
            return
        now = time.monotonic()
        if done < self._done or total != self._total != 0:
            self._count_from(done, total)
        self._done, self._total = done, total
        if rate is None:
            rate = self._measured(now)
        head = " ".join(filter(None, (name, f"{done}/{total}", "" if name else unit)))
        left = f"{clock((total - done) / rate)} left" if rate > 0 and done < total else ""
        more = "  ".join(filter(None, (f"{_rate(rate)} {unit}/s" if rate > 0 else "", words)))
        self._held = _Picture(done, total, head, clock(now - self._began), left, more)
        if self.kind == "notebook" and now - self._drawn >= _FRAME:
            self._draw()
        elif self.kind == "log" and now - self._told >= self._every * (1 if now - self._began < 60 else _RARER):
            self._told = now
            self.say(self._held.plain())

    def already(self, done: int) -> None:
        """So many were done before, by others or at another time: the rate is that of those to come."""
        self._count_from(done, 0)

    def _measured(self, now: float) -> float:
        """How many are done in a second, in the last minute: what a file had of them comes faster than the rest."""
        while len(self._seen) > 1 and now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()
        if now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, self._done))
        since, before = self._seen[0]
        return (self._done - before) / (now - since) if now > since else 0.0

    def say(self, message: str) -> None:
        """A line that stays."""
        if self.kind == "quiet":
            return
        if self._line is not None:
            self._line.console.print(message, markup=False, highlight=False, soft_wrap=True)
        elif self.kind == "notebook":
            # Notebooks paint what goes to standard error red, as if it were a mistake.
            print(message, flush=True)
        else:
            print(message, file=self._stream, flush=True)

    def _made_line(self) -> Any:
        from rich.console import Console
        from rich.live import Live as Line
        from rich.text import Text

        system: Any = "auto" if colours(self._stream) else None
        console = Console(file=self._stream, force_terminal=True, color_system=system)

        def now() -> Any:
            gone = clock(time.monotonic() - self._began)
            if self._held is None:
                return Text(f"starting  {gone}")
            line = self._held.line(gone, console.width, console.options.ascii_only)
            return Text.assemble(*line, no_wrap=True, overflow="ellipsis")

        # What is printed to a file meanwhile is not for the terminal.
        aside = is_terminal(sys.stdout)
        return Line(
            console=console, get_renderable=now, refresh_per_second=4, transient=not self._stays,
            redirect_stdout=aside,
        )  # fmt: skip

    def _draw(self) -> None:
        """The line in the output of the cell, in place of the one before; without any widget."""
        from IPython.display import display

        assert self._held is not None
        bundle = {"text/plain": self._held.plain(), "text/html": self._held.page()}
        self._drawn, self._held = time.monotonic(), None
        if self._cell is None:
            self._cell = display(bundle, raw=True, display_id=True)
        else:
            self._cell.update(bundle, raw=True)


@dataclass(frozen=True)
class _Picture:
    """The line as it is now: how far, and what else there is to say."""

    done: int
    total: int
    head: str
    took: str
    left: str
    words: str

    def plain(self) -> str:
        time = self.left or (f"in {self.took}" if self.done >= self.total else self.took)
        return "  ".join(filter(None, (self.head, time, self.words)))

    def line(self, gone: str, width: int, ascii_only: bool) -> list[Any]:
        """What fits into ``width``: where it is and how long it takes come first."""
        cells = 20 if width >= 100 else 10
        full = min(cells * self.done // max(self.total, 1), cells)
        one, two = "#-" if ascii_only else "━─"
        bar = [(one * full, "green"), (two * (cells - full), "bright_black")]
        times = ", ".join(filter(None, (gone, self.left)))
        return [f"{self.head} ", *bar, f" {times}  {self.words}"]

    def page(self) -> str:
        """HTML, in the colours and at the width of the page that it is in."""
        return (
            '<div style="font-family: monospace; white-space: pre-wrap">'
            f'<progress value="{self.done}" max="{max(self.total, 1)}" style="width: 12em; vertical-align: middle">'
            f"</progress> {html.escape(self.plain())}</div>"
        )


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
