"""Data larger than memory: peak memory, seconds to the first update and of a whole fit, pictures decoded on the way.

``files``: `density` on .npy files of float32 rows ``[N, 64]``, each fit a process of its own. Those of more than
``--written`` GiB are sparse: four blocks of random rows among rows of zeros that take no place on the disk, fitted
under protocol none. ``pictures``: a folder of small JPEGs, trained from memory and streamed with workers in turns,
each a process of its own; the figure is the steps a second of the training loop.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

#: Bytes of a row of the files: 64 numbers of float32.
_ROW = 256
_BLOCK = 65_536

_FILES = """
import json, resource, sys, time
begun = time.time()
import torch
import varflow as vf
from varflow.training.loop import Loop
interpreter = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
first, update = [], Loop.update
def timed(loop):
    row = update(loop)
    first.append(time.time() - begun)
    return row
Loop.update = timed
path, out, steps, protocol, threads = sys.argv[1:]
settings = {"steps": int(steps), "batch": 512, "protocol": protocol, "threads": int(threads), "quiet": True}
run = vf.fit("density", path, out=out, **settings)
fitted = time.time() - begun
vf.load(out).evaluate()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"first": first[0], "fit": fitted, "interpreter": interpreter / 2**20, "peak": peak / 2**20}))
"""

_PICTURES = """
import json, sys, time
import varflow as vf
folder, recipe, steps, how, workers, threads = sys.argv[1:]
settings = {"stream": "always", "workers": int(workers)} if how == "streamed" else {"stream": "never"}
begun = time.time()
run = vf.fit(recipe, folder, permutation="computed", steps=int(steps), threads=int(threads), keep="last", quiet=True,
             validate_every="1000000 steps", validation_limit=100, **settings)
# The first record holds the start of the workers and the first calls of every kernel.
rates = [r["steps_per_second"] for r in run.metrics if r["split"] == "train"]
print(json.dumps({"rate": rates[-1], "whole": time.time() - begun}))
"""


def written(path: Path, gib: float, sparse: bool) -> None:
    """A file of float32 rows; sparse ones have four blocks that are not zero."""
    rows = int(gib * 2**30) // _ROW
    x = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, 64))
    block = np.random.default_rng(0).standard_normal((_BLOCK, 64), dtype=np.float32)
    for start in np.linspace(0, rows - _BLOCK, 4, dtype=np.int64) if sparse else range(0, rows, _BLOCK):
        part = x[start : start + _BLOCK]
        # Not the same numbers again: columns would look rounded.
        part[:] = block[: len(part)] * np.float32(1 + start / rows)
    x.flush()


def jpegs(folder: Path, count: int, side: int) -> None:
    """Small pictures with edges and noise, in ten subfolders."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(10):
        (folder / str(number)).mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / str(number % 10) / f"{number:06d}.jpg")


def child(code: str, *words: object) -> dict[str, Any]:
    """What a process prints last, from JSON."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def files(options: argparse.Namespace, room: Path) -> list[str]:
    rows = []
    for gib in options.gib:
        sparse = gib > options.written
        path = room / f"x{gib:g}.npy"
        written(path, gib, sparse)
        protocol = "none" if sparse else "auto"
        found = child(_FILES, path, room / "run", options.updates, protocol, options.threads)
        path.unlink()
        above = found["peak"] - found["interpreter"]
        held = [f"{found[name]:.1f}" for name in ("first", "fit")]
        rows.append([f"{gib:g} GiB" + (", sparse" if sparse else ""), *held, f"{found['peak']:.2f}", f"{above:.2f}"])
        subprocess.run(["rm", "-rf", str(room / "run")], check=True)
    head = [
        "file", "s to the first update", f"s to the end of {options.updates} updates", "peak, GiB",
        "above the interpreter's, GiB",
    ]  # fmt: skip
    said = (
        "`density` on float32 rows [N, 64], batch 512; seconds since the start of Python; the peak is that of the "
        "fit and the evaluation of 10,000 test rows. Asked: first update within 10 s and 200 updates within 30 s on "
        "2 GiB in cache, 1.5 GiB above the interpreter's at any size."
    )
    return [said, report.table(head, rows)]


def pictures(options: argparse.Namespace, room: Path) -> list[str]:
    folder = room / "pictures"
    jpegs(folder, options.pictures, options.side)
    ways = {"in memory": 0, "streamed": options.workers}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, workers in ways.items():
            how = "streamed" if way == "streamed" else "memory"
            found = child(
                _PICTURES, folder, options.recipe, options.steps, how, workers, options.threads
            )
            rates[way].append(found["rate"])
    medians = {way: float(np.median(values)) for way, values in rates.items()}
    rows = [
        [way, f"{medians[way]:.2f}", " ".join(f"{value:.2f}" for value in values)] for way, values in rates.items()
    ]
    share = medians["streamed"] / medians["in memory"]
    said = (
        f"`{options.recipe}` on {options.pictures:,} JPEGs of {options.side}×{options.side}, batch 128, "
        f"{options.threads} threads, {options.workers} workers: streamed at {100 * share:.0f} % of the speed in "
        "memory (asked: 80 %)."
    )
    return [said, report.table(["rows", "steps/s, median", "each round"], rows)]


def main() -> None:
    options = report.parser(__doc__ or "", blocks=3, steps=400, warmup=0)
    options.add_argument("--what", choices=("all", "files", "pictures"), default="all", help="which part")
    options.add_argument("--gib", type=float, nargs="+", default=[2, 20, 200], help="sizes of the files")
    options.add_argument("--written", type=float, default=4, help="GiB of a file above which it is sparse")
    options.add_argument("--updates", type=int, default=200, help="updates of a fit to a file")
    options.add_argument("--pictures", type=int, default=50_000, help="pictures of the folder")
    options.add_argument("--side", type=int, default=32, help="pixels of a side")
    options.add_argument("--recipe", default="conv-static", help="what is trained on them")
    options.add_argument("--workers", type=int, default=2, help="processes that decode")
    options.add_argument("--room", type=Path, help="folder for the data; without it one of the system's")
    chosen = options.parse_args()
    chosen.rounds = chosen.blocks
    with tempfile.TemporaryDirectory(dir=chosen.room) as folder:
        parts: list[str] = []
        if chosen.what in ("all", "files"):
            parts += files(chosen, Path(folder))
        if chosen.what in ("all", "pictures"):
            parts += pictures(chosen, Path(folder))
    report.write("benchmarks.streaming", chosen, "Data larger than memory", parts)


if __name__ == "__main__":
    main()
