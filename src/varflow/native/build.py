"""Compiles the C++ files once per machine, keeps the result in a cache folder, and loads it.

The library uses nothing of torch, so that this takes about six seconds and needs a C++ compiler only.
The cache is ``$VARFLOW_CACHE/native`` or ``~/.cache/varflow/native``. A file's name says what it was made
from: source, flags, compiler and processor. Where the folder cannot be written, a temporary one serves.
``$CXX`` chooses the compiler; ``$VARFLOW_NATIVE_FLAGS`` adds options, such as ``-march=x86-64-v2``.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from varflow.core.files import cache_folder

SOURCES = [Path(__file__).with_name(name) for name in ("planar.cpp", "planar_fit.cpp", "bernoulli.cpp", "made.cpp")]
HEADERS = [Path(__file__).with_name(name) for name in ("chain.h", "energies.h", "vector.h")]
#: No -ffast-math: it would drop NaN, and change how the whole process rounds and flushes.
FLAGS = [
    *("-O2", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
]
#: Seconds after which a compiler is given up.
PATIENCE = 120


class BuildError(Exception):
    """Why there is no library; never leaves this room."""


def load() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        BuildError: no compiler, or it failed, or what it made cannot be loaded.
    """
    command = [*find_compiler(), *FLAGS, *_tuning()]
    name = f"{_fingerprint(command)}.so"
    folder = cache()
    if (folder / name).exists():
        try:
            return ctypes.CDLL(str(folder / name))
        except OSError:
            pass  # damaged: made again below
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _build(command, folder, name)
    except OSError:
        pass  # not a place to write to, or to run code from
    # A library that is loaded does not need its file any more.
    with tempfile.TemporaryDirectory(prefix="varflow-", ignore_cleanup_errors=True) as temporary:
        try:
            return _build(command, Path(temporary), name)
        except OSError as error:
            raise BuildError(f"the compiled library could not be loaded: {error}") from error


def cache() -> Path:
    return cache_folder() / "native"


def find_compiler() -> list[str]:
    """``$CXX``, which may carry options, or the first of the usual names on the path.

    Raises:
        BuildError: there is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    for name in names:
        command, *options = shlex.split(name) or [""]
        found = shutil.which(command)
        if found:
            return [found, *options]
    raise BuildError(f"no C++ compiler: {', '.join(names)} not found; install one or set CXX")


def _build(command: list[str], folder: Path, name: str) -> ctypes.CDLL:
    # Under another name first: a process that starts meanwhile never sees half a file.
    handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        _compile(command, unfinished)
        os.replace(unfinished, folder / name)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return ctypes.CDLL(str(folder / name))


def _compile(command: list[str], target: str) -> None:
    compiler = command[0]
    whole = [*command, "-o", target, *map(str, SOURCES)]
    try:
        done = subprocess.run(
            whole, capture_output=True, text=True, check=False, timeout=PATIENCE, errors="replace"
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler} could not be run: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise BuildError(f"{compiler} failed: {lines[0]}")


def _tuning() -> list[str]:
    arm = platform.machine() in ("arm64", "aarch64")
    # The user's come last: of two that contradict each other a compiler takes the second.
    added = shlex.split(os.environ.get("VARFLOW_NATIVE_FLAGS", ""))
    return ["-mcpu=native" if arm else "-march=native", *added]


def _fingerprint(command: list[str]) -> str:
    # The date and size of the compiler stand for its version, which only a process could tell.
    at = os.stat(command[0])
    parts = [
        *(file.read_text("utf-8") for file in (*SOURCES, *HEADERS)),
        *command,
        f"{os.path.realpath(command[0])} {at.st_mtime_ns} {at.st_size}",
        platform.platform(),
        _processor(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    """Its model and instruction sets: caches are shared between machines."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    first = text.split("\n\n", 1)[0].splitlines()
    wanted = ("model name", "model\t", "flags", "Features", "CPU part", "stepping")
    return "\n".join(line for line in first if line.startswith(wanted))
