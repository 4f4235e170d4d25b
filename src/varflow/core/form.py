"""What a model has to know of the data it is built for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """What a model has to know of the data.

    Attributes:
        event_shape: shape of one example; of the latents, for a target.
        support: the values it takes: binary, levels, grey, unit, real or codes; none for a target.
        levels: how many values an element can take; None for a continuum.
    """

    event_shape: tuple[int, ...]
    support: str
    levels: int | None = None
