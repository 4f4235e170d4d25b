"""Optimizers from a spec: fused where torch has it, one launch for all tensors elsewhere."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from varflow._lazy import resolve
from varflow.specs import OptimizerSpec
from varflow.training import OPTIMIZERS

_OPTIONS = {
    "adam": ("betas", "eps", "amsgrad"),
    "adamw": ("betas", "eps", "amsgrad"),
    "adamax": ("betas", "eps"),
    "rmsprop": ("alpha", "eps", "momentum", "centered"),
    "sgd": ("momentum", "nesterov"),
}
_STAGES = 8
_PARTS = (3**_STAGES - 1) // 2
_FUSED = ("adam", "adamw", "sgd")


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
            # torch's weight_norm parametrization keeps the gain in original0.
            (gains if name.endswith("parametrizations.weight.original0") else others).append(
                parameter
            )
    if not (gains and spec.gain_decay):
        return [{"params": others + gains}]
    return [
        {"params": others},
        {"params": gains, "weight_decay": spec.weight_decay + spec.gain_decay},
    ]


def learning_rate(spec: OptimizerSpec, step: int, steps: int) -> float:
    """The rate at an update: constant, or to zero over ``steps`` along a cosine or a line.

    ``"stages"``: lr·10^(−i/7) in stage i = 0 … 7, which takes 3ⁱ of 1 + 3 + … + 3⁷ = 3,280 parts of the run: with
    3,280 epochs the schedule of Burda, Grosse and Salakhutdinov 2016, section 5, with fewer its shape.
    """
    if spec.decay == "none":
        return spec.lr
    done = min(1.0, step / steps)
    if spec.decay == "stages":
        part = done * _PARTS
        stage = min(_STAGES - 1, sum(part >= (3**i - 1) / 2 for i in range(1, _STAGES)))
        return spec.lr * 10 ** (-stage / (_STAGES - 1))
    if spec.decay == "linear":
        return spec.lr * (1.0 - done)
    return spec.lr * 0.5 * (1.0 + math.cos(math.pi * done))
