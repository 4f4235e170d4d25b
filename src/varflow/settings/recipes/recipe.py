"""What a recipe is."""

from __future__ import annotations

from dataclasses import dataclass

from varflow.settings.spec import RunSpec


@dataclass(frozen=True)
class Recipe:
    """A named experiment.

    Attributes:
        name: what `varflow fit` is told.
        summary: one line.
        spec: the settings; each can be overridden.
        source: paper or program it comes from.
        differs: what was changed, and why.
    """

    name: str
    summary: str
    spec: RunSpec
    source: str
    differs: str = ""
