"""Blocks of updates in one call of compiled code, where compiled code has the whole of a step.

It does for planar steps on a Gaussian fitted to one of the energies u1 … u4 (a model or an ensemble of them), by the
ELBO or the annealed ELBO with the total derivative, and Adam, AdamW or RMSprop: :mod:`varflow.native.planar_fit`.
Everything else, and the first update of a fit, which makes the optimizer's state, goes through
:meth:`varflow.training.loop.Loop.update`. Both read the same random numbers and agree up to rounding.

Parts say themselves what compiled code has of them, by a method ``compiled`` of their own class; a subclass has to
say it anew.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from varflow import native
from varflow.core import random, ranks
from varflow.data.dataset import Dataset
from varflow.data.target_batches import TargetBatches
from varflow.ensemble import Ensemble
from varflow.model import Model
from varflow.native import planar_fit
from varflow.objectives import Objective
from varflow.training import optimizers
from varflow.training.engine import Engine

#: Samples times updates of a call: some milliseconds of work, so that signals are heard, in a few MB of noise.
_POINTS = 2**18


class Blocks:
    """Takes several updates at once. Made by :meth:`of`.

    Args:
        model: what learns.
        groups: its fits.
        loss: what is minimised.
        update: how.
        optimizer: keeps the state.
        seed: of the run.
        samples: of each fit in a step.
        threads: that share the fits.
    """

    def __init__(
        self,
        model: Model | Ensemble,
        groups: list[planar_fit.Fits],
        loss: planar_fit.Loss,
        update: planar_fit.Update,
        optimizer: torch.optim.Optimizer,
        seed: int,
        samples: int,
        threads: int,
    ) -> None:
        self.model, self.groups = model, groups
        self.loss, self.update_rule, self.optimizer = loss, update, optimizer
        self.seed, self.samples = seed, samples
        fits = sum(len(group.energies) for group in groups)
        self.most = max(1, _POINTS // (samples * fits))
        self.parts = min(threads, fits)
        self._pool = ThreadPoolExecutor(self.parts) if self.parts > 1 else None
        self._noise: list[Tensor] = []

    @staticmethod
    def of(
        model: Model | Ensemble,
        dataset: Dataset | TargetBatches,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        clip: float | None,
        engine: Engine,
        seed: int,
        samples: int,
    ) -> Blocks | None:
        """None where compiled code has not the whole of a step, or is not to be used."""
        if not engine.native or engine.device != "cpu" or engine.compile or engine.precision == "bf16":
            return None
        if ranks.several() or not isinstance(dataset, TargetBatches) or dataset.rows is not None:
            return None
        loss, update = planar_fit.declared(objective), optimizers.compiled(optimizer, clip, model.clip_eps)
        groups = planar_fit.declared(model)
        if loss is None or update is None or groups is None or _hooked(model):
            return None
        learned = [tensor for group in groups for tensor in group.tensors if tensor is not None]
        updated = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        if {id(tensor) for tensor in learned} != {id(tensor) for tensor in updated}:
            return None
        if not all(native.usable(tensor) and tensor.is_contiguous() for tensor in learned):
            return None
        return Blocks(model, groups, loss, update, optimizer, seed, samples, engine.threads)

    @torch.no_grad()
    def __call__(self, step: int, weights: list[float], rates: list[float]) -> Tensor | None:
        """Take the updates from ``step`` on, in place.

        Args:
            step: updates done.
            weights, rates: β and the learning rate of each, :attr:`most` of them at most.

        Returns:
            loss, KL and ladj of each, means over the fits: ``[len(weights), 3]``, float64. None where the optimizer
            has no state yet, or somebody looks on at what modules compute.
        """
        if _hooked(self.model):
            return None
        counts = [state["step"] for state in map(self._state, self._learned()) if state]
        if len(counts) < len(self._learned()):
            return None
        names = optimizers.COMPILED_STATES[self.update_rule.kind]
        kept = [
            [[self._state(tensor).get(name) for name in names] for tensor in group.tensors] for group in self.groups
        ]
        noise = self._drawn(step, len(weights))
        rows = planar_fit.take(
            self.groups, noise, weights, rates, self.loss, self.update_rule, kept, int(counts[0]),
            self._pool, self.parts,
        )  # fmt: skip
        torch._foreach_add_(counts, len(weights))
        for group in self.optimizer.param_groups:
            group["lr"] = rates[-1]
        return rows.mean(1)

    def _learned(self) -> list[Tensor]:
        return [tensor for group in self.groups for tensor in group.tensors if tensor is not None]

    def _state(self, tensor: Tensor | None) -> dict[str | None, Tensor]:
        """What the optimizer keeps of it; the optimizer has other tensors after a state was loaded."""
        found: dict[str | None, Tensor] = {} if tensor is None else self.optimizer.state.get(tensor, {})
        return found

    def _drawn(self, step: int, count: int) -> list[Tensor]:
        """What the posteriors draw in each step: ``[count, F, S, 2]`` of each group."""
        if not self._noise:
            for group in self.groups:
                home = group.tensors[0]
                assert home is not None
                self._noise.append(home.new_empty(self.most, len(group.energies), self.samples, 2))
        whole = [noise[:count] for noise in self._noise]
        if self._pool is None:
            random.normal_steps(whole, self.seed, "posterior", step)
            return whole
        share = -(-count // self.parts)

        def fill(first: int) -> None:
            of = [noise[first : first + share] for noise in whole]
            random.normal_steps(of, self.seed, "posterior", step + first)

        list(self._pool.map(fill, range(0, count, share)))
        return whole


def _hooked(model: nn.Module) -> bool:
    """Whether anybody looks on at what modules compute or at gradients."""
    modules = list(model.modules())
    for stack in model.modules():
        modules += list(getattr(stack, "skeleton", nn.Module()).modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for module in modules for name in hooks):
        return True
    return any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
