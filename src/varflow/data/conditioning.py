"""From what was read to a data set whose rows are conditioned on some columns, or on their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow.core.errors import SpecError
from varflow.data import frames, named
from varflow.data.conditions import LABEL, Conditions, read_raw
from varflow.data.dataset import SPLITS, Dataset
from varflow.data.prepare import split_name
from varflow.data.raw import Raw


def conditioned(
    made: Dataset,
    arrays: named.Arrays,
    names: Sequence[str],
    column: Sequence[str],
    conditions: Conditions | None,
    gaps: str = "flag",
) -> Dataset:
    """The data set with what its rows are conditioned on; ``gaps`` is what a row without it stands for."""
    if not names:
        return made
    if not arrays.context and tuple(names) != (LABEL,):
        raise SpecError(
            f"condition: was {', '.join(names)}; these data have no columns by name, use condition={LABEL}"
        )
    if not arrays.context:
        labels = {split: made.labels(split) for split in SPLITS}
        if any(part is None for part in labels.values()):
            raise SpecError(f"condition: was {LABEL}, and {made.name} has no labels; leave it out")
        there = {split: part for split, part in labels.items() if part is not None}
        return made.conditioned(
            conditions.of_all_labels(there) if conditions else Conditions.of_classes(there, made.classes, gaps)
        )
    if conditions is not None:
        parts = {part: conditions.of_raw(raw) for part, raw in arrays.context.items()}
        return made.conditioned(conditions.having(_split_alike(parts, made)))
    parts, found = read_raw(arrays.context, column)
    return made.conditioned(Conditions.fit(_split_alike(parts, made), found, gaps))


def _split_alike(parts: Mapping[str, Tensor], made: Dataset) -> dict[str, Tensor]:
    """Rows of what was given, where the rows of the data set went."""
    out = {}
    for split in SPLITS:
        source = "all" if "all" in parts else split if split in parts else "train"
        out[split] = parts[source][made.places(split)]
    return out


def given_beside(context: Any) -> dict[str, Raw]:
    """Columns that were given by themselves, by part."""
    if context is None:
        return {}
    found = {}
    for part, rows in (context.items() if isinstance(context, Mapping) else [("all", context)]):
        if frames.is_frame(rows):
            found[split_name(part)] = frames.read_frame(rows, "context")
            continue
        values = torch.as_tensor(np.asarray(rows)) if not isinstance(rows, Tensor) else rows
        values = values[:, None] if values.dim() == 1 else values
        columns = {f"c{number}": held for number, held in enumerate(values.double().cpu().numpy().T)}
        found[split_name(part)] = frames.of_numbers(columns, True, "context")
    return found
