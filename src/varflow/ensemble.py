"""Many fits in one program: models of one structure stacked, so that ten seeds cost far less than ten runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from varflow import random
from varflow.errors import SpecError
from varflow.model import Model, Terms
from varflow.posteriors.posterior import Draw

#: Stands for the dot of a parameter's name, which torch keeps for submodules.
_DOT = "|"


class _Stack(nn.Module):
    """Models that differ only in the values of their tensors; every tensor is kept once, ``[fits, ...]``."""

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        parameters, buffers = torch.func.stack_module_state(list(models))
        for name, tensor in parameters.items():
            self.register_parameter(
                name.replace(".", _DOT), nn.Parameter(tensor.detach(), tensor.requires_grad)
            )
        kept = models[0].state_dict()
        for name, tensor in buffers.items():
            self.register_buffer(name.replace(".", _DOT), tensor, persistent=name in kept)
        # In a list, so that its tensors are not registered a second time.
        self._skeleton = [copy.deepcopy(models[0])]
        self._requests: dict[Any, list[random.Request]] = {}
        self.fits = len(models)

    def member(self, index: int) -> Model:
        """One of the models, with tensors of its own."""
        model = copy.deepcopy(self._skeleton[0])
        tensors = {name.replace(_DOT, "."): t[index] for name, t in self.state_dict().items()}
        home = next(iter(tensors.values()))
        model.to(device=home.device, dtype=home.dtype).load_state_dict(tensors)
        return model.train(self.training)

    def _stacked(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return (
            {name.replace(_DOT, "."): p for name, p in self._parameters.items() if p is not None},
            {name.replace(_DOT, "."): b for name, b in self._buffers.items() if b is not None},
        )

    def terms(
        self, x: Tensor | None, samples: int, options: dict[str, bool]
    ) -> list[Tensor | None]:
        """z, log_likelihood, log_prior, log_q, z0, ladj, control; each ``[S, fits, ...]``."""
        state = self._stacked()
        noise = [_draw(request, self.fits) for request in self._asked(state, x, samples, options)]
        missing: list[bool] = []

        def one(state: Any, noise: list[Tensor]) -> tuple[Tensor, ...]:
            with random.use(random.Replay(noise)):
                terms = torch.func.functional_call(self._skeleton[0], state, (x, samples), options)
            draw = terms.draw
            found = (
                terms.z, terms.log_likelihood, terms.log_prior, terms.log_q, draw.z0, draw.ladj, draw.control,
            )  # fmt: skip
            missing[:] = [tensor is None for tensor in found]
            return tuple(tensor for tensor in found if tensor is not None)

        there = iter(torch.func.vmap(one, out_dims=1)(state, noise))
        return [None if absent else next(there) for absent in missing]

    def _asked(
        self, state: Any, x: Tensor | None, samples: int, options: dict[str, bool]
    ) -> list[random.Request]:
        """Which random tensors one of the models asks for."""
        key = (samples, None if x is None else tuple(x.shape), *options.items())
        if key not in self._requests:
            recorder = random.Recorder(random.Stream(0))
            first = tuple({name: t[0] for name, t in group.items()} for group in state)
            with random.use(recorder), torch.no_grad():
                torch.func.functional_call(self._skeleton[0], first, (x, samples), options)
            self._requests[key] = recorder.requests
        return self._requests[key]


class Ensemble(nn.Module):
    """Models trained together: the same terms as :class:`varflow.Model`, with a dimension for the fits.

    Models of equal structure (seeds, data sets) share one batched program; those that differ (targets,
    lengths) stand beside them in the same step. No fit touches another: their loss is the sum of the
    losses, optimizers act on each number alone, and gradients are clipped fit by fit.

    Args:
        models: two or more, of any structures, whose latents have the same size.

    Attributes:
        fits: how many.

    Raises:
        SpecError: no models, or latents of different sizes.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        if not models:
            raise SpecError("models: was empty; give one model or more")
        shapes = {tuple(model.prior.event_shape) for model in models}
        if len(shapes) > 1:
            raise SpecError(
                f"models: their latents have shapes {sorted(shapes)}; fit those of one shape together"
            )
        groups: dict[str, list[int]] = {}
        for index, model in enumerate(models):
            groups.setdefault(_structure(model), []).append(index)
        self.stacks = nn.ModuleList(_Stack([models[i] for i in group]) for group in groups.values())
        self.fits = len(models)
        self._places = {
            index: (stack, position)
            for stack, group in enumerate(groups.values())
            for position, index in enumerate(group)
        }
        order = [index for group in groups.values() for index in group]
        self._order = None if order == sorted(order) else [order.index(i) for i in range(self.fits)]

    def member(self, index: int) -> Model:
        """One of the models, with tensors of its own."""
        stack, position = self._places[index]
        member: Model = self.stacks[stack].member(position)  # type: ignore[operator]
        return member

    def members(self) -> list[Model]:
        """All of them, in the order they were given."""
        return [self.member(index) for index in range(self.fits)]

    def terms(self, x: Tensor | None = None, samples: int = 1, **options: bool) -> Terms:
        """The terms of every fit: z ``[S, fits, D]`` and ``[S, fits]`` for the others."""
        parts = [stack.terms(x, samples, options) for stack in self.stacks]  # type: ignore[operator]
        *always, controls = zip(*parts, strict=True)
        z, log_likelihood, log_prior, log_q, z0, ladj = map(self._join, always)
        control = None if any(c is None for c in controls) else self._join(controls)
        return Terms(z, log_likelihood, log_prior, log_q, Draw(z, log_q, z0, ladj, control))

    def forward(self, x: Tensor | None = None, samples: int = 1) -> Terms:
        return self.terms(x, samples)

    def monitor(self) -> dict[str, list[float]]:
        """:func:`exact_errors` of every fit: name → one value each."""
        found: dict[str, list[float]] = {}
        for member in self.members():
            for name, value in exact_errors(member).items():
                found.setdefault(name, []).append(value)
        return found

    def clip_gradients(self, norm: float) -> None:
        """Scale the gradient of each fit to at most ``norm``."""
        for stack in self.stacks:
            gradients = [p.grad for p in stack.parameters() if p.grad is not None]
            square = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
            factor = (norm / square.sqrt()).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(factor.reshape(-1, *[1] * (gradient.ndim - 1)))

    def _join(self, tensors: Sequence[Any]) -> Tensor:
        joined = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), 1)
        return joined if self._order is None else joined[:, self._order]


@torch.no_grad()
def exact_errors(model: Model) -> dict[str, float]:
    """What a model with exact answers says of itself while it is trained; nothing for any other."""
    likelihood = model.likelihood
    if not hasattr(likelihood, "errors"):
        return {}
    found = {
        name: value for name, value in likelihood.errors()._asdict().items() if value is not None
    }
    return {"log_evidence": float(likelihood.log_evidence()), **found}


def _structure(model: Model) -> str:
    """Equal for models that one program can run."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors]
    return f"{model!r}{shapes}"


def _draw(request: random.Request, fits: int) -> Tensor:
    draw = {"normal": random.normal, "uniform": random.uniform}[request.kind]
    return draw((fits, *request.shape), request.purpose, dtype=request.dtype, device=request.device)
