"""List, download and check the data sets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

from varflow.cli.output import OutputOptions
from varflow.core.errors import SpecError, suggestion, unknown
from varflow.settings.flags import parse


@dataclass(frozen=True)
class Data(OutputOptions):
    """The data sets: what is here, download, check."""

    words: ClassVar[tuple[str, ...]] = ("action", "name")

    action: Literal["list", "download", "check"] = "list"
    """list: all data sets and whether they are here; download NAME; check NAME: read it and verify checksums."""
    name: str | None = None
    """The data set."""
    data_dir: str | None = None
    """Folder of the named data sets; without it VARFLOW_DATA, then the cache (~/.cache/varflow on Linux)."""


def main(arguments: list[str]) -> int:
    options = parse(Data, arguments)
    from varflow import data
    from varflow.data.named import listed
    from varflow.data.sources import data_folder, verification

    if options.action == "list":
        options.say(data.overview(options.data_dir))
        options.answer(lambda: {"folder": data_folder(options.data_dir), "data": listed(options.data_dir)})
        return 0
    if options.name is None:
        raise SpecError(f"name: missing; {suggestion('', data.SOURCES)}")
    known = data.DOWNLOADS if options.action == "download" else data.SOURCES
    if options.name not in known:
        raise unknown("name", options.name, known)
    if options.action == "download":
        folder = data.download(options.name, options.data_dir, say=_nothing if options.quiet else _aside)
        options.say(folder)
        options.answer(lambda: {"name": options.name, "folder": folder})
        return 0
    facts = data.load(options.name, data_dir=options.data_dir).describe()
    for key, value in facts.items():
        options.say(f"{key}: {value}")
    sentence = verification(facts.get("checksums", {}))
    options.say(sentence)
    options.answer(lambda: {**facts, "verification": sentence})
    return 0


def _aside(line: str) -> None:
    """A line beside the result, which stands on stdout alone."""
    print(line, file=sys.stderr, flush=True)


def _nothing(line: str) -> None:
    """No line."""
