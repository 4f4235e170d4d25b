"""What is asked of a run of rows: log p(x) and latents, each a function of the row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varflow.core import random
from varflow.evaluation.importance import POINTS, importance_sample
from varflow.model import Model
from varflow.runs.run import Run

Array = NDArray[Any]

#: Rows whose exact density, or whose latents, are computed at once.
BLOCK = 1024
#: Samples of q(z|x) behind a posterior mean that has no closed form.
_DRAWS = 100


def model_of(run: Run) -> Model:
    assert isinstance(run.model, Model)
    return run.model


def device_of(run: Run) -> torch.device:
    """Where the model is."""
    return next(run.model.parameters()).device


def _seen(run: Run, stored: Tensor) -> tuple[Tensor, Tensor]:
    """x as the model sees stored rows, and ladj ``[N]``; noise of the preprocessing at its middle."""
    kept = run.preprocessing
    assert kept is not None
    stored = stored.to(device_of(run))
    middle = torch.full(stored.shape, 0.5, device=stored.device)
    drawn = None if kept.purpose is None else kept.draw(stored, middle)
    return kept.encode(stored, drawn, torch.float64)


def exact_log_prob(run: Run, stored: Tensor) -> Tensor:
    """log p of stored rows ``[N]`` of a density, in their units; nats."""
    model, parts = model_of(run), []
    for block in stored.split(BLOCK):
        x, ladj = _seen(run, block)
        parts.append((model.terms(x, 1).log_weight[0] + ladj).cpu())
    return torch.cat(parts)


def sampled_log_prob(run: Run, stored: Tensor, samples: int) -> Tensor:
    """The same by importance sampling; the random numbers of a row follow from the row."""
    model, seed, parts = model_of(run), run.spec.training.seed, []
    for block in stored.split(POINTS):
        x, ladj = _seen(run, block)
        found = importance_sample(model, x, samples, seed=seed, keys=random.row_keys(block))
        parts.append(found.log_px + ladj.cpu())
    return torch.cat(parts)


def posterior_means(run: Run, stored: Tensor) -> Tensor:
    """E_q z of stored rows ``[N, D]``."""
    model, parts = model_of(run), []
    for block in stored.split(POINTS):
        x, _ = _seen(run, block)
        q = model.infer(x)
        if q.diagonal is not None:
            mean = q.diagonal[0]
        else:
            # One key for all rows: the same noise everywhere.
            with random.use(random.ByRow(run.spec.training.seed, [0] * len(x))):
                mean = model.encode(x, _DRAWS).z.mean(0)
        parts.append(mean.cpu())
    return torch.cat(parts)


def doubles(rows: Array) -> Tensor:
    """A copy, from any order in memory."""
    return torch.from_numpy(np.array(rows, dtype=np.float64, order="C"))
