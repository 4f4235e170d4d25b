"""The figures of a run one by one, to be looked at where they are asked for; `report` writes all of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from varflow.core.errors import SpecError, unknown
from varflow.data.dataset import Dataset
from varflow.model import Model
from varflow.runs.folder import snapshots

if TYPE_CHECKING:
    from varflow.figures.gallery_scene import Scene
    from varflow.figures.illustration import Illustration
    from varflow.runs.run import Run


def names(run: Run) -> tuple[str, ...]:
    """See :attr:`varflow.Run.figures`."""
    from varflow.figures import gallery_data, gallery_target

    with torch.no_grad():
        if run.infers_target:
            kept = [] if run.folder is None else snapshots(run.folder)
            count = len(gallery_target.with_the_end(kept, run.model, run.metrics))
            return gallery_target.applying(gallery_target.scene_of(run.model, run.metrics), count)
        scene = _scene(run, "validation", 0)
        with gallery_data.drawing(scene.model):
            return gallery_data.applying(scene)


def figure(run: Run, name: str, split: str, seed: int, dpi: float | None) -> Illustration:
    """See :meth:`varflow.Run.figure`."""
    from varflow.figures import gallery_data, gallery_target
    from varflow.figures.base import style
    from varflow.figures.illustration import of_drawn, of_file

    known = [*gallery_target.FIGURES, gallery_target.FILM] if run.infers_target else list(gallery_data.FIGURES)
    if name not in known:
        raise unknown("name", name, known)
    found = None
    if run.infers_target and name == gallery_target.FILM:
        kept = [] if run.folder is None else snapshots(run.folder)
        with tempfile.TemporaryDirectory() as room:
            entry = gallery_target.film(run.model, run.metrics, kept, Path(room), seed, dpi)
            if entry is not None:
                return of_file(name, entry)
    elif run.infers_target:
        scene = gallery_target.scene_of(run.model, run.metrics, seed, _evaluated(run, "target"))
        with torch.no_grad(), style():
            found = gallery_target.draw(scene, name)
            if found is not None:
                return of_drawn(name, found, dpi)
    else:
        shown = _scene(run, split, seed)
        with gallery_data.drawing(shown.model):
            found = gallery_data.draw(shown, name)
            if found is not None:
                return of_drawn(name, found, dpi)
    raise SpecError(f"name: '{name}' does not apply to this run{_needs(run, name)}; it has {', '.join(names(run))}")


def _needs(run: Run, name: str) -> str:
    """What a figure is made of that a run may have later."""
    if name == "training" and run.folder is None:
        return " (it is made of snapshots in the folder of a run; fit with out=...)"
    made_by = {"weights": "evaluate", "imputed": "removed_cells", "calibration": "removed_cells"}
    if name in made_by:
        kept = "" if run.folder is not None else ", with a folder to keep it in"
        return f" (it is made of what run.{made_by[name]}() finds{kept})"
    return " (run `varflow curve` first)" if name == "bound" and not run.infers_target else ""


def _scene(run: Run, split: str, seed: int) -> Scene:
    from varflow.figures.gallery_data import shown_split
    from varflow.figures.gallery_scene import Scene

    assert isinstance(run.model, Model)
    assert isinstance(run.dataset, Dataset)
    found = {kind: _evaluated(run, f"test{kind}") for kind in ("", "-curve", "-removed")}
    return Scene(
        run.model,
        run.dataset,
        run.metrics,
        seed,
        found[""],
        shown_split(run.dataset, split),
        found["-curve"],
        run.code_prior_metrics,
        found["-removed"],
    )


def _evaluated(run: Run, kind: str) -> Any:
    """What was estimated of the run and is kept in its folder; None where that was not."""
    from varflow.evaluation import Evaluation

    if run.folder is None or not (run.folder / "evaluation" / f"{kind}.npz").exists():
        return None
    return Evaluation.load(run.folder, kind)
