"""A planar flow fitted to a 2-D energy: a whole optimisation step against normflows' and FlowJAX's."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.timing import Bar, Contestant, Times, Worker, bars_table, interleave, times_table

MODULE = "benchmarks.energy"
LENGTH, BATCH, FITS = 32, 256, 16


def loop(options: argparse.Namespace, **settings: Any) -> Any:
    """The loop that ``varflow.fit("energy")`` runs."""
    import torch

    from varflow.runs import assemble
    from varflow.runs.folder import Memory
    from varflow.settings import recipes
    from varflow.training.engine import Engine
    from varflow.training.loop import Loop
    from varflow.training.progress import Progress

    spec = recipes.find("energy").spec.replace(
        length=LENGTH, samples=BATCH, steps=10**7, lr=1e-3, decay="none", threads=options.threads, **settings
    )
    engine = Engine.start(spec.training)
    torch.set_flush_denormal(not options.keep_denormals)
    model, dataset = assemble.for_target(spec, {})
    made = Loop(model, dataset, spec, engine, Memory(), Progress(0, quiet=True))
    made.model.train()
    return made


def normflows() -> Callable[[], object]:
    """normflows' planar flow, its reverse KL and torch's default Adam, as its examples write them."""
    import normflows as nf
    import torch

    class Energy(nf.distributions.Target):
        def __init__(self) -> None:
            super().__init__()
            self.n_dims = 2

        def log_prob(self, z: torch.Tensor) -> torch.Tensor:
            ring = 0.5 * ((z.norm(dim=1) - 2) / 0.4) ** 2
            x = z[:, 0]
            return torch.logaddexp(-0.5 * ((x - 2) / 0.6) ** 2, -0.5 * ((x + 2) / 0.6) ** 2) - ring

    base = nf.distributions.DiagGaussian(2, trainable=False)
    model = nf.NormalizingFlow(base, [nf.flows.Planar((2,)) for _ in range(LENGTH)], p=Energy())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss = model.reverse_kld(BATCH)
        loss.backward()
        optimizer.step()

    return step


def flowjax(python: str) -> Worker:
    """FlowJAX in its own process."""
    script = Path(__file__).with_name("flowjax_worker.py")
    return Worker([python, str(script), str(LENGTH), str(BATCH)])


def measure(options: argparse.Namespace) -> Times:
    report.start(options)
    single = loop(options)
    steps = {"varflow": single.update, f"varflow, {FITS} fits": loop(options, fits=FITS).update}
    steps["varflow, without the native operation"] = _without_native(loop(options).update)
    steps["varflow, compiled"] = loop(options, compile=True).update
    steps[f"varflow, compiled, {FITS} fits"] = loop(options, compile=True, fits=FITS).update
    steps["normflows"] = normflows()
    for step in steps.values():
        for _ in range(options.warmup):
            step()
    contestants = [Contestant(name, step) for name, step in steps.items()]
    python = os.environ.get("VARFLOW_FLOWJAX")
    if python:
        contestants.append(Contestant("FlowJAX", block=flowjax(python), repeat=4))
    else:
        print("FlowJAX left out: VARFLOW_FLOWJAX does not name an interpreter that has it", file=sys.stderr)
    return interleave(contestants, options.blocks, options.steps)


def _without_native(step: Callable[[], object]) -> Callable[[], object]:
    from varflow import native

    def twin() -> None:
        before = native.in_use()
        native.use(False)
        try:
            step()
        finally:
            native.use(before)

    return twin


def long_fit(options: argparse.Namespace, steps: int) -> list[list[str]]:
    """Wall time of a whole fit, compilations and imports of the engine included."""
    rows = []
    code = (
        "import time; t = time.perf_counter(); import varflow as vf; "
        f"vf.fit('energy', length={LENGTH}, samples={BATCH}, steps={steps}, threads={options.threads}, quiet=True); "
        "print(time.perf_counter() - t)"
    )
    took = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    rows.append(["varflow", f"{float(took):.1f}"])
    python = os.environ.get("VARFLOW_FLOWJAX")
    if python:
        start = time.perf_counter()
        worker = flowjax(python)
        worker(steps - 1)
        rows.append(["FlowJAX", f"{time.perf_counter() - start:.1f}"])
    return rows


def main() -> None:
    parser = report.parser(__doc__ or "", blocks=15, steps=100, warmup=200)
    parser.add_argument("--long", type=int, default=20_000, help="steps of the whole fit that is timed once")
    options = parser.parse_args()
    options.flushed_only = True
    times = measure(options)
    bars = [
        Bar("varflow", "normflows", 0.15, 0.10),
        Bar(f"varflow, {FITS} fits", "varflow", 3.3, 2.0),
        Bar(f"varflow, compiled, {FITS} fits", "varflow, compiled", 3.3, 2.0),
    ]
    if "FlowJAX" in times:
        bars.insert(1, Bar("varflow, compiled", "FlowJAX", 0.63, 0.35))
        bars.insert(2, Bar("varflow", "FlowJAX", 1.0, None))
    about = f"{LENGTH} planar steps, batch {BATCH}, first energy, float32, Adam: noise → loss → backward → update."
    parts = [
        about,
        report.table(["contestant", "ms per step", "p10–p90"], times_table(times)),
        report.table(["ratio of medians", "found [95 %]", "at most", "aim", ""], bars_table(times, bars)),
        report.table([f"{options.long:,} steps from nothing", "seconds"], long_fit(options, options.long)),
    ]
    report.write(MODULE, options, "Planar flow on a 2-D energy", parts)


if __name__ == "__main__":
    main()
