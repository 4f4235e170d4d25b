"""From a spec and the shape of the data to a model. Sizes follow from the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from varflow import combinations, flows, likelihoods, priors
from varflow._lazy import resolve
from varflow.errors import SpecError, suggestion
from varflow.model import Model
from varflow.networks import MLP, ConvDecoder, ConvEncoder
from varflow.posteriors import Gaussian
from varflow.specs import RunSpec

PARTS = ("prior", "likelihood", "posterior")


@dataclass(frozen=True)
class Form:
    """What a model has to know of the data.

    Attributes:
        event_shape: shape of one example.
        support: the values it takes: binary, grey, unit or real.
    """

    event_shape: tuple[int, ...]
    support: str


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
    form = Form(tuple(data.event_shape), data.support)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.training.seed if seed is None else seed)
        posterior = own.get("posterior") or _posterior(spec, form)
        likelihood = own.get("likelihood") or _likelihood(spec, form)
        prior = own.get("prior") or resolve(priors.TABLE[spec.prior.prior])(spec.posterior.latent)
    model = Model(prior, likelihood, posterior)  # type: ignore[arg-type]
    combinations.check(model, form.support)
    return model


def flow_factory(spec: RunSpec) -> Callable[..., Any] | None:
    """The flow of ``spec`` as a callable of ``features`` and ``context_features``."""
    name, length = spec.posterior.flow, spec.posterior.length
    if name == "none":
        return None

    def make(features: int, context_features: int) -> Any:
        return resolve(flows.TABLE[name])(
            features, length=length, context_features=context_features
        )

    return make


def _posterior(spec: RunSpec, form: Form) -> Gaussian:
    settings = spec.posterior
    return Gaussian(
        settings.latent,
        _encoder(spec, form.event_shape),
        flow_factory(spec),
        amortized=settings.amortized,
        context=settings.context,
        base=settings.base_moments,
    )


def _likelihood(spec: RunSpec, form: Form) -> nn.Module:
    name = spec.likelihood.likelihood
    if name == "auto":
        name = "bernoulli" if form.support == "binary" else "gaussian"
    kind = resolve(likelihoods.TABLE[name])
    options: dict[str, Any] = {}
    if name == "bernoulli":
        options["grey"] = spec.likelihood.grey
    if name == "gaussian":
        scale = spec.likelihood.scale
        options["scale"] = (
            scale if scale in ("learned", "per-dimension", "decoder") else float(scale)
        )
    shape = kind.decoder_shape(form.event_shape, **options)
    likelihood: nn.Module = kind(_decoder(spec, shape), form.event_shape, **options)
    return likelihood


def _encoder(spec: RunSpec, event_shape: tuple[int, ...]) -> nn.Module:
    if spec.network.network == "conv":
        return ConvEncoder(event_shape, **_conv(spec, event_shape))
    return MLP(event_shape, **_mlp(spec))


def _decoder(spec: RunSpec, shape: tuple[int, ...]) -> nn.Module:
    if spec.network.network == "conv":
        return ConvDecoder(spec.posterior.latent, shape, **_conv(spec, shape))
    return MLP(spec.posterior.latent, shape, **_mlp(spec))


def _mlp(spec: RunSpec) -> dict[str, Any]:
    network = spec.network
    return {
        "hidden": (network.hidden,) * network.layers,
        "activation": network.activation,
        "gated": network.gated,
    }


def _conv(spec: RunSpec, shape: tuple[int, ...]) -> dict[str, Any]:
    network = spec.network
    if len(shape) != 3:
        raise SpecError(
            f"network: conv needs pictures [C, H, W], the data have shape {shape}; use network=mlp"
        )
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
