"""A run: a fitted model with everything that belongs to it, and :func:`load` to open one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varflow.core import random, ranks
from varflow.core.errors import DataError, RunError, SpecError, positive
from varflow.core.files import read_json, read_metrics
from varflow.core.form import Form
from varflow.data.dataset import SPLITS, Dataset
from varflow.data.protocols import Protocol
from varflow.data.unobserved import Unobserved
from varflow.ensemble import Ensemble
from varflow.model import Model
from varflow.posteriors.observed import Observed
from varflow.runs import code_prior as second_stage
from varflow.runs.assemble import PARTS, build, build_ensemble, unobserved
from varflow.runs.folder import (
    DATA,
    SNAPSHOTS,
    SPEC,
    WEIGHTS,
    check_data,
    read_about,
    read_form,
    read_preprocessing,
    read_weights,
)
from varflow.settings.spec import RunSpec

if TYPE_CHECKING:
    from varflow.evaluation import Evaluation

#: A setting up to this number is never a reason to look no further.
_SMALL = 10_000


class Run:
    """A fitted model with what belongs to it.

    Attributes:
        folder: where it lives, or None for a fit that was not written.
        spec: its settings.
        model: in evaluation mode; an :class:`~varflow.Ensemble` where several fits were trained together.
        form: shape and support of the data.
        metrics: the records of the fit.
        outcome: how the fit ended, as plain values.
        second_metrics: the records of a second stage, which fits the prior; none where there is none.
        preprocessing: what stands between the stored values and the model, as it was learned in training; None for
            a fit to a target.
        picture: whether the data are pictures.
        other_data: whether the run was loaded with other data than those it was fitted to. Their evaluation is given
            back and not kept in the folder.
    """

    def __init__(
        self,
        spec: RunSpec,
        model: Model | Ensemble,
        form: Form,
        folder: Path | None = None,
        metrics: list[dict[str, Any]] | None = None,
        outcome: dict[str, Any] | None = None,
        dataset: Dataset | Unobserved | None = None,
        second_metrics: list[dict[str, Any]] | None = None,
        preprocessing: Protocol | None = None,
        picture: bool = False,
    ) -> None:
        self.spec, self.model, self.form, self.folder = spec, model, form, folder
        self.metrics, self.outcome = metrics or [], outcome or {}
        self.second_metrics = second_metrics or []
        self._dataset = dataset
        if preprocessing is None and isinstance(dataset, Dataset):
            preprocessing, picture = dataset.preprocessing, dataset.picture
        self.preprocessing, self.picture = preprocessing, picture
        self.other_data = False

    def __repr__(self) -> str:
        return f"Run({self.folder or 'in memory'}, {self.outcome.get('step', 0)} steps)"

    @property
    def dataset(self) -> Any:
        """The data of the run, read again where it is not at hand, on the model's device."""
        if self._dataset is None:
            if self._given_data():
                raise RunError(
                    "data: this run was fitted to data given in Python, which the folder does not hold; "
                    "pass them again, e.g. load(folder, data=tensor)"
                )
            from varflow.runs.fitting import as_dataset

            loaded = as_dataset(None, self.spec, self.preprocessing)
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
        exact, parts = isinstance(self.model.posterior, Observed), []
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
        return self.model.members() if isinstance(self.model, Ensemble) else [self.model]

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
                samples=(2 if isinstance(self.model.posterior, Observed) else 1000)
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
            drawn = (self.folder / "evaluation" / "test-curve.json").exists()
            curve = Evaluation.load(self.folder, "test-curve") if drawn else None
            figures.gallery(
                self.model,
                self.dataset,
                self.metrics,
                folder,
                evaluation=evaluation,
                curve=curve,
                second_metrics=self.second_metrics,
            )
        return write_report(self.folder)

    def _given_data(self) -> bool:
        return self.folder is not None and bool(read_about(self.folder).get("data_given"))


