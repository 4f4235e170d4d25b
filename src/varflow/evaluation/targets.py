"""Evaluate inference on a target: every number beside its exact answer, with its errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from varflow.core import random
from varflow.core.errors import ShapeError, SpecError, positive
from varflow.ensemble import Ensemble
from varflow.evaluation import psis
from varflow.evaluation.estimate import Estimates
from varflow.evaluation.evaluation import Evaluation
from varflow.evaluation.integration import divergences
from varflow.evaluation.points import OnProgress
from varflow.evaluation.target_scores import Score, Scores, score
from varflow.model import LogJoint, Model


def evaluate_target(
    model: Model | Ensemble,
    samples: int = 100_000,
    seed: int = 0,
    grid: int = 0,
    data: Mapping[str, Any] | None = None,
    progress: OnProgress | None = None,
) -> Evaluation:
    """How near q(z) is to p(z) = π(z)/Z, for one fit or for several that were trained together.

    From samples of q: ``elbo``, ``kl_q_p`` = log Z − ELBO, ``log_z_error`` of the importance estimate with
    its Pareto k̂, ``ess_reverse``, ``mean_error``, ``covariance_error``, and where the target tells its modes
    apart ``mode_coverage``, the entropy of the shares of q's samples in them over log M (Blessing et al. 2024,
    "Beyond ELBOs", EMC), with ``mode_divergence``, the Jensen-Shannon divergence of the shares from the
    target's, which is the one to read where modes weigh differently. From exact samples of p: ``eubo``,
    ``kl_p_q`` = EUBO − log Z, ``ess_forward``. A Gaussian model adds ``log_evidence``, exact at the fitted
    parameters, how far the maximum-likelihood solution is above it, and the errors of the parameters. What
    cannot be had is left out, with a note.

    Models are evaluated in float64, whatever they were trained in.

    Args:
        model: of a target, or of a Gaussian model; its q does not read x.
        samples: S of q and of p, for each fit.
        seed: of all samples. Each fit has samples of its own.
        grid: panels along each dimension; ``kl_q_p_grid`` and ``kl_p_q_grid`` by quadrature beside the
            others, for D ≤ 2 and a q with a density. 0 for none.
        data: what the report says of the target (``TargetBatches.describe()``).
        progress: called with (fits done, fits).

    Returns:
        The points are the fits: values are means over them ± their standard error (None for one fit), the
        Monte-Carlo error is that of the mean, and ``per_example`` holds the number of every fit, with
        ``{name}_variance``, its Monte-Carlo variance. Nats.

    Raises:
        SpecError: samples < 2, or a model whose q reads x.
        ShapeError: a grid in more than two dimensions.
        NonFiniteError: a log-weight is NaN; the message names the fit.

    Cost: S draws of q, S of p and S densities of q for each fit, in blocks of at most 16,384 samples.

    Example:
        >>> import varflow as vf
        >>> from varflow.targets import GaussianMixture
        >>> target = GaussianMixture(1, locations=[[0.0]], scale=1.0)
        >>> found = evaluate_target(vf.Model(target, None, vf.posteriors.Gaussian(1)), samples=1000)
        >>> round(found.estimates["ess_reverse"].value, 6)
        1.0
    """
    positive(samples=samples)
    if samples < 2:
        raise SpecError(f"samples: was {samples}; errors need 2 or more")
    found: list[dict[str, Score]] = []
    scores: list[Scores] = []
    members = model.members()
    for fit, original in enumerate(members):
        member = copy.deepcopy(original).double().eval()
        if member.posterior.reads_x:
            raise SpecError(
                "model: its posterior reads x, so this is no target; use evaluate(model, dataset)"
            )
        one = score(member, samples, seed, fit)
        scores.append(one)
        found.append({**one.numbers, **_parameters(member), **_on_grid(member, one, grid, seed)})
        if progress is not None:
            progress(fit + 1, len(members))
    names = [_name(member) for member in members]
    facts = {"name": ", ".join(dict.fromkeys(names)), "protocol": "none", **(data or {})}
    estimates = Estimates(samples, len(members), str(facts["name"]), seed)
    arrays = _put_together(estimates, found, scores)
    notes = list(dict.fromkeys(note for one in scores for note in one.notes))
    if len(set(names)) > 1:
        notes.append(
            f"fits: they are of different targets ({', '.join(names)}); the means mix them, per_example does not"
        )
    facts |= {"split": "target", "fits": len(members)}
    return Evaluation(facts, estimates.found, arrays, {}, notes)


def _put_together(
    estimates: Estimates, found: list[dict[str, Score]], scores: list[Scores]
) -> dict[str, np.ndarray]:
    """Means over the fits of what all of them have, added to ``estimates``; returns the numbers of each fit."""
    fits = len(found)
    khat = np.array([one.khat for one in scores])
    arrays = {"index": np.arange(fits, dtype=np.float64), "khat": khat}
    enough = estimates.shared["samples"] >= psis.FEWEST
    for name in dict.fromkeys(name for numbers in found for name in numbers):
        each = [numbers.get(name) for numbers in found]
        values = np.array([math.nan if s is None else s.value for s in each])
        variances = np.array([math.nan if s is None else s.error for s in each]) ** 2
        arrays[name], arrays[f"{name}_variance"] = values, variances
        there = [s for s in each if s is not None]
        if len(there) < fits:
            continue
        how = there[0].how
        if fits > 1:
            low, middle, high = (f"{f(values):.6g}" for f in (np.min, np.median, np.max))
            how += f"; over {fits} fits: median {middle}, from {low} to {high}"
        weighted = name in ("log_z", "log_z_error") and enough
        share = float((khat > psis.UNRELIABLE).mean()) if weighted else None
        both = (torch.from_numpy(values), torch.from_numpy(variances))
        estimates.mean(name, *both, how, there[0].unit, khat=share)
    shares = [() if one.mode_shares is None else one.mode_shares.tolist() for one in scores]
    for mode in range(max(map(len, shares))):
        of_each = [each[mode] if mode < len(each) else math.nan for each in shares]
        arrays[f"mode_{mode}"] = np.array(of_each)
    return arrays


@torch.no_grad()
def _parameters(model: Model) -> dict[str, Score]:
    """What a Gaussian model learned, beside its exact answers; nothing here is random."""
    likelihood: Any = model.likelihood
    if not hasattr(likelihood, "maximum_likelihood"):
        return {}
    numbers = {}

    def put(name: str, value: Any, unit: str, how: str) -> None:
        if value is not None:
            numbers[name] = Score(float(value), 0.0, unit, how)

    evidence, best = float(likelihood.exact().log_evidence), likelihood.maximum_likelihood()
    top = float(best.log_evidence)
    put("log_evidence", evidence, "nats", "exact log p(D) of all data at the fitted Δ and Σ")
    if getattr(likelihood, "batches", None) == "separate":
        how = "sum of log p(block) over the blocks, exact, "
        put("log_evidence_blocks", likelihood.log_evidence(), "nats", how + "at the fitted Δ and Σ")
        put("log_evidence_blocks_best", top, "nats", how + "at the Δ and Σ that maximise it")
    else:
        put("log_evidence_best", top, "nats", "exact log p(D) at the maximum-likelihood solution")
        how = "log p(D) at the maximum-likelihood solution less that at the fitted Δ and Σ"
        put("evidence_gap", top - evidence, "nats", how)
    if hasattr(likelihood, "diagonal_gap"):
        how = "log p(D) − ELBO of the best q with a diagonal covariance, at the fitted Δ and Σ"
        put("diagonal_gap", likelihood.diagonal_gap(), "nats", how)
    errors = likelihood.errors()
    put(
        "shift_error",
        errors.shift_to_best,
        "",
        "‖Δ − Δ̂‖², from the maximum-likelihood Δ̂, which is x̄ for all data",
    )
    put(
        "shift_error_truth",
        errors.shift_to_truth,
        "",
        "‖Δ − Δ*‖²; data see z + Δ only, so ‖z‖² at best",
    )
    full = hasattr(errors, "covariance_to_best")
    name, of, field = ("noise", "Σ", "covariance") if full else ("scale", "σ", "scale")
    floor = "(tr(Σ*)² + tr(Σ*²)) / N" if full else "Σ σ*² / 2N"
    for key, value, how in (
        (f"{name}_error_best", getattr(errors, f"{field}_to_best"), f"‖{of} − {of}̂‖², from maximum likelihood"),
        (f"{name}_error", getattr(errors, f"{field}_to_truth"), f"‖{of} − {of}*‖², from the true one"),
        (f"{name}_floor", errors.best_to_truth, f"‖{of}̂ − {of}*‖², what maximum likelihood reaches on these data"),
        (f"{name}_floor_expected", errors.floor, f"{floor}, what maximum likelihood reaches on average"),
    ):  # fmt: skip
        put(key, value, "", how)
    return numbers


def _on_grid(model: Model, scores: Scores, panels: int, seed: int) -> dict[str, Score]:
    """KL both ways by quadrature, over the area that samples of q and the target's window span."""
    if not panels:
        return {}
    features = model.prior.event_shape[0]
    if features > 2:
        raise ShapeError(f"grid: was {panels} in {features} dimensions; quadrature is for 1 or 2")
    q = model.infer()
    with torch.no_grad(), random.stream(seed, 0):
        z = q.draw(4096, log_joint=LogJoint(model, None)).z.double()
    try:
        q.log_prob(z[:1])
    except SpecError as error:
        scores.notes.append(f"kl_q_p_grid, kl_p_q_grid: left out; {error}")
        return {}
    low, high = z.amin(0).tolist(), z.amax(0).tolist()
    margins = [0.5 * (b - a) for a, b in zip(low, high, strict=True)]
    bounds = [(a - m, b + m) for a, b, m in zip(low, high, margins, strict=True)]
    window = getattr(model.prior, "window", None)
    if window is not None and features == 2:
        sides = (window[:2], window[2:])
        bounds = [
            (min(a, c) - 1, max(b, d) + 1) for (a, b), (c, d) in zip(bounds, sides, strict=True)
        ]
    log_normalizer = getattr(model.prior, "log_normalizer", None)
    if model.likelihood is not None:
        log_normalizer = None
    found = divergences(q.log_prob, model.log_joint, bounds, panels, log_normalizer)
    how = f"quadrature of {16 * panels} nodes in each dimension, on which q has a mass of {found.mass:.6f}"
    return {
        "kl_q_p_grid": Score(found.kl_q_p, 0.0, "nats", how),
        "kl_p_q_grid": Score(found.kl_p_q, 0.0, "nats", how),
    }


def _name(model: Model) -> str:
    return type(model.prior if model.likelihood is None else model.likelihood).__name__
