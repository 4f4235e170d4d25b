"""Amortized planar flow, 16 steps: one training step of the dense VAE against a module for each flow step."""

from __future__ import annotations

import argparse

from benchmarks import report
from benchmarks.timing import Bar, Contestant, Times, interleave

MODULE = "benchmarks.planar_amortized"
BARS = [
    Bar("varflow", "flow-VAE script", 0.48, 0.36),
    Bar("varflow, compiled", "flow-VAE script", 0.34, 0.28),
]


def measure(options: argparse.Namespace) -> Times:
    report.start(options)
    from benchmarks import dense

    dataset = dense.mnist()
    flow = {"flow": "planar", "amortized": True, "context": "moments"}
    rival = dense.script(
        dense.Batches(dataset), [dense.ScriptPlanar() for _ in range(dense.LENGTH)], amortized=True
    )
    steps: dict[str, dense.Step] = {
        "varflow": dense.varflow_loop(dataset, options, **flow).update,
        "varflow, compiled": dense.varflow_loop(dataset, options, compiled=True, **flow).update,
        "flow-VAE script": rival,
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
    report.write(MODULE, options, "Amortized planar flow, 16 steps", report.training_parts(flushed, kept, BARS))


if __name__ == "__main__":
    main()
