"""Importance weighting and Hamiltonian posteriors on dynamically binarized MNIST, from one command.

    python experiments/tighter_bounds.py fit      --out runs/tighter_bounds     (hours on two cores; can be resumed)
    python experiments/tighter_bounds.py evaluate --out runs/tighter_bounds
    python experiments/tighter_bounds.py table    --out runs/tighter_bounds
    python experiments/tighter_bounds.py figure   --out runs/tighter_bounds
    python experiments/tighter_bounds.py anneal   --out runs/tighter_bounds     (a quarter of an hour a model)
    python experiments/tighter_bounds.py anneal-table --out runs/tighter_bounds

Three families, each with equal updates: the importance-weighted bound with one and two stochastic layers (the recipes
iwae and iwae-2), and a Gaussian posterior without leapfrog steps and with five of each tempering, around the
convolutional network of the Hamiltonian VAE's authors (the recipe hvae) and around a dense network of 2 × 200 units.
An interrupted `fit` resumes from its checkpoints, and a larger --epochs goes on from a finished one. `table` sets
published numbers, and what they cost, beside ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARFLOW = [sys.executable, "-m", "varflow"]
_BURDA = "Burda et al. 2016, table 1: {}, 3,280 epochs"
_CATERINI = "Caterini et al. 2018: {}, up to 2,000 epochs; not verified in the original"


@dataclass(frozen=True)
class Case:
    """One model of the comparison.

    Attributes:
        base: the case that it is paired with on the same test pictures.
        published: −log p(x) and where it is from.
    """

    name: str
    recipe: str
    flags: tuple[str, ...]
    base: str
    published: str = "–"

    @property
    def hamiltonian(self) -> bool:
        return self.recipe == "hvae" and not self.name.endswith("without")


def _iwae(layers: int, samples: int, published: str) -> Case:
    recipe = "iwae" if layers == 1 else "iwae-2"
    flags = ("--samples", str(samples))
    return Case(f"iwae-{layers}-k{samples}", recipe, flags, "iwae-1-k1", _BURDA.format(published))


#: The network of one stochastic layer, with Adam: a tenth of the convolutional one's time.
_DENSE = ("--network", "mlp", "--layers", "2", "--hidden", "200", "--activation", "tanh", "--latent", "50")
_DENSE += ("--optimizer", "adam", "--lr", "1e-3", "--eps", "1e-8")


def _dense(name: str, *flags: str) -> Case:
    return Case(f"dense-{name}", "hvae", (*_DENSE, *flags), "dense-without")


def _hvae(name: str, *flags: str, published: str = "–") -> Case:
    return Case(f"hvae-{name}", "hvae", flags, "hvae-without", published)


CASES = [
    _iwae(1, 1, "86.76"),
    _iwae(1, 5, "85.54"),
    _iwae(1, 50, "84.78"),
    _iwae(2, 5, "83.89"),
    _dense("without", "--leapfrog", "0"),
    _dense("none", "--tempering", "none"),
    _dense("fixed", "--tempering", "fixed", "--initial-temperature", "1.225"),
    _dense("free", "--tempering", "free"),
    _hvae("without", "--leapfrog", "0", published=_CATERINI.format("83.20")),
    _hvae("none", "--tempering", "none"),
    _hvae("fixed", "--tempering", "fixed", "--initial-temperature", "1.225"),
    _hvae("free", "--tempering", "free", published=_CATERINI.format("about 82.6 with 20 steps")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=[name.replace("_", "-") for name in ACTIONS])
    parser.add_argument("--out", type=Path, default=Path("runs/tighter_bounds"))
    parser.add_argument("--cases", nargs="*", default=None, help="names as in the table; all without it")
    parser.add_argument("--epochs", type=float, default=30.0)
    parser.add_argument("--samples", type=int, default=5000, help="importance samples of a plain posterior")
    parser.add_argument("--limit", type=int, default=10_000, help="test pictures for a plain posterior")
    parser.add_argument("--hamiltonian-samples", type=int, default=1000)
    parser.add_argument("--hamiltonian-limit", type=int, default=1000)
    parser.add_argument("--points", type=int, default=200, help="anneal: test pictures, and simulated ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="cases at the same time, one thread each if several")
    options = parser.parse_args()
    chosen = [case for case in CASES if options.cases is None or case.name in options.cases]
    missing = set(options.cases or []) - {case.name for case in chosen}
    if missing:
        parser.error(f"cases: unknown {sorted(missing)}; choices: {[case.name for case in CASES]}")
    ACTIONS[options.action.replace("-", "_")](options, chosen)


def folder(options: argparse.Namespace, case: Case) -> Path:
    return options.out / f"{case.name}-seed{options.seed}"


def machine(options: argparse.Namespace) -> list[str]:
    # One thread each where several run at once: two pools on the same cores wait for each other.
    return ["--device", options.device, *(["--threads", "1"] if options.jobs > 1 else [])]


def each(options: argparse.Namespace, cases: list[Case], work: Any) -> None:
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(work, case) for case in cases]:
            done.result()


def fit(options: argparse.Namespace, cases: list[Case]) -> None:
    """Every case up to --epochs, from its last checkpoint."""

    def one(case: Case) -> None:
        out = folder(options, case)
        if not (out / "state.pt").exists():
            begin = ["fit", case.recipe, *case.flags, "--epochs", str(options.epochs), "--seed", str(options.seed)]
            run([*begin, *machine(options), "--out", str(out), "--overwrite", "--quiet", "--no-report"])
        elif reached(out) < options.epochs:
            run(["fit", "--resume", str(out), "--epochs", str(options.epochs), "--quiet", "--no-report"])
        print(f"{out}: {reached(out):g} epochs", flush=True)

    each(options, cases, one)


def evaluate(options: argparse.Namespace, cases: list[Case]) -> None:
    """−log p(x), and the bound against its number of samples."""

    def one(case: Case) -> None:
        out = folder(options, case)
        if not (out / "model.safetensors").exists():
            return
        samples, limit = options.samples, options.limit
        if case.hamiltonian:
            samples, limit = options.hamiltonian_samples, options.hamiltonian_limit
        asked = ["--samples", str(samples), "--limit", str(limit), *machine(options)]
        run(["evaluate", str(out), *asked])
        asked = ["--samples", str(min(samples, 1000)), "--limit", str(min(limit, 1000)), *machine(options)]
        run(["curve", str(out), *asked])
        print(out, flush=True)

    each(options, cases, one)


def table(options: argparse.Namespace, cases: list[Case]) -> None:
    """The Markdown table, to standard output."""
    from varflow.evaluation import Evaluation

    known = {case.name: case for case in CASES}
    head = ["model", "epochs", "updates", "hours", "ELBO", "NLL", "MC error", "samples × pictures", "NLL − base"]
    head += ["k̂ > 0.7", "published NLL"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for case in cases:
        out = folder(options, case)
        if not (out / "evaluation" / "test.json").exists():
            continue
        found, last = Evaluation.load(out), rows(out)[-1]
        # Of a fit that still runs, or was interrupted, the weights of the last checkpoint were evaluated.
        ended = read(out / "run.json").get("outcome", {}).get("finished", False)
        elbo, nll = found.estimates["elbo"], found.estimates["nll"]
        base = folder(options, known[case.base])
        difference = "–"
        if case.base != case.name and (base / "evaluation" / "test.json").exists():
            difference = less(found, Evaluation.load(base))
        row = [
            case.name,
            f"{last['epoch']:g}" + ("" if ended else " so far"),
            f"{last['step']:,}",
            f"{last['seconds'] / 3600:.2f}",
            f"{elbo.value:.2f} ± {elbo.standard_error:.2f}",
            f"{nll.value:.2f} ± {nll.standard_error:.2f}",
            f"{nll.monte_carlo_error:.3f}",
            f"{nll.samples:,} × {nll.points:,}",
            difference,
            f"{100 * (nll.khat or 0):.0f} %",
            case.published,
        ]
        print("| " + " | ".join(row) + " |")


def anneal(options: argparse.Namespace, cases: list[Case]) -> None:
    """−log p(x) of test pictures without q's help, and both bounds on simulated ones."""

    def one(case: Case) -> None:
        out = folder(options, case)
        if (out / "model.safetensors").exists():
            count = str(options.points)
            run(["anneal", str(out), "--points", count, "--simulated", count, *machine(options)])
            print(out, flush=True)

    each(options, cases, one)


