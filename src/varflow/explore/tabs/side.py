"""The tab that sets two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from varflow.explore import drawing, draws, examples
from varflow.explore.examples import Example
from varflow.explore.opened import Opened
from varflow.explore.tabs.controls import CLICK, DRAW, LIVE, ROW, answering


def alike(runs: Sequence[Opened]) -> list[Opened]:
    """The runs whose x are of one kind, so that they can be set side by side; those like the first."""
    first = next((run for run in runs if run.answers and run.run.conditions is None), None)
    if first is None:
        return []
    form = first.run.form
    return [
        run for run in runs
        if run.answers and run.run.conditions is None and run.run.form.event_shape == form.event_shape
        and run.picture == first.picture and run.columns == first.columns
    ]  # fmt: skip


def side_tab(runs: Sequence[Opened]) -> None:
    """Two runs, one example and one seed."""
    names = [f"{k + 1}. {run.name}" for k, run in enumerate(runs)]
    with gr.Row(elem_classes="vf-controls"):
        left, right = (
            gr.Dropdown([(name, k) for k, name in enumerate(names)], value=k, label=label, min_width=140)
            for k, label in enumerate(("Left", "Right"))
        )
        kinds = [DRAW + " on the left", *([ROW] if runs[0].dataset is not None else [])]
        kind = gr.Radio(kinds, value=kinds[-1], label="Example")
        number = gr.Slider(
            0, 199, value=0, step=1, label="Its number, and the seed of the draws", elem_id="side-number"
        )
    if runs[0].picture:
        upload = gr.Image(
            type="numpy",
            image_mode="RGB",
            sources=["upload", "clipboard"],
            label="or a picture of yours",
            height=150,
            elem_id="side-upload",
        )
    told = gr.HTML(elem_id="side-told")
    with gr.Row(elem_classes="vf-columns"):
        with gr.Column(min_width=280):
            one = gr.HTML(elem_id="side-left", elem_classes="vf-view")
        with gr.Column(min_width=280):
            two = gr.HTML(elem_id="side-right", elem_classes="vf-view")

    def half(opened: Opened, example: Example, number: int) -> tuple[str, Any]:
        found = examples.answer(opened, example)
        x, log_prob = draws.draws(
            opened, 12 if opened.picture else 6, number, mean=opened.picture and not opened.density
        )
        parts = [
            f"<h3>{drawing.html.escape(opened.name)}</h3>", drawing.said(opened.about() + "."),
            examples.shown(opened, example, found), examples.score_text(opened, found),
            drawing.said(f"Draws of p(x), seed {number}:"), draws.drawn(opened, x, log_prob),
        ]  # fmt: skip
        return "".join(parts), found

    @answering(3, place=2)
    def both(left: int, right: int, kind: str, number: float, *pixels: Any) -> Any:
        a, b = runs[left], runs[right]
        if pixels and pixels[0] is not None:
            example = examples.from_picture(a, pixels[0])
        else:
            example = examples.of_row(a, int(number)) if kind == ROW else examples.drawn(a, int(number))
        # The other run may store levels in another form.
        theirs = example if kept_alike(a, b) else Example(examples.translated(a, b, example.x), None)
        (text, first), (other, second) = half(a, example, int(number)), half(b, theirs, int(number))
        return text, other, drawing.said(examples.difference(first, second))

    inputs = [left, right, kind, number, *([upload] if runs[0].picture else [])]
    for control in (left, right, kind, number):
        control.input(both, inputs, [one, two, told], **LIVE)
    if runs[0].picture:
        upload.change(both, inputs, [one, two, told], **CLICK)
    one.value, two.value, told.value = both(0, 1, kinds[-1], 0)


def kept_alike(a: Opened, b: Opened) -> bool:
    """Whether both runs store an example as the same numbers."""
    return (
        a.run.preprocessing is not None
        and b.run.preprocessing is not None
        and (a.run.preprocessing.source_levels == b.run.preprocessing.source_levels)
    )
