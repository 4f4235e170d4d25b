"""Every figure that fits a run on data, as files with captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varflow.core.errors import DataError
from varflow.core.files import make_folder
from varflow.figures import curves
from varflow.figures import gallery_examples as examples
from varflow.figures import gallery_latents as latents
from varflow.figures import gallery_points as points
from varflow.figures import gallery_table as table
from varflow.figures.base import canvas, style
from varflow.figures.gallery_scene import Drawn, Entry, Scene, keep, write_index
from varflow.model import Model


def gallery(
    model: Model,
    dataset: Any,
    metrics: Sequence[Mapping[str, Any]],
    folder: Path | str,
    seed: int = 0,
    evaluation: Any = None,
    split: str = "validation",
    curve: Any = None,
    code_prior_metrics: Sequence[Mapping[str, Any]] = (),
    names: Sequence[str] | None = None,
    removed: Any = None,
) -> list[Entry]:
    """Draw every figure that applies to this model and these data.

    Pictures get samples and reconstructions (and the decoded plane for a 2-D latent), tables get
    the pairs of their columns. The latents before and after the flow, the plane that a 2-D flow
    warps, the learning curves and the Pareto k̂ follow where there are such. Everything random
    depends on ``seed`` alone, so the same model gives the same files. ``index.json`` lists them; ``points.json`` has
    the latents with what each is of, for a page that can be asked.

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
        code_prior_metrics: records of the fit of a code prior, or none.
        removed: what :func:`varflow.evaluation.removed_cells` gave, for the figures of imputations.
        names: of the figures to draw where they apply (:data:`FIGURES`); without it all of them.

    Returns:
        Path, title and caption of each figure, in the order to look at them.

    Raises:
        DataError: the data set is empty.
        RunError: the folder cannot be written.
    """
    split = shown_split(dataset, split)
    scene = Scene(model, dataset, metrics, seed, evaluation, split, curve, code_prior_metrics, removed)
    folder = Path(folder)
    make_folder(folder)
    with drawing(model):
        drawings = ((name, draw(scene, name)) for name in FIGURES if names is None or name in names)
        entries = [keep(name, drawn, folder) for name, drawn in drawings if drawn is not None]
        points.keep(scene, folder, few=names is not None)
    write_index(folder, entries)
    return entries


def shown_split(dataset: Any, split: str) -> str:
    """The split whose examples are shown: the given one, or the first that has examples.

    Raises:
        DataError: the data set is empty.
    """
    for name in (split, "validation", "test", "train"):
        if dataset.sizes.get(name):
            return name
    raise DataError(f"dataset: {dataset.name} has no examples; give at least one")


def draw(scene: Scene, name: str) -> Drawn | None:
    """The figure of one name, or None where it does not apply."""
    applies, figure = FIGURES[name]
    return figure(scene) if applies(scene) else None


def applying(scene: Scene) -> tuple[str, ...]:
    """The names of the figures that apply, in the order to look at them."""
    return tuple(name for name, (applies, _) in FIGURES.items() if applies(scene))


@contextmanager
def drawing(model: Model) -> Iterator[None]:
    """Inside, the model is in evaluation mode and figures have the house style."""
    with _evaluating(model), style():
        yield


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def learning(scene: Scene) -> Drawn:
    """The ELBO and its two terms against the step."""
    return Drawn(curves.curves_in_a_row(scene.metrics), "Learning curves", curves.CAPTION)


def stages(scene: Scene) -> Drawn:
    """The codes of the quantizer, and the prior of the second, against the step."""
    prior: Any = scene.model.prior
    uniform = math.prod(prior.event_shape) * math.log(prior.codes)
    figure, axes = canvas(1, 2, 9.6, 3.4)
    curves.code_curves(scene.metrics, scene.second, uniform, axes[0])
    caption = (
        "Left: perplexity of the codes, in training over the batches between two records, in validation over the "
        "whole split. Right: −log p(codes) of the prior while it is fitted to the codes of the finished quantizer; "
        "validation starts at step 0, before training, where it is the uniform prior's."
    )
    return Drawn(figure, "Both stages", caption)


def weights(scene: Scene) -> Drawn:
    """How far the importance weights of each evaluated point can be trusted."""
    khat = scene.khat
    figure, axes = canvas(1, 1, 6.4, 3.6)
    curves.weights(khat, axes[0, 0])
    caption = (
        f"Pareto k̂ of the importance weights of each of {len(khat):,} evaluated points. Above 0.7 "
        "the importance-sampled log p(x) of that point cannot be trusted at this number of samples."
    )
    return Drawn(figure, "Importance weights", caption)


def bound(scene: Scene) -> Drawn:
    """The importance-weighted bound against its number of samples, where `varflow curve` was run."""
    found = scene.curve
    counts = sorted(int(name.removeprefix("bound_")) for name in found.estimates)
    chosen = [found.estimates[f"bound_{k}"] for k in counts]
    errors = [
        e.monte_carlo_error if e.monte_carlo_error is not None else float("nan") for e in chosen
    ]
    figure, axes = canvas(1, 1, 6.4, 3.8)
    curves.bound_by_samples({"": (counts, [e.value for e in chosen], errors)}, axes[0, 0])
    last = chosen[-1]
    caption = (
        f"E log of the mean of k importance weights, {last.points:,} points of {last.protocol}: the ELBO at k = 1, "
        "and log p(x) in the limit. Bars: the Monte-Carlo error; over other points every value would move "
        f"by {last.standard_error:.2g} nats (one standard error)."
    )
    return Drawn(figure, "Bound against the number of samples", caption)


def _vector(scene: Scene) -> bool:
    prior = scene.model.prior
    return not prior.discrete and len(prior.event_shape) == 1


def _in_plane(scene: Scene) -> bool:
    return scene.flow is not None and scene.flow.features == 2


def _weighted(scene: Scene) -> bool:
    """Whether any importance weights were looked at; those of a density are all the same."""
    return len(scene.khat) > 0 and not np.isnan(np.asarray(scene.khat, float)).all()


#: Those of a report at the end of a fit, which is not to be waited for.
FEW = ("samples", "reconstructions", "code_maps", "plane", "pairs", "curves", "code_curves")

#: Name of the file → whether the figure applies, and what draws it; in the order to look at them.
FIGURES: dict[str, tuple[Callable[[Scene], Any], Callable[[Scene], Drawn]]] = {
    "samples": (lambda s: s.pictures, examples.samples),
    "reconstructions": (lambda s: s.pictures, examples.reconstructions),
    "code_maps": (lambda s: s.codebook is not None and s.pictures, examples.code_maps),
    "code_usage": (lambda s: s.codebook is not None, latents.code_usage),
    "plane": (lambda s: s.in_plane, examples.plane),
    "pairs": (lambda s: not s.pictures and not s.in_plane and not s.table, examples.pairs),
    "marginals": (lambda s: s.table, table.marginals),
    "table_pairs": (lambda s: s.table and len(s.dataset.column_kinds) > 1, table.pairs),
    "missing": (lambda s: s.table and table.is_missing(s), table.missing),
    "imputed": (lambda s: s.table and s.removed is not None, table.imputed),
    "calibration": (lambda s: s.table and s.removed is not None, table.calibration),
    "decoded": (
        lambda s: s.pictures and s.model.prior.standard and s.model.prior.event_shape == (2,),
        examples.decoded,
    ),
    "interpolations": (
        lambda s: s.pictures and _vector(s) and s.size(2) == 2,
        examples.interpolations,
    ),
    "latents": (lambda s: not s.model.posterior.discrete, latents.latents),
    "latents_after": (latents.widens, latents.latents_after),
    "flow": (_in_plane, latents.flow),
    "aggregate": (lambda s: s.model.prior.standard and s.size(2) == 2, latents.aggregate),
    "trajectories": (lambda s: s.decodes and s.leapfrog, latents.trajectories),
    "schedule": (lambda s: s.leapfrog, latents.schedule),
    "hmc": (lambda s: s.decodes and not s.model.posterior.discrete, latents.hmc),
    "curves": (lambda s: s.metrics, learning),
    "code_curves": (lambda s: s.coded, stages),
    "weights": (_weighted, weights),
    "bound": (lambda s: s.curve is not None, bound),
}
