"""The tab of draws."""

from __future__ import annotations

from typing import Any

import gradio as gr

from varflow.explore import draws
from varflow.explore.tabs.controls import LIVE, Shared, answering


def draws_tab(shared: Shared) -> None:
    """Draws of p(x)."""
    opened = shared.opened
    many = (24 if max(opened.run.form.event_shape[-2:]) <= 40 else 12) if opened.picture else 10
    with gr.Row(elem_classes="vf-controls"):
        temperature = gr.Slider(
            0.1,
            2.0,
            value=1.0,
            step=0.05,
            label="Temperature",
            visible=opened.sampler,
            elem_id=shared.id("temperature"),
        )
        label = gr.Dropdown(
            [("any", -1), *((name, k) for k, name in enumerate(opened.classes))], value=-1, label="Class",
            visible=opened.sampler and bool(opened.classes), elem_id=shared.id("class"),
        )  # fmt: skip
        mean = gr.Checkbox(opened.picture, label="means, without the likelihood's noise", visible=not opened.density)
        seed = gr.Slider(0, 99, value=0, step=1, label="Seed", elem_id=shared.id("draws-seed"))
    seen = gr.HTML(elem_id=shared.id("draws-view"))

    @answering(1)
    def drew(temperature: float, label: int, mean: bool, seed: float, *given: Any) -> Any:
        kind = None if label < 0 else int(label)
        x, log_prob = draws.draws(
            opened, many, int(seed), bool(mean) and not opened.density, shared.given(given), temperature, kind
        )
        return draws.drawn(opened, x, log_prob)

    inputs = [temperature, label, mean, seed, *shared.conditions]
    for control in (temperature, label, mean, seed):
        control.input(drew, inputs, seen, **LIVE)
    for control in shared.conditions:
        control.change(drew, inputs, seen, **LIVE)
    seen.value = drew(1.0, -1, opened.picture, 0, *shared.start)