def load(
    folder: str | Path,
    parts: Mapping[str, nn.Module] | None = None,
    data: Any = None,
    device: str = "cpu",
) -> Run:
    """The run in a folder, its model ready for use.

    Nothing from the folder is executed and no name found in it is imported: part names are looked up
    in varflow's own tables.

    Args:
        folder: a run folder.
        parts: the parts of your own that the run was fitted with, by name.
        data: the data, where they were given in Python.
        device: where the model goes.

    Raises:
        RunError: no run there, a damaged or tampered file, another version, or a part that is missing.
    """
    path = Path(folder)
    if not (path / SPEC).exists():
        raise RunError(
            f"folder: {path} holds no run (no {SPEC}); give the folder that `varflow fit` wrote"
        )
    spec = RunSpec.from_dict(read_json(path / SPEC))
    form = read_form(path)
    about = read_about(path)
    kept, picture = read_preprocessing(path)
    own = about.get("own_parts", [])
    for name in own:
        if name not in (*PARTS, "ensemble") or name not in (parts or {}):
            raise RunError(
                f"parts: the run was fitted with its own {name}; pass parts={{'{name}': ...}}"
            )
    weights = read_weights(path / WEIGHTS)
    _check_sizes(spec, form, path, weights, parts)
    model: Model | Ensemble
    if "ensemble" in own:
        model = (parts or {})["ensemble"]  # type: ignore[assignment]
    elif spec.training.fits > 1:
        model = build_ensemble(spec, form)
    else:
        model = build(spec, form, parts)
    if second_stage.needed(model):
        assert isinstance(model, Model)
        model, weights = second_stage.joined(model, weights, path)
    if spec.training.precision == "float64":
        model.double()
    assign_weights(model, weights, path / WEIGHTS)
    model.to(device).eval()
    dataset: Dataset | Unobserved | None = None
    if data is not None:
        from varflow.runs.fitting import as_dataset

        home = next(model.parameters())
        given = as_dataset(data, spec, kept)
        if tuple(given.event_shape) != form.event_shape:
            raise DataError(
                f"data: one example has shape {list(given.event_shape)}, the run was fitted to "
                f"{list(form.event_shape)}; give data of the same columns or picture size"
            )
        dataset = given.to(home.device, home.dtype)
    elif form.support == "none":
        dataset = unobserved(spec, model.member(0) if isinstance(model, Ensemble) else model)
    later = read_metrics(path / second_stage.FOLDER)
    outcome = about.get("outcome", {})
    run = Run(spec, model, form, path, read_metrics(path), outcome, dataset, later, kept, picture)
    run.other_data = data is not None and not _same_data(dataset, path)
    return run


def _same_data(dataset: Any, folder: Path) -> bool:
    """Whether these are the data that the run was fitted to."""
    try:
        check_data(dataset, folder)
    except RunError:
        return False
    return True


def _check_sizes(
    spec: RunSpec,
    form: Form,
    path: Path,
    weights: Mapping[str, Tensor],
    parts: Mapping[str, nn.Module] | None,
) -> None:
    """Refuse sizes that are not those of the weights, before a model of such sizes takes up memory.

    Raises:
        RunError: one sentence with the setting or the weight.
    """
    stored = dict(weights)
    if (path / second_stage.FOLDER / WEIGHTS).exists():
        stored |= read_weights(path / second_stage.FOLDER / WEIGHTS)
    total = sum(tensor.numel() for tensor in stored.values())
    for name, value in {**spec.sizes(), "fits": spec.training.fits}.items():
        # Small numbers build quickly, and the comparison of the weights themselves names what differs.
        if value > max(total, _SMALL):
            raise RunError(
                f"{path / SPEC}: {name} is {value}, and the weights of the run are {total} numbers in all; the spec "
                "or the weights were changed"
            )
    told, held = spec.target.settings and spec.target.loaded.facts(), read_json(path / DATA)
    for name, value in (told or {}).items():
        if held.get(name) != value:
            raise RunError(
                f"{path / SPEC}: {name} is {value!r}, and the run was fitted with {held.get(name)!r} ({DATA}); the "
                "spec or the data were changed"
            )
    if form.support == "none":
        return
    try:
        # Shapes without memory; a part that cannot be built so is compared later.
        with torch.device("meta"):
            expected = build(spec, form, parts).state_dict()
    except (NotImplementedError, RuntimeError):
        return
    for name in expected.keys() & stored.keys():
        if expected[name].shape != stored[name].shape:
            raise _other_shape(path / WEIGHTS, name, stored[name], expected[name])


def _other_shape(origin: Path, name: str, found: Tensor, needed: Tensor) -> RunError:
    return RunError(
        f"{origin}: '{name}' has shape {tuple(found.shape)}, the spec needs {tuple(needed.shape)}; the spec or the "
        "weights were changed"
    )


def snapshots(folder: Path) -> list[tuple[int, dict[str, Tensor]]]:
    """(step, weights) that a fit to a target left behind, in order of the steps; they may be none."""
    files = sorted((folder / SNAPSHOTS).glob("step-*.safetensors"))
    found = [(path.stem.partition("-")[2], path) for path in files]
    return [(int(step), read_weights(path)) for step, path in found if step.isdigit()]


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Put weights into a model, all of them and nothing else.

    Raises:
        RunError: names or shapes differ, or a weight is not finite.
    """
    expected = model.state_dict()
    missing, extra = (
        sorted(expected.keys() - weights.keys()),
        sorted(weights.keys() - expected.keys()),
    )
    if missing or extra:
        raise RunError(
            f"{origin}: does not belong to this spec (missing: {missing[:3] or 'none'}, "
            f"unexpected: {extra[:3] or 'none'}); the spec or the weights were changed"
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise _other_shape(origin, name, tensor, expected[name])
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise RunError(
                f"{origin}: '{name}' holds a NaN or an infinity; fit again or restore the file"
            )
    model.load_state_dict(dict(weights))
