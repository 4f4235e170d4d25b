"""Runs side by side: what their models make of the same examples, and the files of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varflow.core import random
from varflow.data.dataset import Dataset
from varflow.report import comparison as pages
from varflow.report.comparison import Sheet
from varflow.runs.comparison import Comparison
from varflow.runs.loading import load

#: Pictures in a panel.
_PICTURES = 36


def write(
    comparison: Comparison,
    out: Path,
    figures: bool = True,
    seed: int = 0,
    data_dir: str | None = None,
) -> list[Path]:
    """Write ``comparison.md``, ``comparison.csv`` and ``comparison.html``; return their paths.

    Args:
        comparison: what :func:`varflow.runs.comparison.compare` gave.
        out: the folder.
        figures: draw samples, reconstructions and curves; without them no model is opened.
        seed: of the samples: the same latents' noise for each run, the same examples to reconstruct.
        data_dir: where the named data sets are, if they moved.

    Raises:
        RunError: a run cannot be opened, or a file cannot be written.
    """
    sheets = _sheets(comparison.names, comparison.folders, seed, data_dir) if figures else []
    return pages.write(comparison, out, figures, sheets)


@torch.no_grad()
def _sheets(
    names: Sequence[str], folders: Sequence[Path], seed: int, data_dir: str | None
) -> list[Sheet]:
    """Samples and reconstructions of runs on pictures."""
    samples: dict[str, Tensor] = {}
    again: dict[str, Tensor] = {}
    split = "test"
    for name, folder in zip(names, folders, strict=True):
        run = load(folder)
        model: Any = run.model
        if data_dir is not None:
            run.spec = run.spec.replace(data_dir=data_dir)
        data = run.dataset
        if not isinstance(data, Dataset) or not data.picture:
            return []
        with random.stream(seed):
            shown = data.batch(split, torch.arange(min(_PICTURES, data.sizes[split])))
            context = shown.context
            if context is not None:
                context = context.repeat(-(-_PICTURES // len(context)), 1)[:_PICTURES]
            samples[name] = _pictures(data, model.sample(_PICTURES, mean=True, context=context))
        count = min(_PICTURES, data.sizes[split])
        with random.stream(seed):
            batch = data.batch(split, torch.arange(count))
            again[name] = _pictures(data, model.reconstruct(batch.seen))
        originals = _pictures(data, batch.x)
    return [
        Sheet(
            "Samples",
            f"{_PICTURES} draws of each run's prior, decoded: the likelihood's mean, with the same random numbers "
            "for all runs.",
            samples,
        ),
        Sheet(
            "Reconstructions",
            f"The first {count} {split} examples, then each run's reconstructions in the same places: the "
            "likelihood's mean at one draw of q(z|x).",
            {f"{split} examples": originals, **again},
        ),
    ]


def _pictures(data: Dataset, x: Tensor) -> Tensor:
    found = data.pictures(x)
    assert found is not None
    return found
