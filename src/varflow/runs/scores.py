"""log p(x) of rows given to a fitted model, each with its own error; and their rank among the training rows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core import display, random
from varflow.core.errors import RunError, SpecError, positive
from varflow.core.files import read_json, write_json
from varflow.data.dataset import Dataset
from varflow.evaluation.importance import POINTS, importance_sample
from varflow.evaluation.psis import UNRELIABLE
from varflow.runs.folder import TRAINING_SCORES
from varflow.runs.rows import PIECE, Progress, count, one_model, pieces

if TYPE_CHECKING:
    from varflow.runs.run import Run

#: Importance samples for each row, where log p(x) is not exact.
SAMPLES = 100
#: Rows that an exact density is asked for at once.
_EXACT = 2048

#: The scores of training rows that a fit leaves in its folder: of so many rows at most, with no new block after so
#: many seconds, and so many rows in a block of importance samples.
_ROWS, _SECONDS, _BLOCK = 2000, 1.0, 4


@dataclass(frozen=True, repr=False)
class Scores:
    """log p(x) of rows, float64 tensors ``[N]`` on the CPU, in nats and of x in the units of the data.

    Attributes:
        log_prob: exact for a density; else the log of the mean of ``samples`` importance weights, which is log p(x)
            from below in expectation; for codes the bound through the one code of x.
        error: Monte-Carlo standard error of log_prob, by the delta method; 0 where nothing is random.
        khat: Pareto k̂ of the weights. Above 0.7 neither value nor error can be relied on. nan where there are none.
        rank: share of the training rows whose log p is at most this one; 0 is less likely than all of them. None
            unless it was asked for.
        samples: importance samples for each row; 0 where there are none.
        scored: of what log_prob is the logarithm, in words.
        training_rows: how many training rows the rank is among; 0 without one.
    """

    log_prob: Float[Tensor, " rows"]
    error: Float[Tensor, " rows"]
    khat: Float[Tensor, " rows"]
    rank: Float[Tensor, " rows"] | None
    samples: int
    scored: str
    training_rows: int = 0

    def columns(self) -> dict[str, Tensor]:
        """What is known of each row, by name."""
        found = {"log_prob": self.log_prob}
        if self.samples:
            found |= {"error": self.error, "khat": self.khat}
        return found if self.rank is None else {**found, "rank": self.rank}

    def summary(self) -> str:
        """How the numbers came about, and how far they can be trusted."""
        how = f"{self.samples} importance samples for each row" if self.samples else "nothing sampled"
        said = f"log of the {self.scored}, nats; {how}"
        if self.rank is not None:
            said += f"; rank: the share of {self.training_rows:,} training rows that are at most as likely"
        doubtful = int((self.khat > UNRELIABLE).sum())
        return said + (f"; k̂ above 0.7 in {doubtful} rows, which need more samples" if doubtful else "")

    def __repr__(self) -> str:
        mean = f", mean {float(self.log_prob.mean()):.4g} nats" if len(self.log_prob) else ""
        return f"Scores({len(self.log_prob)} rows{mean}; {self.summary()})"

    def _repr_html_(self) -> str:
        rows = []
        for i in range(len(self.log_prob)):
            if i == display.ROWS:
                break
            cells = [str(i), f"{float(self.log_prob[i]):.2f}"]
            if self.samples:
                cells += [f"± {float(self.error[i]):.2g}", f"{float(self.khat[i]):.2f}"]
            if self.rank is not None:
                cells += [f"{float(self.rank[i]):.3f}"]
            rows.append(cells)
        titles = {"log_prob": "log p, nats", "error": "MC error", "khat": "k̂", "rank": "rank"}
        left = len(self.log_prob) - len(rows)
        more = [f"and {left:,} more rows"] if left else []
        heads = ["row", *(titles[name] for name in self.columns())]
        return display.block(display.table(heads, rows), display.note(*more, self.summary()))


def score(
    run: Run,
    x: Any,
    samples: int | None = None,
    seed: int = 0,
    memory: int = 2**30,
    anomaly: bool = False,
    training_rows: int | None = None,
    progress: Progress | None = None,
    given: Any = None,
) -> Scores:
    """See :meth:`varflow.Run.scores`."""
    if isinstance(given, str):
        return _summed_out(run, x, given, samples, seed, memory, anomaly or training_rows is not None, progress)
    model = one_model(run, "log_prob", "use run.log_q(z), or run.evaluate()")
    certain = model.posterior.observed or model.posterior.discrete
    drawn = SAMPLES if samples is None else samples
    positive(samples=drawn)
    reference = None
    if training_rows is not None:
        positive(training_rows=training_rows)
        reference = _score_more(run, drawn, training_rows, progress)
    elif anomaly:
        reference = training_scores(run, None if samples is None else drawn)
    total = count(x)
    parts: list[Tensor] = []
    for start, piece in pieces(run, x, seed, given_for=given, row_noise=True):
        for first, block in _blocks(piece.sizes["test"], _EXACT if certain else POINTS):
            seen = piece.batch("test", block)
            parts.append(_block(run, seen, drawn, memory, seed, start + first))
            if progress is not None:
                progress(start + first + len(block), total)
    log_prob, error, khat = torch.cat(parts, 1)
    assert run.preprocessing is not None
    scored, drawn = run.preprocessing.scored, 0 if certain else drawn
    if reference is None:
        return Scores(log_prob, error, khat, None, drawn, scored)
    return Scores(log_prob, error, khat, _rank(log_prob, reference), drawn, scored, len(reference))


def _summed_out(
    run: Run, x: Any, given: str, samples: int | None, seed: int, memory: int, ranked: bool, progress: Progress | None
) -> Scores:
    """log p(x) = log Σ_k π_k p(x | c = k) over the values k of the one condition, π their shares in training."""
    if given != "marginal" or run.conditions is None:
        raise SpecError(
            f"given: was '{given}'; use name → value, or 'marginal' for the sum over the values of a condition"
        )
    column, *more = run.conditions.columns
    if more or not column.shares:
        names = ", ".join(run.conditions.names)
        raise SpecError(
            f"given: 'marginal' sums over the values of one condition that is a category, and this run has {names}; "
            "give values"
        )
    if ranked:
        raise SpecError("given: 'marginal' has no rank, as training rows are scored under their own conditions")
    values = ({column.name: name} for name in column.categories)
    parts = [score(run, x, samples, seed, memory, progress=progress, given=value) for value in values]
    weights = torch.tensor(column.shares, dtype=torch.float64).log()[:, None]
    joint = torch.stack([part.log_prob for part in parts]) + weights
    log_prob = joint.logsumexp(0)
    # What each value has of the sum; the errors of the parts are independent.
    share = (joint - log_prob).exp()
    error = (share * torch.stack([part.error for part in parts])).square().sum(0).sqrt()
    khat = torch.stack([part.khat for part in parts]).gather(0, share.argmax(0)[None])[0]
    return Scores(log_prob, error, khat, None, parts[0].samples, parts[0].scored)


def _blocks(rows: int, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, rows, size):
        yield start, torch.arange(start, min(start + size, rows))


def _block(run: Run, seen: Any, samples: int, memory: int, seed: int, first: int) -> Tensor:
    """log p(x), its error and k̂ of a block of rows ``[3, N]``."""
    model, x = run.members()[0], seen.seen
    ladj = seen.ladj.double().cpu()
    if model.posterior.observed or model.posterior.discrete:
        with torch.no_grad():
            log_px = model.terms(x, 1).log_weight[0].double().cpu()
        return torch.stack([log_px + ladj, torch.zeros_like(ladj), torch.full_like(ladj, torch.nan)])
    found = importance_sample(model, x, samples, memory, seed, first, keys=_keys(seen))
    return torch.stack([found.log_px + ladj, found.log_px_variance.sqrt(), found.khat])


def _keys(seen: Any) -> list[int]:
    """What the latents of each row are drawn by: the row itself, so that it has one score, alone and among others."""
    rows = [part.double().flatten(1) for part in (seen.x, seen.context, seen.mask) if part is not None]
    return random.row_keys(torch.cat(rows, 1))


def _rank(scores: Tensor, reference: Tensor) -> Tensor:
    """Share of ``reference`` at most each score."""
    ordered = reference.sort().values
    return torch.searchsorted(ordered, scores, right=True).double() / len(ordered)


def training_scores(run: Run, samples: int | None = None) -> Tensor:
    """log p of training rows, from the run folder, or from the data where they are at hand.

    Raises:
        RunError: neither is there, or they were made with another number of samples.
    """
    path = None if run.folder is None else run.folder / TRAINING_SCORES
    if path is None or not path.exists():
        return score_training_rows(run, SAMPLES if samples is None else samples)[0]
    facts = read_json(path)
    try:
        kept, made_with = torch.tensor(facts["log_prob"], dtype=torch.float64), int(facts["samples"])
        if kept.dim() != 1 or len(kept) == 0 or not bool(kept.isfinite().all()):
            raise ValueError("log_prob is not a list of numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not what varflow wrote ({error}); delete it, or fit again") from error
    if made_with and samples not in (None, made_with):
        raise RunError(
            f"samples: was {samples}; the training rows of this run were scored with {made_with}, and log p from "
            "another number of samples is biased otherwise; leave samples out"
        )
    return kept


def score_training_rows(
    run: Run,
    samples: int = SAMPLES,
    rows: int = _ROWS,
    seconds: float = math.inf,
    progress: Progress | None = None,
) -> tuple[Tensor, int]:
    """log p of the first ``rows`` of a seeded order of the training rows, as many as ``seconds`` allow; and the
    importance samples behind each, 0 where it is exact.
    """
    model, dataset = run.members()[0], run.dataset
    assert isinstance(dataset, Dataset)
    certain = model.posterior.observed or model.posterior.discrete
    size, begun, parts = (_EXACT if certain else _BLOCK), time.monotonic(), []
    chosen = training_order(dataset, min(rows, PIECE)).to(dataset.device)
    (_, piece), *_ = pieces(
        run, dataset.stored("train", chosen), given_for=conditions_at(dataset, chosen), row_noise=True
    )
    for number, (first, block) in enumerate(_blocks(piece.sizes["test"], size)):
        seen = piece.batch("test", block)
        parts.append(_block(run, seen, samples, 2**28, run.spec.training.seed, number * POINTS)[0])
        if progress is not None:
            progress(first + len(block), piece.sizes["test"])
        if time.monotonic() - begun > seconds:
            break
    return torch.cat(parts), 0 if certain else samples


def _score_more(run: Run, samples: int, rows: int, progress: Progress | None) -> Tensor:
    """log p of so many training rows, kept in the run folder where there is one."""
    log_prob, drawn = score_training_rows(run, samples, rows, progress=progress)
    if run.folder is not None and run.keeps:
        _write(run, run.folder, log_prob, drawn)
    return log_prob


def conditions_at(dataset: Dataset, chosen: Tensor) -> Tensor | None:
    """What training rows are conditioned on."""
    return None if dataset.conditions is None else dataset.conditions.values["train"][chosen]


def training_order(dataset: Dataset, count: int) -> Tensor:
    """The first ``count`` in the order in which a few training rows stand for all of them."""
    if not dataset.resident:
        return dataset.few(count)
    return torch.randperm(dataset.sizes["train"], generator=random.generator(0, "training rows"))[:count]


def write_training_scores(run: Run, folder: Path, share: float = 1.0) -> None:
    """Score training rows for a ``share`` of a second, and keep what came of it in the folder."""
    log_prob, samples = score_training_rows(run, seconds=share * _SECONDS)
    _write(run, folder, log_prob, samples, share < 1 and len(log_prob) < _ROWS)


def few_are_scored(folder: Path) -> bool:
    """Whether the end of a short fit left fewer scores than there was to be time for."""
    path = folder / TRAINING_SCORES
    return path.exists() and bool(read_json(path).get("brief"))


def _write(run: Run, folder: Path, log_prob: Tensor, samples: int, brief: bool = False) -> None:
    seed = run.spec.training.seed
    facts = {"unit": "nats", "samples": samples, "seed": seed, "log_prob": log_prob.tolist()}
    facts |= {"brief": True} if brief else {}
    write_json(folder / TRAINING_SCORES, facts)
