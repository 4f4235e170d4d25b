"""From a spec and the shape of the data to a model. Sizes follow from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from varflow import combinations, flows, likelihoods, priors, targets
from varflow.core.lazy import resolve
from varflow.data.unobserved import Unobserved
from varflow.ensemble import Ensemble
from varflow.core.errors import SpecError, suggestion
from varflow.likelihoods import Identity
from varflow.model import Model
from varflow.networks import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    StridedDecoder,
    StridedEncoder,
    VQDecoder,
    VQEncoder,
)
from varflow.posteriors import (
    Ancestral,
    Gaussian,
    Hamiltonian,
    Observed,
    ObservedCodes,
    Posterior,
    Quantizer,
)
from varflow.priors import Prior
from varflow.settings.spec import RunSpec, widths

PARTS = ("prior", "likelihood", "posterior")


@dataclass(frozen=True)
class Form:
    """What a model has to know of the data.

    Attributes:
        event_shape: shape of one example; of the latents, for a target.
        support: the values it takes: binary, levels, grey, unit, real or codes; none for a target.
        levels: how many values an element can take; None for a continuum.
    """

    event_shape: tuple[int, ...]
    support: str
    levels: int | None = None


def build(
    spec: RunSpec, data: Any, parts: Mapping[str, nn.Module] | None = None, seed: int | None = None
) -> Model:
    """The model of ``spec`` for ``data``.

    Args:
        spec: what to build.
        data: a data set, or a :class:`Form`: anything with ``event_shape`` and ``support``.
        parts: parts of your own, by name (prior, likelihood, posterior); they replace the spec's.
        seed: seed of the initial weights; without it the spec's.

    Raises:
        SpecError: an unknown part name, or parts that do not combine.
    """
    spec.validate()
    own = dict(parts or {})
    for name in own:
        if name not in PARTS:
            raise SpecError(f"parts: unknown part '{name}'; {suggestion(name, PARTS)}")
    form = Form(tuple(data.event_shape), data.support, getattr(data, "levels", None))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.training.seed if seed is None else seed)
        if spec.likelihood.likelihood == "identity" and form.support != "none":
            features = math.prod(form.event_shape)
            posterior: Any = Observed(form.event_shape)
            likelihood: nn.Module | None = Identity(form.event_shape)
            prior: Any = own.get("prior") or _prior(spec, form, features)
        elif form.support == "none":
            prior, likelihood = _target(spec, own)
            posterior = own.get("posterior") or _posterior(spec, prior.event_shape[0], None)
        elif spec.posterior.posterior == "quantizer":
            posterior = own.get("posterior") or _quantizer(spec, form.event_shape)
            likelihood = own.get("likelihood") or _likelihood(spec, form)
            prior = own.get("prior") or _code_prior(spec, posterior)
        else:
            latent = spec.posterior.latent
            posterior = own.get("posterior") or _posterior(
                spec, latent, _encoder(spec, form.event_shape)
            )
            likelihood = own.get("likelihood") or _likelihood(spec, form)
            prior = own.get("prior") or _prior(spec, form, latent)
    model = Model(prior, likelihood, posterior)
    combinations.check(model, form.support, levels=form.levels)
    return model


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
        observed = ObservedCodes(prior.event_shape, labelled)
        return Model(prior, Identity(observed.event_shape, codes=True), observed)
    return Model(prior, Identity(event_shape), Observed(event_shape))


def _quantizer(spec: RunSpec, event_shape: tuple[int, ...]) -> Quantizer:
    settings = spec.quantizer
    encoder = VQEncoder(_picture(event_shape), **_grid(spec))
    return Quantizer(
        encoder,
        settings.codes,
        settings.code_features,
        decay=settings.codebook_decay if settings.codebook == "average" else None,
        beta=settings.commitment,
        weight=settings.codebook_weight,
        restarts=settings.restarts,
        kmeans=settings.kmeans,
    )


def _code_prior(spec: RunSpec, posterior: Any) -> Prior:
    settings = spec.prior
    options: dict[str, Any] = {}
    if settings.prior != "uniform-codes":
        options = {
            "channels": settings.prior_channels,
            "layers": settings.prior_length,
            "kernel": settings.prior_kernel,
            "embedding": settings.prior_embedding,
            "classes": settings.classes or None,
        }
        if settings.prior_hidden:
            options["hidden"] = settings.prior_hidden
    made: Any = resolve(priors.CODES[settings.prior])(posterior.grid, posterior.codes, **options)
    return priors.ByClass(made) if settings.classes else made


def _prior(spec: RunSpec, form: Form, features: int) -> Prior:
    """p(z); of two stochastic layers p(h₂) p(h₁|h₂), where p(h₂) is the spec's prior."""
    top = spec.posterior.top_latent
    if top and spec.likelihood.likelihood != "identity":
        between = priors.GaussianLayer(top, features, *_between(spec))
        return priors.Ancestral(_one_prior(spec, form, top), between)
    return _one_prior(spec, form, features)


