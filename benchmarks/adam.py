"""The update alone: torch's three ways of running Adam over the parameters of a model."""

from __future__ import annotations

import argparse

from benchmarks import report
from benchmarks.timing import Contestant, Times, interleave, ratio, times_table

MODULE = "benchmarks.adam"
WAYS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}


def measure(options: argparse.Namespace) -> Times:
    report.start(options)
    import torch

    from benchmarks import dense

    dataset = dense.mnist()
    contestants = []
    for label, length in (("dense VAE", 0), (f"dense VAE, {dense.LENGTH} planar modules", dense.LENGTH)):
        for way, choice in WAYS.items():
            model = dense.Script([dense.ScriptPlanar() for _ in range(length)], amortized=length > 0)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, **choice)
            batches = dense.Batches(dataset)
            for _ in range(options.warmup):
                optimizer.zero_grad()
                model(batches()).backward()
                optimizer.step()
            contestants.append(Contestant(f"{label}: {way}", optimizer.step))
    return interleave(contestants, options.blocks, options.steps, clock=options.clock)


def main() -> None:
    options = report.parser(__doc__ or "", blocks=20, steps=20, warmup=1000).parse_args()
    measured = report.both_ways(MODULE, options, measure)
    if measured is None:
        return
    flushed, kept = measured
    rows = []
    for row in times_table(flushed):
        default = row[0].rpartition(":")[0] + ": foreach"
        against = ratio(flushed[row[0]], flushed[default])
        rows.append([*row, str(ratio(kept[row[0]], flushed[row[0]])), str(against)])
    head = ["optimizer", "ms per update", "p10–p90", "denormals kept / flushed", "against foreach"]
    about = (
        "One update of the dense VAE 784-400-400-40, and of the same with 16 amortized planar steps as modules "
        "of their own, after training for as many steps as the warm-up says. varflow uses the fused way, and "
        "stacked parameters."
    )
    report.write(MODULE, options, "Adam alone", [about, report.table(head, rows)])


if __name__ == "__main__":
    main()
