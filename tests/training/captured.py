"""Whether a training step could be one CUDA graph, found out without a GPU.

:class:`Watch` notes what a captured step must not do. A step on the *meta* device has no numbers that could be read,
and takes none from the host. :class:`Tape` captures and replays a step as a CUDA graph would, operation by operation
on the same tensors.
"""

from __future__ import annotations

import random as python_random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from varflow import flows, likelihoods, priors, targets
from varflow.runs.assemble import build, for_target, spec_data
from varflow.runs.folder import Memory
from varflow.settings import recipes
from varflow.settings.recipes import find
from varflow.settings.spec import RunSpec
from varflow.training import OPTIMIZERS
from varflow.training.engine import Engine
from varflow.training.loop import Loop
from varflow.training.progress import Progress

#: Small sizes of whatever a recipe is made of.
SMALL = {
    "hidden": 8, "layers": 1, "latent": 3, "top_hidden": 5, "length": 2, "batch": 16, "threads": 1, "steps": 40,
    "components": 3, "pseudo_inputs": 4, "prior_length": 2, "prior_hidden": 8, "codes": 6, "code_features": 4,
    "channels": 4, "blocks": 1, "base": 4, "dense": 8, "prior_channels": 4,
    "train_limit": None, "validation_limit": None, "observations": 60, "graph": "off",
}  # fmt: skip


def pictures(channels: int = 1, size: int = 8, rows: int = 60) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, channels, size, size), dtype=torch.uint8, generator=source)


def points(features: int = 4, rows: int = 60) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(0))


def loop_of(recipe: str | None, data: Any, device: str = "cpu", **settings: Any) -> Loop:
    """A :class:`Loop` as ``varflow.fit`` builds it, in small; ``data`` None for a target."""
    spec = RunSpec() if recipe is None else find(recipe).spec
    choices = {name: settings.pop(name) for name in list(settings) if name in _CHOICES}
    spec = spec.replace(**choices)
    held = {name: value for part in spec.parts.values() for name, value in part.values().items()}
    small = {name: value for name, value in SMALL.items() if name in held and name not in settings}
    if held.get("leapfrog", 0) > 2:
        small["leapfrog"] = 2
    if isinstance(held.get("channels"), str):
        small["channels"] = "4-4"
    spec = spec.replace(**small, **settings)
    spec.validate()
    engine = Engine.start(spec.training)
    if device != "cpu":
        engine = Engine(device, spec.training.precision, 1, False, "blas", False, True, spec.training.graph)
    if spec.target.target == "none":
        dataset: Any = spec_data(data, spec).to("cpu", engine.dtype)
        model: Any = build(spec, dataset)
        dataset = dataset.to(device, engine.dtype)
    else:
        model, dataset = for_target(spec, {})
    model = model.to(device=device, dtype=engine.dtype)
    loop = Loop(model, dataset, spec, engine, Memory(), Progress(0, quiet=True))
    loop.model.train()
    return loop


