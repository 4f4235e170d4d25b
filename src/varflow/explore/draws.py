"""Draws of p(x): plain, under conditions, and of codes at a temperature and of a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varflow.core import random
from varflow.core.errors import SpecError
from varflow.explore import drawing
from varflow.explore.opened import Given, Opened


@torch.no_grad()
def draws(
    opened: Opened,
    count: int,
    seed: int = 0,
    mean: bool = False,
    given: Given = None,
    temperature: float = 1.0,
    label: int | None = None,
    top_k: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """x ~ p(x) as stored values ``[count, *event]``, and of codes the log p of each, nats.

    Args:
        seed: of all draws: the same latents come again at another temperature.
        mean: the likelihood's mean of each latent in place of a draw.
        given: conditions.
        temperature, label, top_k: of a prior over codes.

    Raises:
        SpecError: a class that there is not, or a temperature that is not positive.
    """
    if not opened.codes:
        held = None if opened.run.conditions is None else (opened.conditions if given is None else given)
        return opened.run.sample(count, seed, mean, stored=True, given=held).cpu(), None
    model: Any = opened.model
    options: dict[str, Any] = {}
    if opened.sampler:
        options = {"temperature": float(temperature), "top_k": top_k}
        if label is not None:
            if not 0 <= label < (model.prior.classes or 0):
                raise SpecError(f"label: was {label}; this prior has {model.prior.classes or 'no'} classes")
            options["labels"] = torch.full((count,), label, device=opened.home.device)
    with random.stream(seed):
        if opened.sampler:
            codes, log_prob = model.prior.sample_and_log_prob((count,), **options)
        else:
            codes = model.prior.sample((count,))
            log_prob = model.prior.log_prob(codes)
        x = model.decode(codes, mean)
    kept = opened.run.preprocessing
    assert kept is not None
    return (kept.stored_means(x) if mean else kept.stored_values(x)).cpu(), log_prob.double().cpu()


def drawn(opened: Opened, x: Tensor, log_prob: Tensor | None = None) -> str:
    """Draws as pictures in a strip, or as rows of a table, with what is known of their codes."""
    told = ""
    if log_prob is not None:
        each = float(log_prob.mean())
        told = drawing.said(f"Mean log p(codes) of these draws under the model: {each:.1f} nats.")
    if opened.picture:
        return drawing.strip(opened.shown(x)) + told
    return drawing.table(opened.cells(x)) + told
