"""The processes that take the trials of a sweep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from varflow.core.errors import RunError, VarflowError
from varflow.runs import trials as working
from varflow.runs.trials import Plan, Stopped

#: Seconds between two looks at what the processes have done.
_EVERY = 0.3
#: How a process of a sweep ends that was told to, and one that says what is wrong.
_TOLD, _WRONG = 3, 4
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Told(Protocol):
    """Who tells how far a sweep is."""

    def look(self) -> None:
        """Tell of the trials that have ended since the last look."""

    def say(self, line: str) -> None:
        """A line of its own."""


def in_this_process(plan: Plan, data: Any, told: Told) -> int | None:
    """All trials one after another; the signal that ended them, or None."""
    try:
        working.work(plan, data, ended=told.look)
    except Stopped as stopped:
        return stopped.signal
    return None


def in_several(plan: Plan, data: Any, jobs: int, told: Told) -> int | None:
    """Trials in processes of their own; one that dies is replaced. The signal that ended them, or None.

    Raises:
        VarflowError: what is wrong with every trial alike.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // jobs)
    said = context.SimpleQueue()

    def begin() -> Any:
        process = context.Process(target=_process, args=(plan, data, threads, os.getpid(), said))
        process.start()
        return process

    alive = [begin() for _ in range(jobs)]
    wrong, deaths = False, 0
    with _watched() as received:
        passed = False
        while alive:
            time.sleep(_EVERY)
            told.look()
            if received and not passed:
                passed = True
                for process in alive:
                    process.terminate()
            for process in [one for one in alive if one.exitcode is not None]:
                alive.remove(process)
                process.join()
                wrong = wrong or process.exitcode == _WRONG
                if process.exitcode in (0, _TOLD, _WRONG) or received or wrong:
                    continue
                deaths += 1
                if deaths > working.ATTEMPTS * max(jobs, plan.trials or jobs):
                    raise RunError("sweep: its processes die again and again; see what the system says of them")
                told.say(f"a process of the sweep died ({_how(process.exitcode)}); another takes up its trial")
                alive.append(begin())
    told.look()
    if wrong:
        raise said.get()
    return received[0] if received else None


def _process(plan: Plan, data: Any, threads: int, parent: int, said: Any) -> None:
    """A process of the sweep."""
    if hasattr(os, "setsid"):
        # A signal from the terminal reaches the first process alone, which passes it on once.
        os.setsid()
    try:
        with working.quiet_engine():
            working.work(plan, data, threads, parent=parent)
    except (Stopped, KeyboardInterrupt):
        sys.exit(_TOLD)
    except VarflowError as error:
        said.put(type(error)(str(error)))
        sys.exit(_WRONG)


@contextmanager
def _watched() -> Iterator[list[int]]:
    """The signals that come inside; where this is not the main thread, none."""
    received: list[int] = []
    try:
        before = [signal.signal(n, lambda number, frame: received.append(number)) for n in _SIGNALS]
    except ValueError:
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _how(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"
