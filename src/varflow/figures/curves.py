"""Curves: how training went, of one run and of several, and how bounds move with their samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from varflow.core.errors import DataError, ShapeError
from varflow.figures.base import (
    AFTER,
    BEFORE,
    INK,
    TRAIN,
    VALIDATION,
    Array,
    as_numpy,
    canvas,
    categories,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = (
    ("elbo", "ELBO (nats)"),
    ("log_likelihood", "E log p(x|z) (nats)"),
    ("kl", "KL term (nats)"),
)


def learning_curves(metrics: Sequence[Mapping[str, Any]], axes: Sequence[Axes]) -> Sequence[Axes]:
    """Training and validation against the step: the ELBO and the two terms it consists of.

    ELBO = E log p(x|z) − KL term. The terms have axes of their own because they differ by orders
    of magnitude. The frame fits the last 80 % of the steps; where that cuts off the beginning, an
    inset shows the whole curve.

    Args:
        metrics: rows with ``step``, ``split`` (train or validation), ``elbo``, ``log_likelihood``,
            ``kl``, those of training also with ``elbos``, of every update since the last row, which are
            drawn thin; rows whose ``beta``, the weight of the KL term, is below its largest value are
            shaded as warm-up. Values that are missing or not finite leave a gap.
        axes: one to three axes: ELBO, log-likelihood, KL.

    Raises:
        DataError: there is no row with a step and an ELBO.
    """
    if not any(_curve(metrics, split, "elbo")[0].size for split in ("train", "validation")):
        raise DataError(
            "metrics: no row with a split, a step and a finite elbo; pass the rows of metrics.jsonl"
        )
    end = _warmup_end(metrics)
    for panel, (key, label) in zip(axes, _PANELS, strict=False):
        drawn = []
        for split, colour in (("train", TRAIN), ("validation", VALIDATION)):
            steps, values = _curve(metrics, split, key)
            if steps.size:
                drawn.append((steps, values))
                _draw(panel, steps, values, split, colour)
            if key == "elbo" and split == "train":
                panel.plot(*_updates(metrics), color=colour, alpha=0.25, linewidth=0.4, zorder=1)
        panel.set(xlabel="step", ylabel=label)
        if end > 0:
            panel.axvspan(0, end, color="#EFEFEF", zorder=0, label="KL warm-up")
        _frame(panel, drawn)
    legend = axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    # The legend may reach over the next panel; an empty title keeps its height free.
    legend.set_in_layout(False)
    axes[0].set_title(" ")
    return axes


#: What :func:`curves_in_a_row` shows.
CAPTION = (
    "ELBO, expected log-likelihood and KL term, nats for each example. Training values are means "
    "over the minibatches between two records, while the weights move; validation values are means "
    "over the whole split, with one draw of q(z|x) for each example."
)


def curves_in_a_row(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """The three panels of :func:`learning_curves`, in a figure of their own."""
    figure, axes = canvas(1, 3, 10.4, 3.4)
    learning_curves(metrics, axes[0])
    return figure


def overlaid_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], axes: Axes) -> Axes:
    """The validation ELBO of several runs against the step; the training ELBO where there is no validation.

    The frame fits the last 80 % of the steps, so that a steep beginning does not flatten the differences.

    Args:
        runs: name → rows of metrics.jsonl.
        axes: where to draw.

    Raises:
        DataError: no run has a row with a step and a finite ELBO.
    """
    drawn = {name: _bound(rows) for name, rows in runs.items()}
    if not any(len(steps) for steps, _ in drawn.values()):
        raise DataError(
            "runs: none has a row with a step and a finite elbo; pass the rows of metrics.jsonl"
        )
    last = max(steps[-1] for steps, _ in drawn.values() if len(steps))
    late = []
    # Few values have no steep beginning to leave out.
    start = 0.2 * last if max(len(steps) for steps, _ in drawn.values()) > 5 else 0
    for (name, (steps, values)), colour in zip(drawn.items(), categories(len(drawn)), strict=True):
        marker = "o" if len(steps) <= 60 else ""
        axes.plot(steps, values, color=colour, marker=marker, markersize=3, label=name)
        late.append(values[steps >= start])
    kept = np.concatenate(late)
    low, high = np.quantile(kept, [0.02 if start else 0.0, 1.0])
    margin = 0.06 * (high - low) + 1e-9 * abs(high) + 1e-12
    axes.set(
        xlabel="step", ylabel="ELBO (nats)", xlim=(0, 1.02 * last), ylim=(low - margin, high + margin)
    )  # fmt: skip
    _legend(axes)
    return axes


def bound_by_samples(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]], axes: Axes
) -> Axes:
    """The importance-weighted bound against its number of samples, on a logarithmic axis.

    Args:
        curves: name → (k, the bound L_k in nats, its error), each of one length.
        axes: where to draw.

    Raises:
        ShapeError: the three differ in length, or are empty.
    """
    if not curves:
        raise ShapeError("curves: is empty; give one for each run")
    for (name, curve), colour in zip(curves.items(), categories(len(curves)), strict=True):
        counts = as_numpy("counts", curve[0], None)
        values = as_numpy("values", curve[1], len(counts))
        errors = as_numpy("errors", curve[2], len(counts))
        if not len(counts):
            raise ShapeError("curves: one has no points; give at least one number of samples")
        known = np.where(np.isfinite(errors), errors, 0.0)
        axes.errorbar(
            counts, values, yerr=known, color=colour, marker="o", markersize=4, capsize=2, label=name
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set(xlabel="importance samples k", ylabel="bound of log p(x) (nats)")
    _legend(axes)
    return axes


def weights(khat: Float[Array, " N"], axes: Axes) -> Axes:
    """Histogram of the Pareto k̂ of each test point's importance weights, with 0.7 marked.

    Below 0.7 an importance-sampled log p(x) can be trusted (Vehtari, Simpson, Gelman, Yao and Gabry
    2024); points above are counted in the title, and so are points whose k̂ is undefined.

    Args:
        khat: ``[N]``; NaN where there were too few samples, −∞ for constant weights.
        axes: where to draw.

    Raises:
        ShapeError: not ``[N]`` with N ≥ 1.
    """
    values = as_numpy("khat", khat, None)
    if not values.size:
        raise ShapeError("khat: is empty; give one value for each test point")
    finite = values[np.isfinite(values)]
    if finite.size:
        low, high = min(finite.min(), 0.0), max(finite.max(), 0.8)
        axes.hist(finite, bins=np.linspace(low, high, 41).tolist(), color=AFTER)
    axes.axvline(0.7, color=VALIDATION, linewidth=1.5)
    axes.annotate(
        "0.7",
        (0.7, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -3),
        textcoords="offset points",
        va="top",
        color=VALIDATION,
    )
    title = f"{(values > 0.7).sum():,} of {values.size:,} points above 0.7"
    if undefined := int(np.isnan(values).sum()):
        title += f"; {undefined:,} undefined"
    if constant := int(np.isneginf(values).sum()):
        title += f"; {constant:,} with constant weights"
    axes.set(xlabel="Pareto $\\hat{k}$", ylabel="test points", title=title)
    return axes


def code_usage(counts: Float[Array, " K"], axes: Axes) -> Axes:
    """How often each code occurs, the most frequent first; the line is equal use of all.

    Raises:
        DataError: no code occurs.
    """
    values = as_numpy("counts", counts, None).astype(np.float64)
    if not values.sum() > 0:
        raise DataError("counts: no code occurs; count the codes of at least one example")
    shares = np.sort(values / values.sum())[::-1]
    entropy = -sum(p * math.log(p) for p in shares if p > 0)
    axes.bar(np.arange(1, len(shares) + 1), shares, width=1.0, color=AFTER)
    axes.axhline(1 / len(shares), color=BEFORE, linewidth=1.2)
    used = int((shares > 0).sum())
    axes.set(
        xlabel="codes, the most frequent first",
        ylabel="share of all codes",
        xlim=(0.4, len(shares) + 0.6),
        title=f"perplexity {math.exp(entropy):.1f}, {used} of {len(shares)} codes in use",
    )
    return axes


def code_curves(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    uniform: float,
    axes_pair: Sequence[Axes],
) -> Sequence[Axes]:
    """Perplexity in the quantizer, and −log p(codes) in the second, which starts at the uniform prior's.

    Args:
        first, second: records of both stages, by step, from 0: before training.
        uniform: H·W·log K, nats.
        axes_pair: left and right axes.

    Raises:
        DataError: neither stage has a record of these.
    """
    left, right = axes_pair
    flipped = [{**row, "nll": -row["elbo"]} for row in second if "elbo" in row]
    drawn = False
    for panel, rows, key in ((left, first, "perplexity"), (right, flipped, "nll")):
        for split, colour in (("train", TRAIN), ("validation", VALIDATION)):
            steps, values = _curve(rows, split, key)
            if steps.size:
                _draw(panel, steps, values, split, colour)
                drawn = True
    if not drawn:
        raise DataError("first: no record has a perplexity; pass the rows of metrics.jsonl")
    left.set(xlabel="step of the quantizer", ylabel="perplexity of the codes", ylim=(0, None))
    right.set(xlabel="step of the code prior's fit", ylabel="−log p(codes) (nats)")
    if flipped:
        right.axhline(uniform, color=BEFORE, linewidth=1.2, label="uniform prior")
        right.set_ylim(top=1.05 * uniform)
    else:
        right.text(0.5, 0.5, "no code prior", ha="center", va="center", transform=right.transAxes)
    for panel in axes_pair:
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    return axes_pair


def hamiltonian_schedule(
    step_sizes: Float[Array, "K D"],
    factors: Float[Array, " K"],
    axes: Sequence[Axes],
    bound: float | None = None,
) -> Sequence[Axes]:
    """What a Hamiltonian posterior learned: step sizes ε, and the temperature 1/√β_k along a trajectory.

    Args:
        step_sizes: ``[K, D]``. Where they differ over latents, sorted ones are drawn: one line where all steps
            share them, else one for each step. Where they do not, ε against the step.
        factors: ``[K]``, α_k; 1/√β_k is the product of those that follow, and 1 at the end.
        axes: two: step sizes, temperature.
        bound: the largest step size, drawn if given.

    Raises:
        ShapeError: the two have different K, or K = 0.
    """
    alpha = as_numpy("factors", factors, None)
    sizes = as_numpy("step_sizes", step_sizes, len(alpha), None)
    if not len(alpha):
        raise ShapeError("factors: is empty; a trajectory has one leapfrog step or more")
    from matplotlib.ticker import MaxNLocator

    count, features = sizes.shape
    left, right = axes[0], axes[1]
    over_latents = features > 1 and np.ptp(sizes, 1).max() > 1e-12 * sizes.max()
    if over_latents:
        shared = np.ptp(sizes, 0).max() <= 1e-12 * sizes.max()
        for k in range(1 if shared else count):
            shade = AFTER if shared else (0.1 + 0.8 * k / max(1, count - 1))
            colour = AFTER if shared else _shade(float(shade))
            label = "all steps" if shared else f"step {k + 1}"
            left.plot(
                np.arange(1, features + 1), np.sort(sizes[k])[::-1], color=colour, label=label
            )
        left.set_xlabel("latents, by step size")
        if not shared and count <= 10:
            left.legend(fontsize=8, ncols=2)
    else:
        left.plot(np.arange(1, count + 1), sizes[:, 0], color=AFTER, marker="o", markersize=4)
        left.set_xlabel("leapfrog step")
    if bound is not None:
        left.axhline(bound, color=BEFORE, linestyle="--", linewidth=1)
        left.annotate(
            "bound",
            (1, bound),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
        )
    left.set(ylabel="step size $\\varepsilon$", ylim=(0, 1.12 * max(sizes.max(), bound or 0)))
    for panel in (left, right):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    # 1/√β_k = Π_{j > k} 1/α_j.
    roots = np.concatenate([np.cumprod(1 / alpha[::-1])[::-1], [1.0]])
    right.plot(np.arange(count + 1), roots, color=VALIDATION, marker="o", markersize=4)
    right.axhline(1, color=INK, linewidth=0.6)
    right.set(xlabel="leapfrog step k", ylabel="temperature $1/\\sqrt{\\beta_k}$")
    return axes


def _bound(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The ELBO of the validations; that of the training steps where there are none."""
    steps, values = _curve(rows, "validation", "elbo")
    return (steps, values) if steps.size else _curve(rows, "train", "elbo")


