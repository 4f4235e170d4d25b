"""The weights that a run keeps, and when it stops: both by the bound of each validation example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from varflow.core import paired


class Best:
    """The best weights so far.

    Every validation scores the same examples with the same noise, so two of them are compared example by example.
    With b_i(t) the bound of example i after t updates, the weights of step t replace those of step s when

        mean_i d_i > se(d),   d_i = b_i(t) − b_i(s),   se(d)² = Σ_i (d_i − d̄)² / (V(V − 1)),

    a gain larger than its standard error over the V examples. What is smaller may be luck, of the last updates or of
    these V examples, and neither replaces the weights nor gives the run more time. Gains too small to be seen one by
    one are seen when they have added up, since s stays where it is.

    Attributes:
        step: s; 0 before any validation.
        value: mean_i b_i(s), nats; −∞ before any validation.
        weights: of step s, copies; None before any validation.
    """

    def __init__(self) -> None:
        self.step: int = 0
        self.value: float = -math.inf
        self.weights: dict[str, Tensor] | None = None
        self._bounds: Tensor | None = None

    def offer(self, step: int, bounds: Tensor, weights: Mapping[str, Tensor]) -> bool:
        """Take the weights of ``step`` if they are better; ``bounds`` are b_i(step) ``[V]``."""
        if self._bounds is not None and not paired.is_better(bounds, self._bounds):
            return False
        self.step, self.value, self._bounds = step, float(bounds.mean()), bounds
        self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        return True

    def is_over(self, step: int, patience: int | None, settled: int = 0) -> bool:
        """Whether ``patience`` updates have passed without better weights. While the weight of the objective still
        grows, up to ``settled``, the bound that is scored is not the one that is followed, and nothing is counted.
        """
        return patience is not None and step - max(self.step, settled) >= patience

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "value": self.value, "weights": self.weights, "bounds": self._bounds}

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self.value = state["step"], state["value"]
        self.weights, self._bounds = state["weights"], state["bounds"]

