"""What to say when training produced a NaN or an infinity.

Nothing is read back from the device at each step, so a bad number is noticed some steps later. Every
random number depends on (seed, purpose, step) alone: the loop goes back to its last good state and
walks the same steps again, this time looking at everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from varflow.core import ranks
from varflow.core.errors import NonFiniteError
from varflow.core.observed import Examples, parts_of
from varflow.ensemble import Ensemble
from varflow.model import Model


class Replayed(Protocol):
    """What a diagnosis asks of the loop: to go back to its last good state, and to take the same steps again."""

    model: Any
    engine: Any
    spec: Any
    samples: int
    step: int

    def noise(self) -> AbstractContextManager[Any]: ...

    def batch_of(self, step: int) -> Any: ...

    def update(self) -> Any: ...

    def restore(self) -> None: ...

    def save(self) -> None: ...


class Finding:
    """The first non-finite number of a step, in the order of computation."""

    def __init__(self) -> None:
        self.where: str | None = None

    def look(self, where: str, tensor: Tensor) -> None:
        if self.where is None and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            kind = "NaN" if bool(tensor.isnan().any()) else "infinity"
            self.where = f"{where} is the first to hold {_article(kind)}"


def _article(kind: str) -> str:
    return "a NaN" if kind == "NaN" else "an infinity"


@contextmanager
def watched(model: nn.Module, finding: Finding) -> Iterator[None]:
    """Every module's output goes past ``finding`` while the block runs."""

    def hook(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                finding.look(f"the output of module '{name}' ({type(module).__name__})", output)

        return look

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if n]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def inspect_terms(
    model: Model | Ensemble, x: Examples | None, samples: int, finding: Finding
) -> None:
    """Look at the terms of a batch in the order of computation."""
    for name, parameter in model.named_parameters():
        finding.look(f"parameter '{name}'", parameter)
    if x is not None:
        finding.look("the batch x", parts_of(x)[0])
    with watched(model, finding):
        for name, tensor in model.in_order(x, samples):
            finding.look(name, tensor)


def inspect_gradients(model: nn.Module, finding: Finding) -> None:
    """Every gradient, in the order of the parameters."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            finding.look(f"the gradient of parameter '{name}'", parameter.grad)


def advice(lr: float, clip: float | None, precision: str) -> str:
    """What to try."""
    tries = [f"a smaller lr (was {lr:g})"]
    tries.append("clip=100" if clip is None else f"a smaller clip (was {clip:g})")
    if precision != "float64":
        tries.append("precision=float64")
    return "try " + ", ".join(tries) + ", or a warm-up of the KL term"


class LastGood:
    """Copies of the weights and of the optimizer's state at the last step where all was finite.

    Attributes:
        step: that step.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model: nn.Module = model
        self.optimizer = optimizer

    def remember(self, step: int) -> None:
        self.step = step
        self._weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self._state = _copied(self.optimizer.state_dict())

    def restore(self) -> int:
        """Put them back; returns the step."""
        self.model.load_state_dict(self._weights)
        self.optimizer.load_state_dict(_copied(self._state))
        return self.step


def diagnose(loop: Replayed) -> NoReturn:
    """Walk again from the last good state, looking at everything.

    Raises:
        NonFiniteError: always, with what was found. The loop is left at its last good state, which is saved.
    """
    noticed, finding = loop.step, Finding()
    loop.restore()
    at = loop.step
    while loop.step < noticed and finding.where is None:
        at = loop.step
        with loop.noise(), loop.engine.autocast():
            inspect_terms(loop.model, loop.batch_of(at).seen, loop.samples, finding)
        finding.where = ranks.first_of(finding.where)
        if finding.where is None:
            loop.update()
            inspect_gradients(loop.model, finding)
    for name, parameter in loop.model.named_parameters():
        finding.look(f"parameter '{name}' after the update", parameter)
    stop(loop, f"step {at}", finding.where or "the replay, run without compilation, stayed finite")


def stop(loop: Replayed, when: str, what: str) -> NoReturn:
    """End a fit with its last good state. Raises NonFiniteError with what was found, and advice."""
    loop.restore()
    loop.save()
    settings = loop.spec.optimizer
    raise NonFiniteError(
        f"{when}: {what}. The last good state (step {loop.step}) is kept; "
        + advice(settings.lr, settings.clip, loop.engine.precision)
    )


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with tensors of its own."""
    each = {
        index: {k: v.clone() if isinstance(v, Tensor) else v for k, v in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": each}
