"""What does not combine, in one table: each row refuses with one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from varflow.core.errors import SpecError
from varflow.model import Model


@dataclass(frozen=True)
class Combination:
    """What is put together.

    Attributes:
        model: prior, likelihood and posterior.
        support: the values of the data; "none" for a target.
        objective: None where nothing is trained.
        levels: how many values an element of the data can take; None for a continuum.
        processes: how many share the work.
        compiled: whether the training step is compiled.
    """

    model: Model
    support: str
    objective: Any = None
    levels: int | None = None
    processes: int = 1
    compiled: bool = False

    @property
    def follows_gradient(self) -> bool:
        """Whether the posterior moves along ∇ log p(x, z)."""
        return bool(getattr(self.model.posterior, "uses_gradient", False))


def _support(given: Combination) -> str | None:
    check = getattr(given.model.likelihood, "check_support", None)
    if check is None or given.support == "none":
        return None
    try:
        check(given.support)
    except SpecError as error:
        return str(error)
    return None


def _other_levels(given: Combination) -> str | None:
    scored = getattr(given.model.likelihood, "levels", None)
    if given.support != "levels" or scored is None or scored == given.levels:
        return None
    return (
        f"likelihood: {type(given.model.likelihood).__name__} is over {scored} levels, the data have "
        f"{given.levels}; build it with levels={given.levels}"
    )


def _target_and_encoder(given: Combination) -> str | None:
    if given.support != "none" or not given.model.posterior.reads_x:
        return None
    return "posterior: reads x, and a target has none; build it without an encoder"


def _data_without_likelihood(given: Combination) -> str | None:
    if given.support == "none" or given.model.likelihood is not None:
        return None
    return "likelihood: missing, so the model says nothing of the data; give one, or fit without data"


def _hamiltonian_and_held(given: Combination) -> str | None:
    if not (given.follows_gradient and getattr(given.objective, "hold", False)):
        return None
    return (
        f"gradient: '{given.objective.gradient}' needs log q(z|x) of any z, which a Hamiltonian posterior has not; "
        "use gradient=total"
    )


def _hamiltonian_and_coupled(given: Combination) -> str | None:
    likelihood = given.model.likelihood
    if not given.follows_gradient or likelihood is None:
        return None
    followed = [*likelihood.modules(), *given.model.prior.modules()]
    coupled = [m for m in followed if getattr(m, "couples_examples", False)]
    coupled += [m for m in followed if "BatchNorm" in type(m).__name__]
    if not coupled:
        return None
    where = "decoder" if any(m is coupled[0] for m in likelihood.modules()) else "prior"
    return (
        f"posterior: a Hamiltonian one follows the gradient of log p(x, z) of each example, and this {where}'s "
        f"{type(coupled[0]).__name__} couples the examples of a batch; use normalization=group, layer or none"
    )


def _free_bits_and_mixing(given: Combination) -> str | None:
    if not getattr(given.objective, "free_bits", 0):
        return None
    prior, posterior = given.model.prior, given.model.posterior
    flow = getattr(posterior, "flow", None)
    if given.follows_gradient or (flow is not None and flow.mixes):
        what = "a Hamiltonian posterior" if given.follows_gradient else f"{_a(flow)} flow"
        return (
            f"free_bits: are counted for each latent, and {what} mixes latents; use flow=none, or beta with a "
            "warmup"
        )
    if flow is not None:
        return (
            f"free_bits: need a closed form for each latent, and after {_a(flow)} flow there is none; use "
            "flow=none, or beta with a warmup"
        )
    if posterior.gaussian and prior.standard:
        return None
    part, kind = (prior, "prior") if posterior.gaussian else (posterior, "posterior")
    what = f"the {kind} {type(part).__name__}"
    return f"free_bits: need a closed form for each latent, which {what} has not; use beta with a warmup"


def _a(part: object) -> str:
    """The name of its class with an article."""
    name = type(part).__name__
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def _codes_and_importance(given: Combination) -> str | None:
    bound = getattr(given.objective, "bound", "ELBO")
    if not given.model.posterior.discrete or bound == "ELBO":
        return None
    return (
        "objective: q of a quantizer is one code for sure, so all its importance samples are the same; "
        "use objective=elbo"
    )


def _codes_and_numbers(given: Combination) -> str | None:
    prior, posterior = given.model.prior, given.model.posterior
    if prior.discrete == posterior.discrete:
        return None
    if prior.discrete:
        return (
            f"prior: {type(prior).__name__} is over codes and {type(posterior).__name__} draws real numbers; "
            "use a quantizer, or prior=normal"
        )
    return (
        f"prior: {type(prior).__name__} is over real numbers and the quantizer gives codes; use UniformCodes, "
        "PixelCNN or GatedPixelCNN"
    )


def _processes_and_coupled(given: Combination) -> str | None:
    if given.processes == 1:
        return None
    coupled = [m for m in given.model.modules() if getattr(m, "couples_examples", False)]
    coupled += [m for m in given.model.modules() if "BatchNorm" in type(m).__name__]
    if not coupled:
        return None
    return (
        f"normalization: {type(coupled[0]).__name__} takes statistics of a batch, of which each of the "
        f"{given.processes} processes sees a part alone; use normalization=group, layer or none, or one process"
    )


def _processes_and_samples(given: Combination) -> str | None:
    bound = getattr(given.objective, "bound", "ELBO")
    if given.processes == 1 or given.model.posterior.reads_x or bound == "ELBO":
        return None
    return (
        f"objective: the samples of a target are shared by the {given.processes} processes, and the {bound} needs "
        "all of them at one place; use objective=elbo or annealed, or one process"
    )


def _compiled_and_posterior(given: Combination) -> str | None:
    if not given.compiled:
        return None
    return given.model.posterior.refuses_compilation(getattr(given.objective, "gradient", "total"))


#: name of the rule → what it says, or None.
RULES: dict[str, Callable[[Combination], str | None]] = {
    "likelihood × values of the data": _support,
    "likelihood × another number of levels": _other_levels,
    "target × posterior that reads x": _target_and_encoder,
    "data × no likelihood": _data_without_likelihood,
    "Hamiltonian × path or doubly reparameterised gradients": _hamiltonian_and_held,
    "Hamiltonian × decoder with batch statistics": _hamiltonian_and_coupled,
    "free bits × posterior that mixes latents": _free_bits_and_mixing,
    "quantizer × importance bounds": _codes_and_importance,
    "codes × real numbers": _codes_and_numbers,
    "several processes × batch statistics": _processes_and_coupled,
    "several processes × importance bounds of a target": _processes_and_samples,
    "compiled step × posterior that reads values": _compiled_and_posterior,
}


def check(
    model: Model,
    support: str,
    objective: Any = None,
    processes: int = 1,
    levels: int | None = None,
    compiled: bool = False,
) -> None:
    """Apply every rule.

    Raises:
        SpecError: the sentence of the first rule that refuses.
    """
    for rule in RULES.values():
        sentence = rule(Combination(model, support, objective, levels, processes, compiled))
        if sentence is not None:
            raise SpecError(sentence)
