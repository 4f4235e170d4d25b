"""One CUDA device, once, in a bounded time: the CUDA slice of the tests, then a table of training steps.

    python -m benchmarks.gpu                          # on a CUDA device, eight minutes at most
    python -m benchmarks.gpu --device cpu --quick     # does this script run? seconds, and no numbers to keep

Needs no network: data are read from VARFLOW_DATA, or drawn. Every row is written to the result as soon as it is
there. What the time did not suffice for is listed, and so is what failed, with its sentence.

A step is rows → noise → forward → backward → update, without validation and records. *eager*, *graph* (the whole step
as one CUDA graph), *compiled* (torch.compile) and both together are the same spec with other settings. An error that
leaves the device unusable ends the process; what is left is measured in another one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from varflow.core import random
from varflow.core.errors import DataError
from varflow.data import from_codes, from_tensor, load
from varflow.data.dataset import Dataset
from varflow.runs.assemble import build, density, for_target
from varflow.runs.folder import Memory
from varflow.settings.recipes import find
from varflow.training.engine import Engine
from varflow.training.loop import Loop
from varflow.training.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
#: Sizes that --quick makes small, where a recipe has them.
QUICK = {
    "hidden": 16, "layers": 1, "latent": 4, "length": 2, "batch": 16, "codes": 8, "code_features": 8, "blocks": 1,
    "prior_channels": 8, "prior_length": 2, "prior_hidden": 8, "fits": 3, "base": 4, "dense": 16, "leapfrog": 1,
}  # fmt: skip

Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table: a recipe with settings, and plain or foreign steps beside it."""

    name: str
    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)
    data: str = "grey"
    rivals: tuple[str, ...] = ()


ROWS = (
    Row("dense, diagonal", "dense", {"batch": 128}, rivals=("plain PyTorch", "pythae")),
    Row("dense, planar × 16 amortized", "dense", {"flow": "planar", "length": 16, "amortized": True}),
    Row("dense, IAF × 4 amortized", "dense", {"flow": "iaf", "length": 4, "amortized": True}),
    Row("dense, NICE × 16 amortized", "dense", {"flow": "nice", "length": 16, "amortized": True}),
    Row("IWAE, k = 50, batch 20", "iwae", {"samples": 50, "batch": 20}),
    Row("conv-static", "conv-static"),
    Row("VQ-VAE", "vq-vae", data="colour"),
    Row("gated PixelCNN on 8 × 8 codes", "vq-gated-pixelcnn", data="codes"),
    Row("HVAE, 5 leapfrog steps", "hvae"),
    Row("energy u1, planar × 32", "energy", {"length": 32}, data="target"),
    Row("64 energy fits at once", "energy", {"length": 32, "fits": 64}, data="target"),
    Row("dense, diagonal, bf16", "dense", {"batch": 128, "precision": "bf16"}),
)


class Clock:
    """The time that is left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


@dataclass
class Result:
    """What has been measured so far, and the file that says it."""

    options: argparse.Namespace
    path: Path
    tests: str = "not run"
    rows: list[list[str]] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def kept(self) -> Path:
        """Where another process finds what this one has."""
        return self.path.with_suffix(".json")

    def take_up(self) -> None:
        """Go on from what an earlier process has measured."""
        for name, value in json.loads(self.kept.read_text(encoding="utf-8")).items():
            setattr(self, name, value)

    def hand_over(self) -> None:
        names = ("tests", "rows", "extra", "left_out")
        self.kept.write_text(json.dumps({name: getattr(self, name) for name in names}), encoding="utf-8")

    def write(self) -> None:
        head = ["step", "ms per step", "first step, s", "peak MiB", "weights apart from eager"]
        parts = [
            "# One CUDA device",
            f"`python -m benchmarks.gpu{_given(self.options)}`",
            about_device(self.options.device),
            "A step is rows → noise → forward → backward → update. Medians of five blocks; the peak is of memory "
            "that torch has given out. The last column is the largest difference of a weight from that after the "
            "eager steps on the same device, after twelve steps of each: 0 is equal to the bit.",
            f"Tests: {self.tests}",
            report.table(head, self.rows) if self.rows else "No step was measured.",
            *self.extra,
        ]
        if self.left_out:
            parts.append("Left out:\n\n" + "\n".join(f"- {line}" for line in self.left_out))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        os.replace(unfinished, self.path)


def _given(options: argparse.Namespace) -> str:
    words = [] if options.device == "cuda" else ["--device", options.device]
    return " ".join(["", *words, *(["--quick"] if options.quick else [])])


def about_device(device: str) -> str:
    if device.startswith("cuda"):
        facts = torch.cuda.get_device_properties(torch.device(device))
        name = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}"
        name += f", CUDA {torch.version.cuda}"
    else:
        name = f"{platform.processor() or platform.machine()} (no CUDA device: a trial of the script alone)"
    return f"{name}; Python {platform.python_version()}, torch {torch.__version__}"


# -- data and loops ----------------------------------------------------------------------------------


def dataset(kind: str, quick: bool) -> Any:
    """Grey or colour pictures, or codes: real ones where VARFLOW_DATA has them, else drawn ones of their size."""
    rows = 200 if quick else 20_000
    source = torch.Generator().manual_seed(0)
    if kind == "codes":
        codes = {
            split: torch.randint(0, 8 if quick else 128, (n, 8, 8), dtype=torch.uint8, generator=source)
            for split, n in (("train", rows), ("validation", 100), ("test", 100))
        }
        return from_codes(codes)
    name, shape = ("mnist", (1, 28, 28)) if kind == "grey" else ("cifar10", (3, 32, 32))
    protocol = "dynamic" if kind == "grey" else "logit"
    if not quick and os.environ.get("VARFLOW_DATA"):
        with contextlib.suppress(DataError):
            return load(name, protocol=protocol)
    size = (shape[0], 16, 16) if quick else shape
    # Smooth blobs: most pixels dark, as in digits.
    coarse = torch.rand(rows, size[0], 7, 7, generator=source)
    noise = torch.nn.functional.interpolate(coarse, size[1:], mode="bilinear")
    pixels = (255 * (noise - 0.4).clamp(0, 0.4) / 0.4).to(torch.uint8)
    return from_tensor(pixels, protocol=protocol)


class Cache:
    """Each data set once, on the device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._held: dict[tuple[str, torch.dtype], Dataset] = {}

    def __call__(self, kind: str, dtype: torch.dtype = torch.float32) -> Dataset:
        if (kind, dtype) not in self._held:
            self._held[kind, dtype] = dataset(kind, self.options.quick).to(self.options.device, dtype)
        return self._held[kind, dtype]


