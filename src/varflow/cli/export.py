"""Write a model as ONNX or torch.export graphs, for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from varflow.cli.common import RunOptions
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Export(RunOptions):
    """Encoder and decoder, or density and sampler, with the preprocessing inside, and export.json beside them."""

    format: Literal["onnx", "torch"] = "onnx"
    """onnx, or torch for .pt2 files of torch.export."""
    out: str | None = None
    """Folder of the graphs; without it the folder "export" of the run."""


def main(arguments: list[str]) -> int:
    from pathlib import Path

    options = parse(Export, arguments)
    folder = Path(options.run) / "export" if options.out is None else Path(options.out)
    about = options.open().export(folder, options.format)
    for graph in about["graphs"].values():
        given, found = (", ".join(port["name"] for port in graph[side]) for side in ("inputs", "outputs"))
        options.say(f"{folder / graph['file']}: {given} -> {found}")
    for sentence in about["left_out"].values():
        options.say(f"left out: {sentence}")
    options.answer(lambda: {**about, "run": options.run, "folder": folder})
    return 0
