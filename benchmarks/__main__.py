"""All questions, one after the other: ``python -m benchmarks``. About twenty minutes, on a quiet machine.

Left out, because they take long or fill the disk: ``scaling``, ``streaming``, ``checkouts`` and ``gpu``.
"""

from __future__ import annotations

import subprocess
import sys

QUESTIONS = (
    "startup", "enter", "diagonal", "planar_static", "planar_amortized", "iaf_nice", "long_run", "batches", "adam",
    "likelihood", "energy", "energies", "gaussian_model", "hvae", "codes", "sampling",
)  # fmt: skip


def main() -> int:
    """Run each in a process of its own, with the options given here; the number of those that failed."""
    commands = ([sys.executable, "-m", f"benchmarks.{question}", *sys.argv[1:]] for question in QUESTIONS)
    return sum(subprocess.run(command, check=False).returncode != 0 for command in commands)


if __name__ == "__main__":
    sys.exit(main())
