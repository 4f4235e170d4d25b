"""The comparison of posteriors of docs/posteriors.md: fits, evaluations and the table, from one command.

    python experiments/posteriors.py fit   --out runs/posteriors            (hours on two cores)
    python experiments/posteriors.py time  --out runs/posteriors            (seconds per epoch, alone)
    python experiments/posteriors.py table --out runs/posteriors
    python experiments/posteriors.py gaps  --out runs/posteriors            (200 pictures; an hour or two of one core)
    python experiments/posteriors.py gap-table --out runs/posteriors

`fit` runs each posterior of the list with equal updates through the command line, several at once
with --jobs, and leaves runs alone that are there already. `table` reads the runs and pairs each
with "none" of the same seed on the same test pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FLOWS = {"planar": 16, "radial": 16, "householder": 16, "nice": 16, "iaf": 4}
VARFLOW = [sys.executable, "-m", "varflow"]


@dataclass(frozen=True)
class Case:
    """One posterior of the comparison."""

    flow: str
    length: int = 1
    amortized: bool = False

    @property
    def name(self) -> str:
        if self.flow == "none":
            return "none"
        return f"{self.flow}-{self.length}-{'amortized' if self.amortized else 'static'}"

    @property
    def flags(self) -> list[str]:
        if self.flow == "none":
            return ["--flow", "none"]
        sharing = "--amortized" if self.amortized else "--no-amortized"
        return ["--flow", self.flow, "--length", str(self.length), sharing, "--context", "moments"]


CASES = [Case("none")] + [
    Case(flow, length, amortized) for flow, length in FLOWS.items() for amortized in (False, True)
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["fit", "time", "table", "gaps", "gap-table"])
    parser.add_argument("--out", type=Path, default=Path("runs/posteriors"))
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--cases", nargs="*", default=None, help="names as in the table; all without it")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=float, default=60.0)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--points", type=int, default=200, help="gaps: test pictures")
    parser.add_argument("--chains", type=int, default=8, help="gaps: of annealed importance sampling")
    parser.add_argument("--temperatures", type=int, default=200, help="gaps: of annealed importance sampling")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="fits at the same time")
    options = parser.parse_args()
    chosen = [case for case in CASES if options.cases is None or case.name in options.cases]
    missing = set(options.cases or []) - {case.name for case in chosen}
    if missing:
        parser.error(f"cases: unknown {sorted(missing)}; choices: {[case.name for case in CASES]}")
    actions = {"fit": fit, "time": time_epochs, "table": table, "gaps": gaps, "gap-table": gap_table}
    actions[options.action](options, chosen)


def folder(options: argparse.Namespace, case: Case, seed: int) -> Path:
    return options.out / f"{options.data}-{case.name}-seed{seed}"


def fit(options: argparse.Namespace, cases: list[Case]) -> None:
    """All fits and evaluations, ``jobs`` at a time."""

    def one(case: Case, seed: int) -> None:
        out = folder(options, case, seed)
        if not (out / "evaluation" / "test.json").exists():
            begin = ["fit", "dense", "--data", options.data, *case.flags, "--seed", str(seed)]
            begin += ["--epochs", str(options.epochs), "--out", str(out), "--overwrite"]
            # One thread each where several run at once: two pools on the same cores wait for each other.
            machine = ["--device", options.device, *(["--threads", "1"] if options.jobs > 1 else [])]
            run([*begin, *machine, "--quiet", "--no-report"])
            run(["evaluate", str(out), "--samples", str(options.samples), *machine])
        print(out, flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(one, case, seed) for seed in options.seeds for case in cases]:
            done.result()


def time_epochs(options: argparse.Namespace, cases: list[Case]) -> None:
    """Seconds per epoch of each posterior, alone on the machine: the second of two epochs' training steps."""
    seconds = {}
    for case in cases:
        out = options.out / "time" / case.name
        begin = ["fit", "dense", "--data", options.data, *case.flags, "--epochs", "2"]
        run([*begin, "--device", options.device, "--out", str(out), "--overwrite", "--quiet", "--no-report"])
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        rates = [r["steps_per_second"] for r in records if r["split"] == "train" and r["epoch"] > 1]
        steps = json.loads((out / "run.json").read_text())["outcome"]["step"] / 2
        seconds[case.name] = steps * sum(1 / rate for rate in rates) / len(rates)
        print(f"{case.name}: {seconds[case.name]:.2f} s per epoch", flush=True)
    (options.out / "seconds.json").write_text(json.dumps(seconds, indent=2) + "\n")