_CHOICES = (
    "target", "likelihood", "network", "posterior", "flow", "prior", "objective", "optimizer", "extended_flow",
    "leapfrog", "top_latent",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A loop to build: recipe, data, settings."""

    recipe: str
    data: Tensor | None
    settings: dict[str, Any] = field(default_factory=dict)

    def loop(self, device: str = "cpu", **settings: Any) -> Loop:
        return loop_of(self.recipe, self.data, device, **{**self.settings, **settings})


def cases() -> dict[str, Case]:
    """Every recipe, every part of every table, and every estimator."""
    found = {name: Case(name, _data(name)) for name in recipes.TABLE}
    for name in flows.TABLE:
        found[f"flow {name}"] = Case("digits", pictures(), {"flow": name})
        found[f"amortized {name}"] = Case("digits", pictures(), {"flow": name, "amortized": True})
        found[f"target by {name}"] = Case("energy", None, {"flow": name})
    for name in priors.TABLE:
        found[f"prior {name}"] = Case("digits", pictures(), {"prior": name})
        if name not in ("normal", "vamp"):
            found[f"density {name}"] = Case("density", points(), {"prior": name})
    for name in likelihoods.TABLE:
        data = pictures() if name in ("bernoulli", "logistics", "categorical") else points()
        found[f"likelihood {name}"] = Case("digits", data, {"likelihood": name})
    for name in targets.TABLE:
        found[f"target {name}"] = Case("energy", None, {"target": name})
        found[f"three fits {name}"] = Case("energy", None, {"target": name, "fits": 3})
    for name in OPTIMIZERS:
        changing = {"optimizer": name, "decay": "cosine", "clip": 1.0}
        found[f"optimizer {name}"] = Case("digits", pictures(), changing)
    for settings in _DIGITS:
        found[" ".join(f"{k}={v}" for k, v in settings.items())] = Case("digits", pictures(), settings)
    found["Hamiltonian target"] = Case("energy", None, {"leapfrog": 2})
    found["Hamiltonian, two fits"] = Case("energy", None, {"leapfrog": 2, "fits": 2})
    found["Hamiltonian, a Gaussian model"] = Case("gaussian-model", None, {"leapfrog": 2})
    found["clipped fits"] = Case("energy", None, {"fits": 3, "clip": 1.0})
    return found


_DIGITS: tuple[dict[str, Any], ...] = (
    {"leapfrog": 2, "tempering": "free"},
    {"leapfrog": 2, "extended_flow": "planar"},
    {"objective": "iwae", "samples": 3},
    {"objective": "iwae", "samples": 3, "gradient": "dreg"},
    {"gradient": "path", "flow": "planar"},
    {"free_bits": 0.1},
    {"warmup": "8 steps"},
    {"precision": "float64"},
    {"top_latent": 2},
)


def _data(recipe: str) -> Tensor | None:
    spec = find(recipe).spec
    if spec.get("target") != "none":
        return None
    if recipe in ("planar-2d", "vae-2d", "nf-clusters"):
        return points(2)
    if recipe == "density" or str(spec.get("data")).endswith(".csv"):
        return points()
    colour = spec.get("data") in ("cifar10", "svhn")
    return pictures(3 if colour else 1, 8 if spec.get("network") == "mlp" else 16)


class Watch:
    """What a step does that a captured one must not, in ``found``."""

    #: Operations that read numbers back, or whose sizes depend on them.
    READS = (
        "_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique", "is_nonzero", "equal", "bincount",
        "histc", "linalg_cond", "repeat_interleave.Tensor", "nonzero_numpy", "argwhere", "_assert_async",
    )  # fmt: skip
    #: What reads numbers past the dispatcher, or brings them from the host.
    CALLS = ("tolist", "numpy", "__array__", "item", "cpu", "cuda", "tensor", "as_tensor", "from_numpy", "asarray")

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def __call__(self) -> Iterator[Watch]:
        before = _states()
        with _Dispatched(self.found), _Called(self.found):
            yield self
        after = _states()
        self.found += [f"random state of {name}" for name in before if before[name] != after[name]]


def _states() -> dict[str, Any]:
    numpy = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "python": python_random.getstate(),
        "numpy": (numpy[1].tobytes(), numpy[2]),  # type: ignore[index,union-attr]
    }


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and to skip the compiler is to import it.
        return False


class _Dispatched(_Mode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        base = name.partition(".")[0]
        if name in Watch.READS or base in Watch.READS:
            self.found.append(name)
        if base in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            self.found.append(f"{name} by a mask")
        if base in ("_to_copy", "copy_") and _crosses(base, args, kwargs or {}):
            self.found.append(f"{name} between devices")
        return func(*args, **(kwargs or {}))


def _crosses(base: str, args: Any, kwargs: Any) -> bool:
    if base == "copy_":
        return args[0].device.type != args[1].device.type
    device = kwargs.get("device")
    return device is not None and device.type != args[0].device.type


class _Called(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in Watch.CALLS:
            self.found.append(f"{name}()")
        return func(*args, **(kwargs or {}))


class Tape(_Mode):
    """Captures the operations of a step of ``loop``, and runs them again on the same tensors.

    They run during the capture too; :meth:`capture` puts the tensors that they changed back, so that nothing has
    happened, as after a capture by CUDA.
    """

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop = loop
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    @property
    def held(self) -> list[Tensor]:
        """What a step changes."""
        state = (t for entry in self.loop.optimizer.state.values() for t in entry.values())
        parts = (*self.loop.model.parameters(), *self.loop.model.buffers(), *state)
        return [tensor for tensor in parts if isinstance(tensor, Tensor)]

    @contextmanager
    def capture(self) -> Iterator[Tape]:
        kept = [tensor.detach().clone() for tensor in self.held]
        self.calls.clear()
        with self:
            yield self
        with torch.no_grad():
            for tensor, value in zip(self.held, kept, strict=True):
                tensor.copy_(value)

    def beside(self) -> Any:
        return nullcontext()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if torch.Tag.inplace_view not in func.tags:
            # As they are now: autograd changes shapes in place.
            self.calls.append(tree_map(_now, (func, args, kwargs, out)))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            returned = func._schema.returns
            # A view needs nothing: its memory is that of a tensor that is replayed.
            if returned and all(r.alias_info is not None and not r.alias_info.is_write for r in returned):
                continue
            again = func(*args, **kwargs)
            olds, news = (x if isinstance(x, tuple | list) else (x,) for x in (out, again))
            for old, new in zip(olds, news, strict=True):
                if isinstance(old, Tensor) and not old._is_zerotensor():
                    old.copy_(new)


def _now(value: Any) -> Any:
    """The same memory, seen in the shape that it has now."""
    return value.detach() if isinstance(value, Tensor) and not value._is_zerotensor() else value
