"""What a part may be conditioned on beside x and z: a context c, or a mask of the cells that are there."""

from __future__ import annotations

from typing import Any

from varflow.core.errors import SpecError


def refuse_unread(part: Any, role: str, **given: Any) -> None:
    """Refuse what was given and the part does not read; its attribute ``reads`` names what it does.

    Args:
        part: a prior, likelihood or posterior.
        role: what it is, for the sentence.
        **given: ``context`` and ``mask``, each None where there is none.

    Raises:
        SpecError: one sentence with the name of what was given and of the part.
    """
    for name, value in given.items():
        if value is not None and name not in getattr(part, "reads", ()):
            raise SpecError(
                f"{name}: the {role} {type(part).__name__} reads none; leave it out, or use a {role} that is built "
                f"for a {name}"
            )
