"""Static planar flow, 16 steps: one training step of the dense VAE against pythae's VAE_LinNF."""

from __future__ import annotations

import argparse

from benchmarks import report
from benchmarks.timing import Bar, Contestant, Times, interleave

MODULE = "benchmarks.planar_static"
BARS = [
    Bar("varflow", "pythae", 0.48, 0.36),
    Bar("varflow, compiled", "pythae", 0.41, 0.33),
]


def measure(options: argparse.Namespace) -> Times:
    report.start(options)
    from benchmarks import dense

    dataset = dense.mnist()
    steps: dict[str, dense.Step] = {
        "varflow": dense.varflow_loop(dataset, options, flow="planar").update,
        "varflow, compiled": dense.varflow_loop(dataset, options, compiled=True, flow="planar").update,
        "pythae": dense.pythae(dense.Batches(dataset), ["Planar"] * dense.LENGTH),
        "normflows layers": dense.normflows_planar(dense.Batches(dataset)),
    }
    dense.train(steps, options.warmup)
    contestants = [Contestant(name, step) for name, step in steps.items()]
    contestants.append(Contestant("matrix products alone", dense.floor(), repeat=2))
    return interleave(contestants, options.blocks, options.steps, clock=options.clock)


def main() -> None:
    options = report.parser(__doc__ or "", blocks=20, steps=30, warmup=1100).parse_args()
    measured = report.both_ways(MODULE, options, measure)
    if measured is None:
        return
    flushed, kept = measured
    report.write(MODULE, options, "Static planar flow, 16 steps", report.training_parts(flushed, kept, BARS))


if __name__ == "__main__":
    main()
