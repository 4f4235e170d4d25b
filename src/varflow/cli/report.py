"""Draw every figure of a run and write one self-contained page, report.html."""

from __future__ import annotations

from dataclasses import dataclass

from varflow.cli.common import KeptOptions
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Report(KeptOptions):
    """Every figure and a self-contained report.html."""


def main(arguments: list[str]) -> int:
    options = parse(Report, arguments)
    page = options.open().report()
    options.say(page)
    options.answer(lambda: {"run": options.run, "report": page})
    return 0
