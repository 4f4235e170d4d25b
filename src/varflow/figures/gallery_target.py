"""Every figure that fits a run on a target, as files with captions."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow.core import random
from varflow.core.errors import DataError, SpecError
from varflow.core.files import make_folder
from varflow.ensemble import Ensemble
from varflow.figures import gallery_film, scatter, targets, warp
from varflow.figures.base import canvas, style
from varflow.figures.gallery_scene import Drawn, Entry, keep, write_index
from varflow.model import LogJoint, Model

#: Fits that get a panel; samples behind a histogram; cells of a picture and of a frame.
_SHOWN, _SAMPLES, _CELLS, _FRAME = 4, 400_000, 200, 120
_FRAMES, _FILM_DPI = 40, 80
FILM = "training"
#: Frames of draws, which cost little.
_MOVES = 60
#: Those of a report at the end of a fit, which is not to be waited for.
FEW = ("densities", "draws", "bound")
_BLOCK = 50_000
#: (step, weights), in order.
_Snapshots = Sequence[tuple[int, Mapping[str, Tensor]]]


@dataclass(frozen=True)
class _Scene:
    """What the figures are drawn from; models in float64."""

    members: list[Model]
    metrics: Sequence[Mapping[str, Any]]
    seed: int
    evaluation: Any

    @property
    def first(self) -> Model:
        return self.members[0]

    @property
    def target(self) -> Any:
        return self.first.prior if self.first.likelihood is None else None

    @property
    def window(self) -> Any:
        """What a picture shows, for a target in the plane."""
        if self.target is None or self.target.event_shape != (2,):
            return None
        window = getattr(self.target, "window", None)
        return window or _around(_draws(self.first, 4096, self.seed))

    @property
    def name(self) -> str:
        return type(self.target or self.first.likelihood).__name__

    def found(self, name: str, fit: int) -> float | None:
        if self.evaluation is None or name not in self.evaluation.per_example:
            return None
        return float(self.evaluation.per_example[name][fit])


def target_gallery(
    model: Model | Ensemble,
    metrics: Sequence[Mapping[str, Any]],
    folder: Path | str,
    snapshots: _Snapshots = (),
    seed: int = 0,
    evaluation: Any = None,
    names: Sequence[str] | None = None,
) -> list[Entry]:
    """Draw every figure that applies to a fit, or fits, to a target.

    In the plane: the density of the target beside that of q for the first fits, the grid that the flow
    warps, and the training as an animation. Always: the bound below its exact value. Other dimensions get
    q's draws along the first two principal directions. ``index.json`` lists them; ``film.json`` has the draws of q
    at each snapshot, for a page that shows them move.

    Args:
        model: trained (or new); it is left as it is.
        metrics: rows of metrics.jsonl, or none.
        folder: where the files go; each appears whole or not at all.
        snapshots: (step, weights of ``model``) from the training, or none.
        seed: of all draws.
        evaluation: of :func:`varflow.evaluation.evaluate_target`, for the numbers in the panels.
        names: of the figures to draw where they apply (``"training"`` is the animation); without it all of them.

    Returns:
        Path, title and caption of each figure.

    Raises:
        RunError: the folder cannot be written.
    """
    folder = Path(folder)
    make_folder(folder)
    scene = scene_of(model, metrics, seed, evaluation)
    with torch.no_grad(), style():
        drawings = ((name, draw(scene, name)) for name in FIGURES if names is None or name in names)
        entries = [keep(name, drawn, folder) for name, drawn in drawings if drawn is not None]
        ended = with_the_end(snapshots, model, metrics)
        if names is None or FILM in names:
            film = _film(scene, model, ended, folder)
            if film is not None:
                entries.append(film)
        _keep_draws(scene, model, ended, folder)
    write_index(folder, entries)
    return entries


def scene_of(
    model: Model | Ensemble, metrics: Sequence[Mapping[str, Any]], seed: int = 0, evaluation: Any = None
) -> _Scene:
    """What the figures of a fit to a target are drawn from; arguments of :func:`target_gallery`."""
    return _Scene(_members(model), metrics, seed, evaluation)


def draw(scene: _Scene, name: str) -> Drawn | None:
    """The figure of one name, or None where it does not apply."""
    found = (figure(scene) for figure in FIGURES[name])
    return next((drawn for drawn in found if drawn is not None), None)


def applying(scene: _Scene, snapshots: int) -> tuple[str, ...]:
    """The names of the figures that apply, with so many snapshots of the training."""
    in_plane = scene.window is not None
    posterior: Any = scene.first.posterior
    gaussian = posterior.base if getattr(posterior, "uses_gradient", False) else posterior
    flow = getattr(gaussian, "flow", None)
    log_z = getattr(scene.target, "log_normalizer", None)
    known = log_z is not None or hasattr(scene.first.likelihood, "maximum_likelihood")
    chosen = {
        "densities": in_plane,
        "flow": flow is not None and flow.features == 2 and not flow.context_features,
        "draws": not in_plane,
        "bound": bool(scene.metrics) and known and len({type(m.prior) for m in scene.members}) == 1,
        FILM: in_plane and snapshots > 1,
    }
    return tuple(name for name, applies in chosen.items() if applies)


def film(
    model: Model | Ensemble,
    metrics: Sequence[Mapping[str, Any]],
    snapshots: Sequence[tuple[int, Mapping[str, Tensor]]],
    folder: Path,
    seed: int = 0,
    dpi: float | None = None,
) -> Entry | None:
    """The training as an animation, ``training.gif``; None where it is not in the plane or has no snapshots."""
    with torch.no_grad(), style():
        return _film(scene_of(model, metrics, seed), model, with_the_end(snapshots, model, metrics), folder, dpi)


def density_of(model: Model, window: Any, size: int = _CELLS, seed: int = 0) -> tuple[Any, bool]:
    """The density of q ``[size, size]`` and whether it is exact, through ``log_prob``, or a histogram of draws.

    Where many points have to be inverted for a flow whose inverse is slow, the exact density still costs
    size² inverses.
    """
    q = model.infer()
    try:
        return targets.density_on_grid(q.log_prob, window, size, _home(model)), True
    except SpecError:
        return targets.density_of_samples(_draws(model, _SAMPLES, seed), window, size), False


def _members(model: Model | Ensemble) -> list[Model]:
    return [copy.deepcopy(member).double().eval() for member in model.members()]


def _home(model: Model) -> Tensor:
    return next(itertools.chain(model.parameters(), model.buffers()))


def _draws(model: Model, count: int, seed: int) -> Tensor:
    q, parts = model.infer(), []
    for block, start in enumerate(range(0, count, _BLOCK)):
        with random.stream(seed, block), torch.no_grad():
            draw = q.draw(min(_BLOCK, count - start), log_joint=LogJoint(model, None))
        parts.append(draw.z)
    return torch.cat(parts)


def _around(z: Tensor) -> tuple[float, ...]:
    low, high = (torch.quantile(z.double(), p, dim=0) for p in (0.001, 0.999))
    margin = 0.15 * (high - low)
    (x0, y0), (x1, y1) = (low - margin).tolist(), (high + margin).tolist()
    return x0, x1, y0, y1


def _densities(scene: _Scene) -> Drawn | None:
    window = scene.window
    if window is None:
        return None
    shown = [
        (fit, member)
        for fit, member in enumerate(scene.members)
        if type(member.prior) is type(scene.target)
    ][:_SHOWN]
    log_z = scene.target.log_normalizer
    exact = _exact(scene, window, _CELLS)
    panels, notes, kinds = [exact], [None if log_z is None else f"log Z = {log_z:.4f}"], set()
    for fit, member in shown:
        values, closed = density_of(member, window, seed=scene.seed)
        panels.append(values)
        kinds.add(closed)
        kl = scene.found("kl_q_p", fit)
        notes.append(None if kl is None else f"KL(q‖p) = {kl:.2g}")
    several = len(scene.members) > 1
    names = ["target", *(f"q, fit {fit + 1}" if several else "q" for fit, _ in shown)]
    figure, axes = canvas(1, len(panels), 1.0 + 2.9 * len(panels), 3.4)
    targets.density_grid([panels], axes, window, names, notes=[notes])
    how = (
        "its exact density"
        if kinds == {True}
        else f"a histogram of {_SAMPLES:,} draws of q, which has no density of z alone"
    )
    only = (
        f" The first {len(shown)} of {len(scene.members)} fits."
        if len(shown) < len(scene.members)
        else ""
    )
    caption = (
        f"Left: {scene.name}, normalised{' over this window' if log_z is None else ''}. Right of it: q, {how}. "
        "One colour scale for all panels, which ends at the highest point of the target."
        f"{only} KL(q‖p) in nats, where evaluated."
    )
    return Drawn(figure, "Target and posterior", caption)


def _warped(scene: _Scene) -> Drawn | None:
    posterior: Any = scene.first.posterior
    gaussian = posterior.base if getattr(posterior, "uses_gradient", False) else posterior
    flow = getattr(gaussian, "flow", None)
    if flow is None or flow.features != 2 or flow.context_features:
        return None
    q = gaussian()
    extent = tuple((3 * q.log_scale.exp()).tolist())
    figure, axes = canvas(1, 1, 6.6, 5.6)
    warp.flow_grid(flow, axes[0, 0], extent=extent, centre=tuple(q.mean.tolist()), lines=25)
    warp.fit_height(axes[0, 0], 4.9)
    fit = " of the first fit" if len(scene.members) > 1 else ""
    moved = " The leapfrog steps that follow are not drawn." if gaussian is not posterior else ""
    caption = (
        f"A regular grid over three standard deviations of the base (light) and its image under the flow{fit}, "
        f"coloured by log|det| in nats.{moved}"
    )
    return Drawn(figure, "The flow", caption)


def _draws_by_direction(scene: _Scene) -> Drawn | None:
    if scene.window is not None:
        return None
    z = _draws(scene.first, 2000, scene.seed)
    figure, axes = canvas(1, 1, 6.2, 6.0)
    scatter.latent_scatter(z, None, axes[0, 0], contours=False)
    warp.fit_height(axes[0, 0], 5.2)
    fit = " of the first fit" if len(scene.members) > 1 else ""
    return Drawn(figure, "Draws of q", f"2,000 draws of q(z){fit}.")


def _bound(scene: _Scene) -> Drawn | None:
    """The ELBO below log Z, which is one number for all fits."""
    log_z = getattr(scene.target, "log_normalizer", None)
    if log_z is None or len({type(m.prior) for m in scene.members}) > 1:
        return None
    told = (
        f"{scene.name} has log Z = {log_z:.4f} nats, drawn in. While annealed, this is the ELBO of the full "
        "target all the same."
    )
    return _curves(scene, scene.metrics, float(log_z), "log Z", {}, told)


def _evidence_bound(scene: _Scene) -> Drawn | None:
    """The ELBO below log p(D), which moves with the parameters."""
    likelihoods: list[Any] = [member.likelihood for member in scene.members]
    if not hasattr(likelihoods[0], "maximum_likelihood"):
        return None
    # Separate blocks: a step sees one of them, and so do ELBO and evidence here.
    separate = getattr(likelihoods[0], "batches", None) == "separate"
    blocks = likelihoods[0].blocks if separate else 1
    rows = [
        {**row, "exact": float(np.mean(row["log_evidence"])) / blocks}
        for row in scene.metrics
        if "log_evidence" in row
    ]
    best = [float(likelihood.maximum_likelihood().log_evidence) for likelihood in likelihoods]
    name = "log p(block)" if separate else "log p(D)"
    lines = {f"{name}, maximum likelihood": sum(best) / len(best) / blocks}
    told = f"Dashed: exact {name} at the parameters of the record"
    told += f", the mean over the {blocks} blocks." if separate else "."
    return _curves(scene, rows, "exact", name, lines, told)


def _curves(
    scene: _Scene,
    rows: Sequence[Mapping[str, Any]],
    reference: float | str,
    name: str,
    lines: Mapping[str, float],
    told: str,
) -> Drawn | None:
    figure, axes = canvas(1, 2, 9.6, 3.6)
    try:
        targets.bound_curves({"ELBO": rows}, axes[0], reference, name, lines)
    except DataError:
        return None
    mean = ", means over the fits" if len(scene.members) > 1 else ""
    caption = (
        f"The ELBO of the training samples{mean}, averaged over the steps up to each record, and what it falls "
        f"short of its exact value, which is KL(q‖p). {told}"
    )
    return Drawn(figure, "The bound and its exact value", caption)


#: Name of the file → what may draw it: the first that applies.
FIGURES = {
    "densities": (_densities,),
    "flow": (_warped,),
    "draws": (_draws_by_direction,),
    "bound": (_bound, _evidence_bound),
}


def with_the_end(
    snapshots: _Snapshots,
    model: Model | Ensemble,
    metrics: Sequence[Mapping[str, Any]],
) -> _Snapshots:
    """The snapshots, and the weights that training ended with."""
    last = int(metrics[-1].get("step", 0)) if metrics else 0
    if not snapshots or last <= snapshots[-1][0]:
        return snapshots
    return [*snapshots, (last, model.state_dict())]


def _exact(scene: _Scene, window: Any, size: int) -> Any:
    """The density of the target on a grid; without log Z normalised over the window."""
    exact = targets.density_on_grid(scene.target.log_prob, window, size, _home(scene.first))
    log_z = scene.target.log_normalizer
    cell = (window[1] - window[0]) * (window[3] - window[2]) / size**2
    exact /= exact.sum() * cell if log_z is None else torch.tensor(log_z).exp().item()
    return exact


def _spread(snapshots: _Snapshots, most: int) -> list[tuple[int, Mapping[str, Tensor]]]:
    """At most so many of them, the last among them."""
    every = max(1, -(-len(snapshots) // most))
    return list(snapshots[::-1][::every][::-1])


def _keep_draws(
    scene: _Scene,
    model: Model | Ensemble,
    snapshots: _Snapshots,
    folder: Path,
) -> None:
    window = scene.window
    if window is None:
        (folder / gallery_film.FILM).unlink(missing_ok=True)
        return

    def draw(one: Model | Ensemble) -> Tensor:
        return _draws(_members(one)[0], gallery_film.DRAWS, scene.seed)

    frames = gallery_film.frames_of(model, _spread(snapshots, _MOVES), draw)
    gallery_film.keep(folder, scene.name, _exact(scene, window, _FRAME), window, frames)


def _film(
    scene: _Scene,
    model: Model | Ensemble,
    snapshots: _Snapshots,
    folder: Path,
    dpi: float | None = None,
) -> Entry | None:
    window = scene.window
    if window is None or len(snapshots) < 2:
        return None
    chosen = _spread(snapshots, _FRAMES)
    exact = _exact(scene, window, _FRAME)

    def frames() -> Iterator[tuple[int, Any]]:
        again = copy.deepcopy(model)
        for step, weights in chosen:
            again.load_state_dict(dict(weights))
            yield step, density_of(_members(again)[0], window, _FRAME, scene.seed)[0]

    path = targets.animate(exact, frames(), window, folder / f"{FILM}.gif", scene.name, dpi=dpi or _FILM_DPI)
    fit = " of the first fit" if len(scene.members) > 1 else ""
    caption = (
        f"Left: {scene.name}. Right: q{fit} at {len(chosen)} steps of training, ever further apart; "
        "one colour scale."
    )
    return Entry(path, "Training", caption)
