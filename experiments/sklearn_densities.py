"""FlowDensity as it comes, beside scikit-learn's mixture and kernel estimates, each tuned by a search of its own.

    python experiments/sklearn_densities.py            (about four minutes on one core)
    python experiments/sklearn_densities.py wine

Prints the table of docs/sklearn.md: log p of held-out rows in nats, in the units of the data, over five folds; every
row is held out once. The rivals stand behind a StandardScaler and are searched by cross-validation within the
training rows of each fold: the mixture over components, covariance type and ridge, the kernel over its bandwidth.
FlowDensity has its defaults in every fold. All three densities are asked for the rows as they are.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from varflow.sklearn import FlowDensity

DATA = ("wine", "breast_cancer")
FOLDS = 5


def mixture(seed: int) -> Any:
    grid = {
        "n_components": [1, 2, 3, 5, 8],
        "covariance_type": ["full", "tied", "diag"],
        "reg_covar": [1e-6, 1e-4, 1e-3, 1e-2, 1e-1],
    }
    return GridSearchCV(GaussianMixture(max_iter=200, random_state=seed), grid, cv=5)


def kernel(seed: int) -> Any:
    return GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.05, 2, 30)}, cv=5)


def flow(seed: int) -> Any:
    return FlowDensity(random_state=seed, settings={"threads": 1})


def held_out(name: str) -> tuple[dict[str, np.ndarray], dict[str, float], tuple[int, ...]]:
    """log p of every row when it is held out, and the seconds of all fits, of each estimator; and the shape."""
    x = np.asarray(getattr(datasets, f"load_{name}")().data)
    made = {"FlowDensity": flow, "GaussianMixture": mixture, "KernelDensity": kernel}
    scores = {estimator: np.empty(len(x)) for estimator in made}
    seconds = dict.fromkeys(made, 0.0)
    for seed, (train, test) in enumerate(KFold(FOLDS, shuffle=True, random_state=0).split(x)):
        for estimator, make in made.items():
            begun = time.perf_counter()
            if estimator == "FlowDensity":
                scores[estimator][test] = make(seed).fit(x[train]).score_samples(x[test])
            else:
                scaler = StandardScaler()
                search = make_pipeline(scaler, make(seed)).fit(x[train])
                best = search[-1].best_estimator_
                # In the units of the scaler, and from there in those of the data.
                scores[estimator][test] = best.score_samples(scaler.transform(x[test])) - np.log(scaler.scale_).sum()
            seconds[estimator] += time.perf_counter() - begun
    return scores, seconds, x.shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="*", help=", ".join(DATA))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    heads = ("data", "n", "D", "FlowDensity", "GaussianMixture", "KernelDensity", "less the better rival", "s")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in options.data or DATA:
        scores, seconds, shape = held_out(name)
        means = {estimator: f"{each.mean():.2f} ± {each.std(ddof=1) / len(each) ** 0.5:.2f}"
                 for estimator, each in scores.items()}  # fmt: skip
        ours, *rivals = scores.values()
        gap = ours - max(rivals, key=lambda each: float(each.mean()))
        took = " / ".join(f"{s:.0f}" for s in seconds.values())
        print(
            f"| {name} | {shape[0]} | {shape[1]} | {' | '.join(means.values())} | "
            f"{gap.mean():+.2f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.2f} | {took} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
