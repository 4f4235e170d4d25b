"""List, download and check the data sets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from varflow.core.errors import SpecError, suggestion, unknown
from varflow.settings.flags import parse


@dataclass(frozen=True)
class Data:
    """The data sets: what is here, download, check."""

    action: Literal["list", "download", "check"] = "list"
    """list: all data sets and whether they are here; download NAME; check NAME: read it and verify checksums."""
    name: str | None = None
    """The data set."""
    data_dir: str | None = None
    """Folder of the named data sets; without it VARFLOW_DATA, then the cache (~/.cache/varflow on Linux)."""


def main(arguments: list[str]) -> int:
    options = parse(Data, arguments, "action", "name")
    from varflow import data
    from varflow.data.sources import verification

    if options.action == "list":
        print(data.overview(options.data_dir))
        return 0
    if options.name is None:
        raise SpecError(f"name: missing; {suggestion('', data.SOURCES)}")
    known = data.DOWNLOADS if options.action == "download" else data.SOURCES
    if options.name not in known:
        raise unknown("name", options.name, known)
    if options.action == "download":
        print(data.download(options.name, options.data_dir, say=_aside))
        return 0
    facts = data.load(options.name, data_dir=options.data_dir).describe()
    for key, value in facts.items():
        print(f"{key}: {value}")
    print(verification(facts.get("checksums", {})))
    return 0


def _aside(line: str) -> None:
    """A line beside the result, which stands on stdout alone."""
    print(line, file=sys.stderr, flush=True)
