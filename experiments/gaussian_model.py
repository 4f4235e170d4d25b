"""The Gaussian model of the Hamiltonian VAE's first experiment, by family and dimension.

    python experiments/gaussian_model.py fit    --out runs/gaussian_model   (everything: about 25 minutes)
    python experiments/gaussian_model.py table  --out runs/gaussian_model
    python experiments/gaussian_model.py figure --out runs/gaussian_model   (docs/gaussian_model.png)

One z ~ N(0, I) behind N = 10,000 observations x_i ~ N(z + Δ, diag σ²); Δ starts at 0 and σ at e³, as in the
experiment, and both are learned. Three data sets are fitted in one program, in float64. Each fit is Adam with
a cosine decay on all data, by sufficient statistics. Adam cannot walk along the ridge Δ + E z = x̄, which is up
to 10⁶ times flatter than steep, so Gaussian posteriors and Hamiltonian ones are then polished by L-BFGS on
the exact ELBO: their log-weight is a quadratic function of the noise, whose mean a few fixed nodes give without
error. "Separate" cases are the h-vae program's own protocol, beside the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DIMENSIONS = (25, 50, 100, 200, 300, 400)
DATA_SETS = 3
STEP = {"step_shape": "dimension", "initial_step": 0.005, "initial_temperature": 5.0, "step_bound": 0.5}


@dataclass(frozen=True)
class Case:
    """A posterior, its data and how it is trained.

    Attributes:
        name: of its results.
        label: of its rows, with its base.
        settings: of the spec.
        nodes: how the ELBO is polished: "signs", "axes", "samples", or not at all.
        dimensions: d of its fits.
    """

    name: str
    label: str
    settings: dict[str, Any]
    nodes: str | None = None
    dimensions: Sequence[int] = DIMENSIONS
    training: dict[str, Any] = field(default_factory=dict)


def _hamiltonian(tempering: str, steps: int, base: str = "fixed") -> Case:
    suffix = "" if base == "fixed" else f"-{base}"
    tempered = "no tempering" if tempering == "none" else f"{tempering} tempering"
    where = "N(0, I)" if base == "fixed" else "learned"
    settings = {"leapfrog": steps, "tempering": tempering, "base_moments": base, **STEP}
    label = f"Hamiltonian, {tempered}, K = {steps}, base {where}, ε per dimension"
    return Case(f"hamiltonian-{tempering}-{steps}{suffix}", label, settings, "signs",
                training={"steps": 1500, "samples": 10})  # fmt: skip


def _flow(flow: str, steps: int, base: str, **more: Any) -> Case:
    where = "N(0, I)" if base == "fixed" else "learned"
    settings = {"flow": flow, "length": steps, "base_moments": base}
    return Case(f"{flow}-{steps}-{base}", f"{flow}, K = {steps}, base {where}", settings, **more)


SEPARATE = {"batches": "separate", "batch": 256, "optimizer": "rmsprop", "lr": 1e-3, "decay": "none",
            "steps": 80_000, "samples": 10}  # fmt: skip
CLAIM = (25, 100)
VB = {"flow": "none"}
CASES = [
    Case("vb", "Gaussian, diagonal (VB)", VB, "signs", training={"steps": 1500, "samples": 10}),
    Case("vb-full", "Gaussian, full covariance", {"flow": "triangular", "length": 1, "base_moments": "fixed"}, "axes",
         training={"steps": 1500, "samples": 10}),
    *[_hamiltonian(tempering, steps) for tempering in ("none", "fixed", "free") for steps in (1, 10)],
    _hamiltonian("fixed", 1, "learned"),
    *[_flow("planar", steps, base) for steps in (1, 30) for base in ("fixed", "learned")],
    _flow("iaf", 1, "fixed"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["fit", "table", "figure"])
    parser.add_argument("--out", type=Path, default=Path("runs/gaussian_model"))
    parser.add_argument("--cases", nargs="*", default=None, help="e.g. vb iaf-1-fixed; all without it")
    parser.add_argument("--dimensions", nargs="*", type=int, default=None, help="of those a case has")
    parser.add_argument("--evaluate", type=int, default=50_000, help="samples of the evaluation")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    chosen = [case for case in CASES if options.cases is None or case.name in options.cases]
    {"fit": fit, "table": table, "figure": figure}[options.action](options, chosen)


def build(spec: Any) -> Any:
    """The models of a spec, one a data set."""
    import varflow as vf
    from varflow.building import Form
    from varflow.flows import InverseAutoregressive
    from varflow.posteriors import Gaussian

    models = []
    for index in range(DATA_SETS):
        one = spec.replace(seed=index, data_seed=index)
        model = vf.build(one, Form((1,), "none"))
        if spec.posterior.flow == "iaf":
            d = spec.target.dimensions
            # Widths of h-vae; the scales are to shrink N(0, I) to σ/√N, about e⁻⁷.
            flow = InverseAutoregressive(d, spec.posterior.length, hidden=(d + 100,), bound=10.0)
            model = vf.Model(model.prior, model.likelihood, Gaussian(d, flow=flow, base=spec.posterior.base_moments))
        models.append(model)
    return vf.Ensemble(models)


class Nodes:
    """Answers draws with fixed nodes ``[S, D]``, the same for every fit.

    "signs": all features +1 or −1, for positions and momenta in all combinations. Where each feature keeps to
    itself and the log-weight is quadratic, its mean over these four is exact. "axes": ±√D along one feature, exact
    for any quadratic log-weight without momenta. "samples": normal numbers and their negatives.
    """

    def __init__(self, kind: str, features: int, samples: int = 1024) -> None:
        import torch

        axes = math.sqrt(features) * torch.eye(features, dtype=torch.float64)
        one = torch.ones(features, dtype=torch.float64)
        source = torch.Generator().manual_seed(0)
        drawn = torch.randn(samples // 2, features, generator=source, dtype=torch.float64)
        self.nodes = {
            "signs": {"posterior": torch.stack([one, one, -one, -one]), "momentum": torch.stack([one, -one, one, -one])},
            "axes": {"posterior": torch.cat([axes, -axes])},
            "samples": {"posterior": torch.cat([drawn, -drawn])},
        }[kind]  # fmt: skip
        self.count = len(self.nodes["posterior"])

    def draw(self, request: Any) -> Any:
        return self.nodes[request.purpose].to(request.dtype).expand(request.shape)


def polish(ensemble: Any, kind: str, iterations: int = 3000) -> int:
    """L-BFGS on the ELBO at fixed nodes; how many evaluations it took."""
    import torch

    from varflow import random

    leaves = [p for p in ensemble.parameters() if p.requires_grad]
    nodes = Nodes(kind, ensemble.member(0).prior.event_shape[0])
    optimizer = torch.optim.LBFGS(leaves, max_iter=iterations, max_eval=2 * iterations, history_size=50,
                                  tolerance_grad=1e-7, tolerance_change=1e-11, line_search_fn="strong_wolfe")  # fmt: skip
    count = 0

    def closure() -> Any:
        nonlocal count
        count += 1
        optimizer.zero_grad()
        with random.use(nodes):
            loss = -ensemble.terms(None, nodes.count).log_weight.mean(0).sum()
        loss.backward()
        return loss

    ensemble.train()
    optimizer.step(closure)
    ensemble.eval()
    return count


def closed_form(model: Any) -> dict[str, float]:
    """What the Hamiltonian posterior's gap is in closed form, at its step sizes and temperature, and at the best."""
    import torch

    from varflow.posteriors import Hamiltonian
    from varflow.targets import best_hamiltonian_gap, hamiltonian_gap

    posterior, likelihood = model.posterior, model.likelihood
    if not isinstance(posterior, Hamiltonian) or not hasattr(likelihood, "affine_gradient"):
        return {}
    with torch.no_grad():
        exact = likelihood.exact()
        base = posterior.base()
        gap = hamiltonian_gap(1 / exact.variance, exact.mean, posterior.step_sizes, posterior.factors,
                              base.mean, base.log_scale.exp())  # fmt: skip
        found = {"closed_form": gap.item(), "temperature": posterior.temperature.item(),
                 "step_low": posterior.step_sizes.min().item(), "step_high": posterior.step_sizes.max().item()}  # fmt: skip
    if posterior.base.base == "fixed" and posterior.tempering != "free":
        best = best_hamiltonian_gap(1 / exact.variance, exact.mean, posterior.steps, posterior.tempering == "fixed")
        found["closed_form_best"] = best.gap
    return found


