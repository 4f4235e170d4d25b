"""The one model: a prior, a likelihood, and a posterior put together.

    log w = log p(x|z) + log p(z) − log q(z|x),   z ~ q(z|x)

is all there is; objectives and estimators are functions of these terms. What a user switches is a
part, never a program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from varflow.condition_sum import ConditionSum
from varflow.core import display, random
from varflow.core.errors import SpecError
from varflow.core.observed import Examples, Observed, observed, parts_of
from varflow.native.planar_fit import Chain, Fits, declared
from varflow.posteriors.posterior import Conditional, Draw, Posterior
from varflow.priors.prior import Prior


@dataclass(frozen=True)
class Terms:
    """The three terms of the log-weight, for S samples of each of B examples; nats.

    Attributes:
        z: ``[S, B, D]``.
        log_likelihood: log p(x|z) ``[S, B]``.
        log_prior: log p(z) ``[S, B]``.
        log_q: log q(z|x) ``[S, B]``.
        draw: what the posterior returned, with its own fields (base samples, ladj).
        kl_groups: KL(q(z|x) ‖ p(z)) of each latent ``[1 or S, B, D]``, in closed form, where it splits so; else None.
        auxiliary: further losses of a part, by name, each a scalar.
        codes: ``[B, *grid]``, what z was looked up by, where there are codes; else None.
    """

    z: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor
    draw: Draw
    kl_groups: Tensor | None = None
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    codes: Tensor | None = None

    @property
    def log_weight(self) -> Tensor:
        """log w = log p(x|z) + log p(z) − log q(z|x), ``[S, B]``."""
        return self.log_likelihood + self.log_prior - self.log_q

    @property
    def kl(self) -> Tensor:
        """log q(z|x) − log p(z), ``[S, B]``: its mean over samples estimates KL(q(z|x) ‖ p(z))."""
        return self.log_q - self.log_prior


class LogJoint:
    """z → log p(x, z) of one batch x: what posteriors that follow its gradient are given.

    Attributes:
        affine_gradient: (b, a), each ``[D]``, where ∇ log p(x, z) = b − a ⊙ z for all z; else None.
    """

    def __init__(self, model: Model, x: Examples | None) -> None:
        self.model: Model = model
        self.x: Examples | None = x

    def __call__(self, z: Tensor) -> Tensor:
        return self.model.log_joint(z, self.x)

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """(log p(x, z), its gradient in z) in forward operations, or None where a part does not write it."""
        explicit = getattr(self.model.likelihood, "value_and_gradient", None)
        if explicit is None or not self.model.prior.standard or isinstance(self.x, Observed):
            return None
        found = explicit(self.x, z)
        return found and (found[0] + self.model.prior.log_prob(z), found[1] - z)

    @property
    def affine_gradient(self) -> tuple[Tensor, Tensor] | None:
        of = getattr(self.model.likelihood, "affine_gradient", None)
        if of is None or not self.model.prior.standard or isinstance(self.x, Observed):
            return None
        b, a = of(self.x)
        return b, a + 1


class Model(nn.Module):
    """p(z) p(x|z) with q(z|x).

    Without a likelihood nothing is observed: the prior is then a target, a density of z that need not be
    normalized, and inference fits q(z) to it.

    Args:
        prior: p(z), or a :class:`~varflow.targets.Target`.
        likelihood: p(x|z), which owns the decoder; None for a target.
        posterior: q(z|x), which owns the encoder, if there is one.
        condition_sum: what an example without its condition stands for, where that is the sum over its values.

    Raises:
        SpecError: parts that do not combine.

    Example:
        >>> import torch, varflow as vf
        >>> model = vf.Model(
        ...     vf.priors.StandardNormal(2),
        ...     vf.likelihoods.Bernoulli(vf.networks.MLP(2, 6, hidden=(8,)), (6,)),
        ...     vf.posteriors.Gaussian(2, vf.networks.MLP(6, hidden=(8,))),
        ... )
        >>> model.terms(torch.ones(5, 6), samples=3).log_weight.shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        prior: Prior,
        likelihood: nn.Module | None,
        posterior: Posterior,
        condition_sum: ConditionSum | None = None,
    ) -> None:
        super().__init__()
        features = getattr(posterior, "features", None)
        if features is not None and prior.event_shape != (features,):
            raise SpecError(
                f"prior: is over events of shape {prior.event_shape}, the posterior draws ({features},); "
                "build both with the same number of features"
            )
        self.prior: Prior = prior
        self.posterior: Posterior = posterior
        if hasattr(prior, "bind"):
            prior.bind(posterior)
        self.likelihood: Any = likelihood
        self.condition_sum: ConditionSum | None = condition_sum

    def _repr_html_(self) -> str:
        return display.tree(self)

    #: How many fits stand in this module: one; see :class:`varflow.Ensemble`.
    fits: int = 1

    def member(self, index: int) -> Model:
        """The model of one fit: itself, which is the first and only one."""
        return self.members()[index]

    def members(self) -> list[Model]:
        """The models in it: itself."""
        return [self]

    def start(self, draw: Callable[[str], Examples]) -> None:
        """Let a prior of x itself begin at the data, before the first update; ``draw(split)`` is x of its rows."""
        if self.posterior.observed:
            rows = functools.cache(lambda split: parts_of(self._known(draw(split))))

            def context(split: str) -> Tensor:
                found = rows(split)[1]
                assert found is not None
                return found

            given = context if self.conditioned else None
            self.prior.start(lambda split: rows(split)[0].flatten(1), given)

    def _known(self, x: Examples) -> Examples:
        """The examples whose condition is not summed over."""
        context = parts_of(x)[1]
        return x if context is None or self.condition_sum is None else x[~self.condition_sum.unknown(context)]

    @property
    def codes(self) -> int:
        """How many codewords the posterior counts; 0 where latents are not codes."""
        return self.posterior.codes

    @torch.no_grad()
    def monitor(self) -> dict[str, Any]:
        """What is worth a curve beside the terms: of a likelihood with exact answers log p(x) and the errors of q, of
        a codebook how it is used.
        """
        found: dict[str, Any] = {}
        if hasattr(self.likelihood, "errors"):
            found["log_evidence"] = float(self.likelihood.log_evidence())
            errors = self.likelihood.errors()._asdict()
            found |= {name: value for name, value in errors.items() if value is not None}
        return found | self.posterior.monitor()

    def compiled(self) -> list[Fits] | None:
        """What compiled code has of it: q(z) of planar steps fitted to an energy."""
        chain, energy = declared(self.posterior), declared(self.prior)
        if self.likelihood is not None or not isinstance(chain, Chain) or not isinstance(energy, str):
            return None
        return [Fits.of(chain.within("posterior."), dict(self.named_parameters()), [energy])]

    #: Added to the norm that a gradient is divided by when it is clipped.
    clip_eps = 1e-6

    def clip_gradients(self, norm: float) -> None:
        """Scale the gradient to a norm of at most ``norm``."""
        nn.utils.clip_grad_norm_(self.parameters(), norm)

    def in_order(self, x: Examples | None, samples: int) -> Iterator[tuple[str, Tensor]]:
        """What a step computes, each with its name, in the order of computation."""
        q = self._infer(x)
        for index, tensor in enumerate(q.local):
            label = (
                "the encoder's output"
                if q.codes is not None
                else ("the mean of q(z|x)", "the log-scale of q(z|x)")[index]
                if index < 2
                else "the flow's parameters"
            )
            yield f"{label} (module 'posterior')", tensor
        draw = q.draw(samples, log_joint=LogJoint(self, x))
        moved = "posterior.flow" if hasattr(self.posterior, "flow") else "posterior"
        yield "term z0 (module 'posterior')", draw.z0
        for name in ("z", "ladj", "log_q"):
            yield f"term {name} (module '{moved}')", getattr(draw, name)
        if self.likelihood is not None:
            yield "term log_likelihood (module 'likelihood')", self.log_likelihood(draw.z, x)
        yield "term log_prior (module 'prior')", self.log_prior(q, draw.z, parts_of(x)[1])
        for name, tensor in q.auxiliary.items():
            yield f"the {name} loss (module 'posterior')", tensor

    def log_joint(
        self, z: Float[Tensor, "..."], x: Shaped[Tensor, "..."] | Observed | None = None
    ) -> Float[Tensor, "..."]:
        """log p(x, z | c) = log p(x | z, c) + log p(z | c): z ``[S, B, D]``, x ``[B, *event]`` → ``[S, B]``, nats."""
        context = parts_of(x)[1]
        log_prior = self.prior.log_prob(z, *self.read_by_prior(context))
        if self.likelihood is None:
            return log_prior
        return self.log_likelihood(z, x) + log_prior

    def log_likelihood(
        self, z: Float[Tensor, "..."], x: Shaped[Tensor, "..."] | Observed | None = None
    ) -> Float[Tensor, "..."]:
        """log p(x | z, c) of the cells that are there: z ``[S, B, D]``, x ``[B, *event]`` → ``[S, B]``, nats."""
        x, context, mask = parts_of(x)
        z = self.beside(z, context)
        found: Tensor = self.likelihood.log_prob(x, z) if mask is None else self.likelihood.log_prob(x, z, mask=mask)
        return found

    def beside(self, z: Tensor, context: Tensor | None) -> Tensor:
        """What the decoder reads: z, or z and c side by side, where the likelihood reads c."""
        if context is None or "context" not in getattr(self.likelihood, "reads", ()):
            return z
        return torch.cat([z, context.to(z.dtype).expand(*z.shape[:-1], context.shape[-1])], -1)

    def read_by_prior(self, context: Tensor | None) -> tuple[Tensor, ...]:
        """c as a further argument of the prior, where it reads one."""
        return (context,) if context is not None and "context" in self.prior.reads else ()

    def infer(self, x: Shaped[Tensor, "..."] | Observed | None = None) -> Conditional:
        """q(z | x, c), or q(z) where the posterior does not read x; of an example without its condition, which is
        summed over, under the value that it most probably has.
        """
        return self._infer(self.completed(x))

    def _infer(self, x: Examples | None) -> Conditional:
        return self.posterior(x if self.posterior.reads_x else None)

    @torch.no_grad()
    def completed(self, x: Any) -> Any:
        """x with the value k of the largest π_k w_k, of one sample each, where its condition is not known."""
        context = parts_of(x)[1]
        if x is None or context is None or self.condition_sum is None:
            return x
        total = self.condition_sum
        with random.stream(0):
            log_w = self._terms(total.each(x), 1).log_weight[0].unflatten(0, (total.size, len(context)))
        return total.having(x, (log_w + total.log_weights(context)).argmax(0))

    def terms(
        self,
        x: Shaped[Tensor, "..."] | Observed | None = None,
        samples: int = 1,
        q: Conditional | None = None,
        hold: bool = False,
        groups: bool = False,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Terms:
        """The terms of log w for S samples of each example of x ``[B, *event]``.

        Args:
            x: a batch, as the data set's protocol gives it; None for a target. A model of global latents takes
                what its likelihood reads, and its terms are ``[S]``. Or all that is observed of the examples in
                one: :class:`varflow.data.Observed`.
            samples: S.
            q: q(z|x) where it is already there (refined, or encoded before); else :meth:`infer`.
            hold: see :meth:`varflow.posteriors.Conditional.draw`.
            groups: fill ``kl_groups``.
            context: c ``[B, C]`` of a model that is conditioned: p(x|z, c), q(z|x, c), p(z) or p(z|c).
            mask: ``[B, *event]``, True where a cell of x is there. log p(x|z) is then of these cells, all others
                summed or integrated out.

        Raises:
            SpecError: a context that neither prior nor likelihood reads, or one that is missing; a mask that the
                likelihood or the posterior does not read.
        """
        if context is not None or mask is not None:
            x = observed(parts_of(x)[0], context, mask)
        _, context, mask = parts_of(x)
        self._check_conditions(context, mask)
        if self.condition_sum is None or context is None or x is None or q is not None:
            return self._terms(x, samples, q, hold, groups)
        if hold or groups:
            raise SpecError(
                f"condition: examples without '{self.condition_sum.name}' are summed over its values, which has "
                "neither the KL of each latent nor a path gradient; use free_bits=0 and gradient=total"
            )
        return self.condition_sum.fold(self._terms(self.condition_sum.each(x), samples), context)

    def _terms(
        self,
        x: Examples | None,
        samples: int,
        q: Conditional | None = None,
        hold: bool = False,
        groups: bool = False,
    ) -> Terms:
        """The terms where all conditions are known."""
        _, context, _ = parts_of(x)
        q = self._infer(x) if q is None else q
        draw = q.draw(samples, log_joint=LogJoint(self, x), hold=hold)
        log_prior = self.log_prior(q, draw.z, context)
        if self.likelihood is None:
            log_likelihood = torch.zeros_like(draw.log_q)
        elif draw.log_joint is not None:
            log_likelihood = draw.log_joint - log_prior
        else:
            log_likelihood = self.log_likelihood(draw.z, x)
        kl_groups = q.kl_groups(self.prior) if groups else None
        return Terms(
            draw.z, log_likelihood, log_prior, draw.log_q, draw, kl_groups, dict(q.auxiliary), q.codes
        )

    @property
    def conditioned(self) -> bool:
        """Whether x has a context: p(x|c)."""
        return any("context" in getattr(part, "reads", ()) for part in (self.prior, self.likelihood))

    def _check_conditions(self, context: Tensor | None, mask: Tensor | None) -> None:
        if context is not None and not self.conditioned:
            raise SpecError(
                f"context: neither the prior {type(self.prior).__name__} nor the likelihood "
                f"{type(self.likelihood).__name__} reads one; leave it out, or build one of them for a context"
            )
        if context is None and self.conditioned and not self.posterior.discrete:
            raise SpecError("context: missing; this model is p(x|c), give c [B, C]")
        if mask is None:
            return
        for role, part in (("likelihood", self.likelihood), ("posterior", self.posterior)):
            if "mask" not in getattr(part, "reads", ()):
                raise SpecError(
                    f"mask: the {role} {type(part).__name__} reads none, so no cell of x may be missing; impute "
                    "them, or use likelihood=columns"
                )

    def log_prior(self, q: Conditional, z: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(z), or log p(z|c), of samples of q ``[S, B, D]``, or of the codes that stand for them: ``[S, B]``,
        nats.
        """
        if q.codes is None:
            return self.prior.log_prob(z, *self.read_by_prior(context))
        context = q.context if q.context is None else q.context.expand(len(z), *q.context.shape)
        return self.prior.log_prob(q.codes.expand(len(z), *q.codes.shape), context)

    def forward(self, x: Examples | None = None, samples: int = 1, **options: bool) -> Terms:
        return self.terms(x, samples, **options)  # type: ignore[arg-type]

    if TYPE_CHECKING:
        # torch types every call of a module as Any.
        def __call__(self, x: Examples | None = None, samples: int = 1, **options: bool) -> Terms: ...

    @torch.no_grad()
    def sample(self, count: int, mean: bool = False, context: Tensor | None = None, **options: Any) -> Tensor:
        """x ~ p(x), or p(x|c): ``[count, *event]``; with ``mean`` the likelihood's mean instead of its noise.

        Args:
            count: how many.
            mean: decode without the likelihood's noise.
            context: c ``[count, C]`` of a model that is conditioned.
            **options: of the prior's ``sample``: temperature, top_k and labels of a prior over codes.

        Raises:
            SpecError: there is no likelihood; a target is sampled by ``target.sample``. Or a context is missing.
        """
        if context is None and self.conditioned and not self.prior.discrete:
            raise SpecError("context: missing; this model is p(x|c), give c [count, C]")
        if self.condition_sum is not None and context is not None:
            context = self.condition_sum.drawn(context)
        if self.read_by_prior(context):
            options["context"] = context
        return self.decode(self.prior.sample((count,), **options), mean, context)

    @torch.no_grad()
    def decode(self, z: Tensor, mean: bool = False, context: Tensor | None = None) -> Tensor:
        """x ~ p(x|z, c) for z of the prior, or its mean: ``[..., *event]``. Raises as :meth:`sample`."""
        if self.posterior.discrete:
            z = self.posterior.decode_codes(z)  # type: ignore[operator]
        return self._observe(z, mean, context)

    @torch.no_grad()
    def reconstruct(self, x: Examples, mean: bool = True) -> Tensor:
        """One z ~ q(z|x, c) for each example, decoded: ``[B, *event]``. Raises as :meth:`sample`."""
        x = self.completed(x)
        return self._observe(self.encode(x).z[0], mean, parts_of(x)[1])

    def encode(self, x: Examples | None = None, samples: int = 1) -> Draw:
        """Samples of q(z|x, c) with their densities; no gradients."""
        x = self.completed(x)
        with torch.no_grad():
            return self._infer(x).draw(samples, log_joint=LogJoint(self, x))

    def _observe(self, z: Tensor, mean: bool, context: Tensor | None = None) -> Tensor:
        if self.likelihood is None:
            raise SpecError(
                "likelihood: this model has none, so there is no x to draw; use model.encode() for samples of "
                "q(z), or model.prior.sample((n,)) for exact ones"
            )
        z = self.beside(z, context)
        x: Tensor = self.likelihood.mean(z) if mean else self.likelihood.sample(z)
        return x
