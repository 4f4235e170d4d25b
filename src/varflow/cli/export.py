"""Write a model as programs that run without varflow: ONNX, or files of torch.export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from varflow.cli.common import RunOptions
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Export(RunOptions):
    """Encoder, decoder and, of a density, log p(x): raw x in, raw x out, for any number of rows.

    programs.json says what each takes and gives.
    """

    format: Literal["onnx", "torch"] = "onnx"
    """onnx, or torch: files of torch.export."""
    out: str = "exported"
    """Folder of the programs."""


def main(arguments: list[str]) -> int:
    options = parse(Export, arguments, "run")
    run = options.open()
    for path in run.export(options.out, options.format):
        options.say(path)
    return 0
