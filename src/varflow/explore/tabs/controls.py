"""What the tabs of the explorer share: how a handler answers, the state of a run, and its controls."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from varflow.core.columns import NAMED
from varflow.core.errors import VarflowError
from varflow.explore import drawing, examples, latent
from varflow.explore.examples import Example
from varflow.explore.opened import Opened

#: One answer at a time: the random numbers of varflow belong to the process, and models are small.
_ONE = threading.Lock()
#: A handler that runs while something is dragged: the newest place is answered last, and nothing blinks.
LIVE: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}
CLICK: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}

DRAW, ROW, MINE = "a draw of the model", "a test row", "your own"

_PLANE = '<div class="vf-plane {kind}" tabindex="0"><svg viewBox="0 0 100 100">${{value}}</svg></div>'
DRAGGED = """
const send = (event, kind) => {
  const box = element.querySelector('.vf-plane').getBoundingClientRect();
  const within = (value) => Math.min(Math.max(value, 0), 1);
  const x = within((event.clientX - box.left) / box.width), y = within((event.clientY - box.top) / box.height);
  const hand = element.querySelector('.vf-hand');
  if (hand) { hand.setAttribute('cx', 100 * x); hand.setAttribute('cy', 100 * y); }
  trigger(kind, {x: x, y: y});
};
let held = false;
element.addEventListener('pointerdown', (event) => {
  held = true; element.setPointerCapture(event.pointerId); event.preventDefault(); send(event, 'input');
});
element.addEventListener('pointermove', (event) => { if (held) send(event, 'input'); });
for (const end of ['pointerup', 'pointercancel']) element.addEventListener(end, () => { held = false; });
"""
CLICKED = """
element.addEventListener('pointerdown', (event) => {
  const box = element.querySelector('.vf-plane').getBoundingClientRect();
  event.preventDefault();
  trigger('input', {x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height});
});
"""


def answering(outputs: int, place: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run one handler at a time; what a user can mend becomes a sentence in output ``place``, the others stay."""

    def around(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        def answered(*given: Any) -> Any:
            try:
                with _ONE:
                    return handler(*given)
            except VarflowError as error:
                told = drawing.trouble(str(error))
                return told if outputs == 1 else tuple(told if k == place else gr.skip() for k in range(outputs))

        return answered

    return around


class Shared:
    """What the tabs of one run have in common.

    Attributes:
        opened: the run.
        number: which run of the page it is; part of names in the page.
        conditions: a control for each condition; none where the run has none.
        mine: the example of the tab of one's own.
        point: where all latents stand.
        chosen: which two of them are moved.
    """

    def __init__(self, opened: Opened, number: int) -> None:
        self.opened, self.number = opened, number
        self.names = [] if opened.run.conditions is None else list(opened.run.conditions.names)
        self.conditions: list[Any] = []
        self.chosen: list[Any] = []
        self.mine = gr.State(None)
        self.point = gr.State(latent.start(opened) if opened.features else [])

    def given(self, values: Sequence[Any]) -> dict[str, Any] | None:
        """name → value of the controls of the conditions."""
        return dict(zip(self.names, values, strict=True)) if self.names else None

    @property
    def start(self) -> list[Any]:
        """The values that the conditions start at."""
        return [self.opened.conditions[name] for name in self.names]

    def id(self, name: str) -> str:
        return f"{name}-{self.number}"


def condition_controls(shared: Shared) -> None:
    """A control for each column that the run is conditioned on; all tabs follow them."""
    found = shared.opened.run.conditions
    if found is None:
        return
    start = shared.opened.conditions
    with gr.Row(elem_classes="vf-given"):
        for column in found.columns:
            name, label = column.name, f"given {column.name}"
            if column.kind in NAMED:
                control: Any = gr.Dropdown(list(column.categories), value=start[name], label=label, min_width=140)
            elif column.kind == "date":
                control = gr.Textbox(str(start[name]), label=label, min_width=140)
            else:
                control = gr.Number(start[name], label=label, min_width=140)
            shared.conditions.append(control)


def picker(shared: Shared, name: str) -> tuple[Any, Any]:
    """Which example: its kind, and its number."""
    opened = shared.opened
    kinds = [DRAW, *([ROW] if opened.dataset is not None else []), *([MINE] if opened.answers else [])]
    most = 199 if opened.dataset is None else max(min(opened.dataset.sizes["test"] - 1, 999), 1)
    with gr.Row(elem_classes="vf-picker"):
        kind = gr.Radio(kinds, value=kinds[min(1, len(kinds) - 1)] if ROW in kinds else DRAW, label="Example")
        number = gr.Slider(0, most, value=0, step=1, label="Its number", elem_id=shared.id(name))
    return kind, number


def picked(shared: Shared, kind: str, number: float, mine: Example | None, given: Any) -> Example:
    """The example that a picker stands at."""
    if kind == ROW:
        return examples.of_row(shared.opened, int(number))
    if kind == MINE and mine is not None:
        return mine.one(0)
    return examples.drawn(shared.opened, int(number), given)




def background(
    opened: Opened, kind: str, directions: Sequence[int], point: Sequence[float], given: Any, name: str
) -> str:
    """What lies behind the planes of a run, as a style of the page."""
    if kind == "decoded pictures":
        picture = drawing.address(latent.decoded_plane(opened, directions, point, given))
        below = ""
    else:
        inner = latent.points_plane(opened, directions).replace("currentColor", "#777777")
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.SIDE} {drawing.SIDE}">{inner}</svg>'
        picture = "data:image/svg+xml;base64," + drawing.base64.b64encode(svg.encode()).decode()
        below = latent.legend(opened)
    return f'<style>.{name} {{ background-image: url("{picture}"); }}</style>{below}'


