"""Anomaly scores of a density and of a VAE, beside scikit-learn's detectors, on breast_cancer.

    python experiments/anomalies.py            (a few minutes on one core)

Trained on benign rows alone: 80 % of them, split at random five times. The other benign rows and all malignant ones
are scored, and the area under the ROC curve tells how often a malignant row scores lower than a benign one. No
detector sees a malignant row or is tuned; each runs with its defaults, scikit-learn's on standardized columns. The
error is that of the mean over splits. The paired difference is to the best of scikit-learn's. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.covariance import EllipticEnvelope
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.preprocessing import StandardScaler

import varflow as vf

Score = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def density(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """log p(x), exact."""
    return vf.fit("density", train, seed=seed, quiet=True).log_prob(test)


def vae(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """log p(x) by 100 importance samples under eight latents."""
    run = vf.fit(
        "digits", train, likelihood="gaussian", protocol="standardize", latent=8, hidden=64, steps=3000, seed=seed,
        quiet=True,
    )  # fmt: skip
    return run.log_prob(test)


def of_sklearn(detector: Callable[[int], object]) -> Score:
    """A detector of scikit-learn's; higher is more normal."""

    def score(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        scaler = StandardScaler().fit(train)
        fitted = detector(seed).fit(scaler.transform(train))  # type: ignore[attr-defined]
        scored: np.ndarray = fitted.score_samples(scaler.transform(test))
        return scored

    return score


METHODS: dict[str, Score] = {
    "varflow density": density,
    "varflow VAE": vae,
    "IsolationForest": of_sklearn(lambda seed: IsolationForest(random_state=seed)),
    "LocalOutlierFactor": of_sklearn(lambda seed: LocalOutlierFactor(novelty=True)),
    "EllipticEnvelope": of_sklearn(lambda seed: EllipticEnvelope(random_state=seed)),
    "GaussianMixture, 5": of_sklearn(lambda seed: GaussianMixture(5, reg_covar=1e-3, random_state=seed)),
    "KernelDensity, 1": of_sklearn(lambda seed: KernelDensity(bandwidth=1.0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--splits", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, target = load_breast_cancer(return_X_y=True)
    benign, malignant = rows[target == 1], rows[target == 0]
    areas: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in range(options.splits):
        order = np.random.default_rng(seed).permutation(len(benign))
        cut = round(0.8 * len(benign))
        train, held = benign[order[:cut]], benign[order[cut:]]
        test = np.concatenate([held, malignant])
        for name, score in METHODS.items():
            found = score(train, test, seed)
            areas[name].append(float(roc_auc_score(np.arange(len(test)) < len(held), found)))
            print(f"  split {seed}, {name}: {areas[name][-1]:.4f}", flush=True)
    best = max((name for name in METHODS if "varflow" not in name), key=lambda name: np.mean(areas[name]))
    print(f"\n| method | area under the ROC curve | less {best} |\n|---|---|---|")
    for name, found in areas.items():
        apart = np.subtract(found, areas[best])
        print(f"| {name} | {_with_error(found)} | {_with_error(list(apart)) if name != best else ''} |")


def _with_error(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    main()
