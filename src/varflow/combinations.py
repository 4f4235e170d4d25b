"""What does not combine, in one table: each row refuses with one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from varflow.errors import SpecError
from varflow.model import Model


def _support(model: Any, support: str) -> str | None:
    try:
        model.likelihood.check_support(support)
    except SpecError as error:
        return str(error)
    except AttributeError:
        return None
    return None


#: name of the rule → what it says of a model and the support of its data, or None.
RULES: dict[str, Callable[[Model, str], str | None]] = {
    "likelihood × values of the data": _support,
}


def check(model: Model, support: str) -> None:
    """Apply every rule.

    Raises:
        SpecError: the sentence of the first rule that refuses.
    """
    for rule in RULES.values():
        sentence = rule(model, support)
        if sentence is not None:
            raise SpecError(sentence)
