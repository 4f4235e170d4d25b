"""MLflow: a run of an experiment in the store that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varflow.runs.trackers.tracker import Tracker, run_name
from varflow.training.callbacks import Fitting

#: Of a run folder, kept as artifacts.
_KEPT = ("spec.json", "data.json", "environment.json", "run.json")
#: What a call of the client takes at most.
_PARAMETERS, _VALUE = 100, 6000


class MLflow(Tracker):
    """Curves as metrics, settings as parameters, figures as images and artifacts.

    Needs ``pip install 'varflow[mlflow]'``. A resumed run goes on in the same run of MLflow.

    Args:
        uri: of the store, e.g. ``sqlite:///mlflow.db`` or ``http://localhost:5000``; without it MLflow's own choice
            (MLFLOW_TRACKING_URI).
        experiment: its name; without it MLFLOW_EXPERIMENT_NAME, then "varflow".
        figures: draw figures.
    """

    name = "mlflow"

    def __init__(self, uri: str | None = None, experiment: str | None = None, figures: bool = True) -> None:
        super().__init__(figures)
        self.uri, self.experiment = uri, experiment

    def open(self, fitting: Fitting, before: Mapping[str, Any] | None) -> dict[str, Any]:
        import mlflow

        uri = self.uri or (before or {}).get("uri") or mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        if before is not None and before["uri"] == uri:
            self._run = before["run"]
            self._client.update_run(self._run, status="RUNNING")
        else:
            name = self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "varflow"
            found = self._client.get_experiment_by_name(name)
            where = found.experiment_id if found else self._client.create_experiment(name)
            self._run = self._client.create_run(where, run_name=run_name(fitting.folder)).info.run_id
        return {"uri": uri, "run": self._run}

    def settings(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        told = self._client.get_run(self._run).data.params
        words = {name: str(value)[:_VALUE] for name, value in values.items()}
        new = [Param(name, value) for name, value in words.items() if name not in told]
        for start in range(0, len(new), _PARAMETERS):
            self._client.log_batch(self._run, params=new[start : start + _PARAMETERS])
        # A parameter is written once; a budget that has grown since stands beside it.
        grown = [RunTag(f"now.{n}", value) for n, value in words.items() if told.get(n, value) != value]
        if grown:
            self._client.log_batch(self._run, tags=grown)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        points = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=points)

    def figure(self, name: str, path: Path, step: int) -> None:
        from PIL import Image

        with Image.open(path) as image:
            self._client.log_image(self._run, image, key=name, step=step)
        self._client.log_artifact(self._run, str(path), "figures")

    def files(self, folder: Path) -> None:
        for name in _KEPT:
            if (folder / name).exists():
                self._client.log_artifact(self._run, str(folder / name))

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        for name, value in summary.items():
            self._client.set_tag(self._run, f"outcome.{name}", str(value)[:_VALUE])
        ended = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._run, ended[status])