def _between(spec: RunSpec) -> tuple[tuple[int, int], str]:
    """Hidden layers and activation of a network between two stochastic layers."""
    width = spec.posterior.top_hidden
    return (width, width), spec.network.activation


def _one_prior(spec: RunSpec, form: Form, features: int) -> Prior:
    settings = spec.prior
    name = settings.prior
    options: dict[str, Any] = {}
    if name == "mixture":
        options = {"components": settings.components}
    elif name == "vamp":
        options = {"components": settings.components, "event_shape": form.event_shape}
        options["support"] = "real" if form.support == "real" else "unit"
    elif name != "normal":
        options = {"length": settings.prior_length}
        if name in ("maf", "iaf", "coupling", "additive", "spline") and settings.prior_hidden:
            options["hidden"] = (settings.prior_hidden,) * settings.prior_layers
    made: Prior = resolve(priors.TABLE[name])(features, **options)
    return made


def build_ensemble(
    spec: RunSpec, data: Any, parts: Mapping[str, nn.Module] | None = None
) -> Ensemble:
    """``spec.training.fits`` models with the seeds seed, seed + 1, … and data_seed, data_seed + 1, …"""
    seed, data_seed = spec.training.seed, spec.target.data_seed
    return Ensemble(
        [
            build(spec.replace(seed=seed + fit, data_seed=data_seed + fit), data, parts)
            for fit in range(spec.training.fits)
        ]
    )


def unobserved(spec: RunSpec, model: Model) -> Unobserved:
    """The batches of a target's model."""
    settings = spec.target
    facts: dict[str, Any] = {}
    if settings.target == "gaussian-model":
        names = ("observations", "noise", "correlation", "batches", "data_seed")
        facts = {name: getattr(settings, name) for name in names}
    batches = getattr(model.likelihood, "batches", "full")
    rows = getattr(model.likelihood, "rows", None)
    return Unobserved(settings.target, model.prior.event_shape[0], rows, batches == "separate", facts)


def _target(spec: RunSpec, own: Mapping[str, nn.Module]) -> tuple[Any, nn.Module | None]:
    """Prior and likelihood of a target: the target and nothing, or N(0, I) and the Gaussian model."""
    if "prior" in own:
        return own["prior"], own.get("likelihood")
    settings = spec.target
    if settings.target == "gaussian-model":
        made = own.get("likelihood") or targets.simulate(
            settings.dimensions,
            settings.observations,
            settings.noise,
            settings.batches,
            spec.training.batch,
            settings.data_seed,
            settings.correlation,
        )
        return priors.StandardNormal(settings.dimensions), made
    return resolve(targets.TABLE[settings.target])(settings.dimensions), own.get("likelihood")


def flow_factory(spec: RunSpec) -> Callable[..., Any] | None:
    """The flow of ``spec`` as a callable of ``features`` and ``context_features``."""
    return _factory(spec.posterior.flow, spec.posterior.length)


def _factory(name: str, length: int) -> Callable[..., Any] | None:
    if name == "none":
        return None

    def make(features: int, context_features: int = 0) -> Any:
        return resolve(flows.TABLE[name])(
            features, length=length, context_features=context_features
        )

    return make


def _posterior(spec: RunSpec, features: int, encoder: nn.Module | None) -> Posterior:
    settings = spec.posterior
    gaussian = Gaussian(
        features,
        encoder,
        flow_factory(spec),
        amortized=settings.amortized,
        context=settings.context,
        base=settings.base_moments,
    )
    base: Posterior = gaussian
    if settings.top_latent:
        base = Ancestral(gaussian, priors.GaussianLayer(features, settings.top_latent, *_between(spec)))
    if not settings.leapfrog:
        return base
    return Hamiltonian(
        base,
        settings.leapfrog,
        tempering=settings.tempering,
        step=settings.step_shape,
        bound=settings.step_bound,
        initial_step=settings.initial_step,
        initial_temperature=settings.initial_temperature,
        flow=_factory(settings.extended_flow, settings.extended_length),
    )


