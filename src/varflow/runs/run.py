"""A run: a fitted model with everything that belongs to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from varflow.core import random, ranks
from varflow.core.errors import RunError, SpecError, positive
from varflow.core.form import Form
from varflow.data.dataset import SPLITS, Dataset
from varflow.data.protocols import Protocol
from varflow.data.target_batches import TargetBatches
from varflow.ensemble import Ensemble
from varflow.model import Model
from varflow.runs.assemble import spec_data
from varflow.runs.folder import check_data, read_about, snapshots
from varflow.settings.spec import RunSpec

if TYPE_CHECKING:
    from varflow.evaluation import Evaluation


class Run:
    """A fitted model with what belongs to it.

    Attributes:
        folder: where it lives, or None for a fit that was not written.
        spec: its settings.
        model: in evaluation mode; an :class:`~varflow.Ensemble` where several fits were trained together.
        form: shape and support of the data.
        metrics: the records of the fit.
        outcome: how the fit ended, as plain values.
        code_prior_metrics: the records of the fit of a code prior; none where there is none.
        preprocessing: what stands between the stored values and the model, as it was learned in training; None for
            a fit to a target.
        picture: whether the data are pictures.
        other_data: whether the run was loaded with other data than those it was fitted to. Their evaluation is given
            back and not kept in the folder.
    """

    spec: RunSpec
    model: Model | Ensemble
    form: Form
    folder: Path | None
    metrics: list[dict[str, Any]]
    outcome: dict[str, Any]
    code_prior_metrics: list[dict[str, Any]]
    preprocessing: Protocol | None
    picture: bool
    other_data: bool

    def __init__(
        self,
        spec: RunSpec,
        model: Model | Ensemble,
        form: Form,
        folder: Path | None = None,
        metrics: list[dict[str, Any]] | None = None,
        outcome: dict[str, Any] | None = None,
        dataset: Dataset | TargetBatches | None = None,
        code_prior_metrics: list[dict[str, Any]] | None = None,
        preprocessing: Protocol | None = None,
        picture: bool = False,
    ) -> None:
        self.spec, self.model, self.form, self.folder = spec, model, form, folder
        self.metrics, self.outcome = metrics or [], outcome or {}
        self.code_prior_metrics = code_prior_metrics or []
        self._dataset = dataset
        if preprocessing is None and isinstance(dataset, Dataset):
            preprocessing, picture = dataset.preprocessing, dataset.picture
        self.preprocessing, self.picture = preprocessing, picture
        self.other_data = False

    def __repr__(self) -> str:
        return f"Run({self.folder or 'in memory'}, {self.outcome.get('step', 0)} steps)"

    @property
    def dataset(self) -> Dataset | TargetBatches:
        """The data of the run, read again where it is not at hand, on the model's device."""
        if self._dataset is None:
            if self._given_data():
                raise RunError(
                    "data: this run was fitted to data given in Python, which the folder does not hold; "
                    "pass them again, e.g. load(folder, data=tensor)"
                )
            loaded = spec_data(None, self.spec, self.preprocessing)
            if self.folder is not None:
                check_data(loaded, self.folder)
            home = next(self.model.parameters())
            self._dataset = loaded.to(home.device, home.dtype)
        return self._dataset

    @property
    def infers_target(self) -> bool:
        """Whether nothing is observed: a fit to a target, whose q(z) is the result."""
        return self.form.support == "none"

    def log_prob(
        self, x: Any, samples: int = 1000, seed: int = 0, memory: int = 2**30
    ) -> Float[Tensor, " rows"]:
        """log p(x) of rows or pictures in the units of the data, nats in float64 on the CPU.

        Exact for a density. Otherwise the log of the mean of ``samples`` importance weights, which is log p(x) from
        below in expectation; for codes the bound through the one code of x. Where the preprocessing draws noise
        (binarization, dequantization) it is drawn once, by ``seed``.

        Args:
            x: ``[N, *event]`` as the training data were: a tensor or an array of raw rows, or of levels.
            samples: importance samples for each row, where the density is not exact.
            seed: of the samples and of the noise.
            memory: bytes that decoding may take.

        Raises:
            SpecError: a fit to a target, which has no x, or an ensemble.
            DataError, ShapeError: a NaN, or x of another shape or other levels than the training data.
        """
        from varflow.evaluation.importance import POINTS, importance_sample

        if not isinstance(self.model, Model) or self.preprocessing is None:
            raise SpecError("log_prob: this is a fit to a target, which has no x; use run.evaluate()")
        rows = self._dataset_of(x, seed)
        exact, parts = self.model.posterior.observed, []
        for start in range(0, rows.sizes["test"], POINTS):
            index = torch.arange(start, min(start + POINTS, rows.sizes["test"]))
            seen, ladj = rows.batch("test", index)
            if self.model.posterior.discrete:
                with torch.no_grad():
                    found = self.model.terms(seen, 1).log_weight[0].double().cpu()
            else:
                drawn = 1 if exact else samples
                found = importance_sample(self.model, seen, drawn, memory, seed, start).log_px
            parts.append(found + ladj.double().cpu())
        return torch.cat(parts)

    def sample(self, count: int, seed: int = 0, mean: bool = False) -> Tensor:
        """``count`` draws of p(x) in the units of the data: raw rows, or levels of pictures; ``[count, *event]``.

        Args:
            count: how many.
            seed: of the draws.
            mean: the likelihood's mean of each z in place of a draw from it.

        Raises:
            SpecError: a fit to a target, whose q(z) is sampled by ``run.model.encode``, or an ensemble.
        """
        if not isinstance(self.model, Model) or self.preprocessing is None:
            raise SpecError(
                "sample: this is a fit to a target; use run.model.encode(None, count).z for samples of q(z)"
            )
        positive(count=count)
        with random.stream(seed):
            x = self.model.sample(count, mean=mean)
        return self.preprocessing.stored_values(x)

    def _dataset_of(self, x: Any, seed: int) -> Dataset:
        """Rows given now, under the preprocessing that was learned in training."""
        from varflow.data.loading import stored_rows

        assert self.preprocessing is not None
        values = stored_rows(x, self.preprocessing, self.form.event_shape, self.picture)
        home = next(self.model.parameters())
        splits = dict.fromkeys(SPLITS, values)
        dataset = Dataset("x", self.preprocessing, splits, picture=self.picture, seed_eval=seed)
        return dataset.to(home.device, home.dtype)

    def members(self) -> list[Model]:
        """The models, one for each fit that was trained here, in the order of their seeds."""
        return self.model.members()

    @ranks.by_first
    def evaluate(
        self, split: str | None = None, samples: int | None = None, **options: Any
    ) -> Evaluation:
        """Estimates with their errors, saved in the run folder; those of other data than the run's are not.

        Args:
            split: of the data set, "test" unless given; a target has none.
            samples: for each example, 1000 unless given (2 for density estimation, where nothing is random); for
                each fit to a target 100,000.
            **options: of :func:`varflow.evaluation.evaluate`, or of
                :func:`varflow.evaluation.evaluate_target` where this is a fit to a target, of
                :func:`varflow.evaluation.evaluate_codes` where latents are codes.

        Raises:
            SpecError: a split or a limit for a target.
        """
        from varflow import evaluation
        from varflow.evaluation.chunks import Chunks
        from varflow.evaluation.marginal_likelihood import IMPORTANCE

        if self.infers_target:
            for name, value in (("split", split), ("limit", options.pop("limit", None))):
                if value not in (None, "target"):
                    raise SpecError(f"{name}: was {value}; a target has no data, leave {name} out")
            options.pop("memory", None)
            result = evaluation.evaluate_target(
                self.model,
                100_000 if samples is None else samples,
                data=self.dataset.describe(),
                **options,
            )
        elif isinstance(self.model, Model) and self.model.posterior.discrete:
            assert isinstance(self.dataset, Dataset)
            options.pop("memory", None)
            if samples not in (None, 1):
                raise SpecError(
                    f"samples: was {samples}; q of a quantizer is one code for sure, leave samples out"
                )
            result = evaluation.evaluate_codes(
                self.model, self.dataset, split="test" if split is None else split, **options
            )
        else:
            assert isinstance(self.model, Model)
            assert isinstance(self.dataset, Dataset)
            if self.folder is not None and not self.other_data:
                options.setdefault("folder", self.folder / "evaluation")
            result = evaluation.evaluate(
                self.model,
                self.dataset,
                split="test" if split is None else split,
                # Where the latents are the data all samples are the same; two, so that every sum has its variance.
                samples=(2 if self.model.posterior.observed else 1000)
                if samples is None
                else samples,
                **options,
            )
        if self.folder is not None and not self.other_data:
            result.save(self.folder)
            Chunks(options.get("folder"), IMPORTANCE).clear()
        return result

    @ranks.by_first
    def report(self) -> Path:
        """Draw every figure that applies and write report.html; returns its path.

        Raises:
            RunError: the run has no folder.
        """
        if self.folder is None:
            raise RunError("folder: this run is in memory; fit with out=... to have files")
        from varflow import figures
        from varflow.evaluation import Evaluation
        from varflow.report.page import write_report

        split = "target" if self.infers_target else "test"
        evaluated = (self.folder / "evaluation" / f"{split}.json").exists()
        evaluation = Evaluation.load(self.folder, split) if evaluated else None
        folder = self.folder / "figures"
        if self.infers_target:
            figures.target_gallery(
                self.model, self.metrics, folder, snapshots(self.folder), evaluation=evaluation
            )
        else:
            assert isinstance(self.model, Model)
            assert isinstance(self.dataset, Dataset)
            drawn = (self.folder / "evaluation" / "test-curve.json").exists()
            curve = Evaluation.load(self.folder, "test-curve") if drawn else None
            figures.gallery(
                self.model,
                self.dataset,
                self.metrics,
                folder,
                evaluation=evaluation,
                curve=curve,
                code_prior_metrics=self.code_prior_metrics,
            )
        return write_report(self.folder)

    def _given_data(self) -> bool:
        return self.folder is not None and bool(read_about(self.folder).get("data_given"))
