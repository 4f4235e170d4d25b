"""What the figures of a gallery are drawn from, and how they become files with captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from varflow.core import random
from varflow.core.errors import RunError
from varflow.core.files import read_json, write_json
from varflow.core.observed import Examples, parts_of
from varflow.figures.base import save
from varflow.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Examples encoded at a time, and of a scatter of latents at most.
CHUNK, LATENTS = 500, 2000


class Drawn(NamedTuple):
    """A figure with its title, and a caption that says what exactly it shows."""

    figure: Figure
    title: str
    caption: str


class Entry(NamedTuple):
    """One figure of a gallery as a file."""

    path: Path
    title: str
    caption: str


def keep(name: str, drawn: Drawn, folder: Path) -> Entry:
    """Write a figure as ``name.png``."""
    return Entry(save(drawn.figure, folder / f"{name}.png"), drawn.title, drawn.caption)


def write_index(folder: Path, entries: Iterable[Entry]) -> None:
    """``index.json``: file, title and caption of each figure, in the order to look at them.

    Figures that were listed before and are not drawn now are of earlier weights, and go.
    """
    listed = [{"file": e.path.name, "title": e.title, "caption": e.caption} for e in entries]
    index, kept = folder / "index.json", {e["file"] for e in listed}
    try:
        before = [Path(str(e["file"])).name for e in read_json(index)] if index.exists() else []
    except (RunError, TypeError, KeyError):
        before = []
    for name in before:
        if name not in kept and Path(name).suffix in (".png", ".gif"):
            (folder / name).unlink(missing_ok=True)
    write_json(index, listed)


@dataclass(frozen=True)
class Scene:
    """A model, its data, and what is known of its training; the figures ask it what applies.

    Attributes:
        split: whose examples are shown.
        evaluation: for the figures of its weights, or None.
        curve: the bound against its number of samples, or None.
        second: records of the fit of a code prior.
        removed: what was predicted of removed cells of a table, or None.
    """

    model: Model
    dataset: Any
    metrics: Sequence[Mapping[str, Any]]
    seed: int
    evaluation: Any
    split: str
    curve: Any = None
    second: Sequence[Mapping[str, Any]] = ()
    removed: Any = None

    @property
    def examples(self) -> str:
        """How a caption calls the examples."""
        return f"{self.split} examples of {self.dataset.name} ({self.dataset.protocol})"

    @property
    def pictures(self) -> bool:
        """Whether the data are pictures."""
        return bool(self.dataset.picture)

    @property
    def table(self) -> bool:
        """Whether the data are a table whose columns are each of a kind."""
        return bool(self.dataset.column_kinds)

    @property
    def in_plane(self) -> bool:
        """Whether the data are points in the plane."""
        return not self.pictures and not self.table and tuple(self.dataset.event_shape) == (2,)

    @property
    def decodes(self) -> bool:
        """Whether latents decode to pictures."""
        return self.pictures and hasattr(self.model.likelihood, "decode")

    @property
    def flow(self) -> Any:
        """Of the posterior, or None."""
        return getattr(self.model.posterior, "flow", None)

    @property
    def codebook(self) -> Any:
        """Of a quantizer, or None."""
        return getattr(self.model.posterior, "codebook", None)

    @property
    def leapfrog(self) -> bool:
        """Whether the posterior moves along trajectories of its own."""
        posterior: Any = self.model.posterior
        return bool(getattr(posterior, "uses_gradient", False) and posterior.steps)

    @property
    def khat(self) -> Any:
        """Pareto k̂ of each evaluated point; empty where none was computed."""
        return () if self.evaluation is None else self.evaluation.per_example.get("khat", ())

    @property
    def coded(self) -> bool:
        """Whether records tell of codes."""
        told = any("perplexity" in row for row in self.metrics) or self.second
        return self.codebook is not None and bool(told)

    def size(self, most: int) -> int:
        """How many examples are shown of at most ``most``."""
        return min(most, self.dataset.sizes[self.split])

    def seen(self, start: int, stop: int) -> Examples:
        """Examples with all that the model is given of them."""
        index = torch.arange(start, stop, device=self.dataset.device)
        found: Examples = self.dataset.batch(self.split, index).seen
        return found

    def batch(self, start: int, stop: int) -> Tensor:
        """x of examples."""
        x: Tensor = parts_of(self.seen(start, stop))[0]
        return x

    def context(self, count: int) -> Tensor | None:
        """What draws are conditioned on: the contexts of the first examples, again and again; None without any."""
        found = parts_of(self.seen(0, self.size(count)))[1]
        return None if found is None else found.repeat(-(-count // len(found)), 1)[:count]

    def sample(self, count: int, mean: bool = False) -> Tensor:
        """x of the model, under the contexts of the first examples where there are such."""
        return self.model.sample(count, mean=mean, context=self.context(count))

    def decode(self, z: Tensor, mean: bool = True) -> Tensor:
        """x of latents ``[N, D]``, under the contexts of the first N examples where there are such."""
        return self.model.decode(z, mean, self.context(len(z)))

    @property
    def under(self) -> str:
        """What a caption says of the contexts."""
        if not self.model.conditioned:
            return ""
        return f" Each under the context of one of the {self.examples}, in order."

    def labels(self, count: int) -> Any:
        """Of the first ``count`` examples, or None."""
        labels = self.dataset.labels(self.split)
        return None if labels is None else labels[:count]

    def class_names(self, count: int) -> list[str]:
        """What the classes 0, 1, … are called; ``count`` numbers where they have no names."""
        return list(self.dataset.classes) or [str(number) for number in range(count)]

    @cached_property
    def latents(self) -> tuple[Tensor, Tensor]:
        """One draw (z₀, z) for each example of a scatter, ``[N, D]`` each."""
        return self.encode(self.size(LATENTS))

    def encode(self, count: int) -> tuple[Tensor, Tensor]:
        """One draw (z₀, z) for each of the first ``count`` examples, ``[count, D]`` each."""
        parts = []
        for chunk, start in enumerate(range(0, count, CHUNK)):
            with random.stream(self.seed, chunk):
                draw = self.model.encode(self.seen(start, min(start + CHUNK, count)))
            parts.append((draw.z0[0].flatten(1), draw.z[0].flatten(1)))
        z0, z = zip(*parts, strict=True)
        return torch.cat(z0), torch.cat(z)
