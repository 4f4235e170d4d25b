"""What a flow does to the plane, step by step: a grid and draws of the base, and where its K steps take them.

For more than two latents the grid lies in two coordinates of the base, the others at its mean, and its image is shown
in the same two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core import random
from varflow.core.errors import SpecError
from varflow.explore import drawing
from varflow.explore.opened import Given, Opened
from varflow.figures.targets import density_on_grid
from varflow.flows.flow import Flow, Local
from varflow.priors.flow import Flow as FlowPrior
from varflow.runs.rows import pieces

#: Grid lines each way, points on each; draws.
_LINES, _ALONG, _DRAWS = 19, 65, 600


@dataclass(frozen=True)
class Bending:
    """The way from the base of a flow to its target.

    Attributes:
        lines: the grid after 0 … K steps, in two coordinates ``[K + 1, lines, points, 2]``.
        ladj: log|det| up to each step at the same points, nats ``[K + 1, lines, points]``.
        draws: draws of the base after each step ``[K + 1, N, 2]``.
        labels: of the draws ``[N]``, where they belong to training rows that have some; else None.
        centre: where the middle of the base is after each step ``[K + 1, 2]``.
        directions: the two coordinates.
        told: what it shows, in a sentence.
        standard: whether N(0, I) is what it ends near, so that its circles mean something.
        behind: a density to end near ``[H, W]`` with rows from above, and the window it covers; else None.
        follows: whether each step is drawn around its centre.
    """

    lines: Float[np.ndarray, "states lines points 2"]
    ladj: Float[np.ndarray, "states lines points"]
    draws: Float[np.ndarray, "states draws 2"]
    labels: np.ndarray[Any, Any] | None
    centre: Float[np.ndarray, "states 2"]
    directions: tuple[int, int]
    told: str
    standard: bool = False
    behind: tuple[np.ndarray[Any, Any], drawing.Frame] | None = None
    follows: bool = False

    @property
    def steps(self) -> int:
        """K."""
        return len(self.lines) - 1


@torch.no_grad()
def bending(
    opened: Opened,
    which: str,
    x: Tensor | None = None,
    directions: Sequence[int] = (0, 1),
    given: Given = None,
) -> Bending:
    """The way of the flow of the posterior, q₀(z₀|x) → q(z|x), or of the prior, base → p(z).

    Args:
        which: "posterior" or "prior", one of ``opened.flows``.
        x: the example of an amortized flow, stored values ``[1, *event]``.
        directions: two latents.
        given: what it is conditioned on.

    Raises:
        SpecError: there is no such flow, or an amortized one without an example.
    """
    if which not in opened.flows:
        raise SpecError(f"which: was '{which}'; this model has {', '.join(opened.flows) or 'no flow of two or more'}")
    i, j = directions
    if which == "prior":
        return _of_prior(opened, (i, j), given)
    if opened.target:
        return _of_target(opened, (i, j))
    flow = opened.gaussian.flow
    if not flow.context_features and opened.latents is not None:
        return _of_training_rows(opened, flow, (i, j))
    if x is None:
        raise SpecError("x: missing; this flow depends on x, give an example")
    (_, piece), *_ = pieces(opened.run, x, 0, equal_noise=True, given_for=given)
    q = opened.gaussian(piece.batch("test", torch.zeros(1, dtype=torch.int64)).seen)
    base, scale = q.mean[0], q.log_scale[0].exp()
    with random.stream(0):
        noise = random.normal((_DRAWS, len(base)), "base", dtype=base.dtype, device=base.device)
    grid = _grid(base, 3 * scale, (i, j))
    states = _states(flow, q.flow_local, torch.cat([grid, base + scale * noise, base[None]]), one=True)
    amortized = bool(flow.context_features)
    told = (
        "μ(x) ± 3 σ(x) of q₀(z₀|x) and draws of it, under the flow of this x. Each step is drawn around the image of "
        "μ(x)."
        if amortized
        else "μ(x) ± 3 σ(x) of q₀(z₀|x) and draws of it, under the flow that all x share."
    )
    return _made(states, (i, j), told, opened.model.prior.standard, follows=amortized)


def _of_training_rows(opened: Opened, flow: Flow, directions: tuple[int, int]) -> Bending:
    """A flow that all x share, between the means of q₀(z₀|x) of training rows and their images."""
    assert opened.latents is not None
    after = opened.latents.points.to(opened.home.device, opened.home.dtype)[:_DRAWS]
    before = flow.pull(after)[0]
    low, high = (torch.quantile(before, p, dim=0) for p in (0.005, 0.995))
    middle = (low + high) / 2
    grid = _grid(middle, (high - low) / 2, directions)
    states = _states(flow, (), torch.cat([grid, before, middle[None]]))
    labels = opened.latents.labels
    told = (
        f"The central 99 % of the means of q₀(z₀|x) of {len(before)} training rows, and the rows themselves, under "
        "the flow that all x share."
    )
    made = _made(states, directions, told, opened.model.prior.standard)
    return replace(made, labels=None if labels is None else labels[: len(before)].numpy())


def _of_prior(opened: Opened, directions: tuple[int, int], given: Given) -> Bending:
    prior = opened.model.prior
    assert isinstance(prior, FlowPrior)
    context = opened.context(given, 1) if prior.reads else None
    with random.stream(0):
        e = prior.draw_base((_DRAWS,), context)
    if prior.base.standard:
        middle, half = torch.zeros_like(e[0]), torch.full_like(e[0], 3.0)
    else:
        low, high = (torch.quantile(e, p, dim=0) for p in (0.005, 0.995))
        middle, half = (low + high) / 2, (high - low) / 2
    local = prior.flow.condition(context)
    points = torch.cat([_grid(middle, half, directions), e, middle[None]])
    if prior.inverted:
        # z = f⁻¹(e): the way from e to z is that from z to e backwards.
        end, whole = prior.flow.pull(_spread(points, local), local)
        states, ladj = _walk(prior.flow, local, end)
        found = states.flip(0), whole + ladj.flip(0)
        found = found[0].reshape(len(states), -1, prior.flow.features), found[1].reshape(len(states), -1)
    else:
        found = _states(prior.flow, local, points, one=bool(local))
    what = "x, as the model sees it," if opened.density else "z"
    base = "N(0, I)" if prior.base.standard else "the Gaussians that it starts from"
    told = f"The base of the flow prior, {base}, and where its steps take it: p of {what} at the end."
    if given is not None and prior.reads:
        told += " Under the conditions that are chosen."
    return _made(found, directions, told)


def _of_target(opened: Opened, directions: tuple[int, int]) -> Bending:
    """q(z) of a fit to a target, which stands behind it where it lies in the plane."""
    q = opened.gaussian()
    scale = q.log_scale.exp()
    with random.stream(0):
        noise = random.normal((_DRAWS, len(scale)), "base", dtype=scale.dtype, device=scale.device)
    grid = _grid(q.mean, 3 * scale, directions)
    points = torch.cat([grid, q.mean + scale * noise, q.mean[None]])
    states = _states(opened.gaussian.flow, q.flow_local, points)
    made = _made(states, directions, "The base of q(z) ± 3 σ and draws of it, and where the flow takes them.")
    target: Any = opened.model.prior
    if opened.model.likelihood is not None or target.event_shape != (2,):
        return made
    window = target.window or drawing_frame(made.draws[-1])
    values = density_on_grid(target.log_prob, window, 96, opened.home)
    told = made.told + f" Behind it the target, {type(target).__name__}: dark where its density is high."
    return replace(made, behind=(values[::-1], window), told=told)


def drawing_frame(points: np.ndarray[Any, Any]) -> drawing.Frame:
    """A frame for the central 99 % of points ``[N, 2]``, with a margin."""
    low, high = np.quantile(points, [0.005, 0.995], axis=0)
    margin = 0.1 * (high - low) + 1e-6
    (x0, y0), (x1, y1) = (low - margin).tolist(), (high + margin).tolist()
    return x0, x1, y0, y1


def _grid(middle: Tensor, half: Tensor, directions: tuple[int, int]) -> Tensor:
    """Lines both ways in two coordinates around ``middle``, as points ``[2 · lines · points, D]``."""
    at, along = np.linspace(-1, 1, _LINES), np.linspace(-1, 1, _ALONG)
    upright = np.stack(np.broadcast_arrays(at[:, None], along[None, :]), -1)
    both = torch.from_numpy(np.concatenate([upright, upright[..., ::-1]]).reshape(-1, 2)).to(middle)
    points = middle.repeat(len(both), 1)
    for place, k in enumerate(directions):
        points[:, k] += half[k] * both[:, place]
    return points


def _spread(points: Tensor, local: Local) -> Tensor:
    """Points as a sample each of the one example that ``local`` belongs to."""
    return points[:, None] if local else points


def _states(flow: Flow, local: Local, points: Tensor, one: bool = False) -> tuple[Tensor, Tensor]:
    """(points after 0 … K steps ``[K + 1, N, D]``, log|det| up to there ``[K + 1, N]``)."""
    states, ladj = _walk(flow, local, points[:, None] if one else points)
    return states.reshape(len(states), len(points), -1), ladj.reshape(len(states), len(points))


def _walk(flow: Flow, local: Local, points: Tensor) -> tuple[Tensor, Tensor]:
    states, total = [points], [points.new_zeros(points.shape[:-1])]
    for steps in range(1, flow.count_steps() + 1):
        part, own = flow.first(steps, local)
        z, ladj = part.push(points, own)
        states.append(z)
        total.append(ladj.expand(points.shape[:-1]))
    return torch.stack(states), torch.stack(total)


def _made(
    states: tuple[Tensor, Tensor],
    directions: tuple[int, int],
    told: str,
    standard: bool = False,
    follows: bool = False,
) -> Bending:
    points, ladj = (tensor.double().cpu().numpy() for tensor in states)
    flat = points[..., list(directions)]
    count = 2 * _LINES * _ALONG
    lines = flat[:, :count].reshape(len(flat), 2 * _LINES, _ALONG, 2)
    volumes = ladj[:, :count].reshape(len(flat), 2 * _LINES, _ALONG)
    return Bending(
        lines, volumes, flat[:, count:-1], None, flat[:, -1], directions, told,
        standard and points.shape[-1] == 2, None, follows,
    )  # fmt: skip


def drawn(bent: Bending, step: int, show: Callable[[str], bool] = lambda part: True) -> str:
    """The plane after ``step`` of the K steps, as SVG with a sentence; the frame is the same for all steps.

    Args:
        show: which of "grid" and "draws" are drawn.
    """
    step = min(max(int(step), 0), bent.steps)
    shift = bent.centre[:, None] if bent.follows else np.zeros((len(bent.centre), 1, 2))
    grid = bent.lines - shift[:, :, None]
    draws = bent.draws - shift
    frame = _frame(bent, grid, draws)
    i, j = bent.directions
    minus = " − f(μ)" if bent.follows else ""
    plot = drawing.Plot(frame, f"dimension {i + 1}{minus}", f"dimension {j + 1}{minus}")
    if bent.behind is not None:
        values, window = bent.behind
        plot.image(drawing.dark(values), window)
    if bent.standard and not bent.follows:
        plot.circles((1, 2, 3))
    if show("grid"):
        _coloured(plot, grid[step], bent.ladj[step])
    if show("draws"):
        if bent.labels is None:
            plot.dots(draws[step], "currentColor" if bent.behind is None else "#00796B", 3.0, 0.55)
        else:
            classes = np.unique(bent.labels)
            for number, colour in zip(classes, drawing.colours(len(classes)), strict=True):
                plot.dots(draws[step][bent.labels == number], colour, 4.0, 0.85)
    words = f"After step {step} of {bent.steps}." if step else f"The base, before the {bent.steps} steps."
    if bent.follows:
        x, y = bent.centre[step].tolist()
        words += f" μ(x) is at ({x:.2f}, {y:.2f})."
    low, high = np.quantile(bent.ladj[step], [0.02, 0.98])
    if high - low > 1e-6 or abs(high) > 1e-6:
        words += f" log|det| so far: {low:.2f} to {high:.2f} nats; blue where density grew, orange where it fell."
    return plot.text() + drawing.said(f"{words} {bent.told}")


def _frame(bent: Bending, grid: np.ndarray[Any, Any], draws: np.ndarray[Any, Any]) -> drawing.Frame:
    """A square that holds the first and the last state, and 99 % of what lies between."""
    ends = np.concatenate([grid[[0, -1]].reshape(-1, 2), draws[[0, -1]].reshape(-1, 2)])
    low, high = np.quantile(ends, [0.01, 0.99], axis=0)
    if bent.behind is not None:
        x0, x1, y0, y1 = bent.behind[1]
        low, high = np.minimum(low, [x0, y0]), np.maximum(high, [x1, y1])
    middle, half = (low + high) / 2, 0.55 * (high - low) + 1e-9
    half = np.maximum(half, half.max()) if (half.max() < 3 * half.min()) else half
    (x0, y0), (x1, y1) = (middle - half).tolist(), (middle + half).tolist()
    return x0, x1, y0, y1


def _coloured(plot: drawing.Plot, lines: np.ndarray[Any, Any], ladj: np.ndarray[Any, Any]) -> None:
    """Grid lines in pieces, each in the colour of the log|det| at it."""
    local = 0.5 * (ladj[:, :-1] + ladj[:, 1:])
    # One line that the flow tears apart must not wash out the colours of all others.
    reach = max(float(np.quantile(np.abs(local), 0.98)), 1e-6)
    bins = len(drawing.SIGNED)
    number = np.clip(((local / reach + 1) / 2 * bins).astype(int), 0, bins - 1)
    for k, colour in enumerate(drawing.SIGNED):
        curves = list(_runs(lines, number == k))
        if curves:
            plot.lines(curves, colour, 1.2, 0.95)


def _runs(lines: np.ndarray[Any, Any], chosen: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The longest pieces of each line all of whose segments are chosen."""
    found = []
    for line, marks in zip(lines, chosen, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(int)))
        found += [line[start : stop + 1] for start, stop in edges.reshape(-1, 2)]
    return found
