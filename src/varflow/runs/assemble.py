"""From a spec and the form of the data to a model: each part by its own settings, sizes from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from varflow import priors, refusals
from varflow.condition_sum import ConditionSum
from varflow.core.errors import SpecError, VarflowError
from varflow.core.form import Form
from varflow.data.conditions import Conditions
from varflow.data.dataset import Dataset
from varflow.data.loading import dataset_of
from varflow.data.protocols import Protocol
from varflow.data.target_batches import TargetBatches
from varflow.ensemble import Ensemble
from varflow.likelihoods import Identity
from varflow.model import Model
from varflow.networks import ColumnFeatures, ContextEncoder, TableEncoder
from varflow.posteriors import CodesAsLatents, DataAsLatents, Posterior
from varflow.priors import Prior
from varflow.runs.own import check_kinds
from varflow.settings.roles import Chosen
from varflow.settings.spec import RunSpec

#: Dimensions of a picture.
_PICTURE = 3


def build(
    spec: RunSpec, data: Any, parts: Mapping[str, nn.Module] | None = None, seed: int | None = None
) -> Model:
    """The model of ``spec`` for ``data``.

    Args:
        spec: what to build.
        data: a data set, or a :class:`~varflow.Form`: anything with ``event_shape`` and ``support``.
        parts: parts of your own, by name (prior, likelihood, posterior); they replace the spec's.
        seed: seed of the initial weights; without it the spec's.

    Raises:
        SpecError: an unknown part name, or parts that do not combine.
    """
    spec.validate()
    own = dict(parts or {})
    check_kinds(own)
    form = data if isinstance(data, Form) else form_of(data)
    with torch.random.fork_rng(devices=[]), _fitting_into_memory(spec):
        torch.manual_seed(spec.training.seed if seed is None else seed)
        if form.support == "none":
            made = _inferred(spec, own)
        elif not spec.has("posterior"):
            made = _observed(spec, form, own)
        else:
            made = _latent(spec, form, own)
    model = Model(*made, condition_sum=_condition_sum(form))
    refusals.check(model, form.support, levels=form.levels)
    return model


def _condition_sum(form: Form) -> ConditionSum | None:
    return ConditionSum(form.context) if any(column.summed for column in form.context) else None


def form_of(data: Any) -> Form:
    """What a model has to know of a data set: of anything with ``event_shape`` and ``support``."""
    return Form(
        tuple(data.event_shape),
        data.support,
        getattr(data, "levels", None),
        tuple(getattr(data, "column_kinds", ())),
        tuple(getattr(data, "context", ())),
    )


@contextmanager
def _fitting_into_memory(spec: RunSpec) -> Iterator[None]:
    """Name the largest size where a model does not fit."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError) as error:
        large = any(word in str(error).lower() for word in ("memory", "overflow", "too large"))
        if isinstance(error, VarflowError) or not (large or isinstance(error, MemoryError)):
            raise
        name, value = max(spec.sizes().items(), key=lambda item: item[1])
        raise SpecError(
            f"{name}: was {value}; a model of this size does not fit into memory, use a smaller number"
        ) from error


