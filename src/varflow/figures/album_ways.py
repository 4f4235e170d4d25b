"""Figures of an album that go from latents to data: interpolations of pictures, and samples in the plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from varflow.core import random
from varflow.figures import pictures
from varflow.figures.base import canvas
from varflow.figures.points import plane
from varflow.priors import interpolation
from varflow.priors.flow import Flow

if TYPE_CHECKING:
    from varflow.figures.album import Drawn, _Scene

_ROWS, _STEPS = 10, 10
#: As many points in each panel as the program of the 2-D VAEs draws.
_POINTS = 1000


def interpolations(scene: _Scene) -> Drawn | None:
    """Ten rows of ten pictures from one held-out example to another, each way there is."""
    prior: Any = scene.model.prior
    rows = min(_ROWS, scene.size(2 * _ROWS) // 2)
    if not scene.dataset.picture or rows < 1 or prior.discrete or len(prior.event_shape) != 1:
        return None
    _, z = scene.encode(2 * rows)
    a, b = z[:rows], z[rows : 2 * rows]
    ways = {
        "straight in z": interpolation.linear(a, b, _STEPS),
        "along the sphere": interpolation.spherical(a, b, _STEPS),
    }
    if isinstance(prior, Flow):
        ways["along the sphere of the prior's base"] = interpolation.in_base(prior, a, b, _STEPS)
    likelihood: Any = scene.model.likelihood
    figure, axes = canvas(1, len(ways), 1.0 + 4.7 * len(ways), 5.1)
    for panel, (title, way) in zip(axes[0], ways.items(), strict=True):
        mean = likelihood.mean(way.flatten(0, 1))
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
    return figure, "interpolations", "Interpolations", caption


def in_plane(scene: _Scene) -> Drawn | None:
    """Data with two columns, and samples with and without the likelihood's noise."""
    if scene.dataset.picture or tuple(scene.dataset.event_shape) != (2,):
        return None
    count = scene.size(_POINTS)
    shown = {f"{scene.split} data": scene.batch(0, count)}
    with random.stream(scene.seed):
        z = scene.model.prior.sample((count,))
        noisy = scene.model.likelihood.sample(z)
    mean = scene.model.likelihood.mean(z)
    shown["samples of p(x)"] = noisy
    if not torch.equal(mean, noisy):
        shown["without the likelihood's noise"] = mean
    labels = scene.dataset.labels(scene.split)
    figure, axes = canvas(1, len(shown), 1.0 + 3.9 * len(shown), 4.4)
    plane(
        {title: scene.dataset.original(x) for title, x in shown.items()},
        axes[0],
        None if labels is None else labels[:count],
    )
    told = " Colours of the data are the labels." if labels is not None else ""
    third = (
        "; right: the means for the same latents, which is not what the model says data look like"
        * (len(shown) > 2)
    )
    caption = f"{count:,} {scene.examples}, and as many draws of p(x){third}. Same axes in all panels.{told}"
    return figure, "plane", "Data and samples", caption
