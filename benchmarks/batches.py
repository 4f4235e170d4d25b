"""Feeding: what share of an epoch is spent on gathering batches, and on binarizing them?"""

from __future__ import annotations

import argparse

from benchmarks import report
from benchmarks.timing import Contestant, Times, interleave, ratio, times_table

MODULE = "benchmarks.batches"
STEP, GATHER, BINARIZE = "training step", "gathering", "gathering and binarizing"


def measure(options: argparse.Namespace) -> Times:
    report.start(options)
    from benchmarks import dense

    dataset = dense.mnist()
    loop = dense.varflow_loop(dataset, options)
    for _ in range(options.warmup):
        loop.update()
    pixels, batches = dataset.raw("train"), dense.Batches(dataset)
    position = 0

    def gather() -> object:
        nonlocal position
        position += 1
        return pixels.index_select(0, loop.indices(position))

    contestants = [
        Contestant(STEP, loop.update),
        Contestant(GATHER, gather, repeat=10),
        Contestant(BINARIZE, batches, repeat=10),
    ]
    return interleave(contestants, options.blocks, options.steps, clock=options.clock)


def main() -> None:
    options = report.parser(__doc__ or "", blocks=20, steps=40, warmup=1000).parse_args()
    times = measure(options)
    rows = []
    for name, limit in ((GATHER, 0.01), (BINARIZE, 0.10)):
        share = ratio(times[name], times[STEP])
        met = "met" if share.value < limit else "missed"
        rows.append([name, *(f"{100 * x:.2g} %" for x in share), f"{100 * limit:g} %", met])
    parts = [
        "Batches of 128 of MNIST (uint8 in memory), against varflow's training step of the dense VAE "
        "784-400-400-40, the cheapest model here. A share of a step is the same share of an epoch.",
        report.table(["work", "ms", "p10–p90"], times_table(times)),
        report.table(["work", "share of an epoch", "from", "to (95 %)", "below", ""], rows),
    ]
    report.write(MODULE, options, "Feeding", parts)


if __name__ == "__main__":
    main()
