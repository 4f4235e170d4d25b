"""The errors varflow raises on purpose.

Each message names the argument, what it was, what it should be, and what to do. The command line
prints the message alone and exits with code 2; a traceback is left for bugs.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class VarflowError(Exception):
    """Base of every error that a user can cause and mend.

    Attributes:
        silent: another process of the run says what happened.
        exchanged: the other processes of the run know of it.
    """

    silent = False
    exchanged = False


class SpecError(VarflowError, ValueError):
    """A setting that is unknown, impossible, or does not combine with another."""


class ShapeError(VarflowError, ValueError):
    """A tensor whose shape or dtype does not fit the part that received it."""


class DataError(VarflowError, ValueError):
    """Data that are missing, corrupt, mislabelled, or not what was declared."""


class RunError(VarflowError, RuntimeError):
    """A run folder or checkpoint that is missing, incomplete, too old, or tampered with."""


class NonFiniteError(VarflowError, FloatingPointError):
    """Training produced a NaN or an infinity; the message names where it first appeared."""


class RankError(VarflowError, RuntimeError):
    """Another process of the same run met an error, or ended."""


#: The longest table of parts or recipes is shorter, the table of all settings longer.
_MANY = 40


def suggestion(name: str, choices: Iterable[str]) -> str:
    """``did you mean 'planar'? choices: none, planar, radial`` for an unknown ``name``.

    More choices than fit on a few lines are left out where there is a near one.
    """
    known = sorted(set(choices))
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close and len(known) > _MANY:
        return f"did you mean '{close[0]}'?"
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}choices: {', '.join(known)}"


def unknown(argument: str, name: str, choices: Iterable[str]) -> SpecError:
    """The error for ``argument=name`` where ``name`` is not one of ``choices``."""
    return SpecError(f"{argument}: unknown value '{name}'; {suggestion(name, choices)}")


def positive(**sizes: int) -> None:
    """Raise :class:`SpecError` for the first size that is not a positive integer."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise SpecError(f"{name}: was {size!r}; use a positive integer")
