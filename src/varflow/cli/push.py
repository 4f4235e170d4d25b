"""Put a run on the Hugging Face hub, with its model card."""

from __future__ import annotations

import os
from dataclasses import dataclass

from varflow.cli.common import printer
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Push:
    """Settings, weights, preprocessing, metrics, estimates and the model card of a run, on the hub; never the state
    that a fit goes on from, never training data. Open it with varflow.load("hf://owner/name").
    """

    run: str
    """Folder of the run."""
    repository: str
    """owner/name, or owner/name/folder; made where there is none."""
    private: bool | None = None
    """Whether a new repository is private; without it as its owner's settings say, public unless changed."""
    revision: str | None = None
    """Branch, made where there is none; without it the repository's own."""
    message: str | None = None
    """Message of the commit."""
    figures: bool = False
    """Upload the figures too. They can show training examples."""
    training_rows: bool = False
    """Upload the scores and latents of training rows too, for ranks of anomalies and for neighbours."""
    quiet: bool = False
    """Print nothing but errors."""


def main(arguments: list[str]) -> int:
    options = parse(Push, arguments, "run", "repository")
    if options.quiet:
        # Before the hub's client is imported; it draws bars by itself.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from varflow.runs.hub import push

    found = push(
        options.run,
        options.repository,
        private=options.private,
        revision=options.revision,
        message=options.message,
        figures=options.figures,
        training_rows=options.training_rows,
    )
    printer(options.quiet)(found)
    return 0
