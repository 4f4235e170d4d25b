"""What all trackers share: which numbers, which figures, and when."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from varflow import figures
from varflow.core.files import read_json, write_json
from varflow.ensemble import Ensemble
from varflow.runs.folder import TRACKERS
from varflow.runs.trackers.choice import check_installed
from varflow.training.callbacks import Callback, Fitting
from varflow.training.progress import Record

#: What is drawn on the way: what the model makes of latents and of examples.
_ON_THE_WAY = ("samples", "reconstructions", "code_maps", "plane", "pairs")


class Tracker(Callback):
    """Sends the records, figures and settings of a fit somewhere. A subclass says where.

    Curves have the names ``elbo/train``, ``elbo/validation``, …, those of a code prior ``code_prior/elbo/train``, …
    Figures are drawn at the validations 1, 2, 4, 8, … and at the end: samples and reconstructions of pictures, draws
    beside data of tables, and at the end the learning curves; of a target its density beside that of q.

    Args:
        figures: draw figures; each set takes a second or two.

    Raises:
        SpecError: the library is not installed.
    """

    name: ClassVar[str]

    def __init__(self, figures: bool = True) -> None:
        check_installed(self.name)
        self.figures = figures
        self._opened = False

    # -- what a subclass says ------------------------------------------------------------------

    def open(self, fitting: Fitting, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Begin, or go on with what ``before`` names; returns the plain values that name it another time."""
        raise NotImplementedError

    def settings(self, values: Mapping[str, Any]) -> None:
        """The settings of the run by name."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves, by the names of the curves."""
        raise NotImplementedError

    def figure(self, name: str, path: Path, step: int) -> None:
        """A figure as a PNG, whose file is gone afterwards."""
        raise NotImplementedError

    def files(self, folder: Path) -> None:
        """The folder of a run that has ended, for what is worth keeping of it."""

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        """End as ``status`` says: finished, stopped or failed; ``summary`` are plain values about how."""
        raise NotImplementedError

    # -- what a fit tells ----------------------------------------------------------------------

    def started(self, fitting: Fitting) -> None:
        if self._opened:
            return
        folder = fitting.folder
        path = None if folder is None else folder / TRACKERS
        kept = read_json(path) if path is not None and path.exists() else {}
        kept[self.name] = self.open(fitting, kept.get(self.name))
        self._opened = True
        if path is not None:
            write_json(path, kept)
        self.settings({n: v for part in fitting.spec.parts.values() for n, v in part.values().items()})

    def recorded(self, record: Record, fitting: Fitting) -> None:
        stage = "" if fitting.stage == "model" else "code_prior/"
        values = {
            f"{stage}{name}/{record['split']}": value
            for name, value in record.items()
            if isinstance(value, float) and name != "epoch"
        }
        self.scalars(values, record["step"])

    def validated(self, record: Record, fitting: Fitting) -> None:
        number, rest = divmod(fitting.step, fitting.validate_every)
        due = rest == 0 and number.bit_count() == 1 and fitting.step < fitting.steps
        if self.figures and due and fitting.stage == "model":
            self._draw(fitting.model, fitting.dataset, [], _ON_THE_WAY, fitting.step)

    def finished(self, run: Any) -> None:
        outcome = run.outcome
        if self.figures:
            self._draw(run.model, run.dataset, run.metrics, (*_ON_THE_WAY, "curves"), outcome["step"])
        if run.folder is not None:
            self.files(run.folder)
        kept = ("step", "finished", "reason", "seconds", "best_step", "best_elbo")
        self.close("finished" if outcome["finished"] else "stopped", {name: outcome[name] for name in kept})

    def failed(self, error: BaseException) -> None:
        if self._opened:
            self.close("failed", {"reason": f"{type(error).__name__}: {error}"})

    def _draw(self, model: Any, dataset: Any, metrics: Any, names: tuple[str, ...], step: int) -> None:
        with tempfile.TemporaryDirectory() as room:
            if isinstance(model, Ensemble) or dataset.support == "none":
                entries = figures.target_gallery(model, metrics, room)
            else:
                entries = figures.gallery(model, dataset, metrics, room, names=names)
            for entry in entries:
                self.figure(entry.path.stem, entry.path, step)


def run_name(folder: Path | None) -> str | None:
    """What a tracker calls a run: the name of its folder."""
    return None if folder is None else folder.resolve().name
