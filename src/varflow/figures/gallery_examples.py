"""The figures of a gallery that show data, and what the model makes of latents."""

from __future__ import annotations

from typing import Any

import torch

from varflow.core import random
from varflow.figures import pictures, scatter
from varflow.figures.base import canvas
from varflow.figures.gallery_scene import LATENTS, Drawn, Scene
from varflow.priors import interpolation

#: Rows and steps of the interpolations.
_ROWS, _STEPS = 10, 10
#: As many points in each panel as the program of the 2-D VAEs draws.
_POINTS = 1000


def samples(scene: Scene) -> Drawn:
    """Draws of the model: the mean of each, and a draw with the likelihood's noise."""
    count = 64
    figure, axes = canvas(1, 2, 9.6, 4.9)
    # One seed twice: the same z on both sides, so that the likelihood's noise is the difference.
    titles = {True: "mean of p(x|z)", False: "draw of p(x|z)"}
    for panel, (mean, title) in zip(axes[0], titles.items(), strict=True):
        with random.stream(scene.seed):
            x = scene.sample(count, mean=mean)
        pictures.image_grid(scene.dataset.pictures(x), panel).set_title(title)
    noise = type(scene.model.likelihood).__name__
    caption = (
        f"{count} draws of the prior. Left: the mean of the {noise} likelihood for each; right: "
        f"for the same latents a draw from it, which is what the model says data look like.{scene.under}"
    )
    return Drawn(figure, "Samples", caption)


def reconstructions(scene: Scene) -> Drawn:
    """Examples beside what the model makes of them."""
    count = scene.size(40)
    x = scene.batch(0, count)
    with random.stream(scene.seed):
        mean = scene.model.reconstruct(scene.seen(0, count), mean=True)
    figure, axes = canvas(1, 1, 7.2, 5.8)
    pictures.reconstructions(scene.dataset.pictures(x), scene.dataset.pictures(mean), axes[0, 0])
    caption = (
        f"The first {count} {scene.examples}, as the model sees them, each with its "
        "reconstruction to the right: the likelihood's mean at one draw of q(z|x)."
    )
    return Drawn(figure, "Reconstructions", caption)


def code_maps(scene: Scene) -> Drawn:
    """The codes of examples and of draws of the prior, and what they decode to."""
    count = scene.size(24)
    x = scene.batch(0, count)
    q: Any = scene.model.infer(x)
    with random.stream(scene.seed):
        drawn = scene.model.prior.sample((32,))
    tell = scene.dataset.pictures
    colours = pictures.codeword_colours(scene.codebook.weight)
    figure, axes = canvas(1, 2, 11.6, 5.6)
    coded, sampled = (scene.model.decode(z, mean=True) for z in (q.codes, drawn))
    pictures.code_maps(q.codes, colours, axes[0, 0], tell(coded), tell(x), columns=3)
    pictures.code_maps(drawn, colours, axes[0, 1], tell(sampled))
    axes[0, 0].set_title(f"{scene.split} examples")
    axes[0, 1].set_title("draws of the prior")
    height, width = scene.model.prior.event_shape
    caption = (
        f"Left: the first {count} {scene.examples}, the {height} × {width} codes of each, and their reconstruction. "
        "Right: codes drawn from the prior, and what they decode to. Codewords that are near each other have colours "
        "alike."
    )
    return Drawn(figure, "Codes", caption)


def plane(scene: Scene) -> Drawn:
    """Data with two columns, and samples with and without the likelihood's noise."""
    count = scene.size(_POINTS)
    shown = {f"{scene.split} data": scene.batch(0, count)}
    with random.stream(scene.seed):
        noisy = scene.sample(count)
    with random.stream(scene.seed):
        mean = scene.sample(count, mean=True)
    shown["samples of p(x)"] = noisy
    if not torch.equal(mean, noisy):
        shown["without the likelihood's noise"] = mean
    labels = scene.labels(count)
    figure, axes = canvas(1, len(shown), 1.0 + 3.9 * len(shown), 4.4)
    original = {title: scene.dataset.original(x) for title, x in shown.items()}
    scatter.plane(original, axes[0], labels, scene.dataset.columns)
    told = " Colours of the data are the labels." if labels is not None else ""
    third = (
        "; right: the means for the same latents, which is not what the model says data look like"
        * (len(shown) > 2)
    )
    caption = f"{count:,} {scene.examples}, and as many draws of p(x){third}. Same axes in all panels.{told}"
    return Drawn(figure, "Data and samples", caption)


