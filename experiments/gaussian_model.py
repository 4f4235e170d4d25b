"""The Gaussian model of the Hamiltonian VAE's first experiment, by family and dimension.

    python experiments/gaussian_model.py fit    --out runs/gaussian_model   (everything: about 25 minutes)
    python experiments/gaussian_model.py table  --out runs/gaussian_model   (a row for each case and dimension)
    python experiments/gaussian_model.py summary --out runs/gaussian_model
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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DIMENSIONS = (25, 50, 100, 200, 300, 400)
DATA_SETS = 3


@dataclass(frozen=True)
class Case:
    """A posterior, its data and how it is trained.

    Attributes:
        name: of its results.
        label: of its rows, with its base.
        settings: of the spec.
        nodes: how the ELBO is polished: "signs", "axes", or not at all.
        dimensions: d of its fits.
        iterations: of L-BFGS.
        restart: begin L-BFGS at the step sizes and the temperature that are best for Adam's Δ and σ, in closed form.
        half: False leaves out a factor ½, as h-vae's code does for its flows.
    """

    name: str
    label: str
    settings: dict[str, Any]
    nodes: str | None = None
    dimensions: Sequence[int] = DIMENSIONS
    iterations: int = 3000
    restart: bool = False
    half: bool = True


GAUSSIAN = {"steps": 1500, "samples": 10}
FLOW = {"steps": 5000, "samples": 32, "lr": 0.03}
#: h-vae's own: RMSprop 1e-3, 2,000 epochs over 40 blocks that are data sets of their own.
SEPARATE = {"batches": "separate", "batch": 256, "optimizer": "rmsprop", "lr": 1e-3, "decay": "none",
            "samples": 10}  # fmt: skip
TRIANGULAR = {"flow": "triangular", "length": 1, "base_moments": "fixed"}
WHERE = {"fixed": "N(0, I)", "learned": "learned"}


def _hamiltonian(tempering: str, steps: int, base: str = "fixed", restart: bool = False) -> Case:
    suffix = ("" if base == "fixed" else f"-{base}") + ("-restart" if restart else "")
    tempered = "no tempering" if tempering == "none" else f"{tempering} tempering"
    settings = {"leapfrog": steps, "tempering": tempering, "base_moments": base, "step_shape": "dimension",
                "step_bound": 0.5, "initial_step": 0.005, "initial_temperature": 5.0}  # fmt: skip
    label = f"Hamiltonian, {tempered}, K = {steps}, base {WHERE[base]}" + (", restarted" if restart else "")
    return Case(f"hamiltonian-{tempering}-{steps}{suffix}", label, {**settings, **GAUSSIAN}, "signs",
                DIMENSIONS[:3] if restart else DIMENSIONS, restart=restart)  # fmt: skip


def _flow(flow: str, length: int, base: str, **more: Any) -> Case:
    settings = {"flow": flow, "length": length, "base_moments": base, **FLOW, **more}
    return Case(f"{flow}-{length}-{base}", f"{flow}, K = {length}, base {WHERE[base]}", settings)


def _separate(case: Case, epochs: int = 2000) -> Case:
    # Of each block's 40 in an epoch; VB ran twice as long.
    settings = {**case.settings, **SEPARATE, "steps": 40 * epochs}
    return replace(case, name=f"separate-{case.name}", label=f"{case.label}; blocks of 256 apart, RMSprop",
                   settings=settings, nodes=None, dimensions=DIMENSIONS)  # fmt: skip


def _without(case: Case) -> Case:
    return replace(case, name=f"half-{case.name}", label=f"{case.label}; ½ left out", nodes=None, half=False,
                   dimensions=(25,))  # fmt: skip


def _correlated(case: Case, nodes: str | None, iterations: int = 3000) -> Case:
    settings = {**case.settings, "noise": "full", "correlation": 0.9, "steps": 6000, "samples": 32, "lr": 0.005}
    return replace(case, name=f"correlated-{case.name}", label=f"{case.label}; correlated noise", settings=settings,
                   nodes=nodes, dimensions=CLAIMED, iterations=iterations)  # fmt: skip


VB = Case("vb", "Gaussian, diagonal (VB)", {"flow": "none", **GAUSSIAN}, "signs")
FULL = Case("vb-full", "Gaussian, full covariance", {**TRIANGULAR, **FLOW, "steps": 3000}, "axes", iterations=100)
# At 0.03 it diverges from d = 200 on.
IAF = _flow("iaf", 1, "fixed", lr=0.01)
PLANAR = _flow("planar", 1, "fixed")
HVAE = _hamiltonian("fixed", 1)
CLAIMED = (25, 100)
CLAIM = {"flow": "none", "steps": 5000, "samples": 10, "batch": 256}
CASES = [
    VB,
    *[_hamiltonian(tempering, steps) for tempering in ("none", "fixed", "free") for steps in (1, 10)],
    _hamiltonian("none", 10, restart=True),
    _hamiltonian("fixed", 10, restart=True),
    _hamiltonian("fixed", 1, "learned"),
    PLANAR,
    _flow("planar", 1, "learned"),
    _flow("planar", 30, "fixed"),
    _flow("planar", 30, "learned"),
    IAF,
    FULL,
    *[_without(case) for case in (VB, IAF, PLANAR)],
    *[Case(f"claim-{batches}", f"VB, {batches}", {**CLAIM, "batches": batches}, dimensions=CLAIMED)
      for batches in ("full", "minibatch", "separate")],
    _separate(VB, 4000),
    *[_separate(_hamiltonian(tempering, steps)) for tempering in ("fixed", "none") for steps in (1, 10)],
    *[_separate(case) for case in (PLANAR, _flow("planar", 30, "fixed"), IAF)],
    _correlated(VB, "axes"),
    _correlated(FULL, "axes"),
    _correlated(_flow("householder", 25, "learned"), "axes"),
    _correlated(_flow("planar", 30, "learned"), None),
    _correlated(_flow("iaf", 1, "fixed"), None),
    _correlated(_hamiltonian("fixed", 10, "learned"), "axes", 100),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["fit", "table", "summary", "figure"])
    parser.add_argument("--out", type=Path, default=Path("runs/gaussian_model"))
    parser.add_argument("--cases", nargs="*", default=None, help="e.g. vb iaf-1-fixed; all without it")
    parser.add_argument("--dimensions", nargs="*", type=int, default=None, help="of those a case has")
    parser.add_argument("--evaluate", type=int, default=50_000, help="samples of the evaluation")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    chosen = [case for case in CASES if options.cases is None or case.name in options.cases]
    {"fit": fit, "table": table, "summary": summary, "figure": figure}[options.action](options, chosen)


def build(case: Case, spec: Any) -> list[Any]:
    """The models of a case, one a data set."""
    import varflow as vf
    from varflow.core.form import Form
    from varflow.flows import InverseAutoregressive
    from varflow.posteriors import Gaussian

    models = []
    for index in range(DATA_SETS):
        model = vf.build(spec.replace(seed=index, data_seed=index), Form((1,), "none"))
        posterior, likelihood = model.posterior, model.likelihood
        if spec.get("flow") == "iaf":
            d = spec.target.dimensions
            # Widths of h-vae; the scales are to shrink N(0, I) to σ/√N, about e⁻⁷.
            flow = InverseAutoregressive(d, spec.get("length"), hidden=(d + 100,), bound=10.0)
            posterior = Gaussian(d, flow=flow, base=spec.get("base_moments"))
        if spec.target.noise == "full":
            likelihood = _known_noise(spec.target.dimensions, index, spec.target.correlation)
        if not case.half:
            likelihood = _without_half(spec.target.dimensions, index)
        models.append(vf.Model(model.prior, likelihood, posterior))
    return models


def _known_noise(d: int, seed: int, correlation: float) -> Any:
    """Full noise covariance, at its true value: what is left to compare is how near q comes to p(z | D)."""
    from varflow.targets import CorrelatedGaussianModel
    from varflow.targets.gaussian_data import generate

    made = generate(d, seed=seed, correlation=correlation)
    truth = made.shift, made.covariance
    return CorrelatedGaussianModel(made.data, covariance=made.covariance, learn_noise=False, truth=truth)


def _without_half(d: int, seed: int) -> Any:
    """log p(D | z) with Σᵢ (xᵢ − Δ)² / σ² counted twice, the terms with z once, as h-vae has it."""
    from varflow.targets import GaussianModel
    from varflow.targets.gaussian_data import generate

    class Doubled(GaussianModel):
        def log_prob(self, x: Any, z: Any) -> Any:
            count, mean, scatter, _ = self.statistics()
            squares = (scatter + count * (mean - self.shift).square()) * (-2 * self.log_scale).exp()
            return super().log_prob(x, z) - 0.5 * squares.sum()

    made = generate(d, seed=seed)
    return Doubled(made.data, truth=(made.shift, made.scale))


class Nodes:
    """Answers draws with fixed nodes ``[S, D]``, the same for every fit, on which a mean is exact.

    "signs": all features +1 or −1, positions and momenta in all four combinations: exact where each feature keeps to
    itself and the log-weight is quadratic in the noise. "axes": ±√m along one of the m numbers: exact for every
    quadratic log-weight.
    """

    def __init__(self, kind: str, features: int, momenta: bool) -> None:
        import torch

        if kind == "signs":
            one = torch.ones(features, dtype=torch.float64)
            position, momentum = torch.stack([one, one, -one, -one]), torch.stack([one, -one, one, -one])
        else:
            size = 2 * features if momenta else features
            axes = math.sqrt(size) * torch.eye(size, dtype=torch.float64)
            position, momentum = torch.cat([axes, -axes]).tensor_split([features], 1)
        self.nodes = {"posterior": position, "momentum": momentum}
        self.count = len(position)

    def draw(self, request: Any) -> Any:
        return self.nodes[request.purpose].to(request.dtype).expand(request.shape)


def polish(ensemble: Any, kind: str, iterations: int = 3000) -> int:
    """L-BFGS on the ELBO at fixed nodes; how many evaluations it took."""
    import torch

    from varflow.core import random

    leaves = [p for p in ensemble.parameters() if p.requires_grad]
    first = ensemble.member(0)
    nodes = Nodes(kind, first.prior.event_shape[0], hasattr(first.posterior, "steps"))
    optimizer = torch.optim.LBFGS(leaves, max_iter=iterations, history_size=200, tolerance_grad=1e-7,
                                  tolerance_change=1e-11, line_search_fn="strong_wolfe")  # fmt: skip
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


def recentre(model: Any) -> None:
    """Move q by −E_q z and Δ by E_q z: the best step along the ridge, as the data see z + Δ alone.

    For flows that can be moved as a whole; others are left as they are.
    """
    import torch

    from varflow.core import random
    from varflow.flows import InverseAutoregressive, Planar, Triangular
    from varflow.posteriors import Gaussian

    posterior, likelihood = model.posterior, model.likelihood
    if not isinstance(posterior, Gaussian) or posterior.flow is None:
        return
    with torch.no_grad(), random.stream(1):
        mean = posterior().draw(8192).z.mean(0)
        if isinstance(posterior.flow, Planar) and posterior.mean is not None:
            # The planes move with the points.
            posterior.flow.b += posterior.flow.w @ mean
            posterior.mean -= mean
        elif isinstance(posterior.flow, InverseAutoregressive) and posterior.flow.length == 1:
            # Its outputs are all scales, then all shifts.
            posterior.flow.made.biases[-1][:, len(mean) :] -= mean
        elif isinstance(posterior.flow, Triangular):
            posterior.flow.static[: len(mean)] -= mean
        else:
            return
        likelihood.shift += mean


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
        found = {"closed_form": gap.item(), "temperature": posterior.temperature.item()}
    if posterior.base.base == "fixed" and posterior.tempering != "free":
        best = best_hamiltonian_gap(1 / exact.variance, exact.mean, posterior.steps, posterior.tempering == "fixed")
        found["closed_form_best"] = best.gap
    return found


def restart(model: Any) -> None:
    """Step sizes and temperature that are best for the present Δ and σ."""
    import torch

    from varflow.targets import best_hamiltonian_gap

    posterior = model.posterior
    with torch.no_grad():
        exact = model.likelihood.exact()
    tempered = posterior.tempering == "fixed"
    best = best_hamiltonian_gap(1 / exact.variance, exact.mean, posterior.steps, tempered)
    with torch.no_grad():
        steps = best.steps.clamp(max=0.99 * posterior.bound)
        posterior.step_logit.copy_((steps / (posterior.bound - steps)).log())
        if tempered:
            posterior.log_excess.fill_(math.log(best.temperature - 1))


def _whole(model: Any) -> dict[str, float]:
    """Exact log p(D) of all data, one z behind them, below its maximum; whatever the batches were."""
    from varflow.targets.gaussian_statistics import best_variance, evidence

    likelihood = model.likelihood
    if not hasattr(likelihood, "affine_gradient"):
        return {}
    statistics = likelihood.statistics()
    best = evidence(statistics, statistics.mean, best_variance(statistics.count, statistics.scatter)).sum()
    return {"short": (best - likelihood.exact().log_evidence).item(),
            "ridge": (likelihood.shift - statistics.mean).square().sum().item()}  # fmt: skip


def fit(options: argparse.Namespace, cases: list[Case]) -> None:
    for case in cases:
        for d in case.dimensions:
            out = options.out / f"{case.name}-{d}"
            if options.dimensions and d not in options.dimensions:
                continue
            if fit_one(case, d, out, options.threads, options.evaluate):
                return


def fit_one(case: Case, d: int, out: Path, threads: int | None = None, evaluate: int = 50_000) -> int:
    """Fit, polish and evaluate a case at one dimension, from where the fit was cut off; results.json says it is done.

    Returns:
        the signal that the fit was ended by, or 0.
    """
    import varflow as vf
    from varflow.settings import recipes

    if (out / "results.json").exists():
        return 0
    spec = recipes.find("gaussian-model").spec.replace(dimensions=d, threads=threads, **case.settings)
    ensemble = vf.Ensemble(build(case, spec))
    ended = json.loads((out / "run.json").read_text()).get("outcome", {}) if (out / "spec.json").exists() else None
    if ended is None:
        run = vf.fit(ensemble, out=out, overwrite=True, quiet=True, **_changed(spec))
    elif ended.get("finished"):
        run = vf.load(out, parts={"ensemble": ensemble})
    else:
        run = vf.resume(out, parts={"ensemble": ensemble}, quiet=True)
    if not run.outcome["finished"]:
        return int(run.outcome["signal"] or 1)
    adam = run.outcome["seconds"]
    before = run.model.monitor()
    start = time.perf_counter()
    members = run.model.members()
    if case.half and spec.target.batches == "full":
        for member in members:
            recentre(member)
            if case.restart:
                restart(member)
    fitted = vf.Ensemble(members)
    evaluations = polish(fitted, case.nodes, case.iterations) if case.nodes else 0
    polished = time.perf_counter() - start
    start = time.perf_counter()
    found = vf.evaluation.evaluate_target(fitted, samples=evaluate)
    rows = [
        {
            "data_set": index,
            "before": {name: values[index] for name, values in before.items()},
            **{name: float(v[index]) for name, v in found.per_example.items()},
            **closed_form(fitted.member(index)),
            **_whole(fitted.member(index)),
        }
        for index in range(DATA_SETS)
    ]  # fmt: skip
    result = {"case": case.name, "label": case.label, "dimensions": d, "seconds": adam + polished,
              "seconds_adam": adam, "evaluations": evaluations, "fits": rows}  # fmt: skip
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print(case.name, d, f"Adam {adam:.0f} s, L-BFGS {polished:.0f} s ({evaluations}), evaluation "
          f"{time.perf_counter() - start:.0f} s;", _line(rows), flush=True)  # fmt: skip
    return 0


def _changed(spec: Any) -> dict[str, Any]:
    """What a run of models built beforehand still has to be told."""
    names = ("samples", "optimizer", "lr", "decay", "batch", "precision", "keep", "control", "threads")
    budget = {"steps": spec.training.steps} if spec.training.steps else {"epochs": spec.training.epochs}
    return {**{name: spec.get(name) for name in names}, **budget}


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else math.nan


def _line(rows: list[dict[str, Any]]) -> str:
    keys = ("kl_q_p", "closed_form", "closed_form_best", "diagonal_gap", "evidence_gap", "short", "shift_error",
            "scale_error", "scale_floor", "noise_error", "noise_floor", "temperature")  # fmt: skip
    return " ".join(f"{key}={_mean(rows, key):.5g}" for key in keys if any(key in row for row in rows))


def _results(options: argparse.Namespace, cases: list[Case]) -> list[dict[str, Any]]:
    found = [options.out / f"{case.name}-{d}" / "results.json" for case in cases for d in case.dimensions]
    return [json.loads(path.read_text()) for path in found if path.exists()]


def table(options: argparse.Namespace, cases: list[Case]) -> None:
    """Markdown, means over the data sets; the error of the ELBO is Monte Carlo's, of the mean."""
    names = ("posterior", "d", "ELBO", "log p(D), exact, at the fit", "gap: log p(D) − ELBO", "gap in closed form",
             "log p(D) below its maximum", "‖Δ − x̄‖²", "error of σ (Σ)", "maximum likelihood's", "s")  # fmt: skip
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for result in _results(options, cases):
        rows = result["fits"]
        error = math.sqrt(sum(row["elbo_variance"] for row in rows)) / len(rows)
        noise = "noise" if "noise_error" in rows[0] else "scale"
        # In closed form the gap is that of all data; blocks apart have another bound.
        closed = math.nan if "separate" in result["case"] else _mean(rows, "closed_form")
        short = _mean(rows, "short") if "short" in rows[0] else _mean(rows, "evidence_gap")
        shift = _mean(rows, "ridge") if "ridge" in rows[0] else _mean(rows, "shift_error")
        cells = [
            result["label"], str(result["dimensions"]), f"{_mean(rows, 'elbo'):.1f}",
            f"{_mean(rows, 'log_evidence'):.1f}", f"{_mean(rows, 'kl_q_p'):.5g} ± {error:.1g}",
            "" if math.isnan(closed) else f"{closed:.5g}", f"{short:.4g}",
            f"{shift:.2g}", f"{_mean(rows, f'{noise}_error'):.3g}", f"{_mean(rows, f'{noise}_floor'):.3g}",
            f"{result['seconds']:.0f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def summary(options: argparse.Namespace, cases: list[Case]) -> None:
    """Markdown: the gap and the error of σ by dimension, for the cases that have all of them."""
    whole = [case for case in cases if len(case.dimensions) >= 3]
    for title, key, closed in (("log p(D) − ELBO, nats (closed form)", "kl_q_p", "closed_form"),
                               ("‖σ̂ − σ‖²", "scale_error", ""), ("‖Δ̂ − x̄‖²", "ridge", "")):  # fmt: skip
        print(f"\n| {title} | " + " | ".join(f"d = {d}" for d in DIMENSIONS) + " |")
        print("|" + "---|" * (len(DIMENSIONS) + 1))
        floors: dict[int, float] = {}
        for case in whole:
            found = {result["dimensions"]: result["fits"] for result in _results(options, [case])}
            floors |= {d: _mean(rows, "scale_floor") for d, rows in found.items()}
            cells = []
            for d in DIMENSIONS:
                rows = found.get(d, [])
                value, exact = _mean(rows, key), _mean(rows, closed)
                text = "" if math.isnan(value) else _short(value)
                cells.append(text if math.isnan(exact) else f"{text} ({_short(exact)})")
            if found:
                print(f"| {case.label} | " + " | ".join(cells) + " |")
        if key == "scale_error":
            print("| maximum likelihood | " + " | ".join(_short(floors.get(d, math.nan)) for d in DIMENSIONS) + " |")


def _short(value: float) -> str:
    if abs(value) < 1e-4:
        return "< 0.0001"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


DRAWN = {
    "vb": "VB (Gaussian)", "hamiltonian-none-1": "Hamiltonian, none, K = 1",
    "hamiltonian-fixed-1": "Hamiltonian, fixed, K = 1", "hamiltonian-fixed-10": "Hamiltonian, fixed, K = 10",
    "hamiltonian-free-10": "Hamiltonian, free, K = 10", "planar-1-fixed": "planar, K = 1",
    "planar-30-fixed": "planar, K = 30", "iaf-1-fixed": "IAF, K = 1",
}  # fmt: skip
CURVES = 100
BEST = "closed form of fixed, K = 1"


def figure(options: argparse.Namespace, cases: list[Case]) -> None:
    """Errors by dimension above, learning curves of one dimension below; exact references in both."""
    import varflow as vf
    from varflow.core.files import read_metrics
    from varflow.targets import best_hamiltonian_gap, simulate

    rows, gaps = [], {BEST: {}}
    for result in _results(options, [case for case in cases if case.name in DRAWN]):
        about = {"family": DRAWN[result["case"]], "dimensions": result["dimensions"]}
        rows += [{**row, **about} for row in result["fits"]]
    for d in DIMENSIONS:
        model = simulate(d)
        best = model.maximum_likelihood()
        precision = 1 + model.statistics().count / best.variance
        gaps[BEST][d] = best_hamiltonian_gap(precision, 0.0, 1).gap
    with vf.figures.style():
        drawing, axes = vf.figures.canvas(2, 3, 13.0, 8.2)
        vf.figures.error_by_dimension(rows, axes[0], gaps)
        colours = vf.figures.base.categories(len(DRAWN))
        for (name, label), colour in zip(DRAWN.items(), colours, strict=True):
            folder = options.out / f"{name}-{CURVES}"
            if not (folder / "results.json").exists():
                continue
            metrics = [row for row in read_metrics(folder) if row["split"] == "train"]
            fits = json.loads((folder / "results.json").read_text())["fits"]
            top, steps = _mean(fits, "log_evidence_best"), [row["step"] for row in metrics]
            curves = ([top - row["elbo"] for row in metrics], *(
                [sum(row[key]) / len(row[key]) for row in metrics] for key in ("shift_to_best", "scale_to_truth")
            ))  # fmt: skip
            ends = (top - _mean(fits, "elbo"), _mean(fits, "shift_error"), _mean(fits, "scale_error"))
            for panel, values, end in zip(axes[1], curves, ends, strict=True):
                panel.plot(steps, [v if v > 0 else math.nan for v in values], color=colour, label=label)
                panel.plot(steps[-1] * 1.03, max(end, 1e-4), marker="v" if end < 1e-4 else "o", color=colour,
                           markersize=6, clip_on=False)  # fmt: skip
        floor = _mean([row for row in rows if row["dimensions"] == CURVES], "scale_floor")
        axes[1][2].axhline(floor, color=vf.figures.base.INK, linestyle=":")
        labels = ("max log p(D) − ELBO (nats)", "‖Δ − x̄‖²", "‖σ − σ*‖²")
        for panel, label in zip(axes[1], labels, strict=True):
            panel.set(xlabel=f"update, d = {CURVES} (mark: after the exact polish)", ylabel=label, yscale="log")
            panel.set_ylim(bottom=1e-4)
        vf.figures.save(drawing, "docs/gaussian_model.png", dpi=85)


if __name__ == "__main__":
    main()
