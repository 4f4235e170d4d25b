"""How anything is timed here: interleaved blocks, medians, and intervals of their ratios.

Contestants take turns in one process, in a fresh random order each round, so that whatever slows the
machine down for a while slows all of them. A round's time of a contestant is the mean over a block of
consecutive steps; its figure is the median over rounds. Ratios of medians come with a 95 % interval
from a bootstrap that resamples whole rounds, and so keeps what contestants had in common.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes:
        name: what the tables call it.
        step: one unit of work.
        reset: called before each block, untimed.
        repeat: units of work for each step of the others (cheap work needs more for a good clock).
        block: does so many units of work and gives back the seconds it took, in place of ``step``: for a
            contestant in a process of its own.
    """

    name: str
    step: Callable[[], object] | None = None
    reset: Callable[[], object] | None = None
    repeat: int = 1
    block: Callable[[int], float] | None = None


class Worker:
    """A contestant in a process of its own: it reads counts of steps, a line each, and answers with seconds.

    Attributes:
        started: the seconds it took to begin, which are its first line.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.started = self._answer()

    def __call__(self, count: int) -> float:
        assert self.process.stdin is not None
        print(count, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args)}: it ended")  # type: ignore[arg-type]
        return float(line)


def serve(step: Callable[[], object], began: float) -> None:
    """The other side of :class:`Worker`, for a step."""
    print(time.perf_counter() - began, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, flush=True)


#: name → what is read before and after a block. CPU time, of all threads together, is what one thread takes on
#: a machine that does other things meanwhile.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleave(
    contestants: Sequence[Contestant],
    blocks: int,
    steps: int,
    settle: int = 3,
    seed: int = 0,
    clock: str = "wall",
) -> Times:
    """Seconds per step of each contestant, one number a block.

    ``settle`` steps before each block are not timed: they bring the contestant's arrays back into the
    caches, where a training loop would have them.
    """
    times: Times = {contestant.name: [] for contestant in contestants}
    order = list(contestants)
    shuffle, now = random.Random(seed), CLOCKS[clock]
    for _ in range(blocks):
        shuffle.shuffle(order)
        for contestant in order:
            if contestant.reset is not None:
                contestant.reset()
            count = steps * contestant.repeat
            if contestant.block is not None:
                contestant.block(settle)
                times[contestant.name].append(contestant.block(count) / count)
                continue
            step = contestant.step
            assert step is not None
            for _ in range(settle):
                step()
            start = now()
            for _ in range(count):
                step()
            times[contestant.name].append((now() - start) / count)
    return times


class Ratio(NamedTuple):
    """A ratio of medians with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(
    ours: Sequence[float], theirs: Sequence[float], resamples: int = 4000, offset: bool = False
) -> Ratio:
    """median(ours) / median(theirs); with ``offset`` their difference."""
    a, b = np.asarray(ours), np.asarray(theirs)
    rounds = np.random.default_rng(0).integers(0, len(a), (resamples, len(a)))
    above, below = np.median(a[rounds], 1), np.median(b[rounds], 1)
    drawn = above - below if offset else above / below
    value = np.median(a) - np.median(b) if offset else np.median(a) / np.median(b)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Ratio(float(value), float(low), float(high))


@dataclass(frozen=True)
class Bar:
    """A claim to check: ``ours / theirs`` is at most ``must``, and better at most ``aim``."""

    ours: str
    theirs: str
    must: float
    aim: float | None = None


def times_table(times: Mapping[str, Sequence[float]], unit: float = 1e-3) -> list[list[str]]:
    """Median, 10th and 90th percentile of each contestant, in ``unit`` seconds."""
    rows = []
    for name, values in times.items():
        low, high = np.quantile(values, [0.1, 0.9]) / unit
        rows.append([name, f"{np.median(values) / unit:.3g}", f"{low:.3g}–{high:.3g}"])
    return rows


def bars_table(times: Mapping[str, Sequence[float]], bars: Sequence[Bar]) -> list[list[str]]:
    """Each ratio with its interval, its bars, and which of them it clears."""
    rows = []
    for bar in bars:
        found = ratio(times[bar.ours], times[bar.theirs])
        aim = "–" if bar.aim is None else f"{bar.aim:.2f}"
        rows.append([f"{bar.ours} / {bar.theirs}", str(found), f"{bar.must:.2f}", aim, verdict(found, bar)])
    return rows


def verdict(found: Ratio, bar: Bar) -> str:
    if bar.aim is not None and found.value <= bar.aim:
        return "aim met"
    return "met" if found.value <= bar.must else "missed"
