"""The tabs of the explorer's page: what can be touched, and which function answers. Needs Gradio."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from varflow.core.columns import NAMED
from varflow.core.errors import VarflowError
from varflow.explore import bending, drawing, draws, examples, latent, trajectories
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
_DRAGGED = """
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
_CLICKED = """
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


# -- latent space -------------------------------------------------------------------------------------


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
                flat = plane(shared, "plane", latent.marker(opened, start, first), _DRAGGED)
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
            flat = plane(shared, "two", latent.two_markers(opened, start, first), _CLICKED)
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


# -- the flow, trajectories ---------------------------------------------------------------------------


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


def _key(example: Example | None, *more: Any) -> Any:
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
        found: bending.Bending = kept.get(_key(example, which, *directions, *(given or {}).values()), make)
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

        found: tuple[Any, Any] = kept.get(_key(example, int(seed)), make)
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


# -- an example of one's own, draws -------------------------------------------------------------------


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


# -- several runs -------------------------------------------------------------------------------------


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
