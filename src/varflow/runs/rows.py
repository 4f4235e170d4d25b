"""Rows or pictures given to a fitted model, piece by piece, under the preprocessing of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from varflow.core.errors import SpecError
from varflow.data.columns import Columns
from varflow.data.dataset import SPLITS, Dataset
from varflow.data.given import given, in_order, like
from varflow.data.loading import stored_rows, table_rows
from varflow.data.reading import is_frame, library
from varflow.data.writing import frame_of
from varflow.model import Model

if TYPE_CHECKING:
    from varflow.runs.run import Run

#: Rows that are made ready at once: a multiple of the blocks that noise (1000) and latents (128) are drawn in, so
#: that what is drawn for a row does not depend on where a piece ends.
PIECE = 16_000

Progress = Callable[[int, int], None]


def pieces(run: Run, x: Any, seed: int = 0, equal_noise: bool = False) -> Iterator[tuple[int, Dataset]]:
    """x under the preprocessing of training, ``PIECE`` rows at a time: the number of the first row, and a data set
    whose split "test" they are. With ``equal_noise`` what a protocol draws is the same for every row.

    Raises:
        DataError, ShapeError: a NaN, or another shape or other levels than the data of the run.
    """
    kept = run.preprocessing
    assert kept is not None
    home = next(run.model.parameters())
    rows = table_rows(x, kept) if isinstance(kept, Columns) else in_order(given(x), run.columns)
    for start in range(0, max(len(rows), 1), PIECE):
        part = stored_rows(rows[start : start + PIECE], kept, run.form.event_shape, run.picture)
        same = dict.fromkeys(SPLITS, part)
        piece = Dataset(
            "x", kept, same, picture=run.picture, seed_eval=seed, first_row=start, equal_noise=equal_noise
        )
        yield start, piece.to(home.device, home.dtype)


def answered(run: Run, x: Any, found: Tensor) -> Any:
    """Rows in the units of the data, in the kind that x is: a frame for a frame, with the names of its columns, and
    the values of each as they came.
    """
    kept = run.preprocessing
    if not isinstance(kept, Columns) or not is_frame(x):
        return like(x, found, run.columns)
    index = x.index if library(x) == "pandas" and hasattr(x, "columns") and len(x) == len(found) else None
    return frame_of(library(x), kept.table(found), index)


def count(x: Any) -> int:
    """How many rows are given, 0 where it does not say."""
    return len(x) if hasattr(x, "__len__") else 0


def one_model(run: Run, verb: str, instead: str) -> Model:
    """The model of a run that was fitted to data.

    Raises:
        SpecError: a fit to a target, which has no x.
    """
    if run.preprocessing is None or not isinstance(run.model, Model):
        raise SpecError(f"{verb}: this is a fit to a target, which has no x; {instead}")
    return run.model
