"""From times to a Markdown file in benchmarks/results."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.timing import CLOCKS, Bar, Times, bars_table, ratio, times_table

RESULTS = Path(__file__).parent / "results"

#: What keeps torch's own kernels, oneDNN, MKL and varflow's compiled code to the instructions of a processor
#: without AVX-512. Each library reads its variable once, when it is loaded.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "VARFLOW_NATIVE_FLAGS": "-mno-avx512f",
}


def parser(question: str, blocks: int, steps: int, warmup: int) -> argparse.ArgumentParser:
    """The options that every question has."""
    made = argparse.ArgumentParser(
        description=question, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--blocks", type=int, default=blocks, help="rounds: blocks of each contestant")
    made.add_argument("--steps", type=int, default=steps, help="timed steps in a block")
    made.add_argument("--warmup", type=int, default=warmup, help="training steps before the first block")
    made.add_argument("--threads", type=int, default=2, help="CPU threads")
    clock = "wall, or cpu: with one thread, for a busy machine"
    made.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help=clock)
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    made.add_argument("--keep-denormals", action="store_true", help="leave denormal numbers as they are")
    made.add_argument("--flushed-only", action="store_true", help="skip the second process, which keeps them")
    limited = "native, or avx2: everybody without AVX-512, where the processor has it; into a table of its own"
    made.add_argument("--instructions", choices=("native", "avx2"), default="native", help=limited)
    made.add_argument("--json", type=Path, help="write the raw times here, and no table")
    return made


def start(options: argparse.Namespace) -> None:
    """Threads and denormals: before torch does anything in parallel, so that all threads inherit them."""
    if options.clock == "cpu" and options.threads != 1:
        sys.exit("--clock cpu: adds up the time of all threads; give --threads 1")
    if options.instructions == "avx2" and any(os.environ.get(name) != value for name, value in AVX2.items()):
        # Once more from the start: a library may have been loaded already.
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **AVX2})
    import torch

    torch.set_flush_denormal(not options.keep_denormals)
    torch.set_num_threads(options.threads)
    torch.ones(1 << 20).mul_(2.0)


def both_ways(
    module: str, options: argparse.Namespace, measure: Callable[[argparse.Namespace], dict[str, list[float]]]
) -> tuple[dict[str, list[float]], dict[str, list[float]]] | None:
    """The times with denormals flushed, and those of a second process that keeps them.

    None in that second process: it hands its times to the first one.
    """
    if options.json is not None:
        options.json.write_text(json.dumps(measure(options)))
        return None
    flushed = measure(options)
    if options.flushed_only:
        return flushed, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "times.json"
        given = ["--blocks", options.blocks, "--steps", options.steps, "--warmup", options.warmup]
        given += ["--threads", options.threads, "--clock", options.clock, "--keep-denormals", "--json", path]
        given += ["--instructions", options.instructions]
        subprocess.run([sys.executable, "-m", module, *map(str, given)], check=True)
        return flushed, json.loads(path.read_text())


def training_parts(flushed: Times, kept: Times, bars: Sequence[Bar]) -> list[str]:
    """The tables of a question about training steps."""
    rows = []
    for row in times_table(flushed):
        plain = f"{np.median(kept[row[0]]) * 1e3:.3g}" if kept else "not measured"
        rows.append([*row, plain, str(ratio(flushed[row[0]], flushed[bars[0].theirs]))])
    head = ["contestant", "ms per step", "p10–p90", "denormals kept", f"against {bars[0].theirs} [95 %]"]
    checks = table(["ratio of medians", "found [95 %]", "at most", "aim", ""], bars_table(flushed, bars))
    return [
        "Dense VAE 784-400-400-40, dynamically binarized MNIST, batch 128, float32, Adam 1e-3. A step is data → loss "
        "→ backward → update, after the warm-up; denormals flushed for all, but in the fourth column.",
        table(head, rows),
        checks,
    ]


def machine(options: argparse.Namespace) -> str:
    """The machine and the versions, in one line."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), model)
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "varflow", "pythae", "normflows", "zuko", "pyro-ppl"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    load = f"load average {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    run = f"{model}, {os.cpu_count()} cores, threads: {options.threads}, {options.clock} time"
    if options.instructions != "native":
        run += f", everybody kept to AVX2 ({' '.join(f'{name}={value}' for name, value in AVX2.items())})"
    return f"{run}; {', '.join(versions)}; {load}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(module: str, options: argparse.Namespace, title: str, parts: Sequence[str]) -> Path:
    """``results/<question>.md``, whole or not at all; also printed."""
    question = module.rpartition(".")[2]
    given = f"--blocks {options.blocks} --steps {options.steps} --warmup {options.warmup} --threads {options.threads}"
    if options.flushed_only:
        given += " --flushed-only"
    if options.clock != "wall":
        given += f" --clock {options.clock}"
    if options.instructions != "native":
        given += f" --instructions {options.instructions}"
        question += f"_{options.instructions}"
    about = [f"`python -m {module} {given}`", machine(options)]
    text = "\n\n".join([f"# {title}", *about, *parts]) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    path: Path = options.out / f"{question}.md"
    with tempfile.NamedTemporaryFile("w", dir=options.out, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    print(text)
    return path
