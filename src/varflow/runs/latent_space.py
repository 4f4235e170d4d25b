"""Rows and pictures in latent space and back: embeddings, reconstructions, ways between two rows, neighbours.

What a protocol draws (binarization, dequantization) is the same for every row here, so that equal rows lie at one
point, wherever they stand.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from varflow.core import display, random
from varflow.core.errors import RunError, ShapeError, SpecError, positive, unknown
from varflow.core.files import write_atomically
from varflow.core.observed import Examples, parts_of
from varflow.data.columns import Columns
from varflow.data.dataset import Dataset
from varflow.data.frames import is_frame
from varflow.data.given import Given, in_order, like
from varflow.data.new_rows import rows_of
from varflow.evaluation.health import latents
from varflow.evaluation.points import evaluating
from varflow.model import Model
from varflow.priors import interpolation
from varflow.priors.flow import Flow
from varflow.runs.folder import EMBEDDINGS, read_weights
from varflow.runs.rows import Progress, answered, count, one_model, pieces
from varflow.runs.scores import conditions_at, training_order

if TYPE_CHECKING:
    from varflow.runs.run import Run

What = Literal["mean", "scale", "sample", "centre", "codes"]
Way = Literal["straight", "sphere", "base"]

#: Draws of q(z|x) behind a mean or a scale that has no closed form.
SAMPLES = 50
#: Rows that are encoded or decoded at once.
_BLOCK = 500

#: The latents of training rows that a fit leaves in its folder: of so many rows at most, and so many numbers, with no
#: new block after so many seconds.
_ROWS, _NUMBERS, _SECONDS = 10_000, 2**20, 1.0


@torch.no_grad()
def embed(
    run: Run,
    x: Any,
    what: What | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
    given: Any = None,
) -> Any:
    """See :meth:`varflow.Run.embed`."""
    model = one_model(run, "embed", "draw z with run.sample(count)")
    choices = _choices(model)
    what = choices[0] if what is None else what
    if what not in choices:
        raise unknown("what", what, choices)
    found, total = [], count(x)
    with evaluating(model):
        for start, piece in pieces(run, x, seed, equal_noise=True, given_for=given):
            for first in range(0, piece.sizes["test"], _BLOCK):
                rows = torch.arange(first, min(first + _BLOCK, piece.sizes["test"]))
                found.append(_embedded(model, piece.batch("test", rows).seen, what, samples, seed, start + first))
                if progress is not None:
                    progress(start + first + len(rows), total)
    z = torch.cat(found)
    return like(x, z, [f"z{i}" for i in range(z.shape[-1])] if z.dim() == 2 else ())


def _choices(model: Model) -> tuple[What, ...]:
    if model.posterior.discrete:
        return ("codes", "centre") if model.posterior.codes else ("codes",)
    if model.posterior.observed:
        if not isinstance(model.prior, Flow):
            raise SpecError(
                f"embed: a density by {type(model.prior).__name__} has neither latents nor the base of a flow; use a "
                "flow prior or a model with latents"
            )
        return ("centre",)
    return ("mean", "scale", "sample", "centre")


def _embedded(model: Model, x: Examples, what: What, samples: int, seed: int, first: int) -> Tensor:
    x = model.completed(x)
    if what == "centre":
        return _centre(model, x)
    if what == "codes":
        codes = model.posterior(x).codes
        assert codes is not None
        return codes
    found = latents(model, [x], max(samples, 2), _row_seed(seed, first))
    return {"mean": found.mean, "scale": found.variance.sqrt(), "sample": found.draw}[what].to(x.dtype)


def _row_seed(seed: int, first: int) -> int:
    """A seed for each block of rows, so that no two draw the same numbers."""
    return random.derive(seed, "rows", first)


def _centre(model: Model, x: Examples) -> Tensor:
    """Where x lies in latent space, nothing random in it: ``[B, D]``."""
    if model.posterior.observed:
        assert isinstance(model.prior, Flow)
        values, context, _ = parts_of(x)
        return model.prior.encode(values.flatten(1), context)
    return model.posterior(x).centre


@torch.no_grad()
def decoded(run: Run, model: Model, z: Tensor, mean: bool = True, context: Tensor | None = None) -> Tensor:
    """x of latents, or of base points of a density, in the units of the data: ``[N, *event]``."""
    parts = []
    assert run.preprocessing is not None
    for start in range(0, len(z), _BLOCK):
        part = z[start : start + _BLOCK]
        own = None if context is None else context[start : start + _BLOCK]
        if model.posterior.observed:
            assert isinstance(model.prior, Flow)
            part = model.prior.decode(part, own)
        part = model.beside(part, own)
        seen = model.likelihood.mean(part) if mean else model.likelihood.sample(part)
        convert = run.preprocessing.stored_means if mean else run.preprocessing.stored_values
        parts.append(convert(seen.reshape(len(part), *run.form.event_shape)))
    return torch.cat(parts)


def reconstruct(run: Run, x: Any, mean: bool = True, seed: int = 0, given: Any = None) -> Any:
    """See :meth:`varflow.Run.reconstruct`."""
    model = one_model(run, "reconstruct", "draw z with run.sample(count)")
    found = []
    with evaluating(model):
        for start, piece in pieces(run, x, seed, equal_noise=True, given_for=given):
            for first in range(0, piece.sizes["test"], _BLOCK):
                rows = torch.arange(first, min(first + _BLOCK, piece.sizes["test"]))
                with random.stream(_row_seed(seed, start + first)):
                    seen = model.completed(piece.batch("test", rows).seen)
                    if model.posterior.observed:
                        z = _centre(model, seen)
                    else:
                        z = model.encode(seen).z[0]
                    found.append(decoded(run, model, z, mean, parts_of(seen)[1]))
    return answered(run, x, torch.cat(found))


def interpolate(
    run: Run, a: Any, b: Any, steps: int = 10, way: Way | None = None, seed: int = 0, given: Any = None
) -> Any:
    """See :meth:`varflow.Run.interpolate`."""
    model = one_model(run, "interpolate", "there is nothing to go between")
    flowing = isinstance(model.prior, Flow)
    ways: tuple[Way, ...] = ("straight", "sphere", "base") if flowing else ("straight", "sphere")
    if model.posterior.observed:
        _choices(model)
    way = ("base" if flowing else "straight") if way is None else way
    if way not in ways:
        raise unknown("way", way, ways)
    positive(steps=steps)
    if model.posterior.discrete and not model.posterior.codes:
        raise SpecError("interpolate: this model is a prior over codes alone, with nothing between two of them")
    ends = []
    with evaluating(model), torch.no_grad():
        for name, end in (("a", a), ("b", b)):
            (_, piece), *more = pieces(run, _as_rows(name, end, run), seed, True, given)
            if more or piece.sizes["test"] != 1:
                raise ShapeError(f"{name}: holds several rows; give one row or picture")
            seen = model.completed(piece.batch("test", torch.zeros(1, dtype=torch.int64)).seen)
            ends.append(_centre(model, seen)[0])
            context = parts_of(seen)[1]
        first, last = ends
        shape = first.shape
        if way == "base" and not model.posterior.observed:
            read = (c[0] for c in model.read_by_prior(context))
            path = interpolation.in_base(model.prior, first, last, steps, *read)
        else:
            # Of a density the ends are base points already.
            bent = way == "sphere" or (way == "base" and model.posterior.observed)
            move = interpolation.spherical if bent else interpolation.linear
            path = move(first.flatten(), last.flatten(), steps).reshape(steps, *shape)
        along = None if context is None else context.expand(steps, -1)
        return answered(run, a, decoded(run, model, path, context=along))


def _as_rows(name: str, end: Any, run: Run) -> Any:
    """One example, or the file that holds it, as a batch of one."""
    if isinstance(end, str | Path):
        kept, decimal = run.preprocessing, run.spec.get("decimal", "auto")
        found = rows_of(str(end), kept=kept, decimal=decimal, before=run.decimal, conditions=run.conditions)
        if isinstance(kept, Columns):
            return found.values
        return in_order(Given(found.values, columns=found.columns), run.columns)
    if isinstance(run.preprocessing, Columns) and is_frame(end):
        # One row of a frame of pandas is a series.
        return end if hasattr(end, "columns") or not hasattr(end, "to_frame") else end.to_frame().T
    if not isinstance(end, torch.Tensor | np.ndarray):
        # One row of a frame, a list of numbers, or a picture of Pillow.
        end = np.asarray(end)
    if end.ndim == 0:
        raise ShapeError(f"{name}: was {end.item()!r}; give one row or picture, or a file that holds one")
    event = run.form.event_shape
    # A grey picture may come without its channel, a coloured one with channels last.
    alone = run.picture and end.ndim == (2 if event[0] == 1 else 3)
    return end[None] if alone or tuple(end.shape) == event else end


@dataclass(frozen=True, repr=False)
class Neighbours:
    """The training rows whose latents are nearest to those of given rows, nearest first.

    Attributes:
        rows: ``[N, k]``, the number of each in the data that the run was fitted to, counted from 0 as they were
            given, or the names of their files.
        distance: ``[N, k]``, Euclidean, in latent space.
        label: ``[N, k]``, their class numbers; None where the data have no labels.
    """

    rows: list[list[int]] | list[list[str]]
    distance: Float[Tensor, "rows k"]
    label: Int64[Tensor, "rows k"] | None

    def __repr__(self) -> str:
        k = self.distance.shape[1]
        return f"Neighbours({k} of each of {len(self.rows)} rows, nearest at {float(self.distance[:, 0].min()):.3g})"

    def _repr_html_(self) -> str:
        rows = []
        origins: list[list[Any]] = [list(places) for places in self.rows[: display.ROWS]]
        for i, places in enumerate(origins):
            labels: list[Any] = [""] * len(places) if self.label is None else self.label[i].tolist()
            cells = [
                f"{place}{'' if self.label is None else f' (label {label})'}, {distance:.3g}"
                for place, label, distance in zip(places, labels, self.distance[i].tolist(), strict=True)
            ]
            rows.append([str(i), *cells])
        heads = ["row", *(f"neighbour {k + 1}" for k in range(self.distance.shape[1]))]
        left = len(self.rows) - len(rows)
        more = [f"and {left:,} more rows"] if left else []
        said = "Each neighbour: its place among the training rows, and its distance in latent space."
        return display.block(display.table(heads, rows, words=range(len(heads))), display.note(*more, said))


@torch.no_grad()
def nearest(run: Run, x: Any, k: int = 5, among: Any = None, seed: int = 0, given: Any = None) -> Neighbours:
    """See :meth:`varflow.Run.nearest`."""
    model = one_model(run, "nearest", "there is nothing to look among")
    _choices(model)
    positive(k=k)
    held = training_latents(run) if among is None else Embedded(_points(run, model, among, seed), None, None)
    if k > len(held.points):
        raise SpecError(f"k: was {k}; there are {len(held.points)} rows to look among, use at most that")
    points = _points(run, model, x, seed, given).split(_BLOCK)
    found = [torch.cdist(part, held.points).topk(k, largest=False) for part in points]
    index = torch.cat([part.indices for part in found])
    places = index.tolist() if held.origins is None else [[held.origins[i] for i in row] for row in index.tolist()]
    label = None if held.labels is None else held.labels[index]
    return Neighbours(places, torch.cat([part.values for part in found]), label)


def _points(run: Run, model: Model, x: Any, seed: int, given: Any = None) -> Tensor:
    """The centre of each row as a vector, in float64 on the CPU."""
    found = embed(run, x, "centre", seed=seed, given=given)
    # A copy of what a frame gives, which may not be written to.
    points = found if isinstance(found, Tensor) else torch.as_tensor(np.array(found))
    return points.flatten(1).double()


@dataclass(frozen=True)
class Embedded:
    """Rows in latent space, with what is known of each."""

    points: Tensor
    origins: Sequence[Any] | None
    labels: Tensor | None


def training_latents(run: Run) -> Embedded:
    """Latents of training rows, from the run folder, or from the data where they are at hand."""
    path = None if run.folder is None else run.folder / EMBEDDINGS
    if path is None or not path.exists():
        return _embed_training_rows(run)
    held = read_weights(path)
    model = run.members()[0]
    try:
        points = held["codes"].long() if "codes" in held else held["centre"]
        places = held["row"].tolist()
        names = bytes(held["files"].tolist()).decode().split("\n") if "files" in held else None
        if len(places) != len(points) or (names is not None and len(names) != len(points)):
            raise ValueError("not one place for each row")
    except (KeyError, ValueError) as error:
        raise RunError(f"{path}: not what varflow wrote ({error}); delete it, or fit again") from error
    if "codes" in held:
        home = next(model.parameters())
        points = model.posterior.decode_codes(points.to(home.device)).cpu()  # type: ignore[operator]
    return Embedded(points.flatten(1).double(), names or places, held.get("label"))


def _embed_training_rows(run: Run) -> Embedded:
    model, dataset = run.members()[0], run.dataset
    assert isinstance(dataset, Dataset)
    points, index = _few_latents(run, dataset)
    if model.posterior.discrete:
        points = model.posterior.decode_codes(points)  # type: ignore[operator]
    labels = dataset.labels("train")
    label = None if labels is None else labels[index.to(labels.device)].cpu()
    return Embedded(points.flatten(1).double().cpu(), dataset.origins("train", index), label)


def _few_latents(run: Run, dataset: Dataset, seconds: float = math.inf) -> tuple[Tensor, Tensor]:
    """The centres or codes of the training rows that stand for all, and which rows they are."""
    what: What = "codes" if run.members()[0].posterior.discrete else "centre"
    order = training_order(dataset, _ROWS)
    begun, parts, done = time.monotonic(), [], 0
    while done < len(order):
        rows = order[done : done + _BLOCK].to(dataset.device)
        values = dataset.stored("train", rows)
        parts.append(torch.as_tensor(embed(run, values, what, given=conditions_at(dataset, rows))))
        done += len(rows)
        if done * parts[0][0].numel() > _NUMBERS or time.monotonic() - begun > seconds:
            break
    return torch.cat(parts), order[:done]


def write_embeddings(run: Run, folder: Path, share: float = 1.0) -> None:
    """Embed training rows for a ``share`` of a second, and keep their latents in the folder, with the place and label
    of each.
    """
    from safetensors.torch import save

    model, dataset = run.members()[0], run.dataset
    assert isinstance(dataset, Dataset)
    try:
        _choices(model)
    except SpecError:
        return
    points, index = _few_latents(run, dataset, share * _SECONDS)
    held = {"codes": points.to(torch.int32)} if model.posterior.discrete else {"centre": points.float()}
    origins = dataset.origins("train", index)
    if isinstance(origins[0], str):
        held["files"] = torch.tensor(list("\n".join(map(str, origins)).encode()), dtype=torch.uint8)
        held["row"] = index
    else:
        held["row"] = torch.tensor(origins, dtype=torch.int64)
    labels = dataset.labels("train")
    if labels is not None:
        held["label"] = labels[index.to(labels.device)].cpu()
    blob = save({name: tensor.contiguous() for name, tensor in held.items()})
    write_atomically(folder / EMBEDDINGS, lambda file: file.write(blob))
