"""HVAE against IWAE on 10,000 pictures at equal training time, by bounds that hold: does the HVAE overfit?

    python experiments/equal_time.py fit    --out runs/equal_time --minutes 45     (both at once, one core each)
    python experiments/equal_time.py table  --out runs/equal_time
    python experiments/equal_time.py figure --out runs/equal_time

The recipes hvae-mnist (15 leapfrog steps) and iwae-mnist (40 importance samples) on the network of the h-vae program,
whose notebook concludes that the HVAE overfits and draws sharper digits, often of the wrong class. `fit` stops each
after so many minutes. `table` sets beside each other: log p(x) of test and of training pictures by importance
sampling; how many reconstructions a classifier, trained on binarized digits, gives the label of the original; and how
sharp the pictures are, as the mean entropy of their pixels.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import varflow as vf
from varflow import evaluation, figures
from varflow.core import random
from varflow.figures import pictures

#: Test pictures that are reconstructed and judged, and samples.
PICTURES = 1000
RECIPES = ("hvae-mnist", "iwae-mnist")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["fit", "table", "figure"])
    parser.add_argument("--out", type=Path, default=Path("runs/equal_time"))
    parser.add_argument("--minutes", type=float, default=45.0, help="of training, each")
    parser.add_argument("--points", type=int, default=400, help="test, and training, pictures that log p(x) is of")
    parser.add_argument("--samples", type=int, default=64, help="importance samples of each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    {"fit": fit, "table": table, "figure": figure}[options.action](options)


def fit(options: argparse.Namespace) -> None:
    """Both at the same time; each is told to save and end when its training has taken long enough."""
    running = {}
    for recipe in RECIPES:
        out = options.out / recipe
        command = [sys.executable, "-m", "varflow", "fit", recipe, "--out", str(out), "--seed", str(options.seed)]
        command += ["--epochs", "1000", "--threads", "1", "--quiet", "--no-report", "--overwrite"]
        running[recipe] = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(60 * options.minutes)
    for process in running.values():
        process.send_signal(signal.SIGTERM)
    for recipe, process in running.items():
        # After SIGTERM a fit saves what it has, and ends with a code of its own.
        print(f"{recipe}: ended with {process.wait()}", flush=True)


@torch.no_grad()
def table(options: argparse.Namespace) -> None:
    """The Markdown table, to standard output."""
    judge = classifier()
    head = ["recipe", "minutes", "updates", "−log p(x), test", "ELBO, test", "−log p(x), train", "train − test"]
    head += ["reconstructions of the right class", "entropy of a reconstruction", "entropy of a sample"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for recipe in RECIPES:
        run = vf.load(options.out / recipe)
        found = {
            split: evaluation.evaluate(
                run.model, run.dataset, split=split, samples=options.samples, limit=options.points
            )
            for split in ("test", "train")
        }
        test, train = (each.per_example["log_px"] for each in found.values())
        less = test.mean() - train.mean()
        error = np.sqrt(test.var(ddof=1) / len(test) + train.var(ddof=1) / len(train))
        index = torch.arange(PICTURES)
        batch = run.dataset.batch("test", index)
        with random.stream(0, 0):
            made = run.model.reconstruct(batch.x)
            samples = run.model.sample(PICTURES, mean=True)
        labels = run.dataset.labels("test")[:PICTURES]
        right = (judge(made).argmax(1) == labels).float()
        last = json.loads((options.out / recipe / "metrics.jsonl").read_text().splitlines()[-1])
        elbo = found["test"].estimates["elbo"]
        row = [
            recipe,
            f"{last['seconds'] / 60:.0f}",
            f"{last['step']:,}",
            f"{-test.mean():.2f} ± {test.std(ddof=1) / len(test) ** 0.5:.2f}",
            f"{elbo.value:.2f} ± {elbo.standard_error:.2f}",
            f"{-train.mean():.2f} ± {train.std(ddof=1) / len(train) ** 0.5:.2f}",
            f"{less:+.2f} ± {error:.2f}",
            f"{100 * right.mean():.1f} ± {100 * right.std() / len(right) ** 0.5:.1f} %",
            *(f"{entropy(x).mean():.1f}" for x in (made, samples)),
        ]
        print("| " + " | ".join(row) + " |", flush=True)
    right = (judge(batch.x).argmax(1) == labels).float().mean()
    print(f"\nThe classifier on the binarized originals: {100 * right:.1f} %.")


def entropy(p: Tensor) -> Tensor:
    """Nats of all pixels of each picture of probabilities."""
    q = p.double().clamp(1e-12, 1 - 1e-12)
    return -(q * q.log() + (1 - q) * (1 - q).log()).flatten(1).sum(1)


@torch.enable_grad()
def classifier(epochs: int = 3) -> nn.Module:
    """Trained on binarized training pictures; reconstructions are judged by their probabilities."""
    data = vf.data.load("mnist", protocol="threshold")
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for index in torch.randperm(data.sizes["train"]).split(128):
            loss = F.cross_entropy(network(data.batch("train", index).x), data.labels("train")[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def figure(options: argparse.Namespace) -> None:
    """Test pictures beside their reconstructions, and samples, of both."""
    with figures.style():
        drawn, axes = figures.canvas(2, len(RECIPES), 10.4, 8.8)
        for column, recipe in enumerate(RECIPES):
            run = vf.load(options.out / recipe)
            x = run.dataset.batch("test", torch.arange(40)).x
            with random.stream(0, 0):
                made, samples = run.model.reconstruct(x), run.model.sample(81, mean=True)
            pictures.reconstructions(x.numpy(), made.numpy(), axes[0, column], columns=5)
            pictures.image_grid(samples.numpy(), axes[1, column])
            axes[0, column].set_title(f"{recipe}: test pictures, each with its reconstruction")
            axes[1, column].set_title("samples")
        print(figures.save(drawn, options.out / "equal_time.png"))


if __name__ == "__main__":
    main()
