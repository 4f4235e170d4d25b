"""A notebook with its outputs as a page of Markdown.

The text of a notebook goes through the same Markdown as every other page, so that its links are checked, its headings
are in the table of contents and its code looks as elsewhere. Nothing is executed.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")


def convert(path: Path) -> tuple[str, dict[str, str]]:
    """The page, and the outputs that are HTML already by the marks that stand for them in the page."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    page: list[str] = []
    outputs: dict[str, str] = {}
    for cell in cells:
        source = _text(cell["source"])
        hidden = set(cell.get("metadata", {}).get("tags", ()))
        if cell["cell_type"] == "markdown":
            page.append(_attached(source, cell.get("attachments", {})))
        elif cell["cell_type"] == "code":
            if source.strip() and "remove_input" not in hidden:
                page.append(f"```python\n{source.rstrip()}\n```")
            if "remove_output" not in hidden:
                page += [_output(output, outputs) for output in cell.get("outputs", ())]
    return "\n\n".join(part for part in page if part) + "\n", outputs


def _output(output: dict[str, Any], outputs: dict[str, str]) -> str:
    if output["output_type"] == "stream":
        return _printed(_text(output["text"]))
    if output["output_type"] == "error":
        return _printed("\n".join(output["traceback"]))
    data = output.get("data", {})
    for kind in ("text/html", "image/svg+xml"):
        if kind in data:
            return _placed(_text(data[kind]), outputs)
    for kind in _PICTURES:
        if kind in data:
            source = "".join(_text(data[kind]).split())
            words = html.escape(_text(data.get("text/plain", "")), quote=True)
            return _placed(f'<img src="data:{kind};base64,{source}" alt="{words}">', outputs)
    if "text/markdown" in data:
        return _text(data["text/markdown"])
    return _printed(_text(data.get("text/plain", "")))


def _placed(output: str, outputs: dict[str, str]) -> str:
    """A mark where the output belongs; the output itself must not go through Markdown."""
    mark = f'<div class="output" data-output="{len(outputs)}"></div>'
    outputs[mark] = f'<div class="output" data-output="{len(outputs)}">{output}</div>'
    return mark


def _printed(text: str) -> str:
    # What a terminal would show: a progress line is its last state.
    shown = "\n".join(line.rsplit("\r", 1)[-1] for line in _COLOURS.sub("", text).splitlines())
    fence = "````" if "```" in shown else "```"
    return f"{fence}{{ .text .output }}\n{shown.rstrip()}\n{fence}" if shown.strip() else ""


def _attached(source: str, attachments: dict[str, dict[str, str]]) -> str:
    for name, kinds in attachments.items():
        ((kind, data),) = kinds.items()
        source = source.replace(f"attachment:{name}", f"data:{kind};base64,{data}")
    return source


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
