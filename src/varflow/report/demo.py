"""The page of the demo: one table of all fits, with links to their reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from varflow.core.files import write_text
from varflow.report.render import render


def write(
    path: Path, title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]
) -> Path:
    """Write the page.

    Args:
        path: of the file.
        title: what the numbers are of.
        columns: names of the columns, with their units.
        rows: the folder of each fit, beside ``path``, and its cells.
    """
    listed = [{"folder": folder, "cells": cells} for folder, cells in rows]
    text = render(
        "demo.html",
        title="Posteriors on the embedded digits",
        lead=title,
        columns=columns,
        rows=listed,
    )
    write_text(path, text)
    return path
