"""A run that is looked at: what its parts can show, and which of its data are at hand."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varflow.core import random
from varflow.core.columns import NAMED
from varflow.core.errors import RunError, SpecError, VarflowError
from varflow.core.files import present
from varflow.data.columns import Columns
from varflow.data.dataset import Dataset
from varflow.data.writing import print_table
from varflow.model import Model
from varflow.priors.flow import Flow as FlowPrior
from varflow.runs.folder import EMBEDDINGS, TRAINING_SCORES
from varflow.runs.latent_space import Embedded, decoded, training_latents
from varflow.runs.run import Run
from varflow.runs.scores import training_scores

#: What x is conditioned on: name → value, stored values ``[N, conditions]``, or nothing.
Given = Mapping[str, Any] | Tensor | None

#: Draws by which a place for a frame is found.
_DRAWS = 1000


class Opened:
    """A run, and what of it can be shown without fitting or evaluating anything.

    Args:
        run: a run; nothing in it is changed.
        name: how it is called on the page.
        fit: which of several fits that were trained together.

    Attributes:
        model: the model of the fit.
    """

    def __init__(self, run: Run, name: str = "", fit: int = 0) -> None:
        self.run: Run = run
        self.name: str = name or str(run.origin or (run.folder.name if run.folder else "run"))
        self.model: Model = run.members()[fit]

    # -- what there is ---------------------------------------------------------------------------

    @property
    def target(self) -> bool:
        """Whether it was fitted to a target, and there is no x."""
        return self.run.infers_target

    @property
    def picture(self) -> bool:
        return self.run.picture

    @property
    def codes(self) -> bool:
        """Whether latents are codes."""
        return self.model.posterior.discrete

    @property
    def base(self) -> Any:
        """Where what is moved by hand comes from: the prior, or the base of a density by a flow."""
        prior: Any = self.model.prior
        return prior.base if self.density and isinstance(prior, FlowPrior) else prior

    @property
    def density(self) -> bool:
        """Whether the prior is p(x) itself, and nothing is latent."""
        return self.model.posterior.observed

    @property
    def codes_alone(self) -> bool:
        """Whether x is a grid of codes, which nothing here decodes."""
        return self.run.form.support == "codes"

    @property
    def features(self) -> int:
        """Latents, or base points of a density by a flow, that can be moved by hand; 0 where there are none."""
        if self.codes or (self.density and not isinstance(self.model.prior, FlowPrior)):
            return 0
        return self.model.prior.event_shape[0]

    @property
    def decodes(self) -> bool:
        """Whether a point of latent space has an x."""
        return not self.target and self.features > 0

    @property
    def answers(self) -> bool:
        """Whether an x of one's own has a score."""
        return not self.target and not self.codes_alone

    @property
    def flows(self) -> tuple[str, ...]:
        """Which flows there are, of "posterior" and "prior"."""
        found = []
        if getattr(self.gaussian, "flow", None) is not None:
            found.append("posterior")
        if isinstance(self.model.prior, FlowPrior):
            found.append("prior")
        return tuple(found) if self.features > 1 else ()

    @property
    def gaussian(self) -> Any:
        """The Gaussian posterior, inside of a Hamiltonian one where there is such; None of any other."""
        posterior: Any = self.model.posterior
        posterior = posterior.base if posterior.uses_gradient else posterior
        return posterior if posterior.gaussian else None

    @property
    def moves(self) -> bool:
        """Whether the posterior moves along leapfrog trajectories."""
        posterior: Any = self.model.posterior
        return bool(posterior.uses_gradient and posterior.steps and self.features > 1)

    @property
    def sampler(self) -> bool:
        """Whether codes are drawn at a temperature."""
        return self.codes and hasattr(self.model.prior, "sample_and_log_prob")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of a prior over codes; none where it has none."""
        count = self.model.prior.classes or 0
        names = self.run.classes
        return tuple(names) if len(names) == count else tuple(map(str, range(count)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a table, of x."""
        kept = self.run.preprocessing
        if isinstance(kept, Columns):
            return tuple(column.name for column in kept.columns)
        count = 0 if self.picture or self.target else self.run.form.event_shape[-1]
        names = self.run.columns
        return tuple(names) if len(names) == count else tuple(f"column {k + 1}" for k in range(count))

    def about(self) -> str:
        """What the run is, in a sentence."""
        parts = self.run.spec
        shape = " × ".join(map(str, self.run.form.event_shape))
        if self.target:
            what = f"q(z) fitted to the target {parts.get('target')} of {shape} dimensions"
        else:
            # Where a file lies on this machine is nobody's business.
            data = Path(str(parts.get("data"))).name
            what = f"{data}: {'pictures' if self.picture else 'rows'} of {shape}"
        step = self.run.outcome.get("step")
        return f"{what}{f', {step:,} updates' if step else ''}"

    # -- which data are at hand ------------------------------------------------------------------

    @cached_property
    def dataset(self) -> Dataset | None:
        """The data of the run where they are at hand; nothing is fetched for it."""
        if self.target:
            return None
        try:
            found = self.run.dataset
        except VarflowError:
            return None
        return found if isinstance(found, Dataset) else None

    @cached_property
    def latents(self) -> Embedded | None:
        """Latents of training rows that the folder keeps, or None."""
        folder = self.run.folder
        if self.target or folder is None or not present(folder, [EMBEDDINGS]):
            return None
        try:
            found = training_latents(self.run)
        except RunError:
            return None
        return found if found.points.shape[-1] == self.features or self.codes else None

    @cached_property
    def scores(self) -> Tensor | None:
        """log p of training rows that the folder keeps, nats, or None."""
        folder = self.run.folder
        if self.target or folder is None or not present(folder, [TRAINING_SCORES]):
            return None
        try:
            return training_scores(self.run)
        except RunError:
            return None

    def missing(self) -> list[str]:
        """What cannot be shown because the folder does not hold it, in sentences."""
        told = []
        if self.answers and self.scores is None:
            told.append(
                "This folder keeps no scores of training rows, so log p(x) of your own rows is not ranked; "
                "varflow score RUN --training-rows 500 adds them where the data are at hand."
            )
        if self.answers and not self.codes and self.features and self.latents is None:
            told.append(
                "This folder keeps no latents of training rows (embeddings.safetensors), so no neighbours are shown."
            )
        return told

    # -- x and back ------------------------------------------------------------------------------

    @property
    def home(self) -> Tensor:
        return next(self.model.parameters())

    def context(self, given: Given, rows: int) -> Tensor | None:
        """c of what was chosen for the conditions ``[rows, C]``; None where there are none."""
        conditions = self.run.conditions
        if conditions is None:
            return None
        if isinstance(given, Tensor):
            given = given.expand(rows, -1)
        stored = conditions.of(self.conditions if given is None else given, rows)
        return conditions.encode(stored, self.home.dtype).to(self.home.device)

    @property
    def conditions(self) -> dict[str, Any]:
        """name → the value that a condition starts at: the most frequent category, the mean of a number."""
        found: dict[str, Any] = {}
        for column in () if self.run.conditions is None else self.run.conditions.columns:
            if column.kind in NAMED:
                shares = column.shares or (1.0,) * len(column.categories)
                found[column.name] = column.categories[int(np.argmax(shares))]
            else:
                found[column.name] = middle(column)
        return found

    @torch.no_grad()
    def decode(self, z: Tensor, given: Given = None) -> Tensor:
        """The mean of p(x|z) for latents or base points ``[N, D]``, in the units of the data: ``[N, *event]``."""
        z = torch.as_tensor(z).to(self.home.device, self.home.dtype)
        return decoded(self.run, self.model, z, context=self.context(given, len(z))).cpu()

    def shown(self, x: Tensor) -> np.ndarray[Any, Any]:
        """Stored pictures ``[N, C, H, W]`` as values in [0, 1]."""
        kept = self.run.preprocessing
        assert kept is not None
        found: np.ndarray[Any, Any] = x.detach().cpu().double().numpy() / kept.top
        return found.clip(0, 1)

    def cells(self, x: Tensor) -> dict[str, Sequence[Any]]:
        """Stored rows ``[N, D]`` as the columns of the table."""
        kept = self.run.preprocessing
        values = x.detach().cpu().double().flatten(1)
        if isinstance(kept, Columns):
            return {name: _plain(column) for name, column in kept.table(values).items()}
        return dict(zip(self.columns, values.T.tolist(), strict=True))

    def text(self, x: Tensor, given: Mapping[str, Any] | None = None) -> str:
        """Stored rows as the text of a CSV file with its head, conditions included."""
        columns = dict(self.cells(x))
        for name, value in (given or {}).items():
            columns = {name: [value] * len(x), **columns}
        file = io.StringIO()
        print_table(file, {name: [_written(c) for c in cells] for name, cells in columns.items()})
        return file.getvalue().strip()

    def draw(self, seed: int, count: int = 1, given: Mapping[str, Any] | None = None) -> Tensor:
        """x ~ p(x), stored values ``[count, *event]``."""
        held = None if self.run.conditions is None else (given or self.conditions)
        found: Tensor = self.run.sample(count, seed, stored=True, given=held)
        return found.cpu()

    def row(self, number: int) -> tuple[Tensor, dict[str, Any] | None]:
        """Row ``number`` of the test split, stored values ``[1, *event]``, and its conditions.

        Raises:
            SpecError: the data are not at hand, or have no such row.
        """
        if self.dataset is None:
            raise SpecError("row: the data of this run are not at hand; draw one from the model, or give your own")
        size = self.dataset.sizes["test"]
        if not 0 <= number < size:
            raise SpecError(f"row: was {number}; the test split has {size} rows, use 0 to {size - 1}")
        held = self.dataset.conditions
        given = None if held is None else condition_values(held, held.values["test"][number : number + 1])
        return self.dataset.raw("test")[number : number + 1].cpu(), given

    @cached_property
    def typical(self) -> Tensor:
        """Where latents lie: centres of training rows, else draws of the prior, of a density its base, of a fit to a
        target draws of q; ``[N, D]``, float64.
        """
        if self.latents is not None and not self.density:
            return self.latents.points
        with random.stream(0), torch.no_grad():
            if self.target:
                return self.model.encode(None, _DRAWS).z.double().cpu()
            prior = self.base
            if prior.reads:
                context = self.context(None, 1)
                assert context is not None
                z = prior.sample((_DRAWS,), context=context.expand(_DRAWS, -1))
            else:
                z = prior.sample((_DRAWS,))
        found: Tensor = z.double().cpu()
        return found

    @cached_property
    def window(self) -> np.ndarray[Any, Any]:
        """The low and high end of each latent ``[D, 2]``, that hold where latents lie and what the prior expects."""
        low, high = (torch.quantile(self.typical, p, dim=0) for p in (0.005, 0.995))
        margin = 0.1 * (high - low) + 1e-6
        low, high = low - margin, high + margin
        standard = self.model.prior.standard or self.base.standard
        if standard and not self.target:
            low, high = low.clamp(max=-3.0), high.clamp(min=3.0)
        return torch.stack([low, high], -1).numpy()

    @cached_property
    def order(self) -> list[int]:
        """The latents from the one that training rows vary most in to the least."""
        return torch.argsort(self.typical.std(0), descending=True, stable=True).tolist()


def middle(column: Any) -> float:
    """The typical value of a column of numbers, in its own units."""
    value = column.loc
    if column.kind == "count":
        return float(round(np.expm1(value)))
    return float(f"{np.exp(value) if column.kind == 'positive' else value:.4g}")


def condition_values(conditions: Any, stored: Tensor) -> dict[str, Any]:
    """name → value of one row of stored conditions ``[1, columns]``."""
    table = conditions.preprocessing.table(stored.cpu())
    return {name: _plain(column)[0] for name, column in table.items()}


def _plain(column: Any) -> list[Any]:
    """A column as plain values, dates as text, None where a cell is missing."""
    gone = np.ma.getmaskarray(column) if isinstance(column, np.ma.MaskedArray) else np.zeros(len(column), bool)
    values = np.asarray(column.data if isinstance(column, np.ma.MaskedArray) else column)
    if values.dtype.kind == "M":
        values = np.datetime_as_string(values, unit="D")
    return [None if absent else value for value, absent in zip(values.tolist(), gone.tolist(), strict=True)]


def _written(cell: Any) -> Any:
    """A cell as somebody would type it."""
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return ""
    return float(f"{cell:.6g}") if isinstance(cell, float) else cell
