"""Diagonal posterior: one training step of the dense VAE against pythae and against its matrix products."""

from __future__ import annotations

import argparse

from benchmarks import report
from benchmarks.timing import Bar, Contestant, Times, interleave

MODULE = "benchmarks.diagonal"
BARS = [
    Bar("varflow", "pythae", 0.74, 0.60),
    Bar("varflow", "matrix products alone", 2.05, 1.5),
]


def measure(options: argparse.Namespace) -> Times:
    report.start(options)
    from benchmarks import dense

    dataset = dense.mnist()
    steps: dict[str, dense.Step] = {
        "varflow": dense.varflow_loop(dataset, options).update,
        "varflow, compiled": dense.varflow_loop(dataset, options, compiled=True).update,
        "pythae": dense.pythae(dense.Batches(dataset)),
        "flow-VAE script": dense.script(dense.Batches(dataset), []),
        "a plain loop with fused Adam": dense.script(dense.Batches(dataset), [], fused=True),
    }
    dense.train(steps, options.warmup)
    contestants = [Contestant(name, step) for name, step in steps.items()]
    contestants.append(Contestant("matrix products alone", dense.floor(), repeat=2))
    contestants.append(Contestant("the same with oneDNN", dense.floor(onednn=True), repeat=2))
    return interleave(contestants, options.blocks, options.steps, clock=options.clock)


def main() -> None:
    options = report.parser(__doc__ or "", blocks=20, steps=40, warmup=1100).parse_args()
    measured = report.both_ways(MODULE, options, measure)
    if measured is None:
        return
    flushed, kept = measured
    report.write(MODULE, options, "Diagonal posterior", report.training_parts(flushed, kept, BARS))


if __name__ == "__main__":
    main()
