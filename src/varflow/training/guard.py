"""What to say when training produced a NaN or an infinity.

Nothing is read back from the device at each step, so a bad number is noticed some steps later. Every
random number depends on (seed, purpose, step) alone: the loop goes back to its last good state and
walks the same steps again, this time looking at everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from varflow.ensemble import Ensemble
from varflow.model import LogJoint, Model


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
    model: Model | Ensemble, x: Tensor | None, samples: int, finding: Finding
) -> None:
    """Look at the terms of a batch in the order of computation."""
    for name, parameter in model.named_parameters():
        finding.look(f"parameter '{name}'", parameter)
    if x is not None:
        finding.look("the batch x", x)
    if isinstance(model, Ensemble):
        _inspect_fits(model, x, samples, finding)
        return
    with watched(model, finding):
        q = model.infer(x)
        for index, tensor in enumerate(q.local):
            label = (
                "the encoder's output"
                if q.codes is not None
                else ("the mean of q(z|x)", "the log-scale of q(z|x)")[index]
                if index < 2
                else "the flow's parameters"
            )
            finding.look(f"{label} (module 'posterior')", tensor)
        draw = q.draw(samples, log_joint=LogJoint(model, x))
        for label, tensor in (
            ("z0", draw.z0),
            ("z", draw.z),
            ("ladj", draw.ladj),
            ("log_q", draw.log_q),
        ):
            module = "posterior" if label == "z0" or not hasattr(model.posterior, "flow") else "posterior.flow"
            finding.look(f"term {label} (module '{module}')", tensor)
        if model.likelihood is not None:
            log_likelihood = model.likelihood.log_prob(x, draw.z)
            finding.look("term log_likelihood (module 'likelihood')", log_likelihood)
        finding.look("term log_prior (module 'prior')", model.log_prior(q, draw.z))
        for name, tensor in q.auxiliary.items():
            finding.look(f"the {name} loss (module 'posterior')", tensor)


def _inspect_fits(model: Ensemble, x: Tensor | None, samples: int, finding: Finding) -> None:
    terms = model.terms(x, samples)
    found = {
        "z0": terms.draw.z0,
        "z": terms.z,
        "log_q": terms.log_q,
        "log_likelihood": terms.log_likelihood,
        "log_prior": terms.log_prior,
    }
    for label, tensor in found.items():
        for fit, values in enumerate(tensor.unbind(1)):
            finding.look(f"term {label} of fit {fit}", values)


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


def snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copies of the weights and of the optimizer's state."""
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()
    state["state"] = {
        index: {k: v.clone() if isinstance(v, Tensor) else v for k, v in entry.items()}
        for index, entry in state["state"].items()
    }
    return weights, state
