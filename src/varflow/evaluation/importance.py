"""The importance-sampled log-likelihood, streamed.

    log p̂(x) = log 1/S Σ_s w_s,   w_s = p(x|z_s) p(z_s) / q(z_s|x),   z_s ~ q(z|x)

(Burda, Grosse and Salakhutdinov 2016, eq. 8; Rezende and Mohamed 2015, appendix). E log p̂ is a lower
bound of log p(x), tighter with every sample; S = 1 is the ELBO.

Latents are drawn in blocks of 128 points × 64 samples, each block with random numbers of its own, so a
result does not depend on how much memory it was computed in. Each block is decoded in slices that fit
the memory, and only running sums and the largest weights are kept: any S fits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from varflow import random
from varflow.errors import ShapeError, SpecError, positive
from varflow.evaluation.sums import Importance, Sums
from varflow.model import Model
from varflow.posteriors.posterior import Conditional, Draw

#: A block of latents; changing either changes the random numbers of every evaluation.
POINTS, SAMPLES = 128, 64

#: Copies of the decoder's largest activation that count against the memory: its input, its output,
#: and two temporaries of the activation or of the likelihood.
COPIES = 4


@torch.no_grad()
def importance_sample(
    model: Model,
    x: Shaped[Tensor, points * event],
    samples: int = 1000,
    memory: int = 2**30,
    seed: int = 0,
    first: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Importance:
    """Estimate log p(x), the ELBO and its terms for each example of x.

    Args:
        model: evaluated in eval mode; its mode is restored.
        x: ``[N, *event]``, as the data set's protocol gives it.
        samples: S for each example.
        memory: bytes that decoding may take: rows decoded at once × 4 × the largest activation of a
            row, which is measured. The bound does not change the result beyond rounding.
        seed: of the latents; the training stream is left alone.
        first: the position of x[0] in its data set, a multiple of 128, so that a data set that is
            evaluated batch by batch does not use the same random numbers twice.
        progress: called with (points done, points) after each block of points.

    Raises:
        SpecError: samples or memory is too small.
        NonFiniteError: a term of log w is NaN, or a weight is infinite; the message names the term.

    Cost: one encoder pass for each example, S draws and decoder passes; memory independent of S and N.
    """
    positive(samples=samples)
    if first % POINTS:
        raise SpecError(
            f"first: was {first}; use a multiple of {POINTS}, the size of a block of points"
        )
    if x.ndim == 0 or len(x) == 0:
        raise ShapeError(f"x: shape {tuple(x.shape)}; give at least one example, [N, *event]")
    training = model.training
    model.eval()
    try:
        parts = []
        for start in range(0, len(x), POINTS):
            block = x[start : start + POINTS]
            parts.append(_block(model, block, samples, memory, seed, first + start))
            if progress is not None:
                progress(start + len(block), len(x))
    finally:
        model.train(training)
    return Importance.concatenate(parts)


def _block(model: Model, x: Tensor, samples: int, memory: int, seed: int, first: int) -> Importance:
    q = model.posterior(x)
    sums = Sums(samples, first)
    rows = 0
    for number, start in enumerate(range(0, samples, SAMPLES)):
        count = min(SAMPLES, samples - start)
        # One step for each block of latents; 2³² blocks of samples for each block of points.
        with random.stream(seed, (first // POINTS << 32) + number):
            draw = q.draw(count, log_joint=lambda z: model.log_joint(z, x))
        rows = rows or rows_within(memory, model, x, draw)
        for chunk, points in _slices(count, len(x), rows):
            sums.add(model.terms(x[points], samples=0, q=_Drawn(draw, chunk, points)), points)
        sums.close(count)
    return sums.result()


class _Drawn(Conditional):
    """A slice of samples that were already drawn, so that the model's own ``terms`` evaluates it."""

    local = ()

    def __init__(self, draw: Draw, samples: slice, points: slice) -> None:
        z, log_q, z0, ladj = (t[samples, points] for t in draw[:4])
        self.slice = Draw(z, log_q, z0, ladj)

    def draw(self, samples: int = 0, log_joint: Any = None, hold: bool = False) -> Draw:
        return self.slice

    def log_prob(self, z: Tensor) -> Tensor:
        raise SpecError("log_prob: these are samples; ask the posterior itself")


def rows_within(memory: int, model: Model, x: Tensor, draw: Draw) -> int:
    """How many rows (samples × points) fit into ``memory`` bytes of decoding.

    The largest activation of a row is measured: the likelihood runs on one and on two rows, and each
    module's output may grow in between (weights, which are outputs of parametrizations, do not).
    """
    one, two = (
        _activations(model, x[:1], draw.z[:1, :1].repeat(n, *[1] * (draw.z.ndim - 1)))
        for n in (1, 2)
    )
    event = x[0].numel() * x.element_size()
    largest = max([event, *(two[module] - one[module] for module in two)])
    rows = memory // (COPIES * largest)
    if rows < 1:
        raise SpecError(
            f"memory: was {memory} bytes; decoding one latent takes about {COPIES * largest}, "
            "use at least that"
        )
    return rows


def _activations(model: Model, x: Tensor, z: Tensor) -> dict[nn.Module, int]:
    """The largest output of each module of the likelihood, in bytes."""
    sizes: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: object, output: object) -> None:
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor):
                size = tensor.numel() * tensor.element_size()
                sizes[module] = max(sizes.get(module, 0), size)

    with ExitStack() as hooks:
        for module in model.likelihood.modules():
            hooks.callback(module.register_forward_hook(note).remove)
        model.likelihood.log_prob(x, z)
    return sizes


def _slices(samples: int, points: int, rows: int) -> list[tuple[slice, slice]]:
    """Rectangles of at most ``rows`` entries that tile [samples, points], by points first."""
    width = min(points, rows)
    height = max(rows // width, 1)
    return [
        (slice(s, s + height), slice(p, p + width))
        for p in range(0, points, width)
        for s in range(0, samples, height)
    ]
