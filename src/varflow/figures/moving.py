"""The figures of a gallery in which latents move, and that of the bound against its number of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from varflow.core import random
from varflow.figures.base import canvas
from varflow.figures.curves import bound_by_samples
from varflow.figures.trajectories import decoded_trajectories, hamiltonian_schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Drawn = tuple[Figure, str, str, str]

#: Examples of a figure of trajectories, and pictures along each at most.
_EXAMPLES, _POINTS = 8, 9


def draw_trajectories(scene: Any) -> Drawn | None:
    """The Hamiltonian posterior's own trajectories."""
    posterior = scene.model.posterior
    if not (_decodes(scene) and getattr(posterior, "uses_gradient", False) and posterior.steps):
        return None
    from varflow.model import LogJoint

    x = scene.batch(0, scene.size(_EXAMPLES))
    with random.stream(scene.seed):
        path = posterior(x).trajectory(LogJoint(scene.model, x))[:, 0]
    figure = _sheet(scene, x, path)
    caption = (
        f"The posterior's own trajectories: one for each of the first {len(x)} {scene.examples}. z_0 is a draw of "
        f"the base q₀, z_{len(path) - 1} one of q(z|x); each point is shown as the likelihood's mean."
    )
    return figure, "trajectories", "Trajectories of the Hamiltonian posterior", caption


def draw_schedule(scene: Any) -> Drawn | None:
    """Step sizes and tempering of a Hamiltonian posterior."""
    posterior = scene.model.posterior
    if not getattr(posterior, "uses_gradient", False) or not posterior.steps:
        return None
    figure, axes = canvas(1, 2, 9.0, 3.4)
    hamiltonian_schedule(posterior.step_sizes, posterior.factors, axes[0], posterior.bound)
    caption = (
        f"What the Hamiltonian posterior learned: its step sizes (bound: {posterior.bound:g}), and the temperature "
        f"1/√β_k before step k + 1, tempering {posterior.tempering}. Momenta start at the scale of the first "
        "and end at 1."
    )
    return figure, "schedule", "Step sizes and tempering", caption


def draw_hmc(scene: Any) -> Drawn | None:
    """Hamiltonian Monte Carlo from q(z|x), whatever the posterior is."""
    if not _decodes(scene) or scene.model.posterior.discrete:
        return None
    from varflow.evaluation.walk import hmc_walk

    x = scene.batch(0, scene.size(_EXAMPLES))
    steps = 15
    walk = hmc_walk(scene.model, x, steps, seed=scene.seed)
    sides = [f"{probability:.2f}" for probability in walk.acceptance.tolist()]
    figure = _sheet(scene, x, walk.z, sides)
    caption = (
        f"{steps} leapfrog steps of Hamiltonian Monte Carlo under log p(x, z), from one draw of q(z|x) for each of "
        f"the first {len(x)} {scene.examples}. To the right the probability of accepting the end; the step size of "
        "each example was adapted to a rate of 0.65. Where pictures improve along the way, q(z|x) is off."
    )
    return figure, "hmc", "Hamiltonian Monte Carlo from the posterior", caption


def draw_bound(scene: Any) -> Drawn | None:
    """The importance-weighted bound against its number of samples, where `varflow curve` was run."""
    found = scene.curve
    if found is None:
        return None
    counts = sorted(int(name.removeprefix("bound_")) for name in found.estimates)
    chosen = [found.estimates[f"bound_{k}"] for k in counts]
    errors = [
        e.monte_carlo_error if e.monte_carlo_error is not None else float("nan") for e in chosen
    ]
    figure, axes = canvas(1, 1, 6.4, 3.8)
    bound_by_samples({"": (counts, [e.value for e in chosen], errors)}, axes[0, 0])
    last = chosen[-1]
    caption = (
        f"E log of the mean of k importance weights, {last.points:,} points of {last.protocol}: the ELBO at k = 1, "
        "and log p(x) in the limit. Bars: the Monte-Carlo error; over other points every value would move "
        f"by {last.standard_error:.2g} nats (one standard error)."
    )
    return figure, "bound", "Bound against the number of samples", caption


def _decodes(scene: Any) -> bool:
    """Whether latents decode to pictures: a likelihood with a decoder."""
    return scene.dataset.picture and hasattr(scene.model.likelihood, "decode")


def _sheet(scene: Any, x: Tensor, path: Tensor, sides: list[str] | None = None) -> Figure:
    """The data beside the decoded points of ``path`` ``[points, B, D]``, evenly chosen."""
    points = len(path)
    chosen = torch.linspace(0, points - 1, min(points, _POINTS)).round().long()
    mean = scene.model.likelihood.mean(path[chosen.to(path.device)])
    pictures = scene.dataset.pictures(mean.flatten(0, 1))
    steps = pictures.unflatten(0, (len(chosen), len(x)))
    figure, axes = canvas(1, 1, 1.4 + 0.75 * len(chosen), 0.6 + 0.72 * len(x))
    labels = [f"$z_{{{k}}}$" for k in chosen.tolist()]
    decoded_trajectories(scene.dataset.pictures(x), steps, axes[0, 0], labels, sides)
    return figure
