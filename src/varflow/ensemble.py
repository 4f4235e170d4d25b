"""Many fits in one program: parts of one structure stacked, so that ten seeds cost far less than ten runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from varflow.core import display, random
from varflow.core.errors import SpecError
from varflow.core.observed import Examples
from varflow.model import Model, Terms
from varflow.native.planar_fit import Chain, Fits, declared
from varflow.posteriors.posterior import Draw, Posterior

#: Stands for the dot of a parameter's name, which torch keeps for submodules.
_DOT = "|"

Options = dict[str, bool]


class _Draws(nn.Module):
    """S samples of q(z): (z, log_q, z0, ladj, control)."""

    def __init__(self, posterior: Posterior) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, samples: int, options: Options) -> tuple[Tensor | None, ...]:
        draw = self.posterior().draw(samples, hold=options.get("hold", False))
        return draw.z, draw.log_q, draw.z0, draw.ladj, draw.control


class _Scores(nn.Module):
    """(log_likelihood, log_prior) of z."""

    def __init__(self, prior: nn.Module, likelihood: nn.Module | None) -> None:
        super().__init__()
        self.prior, self.likelihood = prior, likelihood

    def forward(self, x: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
        log_prior: Tensor = self.prior.log_prob(z)  # type: ignore[operator]
        if self.likelihood is None:
            return torch.zeros_like(log_prior), log_prior
        return self.likelihood.log_prob(x, z), log_prior  # type: ignore[operator]


class _Whole(nn.Module):
    """Both at once, for a posterior that follows the gradient of log p(x, z)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Tensor | None, samples: int, options: Options
    ) -> tuple[Tensor | None, ...]:
        terms = self.model.terms(x, samples, **options)  # type: ignore[arg-type]
        draw = terms.draw
        drawn = (draw.z, draw.log_q, draw.z0, draw.ladj, draw.control)
        return (*drawn, terms.log_likelihood, terms.log_prior)


