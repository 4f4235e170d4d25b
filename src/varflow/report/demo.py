"""The page of the demonstration: it shows before it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from varflow.core.files import write_text
from varflow.report.film import film
from varflow.report.points import scatter
from varflow.report.render import render


def write(
    path: Path,
    *,
    about: str,
    films: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    notes: Sequence[str],
    energies: Sequence[tuple[str, str]],
    planes: Sequence[tuple[str, str, Mapping[str, Any]]],
    moves: Sequence[tuple[str, Mapping[str, Any]]],
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    taken: Sequence[tuple[str, float]],
    seconds: float,
) -> Path:
    """Write the page, and return its path.

    Args:
        path: of the file.
        about: what the numbers are of.
        films, names, notes: of the energies (:func:`varflow.report.film.film`).
        energies: name and folder of each.
        planes: title, numbers and scatter of each posterior in the plane (:func:`varflow.report.points.scatter`).
        moves: title and scatter of each flow, before and after.
        columns: names of the columns of the table, with their units.
        rows: the folder of each fit, beside ``path``, and its cells.
        taken: what each stage took, seconds.
        seconds: of all of it.

    Raises:
        RunError: the file cannot be written.
    """
    text = render(
        "demo.html",
        title="Flows at work",
        lead=f"All of this was computed just now on this machine, in {seconds:.0f} seconds: four flows fitted to "
        f"unnormalised densities, and {len(rows)} models of handwritten digits. Seconds are wall time.",
        about=about,
        film=film(films, "film.json", names, notes),
        energies=energies,
        planes=[(title, said, scatter(held)) for title, said, held in planes],
        moves=[(title, scatter(held)) for title, held in moves],
        columns=columns,
        rows=[{"folder": folder, "cells": cells} for folder, cells in rows],
        taken=[(what, f"{each:.1f}") for what, each in taken],
        seconds=f"{seconds:.0f}",
    )
    write_text(path, text)
    return path
