"""The figures of a gallery that show latents: where q puts them, how they move, and which codes are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from varflow.core import random
from varflow.figures import curves, pictures, scatter, warp
from varflow.figures.base import canvas
from varflow.figures.gallery_scene import CHUNK, LATENTS, Drawn, Scene
from varflow.model import LogJoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Examples of a figure of trajectories, and pictures along each at most.
_EXAMPLES, _POINTS = 8, 9


def latents(scene: Scene) -> Drawn:
    """One draw of q(z|x) for each example, before and after the flow where there is one."""
    z0, z = scene.latents
    count, labels, contours = len(z), scene.labels(len(z)), scene.model.prior.standard
    told = " Colours and names are the labels." if labels is not None else ""
    told += " Dashed: the prior at 1, 2 and 3 standard deviations." if contours else ""
    if scene.flow is None:
        figure, axes = canvas(1, 1, 6.2, 6.0)
        scatter.latent_scatter(z, labels, axes[0, 0], contours, scene.dataset.classes)
        caption = f"One draw of q(z|x) for each of {count:,} {scene.examples}.{told}"
        return Drawn(figure, "Latents", caption)
    figure, axes = canvas(1, 2, 10.4, 5.5)
    scatter.latents(z0, z, labels, axes[0], contours, scene.dataset.classes)
    caption = (
        f"One draw for each of {count:,} {scene.examples}: z₀ before the flow and the same draws "
        f"as z after it, on the same axes.{told} The prior is charged at z alone."
    )
    return Drawn(figure, "Latents before and after the flow", caption)


def widens(scene: Scene) -> bool:
    """Whether the base of the flow is so wide that axes shared with it leave z small."""
    if scene.flow is None or scene.size(2) < 2:
        return False
    z0, z = scene.latents
    return bool((z0.std(0) > 2 * z.std(0)).any())


def latents_after(scene: Scene) -> Drawn:
    """The right panel of :func:`latents` by itself."""
    _, z = scene.latents
    figure, axes = canvas(1, 1, 6.2, 6.0)
    contours = scene.model.prior.standard
    scatter.latent_scatter(z, scene.labels(len(z)), axes[0, 0], contours, scene.dataset.classes)
    caption = (
        f"The draws after the flow, by themselves: one of q(z|x) for each of {len(z):,} {scene.examples}. "
        "The base of the flow is more than twice as wide."
    )
    return Drawn(figure, "Latents after the flow", caption)


def flow(scene: Scene) -> Drawn:
    """What a flow of two latents does to the plane: one for all x, or those of three examples."""
    flow = scene.flow
    if not flow.context_features:
        z0, _ = scene.latents
        low, high = (torch.quantile(z0.double(), q, dim=0) for q in (0.005, 0.995))
        figure, axes = canvas(1, 1, 6.6, 5.6)
        half, middle = ((high - low) / 2).tolist(), ((high + low) / 2).tolist()
        warp.flow_grid(flow, axes[0, 0], extent=tuple(half), centre=tuple(middle))
        warp.fit_height(axes[0, 0], 4.9)
        caption = (
            "A regular grid over the central 99 % of the base draws (light) and its image under "
            "the flow, coloured by log|det| in nats. The flow is static: all x share it."
        )
        return Drawn(figure, "The flow", caption)
    count = scene.size(3)
    figure, axes = canvas(1, count, 1.0 + 4.4 * count, 4.2)
    for k, panel in enumerate(axes[0]):
        q: Any = scene.model.infer(scene.seen(k, k + 1))
        mean, scale = q.mean[0].tolist(), (3 * q.log_scale[0].exp()).tolist()
        push = _with_local(flow, q)
        moved = push(q.mean)[0][0] - q.mean[0]
        warp.flow_grid(_moved_back(push, moved), panel, extent=tuple(scale), centre=tuple(mean))
        panel.set_title(
            f"{scene.split} example {k + 1}\nμ moves by ({moved[0]:.2f}, {moved[1]:.2f})"
        )
    caption = (
        "A regular grid over μ(x) ± 3 σ(x) of q₀(z₀|x) (light) and its image under the flow of the "
        f"same x, coloured by log|det| in nats; the first {count} {scene.examples}. The flow is "
        "amortized: each x has its own. The image is drawn back on μ; how far μ moves is in the title."
    )
    return Drawn(figure, "The flow", caption)


def _with_local(flow: Any, q: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """z ``[N, 2]`` through the flow of the single example that q was made for."""

    def push(z: Tensor) -> tuple[Tensor, Tensor]:
        moved, ladj = flow.push(z.to(q.mean).unsqueeze(1), q.flow_local)
        return moved[:, 0], ladj[:, 0]

    return push


def _moved_back(
    push: Callable[[Tensor], tuple[Tensor, Tensor]], by: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """``push`` less a translation, which would otherwise set the scale of the picture."""

    def shifted(z: Tensor) -> tuple[Tensor, Tensor]:
        z, ladj = push(z)
        return z - by.to(z), ladj

    return shifted


def aggregate(scene: Scene) -> Drawn:
    """Mean and spread of each latent over the data, against the prior."""
    _, z = scene.latents
    figure, axes = canvas(1, 1, 8.0, 3.4)
    scatter.aggregate(z, axes[0, 0])
    caption = (
        "Each latent under the aggregated posterior: mean and standard deviation of one draw of "
        f"q(z|x) for each of {len(z):,} {scene.examples}. Where the two agree with the prior's "
        "band, draws of the prior are what the decoder was trained on."
    )
    return Drawn(figure, "Aggregated posterior and prior", caption)


def trajectories(scene: Scene) -> Drawn:
    """The Hamiltonian posterior's own trajectories."""
    posterior: Any = scene.model.posterior
    x, seen = scene.batch(0, scene.size(_EXAMPLES)), scene.seen(0, scene.size(_EXAMPLES))
    with random.stream(scene.seed):
        path = posterior(seen).trajectory(LogJoint(scene.model, seen))[:, 0]
    figure = _sheet(scene, x, path)
    caption = (
        f"The posterior's own trajectories: one for each of the first {len(x)} {scene.examples}. z_0 is a draw of "
        f"the base q₀, z_{len(path) - 1} one of q(z|x); each point is shown as the likelihood's mean."
    )
    return Drawn(figure, "Trajectories of the Hamiltonian posterior", caption)


