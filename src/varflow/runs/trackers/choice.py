"""Which trackers a fit has, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from varflow.core.errors import SpecError, unknown
from varflow.core.files import read_json
from varflow.core.lazy import resolve

#: The names that ``track`` takes.
TABLE = {
    "mlflow": "varflow.runs.trackers.mlflow:MLflow",
    "wandb": "varflow.runs.trackers.wandb:WandB",
    "trackio": "varflow.runs.trackers.trackio:Trackio",
    "tensorboard": "varflow.runs.trackers.tensorboard:TensorBoard",
}

#: The module of each that is an extra of varflow by the same name.
_EXTRAS = ("mlflow", "wandb", "trackio")


def named(track: str | Sequence[str] | None, folder: str | Path | None) -> list[Any]:
    """The trackers of these names: one, several, or several in a word with commas between; none for "none".

    Raises:
        SpecError: an unknown name, one given twice, one whose library is not installed, or one that writes into a
            run folder where there is none.
    """
    words = [track] if isinstance(track, str) else list(track or ())
    names = [name.strip() for word in words for name in word.split(",")]
    if names == ["none"]:
        return []
    for name in names:
        if name not in TABLE:
            raise unknown("track", name, [*TABLE, "none"])
        if names.count(name) > 1:
            raise SpecError(f"track: {name} is given twice; name it once")
        check_installed(name)
    if "tensorboard" in names and folder is None:
        raise SpecError("track: tensorboard writes into the folder of the run, and there is none; give out=...")
    return [resolve(TABLE[name])() for name in names]


def before(folder: Path) -> list[str]:
    """Where a run was tracked before."""
    from varflow.runs.folder import TRACKERS

    return [name for name in (read_json(folder / TRACKERS) if (folder / TRACKERS).exists() else {}) if name in TABLE]


def check_installed(name: str) -> None:
    """Refuse a tracker whose library is missing, without importing it."""
    found = find_spec(name) if name in _EXTRAS else None
    # A folder of that name, which wandb leaves where it runs, is a package without an origin.
    if name in _EXTRAS and (found is None or found.origin is None):
        raise SpecError(f"track: {name} is not installed; run: pip install 'varflow[{name}]'")