def plane(shared: Shared, name: str, value: str, script: str) -> Any:
    """A plane that is dragged or clicked."""
    template = _PLANE.format(kind=shared.id("vf-back"))
    return gr.HTML(
        value, html_template=template, js_on_load=script, elem_id=shared.id(name), elem_classes="vf-holder"
    )


def backs(opened: Opened) -> list[str]:
    points = "training rows" if opened.latents is not None and not opened.density else "the prior"
    return ["decoded pictures", points] if opened.picture else [points]


def direction_names(opened: Opened) -> list[tuple[str, int]]:
    """The latents to choose from, the most varied first."""
    spread = opened.typical.std(0).tolist()
    return [(f"{symbol(opened)}{k + 1} (σ {spread[k]:.2f})", k) for k in opened.order]


def symbol(opened: Opened) -> str:
    """What is moved: latents z, or points e of the base of a density."""
    return "e" if opened.density else "z"


def slider(opened: Opened, direction: int, value: float, **options: Any) -> Any:
    low, high = opened.window[direction].tolist()
    low, high = min(low, value), max(high, value)
    step = float(f"{(high - low) / 400:.1g}")
    name = f"{symbol(opened)}{direction + 1}"
    return gr.Slider(round(low, 3), round(high, 3), value=value, step=step, label=name, **options)


class Kept:
    """The last few things that were computed for a run, so that a slider has nothing to compute."""

    def __init__(self, most: int = 8) -> None:
        self.held: dict[Any, Any] = {}
        self.most = most

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.held:
            if len(self.held) >= self.most:
                del self.held[next(iter(self.held))]
            self.held[key] = make()
        return self.held[key]


def key_of(example: Example | None, *more: Any) -> Any:
    if example is None:
        return more
    given = example.given
    told = (
        tuple(sorted(given.items()))
        if isinstance(given, dict)
        else None
        if given is None
        else tuple(given.flatten().tolist())
    )
    return (example.x.numpy().tobytes(), told, *more)


def two_directions(opened: Opened) -> list[Any]:
    """Which two latents are shown, where there are more."""
    start = opened.order[:2] if opened.features > 2 else [0, 1]
    return [gr.State(k) for k in start] if opened.features == 2 else direction_controls(opened, start)


def direction_controls(opened: Opened, start: Sequence[int]) -> list[Any]:
    """A choice of the latent to the right, and of the one upwards."""
    with gr.Row():
        return [
            gr.Dropdown(direction_names(opened), value=k, label=label, min_width=120)
            for label, k in zip(("To the right", "Upwards"), start, strict=True)
        ]
