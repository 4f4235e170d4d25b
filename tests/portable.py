"""The suite as other machines would run it: other instruction sets, compilers, threads, seeds, orders.

    make test-portable                                      every configuration below
    make test-portable CONFIGS="aten-default seed"          those whose name begins so
    make test-portable CONFIGS=slice                        what continuous integration runs
    python tests/portable.py seed -- tests/flows -k inverse what follows -- goes to pytest

Prints a table at the end. The exit status is 0 if no configuration failed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: Where rounding and random numbers meet a bound. Tests of files, flags and pages are not among them.
NUMERICAL = [
    *("tests/flows", "tests/networks", "tests/priors", "tests/targets"),
    *("tests/posteriors/test_hamiltonian.py", "tests/evaluation", "tests/test_hmc.py"),
    *("tests/test_likelihoods.py", "tests/test_native_made.py", "tests/test_native_bernoulli.py"),
]


def _x86() -> str:
    machine = platform.machine().lower()
    return "" if machine in ("x86_64", "amd64") else f"for x86-64, and this is {machine}"


def _clang() -> str:
    return "" if shutil.which("clang++") else "clang++ is not installed"


def _anywhere() -> str:
    return ""


@dataclass
class Configuration:
    """One row of the table."""

    name: str
    environment: dict[str, str]
    #: Why it cannot run here; empty where it can.
    obstacle: Callable[[], str] = _anywhere
    #: Handed to pytest where the command line says nothing.
    arguments: list[str] = field(default_factory=list)
    #: Run only when asked for by its whole name.
    by_name: bool = False


CONFIGURATIONS = [
    Configuration("aten-default", {"ATEN_CPU_CAPABILITY": "default"}, _x86),
    Configuration("aten-avx2", {"ATEN_CPU_CAPABILITY": "avx2"}, _x86),
    Configuration("onednn-sse41", {"DNNL_MAX_CPU_ISA": "SSE41"}, _x86),
    Configuration("mkl-sse42", {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, _x86),
    Configuration("native-off", {"VARFLOW_NATIVE": "0"}),
    Configuration("native-v2", {"VARFLOW_NATIVE_FLAGS": "-march=x86-64-v2"}, _x86),
    Configuration("native-clang", {"CXX": "clang++"}, _clang),
    Configuration("threads-1", {"VARFLOW_TEST_THREADS": "1", "OMP_NUM_THREADS": "1"}),
    Configuration("threads-2", {"VARFLOW_TEST_THREADS": "2", "OMP_NUM_THREADS": "2"}),
    *(Configuration(f"seed-{seed}", {"VARFLOW_TEST_SEED": str(seed)}) for seed in range(1, 6)),
    *(Configuration(f"order-{seed}", {"VARFLOW_TEST_ORDER": str(seed)}) for seed in (1, 2)),
    # Much at once, so that a short run sees most of what the whole matrix would.
    Configuration(
        "slice",
        {
            "ATEN_CPU_CAPABILITY": "default",
            "VARFLOW_NATIVE_FLAGS": "" if _x86() else "-march=x86-64-v2",
            "VARFLOW_TEST_SEED": "1",
            "VARFLOW_TEST_ORDER": "1",
        },
        arguments=NUMERICAL,
        by_name=True,
    ),
]


def choose(wanted: list[str]) -> list[Configuration]:
    """The configurations whose names begin with one of ``wanted``; all without any.

    Raises:
        SystemExit: a name that nothing begins with.
    """
    if not wanted:
        return [one for one in CONFIGURATIONS if not one.by_name]
    for name in wanted:
        if not any(one.name.startswith(name) for one in CONFIGURATIONS):
            names = ", ".join(one.name for one in CONFIGURATIONS)
            raise SystemExit(f"portable: no configuration begins with '{name}'; choices: {names}")
    return [one for one in CONFIGURATIONS if one.name.startswith(tuple(wanted))]


def run(one: Configuration, arguments: list[str]) -> tuple[bool, str, list[str]]:
    """Whether all passed, pytest's closing line, and the lines that name what failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [*command, *(arguments or one.arguments)],
        cwd=ROOT,
        env={**os.environ, **one.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    closing, failed = "no closing line", []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if re.search(r"\d+ (passed|failed|error|skipped|deselected).* in [\d.]+s", line):
            closing = line.strip("= \n")
        elif line.startswith(("FAILED ", "ERROR ")):
            failed.append(line.strip())
    return process.wait() == 0, closing, failed


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    rows, status = [], 0
    for one in choose(arguments[:cut]):
        settings = " ".join(f"{key}={value}" for key, value in one.environment.items() if value)
        obstacle = one.obstacle()
        if obstacle:
            rows.append((one.name, "skipped", obstacle, []))
            continue
        print(f"\n== {one.name}: {settings}", flush=True)
        start = time.monotonic()
        good, closing, failed = run(one, arguments[cut + 1 :])
        status = status or (not good)
        print(f"== {one.name}: {time.monotonic() - start:.0f} s", flush=True)
        rows.append((one.name, "passed" if good else "FAILED", closing, failed))
    width = max(len(name) for name, *_ in rows)
    print()
    for name, outcome, closing, failed in rows:
        print(f"{name:<{width}}  {outcome:<7}  {closing}")
        for line in failed:
            print(f"{'':<{width}}  {line}")
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
