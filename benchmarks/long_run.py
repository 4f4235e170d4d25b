"""Long runs: is a training step at update 5,000 as fast as one at update 500?

On real images Adam's moments shrink into the denormal range, where arithmetic is many times slower.
Both ages are timed in turns: each block starts again from the state of its age.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np

from benchmarks import report
from benchmarks.timing import Bar, Contestant, Times, bars_table, interleave, times_table

MODULE = "benchmarks.long_run"
AGES = (500, 1000, 2000, 5000)
BARS = [Bar("update 5000", "update 500", 1.1)]


def measure(options: argparse.Namespace) -> Times:
    report.start(options)
    from benchmarks import dense

    loop = dense.varflow_loop(dense.mnist(), options)
    contestants = []
    for age in AGES:
        while loop.step < age:
            loop.update()
        # load_state would share the optimizer's tensors with the state it is given.
        state = copy.deepcopy(loop.state())

        def reset(state: dict = state) -> None:  # type: ignore[type-arg]
            loop.load_state(copy.deepcopy(state))

        contestants.append(Contestant(f"update {age}", loop.update, reset))
    return interleave(contestants, options.blocks, options.steps, clock=options.clock)


def main() -> None:
    options = report.parser(__doc__ or "", blocks=20, steps=40, warmup=0).parse_args()
    measured = report.both_ways(MODULE, options, measure)
    if measured is None:
        return
    flushed, kept = measured
    rows = [
        [*row, f"{np.median(kept[row[0]]) * 1e3:.3g}" if kept else "not measured"]
        for row in times_table(flushed)
    ]
    slower = [["flushed", *bars_table(flushed, BARS)[0]]]
    if kept:
        slower.append(["kept", *bars_table(kept, BARS)[0]])
    parts = [
        "varflow's step of the dense VAE 784-400-400-40, dynamically binarized MNIST, batch 128, diagonal posterior.",
        report.table(["step", "ms, denormals flushed", "p10–p90", "ms, denormals kept"], rows),
        report.table(["denormals", "ratio of medians", "found [95 %]", "at most", "aim", ""], slower),
    ]
    report.write(MODULE, options, "A step late in a run", parts)


if __name__ == "__main__":
    main()