def fit(options: argparse.Namespace, cases: list[Case]) -> None:
    import varflow as vf
    from varflow import recipes

    for case in cases:
        for d in case.dimensions:
            out = options.out / f"{case.name}-{d}"
            if (options.dimensions and d not in options.dimensions) or (out / "results.json").exists():
                continue
            spec = recipes.find("gaussian-model").spec.replace(
                **{"dimensions": d, "threads": options.threads, **case.settings, **case.training}
            )
            ensemble = build(spec)
            start = time.perf_counter()
            run = vf.fit(ensemble, out=out, overwrite=True, quiet=True, **_changed(spec))
            adam = time.perf_counter() - start
            before = vf.evaluation.evaluate_target(run.model, samples=1000)
            start = time.perf_counter()
            evaluations = polish(run.model, case.nodes) if case.nodes else 0
            polished = time.perf_counter() - start
            start = time.perf_counter()
            found = vf.evaluation.evaluate_target(run.model, samples=options.evaluate)
            rows = [
                {
                    "data_set": index,
                    "before": {name: float(before.per_example[name][index]) for name in ("elbo", "evidence_gap", "shift_error")},
                    **{name: float(v[index]) for name, v in found.per_example.items()},
                    **closed_form(run.model.member(index)),
                }
                for index in range(DATA_SETS)
            ]  # fmt: skip
            result = {"case": case.name, "label": case.label, "dimensions": d, "seconds": adam + polished,
                      "seconds_adam": adam, "evaluations": evaluations, "fits": rows}  # fmt: skip
            (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
            print(case.name, d, f"Adam {adam:.0f} s, L-BFGS {polished:.0f} s ({evaluations}), evaluation "
                  f"{time.perf_counter() - start:.0f} s;", _line(rows), flush=True)  # fmt: skip


def _changed(spec: Any) -> dict[str, Any]:
    """What a run of models built beforehand still has to be told."""
    names = ("samples", "optimizer", "lr", "decay", "batch", "precision", "keep", "control", "threads")
    budget = {"steps": spec.training.steps} if spec.training.steps else {"epochs": spec.training.epochs}
    return {**{name: spec.get(name) for name in names}, **budget}


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else math.nan


def _line(rows: list[dict[str, Any]]) -> str:
    keys = ("kl_q_p", "closed_form", "closed_form_best", "evidence_gap", "shift_error", "scale_error", "scale_floor", "temperature")
    return " ".join(f"{key}={_mean(rows, key):.5g}" for key in keys if any(key in row for row in rows))


def table(options: argparse.Namespace, cases: list[Case]) -> None:
    raise NotImplementedError


def figure(options: argparse.Namespace, cases: list[Case]) -> None:
    raise NotImplementedError


if __name__ == "__main__":
    main()
