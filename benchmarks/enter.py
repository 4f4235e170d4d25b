"""From Enter to the result: what a short ``varflow fit`` spends before its first update, in the loop, and after it.

    python -m benchmarks.enter
    python -m benchmarks.enter --against /path/of/another/checkout/src --blocks 5

Each fit is a process of its own, marked at its first update and at the end of its loop. CPU time (user and system, of
all threads) stands beside wall time: on a machine that does other things meanwhile it is the one to compare.
``--demo`` adds one run of ``varflow demo``, which takes a minute or two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

MODULE = "benchmarks.enter"
#: What a process runs: the command line, with the clock read at three places.
MARKED = """
import json, os, sys, time
def clock():
    used = os.times()
    return [time.time(), used.user + used.system + used.children_user + used.children_system]
marks, out = {}, sys.argv.pop(1)
from varflow.cli import main
# Imported a little earlier than by the command itself, which costs the same.
from varflow.training.loop import Loop
run, update = Loop.run, Loop.update
def first(loop):
    marks.setdefault("start", clock())
    return update(loop)
def whole(loop):
    outcome = run(loop)
    marks["loop"] = clock()
    return outcome
Loop.run, Loop.update = whole, first
try:
    main()
finally:
    marks["report"] = clock()
    with open(out, "w") as file:
        json.dump(marks, file)
"""
STAGES = ("start", "loop", "report")
FITS = {
    "fit dense --steps 20": ["fit", "dense", "--steps", "20"],
    "the same, --no-report": ["fit", "dense", "--steps", "20", "--no-report"],
    "fit energy --steps 20": ["fit", "energy", "--steps", "20"],
    "fit digits --epochs 20": ["fit", "digits", "--epochs", "20"],
}
#: Seconds that a quiet machine may take before the first update, and after the last.
LIMITS = {"start": 2.5, "report": 3.0}


def once(words: Sequence[str], source: Path, threads: int) -> dict[str, tuple[float, float]]:
    """(wall, CPU) seconds of each stage and of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "marks.json"
        command = [sys.executable, "-c", MARKED, str(told), *words, "--quiet", "--threads", str(threads)]
        command += ["--out", str(Path(folder) / "run")]
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}
        before, began = os.times(), time.time()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        after, ended = os.times(), time.time()
        marks: dict[str, Any] = json.loads(told.read_text())
    used = sum(after[2:4]) - sum(before[2:4])
    found, last = {}, [began, 0.0]
    for stage in STAGES:
        found[stage] = (marks[stage][0] - last[0], marks[stage][1] - last[1])
        last = marks[stage]
    return {**found, "whole process": (ended - began, used)}


def bare(threads: int) -> tuple[float, float]:
    """(wall, CPU) seconds of ``import torch`` alone, the floor of every start."""
    before, began = os.times(), time.time()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, "-c", "import torch"], check=True, env=environment)
    after = os.times()
    return time.time() - began, sum(after[2:4]) - sum(before[2:4])


def demo(source: Path, threads: int) -> tuple[float, float]:
    """(wall, CPU) seconds of ``varflow demo``."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}
        before, began = os.times(), time.time()
        command = [sys.executable, "-m", "varflow", "demo", "--quiet", "--out", folder]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        after = os.times()
    return time.time() - began, sum(after[2:4]) - sum(before[2:4])


def _shown(times: Sequence[tuple[float, float]]) -> list[str]:
    wall, used = np.median(np.asarray(times), 0)
    return [f"{wall:.2f}", f"{used:.2f}"]


def main() -> None:
    parser = report.parser(__doc__ or "", blocks=5, steps=1, warmup=0)
    parser.add_argument("--against", type=Path, help="src folder of another checkout, measured in turn with this one")
    parser.add_argument("--fits", nargs="*", choices=sorted(FITS), default=list(FITS), help="which commands")
    parser.add_argument("--demo", action="store_true", help="time the demo too, once")
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[1] / "src"
    sources = {"this": here} if options.against is None else {"before": options.against.resolve(), "this": here}
    torch_alone: list[tuple[float, float]] = []
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for block in range(options.blocks + 1):
        torch_alone.append(bare(options.threads))
        for fit in options.fits:
            for name, source in sources.items():
                for stage, seconds in once(FITS[fit], source, options.threads).items():
                    # The first round fills the caches of files and of bytecode.
                    if block:
                        found.setdefault((fit, stage, name), []).append(seconds)
    rows = []
    for fit in options.fits:
        for stage in (*STAGES, "whole process"):
            cells = [cell for name in sources for cell in _shown(found[fit, stage, name])]
            rows.append([fit, stage, *cells, f"{LIMITS[stage]:.1f}" if stage in LIMITS else "–"])
    head = ["command", "stage", *(f"{name}, {what} s" for name in sources for what in ("wall", "CPU")), "at most"]
    alone = _shown(torch_alone[1:])
    parts = [
        "Medians of whole processes. *Start* ends at the first update, *loop* with the last validation, *report* "
        f"with the process. `import torch` alone takes {alone[0]} s of wall time here, {alone[1]} s of CPU time.",
        report.table(head, rows),
    ]
    if options.demo:
        taken = [[name, *(f"{seconds:.0f}" for seconds in demo(source, options.threads)), "90"]
                 for name, source in sources.items()]  # fmt: skip
        parts.append(report.table(["varflow demo", "wall s", "CPU s", "at most"], taken))
    report.write(MODULE, options, "From Enter to the result", parts)


if __name__ == "__main__":
    sys.exit(main())
