"""Put a run on the Hugging Face hub, with its model card."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from varflow.cli.output import OutputOptions
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Push(OutputOptions):
    """Settings, weights, preprocessing, metrics, estimates and the model card of a run, on the hub; never the state
    that a fit goes on from, never training data. Open it with varflow.load("hf://owner/name").
    """

    words: ClassVar[tuple[str, ...]] = ("run", "repository")

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

def main(arguments: list[str]) -> int:
    options = parse(Push, arguments)
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
    options.say(found)
    options.answer(lambda: {"run": options.run, "address": found})
    return 0
