"""Weights & Biases: a run of a project, online or offline as WANDB_MODE says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varflow.runs.trackers.tracker import Tracker, run_name
from varflow.training.callbacks import Fitting


class WandB(Tracker):
    """Curves against ``step``, settings as config, figures as images.

    Needs ``pip install 'varflow[wandb]'``. A resumed run goes on in the same run of W&B.

    Args:
        project: its name; without it WANDB_PROJECT, then "varflow".
        mode: online, offline, or as WANDB_MODE says.
        figures: draw figures.
    """

    name = "wandb"

    def __init__(self, project: str | None = None, mode: Any = None, figures: bool = True) -> None:
        super().__init__(figures)
        self.project, self.mode = project, mode

    def open(self, fitting: Fitting, before: Mapping[str, Any] | None) -> dict[str, Any]:
        import wandb

        project = self.project or (before or {}).get("project") or os.environ.get("WANDB_PROJECT") or "varflow"
        # Its own files, where no other place is named, go where those of the run are.
        beside = None if "WANDB_DIR" in os.environ or fitting.folder is None else str(fitting.folder)
        self._run = wandb.init(
            project=project,
            name=run_name(fitting.folder),
            id=(before or {}).get("run"),
            resume="allow",
            dir=beside,
            mode=self.mode,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Steps of a resumed run, and of its code prior, may come twice; W&B's own counter only grows.
        self._run.define_metric("*", step_metric="step")
        return {"project": project, "run": self._run.id}

    def settings(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def figure(self, name: str, path: Path, step: int) -> None:
        import wandb

        self._run.log({f"figures/{name}": wandb.Image(str(path)), "step": step})

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        self._run.summary.update({f"outcome/{name}": value for name, value in summary.items()})
        self._run.finish(exit_code=0 if status == "finished" else 1)
