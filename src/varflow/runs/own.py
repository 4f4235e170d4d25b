"""Parts of a user's own: what they must do, which settings they replace, and how a run names them.

A run folder holds weights and names, no code. Of a part that was given in Python it keeps the import path, which is
there to be read: the part itself comes back as ``load(folder, parts={"likelihood": part})``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from varflow.core import random
from varflow.core.errors import RunError, ShapeError, SpecError, VarflowError, suggestion
from varflow.core.observed import Examples, parts_of
from varflow.data.dataset import Dataset
from varflow.data.target_batches import TargetBatches
from varflow.model import LogJoint, Model
from varflow.networks.context import encode
from varflow.posteriors.posterior import Conditional, Draw, Posterior
from varflow.priors.prior import Prior
from varflow.settings.roles import ROLES
from varflow.settings.spec import RunSpec

_T = TypeVar("_T")

#: The parts of a model, which can be given in Python.
PARTS = ("prior", "likelihood", "posterior")
#: Part → what it must be, what it must be able to do, and the class that a user's own begins from.
_ASKED: dict[str, tuple[type, tuple[str, ...], str]] = {
    "prior": (Prior, ("log_prob", "sample"), "varflow.priors.Prior"),
    "likelihood": (nn.Module, ("log_prob",), "varflow.likelihoods.Likelihood"),
    "posterior": (Posterior, (), "varflow.posteriors.Posterior"),
}
#: Samples and examples of the dry run: two numbers that are easily told apart.
_SAMPLES, _EXAMPLES = 3, 2


# -- before a model is built ---------------------------------------------------------------------------


def check_kinds(own: Mapping[str, Any]) -> None:
    """Refuse what is no part: another name, a class in place of an object, or an object without what is asked of it.

    Raises:
        SpecError: one sentence with the part.
    """
    for name, part in own.items():
        if name not in PARTS:
            raise SpecError(f"parts: unknown part '{name}'; {suggestion(name, PARTS)}")
        if isinstance(part, type):
            raise SpecError(f"{name}: was the class {part.__name__}; give an object of it, {part.__name__}(...)")
        if not isinstance(part, nn.Module):
            raise SpecError(f"{name}: was {type(part).__name__}; give a torch.nn.Module")
        base, asked, where = _ASKED[name]
        kind = type(part).__name__
        lacks = [method for method in asked if not callable(getattr(part, method, None))]
        if lacks:
            raise SpecError(
                f"{name}: {kind} has no {' and no '.join(lacks)}; write that method, in a class {kind}({where})"
            )
        if not isinstance(part, base):
            raise SpecError(f"{name}: {kind} is no {where}; write it as a class {kind}({where})")
        if name == "prior" and not isinstance(getattr(part, "event_shape", None), tuple):
            raise SpecError(
                f"prior: {type(part).__name__} has no event_shape; set it to the shape of one z, e.g. (2,)"
            )


def refuse_settings(given: Mapping[str, Any], spec: RunSpec, own: Iterable[str]) -> None:
    """Refuse settings of the parts that are given as objects, which would not be read.

    Args:
        given: what was said beside the parts.
        spec: with these settings in it.
        own: names of the parts given as objects.

    Raises:
        SpecError: one sentence with the setting and the part.
    """
    names = PARTS if "ensemble" in own else tuple(own)
    gone = set(names) | ({"target"} if "prior" in names else set())
    if {"likelihood", "posterior"} <= gone:
        gone.add("network")
    below = {"posterior"} & gone
    for role in ROLES.values():
        below |= {role.name} if role.of in below else set()
    gone |= below
    words = {"network": "posterior and likelihood are", "target": "the prior is"}
    words |= {role: f"the {'posterior' if role in below else role} is" for role in gone - words.keys()}
    for name, value in given.items():
        owners = [part for part in spec.parts.values() if name in part.values()]
        if not owners or value in (None, False, "none") or any(part.role.name not in gone for part in owners):
            continue
        owner = owners[0]
        # What is built around a posterior reads its kind and its size.
        around = ("posterior", *getattr(owner.settings, "read_by_others", ()))
        if set(names) == set(PARTS) or name not in around:
            raise SpecError(
                f"{name}: is a setting of {owner.role.what}, and {words[owner.role.name]} your own; set it there, "
                f"and leave {name} out"
            )


# -- the run folder ------------------------------------------------------------------------------------


def import_paths(part: nn.Module) -> list[str]:
    """``"module:class"`` of a part, then of the modules and functions in it that neither varflow nor torch has."""
    found: list[type | FunctionType] = []
    for module in part.modules():
        found += [type(module), *(value for value in vars(module).values() if isinstance(value, FunctionType))]
    own = [one for one in found if one.__module__.partition(".")[0] not in ("varflow", "torch")]
    return list(dict.fromkeys(f"{one.__module__}:{one.__qualname__}" for one in [type(part), *own]))


def described(paths: Iterable[str]) -> str:
    """``" (mypackage.parts:MyLikelihood with mypackage.networks:Decoder)"``, or nothing where no path is known."""
    first, *inside = [*paths, ""]
    inside = [path for path in inside if path]
    return f" ({first}{' with ' if inside else ''}{', '.join(inside)})" if first else ""


def require(recorded: Mapping[str, list[str]], given: Mapping[str, nn.Module] | None) -> None:
    """Whether ``given`` are the parts that a run was fitted with; nothing is imported to find out.

    Classes are compared by their own names: a class may move from a script to a module. Whether its weights fit is
    seen when they are loaded.

    Args:
        recorded: part → its import paths, as run.json has them.
        given: part → the object given now.

    Raises:
        RunError: a part is missing, of another class, or not one that was given in the fit.
    """
    given = given or {}
    missing = {name: paths for name, paths in recorded.items() if name not in given}
    if missing:
        *first, last = [f"{name}{described(paths)}" for name, paths in missing.items()]
        named = f"{', '.join(first)} and {last}" if first else last
        shown = ", ".join(f"'{name}': ..." for name in missing)
        raise RunError(f"parts: the run was fitted with its own {named}; pass parts={{{shown}}}")
    for name, part in given.items():
        if name not in recorded:
            raise RunError(
                f"parts: '{name}' is given, and the run was fitted with the one of its settings; leave it out"
            )
        before, now = recorded[name], import_paths(part)
        if before and [_own_name(path) for path in before] != [_own_name(path) for path in now]:
            raise RunError(
                f"parts: the {name} of the run was{described(before)}, the one given is{described(now)}; pass one of "
                "the same classes, or, where a class only has another name now, correct own_parts in run.json"
            )


def _own_name(path: str) -> str:
    return path.rpartition(":")[2].rpartition(".")[2]


# -- the dry run ---------------------------------------------------------------------------------------


def dry_run(model: Model, dataset: Dataset | TargetBatches) -> None:
    """Compute the terms of two examples, part by part: what does not fit is named before training begins.

    The model, its modes and all random numbers are left as they were.

    Args:
        model: on the device and in the dtype of the data.
        dataset: whose first training rows are looked at.

    Raises:
        SpecError: one sentence with the part and the shapes.
    """
    rows = dataset.step_rows(min(_EXAMPLES, dataset.sizes["train"]))
    if rows < 1:
        return
    modes = {module: module.training for module in model.modules()}
    home = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    try:
        model.eval()
        forked = torch.random.fork_rng(devices=[home] if home.type == "cuda" else [])
        with forked, random.stream(0), torch.no_grad():
            x = dataset.batch("train", torch.arange(rows, device=home)).seen
            _Trial(model, x, dataset.support == "none").run()
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Trial:
    """One batch on its way through a model."""

    def __init__(self, model: Model, x: Examples | None, infers_target: bool) -> None:
        self.model, self.x, self.infers_target = model, x, infers_target
        values, self.context, mask = parts_of(x)
        beside = {"context": self.context, "mask": mask}
        more = [f"{name} {_shape(part)}" for name, part in beside.items() if part is not None]
        self.read = "nothing" if x is None else " and ".join([f"x {_shape(values)}", *more])

    def run(self) -> None:
        """Encoder, posterior, prior, decoder, likelihood."""
        self.encoder()
        q = self.infer()
        if self.model.posterior.uses_gradient:
            # It draws with the other parts, so these come first.
            home = q.local[0]
            lead = (_SAMPLES, *home.shape[:-1])
            z = random.normal((*lead, *self.model.prior.event_shape), "trial", dtype=home.dtype, device=home.device)
            self.prior(q, z, lead)
            self.likelihood(z, lead)
            self.draw(q)
            return
        draw = self.draw(q)
        lead = tuple(draw.log_q.shape)
        self.prior(q, draw.z, lead)
        self.likelihood(draw.z, lead)

    def encoder(self) -> None:
        network = getattr(self.model.posterior, "encoder", None)
        if self.x is None or not self.model.posterior.reads_x or not isinstance(network, nn.Module):
            return
        name, x = type(network).__name__, self.x
        out = _attempt(f"encoder: {name}", self.read, lambda: encode(network, x))
        if not isinstance(out, Tensor) or len(out) != len(x):
            raise SpecError(f"encoder: {name} makes {_shape(out)} of {self.read}; it should begin with {len(x)}")
        wanted = getattr(getattr(self.model.posterior, "moments", None), "in_features", None)
        if out.ndim == 2 and isinstance(wanted, int) and out.shape[1] != wanted:
            raise SpecError(
                f"encoder: {name} makes {_shape(out)} of {self.read}, and the posterior was built for {wanted} "
                "features, as its attribute features or a dry run told; build it for examples of this shape"
            )

    def infer(self) -> Conditional:
        name = type(self.model.posterior).__name__
        q = _attempt(f"posterior: {name}", self.read, lambda: self.model.infer(self.x))
        if not isinstance(q, Conditional):
            raise SpecError(f"posterior: {name} gives a {type(q).__name__}; it should give a varflow Conditional")
        return q

    def draw(self, q: Conditional) -> Draw:
        name, event = f"posterior: {type(self.model.posterior).__name__}", self.model.prior.event_shape
        draw = _attempt(f"{name}.draw", self.read, lambda: q.draw(_SAMPLES, log_joint=LogJoint(self.model, self.x)))
        lead = tuple(draw.log_q.shape)
        if not self.model.posterior.discrete and tuple(draw.z.shape) != (*lead, *event):
            raise SpecError(
                f"{name} draws z {_shape(draw.z)} with log q {_shape(draw.log_q)}, and the prior is over "
                f"{list(event)}; z should be {[*lead, *event]}"
            )
        return draw

    def prior(self, q: Conditional, z: Tensor, lead: tuple[int, ...]) -> None:
        prior = self.model.prior
        name = f"prior: {type(prior).__name__}"
        log_prob = _attempt(f"{name}.log_prob", f"z {_shape(z)}", lambda: self.model.log_prior(q, z, self.context))
        _same_shape(f"{name}.log_prob", f"z {_shape(z)}", log_prob, lead, "the sum over the event")
        if self.infers_target or prior.discrete or not _is_own(prior):
            return
        if "context" in prior.reads:
            return
        drawn = _attempt(f"{name}.sample", "the shape (2,)", lambda: prior.sample((_EXAMPLES,)))
        _same_shape(f"{name}.sample", "the shape (2,)", drawn, (_EXAMPLES, *prior.event_shape), "a draw each")

    def likelihood(self, z: Tensor, lead: tuple[int, ...]) -> None:
        likelihood = self.model.likelihood
        if likelihood is None:
            return
        name, read = f"likelihood: {type(likelihood).__name__}", f"{self.read} and z {_shape(z)}"
        beside = self.model.beside(z, self.context)
        decoder, event = getattr(likelihood, "decoder", None), getattr(likelihood, "event_shape", ())
        if isinstance(decoder, nn.Module) and event:
            out = _attempt(f"decoder: {type(decoder).__name__}", f"z {_shape(z)}", lambda: decoder(beside))
            wanted = (getattr(likelihood, "outputs", 1) * event[0], *event[1:])
            what = f"what {type(likelihood).__name__} reads"
            _same_shape(f"decoder: {type(decoder).__name__}", f"z {_shape(z)}", out, (*lead, *wanted), what)
        log_prob = _attempt(f"{name}.log_prob", read, lambda: self.model.log_likelihood(z, self.x))
        _same_shape(f"{name}.log_prob", read, log_prob, lead, "the sum over the event")
        if self.x is None or self.infers_target or not _is_own(likelihood):
            return
        for method in ("mean", "sample"):
            made = _attempt(f"{name}.{method}", f"z {_shape(z)}", partial(getattr, likelihood, method))
            made = _attempt(f"{name}.{method}", f"z {_shape(z)}", partial(made, beside))
            _same_shape(f"{name}.{method}", f"z {_shape(z)}", made, (*lead, *self.x.shape[1:]), "x of each z")


def _attempt(what: str, read: str, compute: Callable[[], _T]) -> _T:
    """What ``compute`` gives; whatever it raises becomes a sentence."""
    try:
        return compute()
    except VarflowError as error:
        if not isinstance(error, ShapeError):
            raise
        raise SpecError(f"{what} refuses {read}: {error}") from error
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise SpecError(
            f"{what} fails on {read} ({type(error).__name__}: {said}); give one that is built for these shapes"
        ) from error


def _same_shape(what: str, read: str, found: Any, wanted: tuple[int, ...], which: str) -> None:
    if not isinstance(found, Tensor) or tuple(found.shape) != wanted:
        raise SpecError(f"{what} makes {_shape(found)} of {read}; it should be {list(wanted)}, {which}")


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _is_own(part: nn.Module) -> bool:
    return len(import_paths(part)) > 1 or type(part).__module__.partition(".")[0] != "varflow"
