"""A fit whose process torchrun has replaced: the new one goes on with the run of the one before.

``torchrun --max-restarts=N`` starts all workers again when one of them dies, with the same command. The run then lies
there already, which a second start of the command is refused for. The two are told apart by the name of the launch
(:func:`varflow.core.ranks.launch`), which run.json keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from varflow.core import ranks
from varflow.core.files import read_json
from varflow.runs.code_prior import FOLDER
from varflow.runs.folder import DATA, METRICS, PREPROCESSING, RUN, SPEC, STATE, WEIGHTS, read_about
from varflow.runs.loading import load
from varflow.runs.run import Run
from varflow.settings.spec import RunSpec
from varflow.training.engine import Engine

#: What every process of a resumed fit reads of its folder, and what a finished run is opened from.
READ = (SPEC, RUN, DATA, PREPROCESSING, STATE)
_OPENED = (SPEC, RUN, DATA, PREPROCESSING, WEIGHTS, METRICS, f"{FOLDER}/{WEIGHTS}", f"{FOLDER}/{METRICS}")

#: The folders of the fits that this process began or went on with: what it finds there is its own.
_own: set[Path] = set()


def take(folder: Path, about: dict[str, Any]) -> None:
    """Note in ``about``, which becomes run.json, which launch the fit in ``folder`` belongs to."""
    _own.add(folder.resolve())
    name = ranks.launch()
    if name is not None:
        about["launch"] = name


def left_behind(folder: Path, spec: RunSpec) -> bool:
    """Whether ``folder`` holds a fit with these settings that another process of the same launch began; all agree."""

    def look() -> bool:
        if folder.resolve() in _own or not ((folder / SPEC).exists() and (folder / RUN).exists()):
            return False
        name = ranks.launch()
        if name is None or read_about(folder).get("launch") != name:
            return False
        return RunSpec.from_dict(read_json(folder / SPEC)).to_dict() == spec.to_dict()

    return ranks.first(look)


def is_finished(folder: Path) -> bool:
    """Whether nothing is left to do for the run in ``folder``; all agree."""
    return ranks.first(lambda: bool((read_about(folder).get("outcome") or {}).get("finished")))


def opened(folder: Path, spec: RunSpec, data: Any, parts: Mapping[str, nn.Module] | None) -> Run:
    """The finished run in ``folder``, for all processes, as the fit would have given it back."""
    engine = Engine.start(spec.training)
    with ranks.files_of_first(folder, _OPENED) as here:
        run = load(here, parts, data, engine.device)
    run.folder = folder
    return run
