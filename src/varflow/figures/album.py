"""All figures that fit a run, as files with captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from varflow.core import random
from varflow.core.errors import DataError
from varflow.core.files import make_folder, write_json
from varflow.figures import album_ways, codes, curves, latent, moving, pictures, tables, warp
from varflow.figures.base import canvas, save, style
from varflow.model import Model
from varflow.priors.normal import StandardNormal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHUNK = 500
_LATENTS = 2000


class Entry(NamedTuple):
    """One figure of a gallery: its file, a title, and what exactly it shows."""

    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class _Scene:
    """What the figures are drawn from."""

    model: Model
    dataset: Any
    metrics: Sequence[Mapping[str, Any]]
    seed: int
    evaluation: Any
    split: str
    curve: Any = None
    second: Sequence[Mapping[str, Any]] = ()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.dataset.raw(self.split).device
        return device

    @property
    def examples(self) -> str:
        """How a caption calls the examples."""
        return f"{self.split} examples of {self.dataset.name} ({self.dataset.protocol})"

    def batch(self, start: int, stop: int) -> Tensor:
        index = torch.arange(start, stop, device=self.device)
        x: Tensor = self.dataset.batch(self.split, index).x
        return x

    def size(self, most: int) -> int:
        return min(most, self.dataset.sizes[self.split])

    def encode(self, count: int) -> tuple[Tensor, Tensor]:
        """One draw (z₀, z) for each of the first ``count`` examples, ``[count, D]`` each."""
        parts = []
        for chunk, start in enumerate(range(0, count, _CHUNK)):
            with random.stream(self.seed, chunk):
                draw = self.model.encode(self.batch(start, min(start + _CHUNK, count)))
            parts.append((draw.z0[0].flatten(1), draw.z[0].flatten(1)))
        z0, z = zip(*parts, strict=True)
        return torch.cat(z0), torch.cat(z)

    @property
    def flow(self) -> Any:
        return getattr(self.model.posterior, "flow", None)

    @property
    def codebook(self) -> Any:
        """Of a quantizer, else None."""
        return getattr(self.model.posterior, "codebook", None)


Drawn = tuple["Figure", str, str, str]


def gallery(
    model: Model,
    dataset: Any,
    metrics: Sequence[Mapping[str, Any]],
    folder: Path | str,
    seed: int = 0,
    evaluation: Any = None,
    split: str = "validation",
    curve: Any = None,
    second_metrics: Sequence[Mapping[str, Any]] = (),
) -> list[Entry]:
    """Draw every figure that applies to this model and these data.

    Pictures get samples and reconstructions (and the decoded plane for a 2-D latent), tables get
    the pairs of their columns. The latents before and after the flow, the plane that a 2-D flow
    warps, the learning curves and the Pareto k̂ follow where there are such. Everything random
    depends on ``seed`` alone, so the same model gives the same files. ``index.json`` lists them.

    Args:
        model: a trained (or new) model on the device of the data; its mode is restored.
        dataset: a :class:`varflow.data.Dataset`.
        metrics: rows of metrics.jsonl, or none.
        folder: where the PNG files go; each appears whole or not at all.
        seed: of all draws.
        evaluation: a :class:`varflow.evaluation.Evaluation`, for the figures of its weights.
        split: whose examples are shown; the test split is left to evaluation. An empty one is
            replaced by the first that has examples.
        curve: what :func:`varflow.evaluation.bound_curve` gave, for the figure of the bound.
        second_metrics: rows of a second stage, which fitted the prior, or none.

    Returns:
        Path, title and caption of each figure, in the order to look at them.

    Raises:
        DataError: the data set is empty.
        RunError: the folder cannot be written.
    """
    available = [name for name in (split, "validation", "test", "train") if dataset.sizes.get(name)]
    if not available:
        raise DataError(f"dataset: {dataset.name} has no examples; give at least one")
    scene = _Scene(
        model, dataset, metrics, seed, evaluation, available[0], curve, second_metrics
    )
    folder = Path(folder)
    make_folder(folder)
    entries = []
    with _evaluating(model), style():
        for draw in _FIGURES:
            drawn = draw(scene)
            if drawn is not None:
                figure, name, title, caption = drawn
                entries.append(Entry(save(figure, folder / f"{name}.png"), title, caption))
    write_json(
        folder / "index.json",
        [{"file": e.path.name, "title": e.title, "caption": e.caption} for e in entries],
    )
    return entries


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _samples(scene: _Scene) -> Drawn | None:
    count = 64
    if not scene.dataset.picture:
        return None
    figure, axes = canvas(1, 2, 9.6, 4.9)
    # One seed twice: the same z on both sides, so that the likelihood's noise is the difference.
    titles = {True: "mean of p(x|z)", False: "draw of p(x|z)"}
    for panel, (mean, title) in zip(axes[0], titles.items(), strict=True):
        with random.stream(scene.seed):
            x = scene.model.sample(count, mean=mean)
        pictures.image_grid(scene.dataset.pictures(x), panel).set_title(title)
    noise = type(scene.model.likelihood).__name__
    caption = (
        f"{count} draws of the prior. Left: the mean of the {noise} likelihood for each; right: "
        "for the same latents a draw from it, which is what the model says data look like."
    )
    return figure, "samples", "Samples", caption


def _reconstructions(scene: _Scene) -> Drawn | None:
    if not scene.dataset.picture:
        return None
    count = scene.size(40)
    x = scene.batch(0, count)
    with random.stream(scene.seed):
        mean = scene.model.reconstruct(x, mean=True)
    figure, axes = canvas(1, 1, 7.2, 5.8)
    pictures.reconstructions(scene.dataset.pictures(x), scene.dataset.pictures(mean), axes[0, 0])
    caption = (
        f"The first {count} {scene.examples}, as the model sees them, each with its "
        "reconstruction to the right: the likelihood's mean at one draw of q(z|x)."
    )
    return figure, "reconstructions", "Reconstructions", caption


def _decoded(scene: _Scene) -> Drawn | None:
    prior = scene.model.prior
    plane_prior = isinstance(prior, StandardNormal) and prior.event_shape == (2,)
    if not (scene.dataset.picture and plane_prior):
        return None
    side = 20
    quantiles = pictures.prior_quantiles(side)
    vertical, horizontal = torch.meshgrid(quantiles, quantiles, indexing="ij")
    plane = torch.stack([horizontal, vertical], -1).reshape(-1, 2)
    likelihood: Any = scene.model.likelihood
    mean = likelihood.mean(plane.to(prior.sample((0,))))
    figure, axes = canvas(1, 1, 7.0, 6.9)
    pictures.decoded_grid(scene.dataset.pictures(mean), quantiles, axes[0, 0])
    caption = (
        f"The likelihood's mean over the latent plane, at {side} × {side} points: in each "
        "direction the prior's quantiles from 2 % to 98 %, with equal mass between neighbours."
    )
    return figure, "decoded", "Decoded plane", caption


def _pairs(scene: _Scene) -> Drawn | None:
    if scene.dataset.picture or tuple(scene.dataset.event_shape) == (2,):
        return None
    count = scene.size(_LATENTS)
    x = scene.batch(0, count).flatten(1)
    with random.stream(scene.seed):
        samples = scene.model.sample(count).flatten(1)
    shown = min(4, x.shape[1])
    figure, axes = canvas(shown, shown, 1.0 + 2.0 * shown, 1.0 + 1.8 * shown)
    tables.pairs(x, samples, axes)
    caption = (
        f"{count:,} {scene.examples} (grey) and {count:,} draws of p(x) with the likelihood's "
        f"noise (blue), as the model sees them: {shown} of {x.shape[1]} columns. Diagonal: the "
        "density of each column."
    )
    return figure, "pairs", "Data and samples", caption


def _latents(scene: _Scene) -> Drawn | None:
    if scene.model.posterior.discrete:
        return None
    count = scene.size(_LATENTS)
    z0, z = scene.encode(count)
    labels = scene.dataset.labels(scene.split)
    labels = None if labels is None else labels[:count]
    contours = isinstance(scene.model.prior, StandardNormal)
    told = " Colours and names are the labels." if labels is not None else ""
    told += " Dashed: the prior at 1, 2 and 3 standard deviations." if contours else ""
    if scene.flow is None:
        figure, axes = canvas(1, 1, 6.2, 6.0)
        latent.latent_scatter(z, labels, axes[0, 0], contours)
        caption = f"One draw of q(z|x) for each of {count:,} {scene.examples}.{told}"
        return figure, "latents", "Latents", caption
    figure, axes = canvas(1, 2, 10.4, 5.5)
    latent.latents(z0, z, labels, axes[0], contours)
    caption = (
        f"One draw for each of {count:,} {scene.examples}: z₀ before the flow and the same draws "
        f"as z after it, on the same axes.{told} The prior is charged at z alone."
    )
    return figure, "latents", "Latents before and after the flow", caption


def _latents_after(scene: _Scene) -> Drawn | None:
    """The right panel by itself where the shared axes leave it small."""
    count = scene.size(_LATENTS)
    if scene.flow is None or count < 2:
        return None
    z0, z = scene.encode(count)
    if not bool((z0.std(0) > 2 * z.std(0)).any()):
        return None
    labels = scene.dataset.labels(scene.split)
    contours = isinstance(scene.model.prior, StandardNormal)
    figure, axes = canvas(1, 1, 6.2, 6.0)
    latent.latent_scatter(z, None if labels is None else labels[:count], axes[0, 0], contours)
    caption = (
        f"The draws after the flow, by themselves: one of q(z|x) for each of {count:,} {scene.examples}. "
        "The base of the flow is more than twice as wide."
    )
    return figure, "latents_after", "Latents after the flow", caption


def _aggregate(scene: _Scene) -> Drawn | None:
    count = scene.size(_LATENTS)
    if count < 2 or not isinstance(scene.model.prior, StandardNormal):
        return None
    _, z = scene.encode(count)
    figure, axes = canvas(1, 1, 8.0, 3.4)
    latent.aggregate(z, axes[0, 0])
    caption = (
        "Each latent under the aggregated posterior: mean and standard deviation of one draw of "
        f"q(z|x) for each of {count:,} {scene.examples}. Where the two agree with the prior's "
        "band, draws of the prior are what the decoder was trained on."
    )
    return figure, "aggregate", "Aggregated posterior and prior", caption


def _flow(scene: _Scene) -> Drawn | None:
    flow = scene.flow
    if flow is None or flow.features != 2:
        return None
    if not flow.context_features:
        z0, _ = scene.encode(scene.size(_LATENTS))
        low, high = (torch.quantile(z0.double(), q, dim=0) for q in (0.005, 0.995))
        figure, axes = canvas(1, 1, 6.6, 5.6)
        half, middle = ((high - low) / 2).tolist(), ((high + low) / 2).tolist()
        warp.flow_grid(flow, axes[0, 0], extent=tuple(half), centre=tuple(middle))
        caption = (
            "A regular grid over the central 99 % of the base draws (light) and its image under "
            "the flow, coloured by log|det| in nats. The flow is static: all x share it."
        )
        return figure, "flow", "The flow", caption
    count = scene.size(3)
    figure, axes = canvas(1, count, 1.0 + 4.4 * count, 4.2)
    for k, panel in enumerate(axes[0]):
        q: Any = scene.model.posterior(scene.batch(k, k + 1))
        mean, scale = q.mean[0].tolist(), (3 * q.log_scale[0].exp()).tolist()
        push = _with_local(flow, q)
        moved = push(q.mean)[0][0] - q.mean[0]
        warp.flow_grid(_moved_back(push, moved), panel, extent=tuple(scale), centre=tuple(mean))
        panel.set_title(f"{scene.split} example {k + 1}\nμ moves by ({moved[0]:.2f}, {moved[1]:.2f})")
    caption = (
        "A regular grid over μ(x) ± 3 σ(x) of q₀(z₀|x) (light) and its image under the flow of the "
        f"same x, coloured by log|det| in nats; the first {count} {scene.examples}. The flow is "
        "amortized: each x has its own. The image is drawn back on μ; how far μ moves is in the title."
    )
    return figure, "flow", "The flow", caption


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


def _code_maps(scene: _Scene) -> Drawn | None:
    if scene.codebook is None or not scene.dataset.picture:
        return None
    count = scene.size(24)
    x = scene.batch(0, count)
    q: Any = scene.model.infer(x)
    with random.stream(scene.seed):
        drawn = scene.model.prior.sample((32,))
    tell = scene.dataset.pictures
    colours = codes.codeword_colours(scene.codebook.weight)
    figure, axes = canvas(1, 2, 11.6, 5.6)
    coded, sampled = (scene.model.decode(z, mean=True) for z in (q.codes, drawn))
    codes.code_maps(q.codes, colours, axes[0, 0], tell(coded), tell(x), columns=3)
    codes.code_maps(drawn, colours, axes[0, 1], tell(sampled))
    axes[0, 0].set_title(f"{scene.split} examples")
    axes[0, 1].set_title("draws of the prior")
    height, width = scene.model.prior.event_shape
    caption = (
        f"Left: the first {count} {scene.examples}, the {height} × {width} codes of each, and their reconstruction. "
        "Right: codes drawn from the prior, and what they decode to. Codewords that are near each other have colours "
        "alike."
    )
    return figure, "code_maps", "Codes", caption


def _code_usage(scene: _Scene) -> Drawn | None:
    if scene.codebook is None:
        return None
    size = scene.dataset.sizes[scene.split]
    counts = torch.zeros_like(scene.codebook.counts, dtype=torch.float64)
    for start in range(0, min(size, _LATENTS), _CHUNK):
        q: Any = scene.model.infer(scene.batch(start, min(start + _CHUNK, size, _LATENTS)))
        counts += q.counts
    figure, axes = canvas(1, 1, 8.0, 3.4)
    codes.code_usage(counts, axes[0, 0])
    caption = (
        f"How often each of {len(counts)} codes occurs among {min(size, _LATENTS):,} {scene.examples}. The line is "
        "equal use of all codes."
    )
    return figure, "code_usage", "Use of the codebook", caption


def _code_curves(scene: _Scene) -> Drawn | None:
    prior = scene.model.prior
    told = any("perplexity" in row for row in scene.metrics) or scene.second
    if scene.codebook is None or not told:
        return None
    uniform = math.prod(prior.event_shape) * math.log(prior.codes)  # type: ignore[arg-type]
    figure, axes = canvas(1, 2, 9.6, 3.4)
    codes.code_curves(scene.metrics, scene.second, uniform, axes[0])
    caption = (
        "Left: perplexity of the codes, in training over the batches between two records, in validation over the "
        "whole split. Right: −log p(codes) of the prior while it is fitted to the codes of the finished first stage; "
        "validation starts at step 0, before training, where it is the uniform prior's."
    )
    return figure, "code_curves", "Both stages", caption


def _curves(scene: _Scene) -> Drawn | None:
    if not scene.metrics:
        return None
    return curves.curves_in_a_row(scene.metrics), "curves", "Learning curves", curves.CAPTION


def _weights(scene: _Scene) -> Drawn | None:
    khat = None if scene.evaluation is None else scene.evaluation.per_example.get("khat")
    if khat is None or not len(khat):
        return None
    figure, axes = canvas(1, 1, 6.4, 3.6)
    curves.weights(khat, axes[0, 0])
    caption = (
        f"Pareto k̂ of the importance weights of each of {len(khat):,} evaluated points. Above 0.7 "
        "the importance-sampled log p(x) of that point cannot be trusted at this number of samples."
    )
    return figure, "weights", "Importance weights", caption


_FIGURES: tuple[Callable[[_Scene], Drawn | None], ...] = (
    _samples, _reconstructions, _code_maps, _code_usage, album_ways.in_plane, _pairs, _decoded,
    album_ways.interpolations, _latents, _latents_after, _flow, _aggregate, moving.draw_trajectories,
    moving.draw_schedule, moving.draw_hmc, _curves, _code_curves, _weights, moving.draw_bound,
)  # fmt: skip
