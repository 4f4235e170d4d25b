"""What a model has to know of the data it is built for."""

from __future__ import annotations

from dataclasses import dataclass

from varflow.core.columns import Column


@dataclass(frozen=True)
class Form:
    """What a model has to know of the data.

    Attributes:
        event_shape: shape of one example; of the latents, for a target.
        support: the values it takes: binary, levels, grey, unit, real, codes or columns; none for a target.
        levels: how many values an element can take; None for a continuum.
        columns: of a table whose columns are each of a kind; empty for any other data.
        context: the columns that a model is conditioned on; empty where it is not.
    """

    event_shape: tuple[int, ...]
    support: str
    levels: int | None = None
    columns: tuple[Column, ...] = ()
    context: tuple[Column, ...] = ()
