"""`fit density` as it comes, beside a Gaussian mixture and a kernel estimate tuned on the same validation rows.

    python experiments/density_defaults.py            (about ten minutes on one core)
    python experiments/density_defaults.py wine moons --splits 1

Prints the table of docs/densities.md: −log p of the test rows in nats, in the units of the data. Small data sets are
split at random several times, and errors are over all test rows of all splits together. The rivals are tuned by the
mean of log p of the validation rows, the mixture over components, covariance type, ridge and two starts, the kernel
over its bandwidth. All three have the same rows under the same preprocessing, with one draw of its noise: tables
under `protocol=table` (rounded columns dequantized, heavy tails taken away), digits dequantized and brought to
logits. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

import varflow as vf

_COMPONENTS, _RIDGES = (1, 2, 3, 5, 8, 12, 20, 40), (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
#: Beyond so many numbers in the covariances of a mixture, fits take minutes and win nothing here.
_LARGEST = 1 << 16
Rows = dict[str, np.ndarray]


def table(name: str) -> Callable[[], np.ndarray]:
    """A table of scikit-learn's, with all its columns."""
    return lambda: np.asarray(getattr(datasets, f"load_{name}")().data)


def moons(rows: int) -> Callable[[], np.ndarray]:
    return lambda: datasets.make_moons(rows, noise=0.1, random_state=0)[0]


#: name → (rows, splits at random)
DATA: dict[str, tuple[Callable[[], np.ndarray], int]] = {
    "wine": (table("wine"), 5),
    "moons-178": (moons(178), 5),
    "diabetes": (table("diabetes"), 3),
    "breast_cancer": (table("breast_cancer"), 3),
    "digits": (lambda: datasets.load_digits().images[:, None].astype(np.uint8), 1),
    "moons-5000": (moons(5000), 1),
}


def splits(rows: np.ndarray, seed: int) -> Rows:
    """A tenth each for validation and test."""
    order, tenth = np.random.default_rng(seed).permutation(len(rows)), round(len(rows) / 10)
    validation, test, train = np.split(rows[order], [tenth, 2 * tenth])
    return {"train": train, "validation": validation, "test": test}


def ours(rows: Rows, levels: int | None) -> tuple[np.ndarray, Rows, np.ndarray, int, float]:
    """log p of the test rows; the rows as the model sees them, and their ladj; updates, seconds."""
    begun = time.perf_counter()
    given: Any = {split: torch.from_numpy(x) for split, x in rows.items()}
    settings: dict[str, Any] = {"quiet": True, "threads": 1}
    if levels is not None:
        settings |= {"levels": levels, "protocol": "logit"}
    run = vf.fit("density", given, **settings)
    seconds = time.perf_counter() - begun
    seen, ladj = {}, np.zeros(0)
    for split in rows:
        with vf.random.stream(0), torch.no_grad():
            batch = run.dataset.batch(split, torch.arange(len(rows[split])))
        seen[split] = batch.x.flatten(1).double().numpy()
        if split == "test":
            ladj = batch.ladj.double().numpy()
            log_prob = run.model.terms(batch.x).log_weight[0].detach().double().numpy() + ladj
    return log_prob, seen, ladj, run.outcome["step"], seconds


def mixture(rows: Rows) -> tuple[str, np.ndarray]:
    """The Gaussian mixture that is best on the validation rows: its name, and log p of the test rows."""
    train, held, test = rows["train"], rows["validation"], rows["test"]
    best, name, found = -np.inf, "", test[:, 0]
    for kind in ("full", "tied", "diag", "spherical"):
        for components in _COMPONENTS:
            if 5 * components > len(train) or components * train.shape[1] ** 2 > _LARGEST:
                continue
            for ridge in _RIDGES:
                for seed in range(2 if components > 1 else 1):
                    made = GaussianMixture(
                        components, covariance_type=kind, reg_covar=ridge, random_state=seed, max_iter=200
                    ).fit(train)
                    if (score := made.score(held)) > best:
                        best, name, found = score, f"{components} {kind}, {ridge:g}", made.score_samples(test)
    return name, found


def kernel(rows: Rows) -> tuple[str, np.ndarray]:
    """The kernel density estimate whose bandwidth is best on the validation rows."""
    fits = [KernelDensity(bandwidth=width).fit(rows["train"]) for width in np.geomspace(0.02, 2, 40)]
    best = max(fits, key=lambda fit: fit.score(rows["validation"]))
    return f"{best.bandwidth:.2g}", best.score_samples(rows["test"])


def row(name: str, count: int | None) -> tuple[str, float]:
    """The row of a data set, and how many nats the default is behind the better rival."""
    make, repeats = DATA[name]
    rows, scores, told = make(), [], []
    for seed in range(count or repeats):
        log_prob, seen, ladj, steps, seconds = ours(splits(rows, seed), 17 if name == "digits" else None)
        mean, scale = seen["train"].mean(0), seen["train"].std(0)
        scale = np.where(scale > 0, scale, 1.0)
        standard = {split: (x - mean) / scale for split, x in seen.items()}
        mixed, by_mixture = mixture(standard)
        width, by_kernel = kernel(standard)
        units = ladj - np.log(scale).sum()
        scores.append(np.stack([log_prob, by_mixture + units, by_kernel + units]))
        told.append((mixed, width, steps, seconds))
    each = -np.concatenate(scores, 1)
    values, errors = each.mean(1), each.std(1, ddof=1) / each.shape[1] ** 0.5
    better = 1 + int(values[1:].argmin())
    gap = each[0] - each[better]
    behind, noise = gap.mean(), gap.std(ddof=1) / len(gap) ** 0.5
    mixed, width = told[0][:2]
    steps, seconds = max(t[2] for t in told), max(t[3] for t in told)
    features = int(np.prod(rows.shape[1:]))
    text = (
        f"| {name} | {len(rows):,} | {features} | {len(told)} | {values[0]:.2f} ± {errors[0]:.2f} | {values[1]:.2f} "
        f"({mixed}) | {values[2]:.2f} ({width}) | {behind:+.2f} ± {noise:.2f} | {steps:,} | {seconds:.0f} |"
    )
    return text, float(behind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="*", help=", ".join(DATA))
    parser.add_argument("--splits", type=int, help="of each data set; without it as many as the table has")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    heads = (
        "data", "n", "D", "splits", "varflow", "mixture (K, covariance, ridge)", "kernel (width)",
        "against the better", "updates", "s",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    worst = -np.inf
    for name in options.data or DATA:
        text, behind = row(name, options.splits)
        print(text, flush=True)
        worst = max(worst, behind)
    print(f"\nFurthest behind the better rival: {worst:+.2f} nats.")


if __name__ == "__main__":
    main()
