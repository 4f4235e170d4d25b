"""Optimizers from a spec: fused where torch has it, one launch for all tensors elsewhere."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from varflow.core.lazy import resolve
from varflow.settings.spec import OptimizerSpec
from varflow.training import OPTIMIZERS

_OPTIONS = {
    "adam": ("betas", "eps", "amsgrad"),
    "adamw": ("betas", "eps", "amsgrad"),
    "adamax": ("betas", "eps"),
    "rmsprop": ("alpha", "eps", "momentum", "centered"),
    "sgd": ("momentum", "nesterov"),
}
_STAGES = 8
_FUSED = ("adam", "adamw", "sgd")


class FusedAdam(torch.optim.Adam):
    """torch's fused Adam, to the bit, without what torch checks again at every step.

    Those checks take 55 µs, as long as the whole forward pass of a flow in the plane. Whatever is out of the
    ordinary (other devices, several dtypes, the first step, a hook) goes torch's way.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        # torch counts the steps of each tensor in a tensor.
        lists = [self._lists(group) for group in self.param_groups]
        if closure is not None or self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks:
            return super().step(closure)
        if any(found is None for found in lists):
            return super().step()
        for group, found in zip(self.param_groups, lists, strict=True):
            if not found or not found[0]:
                continue
            parameters, gradients, means, squares, steps = found
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                *(parameters, gradients, means, squares, [], steps),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=group["maximize"],
            )
        return None

    # Or torch would wrap it in a profiler's record.
    step.hooked = True  # type: ignore[attr-defined]

    def _lists(self, group: dict[str, Any]) -> tuple[list[Tensor], ...] | None:
        """Parameters, gradients, first and second moments, counts; None where torch must look at them."""
        if group["amsgrad"] or isinstance(group["lr"], Tensor):
            return None
        lists: tuple[list[Tensor], ...] = ([], [], [], [], [])
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state.get(parameter)
            if not state or parameter.device.type != "cpu" or parameter.grad.is_sparse:
                return None
            found = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"])
            for tensors, tensor in zip(lists, found, strict=True):
                tensors.append(tensor)
        if len({parameter.dtype for parameter in lists[0]}) > 1:
            return None
        return lists


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The optimizer of ``spec`` over the parameters of ``model`` that require gradients."""
    values: dict[str, Any] = {
        "betas": (spec.beta1, spec.beta2),
        "eps": spec.eps,
        "amsgrad": spec.amsgrad,
        "alpha": spec.alpha,
        "momentum": spec.momentum,
        "centered": spec.centered,
        "nesterov": spec.nesterov,
    }
    options = {name: values[name] for name in _OPTIONS[spec.optimizer]}
    options["fused" if spec.optimizer in _FUSED else "foreach"] = True
    kind = resolve(OPTIMIZERS[spec.optimizer])
    optimizer: torch.optim.Optimizer = kind(
        _groups(model, spec), lr=spec.lr, weight_decay=spec.weight_decay, **options
    )
    return optimizer


def _groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """All parameters, those of weight normalisation's gains apart where they have a penalty of their own."""
    gains: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # WeightNorm has two tensors, the gain first: torch's parametrization keeps it in original0.
            (gains if name.endswith("parametrizations.weight.original0") else others).append(
                parameter
            )
    if not (gains and spec.gain_decay):
        return [{"params": others + gains}]
    return [
        {"params": others},
        {"params": gains, "weight_decay": spec.weight_decay + spec.gain_decay},
    ]


def learning_rate(spec: OptimizerSpec, step: int, steps: int, steps_per_epoch: int = 1) -> float:
    """The rate at an update: constant, or to zero over ``steps`` along a cosine or a line.

    ``"stages"``: lr·10^(−i/7) for 3ⁱ epochs, i = 0 … 7: 3,280 epochs in all, of which a shorter run is the beginning
    (Burda, Grosse and Salakhutdinov 2016, section 5).
    """
    if spec.decay == "none":
        return spec.lr
    if spec.decay == "stages":
        # Stages before the i-th take 1 + 3 + … + 3^(i−1) = (3^i − 1)/2 epochs.
        begun = sum(step >= (3**i - 1) // 2 * steps_per_epoch for i in range(1, _STAGES))
        return float(spec.lr * 10 ** (-begun / (_STAGES - 1)))
    done = min(1.0, step / steps)
    if spec.decay == "linear":
        return spec.lr * (1.0 - done)
    return spec.lr * 0.5 * (1.0 + math.cos(math.pi * done))
