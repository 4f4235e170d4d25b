"""What a process on each of two machines does in tests/training/test_nodes.py; started by torchrun on both.

Each machine has a working folder of its own, and the folders of runs are named from there: what the first machine
writes the second has not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import varflow as vf
from varflow.core import ranks

HERE = Path(__file__).parent
COMMON = {"precision": "float64", "threads": 1, "quiet": True}


def dense(out: Path) -> Any:
    settings = {"hidden": 16, "layers": 1, "latent": 3, "flow": "planar", "length": 2, "amortized": True}
    return vf.fit("digits", out=out, steps=12, batch=32, validate_every="0.5 epochs", **settings, **COMMON)


def codes(out: Path) -> Any:
    """A VQ-VAE, whose codebook starts by k-means, and the prior over its codes."""
    x = torch.randint(0, 256, (96, 1, 8, 8), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    settings = {
        "codes": 6, "code_features": 4, "blocks": 1, "batch": 16, "steps": 6, "prior_channels": 4, "prior_length": 1,
        "prior_kernel": 3, "prior_hidden": 4, "prior_batch": 16, "prior_steps": 6, "protocol": "symmetric",
    }  # fmt: skip
    return vf.fit("vq-pixelcnn", x, out=out, **settings, **COMMON)


def streamed(out: Path) -> Any:
    """A table that is read as it is needed, each machine from a file of its own."""
    np.save("rows.npy", np.random.default_rng(0).standard_normal((500, 3)).cumsum(1).astype(np.float32))
    settings = {"data": "rows.npy", "stream": "always", "prior_length": 1, "steps": 12, "batch": 32}
    return vf.fit("density", out=out, validate_every="0.5 epochs", **settings, **COMMON)


CASES: dict[str, Callable[[Path], Any]] = {"dense": dense, "codes": codes, "streamed": streamed}
#: Larger budgets, with which the runs go on.
MORE: dict[str, dict[str, Any]] = {"dense": {"steps": 20}, "codes": {"prior_steps": 9}, "streamed": {"steps": 20}}


def given(case: str) -> Any:
    """The data of a case that is fitted to data given in Python."""
    x = torch.randint(0, 256, (96, 1, 8, 8), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    return x if case == "codes" else None


def main() -> None:
    ranks.join()
    for case, fit in CASES.items():
        out = Path("runs") / case
        run = fit(out)
        keep(run, f"{case}.pt")
        if case == "dense":
            value = run.evaluate(samples=5).estimates["nll"].value
            Path("estimate.json").write_text(json.dumps(value))
        keep(vf.resume(out, given(case), quiet=True, **MORE[case]), f"{case}-resumed.pt")
    if ranks.rank() == 1:
        assert not Path("runs").exists()


def keep(run: Any, name: str) -> None:
    records = [{k: v for k, v in r.items() if "second" not in k} for r in run.metrics]
    torch.save([run.model.state_dict(), records, run.outcome["step"]], name)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
