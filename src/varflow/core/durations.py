"""How long something lasts: a number with its unit, "10 epochs" or "2000 steps". A step is one update."""

from __future__ import annotations

import re

from varflow.core.errors import SpecError

_FORM = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(epoch|step)s?\s*")
#: What "auto" means: the longer of (epochs, steps).
AUTO = {"patience": (10, 1000), "prior_patience": (10, 1000), "validate_every": (1, 100)}


def check(name: str, value: object) -> None:
    """Whether ``value`` is a duration of the setting ``name``.

    Raises:
        SpecError: no number, no unit, or "auto" where that has no meaning.
    """
    steps(name, value, 1)


def steps(name: str, value: object, steps_per_epoch: int) -> int:
    """The duration in updates, rounded; at least one where it is not zero.

    Raises:
        SpecError: as :func:`check`.
    """
    if value == "auto" and name in AUTO:
        epochs, least = AUTO[name]
        return max(epochs * steps_per_epoch, least)
    text = str(value).strip()
    found = _FORM.fullmatch(text)
    if found is None:
        number = text.replace(".", "", 1).isdecimal()
        shown = f"'{text} epochs' or '{text} steps'" if number else "e.g. '10 epochs' or '2000 steps'"
        automatic = ", or auto" if name in AUTO else ""
        raise SpecError(f"{name}: was {value!r}; give a number with its unit, {shown}{automatic}")
    updates = float(found[1]) * (steps_per_epoch if found[2] == "epoch" else 1)
    return max(1, round(updates)) if updates else 0