def _inferred(spec: RunSpec, own: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """q(z) for a target, or for a prior of the user's own."""
    likelihood = own.get("likelihood")
    if "prior" in own:
        prior = own["prior"]
    else:
        prior = spec.target.build()
        likelihood = likelihood or spec.target.loaded.likelihood(spec.target.part, spec.training.batch)
    return prior, likelihood, own.get("posterior") or _posterior(spec, prior.event_shape[0], None)


def _observed(spec: RunSpec, form: Form, own: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The prior is of x itself."""
    for name in own:
        if name != "prior":
            raise SpecError(
                f"{name}: given as an object, and likelihood=identity fits the prior to the data themselves; give a "
                "prior alone, or choose another likelihood"
            )
    observed = DataAsLatents(form.event_shape)
    prior = own.get("prior") or _prior(spec, math.prod(form.event_shape), form, context_features(form))
    return prior, spec.likelihood.build(form), observed


def _latent(spec: RunSpec, form: Form, own: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """q(z|x), then p(x|z), then p(z): the order in which initial weights are drawn."""
    width, above = spec.posterior.width, spec.layers_above if spec.has("layers_above") else None
    posterior = own.get("posterior") or _posterior(spec, width, _encoder(spec, form, width))

    context = context_features(form)

    def decoder(shape: tuple[int, ...]) -> nn.Module:
        made: nn.Module = spec.network.loaded.decoder(width + context, shape)
        if above and above.top_latent:
            return priors.Reads(made, width, context)
        if context:
            # It reads z and c side by side.
            made.context_features = context  # type: ignore[assignment]
        return made

    likelihood = own.get("likelihood") or spec.likelihood.build(decoder, form)
    prior, read = own.get("prior"), context if spec.get("prior_context") else 0
    if prior is None and spec.prior.discrete:
        prior = spec.prior.build(getattr(posterior, "grid", None), getattr(posterior, "codes", None))
    elif prior is None and above and above.top_latent:
        prior = above.prior(_prior(spec, above.top_latent, form, read), width, _activation(spec))
    elif prior is None:
        prior = _prior(spec, width, form, read)
    return prior, likelihood, posterior


def _prior(spec: RunSpec, features: int, form: Form, context: int) -> Any:
    """p(z), or p(z|c) for a context of so many numbers."""
    if not context:
        return spec.prior.build(features, form)
    if not hasattr(spec.prior.settings, "prior_context"):
        raise SpecError(
            f"condition: the prior {spec.prior.prior} cannot be conditioned; use a flow prior, e.g. prior=maf"
        )
    return spec.prior.build(features, form, context)


def _encoder(spec: RunSpec, form: Form, width: int) -> nn.Module:
    """x → features, c beside x where there is a context; a table is read by the kinds of its columns."""
    build, context = spec.network.loaded.encoder, context_features(form)
    if form.columns:
        features = ColumnFeatures(form.columns)
        return TableEncoder(features, build((features.features + context,), width), context)
    if not context:
        network: nn.Module = build(form.event_shape, width)
        return network
    pictures = len(form.event_shape) == _PICTURE and spec.network.network != "mlp"
    return ContextEncoder(
        build(ContextEncoder.in_shape(form.event_shape, context, pictures), width), form.event_shape, context
    )


def context_features(form: Form) -> int:
    """C, the numbers of a context; 0 without one."""
    return ColumnFeatures(form.context).features if form.context else 0


def _posterior(spec: RunSpec, features: int, encoder: nn.Module | None) -> Posterior:
    if not spec.has("flow"):
        quantizer: Posterior = spec.posterior.build(encoder)
        return quantizer
    made: Posterior = spec.posterior.build(features, encoder, _factory(spec.flow))
    if spec.has("layers_above"):
        made = spec.parts["layers_above"].build(made, _activation(spec))
    extended = _factory(spec.extended_flow) if spec.has("extended_flow") else None
    made = spec.parts["hamiltonian"].build(made, extended)
    return made


def _factory(flow: Chosen) -> Callable[..., Any] | None:
    """The flow as a callable of ``features`` and ``context_features``."""
    return None if flow.settings is None else partial(_flow, flow)


def _flow(flow: Chosen, features: int, context_features: int = 0) -> Any:
    return flow.build(features, context_features)


def _activation(spec: RunSpec) -> str:
    """Of the networks between two stochastic layers."""
    return str(spec.get("activation", "relu"))


def density(prior: Prior, event_shape: int | Sequence[int] = ()) -> Model:
    """The model whose log p(x) is the prior's: any prior fitted by maximum likelihood with ``fit``.

    Example:
        >>> import torch, varflow as vf
        >>> model = vf.density(vf.priors.flow_prior(3, "maf"), 3)
        >>> model.terms(torch.zeros(5, 3)).log_weight.shape
        torch.Size([1, 5])

    A prior over codes is fitted to grids of them (:func:`varflow.data.from_codes`).
    """
    if prior.discrete:
        labelled = getattr(prior, "classes", None) is not None
        observed = CodesAsLatents(prior.event_shape, labelled)
        return Model(prior, Identity(observed.event_shape, codes=True), observed)
    return Model(prior, Identity(event_shape), DataAsLatents(event_shape))


def build_ensemble(
    spec: RunSpec, data: Any, parts: Mapping[str, nn.Module] | None = None
) -> Ensemble:
    """``spec.training.fits`` models with the seeds seed, seed + 1, … and data_seed, data_seed + 1, …"""
    members = []
    for fit in range(spec.training.fits):
        seeds = {name: spec.get(name) + fit for name in ("seed", "data_seed") if spec.get(name) is not None}
        members.append(build(spec.replace(**seeds), data, parts))
    return Ensemble(members)


def target_batches(spec: RunSpec, model: Model) -> TargetBatches:
    """The batches of a target's model."""
    facts = {} if spec.target.settings is None else spec.target.loaded.facts()
    batches = getattr(model.likelihood, "batches", "full")
    rows = getattr(model.likelihood, "rows", None)
    features = model.prior.event_shape[0]
    return TargetBatches(spec.target.target, features, rows, batches == "separate", facts)


def for_target(
    spec: RunSpec, own: dict[str, nn.Module]
) -> tuple[Model | Ensemble, TargetBatches]:
    """The model of a target, or the stacked fits, and what stands for their data."""
    ensemble = own.get("ensemble")
    if isinstance(ensemble, Ensemble):
        return ensemble, target_batches(spec, ensemble.member(0))
    nowhere = Form((1,), "none")
    if spec.training.fits == 1:
        model = build(spec, nowhere, own)
        return model, target_batches(spec, model)
    if own:
        raise SpecError(
            f"fits: was {spec.training.fits}, with parts of your own ({', '.join(own)}); build the models and "
            "pass varflow.Ensemble([...]) instead"
        )
    ensemble = build_ensemble(spec, nowhere)
    return ensemble, target_batches(spec, ensemble.member(0))


def spec_data(
    data: Any, spec: RunSpec, kept: Protocol | None = None, conditions: Conditions | None = None
) -> Dataset:
    """The data set of ``spec``, or ``data`` given in Python; under the preprocessing ``kept`` from training."""
    likelihood = spec.likelihood
    return dataset_of(data, spec.data, likelihood.protocol, likelihood.continuous, kept, conditions)
