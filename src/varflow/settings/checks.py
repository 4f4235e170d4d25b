"""Whether the settings of a run can be: names against the tables of parts, numbers, and what goes together."""

from __future__ import annotations

import math
from typing import Any, Literal

from varflow.core import durations
from varflow.core.errors import SpecError, unknown
from varflow.settings.spec import ACTIVATIONS, RunSpec, setting_types, widths


def check(spec: RunSpec) -> None:
    """Check names against the tables of parts, and numbers against what is possible.

    Raises:
        SpecError: one sentence with the setting, its value, and the nearest valid choice.
    """
    from varflow import flows, likelihoods, objectives, priors
    from varflow.data import PROTOCOLS
    from varflow.training import OPTIMIZERS

    for name in ("warmup", "validate_every", "patience", "prior_patience"):
        if spec.get(name) is not None:
            durations.check(name, spec.get(name))
    for name, kind in setting_types().items():
        _check_type(name, spec.get(name), kind)
    _among("protocol", spec.data.protocol, ["auto", *PROTOCOLS])
    if spec.target.target != "none":
        from varflow import targets

        _among("target", spec.target.target, ["none", *targets.TABLE])
    _among("flow", spec.posterior.flow, ["none", *flows.TABLE])
    _among("extended_flow", spec.posterior.extended_flow, ["none", *flows.TABLE])
    _among("prior", spec.prior.prior, [*priors.TABLE, *priors.CODES])
    _among("likelihood", spec.likelihood.likelihood, ["auto", "identity", *likelihoods.TABLE])
    _among("objective", spec.objective.objective, objectives.TABLE)
    _among("optimizer", spec.optimizer.optimizer, OPTIMIZERS)
    _among("prior_optimizer", spec.second_stage.prior_optimizer, OPTIMIZERS)
    _among("activation", spec.network.activation, ACTIVATIONS)
    for name in (
        "layers", "hidden", "base", "blocks", "latent", "length", "samples", "batch", "dimensions",
        "observations", "fits", "prior_length", "components", "likelihood_components", "prior_layers",
        "top_hidden", "extended_length", "prior_channels", "prior_kernel", "prior_embedding", "codes",
        "code_features", "prior_batch",
    ):  # fmt: skip
        _at_least(name, spec.get(name), 1)
    for name in (
        "scales", "steps", "threads", "prior_hidden", "prior_steps", "up_kernel", "resize", "train_limit",
        "validation_limit",
    ):  # fmt: skip
        if spec.get(name) is not None:
            _at_least(name, spec.get(name), 1)
    for name in (
        "lr", "save_every", "step_bound", "initial_step", "initial_scale", "prior_lr",
    ):  # fmt: skip
        _above(name, spec.get(name), 0.0)
    for name in ("epochs", "clip", "prior_epochs", "prior_clip"):
        if spec.get(name) is not None:
            _above(name, spec.get(name), 0.0)
    for name in (
        "beta", "weight_decay", "gain_decay", "eps", "momentum", "seed", "data_seed", "free_bits",
        "anneal", "leapfrog", "stem", "head", "dense", "top_latent", "classes", "codebook_weight", "commitment",
        "restarts", "kmeans", "prior_weight_decay",
    ):  # fmt: skip
        _at_least(name, spec.get(name), 0)
    for name in ("channels", "up_channels"):
        if spec.get(name) is not None:
            widths(name, spec.get(name))
    for name in ("beta1", "beta2", "alpha"):
        if not 0 <= spec.get(name) < 1:
            raise SpecError(f"{name}: was {spec.get(name)}; use a number in [0, 1)")
    for stage in ("", "prior_"):
        steps, epochs = stage + "steps", stage + "epochs"
        if spec.get(epochs) is None and spec.get(steps) is None:
            raise SpecError(f"{epochs}: no budget; set {epochs} or {steps}")
        if spec.get(epochs) is not None and spec.get(steps) is not None:
            raise SpecError(f"{epochs}: set together with {steps}; give one of the two")
    _parts(spec)
    _codes(spec)
    if spec.optimizer.nesterov and spec.optimizer.momentum == 0:
        raise SpecError("nesterov: needs momentum; set momentum=0.9 or leave it out")
    scale = spec.likelihood.scale
    if scale not in ("learned", "per-dimension", "decoder"):
        try:
            number = float(scale)
        except ValueError:
            raise unknown(
                "scale", scale, ["learned", "per-dimension", "decoder", "a number"]
            ) from None
        if not (math.isfinite(number) and number > 0):
            raise SpecError(
                f"scale: was {scale}; use a positive number, learned, per-dimension or decoder"
            )