def loop_of(row: Row, mode: str, cache: Cache) -> Loop:
    """The loop of a row as ``varflow.fit`` builds it."""
    options = cache.options
    spec = find(row.recipe).spec.replace(**row.settings)
    if options.quick:
        held = {name: value for part in spec.parts.values() for name, value in part.values().items()}
        small = {name: value for name, value in QUICK.items() if held.get(name) not in (None, 0, 1)}
        if isinstance(held.get("channels"), str):
            small["channels"] = "8-8"
        elif "channels" in held:
            small["channels"] = 8
        spec = spec.replace(**small)
    limits = {name: None for name in ("train_limit", "validation_limit") if spec.get(name) is not None}
    changed: dict[str, Any] = {
        "steps": 10**7, "decay": "none", "device": options.device, "compile": "compiled" in mode, "seed": 0,
        "graph": "on" if "graph" in mode else "off", "threads": options.threads, **limits,
    }  # fmt: skip
    spec = spec.replace(**changed)
    spec.validate()
    engine = Engine.start(spec.training)
    data: Any
    model: Any
    if row.data == "target":
        model, data = for_target(spec, {})
    elif row.data == "codes":
        from varflow.runs import code_prior

        data = cache("codes", engine.dtype)
        codes = 8 if options.quick else 128
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = density(spec.prior.build((8, 8), codes))
        spec = code_prior.settings(spec)
    else:
        data = cache(row.data, engine.dtype)
        model = build(spec, data)
    model = model.to(device=engine.device, dtype=engine.dtype)
    made = Loop(model, data, spec, engine, Memory(), Progress(0, quiet=True))
    made.model.train()
    return made


# -- measuring -------------------------------------------------------------------------------------


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def per_step(step: Step, device: str, seconds: float, most: int) -> float:
    """The median over five blocks of the milliseconds of a step, in about ``seconds``."""
    begun, tried = time.perf_counter(), 0
    while tried < min(3, most) or (time.perf_counter() - begun < seconds / 6 and tried < most):
        step()
        tried += 1
    wait(device)
    each = (time.perf_counter() - begun) / tried
    count = max(1, min(most, int(seconds / 6 / each)))
    found = []
    for _ in range(5 if most > 1 else 1):
        wait(device)
        start = time.perf_counter()
        for _ in range(count):
            step()
        wait(device)
        found.append((time.perf_counter() - start) / count)
    return 1e3 * sorted(found)[len(found) // 2]


def weights_after(loop: Loop, steps: int) -> dict[str, torch.Tensor]:
    for _ in range(steps):
        loop.update()
    return {name: tensor.detach().double().cpu() for name, tensor in loop.model.state_dict().items()}


@contextlib.contextmanager
def peak(device: str) -> Iterator[list[str]]:
    """The most memory that torch gave out inside, in MiB."""
    found = ["–"]
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if device.startswith("cuda"):
        found[0] = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}"


