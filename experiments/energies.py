"""How well each family fits the four energies of Rezende and Mohamed: fits, exact answers, table, figure.

    python experiments/energies.py fit    --out runs/energies      (all families, all seeds: about an hour)
    python experiments/energies.py table  --out runs/energies
    python experiments/energies.py figure --out runs/energies

Each case (a family with its length) fits all four energies and all seeds in one program: 10,000 annealed
updates of 256 samples, Adam 5e-3 with a cosine decay, a base with learned mean and scale. KL(q‖p) is
log Z − ELBO with the exact log Z and fresh samples of q.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGETS = ["u1", "u2", "u3", "u4"]
LENGTHS = {"planar": [2, 4, 8, 16, 32], "radial": [2, 4, 8, 16, 32], "nice": [2, 4, 8, 16, 32]}
LENGTHS |= {"iaf": [2, 4, 8], "spline": [2, 4, 8], "hamiltonian": [2, 4, 8]}
SEEDS = {"planar": 10, "radial": 10, "nice": 10, "iaf": 3, "spline": 3, "hamiltonian": 3}


@dataclass(frozen=True)
class Case:
    """A family with its length."""

    family: str
    length: int

    @property
    def name(self) -> str:
        return f"{self.family}-{self.length}"

    def settings(self, target: str, seed: int) -> dict[str, Any]:
        found: dict[str, Any] = {"target": target, "seed": seed}
        if self.family == "hamiltonian":
            moved = {"flow": "none", "leapfrog": self.length, "tempering": "free", "step_shape": "both"}
            return found | moved
        return found | {"flow": self.family, "length": self.length}


CASES = [Case(family, length) for family, lengths in LENGTHS.items() for length in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["fit", "table", "figure"])
    parser.add_argument("--out", type=Path, default=Path("runs/energies"))
    parser.add_argument("--cases", nargs="*", default=None, help="e.g. planar-32; all without it")
    parser.add_argument("--seeds", type=int, default=None, help="fewer seeds than 10 or 3")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--evaluate", type=int, default=100_000, help="samples of the evaluation")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    chosen = [case for case in CASES if options.cases is None or case.name in options.cases]
    {"fit": fit, "table": table, "figure": figure}[options.action](options, chosen)


def models(options: argparse.Namespace, case: Case) -> tuple[list[tuple[str, int]], Any]:
    """Which fits a case has, and their ensemble."""
    import varflow as vf
    from varflow.core.form import Form
    from varflow.settings import recipes

    seeds = options.seeds or SEEDS[case.family]
    labels = [(target, seed) for target in TARGETS for seed in range(seeds)]
    base = recipes.find("energy").spec
    built = [
        vf.build(base.replace(**case.settings(target, seed)), Form((2,), "none")) for target, seed in labels
    ]
    return labels, vf.Ensemble(built)


def fit(options: argparse.Namespace, cases: list[Case]) -> None:
    import varflow as vf
    from varflow.settings import recipes

    for case in cases:
        out = options.out / case.name
        if (out / "results.json").exists():
            continue
        labels, ensemble = models(options, case)
        spec = recipes.find("energy").spec.replace(
            steps=options.steps,
            samples=options.samples,
            lr=options.lr,
            anneal=options.steps // 10,
            threads=options.threads,
        )
        start = time.perf_counter()
        settings = {name: spec.get(name) for name in ("steps", "samples", "lr", "decay", "objective", "anneal")}
        run = vf.fit(ensemble, out=out, overwrite=True, quiet=True, keep="last", threads=options.threads, **settings)
        seconds = time.perf_counter() - start
        found = vf.evaluation.evaluate_target(run.model, samples=options.evaluate)
        rows = [
            {"target": target, "seed": seed, **{name: float(v[index]) for name, v in found.per_example.items()}}
            for index, (target, seed) in enumerate(labels)
        ]
        text = json.dumps({"case": case.name, "seconds": seconds, "steps": options.steps, "fits": rows}, indent=1)
        (out / "results.json").write_text(text + "\n")
        print(case.name, f"{seconds:.0f} s", _medians(rows), flush=True)


def _medians(rows: list[dict[str, Any]], key: str = "kl_q_p") -> dict[str, float]:
    return {
        target: round(statistics.median(row[key] for row in rows if row["target"] == target), 5)
        for target in TARGETS
    }


def table(options: argparse.Namespace, cases: list[Case]) -> None:
    """Markdown: median [lowest, highest] of KL(q‖p) over the seeds."""
    head = ["family", "K", "seeds", *(target.upper() for target in TARGETS), "coverage of U1", "s for all"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * (len(TARGETS) + 5))
    for case in cases:
        path = options.out / case.name / "results.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        cells = []
        for target in TARGETS:
            values = sorted(row["kl_q_p"] for row in found["fits"] if row["target"] == target)
            cells.append(f"{statistics.median(values):.4f} [{values[0]:.4f}, {values[-1]:.4f}]")
        coverage = min(row["mode_coverage"] for row in found["fits"] if row["target"] == "u1")
        seeds = len(found["fits"]) // len(TARGETS)
        print(f"| {case.family} | {case.length} | {seeds} | " + " | ".join(cells)
              + f" | {coverage:.2f} | {found['seconds']:.0f} |")  # fmt: skip


SHOWN = ["planar-2", "planar-4", "planar-8", "planar-16", "planar-32", "radial-32", "nice-32", "iaf-8", "spline-8"]
SHOWN += ["hamiltonian-8"]


def figure(options: argparse.Namespace, cases: list[Case]) -> None:
    """The median fit of each case beside the target, one colour scale, KL(q‖p) in the panels."""
    import varflow as vf
    from varflow import figures
    from varflow.core import random
    from varflow.figures.targets import density_grid, density_of_samples, density_on_grid

    shown = [case for case in cases if case.name in SHOWN and (options.out / case.name / "results.json").exists()]
    targets = [getattr(vf.targets, target.upper())().double() for target in TARGETS]
    densities: list[list[Any]] = []
    notes: list[list[str | None]] = []
    for target in targets:
        def log_prob(z: Any, target: Any = target) -> Any:
            return target.log_prob(z) - target.log_normalizer

        densities.append([density_on_grid(log_prob, target.window, 160)])
        notes.append([None])
    for case in shown:
        _labels, ensemble = models(options, case)
        found = json.loads((options.out / case.name / "results.json").read_text())["fits"]
        run = vf.load(options.out / case.name, parts={"ensemble": ensemble})
        for row, (name, target) in enumerate(zip(TARGETS, targets, strict=True)):
            fits = sorted((r["kl_q_p"], i) for i, r in enumerate(found) if r["target"] == name)
            kl, index = fits[(len(fits) - 1) // 2]
            model = run.model.member(index).double()
            if case.family == "hamiltonian":
                with random.stream(0):
                    z = model.encode(samples=1_000_000).z
                panel = density_of_samples(z, target.window, 160)
            else:
                q = model.infer()
                panel = density_on_grid(lambda z, q=q: q.log_prob(z).detach(), target.window, 160)
            densities[row].append(panel)
            notes[row].append(f"{kl:.4f}")
    with figures.style():
        drawn, axes = figures.canvas(len(TARGETS), 1 + len(shown), width=1.25 * (1 + len(shown)), height=5.2)
        names = ["target", *(case.name.replace("-", " × ") for case in shown)]
        density_grid(
            densities, axes, [target.window for target in targets], names,
            [target.upper() for target in TARGETS], notes,
        )  # fmt: skip
        path = options.out / "energies.png"
        figures.save(drawn, path)
    print(path)


if __name__ == "__main__":
    main()
