"""Draw every figure of a run and write one self-contained page, report.html."""

from __future__ import annotations

from dataclasses import dataclass

from varflow.cli.common import KeptOptions
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Report(KeptOptions):
    """Every figure and a self-contained report.html."""


def main(arguments: list[str]) -> int:
    options = parse(Report, arguments, "run")
    options.say(options.open().report())
    return 0
