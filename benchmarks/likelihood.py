"""Test likelihood: minutes for 1,000 importance samples of each of MNIST's 10,000 test images."""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks import report
from benchmarks.timing import Contestant, Times, interleave, ratio

MODULE = "benchmarks.likelihood"
SAMPLES, TEST = 1000, 10_000


def measure(options: argparse.Namespace) -> Times:
    report.start(options)
    import torch

    from benchmarks import dense
    from varflow.evaluation import importance_sample

    dataset = dense.mnist()
    x = dataset.batch("test", torch.arange(options.images)).x
    times: Times = {}
    contestants = []
    for flow in ("none", "planar"):
        loop = dense.varflow_loop(dataset, options, flow=flow)
        for _ in range(options.warmup):
            loop.update()

        def ours(model=loop.model) -> object:  # type: ignore[no-untyped-def]
            return importance_sample(model, x, SAMPLES)

        contestants.append(Contestant(f"varflow, {flow}", ours))
    few = x[: options.rival_images]
    for flow, layers in (("none", ()), ("planar", ["Planar"] * dense.LENGTH)):
        step, model = dense.pythae_model(dense.Batches(dataset), layers)
        for _ in range(options.warmup):
            step()

        @torch.no_grad()
        def theirs(model=model) -> object:  # type: ignore[no-untyped-def]
            model.eval()
            return model.get_nll(few, n_samples=SAMPLES, batch_size=SAMPLES)

        contestants.append(Contestant(f"pythae, {flow}", theirs))
    times = interleave(contestants, options.blocks, options.steps, settle=0, clock=options.clock)
    per_image = {"varflow": options.images, "pythae": options.rival_images}
    return {name: [t / per_image[name.partition(",")[0]] for t in values] for name, values in times.items()}


def main() -> None:
    made = report.parser(__doc__ or "", blocks=10, steps=1, warmup=200)
    made.add_argument("--images", type=int, default=256, help="test images that varflow is timed on")
    made.add_argument("--rival-images", type=int, default=16, help="test images that pythae is timed on")
    options = made.parse_args()
    times = measure(options)
    rows = []
    for name, values in times.items():
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
        against = ratio(values, times[name.replace("varflow", "pythae")])
        spread = f"{low * 1e3:.3g}–{high * 1e3:.3g}"
        rows.append([name, f"{middle * 1e3:.3g}", spread, f"{middle * TEST / 60:.2g}", str(against)])
    parts = [
        f"{SAMPLES} importance samples an image, dense VAE 784-400-400-40, diagonal posterior and 16 static planar "
        f"steps. Timed on {options.images} images (varflow) and {options.rival_images} (pythae, image by image, in "
        f"batches of {SAMPLES} samples); the minutes for {TEST:,} images are extrapolated from them. varflow also "
        "returns the terms of the bound, the Monte-Carlo error, effective sample size and Pareto k̂ of each image.",
        report.table(["estimator", "ms per image", "p10–p90", "minutes for 10,000", "against pythae [95 %]"], rows),
    ]
    report.write(MODULE, options, "Test likelihood", parts)


if __name__ == "__main__":
    main()