def table(options: argparse.Namespace, cases: list[Case]) -> None:
    """The Markdown table, to standard output."""
    from varflow.evaluation import Evaluation, paired

    path = options.out / "seconds.json"
    seconds = json.loads(path.read_text()) if path.exists() else {}
    head = ["posterior", "seeds", "ELBO", "NLL", "MC error", "log p(x) − none", "k̂ > 0.7", "active"]
    head += ["energy distance", *(["s/epoch"] if seconds else [])]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for case in cases:
        found = {s: folder(options, case, s) for s in options.seeds}
        runs = {s: Evaluation.load(f) for s, f in found.items() if (f / "evaluation/test.json").exists()}
        if not runs:
            continue
        base = {s: Evaluation.load(folder(options, CASES[0], s)) for s in runs}
        first = next(iter(runs.values())).estimates
        difference = "" if case.flow == "none" else spread([paired(runs[s], base[s], "log_px") for s in runs])
        distance = first["aggregated_distance"]
        row = [
            case.name,
            str(len(runs)),
            spread([r.estimates["elbo"] for r in runs.values()]),
            spread([r.estimates["nll"] for r in runs.values()]),
            f"{first['nll'].monte_carlo_error:.3f}",
            difference,
            f"{100 * (first['nll'].khat or 0):.0f} %",
            f"{first['active_units'].value:.0f}",
            f"{distance.value:.4f}",
        ]
        if seconds:
            row.append(f"{seconds[case.name]:.1f}" if case.name in seconds else "")
        print("| " + " | ".join(row) + " |")


def gaps(options: argparse.Namespace, cases: list[Case]) -> None:
    """What the family and what the encoder costs, for the first test pictures of each run."""
    asked = ["--points", str(options.points), "--chains", str(options.chains)]
    asked += ["--temperatures", str(options.temperatures), "--device", options.device]
    for case in cases:
        for seed in options.seeds:
            out = folder(options, case, seed)
            if not (out / "evaluation" / "test-gaps.json").exists():
                run(["gaps", str(out), *asked])
            print(out, flush=True)


def gap_table(options: argparse.Namespace, cases: list[Case]) -> None:
    """The Markdown table of the gaps, nats; ± standard error over the pictures."""
    from varflow.evaluation import Evaluation

    names = ("elbo", "elbo_refined", "log_px", "inference_gap", "approximation_gap", "amortization_gap")
    head = ["ELBO", "ELBO, q refined", "log p(x)", "inference gap", "approximation gap", "amortization gap"]
    print("| " + " | ".join(["posterior", *head, "share of the encoder"]) + " |")
    print("|" + "---|" * (len(head) + 2))
    for case in cases:
        out = folder(options, case, options.seeds[0])
        if not (out / "evaluation" / "test-gaps.json").exists():
            continue
        found = Evaluation.load(out, "test-gaps").estimates
        cells = [f"{found[name].value:.2f} ± {found[name].standard_error:.2f}" for name in names]
        share = found["amortization_gap"].value / found["inference_gap"].value
        print("| " + " | ".join([case.name, *cells, f"{100 * share:.0f} %"]) + " |")


def spread(estimates: list) -> str:
    """One seed: value ± standard error over test points; more: mean over seeds [lowest, highest]."""
    values = [e.value for e in estimates]
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f} ± {estimates[0].standard_error:.2f}"
    return f"{mean:.2f} [{min(values):.2f}, {max(values):.2f}]"


def run(arguments: list[str]) -> None:
    subprocess.run([*VARFLOW, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ)


if __name__ == "__main__":
    main()