def measure(row: Row, mode: str, cache: Cache, references: dict[str, Any], seconds: float) -> list[str]:
    device = cache.options.device
    with peak(device) as most:
        loop = loop_of(row, mode, cache)
        begun = time.perf_counter()
        loop.update()
        wait(device)
        first = time.perf_counter() - begun
        weights = weights_after(loop, 1 if cache.options.quick else 11)
        took = per_step(loop.update, device, seconds, 1 if cache.options.quick else 2000)
    if "graph" in mode and not (loop._graph is not None and loop._graph.captured):
        raise RuntimeError("the step was not captured")
    shown = "–"
    if mode == "eager":
        references[row.name] = weights
    elif row.name in references:
        reference = references[row.name]
        apart = [float((weights[name] - reference[name]).abs().max()) for name in weights if weights[name].numel()]
        shown = f"{max(apart):.2g}"
    return [f"{row.name}: {mode}", f"{took:.3f}", f"{first:.1f}", most[0], shown]


def rival(row: Row, name: str, cache: Cache, seconds: float) -> list[str]:
    """A step of somebody else's code on the same batches."""
    from benchmarks import dense

    options = cache.options
    data = cache(row.data)
    if options.quick:
        dense.PIXELS, dense.HIDDEN, dense.LATENT, dense.BATCH = 256, 16, 4, 16
    batches = Batches(data, dense.BATCH)
    with peak(options.device) as most:
        if name == "plain PyTorch":
            model = dense.Script([]).to(options.device)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

            def step() -> None:
                loss = model(batches())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        else:
            if options.quick:
                raise RuntimeError("has its sizes fixed; not part of a trial")
            made, model = dense.pythae_model(lambda: batches().reshape(-1, 1, 28, 28))  # type: ignore[arg-type]
            model.to(options.device)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

            def step() -> None:
                loss = model({"data": batches().reshape(-1, 1, 28, 28)}).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

            del made
        begun = time.perf_counter()
        step()
        wait(options.device)
        first = time.perf_counter() - begun
        took = per_step(step, options.device, seconds, 1 if options.quick else 2000)
    return [f"{row.name}: {name}", f"{took:.3f}", f"{first:.1f}", most[0], "–"]


class Batches:
    """Batches of a rival: a fresh permutation on the device in each epoch, binarized there."""

    def __init__(self, data: Dataset, size: int) -> None:
        self.data, self.size, self.step = data, size, 0
        self.per_epoch = data.sizes["train"] // size

    def __call__(self) -> torch.Tensor:
        position = self.step % self.per_epoch
        if position == 0:
            self.order = torch.randperm(self.data.sizes["train"], device=self.data.device)
        with random.stream(0, self.step):
            x = self.data.batch("train", self.order[position * self.size : (position + 1) * self.size]).x
        self.step += 1
        return x


def kernels(cache: Cache) -> str:
    """The time of the kernels of a dense step against that of the step, launched as a graph."""
    from torch.profiler import ProfilerActivity, profile

    loop, device = loop_of(ROWS[0], "graph", cache), cache.options.device
    for _ in range(20):
        loop.update()
    wait(device)
    begun = time.perf_counter()
    for _ in range(200):
        loop.update()
    wait(device)
    whole = (time.perf_counter() - begun) / 200
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(20):
            loop.update()
        wait(device)
    # An operation of the host is charged with its kernels, too.
    on_device = [e for e in found.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.self_device_time_total for event in on_device) / 20 / 1e6
    return (
        f"A dense step as a graph takes {1e3 * whole:.3f} ms, its kernels {1e3 * busy:.3f} ms: a ratio of "
        f"{whole / busy:.2f} (the aim is 1.5)."
    )


def importance(cache: Cache, seconds: float) -> str:
    """Importance sampling of a dense VAE: samples a second."""
    from varflow.evaluation.importance import importance_sample

    device, quick = cache.options.device, cache.options.quick
    loop = loop_of(ROWS[0], "eager", cache)
    points, samples = (2, 20) if quick else (128, 5000)
    x = cache("grey").batch("test", torch.arange(points, device=device)).x
    importance_sample(loop.model, x, samples)  # type: ignore[arg-type]
    wait(device)
    with peak(device) as most:
        begun, count = time.perf_counter(), 0
        while count == 0 or (time.perf_counter() - begun < seconds and not quick):
            importance_sample(loop.model, x, samples)  # type: ignore[arg-type]
            wait(device)
            count += 1
        took = (time.perf_counter() - begun) / count
    return (
        f"Importance sampling, dense, {points} points × {samples:,} samples: {took:.3f} s, "
        f"{points * samples / took:,.0f} weights a second, peak {most[0]} MiB."
    )


# -- the parts ---------------------------------------------------------------------------------------


