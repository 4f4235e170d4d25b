"""Amortized posteriors of 4 IAF steps and of 16 additive couplings (NICE): a step against normflows and zuko."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from benchmarks import report
from benchmarks.timing import Bar, Contestant, Times, bars_table, interleave, ratio, times_table

MODULE = "benchmarks.iaf_nice"
#: flow → (its steps, its title).
FLOWS = {"iaf": (4, "IAF, 4 steps"), "nice": (16, "NICE, 16 additive couplings")}
RIVALS = ("normflows", "zuko")
MUST = 0.5


def contestants(flow: str, options: argparse.Namespace) -> Mapping[str, Callable[[], object]]:
    """name → a training step."""
    from benchmarks import dense

    dataset, length = dense.mnist(), FLOWS[flow][0]
    ours = {"flow": {"iaf": "iaf", "nice": "additive"}[flow], "length": length, "amortized": True}
    steps = {"varflow": dense.varflow_loop(dataset, options, **ours).update}
    if options.compiled:
        steps["varflow, compiled"] = dense.varflow_loop(dataset, options, compiled=True, **ours).update
    for fused, words in ((False, ""), (True, ", fused Adam")):
        for name, posterior in (("normflows", dense.NormflowsPosterior), ("zuko", dense.ZukoPosterior)):
            steps[name + words] = dense.amortized(dense.Batches(dataset), posterior(flow, length), fused)
    return steps


def measure(flow: str, options: argparse.Namespace) -> Times:
    from benchmarks import dense

    steps = dict(contestants(flow, options))
    dense.train(steps, options.warmup)
    made = [Contestant(name, step) for name, step in steps.items()]
    products = dense.flow_products(flow, FLOWS[flow][0])
    made.append(Contestant("its matrix products alone", dense.floor(more=products), repeat=2))
    made.append(Contestant("the same with oneDNN", dense.floor(onednn=True, more=products), repeat=2))
    return interleave(made, options.blocks, options.steps, clock=options.clock)


def tables(times: Times) -> list[str]:
    rows = [[*row, *(str(ratio(times[row[0]], times[rival])) for rival in RIVALS)] for row in times_table(times)]
    head = ["contestant", "ms per step", "p10–p90", *(f"against {rival} [95 %]" for rival in RIVALS)]
    bars = [Bar("varflow", rival + words, MUST) for rival in RIVALS for words in ("", ", fused Adam")]
    checks = ["ratio of medians", "found [95 %]", "at most", "aim", ""]
    return [report.table(head, rows), report.table(checks, bars_table(times, bars))]


def main() -> None:
    parser = report.parser(__doc__ or "", blocks=15, steps=20, warmup=300)
    parser.add_argument("--only", choices=sorted(FLOWS), help="one of the two flows")
    parser.add_argument("--compiled", action="store_true", help="varflow's compiled step as well")
    options = parser.parse_args()
    report.start(options)
    parts = [
        "Dense VAE 784-400-400-40, dynamically binarized MNIST, batch 128, float32, Adam 1e-3; the context of a flow "
        "are the encoder's 400 features. A step is data → loss → backward → update; denormals flushed for all. "
        "Rivals have the same networks: two hidden layers of 320 units in each of 4 IAF steps, of 200 in each of 16 "
        "couplings. zuko: `MaskedAutoregressiveTransform`, inverted, so that a draw is one pass, and its NICE with "
        "`AdditiveTransform`, behind a Gaussian in `NormalizingFlow.rsample_and_log_prob`. normflows: "
        "`MaskedAffineAutoregressive` with permutations between, in a `ConditionalNormalizingFlow`. Its networks "
        "take a context in residual blocks alone, which are larger: here it enters their first layer. It has no "
        "coupling with a context either: there the context stands beside the half that is kept, around its own "
        "`AffineCoupling` without scales. Rivals' examples use torch's default Adam; the fused one, which varflow "
        "uses, is a line of its own for each."
    ]
    for flow in FLOWS if options.only is None else (options.only,):
        parts += [f"## {FLOWS[flow][1]}", *tables(measure(flow, options))]
    options.flushed_only = False
    report.write(MODULE, options, "Amortized IAF and NICE posteriors", parts)


if __name__ == "__main__":
    main()
