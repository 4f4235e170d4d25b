"""TensorBoard: figures beside the curves that every run folder has."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varflow.core.errors import SpecError
from varflow.core.files import make_folder
from varflow.runs.trackers.tracker import Tracker
from varflow.training.callbacks import Fitting


class TensorBoard(Tracker):
    """Figures in ``tensorboard/figures/`` of the run folder, under the curves that are there with or without it.

    In a folder of their own: TensorBoard follows the newest file of a folder alone, and the curves would stand still.
    """

    name = "tensorboard"

    def open(self, fitting: Fitting, before: Mapping[str, Any] | None) -> dict[str, Any]:
        from tensorboardX.event_file_writer import EventsWriter

        if fitting.folder is None:
            raise SpecError("track: tensorboard writes into the folder of the run, and there is none; give out=...")
        folder = fitting.folder / "tensorboard" / "figures"
        make_folder(folder)
        self._writer = EventsWriter(str(folder / "events"), f".from-{fitting.begins}")
        return {}

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Nothing: the run folder has them."""

    def figure(self, name: str, path: Path, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        blob = path.read_bytes()
        if not blob.startswith(b"\x89PNG"):
            return
        width, height = struct.unpack(">II", blob[16:24])
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=blob)
        summary = Summary(value=[Summary.Value(tag=f"figures/{name}", image=image)])
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        self._writer.close()
