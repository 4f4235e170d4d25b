"""How time and memory grow: with batch, latents, flow steps, samples, leapfrog steps, rows, fits and widths.

Every point is a process of its own, so that its peak of memory is its own; points of all curves take turns in a
random order each round. The slope on logarithmic axes is the power that time or memory grows with.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

MODULE = "benchmarks.scaling"

#: Does a unit of work, or several, and says how many.
Work = Callable[[], object]


@dataclass(frozen=True)
class Curve:
    """One size that varies.

    Attributes:
        what: what is timed.
        size: what varies.
        values: its values.
        prepare: (value, options) → the work that is timed, once it stands in memory.
        time, memory: the powers expected at the end of the curve, at most.
        why: where they come from.
        work: what the work counts as, in the table.
    """

    what: str
    size: str
    values: Sequence[int]
    prepare: Callable[[int, argparse.Namespace], Work]
    time: float
    memory: float
    why: str
    work: str = "step"


@dataclass
class Point:
    """What was measured at one value."""

    seconds: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)


# -- what is timed ---------------------------------------------------------------------------------


def dense(**settings: Any) -> Callable[[int, argparse.Namespace], Work]:
    """A training step of the dense VAE on MNIST; the setting whose value is ``...`` varies."""

    def prepare(value: int, options: argparse.Namespace) -> Work:
        from benchmarks import dense

        chosen = {name: value if given is ... else given for name, given in settings.items()}
        step: Work = dense.varflow_loop(dense.mnist(), options, **chosen).update
        return step

    return prepare


def target(recipe: str, **settings: Any) -> Callable[[int, argparse.Namespace], Work]:
    """A training step of a fit to a target."""

    def prepare(value: int, options: argparse.Namespace) -> Work:
        from varflow.runs.assemble import for_target
        from varflow.runs.folder import Memory
        from varflow.settings import recipes
        from varflow.training.engine import Engine
        from varflow.training.loop import Loop
        from varflow.training.progress import Progress

        chosen = {name: value if given is ... else given for name, given in settings.items()}
        spec = recipes.find(recipe).spec.replace(steps=10**6, threads=options.threads, device="cpu", **chosen)
        engine = Engine.start(spec.training)
        model, dataset = for_target(spec, {})
        loop = Loop(model, dataset, spec, engine, Memory(), Progress(0, quiet=True))
        loop.model.train()

        def some() -> int:
            """What a fit takes at once: a step, or where compiled code has the whole of it all up to a record."""
            began, loop._filled = loop.step, 0
            loop._advance()
            return loop.step - began

        return some

    return prepare


def importance(value: int, options: argparse.Namespace) -> Work:
    """log p̂(x) of 8 test images by ``value`` importance samples each."""
    import torch

    from benchmarks import dense
    from varflow.evaluation import importance_sample

    dataset = dense.mnist()
    model = dense.varflow_loop(dataset, options, flow="planar").model.eval()
    x = dataset.batch("test", torch.arange(8)).x
    return lambda: importance_sample(model, x, value)


def rows(value: int, options: argparse.Namespace) -> Work:
    """A training step on a file of ``value`` rows; reading the file is part of its memory."""
    return _on_file(value, options)[0]


def reading(value: int, options: argparse.Namespace) -> Work:
    """From the file to a loop that is ready for its first update."""
    return _on_file(value, options)[1]


def _on_file(value: int, options: argparse.Namespace) -> tuple[Work, Work]:
    from varflow.data import load
    from varflow.runs.assemble import build
    from varflow.runs.folder import Memory
    from varflow.settings import recipes
    from varflow.training.engine import Engine
    from varflow.training.loop import Loop
    from varflow.training.progress import Progress

    path = options.files / f"{value}.npy"
    if not path.exists():
        block = np.random.default_rng(0).standard_normal((10_000, 32), dtype=np.float32)
        whole = np.lib.format.open_memmap(path, "w+", np.float32, (value, 32))
        for first in range(0, value, len(block)):
            whole[first : first + len(block)] = block[: value - first] + np.float32(first)
        whole.flush()
        del whole
    spec = recipes.find("density").spec.replace(
        data=str(path), steps=10**6, batch=256, threads=options.threads, device="cpu"
    )
    engine = Engine.start(spec.training)

    def begin() -> Loop:
        dataset = load(str(path), protocol=spec.get("protocol")).to(engine.device, engine.dtype)
        loop = Loop(build(spec, dataset), dataset, spec, engine, Memory(), Progress(0, quiet=True))
        loop.model.train()
        return loop

    held: list[Loop] = []

    def step() -> object:
        if not held:
            held.append(begin())
        return held[0].update()

    return step, begin


PLANAR = {"flow": "planar", "amortized": True}
#: Two hidden widths of a coupling or an autoregressive step follow D: its products grow with D².
_PRODUCTS = "the widths of its networks follow D, so its products grow with D²"
CURVES = {
    "batch": Curve(
        "dense VAE, planar × 16 amortized", "batch", (32, 64, 128, 256, 512, 1024, 2048), dense(batch=..., **PLANAR),
        1, 1, "activations and products are of the batch",
    ),
    "latents, planar": Curve(
        "dense VAE, planar × 16 amortized", "D", (8, 16, 32, 64, 128, 256, 512), dense(latent=..., **PLANAR),
        1, 1, "the layer that gives the flow's parameters has 16 (2 D + 1) outputs",
    ),
    "latents, IAF": Curve(
        "dense VAE, IAF × 4 amortized", "D", (8, 16, 32, 64, 128, 256),
        dense(latent=..., flow="iaf", length=4, amortized=True), 2, 2, _PRODUCTS,
    ),
    "latents, NICE": Curve(
        "dense VAE, NICE × 16 amortized", "D", (8, 16, 32, 64, 128, 256),
        dense(latent=..., flow="additive", length=16, amortized=True), 2, 2, _PRODUCTS,
    ),
    "steps, planar": Curve(
        "dense VAE, planar amortized", "K", (4, 8, 16, 32, 64, 128), dense(length=..., **PLANAR),
        1, 1, "each step has parameters of its own",
    ),
    "steps, static planar": Curve(
        "energy u1, planar, 256 samples", "K", (4, 8, 16, 32, 64, 128, 256), target("energy", length=...),
        1, 1, "each step has parameters of its own",
    ),
    "steps, IAF": Curve(
        "dense VAE, IAF amortized", "K", (1, 2, 4, 8, 16), dense(flow="iaf", length=..., amortized=True),
        1, 1, "a network a step",
    ),
    "steps, NICE": Curve(
        "dense VAE, NICE amortized", "K", (2, 4, 8, 16, 32, 64), dense(flow="additive", length=..., amortized=True),
        1, 1, "a network a step",
    ),
    "importance samples": Curve(
        "log p̂(x) of 8 images, planar × 16", "samples", (500, 2_000, 8_000, 32_000, 128_000), importance,
        1, 0, "samples are drawn in blocks, of which sums are kept", "8 images",
    ),
    "samples of a bound": Curve(
        "dense VAE, IWAE, batch 32", "k", (1, 2, 4, 8, 16, 32, 64),
        dense(objective="iwae", samples=..., batch=32), 1, 1, "the decoder reads every sample",
    ),
    "leapfrog steps": Curve(
        "dense VAE, Hamiltonian posterior", "leapfrog steps", (1, 2, 4, 8, 16), dense(leapfrog=...),
        1, 1, "a gradient of the decoder a step, kept for the outer gradient",
    ),
    "rows": Curve(
        "density (MAF) on a .npy of 32 columns", "rows", (10_000, 40_000, 160_000, 640_000, 2_560_000), rows,
        0, 1, "a step reads its batch; the file lies in memory",
    ),
    "rows, until the first step": Curve(
        "the same: reading, preprocessing, model", "rows", (10_000, 40_000, 160_000, 640_000, 2_560_000), reading,
        1, 1, "every row is read once", "start",
    ),
    "fits": Curve(
        "energy u1, planar × 32, 256 samples", "fits", (1, 2, 4, 8, 16, 32, 64), target("energy", fits=...),
        1, 1, "fits are stacked, and know nothing of each other",
    ),
    "dimensions of a target": Curve(
        "Gaussian model, leapfrog 10", "d", (4, 16, 64, 256), target("gaussian-model", dimensions=..., leapfrog=10),
        2, 2, "its statistics are d × d",
    ),
    "widths": Curve(
        "dense VAE, planar × 16 amortized", "hidden width", (64, 128, 256, 512, 1024, 2048),
        dense(hidden=..., **PLANAR), 2, 2, "layers between two hidden ones have width² weights",
    ),
}  # fmt: skip


# -- one point, in a process of its own ------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def point(options: argparse.Namespace) -> None:
    """Print what one point takes, as JSON."""
    report.start(options)
    name, value = options.point
    curve = CURVES[name]
    import varflow.evaluation
    import varflow.runs.fitting  # noqa: F401

    before = resident()
    work = curve.prepare(int(value), options)
    for _ in range(options.warmup if curve.work == "step" else 1):
        work()
    now = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    seconds: list[float] = []
    began = time.perf_counter()
    # Short work often, long work at least three times.
    while len(seconds) < 3 or (len(seconds) < options.steps and time.perf_counter() - began < options.seconds):
        start = now()
        done = work()
        seconds.append((now() - start) / (done if isinstance(done, int) else 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(json.dumps({"seconds": float(np.median(seconds)), "peak": max(peak, 0)}))


def measure(options: argparse.Namespace, files: str) -> dict[str, dict[int, Point]]:
    names = [name for name in CURVES if options.only is None or name in options.only]
    points = [(name, value) for name in names for value in CURVES[name].values]
    found: dict[str, dict[int, Point]] = {name: {v: Point() for v in CURVES[name].values} for name in names}
    given = ["--steps", options.steps, "--warmup", options.warmup, "--threads", options.threads]
    given += ["--clock", options.clock, "--seconds", options.seconds, "--files", files]
    given += ["--instructions", options.instructions]
    shuffle = random.Random(0)
    for _ in range(options.blocks):
        shuffle.shuffle(points)
        for name, value in points:
            command = [sys.executable, "-m", MODULE, *map(str, given), "--point", name, str(value)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            told = json.loads(printed.splitlines()[-1])
            found[name][value].seconds.append(told["seconds"])
            found[name][value].peak.append(told["peak"])
            said = f"{name} {value}: {told['seconds']:.4g} s, {told['peak'] / 2**20:.0f} MiB"
            print(said, file=sys.stderr, flush=True)
    return found


# -- tables ----------------------------------------------------------------------------------------


def slope(values: Sequence[float], measured: Sequence[float]) -> float:
    """The power that ``measured`` grows with: least squares on logarithmic axes."""
    return float(np.polyfit(np.log(values), np.log(np.maximum(measured, 1e-12)), 1)[0])


def judged(power: float, expected: float, noise: float = 0.15) -> str:
    return "" if power <= expected + noise else "**above**"


def lines(name: str, points: dict[int, Point]) -> tuple[list[str], list[list[str]]]:
    """The row of a curve in the table of powers, and its own table."""
    curve, values = CURVES[name], list(points)
    seconds = [min(points[value].seconds) for value in values]
    peak = [float(np.median(points[value].peak)) for value in values]
    last = slice(-3, None)
    time_end, memory_end = slope(values[last], seconds[last]), slope(values[last], peak[last])
    verdict = judged(time_end, curve.time) or judged(memory_end, curve.memory, 0.25) or "as expected"
    row = [
        f"{curve.size}: {curve.what}", f"{values[0]:,} … {values[-1]:,}", f"{slope(values, seconds):.2f}",
        f"{time_end:.2f}", f"{curve.time:g}", f"{memory_end:.2f}", f"{curve.memory:g}",
        verdict, curve.why,
    ]  # fmt: skip
    each = []
    for value, took, bytes_ in zip(values, seconds, peak, strict=True):
        spread = points[value].seconds
        range_ = f"{min(spread) * 1e3:.3g}–{max(spread) * 1e3:.3g}"
        each.append([f"{value:,}", f"{took * 1e3:.3g}", range_, f"{took / value * 1e6:.3g}", f"{bytes_ / 2**20:.0f}"])
    return row, each


def main() -> None:
    parser = report.parser((__doc__ or "").partition("\n")[0], blocks=2, steps=60, warmup=20)
    parser.add_argument("--only", nargs="+", choices=list(CURVES), help="some of the curves")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each point, once it has its steps in three")
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.flushed_only = False
    if options.point:
        point(options)
        return
    with tempfile.TemporaryDirectory() as files:
        found = measure(options, files)
    head = ["size", "from … to", "power of time", "of its last three points", "expected", "power of memory there",
            "expected", "", "why"]  # fmt: skip
    summary, details = [], []
    for name, points in found.items():
        row, each = lines(name, points)
        summary.append(row)
        curve = CURVES[name]
        details += [
            f"### {name}: {curve.what}",
            report.table([curve.size, f"ms a {curve.work}", "lowest–highest", "µs for each", "peak MiB"], each),
        ]
    parts = [
        "Every point is a process of its own. Its time is the median over its repetitions, and of several processes "
        "the fastest; its memory is the peak of the process above what it had once its modules were imported, data "
        "included. The power p is the slope on logarithmic axes: twice the size takes 2^p the time. Small sizes are "
        "bound by the number of operations, so the last three points say how a curve goes on; they are compared with "
        "what is expected, with a margin of 0.15 for time and 0.25 for memory.",
        report.table(head, summary),
        *details,
    ]
    report.write(MODULE, options, "Scaling", parts)


if __name__ == "__main__":
    main()
