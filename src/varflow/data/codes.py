"""Grids of codes as a data set: what a prior over codes is fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from varflow.core.errors import DataError, ShapeError
from varflow.data.dataset import SPLITS, Dataset
from varflow.data.protocols import Codes


def from_codes(
    codes: Mapping[str, Int[Tensor, "n height width"]],
    labels: Mapping[str, Int[Tensor, " n"]] | None = None,
    *,
    name: str = "codes",
    facts: Mapping[str, Any] | None = None,
) -> Dataset:
    """Grids of codes, split by split (train, validation, test), as ``fit`` and ``evaluate`` take them.

    Without labels an example is a grid ``[H, W]``. With labels it is one row ``[1 + H·W]``: the label, then the
    codes in the order they are read, which is what a prior conditioned on classes is fitted to.

    Raises:
        DataError: a split is missing, there is nothing to train on, or labels are missing or not one for each grid.
        ShapeError: codes that are no integers ``[N, H, W]``, or of several sizes.

    Example:
        >>> import torch
        >>> codes = {split: torch.zeros(5, 2, 3, dtype=torch.uint8) for split in ("train", "validation", "test")}
        >>> from_codes(codes).event_shape
        (2, 3)
    """
    missing = [split for split in SPLITS if split not in codes]
    if missing:
        raise DataError(
            f"codes: split {missing[0]} is missing; give train, validation and test, empty ones too"
        )
    grid = tuple(codes["train"].shape[1:])
    raw: dict[str, Tensor] = {}
    for split in SPLITS:
        values = codes[split]
        if values.ndim != 3 or values.is_floating_point() or values.dtype == torch.bool:
            raise ShapeError(
                f"codes: {split} is {values.dtype} of shape {tuple(values.shape)}; use integers [N, height, width]"
            )
        if tuple(values.shape[1:]) != grid:
            raise ShapeError(
                f"codes: {split} has grids of {tuple(values.shape[1:])}, train of {grid}; use one size"
            )
        raw[split] = values
    if not len(raw["train"]):
        raise DataError("codes: the train split is empty; give at least one grid")
    if labels is not None:
        raw = {
            split: _with_labels(split, values, labels.get(split)) for split, values in raw.items()
        }
    return Dataset(name, Codes("codes", None), raw, facts=facts)


def _with_labels(split: str, codes: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None or labels.shape != codes.shape[:1]:
        given = "none" if labels is None else tuple(labels.shape)
        raise DataError(
            f"labels: {split} has {given} for {len(codes)} grids; give one label for each"
        )
    kind = torch.promote_types(codes.dtype, torch.int32)
    return torch.cat([labels.to(codes.device, kind)[:, None], codes.flatten(1).to(kind)], 1)
