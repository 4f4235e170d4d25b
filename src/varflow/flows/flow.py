"""The contract of a flow.

A flow is an invertible map z → z′ = f(z; c) of D features, with log|det ∂z′/∂z| for each example.
Forward is base → target: pushing noise through a posterior or a prior is the fast way, and where the
other way costs more the class says so.

Parameters are either the flow's own (*static*, ``context_features=0``) or computed from a context
vector (*amortized*). Conditioning is a step of its own, because one context serves many samples:

    local = flow.condition(context)      once per batch, before any sample is drawn
    z′, ladj = flow.push(z, local)       as often as wanted
    z, ladj = flow.pull(z′, local)       the exact inverse, with the ladj of the inverse map

``local`` is a tuple of tensors ``[*context_batch, ...]``, one entry per example: everything in the flow that
differs between examples. It is what per-example refinement optimizes, and it is empty for a static
flow. ``flow(z, context)`` and ``flow.inverse(z′, context)`` put the two steps together.

What every flow promises (``tests/flows/test_contract.py`` checks each of these for all):

* z ``[..., D]`` → z′ ``[..., D]`` and ladj ``[...]``, for no, one or many leading dimensions, also when one of
  them is 0. The batch shapes of z and context broadcast against each other.
* float32 and float64; everything is created on the device and in the dtype of z or the parameters.
* No example touches another. No epsilon inside a logarithm, no clamping: the formulas are finite by
  construction.
* A new flow is the identity (:class:`Householder` excepted, whose vectors start random: a random orthogonal map).
* Under autocast the public calls stay in float32.
* Twice differentiable, and usable under ``torch.func.vmap`` and ``torch.func.functional_call``.
* The ``length`` steps live in one module with stacked parameters ``[length, ...]``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core import display
from varflow.core.errors import ShapeError, SpecError, positive
from varflow.core.exporting import exporting
from varflow.core.settings import Settings, Size, settings

Local = tuple[Tensor, ...]


@settings
class FlowSettings(Settings):
    """What every flow can be told; a flow with settings of its own adds them in its file."""

    length: Annotated[int, "Steps of the flow.", Size()] = 8

    def build(self, part: Any, features: int, context_features: int = 0) -> Flow:
        flow: Flow = part(features, length=self.length, context_features=context_features)
        return flow


class Flow(nn.Module, ABC):
    """Base class: the public calls and their checks.

    A flow of one's own writes ``push`` and works wherever points are drawn and their own density is
    wanted: as a posterior's flow it trains under the ELBO and the importance-weighted bounds. It
    writes ``pull`` too where given points are scored (a flow as a prior, log q of a given z, path
    gradients), and ``condition`` where the context has to be made into something else first. A new
    flow had better start at the identity.

    Args:
        features: D, the number of features of z.
        context_features: C, the size of the context vector; 0 makes the flow static.

    Example:
        >>> class Bend(Flow):
        ...     def __init__(self, features, context_features=0):
        ...         super().__init__(features, context_features)
        ...         self.a = nn.Parameter(torch.full((features,), -4.0))
        ...     def push(self, z, local=()):
        ...         scale, h = self.a.exp(), z.tanh()
        ...         return z + scale * h, torch.log1p(scale * (1 - h * h)).sum(-1)
        >>> z, ladj = Bend(2)(torch.zeros(5, 2))
        >>> ladj.shape
        torch.Size([5])

    Attributes:
        mixes: whether an output feature depends on more than its own input feature.
        volume_preserving: whether ladj is 0 for all parameters.
        fast_inverse: whether ``pull`` is the direction that costs one pass, and ``push`` D passes.
    """

    mixes: bool = True
    volume_preserving: bool = False
    fast_inverse: bool = False

    def __init__(self, features: int, context_features: int = 0) -> None:
        super().__init__()
        positive(features=features)
        if context_features < 0:
            raise SpecError(
                f"context_features: was {context_features}; use 0 for static parameters or the size "
                "of the context vector for amortized ones"
            )
        self.features = features
        self.context_features = context_features

    def condition(self, context: Float[Tensor, "*batch context"] | None) -> Local:
        """The per-example tensors that ``push`` and ``pull`` need: ``()`` for a static flow."""
        return () if context is None else (context,)

    @abstractmethod
    def push(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        """z → (z′, ladj), without checks. ``local`` comes from :meth:`condition`."""

    def pull(self, z: Float[Tensor, "... features"], local: Local = ()) -> tuple[Tensor, Tensor]:
        """z′ → (z, ladj of the inverse map), without checks.

        Raises:
            SpecError: the family does not write it.
        """
        name = type(self).__name__
        raise SpecError(
            f"flow: {name} has no inverse, which the density of a given point needs (log q of a z that was not "
            "just drawn, path gradients, a flow as a prior), or a sample where the flow maps data to noise; write "
            f"{name}.pull(self, z, local=()), which returns z before the flow and minus its ladj"
        )

    def count_steps(self) -> int:
        """Into how many steps :meth:`first` divides the map; 1 where it is one piece."""
        return 1

    def first(self, steps: int, local: Local = ()) -> tuple[Flow, Local]:
        """The flow of the first ``steps`` steps from the base on, and its share of ``local``.

        f = f_K ∘ … ∘ f₁, and ``first(k)`` is f_k ∘ … ∘ f₁: what a picture of the way from base to target is made of.
        It shares the parameters and is for reading alone: no gradient reaches them.

        Args:
            steps: k, from 1 to ``count_steps()``.
            local: of :meth:`condition`.

        Raises:
            SpecError: another number.
        """
        count = self.count_steps()
        if not 1 <= steps <= count:
            raise SpecError(f"steps: was {steps}; this {type(self).__name__} has {count}, use 1 to {count}")
        return (self, local) if steps == count else self._first(steps, local)

    def _first(self, steps: int, local: Local) -> tuple[Flow, Local]:
        """:meth:`first` for fewer steps than all, where there are several."""
        raise NotImplementedError

    def forward(
        self, z: Float[Tensor, "... features"], context: Float[Tensor, "... context"] | None = None
    ) -> tuple[Float[Tensor, "... features"], Float[Tensor, "..."]]:
        """z → (z′, ladj).

        Raises:
            ShapeError: z or context has the wrong last dimension, or another dtype than the parameters (half
                precision is computed in float32).
            SpecError: a static flow was given a context, or an amortized one was not.
        """
        self.check(z, context)
        with without_autocast(z):
            z, context = full_precision(z), None if context is None else full_precision(context)
            return self.push(z, self.condition(context))

    if TYPE_CHECKING:
        # torch types every call of a module as Any.
        def __call__(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def inverse(
        self, z: Float[Tensor, "... features"], context: Float[Tensor, "... context"] | None = None
    ) -> tuple[Float[Tensor, "... features"], Float[Tensor, "..."]]:
        """z′ → (z, ladj of the inverse map). Raises as :meth:`forward`."""
        self.check(z, context)
        with without_autocast(z):
            z, context = full_precision(z), None if context is None else full_precision(context)
            return self.pull(z, self.condition(context))

    def check(self, z: Tensor, context: Tensor | None) -> None:
        name = type(self).__name__
        if not z.is_floating_point():
            raise ShapeError(f"z: was {z.dtype}; {name} needs a floating-point tensor, e.g. z.float()")
        if z.ndim == 0 or z.shape[-1] != self.features:
            raise ShapeError(f"z: shape {tuple(z.shape)}; {name} needs [..., {self.features}]")
        if context is None and self.context_features:
            raise SpecError(
                f"context: missing; this {name} is amortized and needs [..., {self.context_features}]"
            )
        if context is not None:
            if not self.context_features:
                raise SpecError(
                    f"context: given, but this {name} is static; "
                    f"build it with context_features={context.shape[-1]} or leave the context out"
                )
            if context.shape[-1] != self.context_features:
                raise ShapeError(
                    f"context: shape {tuple(context.shape)}; "
                    f"this {name} needs [..., {self.context_features}]"
                )
        needed = None if torch.compiler.is_compiling() else _dtype(self)
        if needed is not None:
            _check_dtype("z", z, needed, name)
            if context is not None:
                _check_dtype("context", context, needed, name)

    def _repr_html_(self) -> str:
        return display.tree(self)

    def extra_repr(self) -> str:
        return f"features={self.features}, context_features={self.context_features}"


def shortened(module: Any, steps: int, *names: str) -> Any:
    """A copy of a module of ``length`` steps that has the first ``steps`` alone, of the stacked parameters ``names``
    or of lists of such. Other parts are shared.
    """
    made = copy.copy(module)
    made._parameters, made._modules = dict(module._parameters), dict(module._modules)
    made.length = steps
    for name in names:
        held = getattr(module, name)
        if isinstance(held, nn.ParameterList):
            made._modules[name] = nn.ParameterList(_share_of(part, steps) for part in held)
        elif held is not None:
            made._parameters[name] = _share_of(held, steps)
    return made


def _share_of(stacked: Tensor, steps: int) -> nn.Parameter:
    return nn.Parameter(stacked.detach()[:steps], requires_grad=False)


def packed_first(packed: Tensor, length: int, steps: int, sizes: Sequence[int]) -> Tensor:
    """The numbers of the first steps, of a vector that holds, for each of ``sizes``, that many numbers of every step,
    step after step.
    """
    groups = packed.split([length * size for size in sizes], -1)
    return torch.cat([group[..., : steps * size] for group, size in zip(groups, sizes, strict=True)], -1)


def align(z: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """R points for each of G parameter sets: z ``[R, G, D]``, packed ``[G, P]``, and the batch shape they came in.

    The batch shapes of z ``[*, D]`` and packed ``[*, P]`` broadcast, without copies in the usual cases: static
    parameters (``packed [P]``), one set per example, and one set per example shared by samples (``z [S, B, D]``,
    ``packed [B, P]``). Anything else expands the parameters.
    """
    if packed.ndim == 1:
        batch = tuple(z.shape[:-1])
        return z.reshape(prod(batch), 1, z.shape[-1]), packed.unsqueeze(0), batch
    batch = tuple(torch.broadcast_shapes(z.shape[:-1], packed.shape[:-1]))
    sets = tuple(packed.shape[:-1])
    while sets and sets[0] == 1:
        sets = sets[1:]
    if sets != batch[len(batch) - len(sets) :]:
        sets = batch
        packed = packed.expand(*batch, packed.shape[-1])
    groups, points = prod(sets), prod(batch[: len(batch) - len(sets)])
    z = z.expand(*batch, z.shape[-1])
    return z.reshape(points, groups, z.shape[-1]), packed.reshape(groups, packed.shape[-1]), batch


def _dtype(module: nn.Module) -> torch.dtype | None:
    """That of the first parameter; torch's own iteration over them takes ten times as long."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter.dtype
    for part in module._modules.values():
        found = None if part is None else _dtype(part)
        if found is not None:
            return found
    return None


def _check_dtype(argument: str, tensor: Tensor, needed: torch.dtype, name: str) -> None:
    found = tensor.dtype
    if found is needed or (needed is torch.float32 and found in (torch.bfloat16, torch.float16)):
        return
    raise ShapeError(
        f"{argument}: was {found}; the parameters of this {name} are {needed}; convert {argument} with "
        f"{argument}.to({needed}), or the flow with flow.to({found})"
    )


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Inside, arithmetic on the device of ``tensor`` keeps its dtype."""
    device = tensor.device.type
    # An exported program has no autocast to turn off.
    if exporting() or not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def full_precision(tensor: Tensor) -> Tensor:
    """float32 at least: densities are not computed in half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
