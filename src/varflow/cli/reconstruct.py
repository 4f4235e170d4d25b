"""Set test examples beside their reconstructions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from varflow.cli.common import RunOptions, at_least_one, write_examples
from varflow.core.errors import SpecError
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Reconstruct(RunOptions):
    """Examples beside their reconstructions through one draw of q(z|x)."""

    count: int = 32
    """How many."""
    split: Literal["test", "validation", "train"] = "test"
    """The split."""
    seed: int = 0
    """Seed of the draws."""
    out: str | None = None
    """File name without ending; without it RUN/figures/reconstruct."""


def main(arguments: list[str]) -> int:
    options = parse(Reconstruct, arguments, "run")
    run = options.open()
    at_least_one("count", options.count)
    import torch

    from varflow.core import random

    if run.infers_target:
        raise SpecError(
            "run: was fitted to a target, which has no data; varflow sample draws from q(z)"
        )
    size = run.dataset.sizes[options.split]
    if options.count > size:
        raise SpecError(
            f"count: was {options.count}, the {options.split} split has {size}; use at most that"
        )
    with random.stream(options.seed):
        x = run.dataset.batch(options.split, torch.arange(options.count)).x
        again = run.model.reconstruct(x)
    target = Path(options.out) if options.out else run.folder / "figures" / "reconstruct"
    for path in write_examples(run, target, again, x):
        options.say(path)
    return 0
