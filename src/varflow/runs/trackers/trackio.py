"""trackio: a run of a project in its local store, or in the Space that it is configured for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varflow.runs.trackers.tracker import Tracker, run_name
from varflow.training.callbacks import Fitting


class Trackio(Tracker):
    """Curves, settings as config, figures as images; ``trackio show`` opens them.

    Needs ``pip install 'varflow[trackio]'``. A resumed run goes on in the run of the same name.

    Args:
        project: its name; without it TRACKIO_PROJECT, then "varflow".
        figures: draw figures.
    """

    name = "trackio"

    def __init__(self, project: str | None = None, figures: bool = True) -> None:
        super().__init__(figures)
        self.project = project

    def open(self, fitting: Fitting, before: Mapping[str, Any] | None) -> dict[str, Any]:
        import trackio

        known = before or {}
        project = self.project or known.get("project") or os.environ.get("TRACKIO_PROJECT") or "varflow"
        values = {n: v for part in fitting.spec.parts.values() for n, v in part.values().items()}
        self._run = trackio.init(
            project=project,
            name=known.get("run") or run_name(fitting.folder),
            config=values,
            resume="allow" if before else "never",
            embed=False,
        )
        return {"project": project, "run": self._run.name}

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def figure(self, name: str, path: Path, step: int) -> None:
        import trackio
        from PIL import Image

        with Image.open(path) as image:
            self._run.log({f"figures/{name}": trackio.Image(image)}, step=step)

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        numbers = {f"outcome/{n}": v for n, v in summary.items() if isinstance(v, int | float)}
        if numbers:
            self._run.log(numbers)
        self._run.finish()
