"""What the two processes of tests/training/test_streaming.py do; started by torchrun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import varflow as vf
from varflow.core import ranks

SETTINGS: dict[str, Any] = {
    "prior_length": 1, "batch": 32, "steps": 12, "threads": 1, "precision": "float64", "quiet": True,
    "validate_every": "6 steps",
}  # fmt: skip


def fit(path: Path, **settings: Any) -> Any:
    return vf.fit("density", path, **{**SETTINGS, **settings})


def main(folder: Path) -> None:
    ranks.join()
    for name in ("x.npy", "x.parquet"):
        if (folder / name).exists():
            run = fit(folder / name, stream="always", workers=1 if name == "x.npy" else 0)
            torch.save(run.model.state_dict(), folder / f"{name}-{ranks.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