def _curve(
    metrics: Sequence[Mapping[str, Any]], split: str, key: str
) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for row in metrics if row.get("split") == split and "step" in row]
    steps = np.array([row["step"] for row in rows], float)
    values = np.array([_number(row.get(key)) for row in rows], float)
    kept = np.isfinite(values)
    return steps[kept], values[kept]


def _updates(metrics: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The ELBO of every update, of the rows that have it."""
    steps, values = [], []
    for row in metrics:
        each = row.get("elbos") or []
        if row.get("split") == "train" and "step" in row and each:
            steps.append(np.arange(row["step"] - len(each) + 1, row["step"] + 1))
            values.append([_number(value) for value in each])
    return (np.concatenate(steps), np.concatenate(values)) if steps else (np.empty(0), np.empty(0))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _draw(axes: Axes, steps: np.ndarray, values: np.ndarray, split: str, colour: str) -> None:
    if split == "validation":
        axes.plot(steps, values, color=colour, marker="o", markersize=3, label=split, zorder=3)
    elif len(values) <= 100:
        axes.plot(steps, values, color=colour, label=split)
    else:
        # Minibatch values scatter by more than the curve moves: show them, and their running mean.
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.6)
        smooth = _running_mean(values, len(values) // 50)
        axes.plot(steps, smooth, color=colour, label="train (running mean)")


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over the ``half`` neighbours to each side; fewer at the ends, on both sides alike."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))
    mean: np.ndarray = (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)
    return mean


def _frame(axes: Axes, drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    if not drawn:
        return
    everything = np.concatenate([values for _, values in drawn])
    last = max(steps.max() for steps, _ in drawn)
    late = np.concatenate([values[steps >= 0.2 * last] for steps, values in drawn])
    # Late values stay in the frame, unless they lie far outside of the bulk.
    bulk = np.quantile(late, [0.1, 0.9])
    reach = 1.5 * (bulk[1] - bulk[0])
    low, high = max(late.min(), bulk[0] - reach), min(late.max(), bulk[1] + reach)
    margin = 0.06 * (high - low) + 1e-9 * max(abs(low), abs(high)) + 1e-12
    low, high = low - margin, high + margin
    axes.set_xlim(0, last * 1.02 or 1)
    level = max(abs(low), abs(high))
    if high - low < 1e-5 * level:
        # What is constant but for its rounding, as the E log p(x|z) of a density is, is drawn so.
        axes.set_ylim((low + high) / 2 - 0.05 * level, (low + high) / 2 + 0.05 * level)
        return
    if np.ptp(everything) <= 2 * (high - low):
        return
    # The lower 45 % are for the inset, so that it hides no curve.
    axes.set_ylim(high - (high - low) / 0.55, high)
    small = axes.inset_axes((0.4, 0.07, 0.58, 0.3))
    for (steps, values), line in zip(drawn, (TRAIN, VALIDATION), strict=False):
        small.plot(steps, values, color=line, linewidth=1)
    small.set_title("from the first step", fontsize=8, pad=3)
    small.tick_params(labelsize=7, length=2, labelbottom=False)
    small.set_facecolor("white")
    for spine in small.spines.values():
        spine.set(visible=True, color=INK, linewidth=0.5)


def _warmup_end(metrics: Sequence[Mapping[str, Any]]) -> float:
    """The last step at which the KL term had less than its largest weight; 0 without warm-up."""
    known = [(row["step"], row["beta"]) for row in metrics if "beta" in row and "step" in row]
    full = max((beta for _, beta in known), default=0.0)
    partial = [step for step, beta in known if beta < full]
    return float(max(partial, default=0.0))


def _legend(axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(loc="best", fontsize=8)


def _shade(at: float) -> tuple[float, ...]:
    from matplotlib import colormaps

    return tuple(colormaps["viridis"](at))
