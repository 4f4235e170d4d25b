"""Optimizers from a spec: fused where torch has it, one launch for all tensors elsewhere."""

from __future__ import annotations

import inspect
import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from varflow.core.errors import SpecError
from varflow.core.settings import Above, AtLeast, Between, Settings, settings
from varflow.native import planar_fit

__all__ = ["SGD", "AdamW", "Adamax", "FusedAdam", "OptimizerSettings", "RMSprop", "learning_rate"]

_STAGES = 8


@settings
class OptimizerSettings(Settings):
    """What every optimizer can be told."""

    lr: Annotated[float, "Learning rate.", Above(0)] = 1e-3
    weight_decay: Annotated[
        float, "L2 penalty on all parameters (adamw: decoupled).", AtLeast(0)
    ] = 0.0
    gain_decay: Annotated[
        float, "L2 penalty on the gains of weight-normalised layers alone.", AtLeast(0)
    ] = 0.0
    decay: Annotated[
        Literal["none", "cosine", "linear", "stages"],
        "Learning rate over the run: constant; to zero along a cosine or a line; or eight stages of 1, 3, 9, … "
        "epochs, each at 10^(-1/7) of the rate before.",
    ] = "none"
    clip: Annotated[
        float | None, "Largest norm of the whole gradient; without it no clipping.", Above(0)
    ] = None

    #: Whether the optimizer counts its updates.
    counts: ClassVar[bool] = True

    def options(self) -> dict[str, Any]:
        """What torch's optimizer takes beside the rate and the penalty."""
        return {"foreach": True}

    def build(self, part: Any, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the parameters of ``model`` that require gradients."""
        groups = _groups(model, self.weight_decay, self.gain_decay)
        options = self.options()
        if self.counts and any(p.is_cuda for group in groups for p in group["params"]):
            # The count of updates stays on the device, where a captured step can count.
            options["capturable"] = True
        made: torch.optim.Optimizer = part(
            groups, lr=self.lr, weight_decay=self.weight_decay, **options
        )
        return made


@settings("Adamax")
class AdamaxSettings(OptimizerSettings):
    beta1: Annotated[float, "Decay of the first moment.", Between(0, 1)] = 0.9
    beta2: Annotated[float, "Decay of the second moment.", Between(0, 1)] = 0.999
    eps: Annotated[float, "Added to the denominator of the update.", AtLeast(0)] = 1e-8

    def options(self) -> dict[str, Any]:
        return {"foreach": True, "betas": (self.beta1, self.beta2), "eps": self.eps}


@settings("FusedAdam", "AdamW")
class AdamSettings(AdamaxSettings):
    amsgrad: Annotated[bool, "The AMSGrad variant."] = False

    def options(self) -> dict[str, Any]:
        betas = (self.beta1, self.beta2)
        return {"fused": True, "betas": betas, "eps": self.eps, "amsgrad": self.amsgrad}


@settings("RMSprop")
class RMSpropSettings(OptimizerSettings):
    alpha: Annotated[float, "Smoothing constant.", Between(0, 1)] = 0.99
    eps: Annotated[float, "Added to the denominator of the update.", AtLeast(0)] = 1e-8
    momentum: Annotated[float, "Momentum.", AtLeast(0)] = 0.0
    centered: Annotated[bool, "Normalise by the centred second moment."] = False

    def options(self) -> dict[str, Any]:
        names = ("alpha", "eps", "momentum", "centered")
        return {"foreach": True, **{name: getattr(self, name) for name in names}}


@settings("SGD")
class SGDSettings(OptimizerSettings):
    counts: ClassVar[bool] = False
    momentum: Annotated[float, "Momentum.", AtLeast(0)] = 0.0
    nesterov: Annotated[bool, "Nesterov momentum."] = False

    def check(self, spec: Any) -> None:
        if self.nesterov and self.momentum == 0:
            raise SpecError("nesterov: needs momentum; set momentum=0.9 or leave it out")

    def options(self) -> dict[str, Any]:
        return {"fused": True, "momentum": self.momentum, "nesterov": self.nesterov}


def _light(method: Any) -> Any:
    """A method of torch's optimizers without the wrapper that keeps it out of compiled code.

    The wrapper imports the compiler when it is first called, more than a second, and nothing here compiles an
    optimizer. Torch's own ``step`` loses its ``no_grad`` with it.
    """
    return inspect.unwrap(method)


class _Light(torch.optim.Optimizer):
    """torch's optimizers, that do not import the compiler."""

    add_param_group = _light(torch.optim.Optimizer.add_param_group)
    state_dict = _light(torch.optim.Optimizer.state_dict)
    load_state_dict = _light(torch.optim.Optimizer.load_state_dict)
    zero_grad = _light(torch.optim.Optimizer.zero_grad)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "step" not in vars(cls):
            cls.step = torch.no_grad()(_light(cls.step))  # type: ignore[method-assign]


class SGD(_Light, torch.optim.SGD): ...


class AdamW(_Light, torch.optim.AdamW): ...


class Adamax(_Light, torch.optim.Adamax): ...


class RMSprop(_Light, torch.optim.RMSprop): ...


class FusedAdam(_Light, torch.optim.Adam):
    """torch's fused Adam, to the bit, without what torch checks again at every step.

    Those checks take 55 µs, as long as the whole forward pass of a flow in the plane. Whatever is out of the
    ordinary (other devices, several dtypes, the first step, a hook) goes torch's way.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        # torch counts the steps of each tensor in a tensor.
        lists = [self._lists(group) for group in self.param_groups]
        if closure is not None or self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks:
            return _hooked_step(self, closure)
        if any(found is None for found in lists):
            return _adam_step(self)
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


_adam_step = torch.no_grad()(_light(torch.optim.Adam.step))
_hooked_step = torch.optim.Optimizer.profile_hook_step(_adam_step)


def compiled(optimizer: torch.optim.Optimizer, clip: float | None, clip_eps: float) -> planar_fit.Update | None:
    """What compiled code has of ``optimizer``, with ``clip`` of the spec; None where it has not the whole of it."""
    group = optimizer.param_groups[0]
    special = ("amsgrad", "maximize", "capturable", "differentiable")
    if (
        len(optimizer.param_groups) > 1
        or any(group.get(name) for name in special)
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
    ):
        return None
    common = {"eps": group["eps"], "weight_decay": group["weight_decay"]} if "eps" in group else {}
    common |= {"clip": clip or 0.0, "clip_eps": clip_eps}
    if type(optimizer) in (FusedAdam, AdamW):
        kind: Literal["adam", "adamw"] = "adam" if type(optimizer) is FusedAdam else "adamw"
        return planar_fit.Update(kind, *group["betas"], **common)
    if type(optimizer) is RMSprop:
        return planar_fit.Update("rmsprop", group["momentum"], group["alpha"], centered=group["centered"], **common)
    return None


#: What an optimizer keeps of each tensor, in the order that compiled code has it.
COMPILED_STATES = {
    "adam": ("exp_avg", "exp_avg_sq", None),
    "adamw": ("exp_avg", "exp_avg_sq", None),
    "rmsprop": ("square_avg", "momentum_buffer", "grad_avg"),
}


def _groups(model: nn.Module, weight_decay: float, gain_decay: float) -> list[dict[str, Any]]:
    """All parameters, those of weight normalisation's gains apart where they have a penalty of their own."""
    gains: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # WeightNorm has two tensors, the gain first: torch's parametrization keeps it in original0.
            (gains if name.endswith("parametrizations.weight.original0") else others).append(
                parameter
            )
    if not (gains and gain_decay):
        return [{"params": others + gains}]
    return [
        {"params": others},
        {"params": gains, "weight_decay": weight_decay + gain_decay},
    ]


class Rate:
    """The learning rate of an optimizer, as it changes: a number on a CPU; on other devices one tensor, which a
    captured step reads anew each time. There it is float32, which torch's fused updates ask for: 6e-8 of it are
    rounding.
    """

    def __init__(self, device: str, lr: float) -> None:
        self._tensor = None if device == "cpu" else torch.tensor(lr, device=device, dtype=torch.float32)

    def set(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Let the next update take ``rate``."""
        held = rate if self._tensor is None else self._tensor.fill_(rate)
        for group in optimizer.param_groups:
            group["lr"] = held


def learning_rate(spec: Any, step: int, steps: int, steps_per_epoch: int = 1) -> float:
    """The rate at an update: constant, or to zero over ``steps`` along a cosine or a line; ``spec`` an optimizer's.

    ``"stages"``: lr·10^(−i/7) for 3ⁱ epochs, i = 0 … 7: 3,280 epochs in all, of which a shorter run is the beginning
    (Burda, Grosse and Salakhutdinov 2016, section 5).
    """
    if spec.decay == "none":
        return float(spec.lr)
    if spec.decay == "stages":
        # Stages before the i-th take 1 + 3 + … + 3^(i−1) = (3^i − 1)/2 epochs.
        begun = sum(step >= (3**i - 1) // 2 * steps_per_epoch for i in range(1, _STAGES))
        return float(spec.lr * 10 ** (-begun / (_STAGES - 1)))
    done = min(1.0, step / steps)
    if spec.decay == "linear":
        return float(spec.lr * (1.0 - done))
    return float(spec.lr * 0.5 * (1.0 + math.cos(math.pi * done)))
