"""Which posterior × prior × objective has the best −log p(x) of MNIST in equal time, for a dense network?

    python -m experiments.best_dense sweep --runs runs/best_dense      (validation split; two sweeps, each resumable)
    python -m experiments.best_dense run finals --runs runs/best_dense (equal minutes, three seeds; goes on)
    python -m experiments.best_dense table --into docs/best_dense.md

`sweep` searches posterior, prior, rate and sizes by Optuna at equal updates, once for the ELBO and once for the
importance-weighted bound of 5 samples (the two bounds cannot be compared), and keeps the best settings of each in
experiments/results/best_dense/chosen.json. `run finals` trains these and the plain network for equal minutes of one
core, and judges all alike by −log p(x) of the test split, in pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import campaign
from experiments.campaign import RESULTS, Fit, Found, Interrupted, Row, Verdict, pair

SPACE = {
    "flow": ["none", "planar", "nice", "iaf"],
    "length": {"low": 2, "high": 8},
    "amortized": [True, False],
    "prior": ["normal", "vamp", "maf"],
    "latent": [20, 40],
    "hidden": [400, 800],
    "lr": {"low": 5e-4, "high": 3e-3, "log": True},
}
OBJECTIVES: dict[str, dict[str, Any]] = {"elbo": {}, "iwae": {"objective": "iwae", "samples": 5}}
CHOSEN = RESULTS / "best_dense" / "chosen.json"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Timed(Fit):
    """A fit that ends after so many minutes in the loop, over all its sessions."""

    minutes: float = 60.0

    def run(self, folder: Path) -> None:
        import varflow as vf

        watch = _watch(self.minutes)
        if not (folder / "spec.json").exists():
            settings = {**self.settings, "epochs": 10_000}
            run = vf.fit(self.recipe, out=folder, quiet=True, threads=1, callbacks=[watch], **settings)
        elif not campaign.outcome(folder).get("finished") and not self._over(folder):
            run = vf.resume(folder, quiet=True, callbacks=[watch])
        elif self.measure(folder) is None:
            run = vf.load(folder)
        else:
            return
        if run.outcome.get("signal") is not None:
            raise Interrupted(int(run.outcome["signal"]))
        self.after(run)

    def _over(self, folder: Path) -> bool:
        return float(campaign.outcome(folder).get("seconds", 0.0)) >= 60 * self.minutes

    def progress(self, folder: Path) -> tuple[int, int]:
        from varflow.core.files import read_metrics

        rows = [row for row in read_metrics(folder) if "seconds" in row]
        done = rows[-1]["step"] if rows else 0
        share = rows[-1]["seconds"] / (60 * self.minutes) if rows else 0.0
        return done, round(done / share) if share else 0


def _watch(minutes: float) -> Any:
    from varflow.training import Callback

    class Watch(Callback):
        def recorded(self, record: Any, fitting: Any) -> None:
            if record.get("seconds", 0.0) >= 60 * minutes:
                fitting.stop(f"{minutes:g} minutes are over")

    return Watch()


def sweep(runs: Path, trials: int, steps: int) -> None:
    """Both sweeps, from where they were cut off, and what they chose."""
    import varflow as vf
    from varflow.core.files import make_folder, write_json

    chosen = {}
    for name, objective in OBJECTIVES.items():
        found = vf.sweep(
            "dense", SPACE, data="mnist", trials=trials, out=runs / f"sweep-{name}", sampler="tpe", top=0, quiet=True,
            figures=False, steps=steps, threads=1, **objective,
        )  # fmt: skip
        if found.signal is not None:
            raise Interrupted(int(found.signal))
        best = found.best
        if best is not None:
            chosen[name] = {
                "settings": {**best.settings, **objective},
                "validation_bound": best.value,
                "trials": len(found.trials),
                "steps": steps,
            }
    make_folder(CHOSEN.parent)
    write_json(CHOSEN, chosen)
    print(CHOSEN)


def rows() -> list[Row]:
    """The finals; before the sweeps have chosen, the plain network alone."""
    chosen = json.loads(CHOSEN.read_text()) if CHOSEN.exists() else {}
    settings = {"plain": {"flow": "none"}, **{name: found["settings"] for name, found in chosen.items()}}
    fits = [
        Timed(
            f"{name}-seed{seed}",
            "dense",
            {**own, "data": "mnist", "seed": seed},
            samples=1000,
            annealed=200,
            gaps=0 if seed else 200,
        )
        for seed in SEEDS
        for name, own in settings.items()
    ]

    def judge(found: Found) -> Verdict:
        told = []
        for name in chosen:
            gains = [found["pairs"][pair(f"{name}-seed{s}", f"plain-seed{s}", "log_px")]["value"] for s in SEEDS]
            told.append(f"{name} {sum(gains) / len(gains):+.2f} [{min(gains):+.2f}, {max(gains):+.2f}]")
        return Verdict("measured", "log p(x) over the plain network, three seeds, nats: " + ", ".join(told))

    return [
        Row(
            "finals",
            "a question of our own",
            "the best dense network in an hour of one core",
            "–",
            "none.",
            "settings that two sweeps chose on the validation split: "
            + ("; ".join(f"{name}: {found['settings']}" for name, found in chosen.items()) or "not run yet")
            + ". One hour each in the loop, weights of the best validation bound.",
            fits,
            [
                (f"{name}-seed{seed}", f"plain-seed{seed}", quantity)
                for seed in SEEDS
                for name in chosen
                for quantity in ("log_px", "annealed")
            ],
            judge,
            None,
            {
                "elbo": "ELBO, nats",
                "nll": "−log p(x), nats",
                "nll_annealed": "−log p(x), annealed, 200 pictures",
                "inference_gap": "log p(x) − ELBO, 200 pictures",
                "approximation_gap": "of the family",
                "amortization_gap": "of the encoder",
            },
        )
    ]


def main() -> None:
    if sys.argv[1:2] == ["sweep"]:
        parser = argparse.ArgumentParser(prog="python -m experiments.best_dense sweep", description=__doc__)
        parser.add_argument("--runs", type=Path, default=Path("runs/best_dense"))
        parser.add_argument("--trials", type=int, default=24, help="of each objective")
        parser.add_argument("--steps", type=int, default=5000, help="updates of each trial")
        options = parser.parse_args(sys.argv[2:])
        try:
            sweep(options.runs, options.trials, options.steps)
        except Interrupted as error:
            print(error, file=sys.stderr)
            sys.exit(error.code)
        return
    campaign.main(rows(), "experiments.best_dense", __doc__ or "")


if __name__ == "__main__":
    main()