def pairs(scene: Scene) -> Drawn:
    """The first columns of a table against each other, data beside samples."""
    count = scene.size(LATENTS)
    x = scene.batch(0, count).flatten(1)
    with random.stream(scene.seed):
        samples = scene.sample(count).flatten(1)
    shown = min(4, x.shape[1])
    figure, axes = canvas(shown, shown, 1.0 + 2.0 * shown, 1.0 + 1.8 * shown)
    # Of a table the model sees columns in their order; anything else is no table.
    heads = scene.dataset.columns if len(scene.dataset.columns) == x.shape[1] else ()
    scatter.pairs(x, samples, axes, heads)
    caption = (
        f"{count:,} {scene.examples} (grey) and {count:,} draws of p(x) with the likelihood's "
        f"noise (blue), as the model sees them: {shown} of {x.shape[1]} columns. Diagonal: the "
        "density of each column."
    )
    return Drawn(figure, "Data and samples", caption)


def decoded(scene: Scene) -> Drawn:
    """What a latent in the plane decodes to, over the prior's quantiles."""
    side = 20
    quantiles = pictures.prior_quantiles(side)
    vertical, horizontal = torch.meshgrid(quantiles, quantiles, indexing="ij")
    plane = torch.stack([horizontal, vertical], -1).reshape(-1, 2)
    home = next(scene.model.parameters())
    # One context for the whole plane.
    context = scene.context(1)
    plane = plane.to(home.device, home.dtype)
    mean = scene.model.decode(plane, True, None if context is None else context.expand(len(plane), -1))
    figure, axes = canvas(1, 1, 7.0, 6.9)
    pictures.decoded_grid(scene.dataset.pictures(mean), quantiles, axes[0, 0])
    caption = (
        f"The likelihood's mean over the latent plane, at {side} × {side} points: in each "
        "direction the prior's quantiles from 2 % to 98 %, with equal mass between neighbours."
        + (" All under the context of the first example." if scene.model.conditioned else "")
    )
    return Drawn(figure, "Decoded plane", caption)


def interpolations(scene: Scene) -> Drawn:
    """Ten rows of ten pictures from one held-out example to another, each way there is."""
    prior: Any = scene.model.prior
    rows = scene.size(2 * _ROWS) // 2
    _, z = scene.encode(2 * rows)
    a, b = z[:rows], z[rows : 2 * rows]
    ways = {
        "straight in z": interpolation.linear(a, b, _STEPS),
        "along the sphere": interpolation.spherical(a, b, _STEPS),
    }
    if hasattr(prior, "encode"):
        ways["along the sphere of the prior's base"] = interpolation.in_base(
            prior, a, b, _STEPS, *scene.model.read_by_prior(scene.context(rows))
        )
    figure, axes = canvas(1, len(ways), 1.0 + 4.7 * len(ways), 5.1)
    for panel, (title, way) in zip(axes[0], ways.items(), strict=True):
        flat = way.flatten(0, 1)
        context = scene.context(rows)
        # The context of the example that a way begins at.
        mean = scene.model.decode(flat, True, None if context is None else context.repeat_interleave(_STEPS, 0))
        shown = scene.dataset.pictures(mean)
        pictures.image_grid(shown, panel, columns=_STEPS).set_title(title)
    base = (
        " Right: the arc between their base points under the learned prior, taken back to latents."
        if len(ways) > 2
        else ""
    )
    caption = (
        f"The likelihood's mean along {_STEPS} steps from one draw of q(z|x) to another, for {rows} pairs of "
        f"{scene.examples}. Left: z(t) = (1 − t)a + tb. Second: the arc between a and b, whose length goes from "
        f"|a| to |b|.{base}"
    )
    return Drawn(figure, "Interpolations", caption)
