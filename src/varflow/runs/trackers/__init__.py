"""Trackers: callbacks that send curves, figures and settings of a fit to a program that keeps experiments.

``fit(..., track="mlflow")`` uses one as its library is configured in the environment; its class, given among the
``callbacks``, has options. A file a tracker, and nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from varflow.core.lazy import attach

_EXPORTS = {
    "MLflow": "varflow.runs.trackers.mlflow:MLflow",
    "TensorBoard": "varflow.runs.trackers.tensorboard:TensorBoard",
    "Tracker": "varflow.runs.trackers.tracker:Tracker",
    "Trackio": "varflow.runs.trackers.trackio:Trackio",
    "WandB": "varflow.runs.trackers.wandb:WandB",
}

if TYPE_CHECKING:
    # Written by tests/typing/generate.py from _EXPORTS.
    from varflow.runs.trackers.mlflow import MLflow as MLflow
    from varflow.runs.trackers.tensorboard import TensorBoard as TensorBoard
    from varflow.runs.trackers.tracker import Tracker as Tracker
    from varflow.runs.trackers.trackio import Trackio as Trackio
    from varflow.runs.trackers.wandb import WandB as WandB
else:
    __getattr__, __dir__ = attach(__name__, _EXPORTS)
