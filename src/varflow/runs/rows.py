"""Rows or pictures given to a fitted model, piece by piece, under the preprocessing of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from varflow.core.errors import SpecError
from varflow.data.columns import Columns
from varflow.data.conditions import Conditions, parted
from varflow.data.dataset import SPLITS, Dataset
from varflow.data.frames import is_frame, library, read_frame
from varflow.data.given import Given, given, in_order, like
from varflow.data.kinds import numbers_alone
from varflow.data.new_rows import stored_rows, table_rows
from varflow.data.raw import Raw
from varflow.data.writing import frame_of
from varflow.model import Model

if TYPE_CHECKING:
    from varflow.runs.run import Run

#: Rows that are made ready at once: a multiple of the blocks that noise (1000) and latents (128) are drawn in, so
#: that what is drawn for a row does not depend on where a piece ends.
PIECE = 16_000

Progress = Callable[[int, int], None]


def pieces(
    run: Run, x: Any, seed: int = 0, equal_noise: bool = False, given_for: Any = None, row_noise: bool = False
) -> Iterator[tuple[int, Dataset]]:
    """x under the preprocessing of training, ``PIECE`` rows at a time: the number of the first row, and a data set
    whose split "test" they are. With ``equal_noise`` what a protocol draws is the same for every row, with
    ``row_noise`` it depends on what the row holds; else on its place.
    ``given_for`` is what the rows are conditioned on.

    Raises:
        SpecError: conditions that are missing, or given to a run without any.
        DataError, ShapeError: a NaN, or another shape or other levels than the data of the run.
    """
    kept = run.preprocessing
    assert kept is not None
    home = next(run.model.parameters())
    x, conditions = _apart(run, x, given_for)
    if isinstance(x, Raw):
        rows = table_rows(x, kept) if isinstance(kept, Columns) else in_order(Given(*numbers_alone(x)), run.columns)
    else:
        rows = table_rows(x, kept) if isinstance(kept, Columns) else in_order(given(x), run.columns)
    context = None
    if run.conditions is not None:
        context = conditions if isinstance(conditions, Tensor) else run.conditions.of(conditions, len(rows))
    for start in range(0, max(len(rows), 1), PIECE):
        part = stored_rows(rows[start : start + PIECE], kept, run.form.event_shape, run.picture)
        same = dict.fromkeys(SPLITS, part)
        piece = Dataset(
            "x", kept, same, picture=run.picture, seed_eval=seed, first_row=start, equal_noise=equal_noise,
            row_noise=row_noise,
        )  # fmt: skip
        if context is not None and run.conditions is not None:
            own = context[start : start + PIECE]
            piece = piece.conditioned(run.conditions.having(dict.fromkeys(SPLITS, own)))
        yield start, piece.to(home.device, home.dtype)


def _apart(run: Run, x: Any, given_for: Any) -> tuple[Any, Any]:
    """x without the columns that are conditioned on, and what is given for these."""
    conditions = run.conditions
    if conditions is None:
        if given_for is not None:
            raise SpecError("given: this run is conditioned on nothing; leave it out")
        return x, None
    if is_frame(x):
        raw = read_frame(x)
        there = [name for name in conditions.names if name in raw.names]
        if there and given_for is None:
            for name in conditions.names:
                if name not in there:
                    raise SpecError(
                        f"x: column '{name}' is missing; this run is conditioned on {', '.join(conditions.names)}"
                    )
            rest, chosen = parted(raw, conditions.names)
            return rest, conditions.of_raw(chosen)
        return (parted(raw, there)[0] if there else raw), need(conditions, given_for)
    return x, need(conditions, given_for)


def need(conditions: Conditions, given_for: Any) -> Any:
    """What is given for the conditions. Raises SpecError where it is missing."""
    if given_for is None:
        example = ", ".join(f"{name!r}: ..." for name in conditions.names)
        raise SpecError(
            f"given: missing; this run is conditioned on {', '.join(conditions.names)}: pass given={{{example}}}"
        )
    return given_for


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