def _parts(spec: RunSpec) -> None:
    posterior = spec.posterior
    infers_target = spec.target.target != "none"
    sees_x = posterior.amortized and posterior.flow != "none"
    if posterior.base_moments == "fixed" and not (sees_x or infers_target):
        raise SpecError(
            "base_moments: a fixed base under a flow that does not see x leaves nothing that depends "
            "on x; set amortized, or base_moments=learned"
        )
    if infers_target and posterior.amortized:
        raise SpecError(
            "amortized: a target has no x to compute flow parameters from; leave it out"
        )
    if infers_target and spec.prior.prior != "normal" and posterior.posterior != "quantizer":
        raise SpecError(
            f"prior: was {spec.prior.prior}, and a target is a density of its own without a prior; leave it out"
        )
    if posterior.extended_flow != "none" and not posterior.leapfrog:
        raise SpecError(
            "extended_flow: moves positions and momenta, and without leapfrog steps there are no momenta; "
            "set leapfrog, or use flow"
        )
    if posterior.top_latent and infers_target:
        raise SpecError("top_latent: a target has its own latents and no layers; leave it out")
    if posterior.top_latent and spec.prior.prior == "vamp":
        raise SpecError(
            "top_latent: a VampPrior averages q(z|x) over all latents at once, and two layers need a prior of "
            "the second alone; use prior=normal, mixture or a flow"
        )
    if spec.training.fits > 1 and not infers_target:
        raise SpecError(
            f"fits: was {spec.training.fits}; only fits to a target are stacked, run the seeds one by one"
        )
    if posterior.initial_step >= posterior.step_bound:
        raise SpecError(
            f"initial_step: was {posterior.initial_step}; use less than step_bound={posterior.step_bound}"
        )
    if posterior.initial_temperature < 1 or (
        posterior.leapfrog and posterior.tempering != "none" and posterior.initial_temperature == 1
    ):
        raise SpecError(
            f"initial_temperature: was {posterior.initial_temperature}; use a number above 1, or tempering=none"
        )
    if spec.likelihood.likelihood == "identity":
        for name, nothing in (("flow", "none"), ("leapfrog", 0), ("amortized", False), ("top_latent", 0)):
            if spec.get(name) != nothing:
                raise SpecError(
                    f"{name}: belongs to q(z|x), and with likelihood=identity the prior is of x itself; leave it "
                    "out, or use prior=planar and the like"
                )


def _codes(spec: RunSpec) -> None:
    """Quantizer, its networks and priors over codes go together, and with nothing else."""
    from varflow import priors

    posterior, prior = spec.posterior, spec.prior.prior
    if posterior.posterior != "quantizer":
        if prior in priors.CODES:
            raise SpecError(
                f"prior: {prior} is over the codes of a quantizer, and posterior={posterior.posterior} has "
                "none; use posterior=quantizer, e.g. the recipe vq-pixelcnn, or prior=normal"
            )
        if spec.network.network == "grid":
            raise SpecError(
                "network: grid makes grids of vectors for a quantizer; use posterior=quantizer, or "
                "network=conv"
            )
        return
    if spec.target.target != "none":
        raise SpecError(
            "posterior: a quantizer codes data, and a target has none; use posterior=gaussian"
        )
    if posterior.top_latent:
        raise SpecError(
            "top_latent: a second layer of real numbers does not go over codes; leave it out, or use "
            "posterior=gaussian"
        )
    if prior not in priors.CODES:
        raise SpecError(
            f"prior: {prior} is not over codes; with posterior=quantizer use {', '.join(priors.CODES)}"
        )
    if spec.network.network != "grid":
        raise SpecError(
            f"network: {spec.network.network} makes no grid of vectors; with posterior=quantizer use network=grid"
        )
    if spec.likelihood.likelihood == "identity":
        raise SpecError("likelihood: identity leaves a quantizer nothing to decode; use gaussian")
    if posterior.flow != "none" or posterior.leapfrog or posterior.amortized:
        name = (
            "amortized" if posterior.amortized else "leapfrog" if posterior.leapfrog else "flow"
        )
        raise SpecError(
            f"{name}: a quantizer has no flow and no leapfrog steps; leave it out, or use posterior=gaussian"
        )
    if spec.objective.samples > 1:
        raise SpecError(
            f"samples: was {spec.objective.samples}; q of a quantizer is one code for sure, use samples=1"
        )
    if spec.prior.classes and prior == "uniform-codes":
        raise SpecError(
            "classes: uniform codes are the same for all classes; use prior=pixelcnn or gated-pixelcnn"
        )
    for name in ("codebook_decay", "restarts"):
        if not (0 < spec.get(name) < 1 or (name == "restarts" and spec.get(name) == 0)):
            raise SpecError(f"{name}: was {spec.get(name)}; use a number between 0 and 1")
    if spec.prior.prior_kernel % 2 == 0 or spec.prior.prior_kernel < 3:
        raise SpecError(
            f"prior_kernel: was {spec.prior.prior_kernel}; use an odd number, 3 or more"
        )


def _check_type(name: str, value: Any, kind: Any) -> None:
    from types import UnionType
    from typing import get_args, get_origin

    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option):
                return
            if isinstance(value, str):
                raise unknown(name, value, get_args(option))
        elif option is type(None):
            if value is None:
                return
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                if not math.isfinite(value):
                    raise SpecError(f"{name}: was {value}; use a finite number")
                return
        elif isinstance(value, option) and not (option is int and isinstance(value, bool)):
            return
    expected = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise SpecError(
        f"{name}: was {value!r} ({type(value).__name__}); expected {expected.replace('NoneType', 'nothing')}"
    )


def _among(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise unknown(name, value, choices)


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise SpecError(f"{name}: was {value}; use {least} or more")


def _above(name: str, value: float, limit: float) -> None:
    if not value > limit:
        raise SpecError(f"{name}: was {value}; use a number above {limit:g}")