class _Stack(nn.Module):
    """Modules that differ only in the values of their tensors; every tensor is kept once, ``[fits, ...]``."""

    def __init__(self, fits: Sequence[int], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        parameters, buffers = torch.func.stack_module_state(list(modules))
        for name, tensor in parameters.items():
            kept = nn.Parameter(tensor.detach(), tensor.requires_grad)
            self.register_parameter(name.replace(".", _DOT), kept)
        persistent = modules[0].state_dict()
        for name, tensor in buffers.items():
            self.register_buffer(name.replace(".", _DOT), tensor, persistent=name in persistent)
        # In a list, so that its tensors are not registered a second time.
        self._skeleton = [_without_cache(copy.deepcopy(modules[0]))]
        self._requests: dict[Any, list[random.Request]] = {}
        self.fits = list(fits)
        #: No fit's module differs from another's in any number.
        self.alike = not parameters and all(bool((b == b[:1]).all()) for b in buffers.values())

    @property
    def skeleton(self) -> Any:
        """One of the modules, whose tensors mean nothing."""
        return self._skeleton[0]

    def member(self, fit: int) -> nn.Module:
        """One of the modules, with tensors of its own."""
        index = self.fits.index(fit)
        module = copy.deepcopy(self._skeleton[0])
        tensors = {name.replace(_DOT, "."): t[index] for name, t in self.state_dict().items()}
        if tensors:
            home = next(iter(tensors.values()))
            module.to(device=home.device, dtype=home.dtype).load_state_dict(tensors)
        return module.train(self.training)

    def forward(self, given: tuple[Any, ...], z: Tensor | None = None) -> list[Tensor | None]:
        """What each module makes of ``given``, and of its own part of z ``[S, fits, D]``: ``[S, fits, ...]``."""
        state = self._stacked()
        noise = [_draw(request, len(self.fits)) for request in self._asked(state, given, z)]
        missing: list[bool] = []

        def one(state: Any, noise: list[Tensor], z: Tensor | None) -> tuple[Tensor, ...]:
            arguments = given if z is None else (*given, z)
            with random.use(random.Replay(noise)):
                found = torch.func.functional_call(self._skeleton[0], state, arguments)
            missing[:] = [tensor is None for tensor in found]
            return tuple(tensor for tensor in found if tensor is not None)

        if self.alike and given == (None,) and z is not None and not noise:
            # A target takes points of any batch shape: one call, without vmap's share of each operation. The numbers
            # of the skeleton itself stay where it was made, in the dtype of that time.
            first = {name: buffer[0] for name, buffer in state[1].items()}
            skeleton = self._skeleton[0]
            return list(torch.func.functional_call(skeleton, first, (None, z)) if first else skeleton(None, z))

        dims = (0, 0, None if z is None else 1)
        if not (any(state) or noise or z is not None):
            raise SpecError("models: have neither parameters nor noise; there is nothing to stack")
        there = iter(torch.func.vmap(one, dims, out_dims=1)(state, noise, z))
        return [None if absent else next(there) for absent in missing]

    def _stacked(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return (
            {name.replace(_DOT, "."): p for name, p in self._parameters.items() if p is not None},
            {name.replace(_DOT, "."): b for name, b in self._buffers.items() if b is not None},
        )

    def _asked(self, state: Any, given: tuple[Any, ...], z: Tensor | None) -> list[random.Request]:
        """Which random tensors one of the modules asks for."""
        if z is not None:
            return []
        key = str([tuple(g.shape) if isinstance(g, Tensor) else g for g in given])
        if key not in self._requests:
            recorder = random.Recorder(random.Stream(0))
            first = tuple({name: t[0] for name, t in group.items()} for group in state)
            with random.use(recorder), torch.no_grad():
                torch.func.functional_call(self._skeleton[0], first, given)
            self._requests[key] = recorder.requests
        return self._requests[key]


class Ensemble(nn.Module):
    """Models trained together: the same terms as :class:`varflow.Model`, with a dimension for the fits.

    Posteriors of equal structure share one batched program, whatever they are fitted to, and so do targets and
    likelihoods of equal structure (seeds, data sets). Equal are modules of the same classes whose attributes
    are equal too, and whose tensors have the same shapes; a function or another object in an attribute is equal
    to itself alone. What differs (flows of other lengths, other targets) stands beside them in the same step.
    No fit touches another: their loss is the sum of the
    losses, optimizers act on each number alone, and gradients are clipped fit by fit. Each fit has
    noise of its own.

    Args:
        models: one or more, of any structures, whose latents have the same size and whose q reads no x.

    Attributes:
        fits: how many.

    Raises:
        SpecError: no models, latents of different sizes, or a posterior that reads x.
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
        if any(model.posterior.reads_x for model in models):
            raise SpecError("models: a posterior reads x; only fits to a target are stacked")
        self.fits: int = len(models)
        whole = [i for i, m in enumerate(models) if getattr(m.posterior, "uses_gradient", False)]
        apart = [i for i in range(self.fits) if i not in whole]
        # Any: torch types the members of a ModuleList as plain modules.
        self.wholes: Any = _stacks({i: _Whole(models[i]) for i in whole})
        self.draws: Any = _stacks({i: _Draws(models[i].posterior) for i in apart})
        self.scores: Any = _stacks({i: _Scores(models[i].prior, models[i].likelihood) for i in apart})

    def member(self, index: int) -> Model:
        """One of the models, with tensors of its own."""
        for stack in self.wholes:
            if index in stack.fits:
                model: Model = stack.member(index).model
                return model
        (draws,) = (stack.member(index) for stack in self.draws if index in stack.fits)
        (scores,) = (stack.member(index) for stack in self.scores if index in stack.fits)
        return Model(scores.prior, scores.likelihood, draws.posterior).train(self.training)

    def _repr_html_(self) -> str:
        each = display.heading(f"{self.fits} fits, trained together", "each of these parts")
        return display.block(each, display.tree(self.member(0)))

    def members(self) -> list[Model]:
        """All of them, in the order they were given."""
        return [self.member(index) for index in range(self.fits)]

    def terms(self, x: Examples | None = None, samples: int = 1, **options: bool) -> Terms:
        """The terms of every fit: z ``[S, fits, D]`` and ``[S, fits]`` for the others."""
        parts = [(stack.fits, stack((samples, options))) for stack in self.draws]
        drawn = _in_order(parts) if parts else []
        parts += [(stack.fits, stack((x, samples, options))) for stack in self.wholes]
        if drawn:
            z = drawn[0]
            assert z is not None
            # Fits to the draws stand at these places of z.
            places = sorted(fit for fits, _ in parts[: len(self.draws)] for fit in fits)
            scored = [
                (stack.fits, stack((x,), _chosen(z, [places.index(fit) for fit in stack.fits])))
                for stack in self.scores
            ]
            parts = [(places, drawn + _in_order(scored)), *parts[len(self.draws) :]]
        found = _in_order(parts)
        z, log_q, z0, ladj, control, log_likelihood, log_prior = found
        assert z is not None
        assert log_q is not None
        assert z0 is not None
        assert ladj is not None
        assert log_likelihood is not None
        assert log_prior is not None
        return Terms(z, log_likelihood, log_prior, log_q, Draw(z, log_q, z0, ladj, control))

    def forward(self, x: Examples | None = None, samples: int = 1) -> Terms:
        return self.terms(x, samples)

    def start(self, draw: Callable[[str], Examples]) -> None:
        """Fits to targets have no data to begin at."""

    #: Stacked latents are no codes.
    codes = 0

    def monitor(self) -> dict[str, list[float]]:
        """:meth:`varflow.Model.monitor` of every fit: name → one value each."""
        found: dict[str, list[float]] = {}
        if not any(any("likelihood" in name for name in s.state_dict()) for s in self.children()):
            return found
        for member in self.members():
            for name, value in member.monitor().items():
                found.setdefault(name, []).append(value)
        return found

    def in_order(self, x: Examples | None, samples: int) -> Iterator[tuple[str, Tensor]]:
        """What a step computes, each with its name and fit, in the order of computation."""
        terms = self.terms(x, samples)
        found = {
            "z0": terms.draw.z0,
            "z": terms.z,
            "log_q": terms.log_q,
            "log_likelihood": terms.log_likelihood,
            "log_prior": terms.log_prior,
        }
        for label, tensor in found.items():
            for fit, values in enumerate(tensor.unbind(1)):
                yield f"term {label} of fit {fit}", values

    def compiled(self) -> list[Fits] | None:
        """As :meth:`varflow.Model.compiled`, each stack of posteriors for itself."""
        energies: dict[int, str] = {}
        for stack in self.scores:
            scores = stack.skeleton
            energy = declared(scores.prior)
            if scores.likelihood is not None or not isinstance(energy, str):
                return None
            energies |= dict.fromkeys(stack.fits, energy)
        found = []
        for stack in self.draws:
            chain = declared(stack.skeleton.posterior)
            if not isinstance(chain, Chain):
                return None
            tensors = {name.replace(_DOT, "."): tensor for name, tensor in stack.named_parameters()}
            found.append(Fits.of(chain.within("posterior."), tensors, [energies[fit] for fit in stack.fits]))
        return None if len(self.wholes) else found

    #: Added to the norm that a gradient is divided by when it is clipped.
    clip_eps = 0.0

    def clip_gradients(self, norm: float) -> None:
        """Scale the gradient of each fit to at most ``norm``."""
        stacks = [*self.wholes, *self.draws, *self.scores]
        squares: dict[int, Tensor] = {}
        for stack in stacks:
            for gradient in _gradients(stack):
                for fit, square in zip(stack.fits, gradient.flatten(1).square().sum(1), strict=True):
                    squares[fit] = squares.get(fit, torch.zeros_like(square)) + square
        for stack in stacks:
            for gradient in _gradients(stack):
                norms = torch.stack([squares[fit] for fit in stack.fits]).sqrt()
                factor = (norm / norms).clamp(max=1.0)
                gradient.mul_(factor.reshape(-1, *[1] * (gradient.ndim - 1)))


def _stacks(modules: dict[int, nn.Module]) -> nn.ModuleList:
    """Modules by fit, those that one program can run together in one stack."""
    groups: dict[Hashable, list[int]] = {}
    for fit, module in modules.items():
        groups.setdefault(_structure(module), []).append(fit)
    return nn.ModuleList(_Stack(fits, [modules[fit] for fit in fits]) for fits in groups.values())


def _without_cache(module: nn.Module) -> nn.Module:
    """``module`` itself, without what cached properties hold: it follows from the numbers of one fit."""
    for part in module.modules():
        for name in list(vars(part)):
            if isinstance(getattr(type(part), name, None), cached_property):
                del vars(part)[name]
    return module


def _structure(module: nn.Module) -> Hashable:
    """Equal for modules that differ in nothing but the values of their parameters and buffers."""
    first: dict[int, str] = {}
    parts: list[Hashable] = []
    for name, part in module.named_modules(remove_duplicate=False):
        # A part that stands at two places is no two parts.
        shared = first.setdefault(id(part), name)
        parts.append((name, shared, _kind(part) if shared == name else None))
    tensors = [*module.named_parameters(), *module.named_buffers()]
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors)
    return tuple(parts), shapes


def _kind(part: nn.Module) -> Hashable:
    """The class of one module and all its attributes but tensors and submodules, which are compared apart."""
    kind = parametrize.type_before_parametrizations(part)
    slots = [name for base in kind.__mro__ for name in vars(base).get("__slots__", ())]
    if slots or isinstance(part, torch.jit.ScriptModule):
        return id(part)
    apart = {"_parameters", "_buffers", "_modules"}
    # What a cached property holds is computed anew: see _without_cache.
    settings = {
        name: value
        for name, value in vars(part).items()
        if name not in apart and not isinstance(getattr(kind, name, None), cached_property)
    }
    return id(kind), _setting(settings)


def _setting(value: Any) -> Hashable:
    """Equal for equal plain values, also in containers; anything else is equal to itself alone."""
    kind = type(value)
    if kind in (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size):
        return kind, repr(value)
    if isinstance(value, dict):
        return kind, tuple((_setting(key), _setting(item)) for key, item in value.items())
    if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(kind, "_fields")):
        return kind, tuple(_setting(item) for item in value)
    if kind in (set, frozenset):
        return kind, frozenset(_setting(item) for item in value)
    if kind is partial:
        return kind, _setting(value.func), _setting(value.args), _setting(value.keywords)
    return kind, id(value)


def _in_order(parts: Sequence[tuple[Sequence[int], list[Tensor | None]]]) -> list[Tensor | None]:
    """Parts ``[S, fits of the part, ...]`` as one, with the fits in increasing order; None where one has none."""
    fits = [fit for part, _ in parts for fit in part]
    order = [fits.index(fit) for fit in sorted(fits)]
    joined: list[Tensor | None] = []
    for tensors in zip(*(found for _, found in parts), strict=True):
        if any(tensor is None for tensor in tensors):
            joined.append(None)
            continue
        whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors, 1)
        joined.append(whole if order == sorted(order) else whole[:, order])
    return joined


def _chosen(z: Tensor, places: list[int]) -> Tensor:
    """z of some fits; z itself, not a copy, where those are all."""
    return z if places == list(range(z.shape[1])) else z[:, places]


def _gradients(stack: nn.Module) -> list[Tensor]:
    return [p.grad for p in stack.parameters() if p.grad is not None]


def _draw(request: random.Request, fits: int) -> Tensor:
    draw = {"normal": random.normal, "uniform": random.uniform}[request.kind]
    return draw(
        (fits, *request.shape),
        request.purpose,
        dtype=request.dtype,
        device=request.device,
        batch_dim=None if request.batch_dim is None else request.batch_dim + 1,
    )
