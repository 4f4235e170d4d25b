"""Annealed estimates for test points, and beside them what they are worth: the bidirectional sandwich.

Data simulated from the model, z ~ p(z), x ~ p(x|z), come with an exact posterior sample z. Chains that start
there and run backwards bound log p(x) from above, forward chains bound it from below, and the distance of the
two says how tight the same settings are on data of this kind (Grosse, Ghahramani and Adams 2015; Wu et al.
2017, section 3.2). Test points have no such sample, so the upper bound exists for simulated data only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from varflow.core import random
from varflow.core.errors import positive
from varflow.core.observed import Examples, observed, parts_of
from varflow.evaluation.annealing import Annealed, Annealing, anneal
from varflow.evaluation.estimate import Estimates
from varflow.evaluation.evaluation import Evaluation
from varflow.evaluation.points import (
    OnProgress,
    evaluating,
    identity,
    points_of,
    protocol_of,
    stage,
)
from varflow.model import Model

if TYPE_CHECKING:
    from varflow.data import Dataset


def annealed_likelihood(
    model: Model,
    dataset: Dataset,
    split: str = "test",
    points: int = 200,
    settings: Annealing | None = None,
    memory: int = 2**30,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: OnProgress | None = None,
) -> Evaluation:
    """−log p(x) of the first points of a split by :func:`~varflow.evaluation.anneal`, with its errors.

    Args:
        dataset: see :class:`varflow.data.Dataset`.
        points: of the split.
        settings, memory, seed, folder, progress: of :func:`~varflow.evaluation.anneal`.

    Returns:
        ``nll``, an upper bound in expectation; ``nll_one_chain``, −mean log w, the looser bound of single
        chains; ``bits_per_dim`` where data have levels; ``acceptance``. Kept as ``{split}-annealed``.

    Raises:
        SpecError: an unknown split, more points than it has, or a model that cannot be annealed.
        NonFiniteError: as :func:`~varflow.evaluation.anneal`.
    """
    settings = settings or Annealing()
    x, about, data = points_of(dataset, model, split, points, seed)
    found = anneal(model, x, settings, memory, seed, None, folder, progress)
    # From here on every log p is of the stored values, in the units of the data.
    found = replace(found, log_weights=found.log_weights + torch.from_numpy(about["data_ladj"]))
    estimates = Estimates(settings.chains, points, protocol_of(dataset, split), seed)
    log_px, variance = found.log_px, found.log_px_variance
    how = f"{settings.describe()}; −log of the mean weight, an upper bound in expectation; {dataset.scored}"
    estimates.mean("nll", -log_px, variance, how, ess=found.ess.mean().item())
    chains = settings.chains
    spread = found.log_weights.var(0) / chains if chains > 1 else None
    how = "−mean of log w, the bound of single chains"
    estimates.mean("nll_one_chain", -found.log_weights.mean(0), spread, how)
    _acceptance(found, estimates)
    none = torch.zeros(points, dtype=torch.float64)
    bits, of_one_nat_more = dataset.bits_per_dim(log_px, none), dataset.bits_per_dim(log_px + 1, none)
    if bits is not None and of_one_nat_more is not None:
        per_nat = (of_one_nat_more - bits).square()
        how = "the same for each dimension"
        estimates.mean("bits_per_dim", bits, variance * per_nat, how, "bits/dim")
    arrays = {
        **about,
        "log_px": log_px.numpy(),
        "log_px_variance": variance.numpy(),
        "log_weight": found.log_weights.mean(0).numpy(),
        "acceptance": found.acceptance.numpy(),
        "ess": found.ess.numpy(),
    }
    return Evaluation({**data, "split": f"{split}-annealed"}, estimates.found, arrays)


@torch.no_grad()
def simulate(
    model: Model, points: int, seed: int = 0, context: Tensor | None = None
) -> tuple[Tensor, Examples]:
    """z ~ p(z|c) ``[N, D]`` and x ~ p(x|z, c) ``[N, *event]`` with its c: z is an exact sample of p(z|x, c)."""
    prior: Any = model.prior
    with evaluating(model), random.stream(random.derive(seed, "simulate", 0)):
        z = prior.sample((points,), *model.read_by_prior(context))
        return z, observed(model.decode(z, context=context), context)


def sandwich_bounds(
    model: Model,
    points: int = 200,
    settings: Annealing | None = None,
    memory: int = 2**30,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: OnProgress | None = None,
    data: dict[str, Any] | None = None,
    context: Tensor | None = None,
) -> Evaluation:
    """Lower and upper bounds of log p(x) for simulated x, and their distance.

    Args:
        points: simulated examples.
        settings, memory, seed, folder, progress: of :func:`~varflow.evaluation.anneal`; each example is
            counted twice in the progress, once for each direction.
        data: what the run says of its data, kept with the result.
        context: c ``[points, C]`` of the simulated examples, for a model that is conditioned.

    Returns:
        ``lower`` and ``upper``: E lower ≤ E log p(x) ≤ E upper over the chains; ``gap`` = upper − lower in pairs;
        ``acceptance``. Kept as ``simulated``.

    Raises:
        SpecError: a prior that cannot be sampled, or a model that cannot be annealed.

    Cost: twice that of :func:`~varflow.evaluation.anneal`.

    Example:
        >>> import torch, varflow as vf
        >>> from varflow.evaluation import Annealing, sandwich_bounds
        >>> decoder, encoder = vf.networks.MLP(2, 6, hidden=(8,)), vf.networks.MLP(6, hidden=(8,))
        >>> likelihood = vf.likelihoods.Bernoulli(decoder, 6)
        >>> model = vf.Model(vf.priors.StandardNormal(2), likelihood, vf.posteriors.Gaussian(2, encoder))
        >>> found = sandwich_bounds(model, points=5, settings=Annealing(chains=4, temperatures=10, warmup=20))
        >>> sorted(found.estimates)
        ['acceptance', 'gap', 'lower', 'upper']
    """
    positive(points=points)
    settings = settings or Annealing()
    z, x = simulate(model, points, seed, context)

    lower = anneal(model, x, settings, memory, seed, None, folder, stage(progress, 0))
    upper = anneal(model, x, settings, memory, seed, z, folder, stage(progress, 1))
    estimates = Estimates(settings.chains, points, "simulated from the model, as it sees x", seed)
    how = f"{settings.describe()}; log of the mean weight, a lower bound of log p(x) in expectation"
    estimates.mean("lower", lower.log_px, lower.log_px_variance, how)
    # The chains of a point go back from one exact sample: their spread is not the error of what they average to.
    how = "the same chains backwards from the exact posterior sample; −log of the mean of 1/w, an upper bound; the "
    how += "chains of a point share their sample, and the error over points has all of its error"
    estimates.mean("upper", upper.log_px, None, how)
    gap = upper.log_px - lower.log_px
    estimates.mean("gap", gap, None, "upper − lower on the same points")
    _acceptance(lower, estimates)
    arrays = {
        **identity(parts_of(x)[0]),
        "lower": lower.log_px.numpy(),
        "upper": upper.log_px.numpy(),
        "lower_variance": lower.log_px_variance.numpy(),
        "acceptance": lower.acceptance.numpy(),
    }
    return Evaluation({**(data or {}), "split": "simulated"}, estimates.found, arrays)


def _acceptance(found: Annealed, estimates: Estimates) -> None:
    """Nothing where no transition was needed."""
    moved = found.acceptance
    if not bool(moved.isnan().any()):
        how = f"share of proposals accepted; {moved.min():.2f} to {moved.max():.2f} over the points"
        estimates.mean("acceptance", moved, None, how, "")