def tests(options: argparse.Namespace, seconds: float) -> str:
    """The slice of the suite that needs a CUDA device; on a CPU the same tests on the CPU, a few of them."""
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=40", "-p", "no:cacheprovider"]
    if options.device.startswith("cuda"):
        slice_of = ("test_devices.py", "flows/test_contract.py", "test_likelihoods.py", "targets/test_densities.py")
        command += ["-m", "cuda", *(f"tests/{name}" for name in slice_of)]
    else:
        command += ["tests/test_devices.py", "-k", "cpu and digits and terms"]
    log = options.out / "gpu-tests.txt"
    with open(log, "w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, check=False
            ).returncode
            ended = "all passed" if code == 0 else f"pytest ended with {code}"
        except subprocess.TimeoutExpired:
            ended = f"cut off after {seconds:.0f} s"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    last = lines[-1].strip("= ") if lines else "no output"
    shown = "".join(f"\n- `{line[:200]}`" for line in failed[:40])
    return f"{ended}; {last} (all of it in `{log.name}`){shown}"


def attempt(result: Result, name: str, act: Callable[[], Any]) -> Any:
    """What ``act`` gives; where it fails its sentence is noted, and the rest goes on."""
    try:
        return act()
    except Exception as error:
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        result.left_out.append(f"{name}: {type(error).__name__}: {words[:200]}")
        return None
    finally:
        result.write()


def table(result: Result, clock: Clock, cache: Cache) -> None:
    """All rows eager and as a graph, then rivals, then what needs compiling: the dearest last."""
    options = result.options
    on_cuda = options.device.startswith("cuda")
    references: dict[str, Any] = {}
    work: list[tuple[str, Callable[[float], list[str]]]] = []

    def add(row: Row, modes: Sequence[str]) -> None:
        for mode in modes:
            work.append((f"{row.name}: {mode}", partial(measure, row, mode, cache, references)))

    for row in ROWS:
        add(row, ("eager", "graph") if on_cuda else ("eager",))
        work += [(f"{row.name}: {name}", partial(rival, row, name, cache)) for name in row.rivals]
    for row in () if options.quick else ROWS:
        add(row, ("compiled", "compiled graph"))
    for number, (name, act) in enumerate(work):
        if number < options.begin:
            continue
        if "pythae" in name and importlib.util.find_spec("pythae") is None:
            result.left_out.append(f"{name}: pythae is not installed")
            continue
        # Compiling one step can take a minute.
        if clock.left < (60 if "compiled" in name else 5):
            result.left_out.append(f"{name}: no time was left")
            continue
        share = min(2.0, clock.left / (len(work) - number) / 2)
        found = attempt(result, name, partial(act, share))
        if found is None and on_cuda and not _works(options.device):
            result.hand_over()
            words = ["--device", options.device, "--minutes", str(clock.left / 60), "--begin", str(number + 1)]
            words += ["--no-tests", "--threads", str(options.threads), "--out", str(options.out)]
            os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *words])
        if found is not None:
            result.rows.append(found)
            print("  ".join(found), flush=True)
            result.write()


def _works(device: str) -> bool:
    """Whether the device still computes, after an error."""
    try:
        torch.cuda.empty_cache()
        return float(torch.ones(2, device=device).sum()) == 2.0
    except RuntimeError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …; cpu tries the script")
    parser.add_argument("--quick", action="store_true", help="small models and a few steps: does it run?")
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="the table alone")
    parser.add_argument("--no-table", dest="table", action="store_false", help="the tests alone")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the result")
    parser.add_argument("--begin", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: no CUDA device is available here; --device cpu --quick tries the script")
    if not options.device.startswith("cuda") and not options.quick:
        sys.exit("benchmarks.gpu: --device cpu is for a trial; add --quick")
    options.out.mkdir(parents=True, exist_ok=True)
    clock = Clock(60 * options.minutes)
    result = Result(options, options.out / ("gpu-trial.md" if options.quick else "gpu.md"))
    if options.begin:
        result.take_up()
    result.write()
    if options.tests:
        # With the tests two fifths of the time at most: the table is what cannot be had elsewhere.
        result.tests = attempt(result, "tests", lambda: tests(options, 0.4 * clock.left)) or "failed to start"
        print(result.tests, flush=True)
        result.write()
    if options.table:
        cache = Cache(options)
        if not options.begin:
            found = attempt(result, "importance sampling", lambda: importance(cache, 3.0))
            result.extra += [found] if found else []
        if not options.begin and options.device.startswith("cuda"):
            found = attempt(result, "kernels of a dense step", lambda: kernels(cache))
            result.extra += [found] if found else []
        table(result, clock, cache)
    result.kept.unlink(missing_ok=True)
    result.write()
    print(f"{result.path}: {len(result.rows)} rows, {len(result.left_out)} left out, {clock.left:.0f} s left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
