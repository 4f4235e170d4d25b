"""Write where rows or pictures lie in latent space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from varflow.cli.common import GivenOptions, at_least_one
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Embed(GivenOptions):
    """Means, scales or samples of q(z|x); codes of a quantizer; the base points of a density by a flow."""

    what: Literal["auto", "mean", "scale", "sample", "centre", "codes"] = "auto"
    """auto is the mean, the codes of a quantizer, or the base points of a density."""
    samples: int = 50
    """Draws behind a mean or a scale that has no closed form."""
    seed: int = 0
    """Seed of the draws, and of the noise of the preprocessing."""
    out: str | None = None
    """File of the latents, .npy, .csv, .tsv or .parquet; without it they are printed."""


def main(arguments: list[str]) -> int:
    options = parse(Embed, arguments)
    at_least_one("samples", options.samples)
    out = options.table_path(options.out)
    run = options.open()
    given = options.read(run)
    what = None if options.what == "auto" else options.what
    import numpy as np

    with options.progress("rows") as progress:
        conditions = options.conditions(given)
        z = np.asarray(run.embed(given.values, what, options.samples, options.seed, progress, conditions))
    flat = z.reshape(len(z), -1)
    options.write(out, {given.heading: given.names, **{f"z{i}": flat[:, i] for i in range(flat.shape[1])}}, z)
    if out:
        options.say(f"{out}: {len(z)} rows of {' x '.join(map(str, z.shape[1:]))} numbers")
    facts = {"what": options.what, "seed": options.seed, "shape": z.shape[1:]}
    options.answer_rows(out, {given.heading: given.names, "z": z}, **facts)
    return 0