def schedule(scene: Scene) -> Drawn:
    """Step sizes and tempering of a Hamiltonian posterior."""
    posterior: Any = scene.model.posterior
    figure, axes = canvas(1, 2, 9.0, 3.4)
    curves.hamiltonian_schedule(posterior.step_sizes, posterior.factors, axes[0], posterior.bound)
    caption = (
        f"What the Hamiltonian posterior learned: its step sizes (bound: {posterior.bound:g}), and the temperature "
        f"1/√β_k before step k + 1, tempering {posterior.tempering}. Momenta start at the scale of the first "
        "and end at 1."
    )
    return Drawn(figure, "Step sizes and tempering", caption)


def hmc(scene: Scene) -> Drawn:
    """Hamiltonian Monte Carlo from q(z|x), whatever the posterior is."""
    from varflow.evaluation.trajectory import hmc_trajectory

    x = scene.batch(0, scene.size(_EXAMPLES))
    steps = 15
    path = hmc_trajectory(scene.model, scene.seen(0, len(x)), steps, seed=scene.seed)
    sides = [f"{probability:.2f}" for probability in path.acceptance.tolist()]
    figure = _sheet(scene, x, path.z, sides)
    caption = (
        f"{steps} leapfrog steps of Hamiltonian Monte Carlo under log p(x, z), from one draw of q(z|x) for each of "
        f"the first {len(x)} {scene.examples}. To the right the probability of accepting the end; the step size of "
        "each example was adapted to a rate of 0.65. Where pictures improve along the way, q(z|x) is off."
    )
    return Drawn(figure, "Hamiltonian Monte Carlo from the posterior", caption)


def _sheet(scene: Scene, x: Tensor, path: Tensor, sides: list[str] | None = None) -> Figure:
    """The data beside the decoded points of ``path`` ``[points, B, D]``, evenly chosen."""
    points = len(path)
    chosen = torch.linspace(0, points - 1, min(points, _POINTS)).round().long()
    shown_at = path[chosen.to(path.device)].flatten(0, 1)
    context = scene.context(len(x))
    mean = scene.model.decode(shown_at, True, None if context is None else context.repeat(len(chosen), 1))
    shown = scene.dataset.pictures(mean)
    steps = shown.unflatten(0, (len(chosen), len(x)))
    figure, axes = canvas(1, 1, 1.4 + 0.75 * len(chosen), 0.6 + 0.72 * len(x))
    labels = [f"$z_{{{k}}}$" for k in chosen.tolist()]
    pictures.decoded_trajectories(scene.dataset.pictures(x), steps, axes[0, 0], labels, sides)
    return figure


def code_usage(scene: Scene) -> Drawn:
    """How often each code of a quantizer occurs."""
    size = scene.dataset.sizes[scene.split]
    counts = torch.zeros_like(scene.codebook.counts, dtype=torch.float64)
    for start in range(0, min(size, LATENTS), CHUNK):
        q: Any = scene.model.infer(scene.seen(start, min(start + CHUNK, size, LATENTS)))
        counts += q.counts
    figure, axes = canvas(1, 1, 8.0, 3.4)
    curves.code_usage(counts, axes[0, 0])
    caption = (
        f"How often each of {len(counts)} codes occurs among {min(size, LATENTS):,} {scene.examples}. The line is "
        "equal use of all codes."
    )
    return Drawn(figure, "Use of the codebook", caption)
