"""The leapfrog trajectories of a Hamiltonian posterior: in the plane of two latents, and decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core import random
from varflow.core.errors import SpecError
from varflow.explore import drawing
from varflow.explore.bending import drawing_frame
from varflow.explore.opened import Given, Opened
from varflow.figures.targets import density_on_grid
from varflow.model import LogJoint
from varflow.runs.rows import pieces

#: Trajectories in the plane; pictures along one of them, at most.
_SAMPLES, _PICTURES = 24, 10


@torch.no_grad()
def trajectories(
    opened: Opened,
    x: Tensor | None = None,
    given: Given = None,
    seed: int = 0,
    samples: int = _SAMPLES,
) -> Float[Tensor, "points samples features"]:
    """z₀, z₁, … z_K of trajectories for one example, or of a fit to a target: ``[K + 1, samples, D]``.

    Args:
        x: stored values ``[1, *event]``; None for a target.
        given: what it is conditioned on.
        seed: of base draws and momenta.
        samples: trajectories.

    Raises:
        SpecError: a posterior without leapfrog steps, or no x where there is data.
    """
    posterior: Any = opened.model.posterior
    if not opened.moves:
        raise SpecError("run: its posterior takes no leapfrog steps, so there are no trajectories")
    if opened.target:
        with random.stream(seed):
            return posterior().trajectory(LogJoint(opened.model, None), samples).cpu()
    if x is None:
        raise SpecError("x: missing; trajectories follow log p(x, z), give an example")
    (_, piece), *_ = pieces(opened.run, x, 0, equal_noise=True, given_for=given)
    seen = piece.batch("test", torch.zeros(1, dtype=torch.int64)).seen
    with random.stream(seed):
        path = posterior(seen).trajectory(LogJoint(opened.model, seen), samples)
    return path[:, :, 0].cpu()


def drawn(opened: Opened, path: Tensor, directions: Sequence[int], upto: int | None = None) -> str:
    """Trajectories ``[K + 1, samples, D]`` in the plane of two latents up to state ``upto``, the first one strong."""
    i, j = directions
    flat = path[..., [i, j]].double().numpy()
    last = len(flat) - 1 if upto is None else min(max(int(upto), 0), len(flat) - 1)
    frame = drawing_frame(flat.reshape(-1, 2))
    target: Any = opened.model.prior
    behind = opened.target and opened.model.likelihood is None and target.event_shape == (2,)
    window = getattr(target, "window", None) if behind else None
    plot = drawing.Plot(window or frame, f"dimension {i + 1}", f"dimension {j + 1}")
    if behind:
        values = density_on_grid(target.log_prob, plot.frame, 96, opened.home)
        plot.image(drawing.dark(values[::-1]), plot.frame)
    if opened.model.prior.standard and path.shape[-1] == 2:
        plot.circles((1, 2, 3))
    walked = flat[: last + 1]
    plot.lines(walked.swapaxes(0, 1)[1:], drawing.OKABE_ITO[4], 1.0, 0.8)
    plot.dots(walked[0], "#8A8A8A", 5.0, 0.9)
    plot.dots(walked[-1], drawing.OKABE_ITO[5], 6.0, 0.95)
    plot.lines([walked[:, 0]], drawing.OKABE_ITO[0], 2.6)
    plot.dots(walked[:, 0], drawing.OKABE_ITO[0], 5.0, 1.0)
    plot.ring(walked[-1, 0], drawing.OKABE_ITO[0])
    told = (
        f"{path.shape[1]} trajectories after {last} of {len(flat) - 1} steps: grey where they start (a draw of q₀), "
        "orange where they are, blue the one that is decoded."
    )
    return plot.text() + drawing.said(told)


def along(opened: Opened, path: Tensor, given: Given = None) -> str:
    """What the points of the first trajectory decode to; empty for a target, which has no x."""
    if opened.target:
        return ""
    chosen = np.unique(np.linspace(0, len(path) - 1, min(len(path), _PICTURES)).round().astype(int))
    x = opened.decode(path[chosen, 0], given)
    names = [f"z{_below(k)}" for k in chosen.tolist()]
    if opened.picture:
        return drawing.strip(opened.shown(x), names)
    return drawing.table(opened.cells(x), names)


def _below(number: int) -> str:
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(number))
