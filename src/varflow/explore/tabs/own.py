"""The tab of one's own rows and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from varflow.explore import drawing, examples
from varflow.explore.examples import Example
from varflow.explore.tabs.controls import CLICK, Shared, answering


def own_tab(shared: Shared) -> None:
    """An example of one's own, or of the data: reconstruction, score, neighbours."""
    opened = shared.opened
    with gr.Row(elem_classes="vf-columns"):
        with gr.Column(min_width=280):
            if opened.picture:
                upload: Any = gr.Image(
                    type="numpy", image_mode="RGB", sources=["upload", "clipboard"], label="A picture of yours",
                    height=190, elem_id=shared.id("upload"),
                )  # fmt: skip
                swap = gr.Checkbox(False, label="swap light and dark (for ink on paper)")
            else:
                typed = gr.Textbox(
                    lines=4, max_lines=12, label=f"Rows: {', '.join([*shared.names, *opened.columns])}",
                    info="As in a CSV file; an empty cell is a missing one.", elem_id=shared.id("typed"),
                )  # fmt: skip
                ask = gr.Button("Score these rows", variant="primary", elem_id=shared.id("score"))
                upload = gr.File(
                    label="or a file: .csv, .tsv, .parquet, .npy", type="filepath", height=160,
                    elem_id=shared.id("upload"), file_types=[".csv", ".tsv", ".txt", ".parquet", ".npy"],
                )  # fmt: skip
            with gr.Row():
                seed = gr.Number(
                    0, label="Seed or test row", precision=0, minimum=0, min_width=90, elem_id=shared.id("own-number")
                )
                drawing_button = gr.Button(
                    "Draw from the model", size="sm", min_width=110, elem_id=shared.id("own-draw")
                )
                row_button = gr.Button(
                    "Take the test row",
                    size="sm",
                    min_width=110,
                    visible=opened.dataset is not None,
                    elem_id=shared.id("own-row"),
                )
        with gr.Column(min_width=300):
            pair = gr.HTML(elem_id=shared.id("own-view"), elem_classes="vf-view")
            score = gr.HTML(elem_id=shared.id("own-score"))
    near = gr.HTML(elem_id=shared.id("own-near"))
    outputs = [pair, score, near, shared.mine]

    def whole(example: Example) -> tuple[Any, ...]:
        found = examples.answer(opened, example)
        table = (
            "" if len(example.x) == 1 else drawing.said("All rows:") + examples.scores_table(opened, example, found)
        )
        return (
            examples.shown(opened, example, found),
            examples.score_text(opened, found) + table,
            examples.near_text(opened, examples.neighbours(opened, example)),
            example,
        )

    def begin(found: Sequence[Any]) -> None:
        """What the page opens with."""
        pair.value, score.value, near.value, shared.mine.value = found

    if opened.picture:

        @answering(4)
        def uploaded(pixels: Any, swap: bool, *given: Any) -> Any:
            if pixels is None:
                return drawing.said("Nothing is given yet."), "", "", None
            found = examples.from_picture(opened, pixels, swap)
            return whole(found if not shared.names else Example(found.x, shared.given(given), found.note))

        for listen in (upload.change, swap.input):
            listen(uploaded, [upload, swap, *shared.conditions], outputs, **CLICK)

        @answering(4)
        def drew(seed: float, *given: Any) -> Any:
            return whole(examples.drawn(opened, int(seed or 0), shared.given(given)))

        @answering(4)
        def took(number: float) -> Any:
            return whole(examples.of_row(opened, int(number or 0)))

        drawing_button.click(drew, [seed, *shared.conditions], outputs, **CLICK)
        row_button.click(took, [seed], outputs, **CLICK)
        begin(took(0) if opened.dataset is not None else drew(0, *shared.start))
        return

    def text_of(example: Example) -> str:
        held = example.given if isinstance(example.given, dict) else None
        return opened.text(example.x[:20], held)

    @answering(4)
    def asked(text: str, *given: Any) -> Any:
        return whole(examples.from_text(opened, text, shared.given(given)))

    @answering(5)
    def drew_row(seed: float, *given: Any) -> Any:
        found = examples.drawn(opened, int(seed or 0), shared.given(given))
        return *whole(found), text_of(found)

    @answering(5)
    def took_row(number: float) -> Any:
        found = examples.of_row(opened, int(number or 0))
        return *whole(found), text_of(found)

    @answering(4)
    def read(path: str | None, *given: Any) -> Any:
        if path is None:
            return (gr.skip(),) * 4
        return whole(examples.from_file(opened, path, shared.given(given)))

    ask.click(asked, [typed, *shared.conditions], outputs, **CLICK)
    upload.upload(read, [upload, *shared.conditions], outputs, **CLICK)
    drawing_button.click(drew_row, [seed, *shared.conditions], [*outputs, typed], **CLICK)
    row_button.click(took_row, [seed], [*outputs, typed], **CLICK)
    *started, typed.value = took_row(0) if opened.dataset is not None else drew_row(0, *shared.start)
    begin(started)
