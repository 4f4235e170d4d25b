"""Where a run was made: versions, processor, seed and commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Any

import torch

from varflow.core import ranks
from varflow.settings.spec import RunSpec
from varflow.training.engine import Engine


def environment(spec: RunSpec, engine: Engine) -> dict[str, Any]:
    """Versions, machine, seed and commit."""
    import varflow

    return {
        "varflow": varflow.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(terse=True),
        "processor": _processor(engine),
        "engine": engine.to_dict(),
        "seed": spec.training.seed,
        "processes": ranks.world(),
        "commit": _commit(),
    }


def _processor(engine: Engine) -> str:
    if engine.device.startswith("cuda"):
        return torch.cuda.get_device_name(engine.device)
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit of the working folder, where it is a git checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
