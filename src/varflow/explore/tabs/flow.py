"""The tabs of what moves: the plane through the steps of a flow, and leapfrog trajectories."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import gradio as gr

from varflow.explore import bending, latent, trajectories
from varflow.explore.opened import Opened
from varflow.explore.tabs.controls import (
    CLICK,
    DRAW,
    LIVE,
    Kept,
    Shared,
    answering,
    key_of,
    picked,
    picker,
    two_directions,
)


def flow_tab(shared: Shared) -> None:
    """The plane before and after the flow, and between."""
    opened, kept = shared.opened, Kept()
    flow: Any = opened.gaussian.flow if "posterior" in opened.flows else opened.model.prior.flow
    steps = flow.count_steps()
    with gr.Row(elem_classes="vf-columns"):
        with gr.Column(min_width=260):
            which = gr.Radio(
                list(opened.flows), value=opened.flows[0], label="Flow of the", visible=len(opened.flows) > 1
            )
            step = gr.Slider(
                0, steps, value=steps, step=1, label="Steps of the flow", elem_id=shared.id("flow-step")
            )
            show = gr.CheckboxGroup(["grid", "draws"], value=["grid", "draws"], label="Show")
            chosen = two_directions(opened)
            by_example = (
                "posterior" in opened.flows
                and not opened.target
                and (flow.context_features > 0 or opened.latents is None)
            )
            if by_example:
                kind, number = picker(shared, "flow-example")
            else:
                kind, number = gr.State(DRAW), gr.State(0)
        with gr.Column(min_width=300):
            seen = gr.HTML(elem_id=shared.id("flow-view"), elem_classes="vf-view")

    def way(
        which: str, directions: Sequence[int], kind: str, number: float, mine: Any, given: Any
    ) -> bending.Bending:
        example = picked(shared, kind, number, mine, given) if by_example and which == "posterior" else None
        make = functools.partial(
            bending.bending, opened, which, None if example is None else example.x, tuple(directions),
            given if example is None else example.given,
        )  # fmt: skip
        found: bending.Bending = kept.get(key_of(example, which, *directions, *(given or {}).values()), make)
        return found

    @answering(1)
    def stepped(
        step: float,
        show: list[str],
        which: str,
        right: int,
        up: int,
        kind: str,
        number: float,
        mine: Any,
        *given: Any,
    ) -> Any:
        found = way(
            which, (right, up if up != right else _other(opened, right)), kind, number, mine, shared.given(given)
        )
        names = latent.legend(opened) if found.labels is not None and "draws" in show else ""
        return bending.drawn(found, int(step), lambda part: part in show) + names

    @answering(2, place=1)
    def other(step: float, show: list[str], which: str, *rest: Any) -> Any:
        part: Any = opened.gaussian.flow if which == "posterior" else opened.model.prior.flow
        right, up, kind, number, mine, *given = rest
        found = way(which, (right, up), kind, number, mine, shared.given(given))
        last = part.count_steps()
        return gr.Slider(0, last, value=last), bending.drawn(found, last, lambda name: name in show)

    inputs = [step, show, which, *chosen, kind, number, shared.mine, *shared.conditions]
    step.input(stepped, inputs, seen, **LIVE)
    which.input(other, inputs, [step, seen], **CLICK)
    for control in [show, *(c for c in [*chosen, kind, number] if not isinstance(c, gr.State))]:
        control.input(stepped, inputs, seen, **LIVE)
    for control in shared.conditions:
        control.change(stepped, inputs, seen, **LIVE)
    values: list[Any] = [
        steps,
        ["grid", "draws"],
        opened.flows[0],
        *(c.value for c in chosen),
        kind.value,
        0,
        None,
    ]
    seen.value = stepped(*values, *shared.start)


def _other(opened: Opened, direction: int) -> int:
    return next(k for k in opened.order if k != direction)


def trajectory_tab(shared: Shared) -> None:
    """Leapfrog trajectories of the posterior."""
    opened, kept = shared.opened, Kept()
    posterior: Any = opened.model.posterior
    # A flow of positions and momenta is one step more.
    count = posterior.steps + (posterior.flow is not None)
    with gr.Row(elem_classes="vf-columns"):
        with gr.Column(min_width=260):
            step = gr.Slider(0, count, value=count, step=1, label="Leapfrog steps", elem_id=shared.id("leapfrog"))
            seed = gr.Slider(0, 99, value=0, step=1, label="Seed of the momenta", elem_id=shared.id("momenta"))
            chosen = two_directions(opened)
            kind, number = (gr.State(DRAW), gr.State(0)) if opened.target else picker(shared, "trajectory-example")
        with gr.Column(min_width=300):
            seen = gr.HTML(elem_id=shared.id("trajectory-view"), elem_classes="vf-view")
    below = gr.HTML(elem_id=shared.id("trajectory-strip"))

    def path(seed: float, kind: str, number: float, mine: Any, given: Any) -> tuple[Any, Any]:
        example = None if opened.target else picked(shared, kind, number, mine, given)
        held = None if example is None else example.given

        def make() -> Any:
            found = trajectories.trajectories(opened, None if example is None else example.x, held, int(seed))
            return found, trajectories.along(opened, found, held)

        found: tuple[Any, Any] = kept.get(key_of(example, int(seed)), make)
        return found

    @answering(2)
    def stepped(
        step: float, seed: float, right: int, up: int, kind: str, number: float, mine: Any, *given: Any
    ) -> Any:
        found, strip = path(seed, kind, number, mine, shared.given(given))
        directions = (right, up if up != right else _other(opened, right))
        return trajectories.drawn(opened, found, directions, int(step)), strip

    inputs = [step, seed, *chosen, kind, number, shared.mine, *shared.conditions]
    for control in [step, seed, *(c for c in [*chosen, kind, number] if not isinstance(c, gr.State))]:
        control.input(stepped, inputs, [seen, below], **LIVE)
    start = stepped(count, 0, *(c.value for c in chosen), kind.value, 0, None, *shared.start)
    seen.value, below.value = start if isinstance(start[1], str) else (start[0], "")
