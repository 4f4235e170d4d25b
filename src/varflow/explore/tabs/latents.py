"""The tabs of latent space: a point under the hand, and the way between two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from varflow.explore import drawing, latent
from varflow.explore.opened import Opened
from varflow.explore.tabs.controls import (
    CLICK,
    CLICKED,
    DRAGGED,
    LIVE,
    Shared,
    answering,
    background,
    backs,
    direction_controls,
    picked,
    picker,
    plane,
    slider,
)


def latent_tab(shared: Shared) -> None:
    """A point of latent space under the hand, and what it decodes to."""
    opened = shared.opened
    first = latent.start(opened)
    start = (opened.order[:2] if opened.features > 2 else [0, 1])[: opened.features]
    several = opened.features > 1
    # The picture stands beside the hand, and above the sliders where the screen is narrow.
    with gr.Row(elem_classes="vf-columns"):
        if several:
            kinds = backs(opened)
            with gr.Column(min_width=300):
                flat = plane(shared, "plane", latent.marker(opened, start, first), DRAGGED)
                behind = background(opened, kinds[0], start, first, None, shared.id("vf-back"))
                style = gr.HTML(behind, elem_classes="vf-style")
        with gr.Column(min_width=280):
            seen = gr.HTML(latent.view(opened, first), elem_id=shared.id("latent-view"), elem_classes="vf-view")
    with gr.Row(elem_classes="vf-columns"):
        with gr.Column(min_width=300):
            controls = [
                slider(opened, k, first[k], elem_id=shared.id(f"latent-{place}")) for place, k in enumerate(start)
            ]
        with gr.Column(min_width=280):
            chosen: list[Any] = [gr.State(k) for k in start]
            if opened.features > 2:
                chosen = direction_controls(opened, start)
            if several:
                back = gr.Radio(kinds, value=kinds[0], label="Behind the plane", visible=len(kinds) > 1)
            with gr.Accordion("Start from an example", open=False):
                kind, number = picker(shared, "latent-example")
                go = gr.Button("Go to its place", size="sm", elem_id=shared.id("latent-go"))
    size = len(start)

    @answering(3 if several else 2)
    def slid(*values: Any) -> Any:
        to, directions, point, given = (
            values[:size],
            values[size : 2 * size],
            values[2 * size],
            values[2 * size + 1 :],
        )
        point = latent.moved(point, directions, to)
        found = latent.view(opened, point, shared.given(given))
        return (found, latent.marker(opened, directions, point), point) if several else (found, point)

    inputs = [*controls, *chosen, shared.point, *shared.conditions]
    for control in controls:
        control.input(slid, inputs, [seen, *([flat] if several else []), shared.point], **LIVE)

    def again(*values: Any) -> Any:
        return latent.view(opened, values[0], shared.given(values[1:]))

    for control in shared.conditions:
        control.change(answering(1)(again), [shared.point, *shared.conditions], seen, **LIVE)

    def placed(point: list[float], directions: Sequence[int], given: Any, kind: str) -> list[Any]:
        """Everything that follows from a new point or new directions."""
        found: list[Any] = [latent.view(opened, point, given), point]
        found += [slider(opened, k, float(f"{point[k]:.4g}")) for k in directions]
        if several:
            found.append(background(opened, kind, directions, point, given, shared.id("vf-back")))
            found.append(latent.marker(opened, directions, point))
        return found

    outputs = [seen, shared.point, *controls, *([style, flat] if several else [])]

    @answering(len(outputs))
    def gone(kind: str, number: float, mine: Any, back_kind: str, *rest: Any) -> Any:
        directions, given = rest[:size], shared.given(rest[size:])
        example = picked(shared, kind, number, mine, given)
        return placed(latent.at_example(opened, example.x, example.given), directions, given, back_kind)

    back_value = back if several else gr.State("")
    go.click(gone, [kind, number, shared.mine, back_value, *chosen, *shared.conditions], outputs, **CLICK)
    if not several:
        return

    @answering(2 + size)
    def dragged(event: gr.EventData, *values: Any) -> Any:
        directions, point, given = values[:2], values[2], shared.given(values[3:])
        point = latent.moved(point, directions, latent_place(opened, directions, event))
        return latent.view(opened, point, given), point, *(float(f"{point[k]:.4g}") for k in directions)

    _with_event(
        flat.input, dragged, [*chosen, shared.point, *shared.conditions], [seen, shared.point, *controls], LIVE
    )

    @answering(2, place=1)
    def changed(kind: str, *values: Any) -> Any:
        given = shared.given(values[3:])
        return background(opened, kind, values[:2], values[2], given, shared.id("vf-back")), gr.skip()

    back.change(changed, [back, *chosen, shared.point, *shared.conditions], [style, seen], **CLICK)
    if opened.features > 2:

        @answering(len(outputs) + 2)
        def turned(kind: str, right: int, up: int, point: list[float], *given: Any) -> Any:
            if right == up:
                up = next(k for k in opened.order if k != right)
            return [*placed(point, (right, up), shared.given(given), kind), right, up]

        for choice in chosen:
            choice.input(turned, [back, *chosen, shared.point, *shared.conditions], [*outputs, *chosen], **CLICK)
    shared.chosen = chosen


def latent_place(opened: Opened, directions: Sequence[int], event: Any) -> tuple[float, float]:
    """Where in latent space a place of the plane is."""
    return _place(opened, directions, float(event._data["x"]), float(event._data["y"]))


def _place(opened: Opened, directions: Sequence[int], x: float, y: float) -> tuple[float, float]:
    """The same of a place given as shares of the plane, from its upper left corner."""
    x0, x1, y0, y1 = latent.frame(opened, directions)
    return x0 + (x1 - x0) * x, y1 - (y1 - y0) * y


def _with_event(listen: Any, handler: Callable[..., Any], inputs: Any, outputs: Any, options: dict[str, Any]) -> None:
    """Gradio gives an event to a function whose first argument has that type, which a wrapped one no longer says."""

    def received(event: gr.EventData, *values: Any) -> Any:
        return handler(event, *values)

    listen(received, inputs, outputs, **options)


def between_tab(shared: Shared) -> None:
    """Two clicks, and what lies between them."""
    opened = shared.opened
    chosen = shared.chosen
    start = [choice.value for choice in chosen]
    first = [
        latent.moved(latent.start(opened), start, _place(opened, start, *spot)) for spot in ((0.2, 0.8), (0.8, 0.2))
    ]
    with gr.Row(elem_classes="vf-columns"):
        with gr.Column(min_width=300):
            gr.HTML(drawing.said("Click two points: A, then B. The next click is A again."))
            flat = plane(shared, "two", latent.two_markers(opened, start, first), CLICKED)
        with gr.Column(min_width=280):
            ways = list(latent.ways(opened))
            way = gr.Radio(ways, value=ways[-1] if "base" in ways else ways[0], label="Way")
            steps = gr.Slider(3, 17, value=9, step=1, label="Points on the way", elem_id=shared.id("between-steps"))
            seen = gr.HTML(elem_id=shared.id("between-view"), elem_classes="vf-view")
    ends = gr.State(first)

    def strip(ends: list[Any], way: str, steps: float, given: Any) -> str:
        if len(ends) < 2:
            return drawing.said("A is set; click where B is to be.")
        return latent.way_between(opened, ends[0], ends[1], int(steps), way, given)

    @answering(3)
    def clicked(event: Any, ends: list[Any], way: str, steps: float, point: list[float], *rest: Any) -> Any:
        directions, given = rest[:2], shared.given(rest[2:])
        ends = [] if len(ends) == 2 else list(ends)
        ends.append(latent.moved(point, directions, latent_place(opened, directions, event)))
        return strip(ends, way, steps, given), latent.two_markers(opened, directions, ends), ends

    _with_event(
        flat.input, clicked, [ends, way, steps, shared.point, *chosen, *shared.conditions], [seen, flat, ends],
        {"queue": False, "show_progress": "hidden", "api_visibility": "private"},
    )  # fmt: skip

    @answering(1)
    def again(ends: list[Any], way: str, steps: float, *given: Any) -> Any:
        return strip(ends, way, steps, shared.given(given))

    for control in (way, steps):
        control.input(again, [ends, way, steps, *shared.conditions], seen, **LIVE)
    for control in shared.conditions:
        control.change(again, [ends, way, steps, *shared.conditions], seen, **LIVE)
    seen.value = again(first, way.value, 9, *shared.start)
