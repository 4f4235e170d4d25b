"""Starting: how long do ``import varflow`` and ``varflow --help`` take?"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks import report
from benchmarks.timing import Contestant, Times, interleave, ratio, times_table

MODULE = "benchmarks.startup"
PROGRAMS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import torch, varflow": ["-c", "import torch, varflow"],
    "import torch, varflow and what fit needs": ["-c", "import torch, varflow; varflow.fit, varflow.Model"],
    "varflow --help": ["-m", "varflow", "--help"],
    "varflow fit --help": ["-m", "varflow", "fit", "--help"],
}


def measure(options: argparse.Namespace) -> Times:
    def program(arguments: list[str]) -> Contestant:
        command = [sys.executable, *arguments]
        return Contestant(
            next(name for name, given in PROGRAMS.items() if given is arguments),
            lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL),
        )

    return interleave([program(a) for a in PROGRAMS.values()], options.blocks, options.steps, settle=1)


def main() -> None:
    options = report.parser(__doc__ or "", blocks=12, steps=1, warmup=0).parse_args()
    times = measure(options)
    rows = []
    for name, base, limit in (
        ("import torch, varflow", "import torch", 0.3),
        ("import torch, varflow and what fit needs", "import torch", None),
        ("varflow --help", None, 0.6),
    ):
        against = times[base] if base else [0.0] * options.blocks
        found = ratio(times[name], against, offset=True)
        met = "" if limit is None else "met" if found.value < limit else "missed"
        label = f"{name}, beyond {base}" if base else name
        rows.append([label, f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]", f"{limit or '–'}", met])
    parts = [
        "A whole process each time, files in the page cache.",
        report.table(["program", "s", "p10–p90"], times_table(times, unit=1.0)),
        report.table(["", "s [95 %]", "below", ""], rows),
    ]
    report.write(MODULE, options, "Starting", parts)


if __name__ == "__main__":
    main()
