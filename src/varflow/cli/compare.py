"""Set runs side by side on the same test examples, with differences in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from varflow.cli.output import OutputOptions
from varflow.settings.flags import parse


@dataclass(frozen=True)
class Compare(OutputOptions):
    """varflow compare RUN RUN ...: the same test examples in pairs, each run less the first.

    Prints a table and writes comparison.md, .csv and .html with the figures side by side. The runs have been
    evaluated before, on the same data under the same protocol.
    """

    split: Literal["test", "validation"] = "test"
    """The split they were evaluated on."""
    out: str = "comparison"
    """Folder for the files."""
    figures: bool = True
    """Draw samples, reconstructions and curves side by side."""
    seed: int = 0
    """Seed of the samples in the figures."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""

def main(arguments: list[str]) -> int:
    words = 0
    while words < len(arguments) and not arguments[words].startswith("-"):
        words += 1
    folders, options = arguments[:words], parse(Compare, arguments[words:])
    from varflow.runs.comparison import compare
    from varflow.runs.side_by_side import write

    found = compare(folders, options.split)
    options.say(found.table())
    files = write(found, Path(options.out), options.figures, options.seed, options.data_dir)
    for path in files:
        options.say(path)
    options.answer(lambda: {**found.to_dict(), "files": files})
    return 0
