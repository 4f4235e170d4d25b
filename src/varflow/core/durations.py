"""How long something lasts: "10 epochs" or "2000 steps". A step is one update; a number alone counts epochs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from varflow.core.errors import SpecError

_FORM = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(?:(epoch|step)s?\s*)?")


@dataclass(frozen=True)
class Lasting:
    """The limit of a setting that is a duration (:mod:`varflow.core.settings`).

    Attributes:
        auto: what "auto" means, the longer of (epochs, steps); None where it means nothing.
    """

    auto: tuple[int, int] | None = None
    takes: ClassVar[str] = "anything"

    def refuses(self, value: object) -> str | None:
        """What is wrong with a value, the end of a sentence; None where it is a duration."""
        if _FORM.fullmatch(str(value)) or (value == "auto" and self.auto):
            return None
        shown = "e.g. '10 epochs', '2000 steps', or 10 for epochs"
        return f"give a number with its unit, {shown}" + (", or auto" if self.auto else "")

    def steps(self, name: str, value: object, steps_per_epoch: int) -> int:
        """The duration in updates, rounded; at least one where it is not zero.

        Raises:
            SpecError: no number, another unit, or "auto" where that has no meaning.
        """
        if value == "auto" and self.auto is not None:
            return max(self.auto[0] * steps_per_epoch, self.auto[1])
        said = self.refuses(value)
        if said is not None:
            raise SpecError(f"{name}: was {value!r}; {said}")
        found = _FORM.fullmatch(str(value))
        assert found is not None
        updates = float(found[1]) * (steps_per_epoch if found[2] != "step" else 1)
        return max(1, round(updates)) if updates else 0


#: Without "auto"; how long to wait for something better; between two validations.
DURATION, PATIENCE, VALIDATION = Lasting(), Lasting((10, 1000)), Lasting((1, 100))
