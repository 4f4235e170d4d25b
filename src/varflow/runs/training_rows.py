"""What a run folder keeps of the training rows: what scores are ranked among, and neighbours looked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from varflow.runs.latent_space import write_embeddings
from varflow.runs.scores import few_are_scored, write_training_scores

if TYPE_CHECKING:
    from varflow.runs.run import Run

#: Of the time of a fit, what its training rows may take at the end.
_SHARE = 0.1


def keep(run: Run, folder: Path) -> None:
    """Score and embed training rows at the end of a fit, a second each, and less after a fit of seconds.

    Raises:
        NonFiniteError: they cannot be scored.
    """
    share = min(1.0, _SHARE * float(run.outcome["seconds"]))
    write_training_scores(run, folder, share)
    write_embeddings(run, folder, share)


def complete(run: Run, folder: Path) -> None:
    """Give the rows the whole second, where a short fit had less; for whoever has the data at hand anyway."""
    if few_are_scored(folder):
        write_training_scores(run, folder)
        write_embeddings(run, folder)
