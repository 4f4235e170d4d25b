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

from latex2mathml.converter import convert as mathml

from website import links

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\\w$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])", re.S)
# "log w" and not "logw": the space behind a function's name, which the converter leaves out.
_NAMED = re.compile(
    r"(?<!<msub>)(?<!<msup>)(?<!<munder>)<mi>(log|exp|tanh|sin|cos)</mi>(?=<m(?:i|sub|sup|text)>)"
)
_SPACED = r'<mi>\1</mi><mspace width="0.17em"></mspace>'
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")


def convert(path: Path) -> tuple[str, dict[str, str]]:
    """The page, and the outputs that are HTML already by the marks that stand for them in the page."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    page: list[str] = [
        f'<p class="notebook"><a href="{path.name}" download>Download this notebook</a></p>'
    ]
    outputs: dict[str, str] = {}
    for cell in cells:
        source = _text(cell["source"])
        hidden = set(cell.get("metadata", {}).get("tags", ()))
        if cell["cell_type"] == "markdown":
            page.append(_formulas(_attached(source, cell.get("attachments", {})), outputs))
        elif cell["cell_type"] == "code":
            if source.strip() and "remove_input" not in hidden:
                page.append(f"```python\n{source.rstrip()}\n```")
            if "remove_output" not in hidden:
                page += [_output(output, outputs) for output in cell.get("outputs", ())]
    # The heading first, which is the title of the page.
    page[:2] = reversed(page[:2])
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


def _formulas(source: str, outputs: dict[str, str]) -> str:
    """LaTeX between dollars as MathML, which browsers set by themselves."""

    def set_(match: re.Match[str]) -> str:
        display, inline = match.groups()
        tag = "div" if display else "span"
        mark = f'<{tag} class="formula" data-output="{len(outputs)}"></{tag}>'
        formula = mathml((display or inline).strip(), display="block" if display else "inline")
        outputs[mark] = f'<{tag} class="formula">{_NAMED.sub(_SPACED, formula)}</{tag}>'
        return f"\n\n{mark}\n\n" if display else mark

    return "".join(
        part if code else _FORMULA.sub(set_, part) for code, part in links.parts(source, spans=True)
    )


def _printed(text: str) -> str:
    # What a terminal would show: a progress line is its last state.
    shown = "\n".join(line.rsplit("\r", 1)[-1] for line in _COLOURS.sub("", text).split("\n"))
    fence = "````" if "```" in shown else "```"
    return f"{fence}{{ .text .output }}\n{shown.rstrip()}\n{fence}" if shown.strip() else ""


def _attached(source: str, attachments: dict[str, dict[str, str]]) -> str:
    for name, kinds in attachments.items():
        ((kind, data),) = kinds.items()
        source = source.replace(f"attachment:{name}", f"data:{kind};base64,{data}")
    return source


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
