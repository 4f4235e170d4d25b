"""The bound on the validation split, example by example, always with the same noise."""

from __future__ import annotations

import torch
from torch import Tensor

from varflow.core import random, ranks
from varflow.data.dataset import Dataset
from varflow.data.target_batches import TargetBatches
from varflow.ensemble import Ensemble
from varflow.model import Model
from varflow.objectives import Objective
from varflow.posteriors.codebook import count, used
from varflow.training import guard
from varflow.training.engine import Engine

#: Seed of the validation noise: the same for every run, so runs are compared on the same draws.
SEED = 20150706
#: Samples × examples scored at once.
_CHUNK = 1000


class Validation:
    """Scores a model on the validation split.

    Args:
        model: on the engine's device.
        dataset: where a split of validation examples may be missing.
        objective: whose final weight is scored.
        engine: device and precision.
        samples: of a training step. A bound that each number of samples has another of is scored with as many.
    """

    def __init__(
        self,
        model: Model | Ensemble,
        dataset: Dataset | TargetBatches,
        objective: Objective,
        engine: Engine,
        samples: int,
    ) -> None:
        self.model: Model | Ensemble = model
        self.dataset: Dataset | TargetBatches = dataset
        self.objective: Objective = objective
        self.engine: Engine = engine
        self.size: int = dataset.looked_at("validation")
        self.samples: int = samples if objective.tightens else 1
        self._rows = torch.arange(self.size, device=engine.device)

    @torch.no_grad()
    def __call__(self) -> tuple[dict[str, float], Tensor]:
        """Means over the split, and the bound of each example ``[V]``, float64 on the CPU.

        ``elbo``, ``log_likelihood`` and the bound are of x in the units of the data; nats.
        """
        self.model.eval()
        device = self.engine.device
        loss = torch.zeros((), dtype=torch.float64, device=device)
        found = torch.zeros(5, self.size, dtype=torch.float64, device=device)
        counts = torch.zeros(self.model.codes, dtype=torch.float64, device=device)
        # The processes take turns, and each leaves zeros where the others write.
        for number, index in self._chunks()[ranks.rank() :: ranks.world()]:
            with random.stream(SEED, number), self.engine.autocast():
                batch = self.dataset.batch("validation", index)
                terms = self.model.terms(batch.seen, self.samples, groups=self.objective.groups)
            loss += self.objective(terms, self.objective.final).double() * len(index)
            bound, log_likelihood = self.objective.lower_bound(terms), terms.log_likelihood.mean(0)
            kl, ladj = terms.kl.mean(0), terms.draw.ladj.mean(0)
            assert batch.ladj is not None
            shift = batch.ladj.double()
            found[:, index] = torch.stack(
                [bound.double() + shift, log_likelihood.double() + shift, kl.double(), ladj.double(), shift]
            )
            if self.model.codes and terms.codes is not None:
                counts += count(terms.codes, self.model.codes, counts.dtype)
        self.model.train()
        loss, found = ranks.all_reduce(loss), ranks.all_reduce(found)
        bounds = found[0].cpu()
        log_likelihood, kl, ladj, shift = found[1:].mean(1).tolist()
        means = {
            "loss": float(loss) / self.size,
            # The bound itself, to the last digit, where it is the ELBO.
            "elbo": log_likelihood - kl if self.objective.tightens else float(bounds.mean()),
            "log_likelihood": log_likelihood,
            "kl": kl,
            "ladj": ladj,
            "preprocessing_ladj": shift,
        }
        if self.size > 1:
            means["standard_error"] = float(bounds.std() / self.size**0.5)
        if self.model.codes:
            means |= used(ranks.all_reduce(counts))
        return means, bounds

    def finding(self) -> str | None:
        """What is first to be not finite on the split, where training was up to here."""
        self.model.eval()
        finding = guard.Finding()
        for number, index in self._chunks():
            with random.stream(SEED, number), self.engine.autocast():
                x = self.dataset.batch("validation", index).seen
                guard.inspect_terms(self.model, x, 1, finding)
        return finding.where

    def _chunks(self) -> list[tuple[int, Tensor]]:
        """(number, rows): as many at once as their samples leave room for, each with noise of its own."""
        return list(enumerate(self._rows.split(max(1, _CHUNK // self.samples))))
