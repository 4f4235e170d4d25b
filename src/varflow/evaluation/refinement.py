"""q(z|x) refined for each example by itself: the best that its family can do, without the encoder's shortcuts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from varflow.core import random
from varflow.core.errors import SpecError, positive
from varflow.core.observed import Examples, Observed
from varflow.evaluation.chunks import Chunks
from varflow.evaluation.importance import log_mean
from varflow.evaluation.points import OnProgress, evaluating, not_a_weight, refuse
from varflow.model import Model

Local = tuple[Tensor, ...]


@dataclass(frozen=True)
class Refinement:
    """Settings of the refinement of ``q.local``.

    Attributes:
        steps: of Adam, on the per-example tensors alone; its step size falls to 0 along a quarter cosine.
        samples: latents for each example and step.
        lr: Adam's step size at the start.
        evaluation: samples of the ELBO before and after.
        chunk: examples refined together; changing it changes the random numbers.
    """

    steps: int = 500
    samples: int = 16
    lr: float = 0.03
    evaluation: int = 1000
    chunk: int = 20

    def __post_init__(self) -> None:
        positive(
            **{name: getattr(self, name) for name in ("steps", "samples", "evaluation", "chunk")}
        )
        if not 0 < self.lr < 10:
            raise SpecError(f"lr: was {self.lr}; use a number above 0, such as 0.03")


class Refined(NamedTuple):
    """ELBOs of a chunk before and after, ``[B]`` float64, nats.

    Attributes:
        elbo, refined: means of log w under q, and under the refined q.
        elbo_variance, refined_variance: Monte-Carlo variances of these means.
        gain_variance: of their difference, whose samples share their random numbers.
        log_px, log_px_variance: importance sampling from the refined q, with the samples of its ELBO.
    """

    elbo: Tensor
    refined: Tensor
    elbo_variance: Tensor
    refined_variance: Tensor
    gain_variance: Tensor
    log_px: Tensor
    log_px_variance: Tensor


def refined_bounds(
    model: Model,
    x: Shaped[Tensor, "points *event"] | Observed,
    settings: Refinement | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: OnProgress | None = None,
) -> Refined:
    """ELBOs of each example before and after its q is refined; see :class:`Refined`.

    Args:
        folder: keeps ``refined-*.npz``, a file for each finished chunk, which the same call finds again.

    Raises:
        SpecError: q has no per-example tensors.
        NonFiniteError: an ELBO is NaN.
    """
    settings = settings or Refinement()
    chunks, parts = Chunks(folder, "refined"), []

    def bounds(part: Tensor, number: int) -> dict[str, Tensor]:
        local = refine(model, part, settings, seed, number)
        found = measure(model, part, local, settings, seed, number)._asdict()
        return {name: value.double().cpu() for name, value in found.items()}

    with evaluating(model):
        for number, part in enumerate(x.split(settings.chunk)):
            asked = {"refinement": asdict(settings), "seed": seed, "number": number}
            compute = partial(bounds, part, number)
            found = chunks.get(model, {"x": part}, Refined._fields, compute, **asked)
            parts.append(Refined(**found))
            if progress is not None:
                progress(min((number + 1) * settings.chunk, len(x)), len(x))
    return Refined(*(torch.cat(column) for column in zip(*parts, strict=True)))


def refine(model: Model, x: Examples, settings: Refinement, seed: int, number: int) -> Local:
    """The per-example tensors of q(z|x) that maximise each example's ELBO, by Adam from the encoder's.

    Parameters of the model stand still, those of a static flow and of leapfrog steps included: what is shared
    by all examples belongs to the family. An example whose ELBO did not rise keeps what it had; that is decided
    with samples that are not used again.

    Args:
        number: of the chunk; with ``seed`` it makes the random numbers.

    Raises:
        SpecError: q has no per-example tensors.
        NonFiniteError: the ELBO became NaN.

    Cost: steps × samples draws with a backward pass, and 2 × evaluation draws. Source: Cremer, Li and Duvenaud
    2018, "Inference suboptimality in variational autoencoders", section 3.
    """
    with torch.no_grad():
        initial = tuple(t.detach().clone() for t in model.infer(x).local)
    if not initial:
        raise SpecError(
            f"model: {type(model.posterior).__name__} has nothing for each example to refine"
        )
    with _frozen(model), torch.enable_grad():
        local = tuple(t.clone().requires_grad_() for t in initial)
        optimizer = torch.optim.Adam(local, lr=settings.lr)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        with random.stream(random.derive(seed, "refinement", 0), number):
            for _ in range(settings.steps):
                q = model.posterior.from_local(local)
                # Path gradients are cheap without a flow, and vanish at an exact q (Roeder et al. 2017).
                hold = q.diagonal is not None
                bound = model.terms(x, settings.samples, q, hold=hold).log_weight
                # Each example has its own tensors, so the sum optimizes each by itself.
                grads = torch.autograd.grad(
                    bound.mean(0).sum(), local, allow_unused=True, materialize_grads=True
                )
                for tensor, gradient in zip(local, grads, strict=True):
                    tensor.grad = -gradient
                optimizer.step()
                decay.step()
    found = tuple(t.detach() for t in local)
    choice = random.derive(seed, "refinement/choice", 0)
    before, after = _weights(model, x, (initial, found), settings, choice, number)
    # NaN is not better.
    better = after.mean(0) > before.mean(0)
    return tuple(
        torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
        for old, new in zip(initial, found, strict=True)
    )


def measure(
    model: Model, x: Examples, refined: Local, settings: Refinement, seed: int, number: int
) -> Refined:
    """ELBOs of q(z|x) and of the refined q from the same random numbers, which :func:`refine` did not use."""
    with torch.no_grad():
        initial = model.infer(x).local
    fresh = random.derive(seed, "refinement/measure", 0)
    before, after = _weights(model, x, (initial, refined), settings, fresh, number)
    count = settings.evaluation
    for name, weights in (("elbo", before), ("refined elbo", after)):
        first = number * settings.chunk
        refuse(name, weights, not_a_weight(weights), first, "use a smaller lr")

    def spread(values: Tensor) -> Tensor:
        return values.var(0) / count if count > 1 else values[0] * torch.nan

    return Refined(
        before.mean(0),
        after.mean(0),
        spread(before),
        spread(after),
        spread(after - before),
        *log_mean(after),
    )


@torch.no_grad()
def _weights(
    model: Model,
    x: Examples,
    locals_: tuple[Local, Local],
    settings: Refinement,
    seed: int,
    number: int,
) -> list[Tensor]:
    """log w ``[S, B]`` in float64 of several q, with the same noise for each."""
    parts: list[list[Tensor]] = [[] for _ in locals_]
    for block, start in enumerate(range(0, settings.evaluation, settings.samples)):
        count = min(settings.samples, settings.evaluation - start)
        for part, local in zip(parts, locals_, strict=True):
            with random.stream(seed, (number << 32) + block):
                q = model.posterior.from_local(local)
                part.append(model.terms(x, count, q).log_weight.double())
    return [torch.cat(part) for part in parts]


@contextmanager
def _frozen(model: Model) -> Iterator[None]:
    """The model's parameters take no gradients inside."""
    learned = [p for p in model.parameters() if p.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
