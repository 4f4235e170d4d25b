"""Results of a long computation, kept chunk by chunk: an interrupted one goes on where it stopped.

A chunk's file is named after everything it depends on (settings, seed, weights, data), so that it is found
again by the same computation and by no other.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow.core.files import make_folder, write_atomically
from varflow.core.observed import Examples, parts_of
from varflow.model import Model


def digest(model: Model, tensors: Mapping[str, Examples | None], **settings: Any) -> str:
    """Twenty letters that stand for a model, tensors and plain values.

    Weights and the printed form of the modules make the model: a part of the user's own whose numbers stand
    in neither has to be told apart by its folder.
    """
    found = hashlib.blake2b(digest_size=10)
    tensors = _plain(tensors)
    kind = {name: None if t is None else t.device.type for name, t in tensors.items()}
    found.update(json.dumps([settings, kind], sort_keys=True).encode() + repr(model).encode())
    for name, tensor in [*model.state_dict().items(), *tensors.items()]:
        if tensor is not None:
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _plain(tensors: Mapping[str, Examples | None]) -> dict[str, Tensor | None]:
    """Each tensor by name, and those of a context or a mask beside x."""
    found: dict[str, Tensor | None] = {}
    for name, held in tensors.items():
        x, context, mask = parts_of(held)
        found[name] = x
        more = {f"{name} context": context, f"{name} mask": mask}
        found |= {key: tensor for key, tensor in more.items() if tensor is not None}
    return found


class Chunks:
    """``{kind}-{digest}.npz`` in a folder; without a folder nothing is kept.

    Args:
        folder: made when the first chunk is kept.
        kind: the first word of the file names.
    """

    def __init__(self, folder: Path | str | None, kind: str) -> None:
        self.folder: Path | None = None if folder is None else Path(folder)
        self.kind: str = kind

    def get(
        self,
        model: Model,
        tensors: Mapping[str, Examples | None],
        names: Collection[str],
        compute: Callable[[], Mapping[str, Tensor]],
        **settings: Any,
    ) -> Mapping[str, Tensor]:
        """What was kept of this model, these tensors and settings; else what ``compute`` gives, which is then kept.

        Args:
            model, tensors, settings: of :func:`digest`.
            names: of the tensors that a chunk holds; one that holds others is computed again.
        """
        if self.folder is None:
            return compute()
        key = digest(model, tensors, **settings)
        found: Mapping[str, Tensor] | None = self.find(key)
        if found is None or set(found) != set(names):
            found = compute()
            self.keep(key, found)
        return found

    def find(self, key: str) -> dict[str, Tensor] | None:
        """What :meth:`keep` kept; None where it is missing or unreadable, and has to be computed again."""
        if self.folder is None:
            return None
        try:
            with (
                open(self._path(key), "rb") as file,
                np.load(file, allow_pickle=False) as arrays,
            ):
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def keep(self, key: str, values: Mapping[str, Tensor]) -> None:
        """Write a chunk, whole or not at all.

        Raises:
            RunError: it could not be written.
        """
        if self.folder is None:
            return
        make_folder(self.folder)
        arrays = {name: value.cpu().numpy() for name, value in values.items()}
        write_atomically(self._path(key), lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def clear(self) -> None:
        """Remove the chunks of this kind, once what they add up to is kept."""
        for path in [] if self.folder is None else self.folder.glob(f"{self.kind}-*.npz"):
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.kind}-{key}.npz"