def _likelihood(spec: RunSpec, form: Form) -> nn.Module:
    name = spec.likelihood.likelihood
    if name == "auto":
        name = {"binary": "bernoulli", "levels": "logistics"}.get(form.support, "gaussian")
    kind = resolve(likelihoods.TABLE[name])
    options: dict[str, Any] = {}
    if name in ("logistics", "categorical") and form.support == "levels":
        options["levels"] = form.levels
    if name == "logistics":
        options["components"] = spec.likelihood.likelihood_components
    if name == "bernoulli":
        options["grey"] = spec.likelihood.grey
    if name == "gaussian":
        scale = spec.likelihood.scale
        options["scale"] = (
            scale if scale in ("learned", "per-dimension", "decoder") else float(scale)
        )
    shape = kind.decoder_shape(form.event_shape, **options)
    if name == "gaussian":
        options["initial"] = spec.likelihood.initial_scale
    decoder = _decoder(spec, shape)
    if spec.posterior.top_latent:
        decoder = priors.Reads(decoder, spec.posterior.latent)
    likelihood: nn.Module = kind(decoder, form.event_shape, **options)
    return likelihood


def _encoder(spec: RunSpec, event_shape: tuple[int, ...]) -> nn.Module:
    if spec.network.network == "conv":
        return ConvEncoder(event_shape, **_conv(spec, event_shape))
    if spec.network.network == "strided":
        network = spec.network
        channels = widths("channels", network.channels)
        return StridedEncoder(event_shape, channels, network.stem, **_strided(spec, event_shape))
    return MLP(event_shape, **_mlp(spec))


def _decoder(spec: RunSpec, shape: tuple[int, ...]) -> nn.Module:
    if spec.network.network == "grid":
        return VQDecoder(_picture(shape), **_grid(spec))
    if spec.network.network == "conv":
        return ConvDecoder(spec.posterior.latent, shape, **_conv(spec, shape))
    if spec.network.network == "strided":
        network = spec.network
        channels = widths("channels", network.channels)[::-1]
        if network.up_channels is not None:
            channels = widths("up_channels", network.up_channels)
        return StridedDecoder(
            spec.posterior.latent, shape, channels, network.head, up=network.up, up_kernel=network.up_kernel,
            **_strided(spec, shape),
        )  # fmt: skip
    return MLP(spec.posterior.latent, shape, **_mlp(spec))


def _mlp(spec: RunSpec) -> dict[str, Any]:
    network = spec.network
    return {
        "hidden": (network.hidden,) * network.layers,
        "activation": network.activation,
        "gated": network.gated,
    }


def _grid(spec: RunSpec) -> dict[str, Any]:
    network = spec.network
    return {
        "features": spec.quantizer.code_features,
        "scales": network.scales or 2,
        "blocks": network.blocks,
        "normalization": network.normalization,
    }


def _picture(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 3:
        raise SpecError(
            f"network: grid needs pictures [C, H, W], the data have shape {shape}; a quantizer codes pictures"
        )
    return shape


def _strided(spec: RunSpec, shape: tuple[int, ...]) -> dict[str, Any]:
    network = spec.network
    _check_pictures(spec, shape)
    return {
        "kernel": network.kernel,
        "dense": (network.dense,) if network.dense else (),
        "activation": network.activation,
        "normalization": network.normalization,
    }


def _check_pictures(spec: RunSpec, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise SpecError(
            f"network: {spec.network.network} needs pictures [C, H, W], the data have shape {shape}; use network=mlp"
        )


def _conv(spec: RunSpec, shape: tuple[int, ...]) -> dict[str, Any]:
    network = spec.network
    _check_pictures(spec, shape)
    options: dict[str, Any] = {
        "base": network.base,
        "blocks": network.blocks,
        "bottleneck": network.bottleneck,
        "weight_norm": network.weight_norm,
        "normalization": network.normalization,
    }
    if network.scales is not None:
        options["scales"] = network.scales
    return options
