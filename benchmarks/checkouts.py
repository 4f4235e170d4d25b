"""Two checkouts of varflow side by side: has a change cost speed?

    git worktree add /tmp/before REVISION
    python -m benchmarks.checkouts /tmp/before/src src --rounds 5

Each case is a fit or an evaluation in a process of its own with one thread, the two checkouts in turn, A B A B …
The figure of a process is the CPU time of a fit less that of a fit of 200 updates before it, for each further update:
start, compilation and whatever else the machine does do not count; validations do. The ratio is B's median over A's:
above 1 the second checkout is slower. In brackets the lowest and the highest ratio of a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

#: name → what a process runs; it prints seconds for one unit of work.
FIT = """
    def seconds(steps, **more):
        begun = time.process_time()
        vf.fit({what}, steps=steps, quiet=True, threads=1, {settings} **more, **known)
        return time.process_time() - begun
    known = {{}}
    for name, value in dict({newer}).items():
        try:
            seconds(1, **{{name: value}})
            known[name] = value
        except ValueError:
            pass  # the older checkout has no such part
    seconds(200)
    few = seconds(200)
    print((seconds({steps}) - few) / ({steps} - 200))
"""
EVALUATE = """
    run = vf.fit("digits", steps=5, quiet=True, threads=1, latent=8)
    begun = time.process_time()
    run.evaluate(samples=1000, limit=200)
    print((time.process_time() - begun) / 200)
"""


def fit(what: str, steps: int, settings: str = "", newer: str = "") -> str:
    """A fit; ``newer`` are settings that turn off what the older checkout has not."""
    settings = f"{settings}," if settings else ""
    return FIT.format(what=repr(what), steps=steps, settings=settings, newer=newer)


CASES = {
    "digits, no flow": fit("digits", 1000),
    "digits, planar x 8 amortized": fit("digits", 1000, 'flow="planar", length=8, amortized=True'),
    "digits, IAF x 4 amortized": fit("digits", 800, 'flow="iaf", length=4, amortized=True'),
    "digits, NICE x 16": fit("digits", 800, 'flow="nice", length=16'),
    "digits, Householder x 16": fit("digits", 800, 'flow="householder", length=16'),
    "digits, Hamiltonian, 3 steps": fit("digits", 600, "leapfrog=3"),
    "digits, IWAE k = 5": fit("digits", 800, 'objective="iwae", samples=5'),
    "digits, prior MAF": fit("digits", 800, 'prior="maf"'),
    "energy, planar x 32": fit("energy", 1200),
    "energy, 16 fits": fit("energy", 800, "fits=16"),
    "density of digits, MAF": fit(
        "density", 800, 'prior="maf"', newer='prior_base="normal", prior_defensive=0.0'
    ),
    "Gaussian model, d = 25": fit("gaussian-model", 800, "dimensions=25"),
    "1,000 importance samples, one point": EVALUATE,
}


def measure(source: Path, work: str) -> float:
    """Seconds for one unit of work under a checkout."""
    program = "import time, warnings\nwarnings.simplefilter('ignore')\nimport varflow as vf\n"
    done = subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(work)],
        env={**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{source}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("first", type=Path, help="src folder of the first checkout")
    parser.add_argument("second", type=Path, help="src folder of the second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", help="those whose name holds one of these words")
    parser.add_argument("--out", type=Path, help="a JSON file for the raw figures")
    options = parser.parse_args()
    chosen = [c for c in CASES if not options.cases or any(word in c for word in options.cases)]
    raw: dict[str, dict[str, list[float]]] = {}
    print("| case | first, ms | second, ms | second / first |\n|---|---|---|---|")
    for case in chosen:
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            for source, kept in zip((options.first, options.second), times, strict=True):
                kept.append(1000 * measure(source, CASES[case]))
        pairs = sorted(b / a for a, b in zip(*times, strict=True))
        a, b = (statistics.median(kept) for kept in times)
        print(f"| {case} | {a:.3g} | {b:.3g} | {b / a:.2f} [{pairs[0]:.2f}, {pairs[-1]:.2f}] |", flush=True)
        raw[case] = {"first": times[0], "second": times[1]}
    if options.out:
        options.out.write_text(json.dumps(raw, indent=1))


if __name__ == "__main__":
    main()
