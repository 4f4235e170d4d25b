"""The Gaussian model with a Hamiltonian posterior: a whole step against h-vae's formulation."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from benchmarks import report
from benchmarks.timing import Bar, Contestant, Times, bars_table, interleave, times_table

MODULE = "benchmarks.gaussian_model"
COUNT, LEAPFROG, SAMPLES = 10_000, 10, 256
SIZES = (25, 100, 400)
PRECISIONS = ("float32", "float64")


def loop(options: argparse.Namespace, d: int, precision: str) -> Any:
    """The loop that ``varflow.fit("gaussian-model", leapfrog=10, tempering="fixed")`` runs."""
    import torch

    from varflow.runs import assemble
    from varflow.runs.folder import Memory
    from varflow.settings import recipes
    from varflow.training.engine import Engine
    from varflow.training.loop import Loop
    from varflow.training.progress import Progress

    spec = recipes.find("gaussian-model").spec.replace(
        dimensions=d, observations=COUNT, samples=SAMPLES, leapfrog=LEAPFROG, tempering="fixed",
        step_shape="dimension", base_moments="fixed", initial_step=0.005, initial_temperature=5.0,
        optimizer="rmsprop", lr=1e-3, decay="none", steps=10**7, precision=precision, threads=options.threads,
    )  # fmt: skip
    engine = Engine.start(spec.training)
    torch.set_flush_denormal(not options.keep_denormals)
    model, dataset = assemble.for_target(spec, {})
    made = Loop(model, dataset, spec, engine, Memory(), Progress(0, quiet=True))
    made.model.train()
    return made


def formulation(d: int, precision: str) -> Callable[[], object]:
    """One step as h-vae writes it: moments of the rows and 2K gradients a step, all under autograd, RMSprop."""
    import torch

    from varflow.targets.gaussian_data import generate

    dtype = getattr(torch, precision)
    rows = generate(d, COUNT).data.to(dtype)
    shift = torch.zeros(d, dtype=dtype, requires_grad=True)
    log_scale = torch.full((d,), 3.0, dtype=dtype, requires_grad=True)
    logit = torch.full((d,), math.log(0.005 / 0.495), dtype=dtype, requires_grad=True)
    log_excess = torch.tensor(math.log(4.0), dtype=dtype, requires_grad=True)
    optimizer = torch.optim.RMSprop([shift, log_scale, logit, log_excess], lr=1e-3)

    def step() -> None:
        mean = rows.mean(0)
        second = torch.einsum("ni,nj->ij", rows, rows)
        variance, size = (2 * log_scale).exp(), 0.5 * torch.sigmoid(logit)

        def slope(z: torch.Tensor) -> torch.Tensor:
            return z + COUNT * (z + shift - mean) / variance

        z = torch.randn(SAMPLES, d, dtype=dtype)
        level = 1 + log_excess.exp()
        rho = level * torch.randn(SAMPLES, d, dtype=dtype)
        for k in range(1, LEAPFROG + 1):
            rho = rho - 0.5 * size * slope(z)
            z = z + size * rho
            rho = rho - 0.5 * size * slope(z)
            following = 1 + log_excess.exp() * (1 - k**2 / LEAPFROG**2)
            rho, level = following / level * rho, following
        inverse = (-2 * log_scale).exp()
        trace = torch.trace(torch.diag(inverse) @ second)
        squares = ((z + shift) * inverse * (z + shift - 2 * mean)).sum(1).mean()
        energy = z.square().sum(1).mean() + rho.square().sum(1).mean()
        bound = -COUNT * log_scale.sum() - 0.5 * (trace + COUNT * squares + energy)
        loss = -(bound + d - 0.5 * COUNT * d * math.log(2 * math.pi))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(options: argparse.Namespace) -> Times:
    report.start(options)
    contestants = []
    for precision in PRECISIONS:
        for d in SIZES:
            steps = {"varflow": loop(options, d, precision).update, "h-vae's formulation": formulation(d, precision)}
            for name, step in steps.items():
                for _ in range(options.warmup):
                    step()
                contestants.append(Contestant(f"{name}, d = {d}, {precision}", step))
    return interleave(contestants, options.blocks, options.steps, clock=options.clock)


def bar(d: int, precision: str) -> Bar:
    must, aim = (0.13, 0.05) if d == max(SIZES) else (1.0, None)
    suffix = f"d = {d}, {precision}"
    return Bar(f"varflow, {suffix}", f"h-vae's formulation, {suffix}", must, aim)


def main() -> None:
    options = report.parser(__doc__ or "", blocks=15, steps=10, warmup=30).parse_args()
    options.flushed_only = True
    times = measure(options)
    checks = [bar(d, precision) for precision in PRECISIONS for d in SIZES]
    about = (
        f"N = {COUNT:,}, K = {LEAPFROG} leapfrog steps, fixed tempering, a step size for each dimension, "
        f"{SAMPLES} samples, base N(0, I), all data in each step, RMSprop: noise → loss → backward → update."
    )
    parts = [
        about,
        report.table(["contestant", "ms per step", "p10–p90"], times_table(times)),
        report.table(["ratio of medians", "found [95 %]", "at most", "aim", ""], bars_table(times, checks)),
    ]
    report.write(MODULE, options, "The Gaussian model with a Hamiltonian posterior", parts)


if __name__ == "__main__":
    main()