def anneal_table(options: argparse.Namespace, cases: list[Case]) -> None:
    """Annealing against importance sampling on the same pictures, and the sandwich on simulated ones."""
    from varflow.evaluation import Evaluation

    head = ["model", "−log p(x), annealed", "by importance sampling", "annealed − importance sampling"]
    head += ["simulated: lower bound", "upper bound", "upper − lower", "acceptance"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for case in cases:
        out = folder(options, case)
        if not (out / "evaluation" / "simulated.json").exists():
            continue
        annealed, sampled = Evaluation.load(out, "test-annealed"), Evaluation.load(out)
        count = len(annealed.per_example["log_px"])
        nll, bounds = annealed.estimates["nll"], Evaluation.load(out, "simulated").estimates
        samples = sampled.estimates["nll"].samples
        row = [
            case.name,
            f"{nll.value:.2f} ± {nll.standard_error:.2f}",
            f"{-sampled.per_example['log_px'][:count].mean():.2f} ({samples:,} samples)",
            less(annealed, sampled),
            *(f"{bounds[name].value:.3f}" for name in ("lower", "upper")),
            f"{bounds['gap'].value:.4f} ± {bounds['gap'].standard_error:.4f}",
            f"{annealed.estimates['acceptance'].value:.2f}",
        ]
        print("| " + " | ".join(row) + " |")


def less(found: Any, base: Any) -> str:
    """−log p(x) less that of the base, in pairs over the test pictures that both have."""
    import numpy as np

    count = min(len(found.per_example["index"]), len(base.per_example["index"]))
    assert np.array_equal(found.per_example["index"][:count], base.per_example["index"][:count])
    each = base.per_example["log_px"][:count] - found.per_example["log_px"][:count]
    return f"{each.mean():+.2f} ± {each.std(ddof=1) / np.sqrt(count):.2f} ({count:,} pictures)"


def figure(options: argparse.Namespace, cases: list[Case]) -> None:
    """Learning curves, and the bound against its number of samples, of all cases: one picture a family."""
    from varflow import figures
    from varflow.core.files import read_metrics
    from varflow.evaluation import Evaluation
    from varflow.figures.curves import bound_by_samples, overlaid_curves

    for family in ("iwae", "dense", "hvae"):
        runs = {case.name: folder(options, case) for case in cases if case.name.startswith(family)}
        runs = {name: path for name, path in runs.items() if (path / "metrics.jsonl").exists()}
        bounds = {n: f for n, f in runs.items() if (f / "evaluation" / "test-curve.json").exists()}
        if not runs:
            continue
        with figures.style():
            drawn, axes = figures.canvas(1, 2 if bounds else 1, 10.4 if bounds else 5.2, 4.0)
            overlaid_curves({name: read_metrics(path) for name, path in runs.items()}, axes[0, 0])
            if bounds:
                bound_by_samples({n: curve(Evaluation.load(f, "test-curve")) for n, f in bounds.items()}, axes[0, 1])
            print(figures.save(drawn, options.out / f"{family}.png"))


def curve(found: Any) -> tuple[list[int], list[float], list[float]]:
    """(k, the bound, its Monte-Carlo error): the pictures are the same for all runs."""
    counts = sorted(int(name.removeprefix("bound_")) for name in found.estimates)
    chosen = [found.estimates[f"bound_{k}"] for k in counts]
    return counts, [e.value for e in chosen], [e.monte_carlo_error or 0.0 for e in chosen]


def reached(out: Path) -> float:
    """Epochs done."""
    return max((row["epoch"] for row in rows(out)), default=0.0)


def rows(out: Path) -> list[dict[str, Any]]:
    """The records of a fit."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def run(arguments: list[str]) -> None:
    subprocess.run([*VARFLOW, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ)


ACTIONS = {act.__name__: act for act in (fit, evaluate, table, figure, anneal, anneal_table)}

if __name__ == "__main__":
    main()
