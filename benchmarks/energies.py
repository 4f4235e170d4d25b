"""Whole fits to the four energies, each a process from start to end: against JAX by hand, all updates in one scan."""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.timing import Times, ratio

MODULE = "benchmarks.energies"
TARGETS = ("u1", "u2", "u3", "u4")
SEEDS = 10
#: Of `varflow fit energy`; the updates are the option --steps.
SETTINGS = {"samples": 256, "objective": "annealed", "anneal": 1_000, "lr": 5e-3, "decay": "cosine", "keep": "last"}
JAX = Path(__file__).with_name("jax_energies.py")
ONE, ALL = "one fit", f"{SEEDS} seeds × {len(TARGETS)} energies"


def ensemble() -> Any:
    """The forty models of ``experiments/energies.py``."""
    import varflow as vf
    from varflow.core.form import Form
    from varflow.settings import recipes

    spec = recipes.find("energy").spec
    cases = [(target, seed) for target in TARGETS for seed in range(SEEDS)]
    return vf.Ensemble([vf.build(spec.replace(target=t, seed=s), Form((2,), "none")) for t, s in cases])


def work(options: argparse.Namespace) -> None:
    """One process: a fit or all of them, on this side of the benchmark."""
    import varflow as vf

    if options.step_by_step:
        from varflow.training.blocks import Blocks

        Blocks.of = staticmethod(lambda *arguments: None)  # type: ignore[method-assign]
    common = {"steps": options.steps, "threads": options.threads, "quiet": True}
    if options.work == "one":
        run = vf.fit("energy", out=options.folder, overwrite=True, **common)
    else:
        run = vf.fit(ensemble(), out=options.folder, overwrite=True, **common, **SETTINGS)
    found: dict[str, Any] = {"loop": run.outcome["seconds"]}
    if options.evaluate:
        values = [divergence(member, options.evaluate) for member in run.members()]
        count = len(values) // (len(TARGETS) if options.work == "all" else 1)
        found["kl"] = [values[first : first + count] for first in range(0, len(values), count)]
    print(json.dumps(found))


def divergence(model: Any, samples: int) -> float:
    """KL(q‖p) = log Z − ELBO of one fit, nats, from fresh samples."""
    import torch

    from varflow.core import random

    model = model.double()
    with random.stream(1), torch.no_grad():
        return model.prior.log_normalizer + float(model.terms(None, samples).kl.mean())


def commands(options: argparse.Namespace, folder: str, evaluate: int = 0) -> dict[str, dict[str, list[str]]]:
    """By question and contestant."""
    steps, threads = ["--steps", str(options.steps)], ["--threads", str(options.threads)]
    # One fit, and many small operations of torch, are for one thread: two wait for each other on a busy machine.
    alone = ["--threads", "1"]
    fit = [sys.executable, "-m", "varflow", "fit", "energy", "--out", folder, "--overwrite", "--quiet"]
    fit += [*steps, *alone]
    kl = ["--evaluate", str(evaluate)]
    here = [sys.executable, "-m", MODULE, "--folder", folder, *steps, *kl]
    found = {
        ONE: {
            "varflow fit energy, with its report": fit,
            "varflow fit energy --no-report": [*fit, "--no-report"],
            "varflow, step by step": [*here, *alone, "--work", "one", "--step-by-step"],
        },
        ALL: {
            "varflow": [*here, *threads, "--work", "all"],
            "varflow, step by step": [*here, *alone, "--work", "all", "--step-by-step"],
        },
    }
    python = os.environ.get("VARFLOW_JAX")
    if not python:
        print("JAX left out: VARFLOW_JAX does not name an interpreter that has it", file=sys.stderr)
        return found
    # The faster of its two forms each time: to unroll 32 steps compiles for longer than one fit takes.
    for question, fits, loop in ((ONE, 1, "scan"), (ALL, SEEDS * len(TARGETS), "unrolled")):
        given = ["--fits", str(fits), "--loop", loop, *steps, *kl]
        found[question]["JAX by hand"] = [python, str(JAX), *given]
    return found


def timed(command: Sequence[str]) -> tuple[float, float]:
    """(seconds, seconds of all cores) of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(contestants: dict[str, list[str]], rounds: int, slow_rounds: int) -> tuple[Times, Times]:
    """Wall and CPU time of each, in turns; of what goes step by step ``slow_rounds`` rounds are enough."""
    wall: Times = {name: [] for name in contestants}
    cpu: Times = {name: [] for name in contestants}
    shuffle, order = random.Random(0), list(contestants)
    for number in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            if name.endswith("step by step") and number >= slow_rounds:
                continue
            took, used = timed(contestants[name])
            wall[name].append(took)
            cpu[name].append(used)
            print(f"{name}: {took:.1f} s, {used:.1f} s of CPU", file=sys.stderr, flush=True)
    return wall, cpu


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def rows(wall: Times, cpu: Times) -> list[list[str]]:
    """Times of each, and their ratios to JAX in the same rounds."""
    best, found = "JAX by hand", []
    for name in wall:
        against = ["–", "–"]
        if best in wall and len(wall[name]) == len(wall[best]) and name != best:
            against = [str(ratio(times[name], times[best])) for times in (wall, cpu)]
        found.append([name, spread(wall[name]), spread(cpu[name]), *against])
    return found


def tables(options: argparse.Namespace, folder: str) -> list[list[str]]:
    """KL(q‖p) of all fits, each contestant once."""
    found = []
    for name, command in commands(options, folder, evaluate=100_000)[ALL].items():
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        of_energies = json.loads(printed.splitlines()[-1])["kl"]
        cells = [f"{statistics.median(v):.4f} [{min(v):.4f}, {max(v):.4f}]" for v in of_energies]
        found.append([name, *cells])
    return found


def main() -> None:
    parser = report.parser(__doc__ or "", blocks=5, steps=10_000, warmup=0)
    parser.add_argument("--slow-blocks", type=int, default=1, help="rounds of what goes step by step")
    parser.add_argument("--without-tables", action="store_true", help="leave out the KL of the fits")
    parser.add_argument("--work", choices=["one", "all"], help=argparse.SUPPRESS)
    parser.add_argument("--step-by-step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--evaluate", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    options.flushed_only = False
    load = os.getloadavg()[0]
    parts = [
        f"Planar flow of 32 steps, batch 256, {options.steps:,} annealed updates, Adam 5e-3 with a cosine decay, "
        "float32. Each time is of a process, from its start to its end: imports, compilation, all updates; varflow's "
        "write a run folder with records, snapshots and a resumable state. Processes take turns in a random order "
        "each round. Seconds are medians [lowest, highest], CPU those of all cores together, which a busy machine "
        f"disturbs less; ratios are of medians, [95 %]. Load average before the first: {load:.1f}."
    ]
    head = ["process", "wall", "CPU", "wall / JAX", "CPU / JAX"]
    with tempfile.TemporaryDirectory() as folder:
        for question, contestants in commands(options, str(Path(folder) / "run")).items():
            parts += [f"## {question[0].upper()}{question[1:]}"]
            parts += [report.table(head, rows(*measure(contestants, options.blocks, options.slow_blocks)))]
        if not options.without_tables:
            parts += [
                "## KL(q‖p)",
                f"Nats, 100,000 samples of each fit: median over {SEEDS} seeds [lowest, highest]. JAX has other "
                "initial weights and noise; varflow's two have the same and part by rounding.",
                report.table(["", *map(str.upper, TARGETS)], tables(options, str(Path(folder) / "run"))),
            ]
    report.write(MODULE, options, "Whole fits to the four energies", parts)


if __name__ == "__main__":
    main()
